//! The state of the log: what waits, what is written, published, durable, destaged. Pure: the
//! async files ask it what to do next and tell it what has ended.
//!
//! ```text
//!   destaged        durable        published      composed       next
//!      |               |               |              |            |
//!  ----+---------------+---------------+--------------+------------+
//!  gone|    records, in the log        |  in flight   |  waiting   |
//! ```
//! * L1: these five never pass each other, and the records tile what is from `destaged` to
//!   `composed` (`fold`). Only a cache device that failed lets `destaged` pass `durable`.
//! * L2: records are published in their order, each when its write and all before it have ended.
//!   A write is answered when it is published. So two overlapping writes end the same way in the
//!   map, on the backing and after a crash.
//! * L3: content that is not durable is kept in memory, and after a failed flush written again in
//!   place, the same bytes, before a flush counts: a torn rewrite changes nothing, and recovery,
//!   which walks the log, finds no hole.
//! * L4: a record that is being written again is not forgotten: the write would land in a segment
//!   that is another's by then.
//! * L5: what is only in the log is not given up before the superblock says, durably, that the
//!   backing has it.

mod batch;
mod compose;
mod doubt;
mod fold;
mod recovered;
mod report;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use vaio_core::Instant;

use crate::{
    geometry::{At, Geometry, Span},
    map::{Found, Map, Piece, Source},
    order::Order,
    record::{Entry, Header, Kind},
    segments::{Live, Segments},
    superblock::{Epoch, OPEN},
};
pub(crate) use batch::{Batch, Destage};
pub(crate) use compose::{Step, WriteRecord, ZEROES_BLOCKS_MAX, entry_blocks_max};
pub(crate) use fold::{Folded, Part, entries_of};
pub(crate) use recovered::Recovered;

/// What bounds the log in memory.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "the settings' names")]
pub(crate) struct Limits {
    /// Bytes of records that are not durable yet (L3).
    pub(crate) unflushed_bytes_max: u64,
    /// Bytes of one cut.
    pub(crate) cut_bytes_max: u64,
    /// Bytes that records change and the backing lacks. Data is limited by the segments already;
    /// zeroes take next to no room there, and as much of the map as data.
    pub(crate) dirty_bytes_max: u64,
}

/// A write that has a seq and no record yet.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) entry: Entry,
    /// Empty but for data.
    pub(crate) data: Bytes,
    /// Sum of each piece of `data`.
    pub(crate) sums: Vec<u32>,
}

/// A record of the log, in memory.
#[derive(Debug)]
struct Record {
    header: Header,
    at: At,
    /// The whole of it, until it is durable (L3).
    bytes: Bytes,
    /// Trust in the device when it was written last; `None`: it never was.
    written: Option<u64>,
    /// Writes of it in flight.
    writers: u32,
    since: Instant,
}

#[derive(Debug)]
pub(crate) struct Log {
    geometry: Geometry,
    limits: Limits,
    /// Whose records are in the log; the last is written.
    epochs: Vec<Epoch>,
    next: u64,
    composed: u64,
    published: u64,
    durable: u64,
    destaged: u64,
    waiting: VecDeque<Waiting>,
    /// Read back to be destaged (P1).
    front: VecDeque<Record>,
    /// Only on the device (P1).
    folded: VecDeque<Folded>,
    /// Everything else (P1).
    recent: VecDeque<Record>,
    /// What is before this is in a batch, or was: it is not folded (P2).
    unfolded_to: u64,
    in_flight: usize,
    /// Writes in the record that was composed last.
    last_entries: usize,
    /// Failed flushes so far: what was written before one of them is not to be relied on.
    trust: u64,
    order: Order,
    segments: Segments,
    map: Map,
    /// Records that are not durable, by place.
    unflushed: BTreeMap<At, Bytes>,
    unflushed_bytes: u64,
    dirty_bytes: u64,
    /// Contents of the headers of the segment that is written.
    contents: Vec<Vec<u8>>,
    contents_bytes: usize,
    prev_crc: u32,
    /// The backing is held when everything before is on it.
    held: Option<u64>,
    /// Where the durable superblock says that the log begins.
    tail_seq: u64,
    is_failed: bool,
}

/// A log as an open found or made it.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) geometry: Geometry,
    pub(crate) limits: Limits,
    /// The last is the new one.
    pub(crate) epochs: Vec<Epoch>,
    /// Segments of the epochs before.
    pub(crate) segments: Vec<Live>,
    /// Their content, as far as the backing lacks it.
    pub(crate) recovered: Recovered,
}

