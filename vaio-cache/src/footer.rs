//! The footer of a sealed segment: the content of all its headers again, in one place, so that an
//! open reads one extent instead of one per record, and finds records behind a damaged one.
//!
//! ```text
//!  0 magic    8 epoch   16 seq of the first record   24 records u32   28 bytes u32   32 crc
//! 40 headers' contents, one after the other, each as in its record
//! ```
//! * F1: a footer is a hint. Without a valid one the segment is read record by record, with the
//!   same result; so it is not written again after a failed flush.
//! * F2: it says nothing of the payloads. They count as any record's (R1).

use bytes::Bytes;

use crate::{
    bytes_at::{Get, Put},
    checksum::Seed,
    geometry::Geometry,
    record::Header,
};

pub(crate) const MAGIC: &[u8; 8] = b"VAIOFTR\x01";
pub(crate) const FIXED_BYTES: usize = 40;
const CRC_AT: usize = 32;

/// The footer of a segment with these headers, whose contents are at most
/// [`Geometry::footer_bytes`] less [`FIXED_BYTES`].
pub(crate) fn encode(contents: &[Vec<u8>], seed: Seed, geometry: &Geometry) -> Bytes {
    let mut bytes = vec![0; FIXED_BYTES];
    for content in contents {
        bytes.extend_from_slice(content);
    }
    let len = bytes.len();
    assert!(len <= geometry.footer_bytes(), "a footer fits its place");
    bytes[..8].copy_from_slice(MAGIC);
    bytes.put_u64(8, seed.epoch);
    bytes.put_u64(16, seed.seq);
    bytes.put_u32(24, u32::try_from(contents.len()).expect("limited by len"));
    bytes.put_u32(28, u32::try_from(len).expect("a footer is small"));
    let crc = seed.crc(&bytes);
    bytes.put_u32(CRC_AT, crc);
    bytes.resize(geometry.footer_bytes(), 0);
    bytes.into()
}

/// The headers of a segment, each with its sum; `None`: no valid footer of this log and epoch.
pub(crate) fn decode(
    bytes: &[u8],
    nonce: u64,
    epoch: u64,
    geometry: &Geometry,
) -> Option<Vec<(Header, u32)>> {
    if bytes.get(..8)? != MAGIC || bytes.get_u64(8)? != epoch {
        return None;
    }
    let seed = Seed {
        nonce,
        epoch,
        seq: bytes.get_u64(16)?,
    };
    let len = usize::try_from(bytes.get_u32(28)?).ok()?;
    let mut content = bytes.get(..len)?.to_vec();
    let crc = content.get_u32(CRC_AT)?;
    if len < FIXED_BYTES {
        return None;
    }
    content.put_u32(CRC_AT, 0);
    if seed.crc(&content) != crc {
        return None;
    }
    let mut headers: Vec<(Header, u32)> = Vec::new();
    let mut at = FIXED_BYTES;
    let mut blocks = 0;
    for _ in 0..content.get_u32(24)? {
        let (header, crc) = Header::decode(content.get(at..)?, nonce, epoch, geometry)?;
        let expected = headers.last().map_or(seed.seq, |(last, _)| last.end());
        blocks += u64::from(geometry.header) + header.payload();
        if header.seq != expected || blocks > geometry.room().into() {
            return None;
        }
        at += header.used_bytes();
        headers.push((header, crc));
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        geometry::Span,
        record::{Entry, Kind, tests::geometry},
    };

    fn header(seq: u64) -> Header {
        Header {
            epoch: 4,
            seq,
            durable_seq: 0,
            cut: 1,
            prev_crc: 0,
            entries: vec![Entry {
                span: Span { start: 1, count: 1 },
                kind: Kind::Zeroes,
            }],
            sums: Vec::new(),
        }
    }

    fn footer() -> Bytes {
        let contents = [header(7).encode(3).0, header(8).encode(3).0];
        let seed = Seed {
            nonce: 3,
            epoch: 4,
            seq: 7,
        };
        encode(&contents, seed, &geometry())
    }

    #[test]
    fn footer_gives_back_every_header() {
        let found = decode(&footer(), 3, 4, &geometry()).expect("valid");
        let headers: Vec<_> = found.into_iter().map(|(header, _)| header).collect();
        assert_eq!(headers, [header(7), header(8)]);
    }

    #[test]
    fn damaged_or_foreign_footer_is_none() {
        assert_eq!(decode(&footer(), 2, 4, &geometry()), None);
        assert_eq!(decode(&footer(), 3, 5, &geometry()), None);
        for at in 0..FIXED_BYTES + 2 * header(7).used_bytes() {
            let mut bytes = footer().to_vec();
            bytes[at] ^= 1;
            assert_eq!(decode(&bytes, 3, 4, &geometry()), None, "{at}");
        }
    }
}
