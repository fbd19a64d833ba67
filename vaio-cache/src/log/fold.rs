//! Folding: what is durable in a sealed segment is forgotten but for where it is, and read back
//! from the segment's footer or headers when it is destaged.
//!
//! In memory a record takes more than its entries are worth: random writes of 4 KiB would need
//! several times the map. The map alone says what is dirty; the records are only needed for the
//! order of destaging.
//!
//! * P1: `front`, `folded` and `recent` tile what is from `destaged` to `composed`.
//! * P2: only what is durable, in a segment that takes no more records, and in no batch, is folded.
//! * P3: what comes back must be the records that were folded, all of them, or it is damage.

use vaio_core::Instant;

use super::{Log, Record, bytes_of, pieces_of};
use crate::{
    geometry::At,
    log::Destage,
    map::Found,
    record::{Entry, Header, Kind},
    segments::Live,
    superblock::Epoch,
};

/// The records of one segment that are only on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Folded {
    pub(super) live: Live,
    pub(super) nonce: u64,
    /// Of the first record that is folded.
    pub(super) first_seq: u64,
    pub(super) end_seq: u64,
    pub(super) first_cut: u64,
    /// What its records change.
    pub(super) bytes: u64,
    pub(super) since: Instant,
}

impl Folded {
    pub(crate) fn live(&self) -> Live {
        self.live
    }

    pub(super) fn first_seq(&self) -> u64 {
        self.first_seq
    }

    pub(crate) fn end_seq(&self) -> u64 {
        self.end_seq
    }

    /// The segment's epoch, as a scan of this segment alone wants it.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch {
            epoch: self.live.epoch,
            nonce: self.nonce,
            segment: self.live.segment,
            first_seq: self.live.first_seq,
            end_seq: self.end_seq,
        }
    }

    /// The folded ones of the segment's headers; `None`: they are not all there (P3).
    pub(crate) fn own(&self, headers: Vec<(Header, At)>) -> Option<Vec<(Header, At)>> {
        let mut wanted = self.first_seq;
        let mut own = Vec::new();
        for (header, at) in headers {
            if header.seq < self.first_seq {
                continue;
            }
            if header.seq != wanted {
                return None;
            }
            wanted = header.end();
            own.push((header, at));
        }
        (wanted == self.end_seq).then_some(own)
    }
}

/// What is in the log at some seq and behind it.
#[derive(Debug)]
pub(crate) enum Part {
    Records(Vec<(Header, At)>),
    Folded(Folded),
    End,
}

impl Log {
    /// Folds what can be (P2).
    pub(super) fn fold(&mut self) {
        while !self.is_failed {
            let begin = self
                .recent
                .partition_point(|one| one.header.seq < self.unfolded_to);
            let Some(first) = self.recent.get(begin) else {
                return;
            };
            let Some((live, end_seq)) = self.segments.holding(first.header.seq) else {
                return;
            };
            if end_seq > self.durable {
                return;
            }
            let count = self
                .recent
                .partition_point(|one| one.header.seq < end_seq)
                .saturating_sub(begin);
            let epochs = self.epochs.iter();
            let Some(epoch) = epochs.rev().find(|one| one.epoch == live.epoch) else {
                return;
            };
            let folded = Folded {
                live,
                nonce: epoch.nonce,
                first_seq: first.header.seq,
                end_seq: self.recent[begin + count - 1].header.end(),
                first_cut: first.header.cut,
                bytes: self
                    .recent
                    .range(begin..begin + count)
                    .map(|one| bytes_of(&one.header, &self.geometry))
                    .sum(),
                since: first.since,
            };
            assert!(begin == 0 || self.folded.is_empty(), "P1");
            self.front.extend(self.recent.drain(..begin));
            let gone = self.recent.drain(..count);
            assert!(gone.into_iter().all(|one| one.writers == 0), "L4");
            self.folded.push_back(folded);
        }
    }

    /// What has to be read back before the next batch is known.
    pub(crate) fn to_unfold(&self, how: Destage) -> Option<Folded> {
        let next = self.folded.front()?;
        if self.held.is_some_and(|held| next.first_seq >= held) {
            return None;
        }
        let Some(first) = self.front.front() else {
            return Some(*next);
        };
        let is_enough = match how {
            Destage::Ordered => next.first_cut != first.header.cut,
            Destage::Relaxed => {
                let bytes = self
                    .front
                    .iter()
                    .map(|one| bytes_of(&one.header, &self.geometry));
                bytes.sum::<u64>() >= self.limits.cut_bytes_max
            }
        };
        (!is_enough).then_some(*next)
    }

    /// Takes back what was folded, as [`Folded::own`] gave it.
    pub(crate) fn unfold(&mut self, folded: &Folded, own: Vec<(Header, At)>) {
        assert_eq!(self.folded.front(), Some(folded), "one at a time, in order");
        self.folded.pop_front();
        self.front
            .extend(own.into_iter().map(|(header, at)| Record {
                header,
                at,
                bytes: bytes::Bytes::new(),
                written: Some(self.trust),
                writers: 0,
                since: folded.since,
            }));
        self.unfolded_to = self.unfolded_to.max(folded.end_seq);
    }

    /// What can be destaged without reading anything back, in order.
    pub(super) fn ready(&self) -> impl Iterator<Item = &Record> {
        let recent = if self.folded.is_empty() {
            self.recent.len()
        } else {
            0
        };
        self.front.iter().chain(self.recent.range(..recent))
    }

    /// What is at `seq`, or the first behind it: at most `bytes_max` of records, but one.
    pub(crate) fn part_from(&self, seq: u64, bytes_max: u64) -> Part {
        let ends_before = |end: u64| end <= seq;
        let in_front = self.front.back().is_some_and(|one| one.header.end() > seq);
        if !in_front && let Some(one) = self.folded.iter().find(|one| !ends_before(one.end_seq)) {
            return Part::Folded(*one);
        }
        let records = if in_front { &self.front } else { &self.recent };
        let from = records.partition_point(|one| ends_before(one.header.end()));
        let mut bytes = 0;
        let part = records
            .range(from..)
            .take_while(|one| one.header.seq < self.published)
            .take_while(|one| {
                let before = bytes;
                bytes += bytes_of(&one.header, &self.geometry);
                before == 0 || bytes <= bytes_max
            });
        let part: Vec<_> = part.map(|one| (one.header.clone(), one.at)).collect();
        if part.is_empty() {
            Part::End
        } else {
            Part::Records(part)
        }
    }
}

/// The entries of a record, each with its seq and with what holds it, whatever has come since.
pub(crate) fn entries_of(
    header: &Header,
    at: At,
    geometry: &crate::geometry::Geometry,
) -> Vec<(u64, Entry, Vec<Found>)> {
    let mut pieces = pieces_of(header, at, geometry);
    let entries = (header.seq..).zip(&header.entries);
    entries
        .filter(|(_, entry)| entry.kind != Kind::Void)
        .map(|(seq, entry)| {
            let count = crate::geometry::index(geometry.piece_count(entry.span));
            let found = pieces.by_ref().take(count).map(|piece| Found {
                span: piece.span,
                piece: Some(piece),
            });
            (seq, *entry, found.collect())
        })
        .collect()
}
