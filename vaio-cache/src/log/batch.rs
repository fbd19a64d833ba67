//! What is destaged next.
//!
//! * B1: a batch is written as the last version *within the batch*, read from the log. A version
//!   that a later cut supersedes is written all the same: the later one may not be durable, and the
//!   backing would show the later cut's other blocks without it.
//! * B2: ordered, a batch is one cut, closed before it begins. It is whole: every record of it is
//!   published.

use super::{Folded, Log, pieces_of};
use crate::map::{Found, Map};

/// How cuts are destaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Destage {
    /// Cut by cut: the backing alone is always a legal crash image.
    #[default]
    Ordered,
    /// Several cuts at once.
    Relaxed,
}

/// A run of records to bring to the backing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) from: u64,
    /// The first seq after the batch.
    pub(crate) end: u64,
    /// Disjoint, in the order of blocks; each with a piece.
    pub(crate) moves: Vec<Found>,
}

impl Log {
    /// The end of the next batch, if there is one now.
    pub(crate) fn batch_end(&mut self, how: Destage) -> Option<u64> {
        let end = self.next_end(how)?;
        // P2: also before it is made durable.
        self.unfolded_to = self.unfolded_to.max(end);
        Some(end)
    }

    fn next_end(&mut self, how: Destage) -> Option<u64> {
        let first = self.ready().next()?.header.cut;
        let limit = self.held.unwrap_or(u64::MAX);
        if first == self.order.cut() {
            // Also where a record of it is in flight still: else a busy guest keeps it open.
            self.order.close();
        }
        let mut end = self.destaged;
        let mut bytes = 0;
        for record in self.ready() {
            let header = &record.header;
            if header.end() > limit || (how == Destage::Ordered && header.cut != first) {
                break;
            }
            if header.end() > self.published && self.is_stuck() {
                // It never will be, and was never answered: the cut is whole without it.
                break;
            }
            if header.end() > self.published {
                // B2: a cut waits for its last record.
                return (how == Destage::Relaxed && end > self.destaged).then_some(end);
            }
            end = header.end();
            bytes += super::bytes_of(header, &self.geometry);
            if how == Destage::Relaxed && bytes >= self.limits.cut_bytes_max {
                break;
            }
        }
        (end > self.destaged).then_some(end)
    }

    /// Whether what is not published never will be: the cache device failed, and nothing is on its
    /// way. Records are published in order.
    fn is_stuck(&self) -> bool {
        self.is_failed && self.in_flight == 0
    }

    /// `seq`, or what can be destaged of it, where the cache device failed.
    pub(crate) fn destageable(&self, seq: u64) -> u64 {
        if self.is_stuck() {
            seq.min(self.published)
        } else {
            seq
        }
    }

    /// Whether there is something to destage now.
    pub(crate) fn has_batch(&self) -> bool {
        // What is folded is published. A hold ends a record, so a first seq says enough.
        let folded = self.folded.front().map(Folded::first_seq);
        let ready = self.ready().next();
        let ready = ready.filter(|one| one.header.end() <= self.published);
        let first = ready.map(|one| one.header.seq).or(folded);
        first.is_some_and(|first| self.held.is_none_or(|held| first < held))
    }

    /// The batch that ends at `end` (B1).
    pub(crate) fn batch(&self, end: u64) -> Batch {
        let mut map = Map::new(self.geometry);
        let mut reached = self.destaged;
        let records = self.ready();
        for record in records.take_while(|record| record.header.end() <= end) {
            reached = record.header.end();
            for piece in pieces_of(&record.header, record.at, &self.geometry) {
                map.put(piece);
            }
        }
        assert_eq!(reached, end, "P2: nothing of a batch is folded");
        Batch {
            from: self.destaged,
            end,
            moves: map.all(),
        }
    }

    /// Holds the backing where it is when everything composed by now is on it. `None`: it is held
    /// already.
    pub(crate) fn hold(&mut self) -> Option<u64> {
        if self.held.is_some() {
            return None;
        }
        self.order.close();
        self.held = Some(self.composed);
        self.held
    }

    pub(crate) fn let_go(&mut self) {
        self.held = None;
    }

    pub(crate) fn held(&self) -> Option<u64> {
        self.held
    }

    /// Gives up what was never published: the cache device failed, and the writes go another way.
    /// Their seqs are used up.
    pub(crate) fn drop_unpublished(&mut self) {
        assert!(self.is_failed, "only what failed is given up");
        assert_eq!(self.in_flight, 0, "every write has ended");
        while self
            .recent
            .back()
            .is_some_and(|record| record.header.seq >= self.published)
        {
            let Some(record) = self.recent.pop_back() else {
                break;
            };
            self.dirty_bytes -= super::bytes_of(&record.header, &self.geometry);
            if let Some(bytes) = self.unflushed.remove(&record.at) {
                self.unflushed_bytes -= bytes.len() as u64;
            }
        }
        self.waiting.clear();
    }
}
