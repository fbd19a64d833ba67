//! Which side of a mirror has the content of which block. Pure.
//!
//! * A1: a side is *valid* for a block if it has the newest content; every block has a valid side,
//!   and a block that has both reads the same on both.
//! * A2: a side is *safe* for a block if what it has after a crash is at least as new as what was
//!   flushed. A write changes nothing of that: until it is flushed, old and new are right. A flush
//!   does: safe are the sides that were valid and flushed well.
//! * A3: what is recorded in the sidecar is safe, at the latest when a flush is answered. Recorded
//!   `BOTH` of a disk that was not closed in order means the primary: what was under way may be on
//!   one side only.

use std::collections::BTreeSet;

use bytes::Bytes;
use vaio_core::{DirtyMap, Extent};

/// The disk below.
pub(super) const PRIMARY: u8 = 1;
/// The mirror device.
pub(super) const MIRROR: u8 = 2;
pub(super) const BOTH: u8 = PRIMARY | MIRROR;

/// The side that is read after a crash, of what is recorded.
pub(super) const fn source(recorded: u8) -> u8 {
    if recorded == BOTH { PRIMARY } else { recorded }
}

#[derive(Debug)]
pub(super) struct Sides {
    block: u64,
    /// Per block, as `safe` and `recorded`.
    valid: Vec<u8>,
    safe: Vec<u8>,
    /// What the sidecar says.
    recorded: Vec<u8>,
    /// Blocks written since they were last flushed.
    unflushed: BTreeSet<usize>,
    writes: u64,
}

impl Sides {
    /// Sides of which `valid` are valid and durable.
    pub(super) fn new(block: u64, valid: Vec<u8>) -> Self {
        assert!(
            valid.iter().all(|side| (PRIMARY..=BOTH).contains(side)),
            "A1"
        );
        Self {
            block,
            safe: valid.clone(),
            recorded: valid.clone(),
            valid,
            unflushed: BTreeSet::new(),
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

    /// A write of `extent` ended well on `sides`, and badly on the others.
    pub(super) fn wrote(&mut self, extent: Extent, sides: u8) {
        self.writes += 1;
        for block in self.blocks(extent) {
            if sides == 0 {
                // Old or new on each: not the same any more. And nothing for a flush to cover,
                // unless an earlier write is: the old may be what a failed flush has dropped.
                self.valid[block] = source(self.valid[block]);
            } else {
                self.valid[block] = sides;
                self.unflushed.insert(block);
            }
        }
    }

    /// Writes so far.
    pub(super) fn writes(&self) -> u64 {
        self.writes
    }

    /// A flush, with no write under way, ended well on `sides` and badly on the others. Whether
    /// every block is durable on a valid side.
    pub(super) fn flushed(&mut self, sides: u8) -> bool {
        let mut is_durable = true;
        for block in std::mem::take(&mut self.unflushed) {
            // What the other side's flush may have dropped is not there.
            let left = self.valid[block] & sides;
            if left == 0 {
                // No later flush covers it either: what was safe stays it, until a copy is made.
                self.valid[block] = source(self.valid[block]);
                is_durable = false;
            } else {
                self.valid[block] = left;
                self.safe[block] = left;
            }
        }
        is_durable
    }

    /// Whether a crash now would read a side that is not safe (A3).
    pub(super) fn must_record(&self) -> bool {
        let mut both = self.recorded.iter().zip(&self.safe);
        both.any(|(recorded, safe)| source(*recorded) & safe == 0)
    }

    /// A block was written anew to both sides, and is durable there.
    pub(super) fn copied(&mut self, extent: Extent) {
        for block in self.blocks(extent) {
            self.valid[block] = BOTH;
            self.safe[block] = BOTH;
        }
    }

    /// The first block that one side lacks.
    pub(super) fn first_stale(&self) -> Option<Extent> {
        let block = self.valid.iter().position(|side| *side != BOTH)?;
        Some(self.extent_of(block))
    }

    /// What `sides` lack, and, where `with_unflushed`, what they may lack after a crash.
    pub(super) fn lacking(&self, sides: u8, with_unflushed: bool) -> DirtyMap {
        let is_there = |block: &usize| self.valid[*block] & self.safe[*block] & sides == sides;
        let stale = (0..self.valid.len()).filter(|block| !is_there(block));
        let mut map: DirtyMap = stale.map(|block| self.extent_of(block)).collect();
        if with_unflushed {
            for block in &self.unflushed {
                map.insert(self.extent_of(*block));
            }
        }
        map
    }

    /// What may be recorded now.
    pub(super) fn to_record(&self) -> Bytes {
        Bytes::from(self.safe.clone())
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
        Sides::new(512, vec![BOTH; 2])
    }

    fn record(sides: &mut Sides) -> u8 {
        let record = sides.to_record();
        sides.recorded(&record);
        record[0]
    }

    #[test]
    fn write_that_the_primary_failed_is_recorded_when_flushed() {
        let mut sides = sides();
        sides.wrote(ONE, MIRROR);
        assert!(!sides.must_record(), "old and new are right until flushed");
        assert!(sides.flushed(BOTH) && sides.must_record());
        assert_eq!(record(&mut sides), MIRROR);
        assert!(!sides.must_record());
    }

    /// The bug: the mirror alone had what was flushed; the next write failed on it, and the record
    /// went to the primary before that had anything durably.
    #[test]
    fn side_that_gets_valid_is_not_recorded_before_it_is_durable() {
        let mut sides = sides();
        sides.wrote(ONE, MIRROR);
        assert!(sides.flushed(BOTH));
        record(&mut sides);
        sides.wrote(ONE, PRIMARY);
        assert_eq!(sides.runs(ONE), [(ONE, PRIMARY)]);
        assert_eq!(record(&mut sides), MIRROR);
        assert!(sides.flushed(PRIMARY) && sides.must_record());
        assert_eq!(record(&mut sides), PRIMARY);
    }

    #[test]
    fn failed_flush_of_one_side_makes_it_stale_where_written() {
        let mut sides = sides();
        sides.wrote(ONE, BOTH);
        assert!(sides.flushed(PRIMARY));
        assert_eq!(
            sides.runs(Extent::new(0, 1024)),
            [(ONE, PRIMARY), (Extent::new(512, 512), BOTH)]
        );
    }

    #[test]
    fn flush_that_the_only_valid_side_fails_is_failed() {
        let mut sides = sides();
        sides.wrote(ONE, MIRROR);
        assert!(!sides.flushed(PRIMARY));
        assert_eq!(sides.runs(ONE), [(ONE, MIRROR)]);
        assert!(sides.flushed(BOTH));
        assert_eq!(
            record(&mut sides),
            BOTH,
            "the flush after a failed one covers nothing of it"
        );
    }
}
