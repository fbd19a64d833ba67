//! [`Dirty`]: the blocks that the target may lack, each with the number of the newest write of it.
//! Pure.

use std::collections::BTreeMap;

/// See the [module](self). A block is its byte offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dirty(BTreeMap<u64, u64>);

impl Dirty {
    /// A block is written, or copied, by `seq`.
    pub(super) fn mark(&mut self, offset: u64, seq: u64) {
        let newest = self.0.entry(offset).or_default();
        debug_assert!(*newest <= seq, "numbers rise, seq={seq}");
        *newest = seq;
    }

    /// The target has everything up to `seq`, durably: what is newer stays.
    pub(super) fn flushed(&mut self, seq: u64) {
        self.0.retain(|_, newest| *newest > seq);
    }

    /// Forgets all marks: the bug.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The marked blocks.
    pub(super) fn offsets(&self) -> Vec<u64> {
        self.0.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notice_of_an_older_flush_keeps_what_is_newer() {
        let mut dirty = Dirty::default();
        dirty.mark(0, 1);
        dirty.mark(512, 2);
        dirty.mark(0, 3);
        dirty.flushed(2);
        assert_eq!(dirty.offsets(), [0]);
        dirty.flushed(3);
        assert!(dirty.is_empty());
    }
}