impl Log {
    /// A log in which everything that was found is published and durable.
    pub(crate) fn new(start: Start) -> Self {
        let geometry = start.geometry;
        let current = start.epochs.last().expect("the new epoch is listed");
        assert_eq!(current.end_seq, OPEN, "the new epoch has no end yet");
        let first = start
            .segments
            .first()
            .map_or(current.segment, |live| live.segment);
        let mut segments = Segments::new(geometry, first);
        for live in &start.segments {
            segments.adopt(*live);
        }
        assert_eq!(segments.next_segment(), current.segment, "the ring goes on");
        let seq = current.first_seq;
        let found = start.recovered;
        let mut log = Self {
            geometry,
            limits: start.limits,
            next: seq,
            composed: seq,
            // A gap in the seqs, where an open began above what it found, is no record.
            published: seq,
            durable: seq,
            destaged: found.destaged_seq,
            waiting: VecDeque::new(),
            front: VecDeque::new(),
            folded: found.folded,
            recent: VecDeque::new(),
            unfolded_to: found.destaged_seq,
            in_flight: 0,
            last_entries: 0,
            trust: 0,
            order: Order::new(found.next_cut, start.limits.cut_bytes_max),
            segments,
            map: found.map,
            unflushed: BTreeMap::new(),
            unflushed_bytes: 0,
            dirty_bytes: found.bytes,
            contents: Vec::new(),
            contents_bytes: 0,
            prev_crc: 0,
            held: None,
            tail_seq: start.epochs[0].first_seq,
            is_failed: false,
            epochs: start.epochs,
        };
        log.skip_gap();
        log
    }

    pub(crate) fn published(&self) -> u64 {
        self.published
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    pub(crate) fn destaged(&self) -> u64 {
        self.destaged
    }

    pub(crate) fn composed(&self) -> u64 {
        self.composed
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ready().next().is_none() && self.folded.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.is_failed
    }

    /// Seq that ends the oldest segment's need: when it is destaged, there is room again.
    pub(crate) fn oldest_segment_end(&self) -> u64 {
        let ends = self.segments.live().iter().map(|live| live.first_seq);
        ends.skip(1)
            .find(|end| *end > self.destaged)
            .unwrap_or(self.composed)
    }

    /// The epochs as a superblock has them when everything before `destaged` is on the backing.
    pub(crate) fn epochs(&self, destaged: u64) -> Vec<Epoch> {
        let needed: Vec<Live> = self.segments.needed(destaged).collect();
        let mut epochs: Vec<_> = self
            .epochs
            .iter()
            .filter(|one| one.end_seq > destaged)
            .copied()
            .collect();
        for one in &mut epochs {
            if let Some(live) = needed.iter().find(|live| live.epoch == one.epoch) {
                one.segment = live.segment;
                one.first_seq = live.first_seq;
            } else {
                one.segment = self.segments.next_segment();
                one.first_seq = self.composed;
            }
        }
        epochs
    }

    /// Number of the epoch that is written.
    pub(crate) fn epoch(&self) -> u64 {
        self.current().epoch
    }

    /// The cache device is not to be relied on any more: nothing more is logged.
    pub(crate) fn fail(&mut self) {
        self.is_failed = true;
    }

    /// Every seq that was given out is before this.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    fn current(&self) -> &Epoch {
        self.epochs.last().expect("there is always the open epoch")
    }

    fn record_mut(&mut self, seq: u64) -> &mut Record {
        let place = self
            .recent
            .binary_search_by_key(&seq, |record| record.header.seq)
            .expect("a record that is written is not durable: it is not folded");
        &mut self.recent[place]
    }

    /// A write of the record, handed out at `trust`, ended well.
    pub(crate) fn written(&mut self, seq: u64, trust: u64) {
        let record = self.record_mut(seq);
        assert!(record.writers > 0, "a write that ended was counted");
        record.writers -= 1;
        let is_first = record.written.is_none();
        record.written = Some(trust);
        if is_first {
            self.in_flight -= 1;
            self.publish();
        }
    }

    /// A write of the record failed for good: nothing more is logged, and what is not published
    /// never will be.
    pub(crate) fn not_written(&mut self, seq: u64) {
        let record = self.record_mut(seq);
        assert!(record.writers > 0, "a write that failed was counted");
        record.writers -= 1;
        if record.written.is_none() {
            self.in_flight -= 1;
        }
        self.is_failed = true;
    }

    /// Publishes what is written, up to the first that is not (L2).
    fn publish(&mut self) {
        let from = self
            .recent
            .partition_point(|record| record.header.seq < self.published);
        for record in self.recent.range(from..) {
            if record.written.is_none() {
                return;
            }
            debug_assert!(record.header.seq >= self.published, "L2");
            for piece in pieces_of(&record.header, record.at, &self.geometry) {
                self.map.put(piece);
            }
            self.published = record.header.end();
        }
    }

