//! What the log tells of itself: what is in it from some seq on, in which order, since when.

use std::collections::VecDeque;

use vaio_core::Instant;

use super::{Log, Record};
use crate::{
    geometry::Span,
    record::{Entry, Kind},
};

impl Log {
    /// What is in the log and not on the backing, acknowledged or on its way; in no order, and
    /// some of it more than once.
    pub(crate) fn dirty_spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.map.spans().chain(self.spans_from(self.published))
    }

    /// What is in the log and not durable there, as [`dirty_spans`](Self::dirty_spans).
    pub(crate) fn volatile_spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.spans_from(self.durable)
    }

    /// What is in memory from `seq` on, and what waits.
    fn spans_from(&self, seq: u64) -> impl Iterator<Item = Span> + '_ {
        let from = self.recent.partition_point(|one| one.header.end() <= seq);
        let records = self.recent.range(from..);
        let entries = records.flat_map(|record| &record.header.entries);
        let waiting = self.waiting.iter().map(|waiting| &waiting.entry);
        entries
            .chain(waiting)
            .filter(|entry: &&Entry| entry.kind != Kind::Void)
            .map(|entry| entry.span)
    }

    /// Bytes of [`dirty_spans`](Self::dirty_spans), without walking what is in the map.
    pub(crate) fn dirty_blocks_bytes(&self) -> u64 {
        let new: u64 = self.spans_from(self.published).map(|span| span.count).sum();
        self.geometry.bytes(self.map.blocks() + new)
    }

    /// Bytes of [`volatile_spans`](Self::volatile_spans).
    pub(crate) fn volatile_bytes(&self) -> u64 {
        let blocks = self.volatile_spans().map(|span| span.count);
        self.geometry.bytes(blocks.sum())
    }

    /// Bytes that are not destaged; blocks that were written twice count twice.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes
    }

    /// Bytes of the records from a seq on that begin before another; of segments that are only on
    /// the device as a whole.
    pub(crate) fn bytes_between(&self, from: u64, seq: u64) -> u64 {
        let records = self.front.iter().chain(&self.recent);
        let records = records
            .filter(|one| one.header.end() > from && one.header.seq < seq)
            .map(|one| super::bytes_of(&one.header, &self.geometry));
        let folded = self.folded.iter();
        let folded = folded
            .filter(|one| one.end_seq() > from && one.first_seq() < seq)
            .map(|one| one.bytes);
        records.chain(folded).sum()
    }

    /// Segments that hold something, and all there are.
    pub(crate) fn segments_used(&self) -> (u32, u32) {
        self.segments.used()
    }

    /// Since when the oldest record from `seq` on waits.
    pub(crate) fn oldest_from(&self, seq: u64) -> Option<Instant> {
        let at = |records: &VecDeque<Record>| {
            let from = records.partition_point(|one| one.header.end() <= seq);
            records.get(from).map(|record| record.since)
        };
        let folded = || {
            let mut folded = self.folded.iter();
            folded.find(|one| one.end_seq() > seq).map(|one| one.since)
        };
        at(&self.front).or_else(folded).or_else(|| at(&self.recent))
    }
}
