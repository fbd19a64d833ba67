//! [`AllocationMap`]: which parts of a range hold data, are holes, or read as zeroes.

use crate::Extent;

/// What is known of a stretch of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum Allocation {
    /// Holds data, or nothing better is known.
    Data,
    /// Allocated, reads as zeroes.
    Zero,
    /// Not allocated, reads as zeroes.
    Hole,
    /// Not allocated, and what it reads as is not known (a hole below a transform).
    Unmapped,
}

/// Consecutive stretches that tile one range. Neighbours differ.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct AllocationMap {
    range: Extent,
    pieces: Vec<(Extent, Allocation)>,
}

impl AllocationMap {
    /// An empty map that starts at `offset`; [`push`](Self::push) extends it.
    pub fn starting_at(offset: u64) -> Self {
        Self {
            range: Extent::new(offset, 0),
            pieces: Vec::new(),
        }
    }

    /// The whole range is one thing. `uniform(range, Data)` is always a true answer.
    pub fn uniform(range: Extent, what: Allocation) -> Self {
        let mut map = Self::starting_at(range.offset());
        map.push(range.len(), what);
        map
    }

    /// Appends `len` bytes; merges with the piece before where equal.
    pub fn push(&mut self, len: u64, what: Allocation) {
        if len == 0 {
            return;
        }
        let piece = Extent::new(self.range.end(), len);
        match self.pieces.last_mut() {
            Some((last, kind)) if *kind == what => {
                *last = Extent::from_range(last.offset(), piece.end());
            }
            _ => self.pieces.push((piece, what)),
        }
        self.range = Extent::from_range(self.range.offset(), piece.end());
    }

    /// The range that the pieces tile.
    pub fn range(&self) -> Extent {
        self.range
    }

    /// The pieces in order.
    pub fn pieces(&self) -> &[(Extent, Allocation)] {
        &self.pieces
    }

    /// The same pieces, each renamed by `f`: how a filter that changes content answers from the
    /// map below it.
    #[must_use]
    pub fn map(&self, f: impl Fn(Allocation) -> Allocation) -> Self {
        let mut map = Self::starting_at(self.range.offset());
        for (extent, what) in &self.pieces {
            map.push(extent.len(), f(*what));
        }
        map
    }

    /// Overwrites a part with `what`.
    #[must_use]
    pub fn overlay(&self, part: Extent, what: Allocation) -> Self {
        let mut map = Self::starting_at(self.range.offset());
        let Some(part) = part.intersect(self.range) else {
            return self.clone();
        };
        for (extent, old) in &self.pieces {
            let before = part.offset().clamp(extent.offset(), extent.end()) - extent.offset();
            let after = extent.end() - part.end().clamp(extent.offset(), extent.end());
            map.push(before, *old);
            map.push(extent.len() - before - after, what);
            map.push(after, *old);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn push_merges_equal_neighbours() {
        let mut map = AllocationMap::starting_at(512);
        map.push(512, Allocation::Data);
        map.push(0, Allocation::Hole);
        map.push(512, Allocation::Data);
        map.push(512, Allocation::Hole);
        assert_eq!(map.pieces().len(), 2);
        assert_eq!(map.range(), Extent::new(512, 1536));
    }

    #[test]
    fn overlay_cuts_pieces_and_keeps_the_range() {
        let mut map = AllocationMap::uniform(Extent::new(0, 100), Allocation::Hole);
        map.push(100, Allocation::Data);
        let map = map.overlay(Extent::new(50, 100), Allocation::Zero);
        assert_eq!(
            map.pieces(),
            &[
                (Extent::new(0, 50), Allocation::Hole),
                (Extent::new(50, 100), Allocation::Zero),
                (Extent::new(150, 50), Allocation::Data),
            ]
        );
        assert_eq!(map.overlay(Extent::new(500, 1), Allocation::Data), map);
    }
}
