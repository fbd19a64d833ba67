//! What is in the log, in memory: which slot is whose, which record holds the newest content of a
//! block, what may be destaged. Pure.
//!
//! * L1: `tail..head` are the records whose slots are taken; never more than there are slots.
//! * L2: the map names, for each block, the newest *published* record that writes it, and that
//!   record is in the log.
//! * L3: a batch is a run of ended records from the tail on. A record is in it for what *it*
//!   wrote: only a newer record of the same batch may stand for it, because what is outside may
//!   not be durable when the tail has passed.
//! * L4: a slot that is being written again (`writers`) does not become free: the write would land
//!   in a slot that belongs to another record by then.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use vaio_core::{DirtyMap, Extent, Instant};

use super::record::Content;
use crate::zoo::Bug;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not acknowledged yet.
    Pending,
    /// Acknowledged, or about to be.
    Published,
    /// The write failed: it is no one's content, and its slot goes with the tail.
    Void,
}

#[derive(Debug)]
struct Record {
    extent: Extent,
    content: Content,
    state: State,
    /// Trust in the cache device when the record was last written to it; see `Store::trust`.
    written: Option<u64>,
    /// Writes of the slot in flight.
    writers: u32,
    since: Instant,
}

/// A run of records to bring to the backing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// First record after the batch: the tail when it is done.
    pub(super) end: u64,
    /// What to write: disjoint extents.
    pub(super) pieces: Vec<(Extent, Content)>,
}

#[derive(Debug)]
pub(super) struct Log {
    slots: u64,
    block: u64,
    tail: u64,
    records: VecDeque<Record>,
    /// Block number to the newest published record.
    newest: BTreeMap<u64, u64>,
    /// The backing is held at this point: records from it on stay.
    held: Option<u64>,
    /// End of the batch that is on its way, for the bug that reports too little.
    destaging: u64,
    bug: Option<Bug>,
}

impl Log {
    pub(super) fn new(slots: u64, block: u64, tail: u64, bug: Option<Bug>) -> Self {
        Self {
            slots,
            block,
            tail,
            records: VecDeque::new(),
            newest: BTreeMap::new(),
            held: None,
            destaging: tail,
            bug,
        }
    }

    pub(super) fn tail(&self) -> u64 {
        self.tail
    }

