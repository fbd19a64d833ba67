//! What an open found, as the log takes it over. Pure.
//!
//! All of it is durable, and no segment takes more records: nothing but the map is kept of them
//! (P2).

use std::collections::VecDeque;

use vaio_core::Instant;

use super::{Folded, bytes_of, pieces_of};
use crate::{geometry::Geometry, map::Map, scan::Segment};

/// The content of a log, built up segment by segment, in order.
#[derive(Debug)]
pub(crate) struct Recovered {
    geometry: Geometry,
    /// What ends before this seq is on the backing.
    pub(super) destaged_seq: u64,
    pub(super) map: Map,
    pub(super) folded: VecDeque<Folded>,
    pub(super) bytes: u64,
    /// Above the cuts of all records.
    pub(super) next_cut: u64,
}

impl Recovered {
    pub(crate) fn new(geometry: Geometry, destaged_seq: u64) -> Self {
        Self {
            geometry,
            destaged_seq,
            map: Map::new(geometry),
            folded: VecDeque::new(),
            bytes: 0,
            next_cut: 0,
        }
    }

    pub(crate) fn take(&mut self, segment: &Segment, nonce: u64, since: Instant) {
        let is_needed = |end: u64| end > self.destaged_seq;
        let records = segment.records.iter();
        let mut records = records
            .skip_while(|(header, _)| !is_needed(header.end()))
            .peekable();
        let Some((first, _)) = records.peek() else {
            return;
        };
        let mut folded = Folded {
            live: segment.live,
            nonce,
            first_seq: first.seq,
            end_seq: first.seq,
            first_cut: first.cut,
            bytes: 0,
            since,
        };
        for (header, at) in records {
            for piece in pieces_of(header, *at, &self.geometry) {
                self.map.put(piece);
            }
            folded.bytes += bytes_of(header, &self.geometry);
            folded.end_seq = header.end();
            self.next_cut = header.cut + 1;
        }
        self.bytes += folded.bytes;
        self.folded.push_back(folded);
    }
}
