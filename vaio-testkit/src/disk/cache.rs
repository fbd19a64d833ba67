//! [`Media`]: a medium behind a volatile write cache, the weakest that the IO contract allows.
//!
//! Pure: whoever holds it says when things happen. What is durable is the *base*, what a reader
//! sees is the *live* image, and between them is the *log*: every mutation that a crash may still
//! keep or lose, block by block.
//!
//! Invariants:
//! * I1. The base shows, per block, the guaranteed version that ended last.
//! * I2. The log holds exactly the other versions that are legal after a crash: no version that
//!   comes before a guaranteed one.
//! * I3. A flush guarantees what succeeded before it was submitted and nothing else; fua guarantees
//!   itself and nothing else.

use std::sync::Arc;

use bytes::Bytes;
use vaio_core::{Allocation, AllocationMap, DeviceInfo, DiscardReads, Extent};

use super::{
    image::{Content, Fill, Image},
    mutation::{Change, Cover, End, Moment, Mutation, MutationId, Unit},
};

/// Mutations that the volatile cache holds; above it the device writes its oldest ones back by
/// itself, as devices do.
pub const PENDING_MAX: usize = 4096;

/// What becomes of a mutation in flight whose process died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landing {
    /// It lands now.
    Lands,
    /// It never does.
    Lost,
    /// It stays in flight and may land until the dead owner is fenced.
    Orphaned,
}

/// A medium and its volatile cache. A clone is a cheap copy that goes its own way.
#[derive(Clone, Debug)]
pub struct Media {
    info: DeviceInfo,
    base: Image,
    live: Image,
    /// In order of submission.
    log: Vec<Arc<Mutation>>,
    last_id: u64,
    last_rank: u64,
}

/// A medium at one moment: what is durable, what readers see, and what may become of it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(super) base: Image,
    pub(super) live: Image,
    pub(super) log: Vec<Arc<Mutation>>,
}

impl Snapshot {
    /// What a crash leaves if nothing pending survives.
    pub fn durable(&self) -> &Image {
        &self.base
    }

    /// What readers see, and what a process finds after another one was killed.
    pub fn live(&self) -> &Image {
        &self.live
    }

    /// What a crash may keep or lose, in order of submission.
    pub fn pending(&self) -> impl Iterator<Item = &Mutation> {
        self.log.iter().map(|mutation| &**mutation)
    }
}

impl Media {
    /// A medium that was never written.
    ///
    /// Of `info` it heeds capacity, block size, `volatile_cache` and `discard_reads`.
    pub fn new(info: DeviceInfo, fill: Fill) -> Self {
        let blocks = info.capacity / u64::from(info.logical_block);
        Self::of_image(info, Image::new(blocks, info.logical_block, fill))
    }

    /// A medium with durable content.
    pub fn of_image(info: DeviceInfo, image: Image) -> Self {
        let live = image.clone();
        Self {
            info,
            base: image,
            live,
            log: Vec::new(),
            last_id: 0,
            last_rank: 0,
        }
    }

    /// What the device looks like.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The last moment that it knows of.
    pub fn last_moment(&self) -> Moment {
        let ends = |m: &Mutation| m.end.map_or(m.submit, |end| end.at);
        self.pending().map(ends).max().unwrap_or(0)
    }

    /// What a reader sees now.
    pub fn live(&self) -> &Image {
        &self.live
    }

    /// What is durable whatever happens.
    pub fn durable(&self) -> &Image {
        &self.base
    }

    /// What a crash may keep or lose, in order of submission.
    pub fn pending(&self) -> impl Iterator<Item = &Mutation> {
        self.log.iter().map(|mutation| &**mutation)
    }

