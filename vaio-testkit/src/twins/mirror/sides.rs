//! Which side of a mirror has the content of which block. Pure.
//!
//! * A1: every block has at least one valid side, and a block that has both reads the same on both.
//! * A2: what is *recorded* (durable in the sidecar) never claims more than is true: for each block
//!   the recorded sides are valid, except that `BOTH` of a disk that was not closed in order means
//!   the primary: a write that was under way may be on one side only.

use std::collections::BTreeMap;

use bytes::Bytes;
use vaio_core::{DirtyMap, Extent};

/// The disk below.
pub(super) const PRIMARY: u8 = 1;
/// The mirror device.
pub(super) const MIRROR: u8 = 2;
pub(super) const BOTH: u8 = PRIMARY | MIRROR;

#[derive(Debug)]
pub(super) struct Sides {
    block: u64,
    /// Valid sides, per block.
    valid: Vec<u8>,
    /// What the sidecar says.
    recorded: Vec<u8>,
    /// Blocks written since they were last flushed on both sides, with the number of the last
    /// write.
    unflushed: BTreeMap<u64, u64>,
    writes: u64,
}

impl Sides {
    pub(super) fn new(block: u64, valid: Vec<u8>, recorded: Vec<u8>) -> Self {
        debug_assert!(
            valid.iter().all(|side| (PRIMARY..=BOTH).contains(side)),
            "A1"
        );
        Self {
            block,
            valid,
            recorded,
            unflushed: BTreeMap::new(),
            writes: 0,
        }
    }

    fn blocks(&self, extent: Extent) -> std::ops::Range<usize> {
        let number = |at: u64| usize::try_from(at / self.block).expect("a small disk");
        number(extent.offset())..number(extent.end())
    }

    fn extent_of(&self, block: usize) -> Extent {
        Extent::new(block as u64 * self.block, self.block)
    }

    /// `extent`, cut where the valid sides change.
    pub(super) fn runs(&self, extent: Extent) -> Vec<(Extent, u8)> {
        let mut runs: Vec<(Extent, u8)> = Vec::new();
        for block in self.blocks(extent) {
            let (at, side) = (self.extent_of(block), self.valid[block]);
            match runs.last_mut() {
                Some((run, of)) if *of == side => {
                    *run = Extent::from_range(run.offset(), at.end());
                }
                _ => runs.push((at, side)),
            }
        }
        runs
    }

    /// A write of `extent` ended well on `sides`, and badly on the others. Whether that has to be
    /// recorded before anyone is told.
    pub(super) fn wrote(&mut self, extent: Extent, sides: u8) -> bool {
        self.writes += 1;
        for block in self.blocks(extent) {
            if sides != 0 {
                self.valid[block] = sides;
            } else if self.valid[block] == BOTH {
                // Old or new on each: not the same any more.
                self.valid[block] = PRIMARY;
            }
            self.unflushed.insert(block as u64, self.writes);
        }
        self.must_record(extent)
    }

    fn must_record(&self, extent: Extent) -> bool {
        // A2: recorded sides that are not valid any more.
        self.blocks(extent)
            .any(|block| self.recorded[block] & !self.valid[block] != 0)
    }

    /// What is not flushed now: give it to [`flushed`](Self::flushed) after a flush.
    pub(super) fn writes(&self) -> u64 {
        self.writes
    }

    /// A flush that was sent after write number `writes` ended well on `sides` and badly on the
    /// others. `None`: some block is for sure durable on no valid side, so the flush failed.
    /// Else whether something has to be recorded.
    pub(super) fn flushed(&mut self, writes: u64, sides: u8) -> Option<bool> {
        let mut is_kept = true;
        let mut must_record = false;
        for (block, write) in std::mem::take(&mut self.unflushed) {
            let index = usize::try_from(block).expect("a small disk");
            let left = self.valid[index] & sides;
            // What the other side's flush may have dropped is not valid there.
            self.valid[index] = match (left, self.valid[index]) {
                (0, BOTH) => PRIMARY,
                (0, one) => one,
                (left, _) => left,
            };
            is_kept &= left != 0;
            must_record |= self.must_record(self.extent_of(index));
            if left == 0 || write > writes {
                self.unflushed.insert(block, write);
            }
        }
        is_kept.then_some(must_record)
    }

    /// A block was copied to its other side and flushed there.
    pub(super) fn copied(&mut self, extent: Extent) {
        for block in self.blocks(extent) {
            self.valid[block] = BOTH;
        }
    }

    /// The first block that one side lacks.
    pub(super) fn first_stale(&self) -> Option<Extent> {
        let block = self.valid.iter().position(|side| *side != BOTH)?;
        Some(self.extent_of(block))
    }

    /// What `sides` lack, and, where `with_unflushed`, what they may lack after a crash.
    pub(super) fn lacking(&self, sides: u8, with_unflushed: bool) -> DirtyMap {
        let stale = (0..self.valid.len()).filter(|block| self.valid[*block] & sides != sides);
        let mut map: DirtyMap = stale.map(|block| self.extent_of(block)).collect();
        if with_unflushed {
            for block in self.unflushed.keys() {
                map.insert(Extent::new(block * self.block, self.block));
            }
        }
        map
    }

    /// The content of the sidecar that is true now.
    pub(super) fn to_record(&self) -> Bytes {
        Bytes::from(self.valid.clone())
    }

    /// The sidecar has this content.
    pub(super) fn recorded(&mut self, record: &Bytes) {
        self.recorded = record.to_vec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Extent = Extent::new(0, 512);

    fn sides() -> Sides {
        Sides::new(512, vec![BOTH; 2], vec![BOTH; 2])
    }

    #[test]
    fn write_that_failed_on_one_side_has_to_be_recorded_once() {
        let mut sides = sides();
        assert!(!sides.wrote(ONE, BOTH));
        assert!(sides.wrote(ONE, MIRROR));
        let record = sides.to_record();
        sides.recorded(&record);
        assert!(!sides.wrote(ONE, MIRROR), "recorded already");
        assert!(!sides.wrote(ONE, BOTH), "claims less than is true");
        assert!(sides.wrote(ONE, PRIMARY));
    }

    #[test]
    fn failed_flush_of_one_side_makes_it_stale_where_written() {
        let mut sides = sides();
        sides.wrote(ONE, BOTH);
        assert_eq!(sides.flushed(sides.writes(), PRIMARY), Some(true));
        assert_eq!(
            sides.runs(Extent::new(0, 1024)),
            [(ONE, PRIMARY), (Extent::new(512, 512), BOTH)]
        );
        assert!(sides.lacking(BOTH, true).overlaps(ONE));
    }

    #[test]
    fn flush_that_the_only_valid_side_fails_is_failed() {
        let mut sides = sides();
        sides.wrote(ONE, MIRROR);
        assert_eq!(sides.flushed(sides.writes(), PRIMARY), None);
        assert_eq!(sides.runs(ONE), [(ONE, MIRROR)]);
        assert!(sides.flushed(sides.writes(), BOTH).is_some());
    }
}