    /// A superblock with these epochs is durable. Segments go by what it says, not by what has
    /// become of the log since it was made (L5).
    pub(crate) fn persisted(&mut self, epochs: &[Epoch]) {
        self.tail_seq = epochs.first().map_or(self.tail_seq, |one| one.first_seq);
    }

    /// The superblock says so, durably: everything before `seq` is gone (L5).
    pub(crate) fn set_destaged(&mut self, seq: u64) {
        assert!(seq >= self.destaged && seq <= self.composed, "L1");
        self.destaged = seq;
        while let Some(record) = self.take_destaged(seq) {
            assert_eq!(record.writers, 0, "L4");
            self.forget(&record);
        }
        let rest = self.folded.front().is_none_or(|one| one.first_seq() >= seq);
        assert!(rest, "what is destaged was read back");
        self.segments.retire(self.tail_seq);
        let epochs = self.epochs(seq);
        self.epochs = epochs;
        self.published = self.published.max(seq);
        self.durable = self.durable.max(seq);
        self.skip_gap();
    }

    /// Seqs that no record has, because what had them was given up, need no destaging.
    fn skip_gap(&mut self) {
        if self.ready().next().is_none() && self.folded.is_empty() {
            self.destaged = self.destaged.max(self.published);
        }
    }

    /// The oldest record, if it ends before `seq`.
    fn take_destaged(&mut self, seq: u64) -> Option<Record> {
        let record = self.ready().next()?;
        if record.header.end() > seq {
            return None;
        }
        self.front.pop_front().or_else(|| self.recent.pop_front())
    }

    /// Takes a record out of the map and the counts: it is on the backing.
    fn forget(&mut self, record: &Record) {
        for piece in pieces_of(&record.header, record.at, &self.geometry) {
            let (Source::Data { at, .. } | Source::Zeroes { record: at }) = piece.source;
            self.map.forget(piece.span, at);
        }
        if let Some(bytes) = self.unflushed.remove(&record.at) {
            self.unflushed_bytes -= bytes.len() as u64;
        }
        self.dirty_bytes -= bytes_of(&record.header, &self.geometry);
    }

    /// Whether no record before `seq` is being written again (L4).
    pub(crate) fn is_still(&self, seq: u64) -> bool {
        let mut records = self.ready().take_while(|one| one.header.seq < seq);
        records.all(|record| record.writers == 0)
    }

    /// What holds each block, from the guest's view.
    pub(crate) fn find(&self, span: Span) -> Vec<Found> {
        self.map.find(span)
    }

    /// A place's content, if it is in memory because it is not durable (L3).
    pub(crate) fn in_memory(&self, at: At, blocks: u64) -> Option<Bytes> {
        let (start, bytes) = self.unflushed.range(..=at).next_back()?;
        let from = crate::geometry::index(self.geometry.bytes(u64::from(at.0 - start.0)));
        let to = from + crate::geometry::index(self.geometry.bytes(blocks));
        (to <= bytes.len()).then(|| bytes.slice(from..to))
    }

    /// Keeps the segment of a place until [`unpin`](Self::unpin).
    pub(crate) fn pin(&mut self, at: At) -> u32 {
        let segment = self.geometry.segment_of(at);
        self.pin_segment(segment);
        segment
    }

    /// The same for a segment.
    pub(crate) fn pin_segment(&mut self, segment: u32) {
        self.segments.pin(segment);
    }

    pub(crate) fn unpin(&mut self, segment: u32) {
        self.segments.unpin(segment);
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }
}

/// Bytes that a record changes.
pub(crate) fn bytes_of(header: &Header, geometry: &Geometry) -> u64 {
    let spans = header.entries.iter().map(|entry| entry.span.count);
    geometry.bytes(spans.sum())
}

/// What a record puts into the map, in order.
pub(crate) fn pieces_of(
    header: &Header,
    record: At,
    geometry: &Geometry,
) -> impl Iterator<Item = Piece> {
    let geometry = *geometry;
    let mut at = record.plus(geometry.header.into());
    let mut sums = header.sums.iter();
    header.entries.iter().flat_map(move |entry| {
        let mut pieces = Vec::new();
        for span in geometry.pieces(entry.span) {
            let source = match entry.kind {
                Kind::Void => break,
                Kind::Zeroes | Kind::Discard => Source::Zeroes { record },
                Kind::Data => {
                    let crc = *sums.next().expect("a whole header has every sum");
                    let place = at;
                    at = at.plus(span.count);
                    Source::Data { at: place, crc }
                }
            };
            pieces.push(Piece { span, source });
        }
        pieces
    })
}

#[cfg(test)]
mod tests;
