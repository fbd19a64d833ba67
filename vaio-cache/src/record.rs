//! A record of the log: one header and the payload of many writes.
//!
//! ```text
//!  0 magic       8 epoch    16 seq       24 durable_seq   32 cut
//! 40 prev_crc   44 entries  46 sums      48 payload       52 crc    56 zeroes
//! 64 entry x n: block u64, count u32, kind u32      then sum x m: u32
//! ```
//! * R1: a record is valid only if its header verifies (C1), is what the place in the log asks for
//!   (epoch, seq, chain), and, unless it is known to be durable, every payload sum does.
//! * R2: each entry is one seq: entry `i` has `seq + i`. An entry is a write, a part of one, or
//!   void: a write that was given up before it was written.
//! * R3: nothing relies on the device writing more than one bit at a time.

use bytes::{Bytes, BytesMut};

use crate::{
    bytes_at::{Get, Put},
    checksum::{Seed, crc},
    geometry::{Geometry, Span, index},
    map::UNITS_MAX,
};

pub(crate) const MAGIC: &[u8; 8] = b"VAIOREC\x01";
/// Bytes of a header before its first entry.
pub(crate) const FIXED_BYTES: usize = 64;
pub(crate) const ENTRY_BYTES: usize = 16;
pub(crate) const SUM_BYTES: usize = 4;
const CRC_AT: usize = 52;
/// Logical blocks of the largest disk: 8 EiB of the smallest blocks.
const BLOCKS_MAX: u64 = 1 << 54;
/// Blocks of one entry: what a segment can hold, and more than the longest entry of zeroes.
const ENTRY_BLOCKS_MAX: u64 = 1 << 21;
/// No log gets there, nor a cut: a billion writes a second, for a century.
const SEQ_MAX: u64 = 1 << 62;
/// Most entries, and most sums, of one record.
const COUNT_MAX: usize = u16::MAX as usize;

/// What an entry does to its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Data,
    Zeroes,
    Discard,
    /// Nothing: the seq of a write that was given up.
    Void,
}

impl Kind {
    const fn code(self) -> u32 {
        match self {
            Self::Data => 1,
            Self::Zeroes => 2,
            Self::Discard => 3,
            Self::Void => 4,
        }
    }

    const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Data),
            2 => Some(Self::Zeroes),
            3 => Some(Self::Discard),
            4 => Some(Self::Void),
            _ => None,
        }
    }
}

/// One seq of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) span: Span,
    pub(crate) kind: Kind,
}

impl Entry {
    /// Blocks of payload.
    pub(crate) const fn payload(&self) -> u64 {
        match self.kind {
            Kind::Data => self.span.count,
            Kind::Zeroes | Kind::Discard | Kind::Void => 0,
        }
    }

    /// Payload sums.
    pub(crate) fn sums(&self, geometry: &Geometry) -> u64 {
        match self.kind {
            Kind::Data => geometry.piece_count(self.span),
            Kind::Zeroes | Kind::Discard | Kind::Void => 0,
        }
    }
}

/// A record without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) epoch: u64,
    /// Of the first entry.
    pub(crate) seq: u64,
    /// Everything before this seq was durable when the record was composed.
    pub(crate) durable_seq: u64,
    /// Number of the cut that it belongs to; never falls.
    pub(crate) cut: u64,
    /// Sum of the header before it in the log.
    pub(crate) prev_crc: u32,
    pub(crate) entries: Vec<Entry>,
    /// Plain sum of each payload piece, in order.
    pub(crate) sums: Vec<u32>,
}

impl Header {
    /// The first seq after the record.
    pub(crate) fn end(&self) -> u64 {
        self.seq + self.entries.len() as u64
    }

    /// Blocks of payload.
    pub(crate) fn payload(&self) -> u64 {
        self.entries.iter().map(Entry::payload).sum()
    }

    /// Bytes that the header's content takes.
    pub(crate) fn used_bytes(&self) -> usize {
        used_bytes(self.entries.len(), self.sums.len())
    }