    /// The number that the next record gets.
    pub(super) fn head(&self) -> u64 {
        self.tail + self.records.len() as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// A slot for a record, if one is free (L1).
    pub(super) fn reserve(
        &mut self,
        extent: Extent,
        content: Content,
        now: Instant,
    ) -> Option<u64> {
        if self.records.len() as u64 >= self.slots {
            return None;
        }
        let seq = self.head();
        self.records.push_back(Record {
            extent,
            content,
            state: State::Pending,
            written: None,
            writers: 1,
            since: now,
        });
        Some(seq)
    }

    /// What the record `seq` writes.
    pub(super) fn content(&self, seq: u64) -> (Extent, Content) {
        let record = &self.records[self.place(seq)];
        (record.extent, record.content.clone())
    }

    /// A write of the slot ended well, under this trust.
    pub(super) fn written(&mut self, seq: u64, trust: u64) {
        let place = self.place(seq);
        let record = &mut self.records[place];
        assert!(record.writers > 0, "a write that ended was counted");
        record.writers -= 1;
        record.written = Some(trust);
    }

    /// A write of the slot failed. What an earlier write put there stands as it stood.
    pub(super) fn not_written(&mut self, seq: u64) {
        let place = self.place(seq);
        let record = &mut self.records[place];
        assert!(record.writers > 0, "a write that failed was counted");
        record.writers -= 1;
    }

    /// Records that were written when the device was trusted otherwise, each now counted as being
    /// written again (L4).
    pub(super) fn rewrite_untrusted(&mut self, trust: u64) -> Vec<u64> {
        let mut found = Vec::new();
        for (seq, record) in (self.tail..).zip(&mut self.records) {
            if record.written.is_some_and(|then| then != trust) {
                record.writers += 1;
                found.push(seq);
            }
        }
        found
    }

    /// Makes a record the newest of its blocks (L2).
    pub(super) fn publish(&mut self, seq: u64) {
        let place = self.place(seq);
        let record = &mut self.records[place];
        assert_eq!(record.state, State::Pending, "published once");
        record.state = State::Published;
        let mut blocks = blocks(record.extent, self.block);
        if self.bug == Some(Bug::MapsFirstBlockOnly) {
            blocks.end = blocks.start + 1;
        }
        for block in blocks {
            let before = self.newest.insert(block, seq);
            debug_assert!(
                before < Some(seq) || self.bug.is_some(),
                "overlapping writes are published in order"
            );
        }
    }

    /// Gives a record up. With `is_number_reused` its number goes to the next one, if it is the
    /// last.
    pub(super) fn void(&mut self, seq: u64, is_number_reused: bool) {
        let place = self.place(seq);
        assert_eq!(
            self.records[place].written, None,
            "what is in the log is published"
        );
        self.records[place].state = State::Void;
        if is_number_reused && seq + 1 == self.head() {
            self.records.pop_back();
        }
    }

    /// For the bug that discards by the record: every record that the extent touches is forgotten.
    pub(super) fn forget_touched(&mut self, extent: Extent) {
        let tail = self.tail;
        for (seq, record) in (tail..).zip(&mut self.records) {
            if record.state == State::Published && record.extent.overlaps(extent) {
                record.state = State::Void;
                self.newest.retain(|_, newest| *newest != seq);
            }
        }
    }

    /// For the bugs that write past the log: the blocks are no longer looked for in it.
    pub(super) fn forget_blocks(&mut self, extent: Extent) {
        for block in blocks(extent, self.block) {
            self.newest.remove(&block);
        }
    }

    /// Content of `extent` that is in the log: sorted pieces; what is between them is below.
    pub(super) fn read(&self, extent: Extent) -> Vec<(Extent, Bytes)> {
        self.newest
            .range(blocks(extent, self.block))
            .map(|(&block, &seq)| {
                let at = Extent::new(block * self.block, self.block);
                let record = &self.records[self.place(seq)];
                (at, record.content.bytes_of(record.extent, at))
            })
            .collect()
    }

    /// Whether a published record from `end` on writes this block.
    pub(super) fn has_newer(&self, extent: Extent, end: u64) -> bool {
        self.newest
            .range(blocks(extent, self.block))
            .any(|(_, seq)| *seq >= end)
    }

    /// The next batch (L3) of at most `records_max`, if there is one.
    pub(super) fn batch(&mut self, records_max: u64) -> Option<Batch> {
        let limit = self.tail.saturating_add(records_max);
        let limit = limit.min(self.held.unwrap_or(u64::MAX));
        let end = (self.tail..limit)
            .zip(&self.records)
            .take_while(|(_, record)| record.state != State::Pending && record.writers == 0)
            .last()?
            .0
            + 1;
        let mut newest = BTreeMap::new();
        let mut every = Vec::new();
        for (seq, record) in (self.tail..end).zip(&self.records) {
            if record.state == State::Published {
                every.push((record.extent, record.content.clone()));
                newest.extend(blocks(record.extent, self.block).map(|block| (block, seq)));
            }
        }
        self.destaging = end;
        if self.bug == Some(Bug::DestageUnordered) {
            every.reverse();
            return Some(Batch { end, pieces: every });
        }
        let pieces = self.runs(&newest);
        Some(Batch { end, pieces })
    }

    /// Whether [`batch`](Self::batch) would find one.
    pub(super) fn has_batch(&self) -> bool {
        self.held.is_none_or(|held| held > self.tail)
            && self
                .records
                .front()
                .is_some_and(|record| record.state != State::Pending && record.writers == 0)
    }

    /// Neighbouring blocks of one record, together.
    fn runs(&self, newest: &BTreeMap<u64, u64>) -> Vec<(Extent, Content)> {
        let mut runs: Vec<(Extent, u64)> = Vec::new();
        for (&block, &seq) in newest {
            let start = block * self.block;
            match runs.last_mut() {
                Some((run, of)) if *of == seq && run.end() == start => {
                    *run = Extent::from_range(run.offset(), start + self.block);
                }
                _ => runs.push((Extent::new(start, self.block), seq)),
            }
        }
        runs.into_iter()
            .map(|(run, seq)| {
                let record = &self.records[self.place(seq)];
                (run, record.content.part(record.extent, run))
            })
            .collect()
    }

    /// Whether no write is in flight into a slot before `end` (L4). One may have begun after the
    /// batch was made.
    pub(super) fn is_still(&self, end: u64) -> bool {
        let mut records = (self.tail..end).zip(&self.records);
        records.all(|(_, record)| record.writers == 0)
    }

    /// The tail is durable at `end`: the slots before it are free.
    pub(super) fn advance(&mut self, end: u64) {
        assert!(
            end >= self.tail && end <= self.head(),
            "a tail inside the log"
        );
        while self.tail < end {
            let record = self.records.pop_front().expect("inside the log");
            assert!(
                record.writers == 0 || self.bug.is_some(),
                "L4: no write in flight into a free slot"
            );
            for block in blocks(record.extent, self.block) {
                // Only where nothing newer has come since.
                if self.newest.get(&block) == Some(&self.tail)
                    || self.bug == Some(Bug::ClearsNewerDirty)
                {
                    self.newest.remove(&block);
                }
            }
            self.tail += 1;
        }
    }

    /// Holds the backing where it is when everything before `point` is destaged.
    pub(super) fn hold(&mut self, point: Option<u64>) {
        self.held = point;
    }

    pub(super) fn held(&self) -> Option<u64> {
        self.held
    }

    /// What is not on the backing.
    pub(super) fn dirty(&self) -> DirtyMap {
        let from = self.first_reported();
        let records = (self.tail..).zip(&self.records);
        records
            .filter(|(seq, record)| *seq >= from && record.state != State::Void)
            .map(|(_, record)| record.extent)
            .collect()
    }

    /// Since when the oldest of it waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.records.front().map(|record| record.since)
    }

