//! Bytes on the staging device. Pure.
//!
//! ```text
//! stamp    1 block    magic, generation, owner, crc
//! record   1 + R      one header block: magic, generation, place, offset, length, is_zeroes, crc;
//!                     then up to R data blocks
//! ```
//! A record is valid iff its checksum holds over header *and* data, its generation is that of the
//! stamp of its sheet, and its place is where it lies: one that is torn, or that an earlier
//! generation left, is not.

use bytes::{BufMut, Bytes, BytesMut};
use vaio_core::{Extent, zeroes};

const STAMP_MAGIC: u64 = u64::from_le_bytes(*b"stgstamp");
const RECORD_MAGIC: u64 = u64::from_le_bytes(*b"stgrecrd");
const STAMP_LEN: usize = 8 + 8 + 8 + 4;
const HEADER_LEN: usize = 8 * 5 + 1 + 4;
/// Sheets of a device.
pub(crate) const SHEETS: usize = 2;

/// How the staging device is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Bytes of a logical block.
    pub(crate) block: u64,
    /// Records of a sheet.
    pub(crate) records: usize,
    /// Most data blocks of a record.
    pub(crate) record_blocks: u64,
}

impl Geometry {
    pub(crate) const fn record_len(&self) -> u64 {
        (1 + self.record_blocks) * self.block
    }

    pub(crate) const fn stamp_at(&self, sheet: usize) -> u64 {
        sheet as u64 * self.sheet_len()
    }

    pub(crate) const fn record_at(&self, sheet: usize, place: usize) -> u64 {
        self.stamp_at(sheet) + self.block + place as u64 * self.record_len()
    }

    pub(crate) const fn device_len(&self) -> u64 {
        SHEETS as u64 * self.sheet_len()
    }

    const fn sheet_len(&self) -> u64 {
        self.block + self.records as u64 * self.record_len()
    }
}

/// What a record writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Data(Bytes),
    Zeroes,
}

impl Content {
    /// The part of it that belongs to `part` of `whole`.
    pub(crate) fn part(&self, whole: Extent, part: Extent) -> Self {
        assert!(whole.contains(part), "a part is inside");
        match self {
            Self::Data(data) => {
                let from = index(part.offset() - whole.offset());
                Self::Data(data.slice(from..from + index(part.len())))
            }
            Self::Zeroes => Self::Zeroes,
        }
    }

    /// As bytes, `len` of them.
    pub(crate) fn bytes(&self, len: u64) -> Bytes {
        match self {
            Self::Data(data) => data.clone(),
            Self::Zeroes => zeroes(index(len)),
        }
    }
}

/// A length that fits into memory.
pub(crate) fn index(len: u64) -> usize {
    usize::try_from(len).expect("lengths of buffers fit into memory")
}

/// What a stamp says; by generation, the older one is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp {
    pub(crate) generation: u64,
    /// The ownership of the disk, by its number, in which it was written.
    pub(crate) owner: u64,
}

/// The stamp of a sheet, one block.
pub(crate) fn stamp(geometry: &Geometry, of: Stamp) -> Bytes {
    let mut out = BytesMut::with_capacity(index(geometry.block));
    out.put_u64_le(STAMP_MAGIC);
    out.put_u64_le(of.generation);
    out.put_u64_le(of.owner);
    out.put_u32_le(checksum(&[&out]));
    out.resize(index(geometry.block), 0);
    out.freeze()
}

/// The stamp in a block, if one is there.
pub(crate) fn stamp_of(block: &[u8]) -> Option<Stamp> {
    let (body, crc) = block.get(..STAMP_LEN)?.split_at(STAMP_LEN - 4);
    let is_stamp = word(body, 0) == STAMP_MAGIC && crc == checksum(&[body]).to_le_bytes();
    is_stamp.then(|| Stamp {
        generation: word(body, 8),
        owner: word(body, 16),
    })
}

/// The bytes of a record.
pub(crate) fn encode(
    geometry: &Geometry,
    generation: u64,
    place: usize,
    extent: Extent,
    content: &Content,
) -> Bytes {
    let data: &[u8] = match content {
        Content::Data(data) => data,
        Content::Zeroes => &[],
    };
    let mut out = BytesMut::with_capacity(index(geometry.block) + data.len());
    out.put_u64_le(RECORD_MAGIC);
    out.put_u64_le(generation);
    out.put_u64_le(place as u64);
    out.put_u64_le(extent.offset());
    out.put_u64_le(extent.len());
    out.put_u8(u8::from(*content == Content::Zeroes));
    // One checksum over both: a header without its data is no record.
    let crc = checksum(&[&out, data]);
    out.put_u32_le(crc);
    out.resize(index(geometry.block), 0);
    out.extend_from_slice(data);
    out.freeze()
}

/// The record at a place, if a valid one of this generation is there.
pub(crate) fn decode(
    geometry: &Geometry,
    generation: u64,
    place: usize,
    bytes: &Bytes,
) -> Option<(Extent, Content)> {
    let (header, crc) = bytes.get(..HEADER_LEN)?.split_at(HEADER_LEN - 4);
    let is_ours = word(header, 0) == RECORD_MAGIC
        && word(header, 8) == generation
        && word(header, 16) == place as u64;
    if !is_ours {
        return None;
    }
    let extent = Extent::checked(word(header, 24), word(header, 32))?;
    let is_zeroes = header[40] == 1;
    let data = if is_zeroes {
        Bytes::new()
    } else if extent.len() <= geometry.record_blocks * geometry.block {
        let from = index(geometry.block);
        bytes.slice(from..from + index(extent.len()))
    } else {
        return None;
    };
    if crc != checksum(&[header, &data]).to_le_bytes() {
        return None;
    }
    let content = if is_zeroes {
        Content::Zeroes
    } else {
        Content::Data(data)
    };
    Some((extent, content))
}

fn checksum(parts: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    u32::try_from(digest.finalize()).expect("a 32-bit checksum fits")
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry {
        block: 512,
        records: 2,
        record_blocks: 2,
    };

    #[test]
    fn record_comes_back_only_whole_and_of_its_generation_and_place() {
        let extent = Extent::new(1024, 1024);
        let content = Content::Data(Bytes::from([[7; 512], [8; 512]].concat()));
        let bytes = encode(&GEOMETRY, 4, 1, extent, &content);
        let read = |generation, place| decode(&GEOMETRY, generation, place, &bytes);
        assert_eq!(read(4, 1), Some((extent, content)));
        assert_eq!(read(3, 1), None);
        assert_eq!(read(4, 0), None);
        for missing in 0..3 {
            let mut torn = bytes.to_vec();
            torn[missing * 512..(missing + 1) * 512].fill(0);
            assert_eq!(decode(&GEOMETRY, 4, 1, &torn.into()), None, "{missing}");
        }
    }

    #[test]
    fn stamp_comes_back_only_whole() {
        let of = Stamp {
            generation: 9,
            owner: 3,
        };
        let mut block = stamp(&GEOMETRY, of).to_vec();
        assert_eq!(stamp_of(&block), Some(of));
        block[8] ^= 1;
        assert_eq!(stamp_of(&block), None);
    }
}
