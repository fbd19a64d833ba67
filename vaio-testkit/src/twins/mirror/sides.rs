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
        debug_assert!(valid.iter().all(|side| (PRIMARY..=BOTH).contains(side)), "A1");
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

    /// Sides that are valid for all of `extent`.
    pub(super) fn of(&self, extent: Extent) -> u8 {
        let valid = &self.valid[self.blocks(extent)];
        valid.iter().fold(BOTH, |all, one| all & one)
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

    /// A flush that was sent after write number `writes` ended well on `sides`. `Err`: some block
    /// is durable on no valid side. `Ok`: whether that has to be recorded.
    pub(super) fn flushed(&mut self, writes: u64, sides: u8) -> Result<bool, ()> {
        let covered: Vec<u64> = self
            .unflushed
            .iter()
            .filter(|(_, write)| sides != BOTH || **write <= writes)
            .map(|(block, _)| *block)
            .collect();
        let index = |block: u64| usize::try_from(block).expect("a small disk");
        if covered.iter().any(|block| self.valid[index(*block)] & sides == 0) {
            return Err(());
        }
        let mut must_record = false;
        for block in covered {
            // What the other side's flush may have dropped is not valid there.
            self.valid[index(block)] &= sides;
            must_record |= self.must_record(self.extent_of(index(block)));
            if self.unflushed[&block] <= writes {
                self.unflushed.remove(&block);
            }
        }
        Ok(must_record)
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