    /// A cheap copy of the state.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            base: self.base.clone(),
            live: self.live.clone(),
            log: self.log.clone(),
        }
    }

    /// A mutation is on its way. It has no effect yet for readers; a crash may keep it already.
    ///
    /// # Panics
    /// If it reaches past the end or is not whole blocks.
    pub fn submit(&mut self, block: u64, change: Change, is_fua: bool, at: Moment) -> MutationId {
        self.last_id += 1;
        let id = MutationId(self.last_id);
        let block_bytes = self.info.logical_block as usize;
        if let Change::Write(data) = &change {
            assert!(
                data.len().is_multiple_of(block_bytes),
                "a write of whole blocks"
            );
        }
        let mut mutation = Mutation::new(id, block, change, is_fua, at, block_bytes);
        assert!(
            block
                .checked_add(mutation.count())
                .is_some_and(|end| end <= self.live.blocks()),
            "a mutation past the end, block={block} count={}",
            mutation.count()
        );
        if self.info.caps.discard_reads == DiscardReads::Zero {
            for unit in &mut mutation.units {
                unit.is_decided = true;
            }
        }
        self.log.push(Arc::new(mutation));
        id
    }

    /// A mutation takes effect and succeeds.
    pub fn complete(&mut self, id: MutationId, at: Moment) {
        self.complete_with(id, at, |_| true);
    }

    /// The same for a discard, where `shows` says by block number which blocks read as zeroes from
    /// now; the others read as before, but may turn into zeroes in a crash. Writes, and discards
    /// where `discard_reads` is [`DiscardReads::Zero`], take effect whatever it says.
    pub fn complete_with(&mut self, id: MutationId, at: Moment, shows: impl FnMut(u64) -> bool) {
        self.finish(id, End { at, is_ok: true }, shows);
        let durable_at_ack = |mutation: &Mutation| mutation.is_fua;
        let is_stable = !self.info.caps.volatile_cache;
        let covers = self
            .find(id)
            .is_some_and(|m| is_stable || durable_at_ack(m));
        if covers {
            self.cover(|mutation| mutation.id == id);
        }
        self.write_back_excess();
    }

    /// A mutation fails: by block number, `lands` says which blocks are new; the others are old for
    /// readers. Either way a crash may leave each old or new, until something later is durable.
    pub fn fail(&mut self, id: MutationId, at: Moment, lands: impl FnMut(u64) -> bool) {
        self.finish(id, End { at, is_ok: false }, lands);
    }

    /// A mutation in flight goes away without a trace.
    pub fn abandon(&mut self, id: MutationId) {
        self.log
            .retain(|mutation| mutation.id != id || mutation.end.is_some());
    }

    /// The process that used the medium is gone. What it was told stays, as volatile as before;
    /// `decide` says what becomes of each mutation in flight. One that lands counts as
    /// acknowledged now, so that a flush of the next owner covers what that owner can read.
    pub fn kill(&mut self, at: Moment, mut decide: impl FnMut(&Mutation) -> Landing) {
        let flying: Vec<_> = self
            .pending()
            .filter(|m| m.end.is_none())
            .cloned()
            .collect();
        for mutation in flying {
            match decide(&mutation) {
                Landing::Lands => self.complete(mutation.id, at),
                Landing::Lost => self.abandon(mutation.id),
                Landing::Orphaned => {}
            }
        }
    }

    /// Another process takes the medium over: of what failed or was left undecided, what it shows
    /// is there, as volatile as any acknowledged write, and the rest is gone. Whoever recovers
    /// settles what it reads, and no filter could if that went on changing below it.
    pub fn hand_over(&mut self) {
        for mutation in &mut self.log {
            let Some(end) = mutation.end else {
                continue;
            };
            let mutation = Arc::make_mut(mutation);
            mutation.end = Some(End { is_ok: true, ..end });
            for unit in &mut mutation.units {
                if unit.is_gone() {
                    // A durable version came after it: it does not come back.
                    continue;
                }
                if !unit.is_shown {
                    unit.cover = Cover::Gone;
                } else if unit.cover == Cover::Doomed || !unit.is_decided {
                    unit.cover = Cover::Open;
                }
                unit.is_decided = true;
            }
        }
        if !self.info.caps.volatile_cache {
            self.cover(|mutation| mutation.end.is_some());
        }
        self.sweep();
    }

    /// Power is lost: the medium holds `image`, one of the snapshot's crash images.
    ///
    /// # Panics
    /// If the image is of another size.
    pub fn lose_power(&mut self, image: Image) {
        assert_eq!(
            image.blocks(),
            self.base.blocks(),
            "an image of this medium"
        );
        self.log.clear();
        self.live = image.clone();
        self.base = image;
    }

    /// A flush that was submitted at `submitted` succeeds.
    pub fn flush(&mut self, submitted: Moment) {
        self.cover(|mutation| {
            mutation
                .end
                .is_some_and(|end| end.is_ok && end.at < submitted)
        });
    }

    /// A flush fails at `at`, and with it the right of any later flush to cover what succeeded
    /// before. Readers still see it; a crash may lose it.
    pub fn fail_flush(&mut self, at: Moment) {
        for mutation in &mut self.log {
            if mutation.end.is_none_or(|end| end.at > at) {
                continue;
            }
            for unit in &mut Arc::make_mut(mutation).units {
                if unit.cover == Cover::Open {
                    unit.cover = Cover::Doomed;
                }
            }
        }
    }

    /// What `count` blocks read as. A read settles what it shows: what was acknowledged before it
    /// was submitted, and is not what it returned, comes before what it returned.
    pub fn read(&mut self, block: u64, count: u64, submitted: Moment) -> Bytes {
        let end = block + count;
        if self
            .log
            .iter()
            .any(|m| m.block < end && block < m.block + m.count())
        {
            for block in block..end {
                self.see(block, submitted);
            }
        }
        self.live.read(block, count)
    }

    /// Which blocks hold data, zeroes or nothing.
    pub fn allocation(&self, range: Extent) -> AllocationMap {
        let mut map = AllocationMap::starting_at(range.offset());
        for piece in range.split(self.info.logical_block.into()) {
            let what = match self
                .live
                .get(piece.offset() / u64::from(self.info.logical_block))
            {
                Content::Fill if self.live.fill() == Fill::Zero => Allocation::Hole,
                Content::Fill => Allocation::Unmapped,
                Content::Hole => Allocation::Hole,
                Content::Zero => Allocation::Zero,
                Content::Data(_) => Allocation::Data,
            };
            map.push(piece.len(), what);
        }
        map
    }

    /// Makes the disk larger; new blocks were never written.
    pub fn grow(&mut self, capacity: u64) {
        let blocks = capacity / u64::from(self.info.logical_block);
        self.info.capacity = capacity;
        self.base = self.base.grown(blocks);
        self.live = self.live.grown(blocks);
    }

    /// Changes a block behind everyone's back, durably: bit rot and the like.
    pub fn damage(&mut self, block: u64, content: &Content) {
        self.base.set(block, content.clone());
        self.live.set(block, content.clone());
    }

    fn find(&self, id: MutationId) -> Option<&Mutation> {
        // In order of numbers.
        let at = self
            .log
            .binary_search_by_key(&id, |mutation| mutation.id)
            .ok()?;
        Some(&self.log[at])
    }

    fn finish(&mut self, id: MutationId, end: End, mut shows: impl FnMut(u64) -> bool) {
        let Ok(at) = self.log.binary_search_by_key(&id, |mutation| mutation.id) else {
            return;
        };
        self.last_rank += 1;
        let mutation = Arc::make_mut(&mut self.log[at]);
        assert!(
            mutation.end.is_none(),
            "a mutation ends once, mutation={mutation}"
        );
        assert!(end.at >= mutation.submit, "a mutation ends after it began");
        mutation.end = Some(end);
        mutation.rank = self.last_rank;
        for (block, unit) in (mutation.block..).zip(&mut mutation.units) {
            let is_free = !end.is_ok || !unit.is_decided;
            unit.is_shown = !is_free || shows(block);
            if unit.is_shown {
                self.live.set(block, unit.content.clone());
            }
        }
    }

    /// Makes durable what `which` names, in the order in which it took effect.
    fn cover(&mut self, which: impl Fn(&Mutation) -> bool) {
        let mut found: Vec<usize> = (0..self.log.len())
            .filter(|at| which(&self.log[*at]))
            .collect();
        found.sort_unstable_by_key(|at| self.log[*at].rank);
        let mut blocks = Vec::new();
        for at in found {
            let mutation = Arc::make_mut(&mut self.log[at]);
            let rank = mutation.rank;
            let mut fresh = Vec::new();
            for (block, unit) in (mutation.block..).zip(&mut mutation.units) {
                if unit.cover == Cover::Open {
                    unit.cover = Cover::Covered;
                    if unit.is_durable() {
                        fresh.push((block, unit.content.clone()));
                    }
                }
            }
            for (block, content) in fresh {
                self.persist(block, rank, content);
                blocks.push(block);
            }
        }
        blocks.sort_unstable();
        blocks.dedup();
        for block in blocks {
            self.settle(block);
        }
        self.sweep();
    }

    /// I1: shows a version in the base, unless a durable one ended after it.
    fn persist(&mut self, block: u64, rank: u64, content: Content) {
        let is_beaten = self.log.iter().any(|other| {
            other.rank > rank
                && other
                    .unit_at(block)
                    .is_some_and(|at| other.units[at].is_durable())
        });
        if !is_beaten {
            self.base.set(block, content);
        }
    }

    /// I2 for one block.
    fn settle(&mut self, block: u64) {
        let mut versions: Vec<(usize, usize)> = (0..self.log.len())
            .filter_map(|at| Some((at, self.log[at].unit_at(block)?)))
            .collect();
        // What comes before a durable version is gone, and what comes before that: a read does not
        // order a failed version before what it returned, but may order a later one that it is
        // before.
        let mut later: Vec<_> = (versions.iter().copied())
            .filter(|(at, unit)| self.log[*at].units[*unit].is_durable())
            .collect();
        while !later.is_empty() {
            let log = &self.log;
            let is_before = |&(at, unit): &(usize, usize)| {
                let is = |&(other, its): &(usize, usize)| {
                    at != other && log[at].is_before(&log[at].units[unit], &log[other], its)
                };
                later.iter().any(is)
            };
            let (gone, kept) = versions.into_iter().partition(is_before);
            (versions, later) = (kept, gone);
            for (at, unit) in &later {
                Arc::make_mut(&mut self.log[*at]).units[*unit].cover = Cover::Gone;
            }
        }
        // A durable version that nothing is concurrent with is the base itself.
        let folded: Vec<_> = versions
            .iter()
            .copied()
            .filter(|&(at, unit)| {
                let mutation = &self.log[at];
                let is_alone = versions.iter().all(|&(other, _)| {
                    other == at
                        || mutation
                            .end
                            .is_some_and(|end| end.at < self.log[other].submit)
                });
                mutation.units[unit].is_durable() && is_alone
            })
            .collect();
        for (at, unit) in folded {
            Arc::make_mut(&mut self.log[at]).units[unit].cover = Cover::Gone;
        }
    }

    fn sweep(&mut self) {
        self.log
            .retain(|mutation| !mutation.units.iter().all(Unit::is_gone));
    }

    /// A read submitted at `submitted` returned what the block shows.
    fn see(&mut self, block: u64, submitted: Moment) {
        let shown = self
            .log
            .iter()
            .enumerate()
            .filter_map(|(at, mutation)| Some((at, mutation.unit_at(block)?)))
            .filter(|&(at, unit)| self.log[at].units[unit].is_shown)
            .max_by_key(|&(at, _)| self.log[at].rank);
        let Some((at, unit)) = shown else {
            return;
        };
        let mutation = Arc::make_mut(&mut self.log[at]);
        let rank = mutation.rank;
        let seen = &mut mutation.units[unit];
        seen.seen = seen.seen.max(submitted);
        let was_durable = seen.is_durable();
        // Once read as zeroes, a discarded block stays so.
        seen.is_decided = true;
        if seen.is_durable() {
            let content = seen.content.clone();
            if !was_durable {
                self.persist(block, rank, content);
            }
            self.settle(block);
            self.sweep();
        }
    }

    fn write_back_excess(&mut self) {
        if self.log.len() <= PENDING_MAX {
            return;
        }
        let open = |m: &Mutation| {
            m.end.is_some_and(|end| end.is_ok) && m.units.iter().any(|u| u.cover == Cover::Open)
        };
        if let Some(oldest) = self.log.iter().find(|m| open(m)).map(|m| m.id) {
            self.cover(|mutation| mutation.id == oldest);
        }
    }
}
