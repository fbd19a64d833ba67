//! What the log tells of itself: what is in it from some seq on, in which order, since when.

use vaio_core::Instant;

use super::{Log, pieces_of};
use crate::{
    geometry::{Span, index},
    map::Found,
    record::{Entry, Kind},
};

impl Log {
    /// Entries of the log from `seq` on that are published, each with its seq.
    pub(crate) fn entries_from(&self, seq: u64) -> impl Iterator<Item = (u64, Entry)> + '_ {
        let from = self.records.partition_point(|one| one.header.end() <= seq);
        self.records
            .range(from..)
            .take_while(|record| record.header.seq < self.published)
            .flat_map(|record| (record.header.seq..).zip(record.header.entries.iter().copied()))
            .filter(move |(at, entry)| *at >= seq && entry.kind != Kind::Void)
    }

    /// What holds the entry of a seq, whatever has come since.
    pub(crate) fn found_of(&self, seq: u64) -> Vec<Found> {
        let from = self.records.partition_point(|one| one.header.end() <= seq);
        let record = &self.records[from];
        let before = &record.header.entries[..index(seq - record.header.seq)];
        let entry = &record.header.entries[before.len()];
        let count = |one: &Entry| match one.kind {
            Kind::Void => 0,
            _ => self.geometry.piece_count(one.span),
        };
        let skipped = before.iter().map(count).sum();
        let pieces = pieces_of(&record.header, record.at, &self.geometry);
        pieces
            .skip(index(skipped))
            .take(index(count(entry)))
            .map(|piece| Found {
                span: piece.span,
                piece: Some(piece),
            })
            .collect()
    }

    /// What is in the log from `seq` on, acknowledged or on its way.
    pub(crate) fn spans_from(&self, seq: u64) -> impl Iterator<Item = Span> + '_ {
        let records = self
            .records
            .iter()
            .filter(move |one| one.header.end() > seq);
        let entries = records.flat_map(|record| &record.header.entries);
        let waiting = self.waiting.iter().map(|waiting| &waiting.entry);
        entries
            .chain(waiting)
            .filter(|entry| entry.kind != Kind::Void)
            .map(|entry| entry.span)
    }

    /// Bytes that are not destaged; blocks that were written twice count twice.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes
    }

    /// Bytes of the records from a seq on that begin before another.
    pub(crate) fn bytes_between(&self, from: u64, seq: u64) -> u64 {
        let from = self.records.partition_point(|one| one.header.end() <= from);
        let records = self.records.range(from..);
        records
            .take_while(|record| record.header.seq < seq)
            .map(|record| super::bytes_of(&record.header, &self.geometry))
            .sum()
    }

    /// Segments that hold something, and all there are.
    pub(crate) fn segments_used(&self) -> (u32, u32) {
        self.segments.used()
    }

    /// Since when the oldest record from `seq` on waits.
    pub(crate) fn oldest_from(&self, seq: u64) -> Option<Instant> {
        let from = self.records.partition_point(|one| one.header.end() <= seq);
        self.records.get(from).map(|record| record.since)
    }
}