    /// Published records from `from` on, in order.
    pub(super) fn published_from(&self, from: u64) -> Vec<(u64, Extent, Content)> {
        (self.tail..)
            .zip(&self.records)
            .filter(|(seq, record)| *seq >= from && record.state == State::Published)
            .map(|(seq, record)| (seq, record.extent, record.content.clone()))
            .collect()
    }

    fn first_reported(&self) -> u64 {
        if self.bug == Some(Bug::DirtyUnderReported) {
            self.destaging
        } else {
            self.tail
        }
    }

    /// End of the batch that is on its way.
    pub(super) fn destaging(&self) -> u64 {
        self.destaging
    }

    fn place(&self, seq: u64) -> usize {
        usize::try_from(seq - self.tail).expect("a record in the log")
    }
}

fn blocks(extent: Extent, block: u64) -> std::ops::Range<u64> {
    extent.offset() / block..extent.end().div_ceil(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Log {
        Log::new(3, 512, 0, None)
    }

    fn put(log: &mut Log, block: u64, byte: u8) -> u64 {
        let content = Content::Data(Bytes::from(vec![byte; 512]));
        let extent = Extent::new(block * 512, 512);
        let seq = log
            .reserve(extent, content, Instant::default())
            .expect("a free slot");
        log.written(seq, 0);
        log.publish(seq);
        seq
    }

    fn byte_of(log: &Log, block: u64) -> Option<u8> {
        let found = log.read(Extent::new(block * 512, 512));
        found.first().map(|(_, data)| data[0])
    }

    #[test]
    fn full_log_reserves_again_only_after_advance() {
        let mut log = log();
        for block in 0..3 {
            put(&mut log, block, 1);
        }
        let extent = Extent::new(0, 512);
        assert_eq!(
            log.reserve(extent, Content::Zeroes, Instant::default()),
            None
        );
        log.advance(1);
        assert_eq!(
            log.reserve(extent, Content::Zeroes, Instant::default()),
            Some(3)
        );
    }

    #[test]
    fn batch_stops_at_a_pending_record_and_writes_its_own_version() {
        let mut log = log();
        put(&mut log, 0, 1);
        let pending = log
            .reserve(Extent::new(512, 512), Content::Zeroes, Instant::default())
            .expect("a free slot");
        put(&mut log, 0, 2);
        let batch = log.batch(9).expect("one record");
        assert_eq!(batch.end, pending);
        assert_eq!(
            batch.pieces,
            [(
                Extent::new(0, 512),
                Content::Data(Bytes::from(vec![1; 512]))
            )]
        );
        log.advance(batch.end);
        assert_eq!(byte_of(&log, 0), Some(2), "the newer content stays");
    }

    #[test]
    fn record_that_is_written_again_is_not_passed() {
        let mut log = log();
        let seq = put(&mut log, 0, 1);
        assert_eq!(log.rewrite_untrusted(1), [seq]);
        assert!(log.batch(9).is_none());
        log.written(seq, 1);
        assert!(log.batch(9).is_some());
        assert_eq!(log.rewrite_untrusted(1), []);
    }

    #[test]
    fn held_log_gives_no_batch_past_the_point() {
        let mut log = log();
        put(&mut log, 0, 1);
        log.hold(Some(log.head()));
        put(&mut log, 1, 2);
        assert_eq!(log.batch(9).map(|batch| batch.end), Some(1));
        log.advance(1);
        assert!(!log.has_batch() && log.batch(9).is_none());
    }
}