    /// The content, and its sum, which the next header has as `prev_crc`.
    pub(crate) fn encode(&self, nonce: u64) -> (Vec<u8>, u32) {
        assert!(!self.entries.is_empty(), "a record has entries");
        assert!(self.entries.len() <= COUNT_MAX && self.sums.len() <= COUNT_MAX);
        let seed = self.seed(nonce);
        let mut bytes = vec![0; self.used_bytes()];
        bytes[..8].copy_from_slice(MAGIC);
        bytes.put_u64(8, self.epoch);
        bytes.put_u64(16, self.seq);
        bytes.put_u64(24, self.durable_seq);
        bytes.put_u64(32, self.cut);
        bytes.put_u32(40, self.prev_crc);
        bytes.put_u16(44, u16::try_from(self.entries.len()).expect("checked"));
        bytes.put_u16(46, u16::try_from(self.sums.len()).expect("checked"));
        let payload = u32::try_from(self.payload()).expect("a record fits a segment");
        bytes.put_u32(48, payload);
        let mut at = FIXED_BYTES;
        for entry in &self.entries {
            bytes.put_u64(at, entry.span.start);
            let count = u32::try_from(entry.span.count).expect("an entry is limited");
            bytes.put_u32(at + 8, count);
            bytes.put_u32(at + 12, entry.kind.code());
            at += ENTRY_BYTES;
        }
        let mask = seed.mask();
        for sum in &self.sums {
            bytes.put_u32(at, sum ^ mask);
            at += SUM_BYTES;
        }
        let crc = seed.crc(&bytes);
        bytes.put_u32(CRC_AT, crc);
        (bytes, crc)
    }

    /// Reads a header from the front of `bytes`; its sum too. `None`: there is no valid one, of
    /// this log and epoch. What follows in `bytes` is not looked at.
    pub(crate) fn decode(
        bytes: &[u8],
        nonce: u64,
        epoch: u64,
        geometry: &Geometry,
    ) -> Option<(Self, u32)> {
        if bytes.get(..8)? != MAGIC || bytes.get_u64(8)? != epoch {
            return None;
        }
        let seed = Seed {
            nonce,
            epoch,
            seq: bytes.get_u64(16)?,
        };
        let entries_len = usize::from(bytes.get_u16(44)?);
        let sums_len = usize::from(bytes.get_u16(46)?);
        let content = bytes.get(..used_bytes(entries_len, sums_len))?;
        let crc = content.get_u32(CRC_AT)?;
        if seed.crc_without(content, CRC_AT) != crc || entries_len == 0 {
            return None;
        }
        let mut entries = Vec::with_capacity(entries_len);
        let mut at = FIXED_BYTES;
        for _ in 0..entries_len {
            let span = Span {
                start: content.get_u64(at)?,
                count: content.get_u32(at + 8)?.into(),
            };
            let kind = Kind::from_code(content.get_u32(at + 12)?)?;
            entries.push(Entry { span, kind });
            at += ENTRY_BYTES;
        }
        let mask = seed.mask();
        let sums = content[at..]
            .chunks_exact(SUM_BYTES)
            .map(|sum| Some(sum.get_u32(0)? ^ mask))
            .collect::<Option<_>>()?;
        let header = Self {
            epoch,
            seq: seed.seq,
            durable_seq: content.get_u64(24)?,
            cut: content.get_u64(32)?,
            prev_crc: content.get_u32(40)?,
            entries,
            sums,
        };
        header.is_whole(geometry).then_some((header, crc))
    }

    /// Whether the numbers agree with each other and are in range. A header that verifies was
    /// written by this code, or by someone who knows the nonce: an image from elsewhere.
    fn is_whole(&self, geometry: &Geometry) -> bool {
        let blocks_max = UNITS_MAX
            .saturating_mul(geometry.unit.into())
            .min(BLOCKS_MAX);
        let in_range = |span: Span| span.start <= blocks_max && span.end() <= blocks_max;
        let is_short = |one: &Entry| one.span.count <= ENTRY_BLOCKS_MAX || one.kind == Kind::Void;
        let entries = &mut self.entries.iter();
        if self.seq.max(self.cut) > SEQ_MAX
            || !entries.all(|one| in_range(one.span) && is_short(one))
        {
            return false;
        }
        let sums: u64 = self.entries.iter().map(|one| one.sums(geometry)).sum();
        let room = u64::from(geometry.room()) - u64::from(geometry.header);
        sums == self.sums.len() as u64 && self.payload() <= room
    }

    /// Whether a payload is the record's own.
    pub(crate) fn is_payload(&self, payload: &[u8], geometry: &Geometry) -> bool {
        let mut at = 0;
        let pieces = self
            .entries
            .iter()
            .filter(|entry| entry.kind == Kind::Data)
            .flat_map(|entry| geometry.pieces(entry.span));
        pieces.zip(&self.sums).all(|(piece, sum)| {
            let end = at + index(geometry.bytes(piece.count));
            let is_own = payload.get(at..end).map(crc) == Some(*sum);
            at = end;
            is_own
        })
    }

