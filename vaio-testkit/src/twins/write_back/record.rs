//! Bytes on the cache device: the superblock and the records of the log. Pure.
//!
//! ```text
//! block 0                    superblock: magic, epoch, tail, geometry, crc
//! block 1 + k * (1 + R) ...  slot k of N: one header block, then up to R data blocks
//! ```
//! Record `seq` lies in slot `seq % N`. A record is *valid* under a superblock iff its checksum
//! holds over header **and** data, its epoch is the superblock's, and `tail <= seq < tail + N`:
//! * R1: a torn record is not valid (the checksum covers every block of it);
//! * R2: a record of an earlier lap is not valid (`seq < tail`);
//! * R3: a record of an earlier life is not valid, even one that lands late (another epoch).

use bytes::{BufMut, Bytes, BytesMut};
use vaio_core::{Extent, zeroes};

use crate::{twins::checksum, zoo::Bug};

const SUPER_MAGIC: u64 = u64::from_le_bytes(*b"vaioWBsb");
const RECORD_MAGIC: u64 = u64::from_le_bytes(*b"vaioWBrc");
/// Bytes of a header block that are used; the checksum is the last four.
const HEADER_LEN: usize = 8 + 8 + 8 + 8 + 8 + 1 + 4;
const SUPER_LEN: usize = 8 + 8 + 8 + 8 + 8 + 4;

/// How the cache device is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Bytes of a logical block.
    pub(super) block: u64,
    /// Slots of the log (N).
    pub(super) slots: u64,
    /// Data blocks of a slot (R).
    pub(super) slot_blocks: u64,
}

impl Geometry {
    /// Most data bytes of one record.
    pub(super) const fn record_max(&self) -> u64 {
        self.slot_blocks * self.block
    }

    /// Where the record `seq` lies.
    pub(super) const fn offset_of(&self, seq: u64) -> u64 {
        (1 + (seq % self.slots) * (1 + self.slot_blocks)) * self.block
    }

    /// Bytes of a whole slot.
    pub(super) const fn slot_len(&self) -> u64 {
        (1 + self.slot_blocks) * self.block
    }

    /// Bytes that the log needs.
    pub(super) const fn device_len(&self) -> u64 {
        self.block + self.slots * self.slot_len()
    }
}

/// What a record writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Data(Bytes),
    Zeroes,
}

impl Content {
    /// The part that belongs to `part` of `whole`, as bytes.
    pub(crate) fn bytes_of(&self, whole: Extent, part: Extent) -> Bytes {
        debug_assert!(whole.contains(part));
        match self {
            Self::Data(data) => {
                let from = index(part.offset() - whole.offset());
                data.slice(from..from + index(part.len()))
            }
            Self::Zeroes => zeroes(index(part.len())),
        }
    }

    /// The part that belongs to `part` of `whole`.
    pub(crate) fn part(&self, whole: Extent, part: Extent) -> Self {
        match self {
            Self::Data(_) => Self::Data(self.bytes_of(whole, part)),
            Self::Zeroes => Self::Zeroes,
        }
    }
}

/// A length that fits into memory.
pub(crate) fn index(len: u64) -> usize {
    usize::try_from(len).expect("lengths of buffers fit into memory")
}

/// The superblock: under which epoch the log is read, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) epoch: u64,
    pub(super) tail: u64,
    pub(super) geometry: Geometry,
}

impl Superblock {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(index(self.geometry.block));
        out.put_u64_le(SUPER_MAGIC);
        out.put_u64_le(self.epoch);
        out.put_u64_le(self.tail);
        out.put_u64_le(self.geometry.slots);
        out.put_u64_le(self.geometry.slot_blocks);
        out.put_u32_le(checksum(&[&out]));
        out.resize(index(self.geometry.block), 0);
        out.freeze()
    }

    /// The superblock in `block`, if there is one.
    pub(super) fn decode(block: &[u8]) -> Option<Self> {
        let (body, crc) = block.get(..SUPER_LEN)?.split_at(SUPER_LEN - 4);
        if word(body, 0) != SUPER_MAGIC || crc != checksum(&[body]).to_le_bytes() {
            return None;
        }
        Some(Self {
            epoch: word(body, 8),
            tail: word(body, 16),
            geometry: Geometry {
                block: block.len() as u64,
                slots: word(body, 24),
                slot_blocks: word(body, 32),
            },
        })
    }

    /// Whether a record with this epoch and number is of the log that starts here (R2, R3).
    pub(super) fn accepts(&self, epoch: u64, seq: u64, bug: Option<Bug>) -> bool {
        let is_of_this_lap = (self.tail..self.tail + self.geometry.slots).contains(&seq)
            || bug == Some(Bug::StaleLap);
        epoch == self.epoch && is_of_this_lap
    }
}

