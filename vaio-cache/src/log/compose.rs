//! Composing: from writes that wait to a record that is to be written.

use bytes::Bytes;
use vaio_core::Instant;

use super::{Log, Record, Waiting};
use crate::{
    checksum::Seed,
    footer,
    geometry::{At, Geometry},
    record::{self, ENTRY_BYTES, Entry, FIXED_BYTES, Header, Kind, SUM_BYTES},
    superblock::OPEN,
};

/// Records that are written at the same time. More would make the batches smaller.
const RECORDS_IN_FLIGHT_MAX: usize = 4;
/// While a record is in flight, the next one waits for as many writes, or as many bytes: many
/// small records cost a header each.
const GATHER_ENTRIES: usize = 16;
const GATHER_BYTES: u64 = 64 << 10;
/// Writes in one record.
const ENTRIES_MAX: usize = 128;
/// A segment is nearly full when less than one of so many parts is left.
const NEARLY_FULL: u32 = 16;
/// Blocks of zeroes or discard in one entry.
pub(crate) const ZEROES_BLOCKS_MAX: u64 = 1 << 14;

/// What a write is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is in the log: answer.
    Published,
    /// Write this record, then ask again. It may be others' writes.
    Write(WriteRecord),
    /// Something is on its way: ask again when the log has moved on.
    Wait,
    /// No segment is free, or the map is large enough: have this seq destaged, then ask again.
    Full(u64),
    /// Too much is kept in memory: have this made durable, then ask again.
    Unflushed(u64),
    /// The cache device failed: it will never be in the log.
    Failed,
}

/// Bytes to write to the cache device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WriteRecord {
    pub(crate) seq: u64,
    pub(crate) at: At,
    pub(crate) bytes: Bytes,
    /// Flushes that had failed when this write was handed out: one that fails later may lose it,
    /// even where its end is seen after that.
    pub(crate) trust: u64,
    /// Of the segment that this record is the first behind.
    pub(crate) footer: Option<(At, Bytes)>,
}

impl Log {
    /// Queues a write; gives the seq after it. It is at most [`entry_blocks_max`] blocks.
    pub(crate) fn enqueue(&mut self, waiting: Waiting) -> u64 {
        assert!(waiting.entry.payload() <= entry_blocks_max(&self.geometry));
        self.waiting.push_back(waiting);
        self.next += 1;
        self.next
    }

    /// Gives up the writes from `seq` to before `end` as far as they still wait. Their seqs are
    /// used up. Whether all of them waited.
    pub(crate) fn cancel(&mut self, seq: u64, end: u64) -> bool {
        for seq in seq.max(self.composed)..end {
            let place = crate::geometry::index(seq - self.composed);
            let waiting = &mut self.waiting[place];
            waiting.entry.kind = Kind::Void;
            waiting.entry.span.count = 0;
            waiting.data = Bytes::new();
            waiting.sums = Vec::new();
        }
        seq >= self.composed
    }

    /// What the write that ends before `end` has to do next.
    pub(crate) fn step(&mut self, end: u64, now: Instant) -> Step {
        if self.published >= end {
            return Step::Published;
        }
        if self.is_failed {
            return Step::Failed;
        }
        let is_busy = match self.in_flight {
            0 => false,
            RECORDS_IN_FLIGHT_MAX.. => true,
            _ => !self.is_gathered(),
        };
        if self.composed >= end || is_busy {
            return Step::Wait;
        }
        if self.unflushed_bytes >= self.limits.unflushed_bytes_max {
            // What is in flight is not yet there to be flushed.
            return if self.published > self.durable {
                Step::Unflushed(self.published)
            } else {
                Step::Wait
            };
        }
        if self.dirty_bytes >= self.limits.dirty_bytes_max {
            // The next batch, whatever is in it.
            return Step::Full(self.destaged + 1);
        }
        let mut footer = None;
        let fitting = self.fitting();
        let is_split = fitting < self.waiting.len() && self.is_nearly_full();
        if fitting == 0 || is_split && self.segments.has_free() {
            if !self.segments.has_free() {
                return Step::Full(self.oldest_segment_end());
            }
            footer = self.seal();
            let epoch = self.current().epoch;
            self.segments.begin(epoch, self.composed);
        }
        Step::Write(self.compose(footer, now))
    }

    /// Whether what waits is worth a record of its own while others are in flight.
    fn is_gathered(&self) -> bool {
        let mut blocks = 0;
        self.waiting.len() >= GATHER_ENTRIES
            || self.waiting.iter().any(|one| {
                blocks += one.entry.payload();
                self.geometry.bytes(blocks) >= GATHER_BYTES
            })
    }