    fn seed(&self, nonce: u64) -> Seed {
        Seed {
            nonce,
            epoch: self.epoch,
            seq: self.seq,
        }
    }
}

/// Bytes of a header with so many entries and sums.
pub(crate) const fn used_bytes(entries: usize, sums: usize) -> usize {
    FIXED_BYTES + entries * ENTRY_BYTES + sums * SUM_BYTES
}

/// The whole record as it is written: header, filled up with zeroes, and payload. And the
/// header's sum.
pub(crate) fn encode(
    header: &Header,
    payload: &[Bytes],
    nonce: u64,
    geometry: &Geometry,
) -> (Bytes, u32) {
    let (content, crc) = header.encode(nonce);
    let header_bytes = geometry.header_bytes();
    assert!(content.len() <= header_bytes, "a header fits its block");
    let payload_bytes = index(geometry.bytes(header.payload()));
    let mut bytes = BytesMut::with_capacity(header_bytes + payload_bytes);
    bytes.extend_from_slice(&content);
    bytes.resize(header_bytes, 0);
    for part in payload {
        bytes.extend_from_slice(part);
    }
    assert_eq!(bytes.len(), header_bytes + payload_bytes);
    (bytes.freeze(), crc)
}

/// Adds the sums of a write's payload.
pub(crate) fn sum(span: Span, data: &[u8], geometry: &Geometry, sums: &mut Vec<u32>) {
    let mut at = 0;
    for piece in geometry.pieces(span) {
        let end = at + index(geometry.bytes(piece.count));
        sums.push(crc(&data[at..end]));
        at = end;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::geometry::Sizes;
    use proptest::prelude::*;

    pub(crate) fn geometry() -> Geometry {
        Geometry::new(512, 64 * 512, &Sizes::new(1024, 512, 8 * 512, 512)).expect("a layout")
    }

    fn sample() -> (Header, Vec<Bytes>) {
        let span = Span { start: 1, count: 3 };
        let data = Bytes::from([[7; 512], [8; 512], [9; 512]].concat());
        let mut sums = Vec::new();
        sum(span, &data, &geometry(), &mut sums);
        let entries = vec![
            Entry {
                span,
                kind: Kind::Data,
            },
            Entry {
                span: Span { start: 9, count: 2 },
                kind: Kind::Zeroes,
            },
        ];
        let header = Header {
            epoch: 4,
            seq: 9,
            durable_seq: 5,
            cut: 2,
            prev_crc: 77,
            entries,
            sums,
        };
        (header, vec![data])
    }

    #[test]
    fn record_comes_back_as_it_was_for_its_own_log_only() {
        let (header, payload) = sample();
        let (bytes, crc) = encode(&header, &payload, 3, &geometry());
        let decoded = Header::decode(&bytes, 3, 4, &geometry());
        assert_eq!(decoded, Some((header.clone(), crc)));
        assert!(header.is_payload(&bytes[512..], &geometry()));
        assert_eq!(Header::decode(&bytes, 2, 4, &geometry()), None, "nonce");
        assert_eq!(Header::decode(&bytes, 3, 5, &geometry()), None, "epoch");
        assert_eq!((header.end(), header.payload()), (11, 3));
    }

    #[test]
    fn payload_with_any_block_missing_is_not_the_records() {
        let (header, payload) = sample();
        for block in 0..3 {
            let mut torn = payload[0].to_vec();
            torn[block * 512..(block + 1) * 512].fill(0);
            assert!(!header.is_payload(&torn, &geometry()), "{block}");
        }
        assert!(!header.is_payload(&payload[0][..1024], &geometry()));
    }

    proptest! {
        #[test]
        fn damaged_header_is_never_taken(at in 0usize..140, with in 1u8..) {
            let (header, payload) = sample();
            let (bytes, _) = encode(&header, &payload, 3, &geometry());
            let mut bytes = bytes.to_vec();
            let at = at.min(header.used_bytes() - 1);
            bytes[at] ^= with;
            prop_assert_eq!(Header::decode(&bytes, 3, 4, &geometry()), None);
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            let _ = Header::decode(&bytes, 3, 4, &geometry());
            if bytes.len() > 16 {
                bytes[..8].copy_from_slice(MAGIC);
                bytes.put_u64(8, 4);
                let _ = Header::decode(&bytes, 3, 4, &geometry());
            }
        }
    }
}
