//! [`Packed`]: puts what overlaps in time beside each other. Pure.

use std::collections::BTreeMap;

/// Intervals in as few columns as they need.
#[derive(Clone, Debug, Default)]
pub(super) struct Packed {
    /// Columns that are used; at least one if there is any interval.
    pub(super) columns: usize,
    /// By key: its column, and how many it may span to the right.
    places: BTreeMap<usize, (usize, usize)>,
}

impl Packed {
    /// `(key, first line, last line)`, sorted by first line. What does not fit into `most` columns
    /// shares the last.
    pub(super) fn new(items: impl Iterator<Item = (usize, usize, usize)>, most: usize) -> Self {
        let items: Vec<_> = items.collect();
        let mut ends: Vec<usize> = Vec::new();
        let mut chosen = Vec::new();
        for (_, from, to) in &items {
            let free = ends.iter().position(|end| end < from);
            let column = match free {
                Some(column) => column,
                None if ends.len() < most => {
                    ends.push(0);
                    ends.len() - 1
                }
                None => ends.len() - 1,
            };
            ends[column] = ends[column].max(*to);
            chosen.push(column);
        }
        let columns = ends.len();
        let overlap = |a: usize, b: usize| items[a].1 <= items[b].2 && items[b].1 <= items[a].2;
        let places = (0..items.len())
            .map(|item| {
                // It spans to the right until something else is there at the same time.
                let next = (0..items.len())
                    .filter(|other| *other != item && overlap(item, *other))
                    .map(|other| chosen[other])
                    .filter(|column| *column > chosen[item])
                    .min();
                let span = next.unwrap_or(columns) - chosen[item];
                (items[item].0, (chosen[item], span))
            })
            .collect();
        Self { columns, places }
    }

    /// Grid lines of a key, where the lane begins at `start`.
    pub(super) fn place(&self, key: usize, start: usize) -> (usize, usize) {
        let (column, span) = self.places.get(&key).copied().unwrap_or((0, 1));
        (start + column, start + column + span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_intervals_get_columns_of_their_own() {
        let packed = Packed::new([(7, 0, 3), (8, 1, 1), (9, 2, 5), (10, 6, 6)].into_iter(), 9);
        assert_eq!(packed.columns, 2);
        assert_eq!(packed.place(7, 10), (10, 11));
        assert_eq!(packed.place(8, 10), (11, 12));
        assert_eq!(packed.place(9, 10), (11, 12));
        assert_eq!(packed.place(10, 10), (10, 12), "alone: the whole lane");
    }

    #[test]
    fn more_than_the_most_share_the_last_column() {
        let packed = Packed::new((0..5).map(|key| (key, 0, 9)), 2);
        assert_eq!(packed.columns, 2);
        assert_eq!(packed.place(4, 0), (1, 2));
    }
}