    /// Whether a write does well to let others come before it composes: the last time there were
    /// others.
    pub(crate) fn has_company(&self) -> bool {
        self.had_company() && self.in_flight == 0
    }

    /// Whether the record before was of several writes.
    pub(crate) fn had_company(&self) -> bool {
        self.last_entries > 1
    }

    /// How many of the writes that wait fit into a record in the segment that is written.
    fn fitting(&self) -> usize {
        let geometry = &self.geometry;
        let room = u64::from(self.segments.room());
        let footer_room = geometry.footer_bytes() - footer::FIXED_BYTES;
        let content_max = geometry
            .header_bytes()
            .min(footer_room.saturating_sub(self.contents_bytes));
        let mut blocks = u64::from(geometry.header);
        let mut content = FIXED_BYTES;
        let mut count = 0;
        for waiting in self.waiting.iter().take(ENTRIES_MAX) {
            blocks += waiting.entry.payload();
            content += ENTRY_BYTES + waiting.sums.len() * SUM_BYTES;
            if blocks > room || content > content_max {
                break;
            }
            count += 1;
        }
        count
    }

    /// Whether so little of the segment is left that writes which come together had better stay
    /// together, in the next.
    fn is_nearly_full(&self) -> bool {
        self.segments.room() < self.geometry.room() / NEARLY_FULL
    }

    fn compose(&mut self, footer: Option<(At, Bytes)>, now: Instant) -> WriteRecord {
        let count = self.fitting();
        assert!(count > 0, "an entry fits an empty segment");
        let batch: Vec<Waiting> = self.waiting.drain(..count).collect();
        let payload: u64 = batch.iter().map(|one| one.entry.payload()).sum();
        let seq = self.composed;
        // Zeroes weigh in a cut, too: it is moved as a whole.
        let changed: u64 = batch.iter().map(|one| one.entry.span.count).sum();
        let changed = self.geometry.bytes(changed);
        let (entries, sums): (Vec<Entry>, Vec<Vec<u32>>) = batch
            .iter()
            .map(|one| (one.entry, one.sums.clone()))
            .unzip();
        let header = Header {
            epoch: self.current().epoch,
            seq,
            durable_seq: self.durable,
            cut: self.order.place(seq, changed, self.durable),
            prev_crc: self.prev_crc,
            entries,
            sums: sums.concat(),
        };
        let nonce = self.current().nonce;
        let parts: Vec<Bytes> = batch.into_iter().map(|one| one.data).collect();
        let (bytes, crc) = record::encode(&header, &parts, nonce, &self.geometry);
        let at = self
            .segments
            .take(u64::from(self.geometry.header) + payload);
        let content = bytes.slice(..header.used_bytes()).to_vec();
        self.contents_bytes += content.len();
        self.contents.push(content);
        self.prev_crc = crc;
        self.composed = header.end();
        self.in_flight += 1;
        self.last_entries = count;
        self.dirty_bytes += super::bytes_of(&header, &self.geometry);
        // L3.
        self.unflushed.insert(at, bytes.clone());
        self.unflushed_bytes += bytes.len() as u64;
        self.recent.push_back(Record {
            header,
            at,
            bytes: bytes.clone(),
            written: None,
            writers: 1,
            since: now,
        });
        WriteRecord {
            seq,
            at,
            bytes,
            trust: self.trust,
            footer,
        }
    }

    /// Ends the segment that is written, and gives its footer.
    fn seal(&mut self) -> Option<(At, Bytes)> {
        self.segments.seal();
        self.contents_bytes = 0;
        let contents = std::mem::take(&mut self.contents);
        if contents.is_empty() {
            return None;
        }
        let live = *self.segments.live().back()?;
        let current = self.current();
        debug_assert_eq!(current.end_seq, OPEN);
        let seed = Seed {
            nonce: current.nonce,
            epoch: current.epoch,
            seq: live.first_seq,
        };
        let at = self.geometry.footer_at(live.segment);
        Some((at, footer::encode(&contents, seed, &self.geometry)))
    }
}

/// Largest write that always fits one record; larger ones are cut.
pub(crate) fn entry_blocks_max(geometry: &Geometry) -> u64 {
    let room = u64::from(geometry.room() - geometry.header);
    let content = geometry
        .header_bytes()
        .min(geometry.footer_bytes() - footer::FIXED_BYTES);
    let sums = (content - FIXED_BYTES - ENTRY_BYTES) / SUM_BYTES;
    // A write that is not aligned has one piece more than its units.
    let units = (sums as u64).saturating_sub(1).max(1);
    room.min(units * u64::from(geometry.unit))
}