/// A record as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) epoch: u64,
    pub(super) seq: u64,
    pub(super) extent: Extent,
    pub(super) content: Content,
}

/// The bytes of a record: header block, then the data blocks.
pub(super) fn encode(block: u64, epoch: u64, seq: u64, extent: Extent, content: &Content) -> Bytes {
    let data: &[u8] = match content {
        Content::Data(data) => data,
        Content::Zeroes => &[],
    };
    let mut out = BytesMut::with_capacity(index(block) + data.len());
    out.put_u64_le(RECORD_MAGIC);
    out.put_u64_le(epoch);
    out.put_u64_le(seq);
    out.put_u64_le(extent.offset());
    out.put_u64_le(extent.len());
    out.put_u8(u8::from(matches!(content, Content::Zeroes)));
    // R1: one checksum over header and data, so that a subset of the blocks is no record.
    out.put_u32_le(checksum(&[&out, data]));
    out.resize(index(block), 0);
    out.extend_from_slice(data);
    out.freeze()
}

/// The record in a slot, if a whole one is there.
pub(super) fn decode(slot: &Bytes, geometry: &Geometry, bug: Option<Bug>) -> Option<Found> {
    let (header, crc) = slot.get(..HEADER_LEN)?.split_at(HEADER_LEN - 4);
    if word(header, 0) != RECORD_MAGIC {
        return None;
    }
    let len = word(header, 32);
    let extent = Extent::checked(word(header, 24), len)?;
    let data = match header[40] {
        0 if len <= geometry.record_max() => {
            let from = index(geometry.block);
            slot.slice(from..from + index(len))
        }
        1 => Bytes::new(),
        _ => return None,
    };
    let is_whole = crc == checksum(&[header, &data]).to_le_bytes();
    // A header alone is one block and never torn: it says nothing of the data.
    if !is_whole && bug != Some(Bug::NoDataChecksum) {
        return None;
    }
    Some(Found {
        epoch: word(header, 8),
        seq: word(header, 16),
        extent,
        content: if header[40] == 1 {
            Content::Zeroes
        } else {
            Content::Data(data)
        },
    })
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
        slots: 3,
        slot_blocks: 2,
    };

    fn record() -> (Extent, Content, Bytes) {
        let extent = Extent::new(1024, 1024);
        let content = Content::Data(Bytes::from([[7; 512], [8; 512]].concat()));
        let bytes = encode(512, 4, 9, extent, &content);
        (extent, content, bytes)
    }

    #[test]
    fn record_comes_back_as_it_was() {
        let (extent, content, bytes) = record();
        let found = decode(&bytes, &GEOMETRY, None).expect("valid");
        assert_eq!((found.epoch, found.seq), (4, 9));
        assert_eq!((found.extent, found.content), (extent, content));
    }

    #[test]
    fn record_with_any_block_missing_is_no_record() {
        let (_, _, bytes) = record();
        for missing in 0..3 {
            let mut torn = bytes.to_vec();
            torn[missing * 512..(missing + 1) * 512].fill(0);
            assert_eq!(decode(&torn.into(), &GEOMETRY, None), None, "{missing}");
        }
    }

    #[test]
    fn superblock_takes_records_of_its_epoch_and_lap_only() {
        let superblock = Superblock {
            epoch: 4,
            tail: 5,
            geometry: GEOMETRY,
        };
        assert_eq!(Superblock::decode(&superblock.encode()), Some(superblock));
        for (epoch, seq, is_taken) in [
            (4, 5, true),
            (4, 7, true),
            (4, 4, false),
            (4, 8, false),
            (3, 5, false),
        ] {
            assert_eq!(
                superblock.accepts(epoch, seq, None),
                is_taken,
                "{epoch} {seq}"
            );
        }
    }
}
