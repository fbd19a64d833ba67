//! [`Extents`]: a set of blocks as disjoint spans that do not touch. Pure.

use std::collections::BTreeMap;

use crate::geometry::Span;

/// End by start.
#[derive(Debug, Default)]
pub(super) struct Extents(BTreeMap<u64, u64>);

impl Extents {
    /// Adds the blocks of a span.
    pub(super) fn insert(&mut self, span: Span) {
        if span.count == 0 {
            return;
        }
        let (mut start, mut end) = (span.start, span.end());
        while let Some((&from, &to)) = self.0.range(..=end).next_back() {
            if to < start {
                break;
            }
            self.0.remove(&from);
            start = start.min(from);
            end = end.max(to);
        }
        self.0.insert(start, end);
    }

    /// The spans, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Span> + '_ {
        self.0
            .iter()
            .map(|(start, end)| Span::from_range(*start, *end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn set_is_the_blocks_inserted_in_spans_that_do_not_touch(
            spans in prop::collection::vec((0u64..40, 0u64..8), 0..20),
        ) {
            let mut extents = Extents::default();
            let mut blocks = std::collections::BTreeSet::new();
            for (start, count) in spans {
                extents.insert(Span { start, count });
                blocks.extend(start..start + count);
            }
            let found: Vec<_> = extents.iter().collect();
            prop_assert!(found.windows(2).all(|two| two[0].end() < two[1].start));
            let listed: Vec<_> = found.iter().flat_map(|one| one.start..one.end()).collect();
            prop_assert_eq!(listed, blocks.into_iter().collect::<Vec<_>>());
        }
    }
}
