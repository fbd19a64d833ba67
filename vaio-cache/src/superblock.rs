//! The superblock: whose log it is, how to read it, and what of it is no longer needed.
//!
//! Two places, written in turn; the valid one with the higher generation counts. Written when the
//! cache is opened and closed and when destaging has moved on, never for a write.
//!
//! * S1: it is durable before what depends on it happens: a new epoch before the first reply,
//!   `destaged_seq` before a segment is used again.
//! * S2: an epoch has a known end, but for the last: where a log was found to end is kept, so that
//!   what a dead host wrote behind it can never come back to life.
//! * S3: one of another version is not "no superblock": whoever does not know what it says neither
//!   writes nor gives up anything there.

use bytes::Bytes;

use crate::{
    bytes_at::{Get, Put},
    checksum::crc,
    geometry::Geometry,
};

pub(crate) const MAGIC: &[u8; 8] = b"VAIOCSB\x01";
/// Version of the format; the number in `docs/spec/cache-format.md`.
pub const CACHE_FORMAT_VERSION: u32 = 1;
/// Epochs whose records may be in the log at once.
pub(crate) const EPOCHS_MAX: usize = 8;
const EPOCH_BYTES: usize = 40;
const EPOCHS_AT: usize = 104;
const CRC_AT: usize = 96;
/// Generations, epochs and seqs do not get there: a billion a second, for a century.
const COUNT_MAX: u64 = 1 << 62;
pub(crate) const USED_BYTES: usize = EPOCHS_AT + EPOCHS_MAX * EPOCH_BYTES;

/// The records of one open: where they begin, and where they end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_field_names,
    reason = "an epoch's number is called epoch everywhere"
)]
pub(crate) struct Epoch {
    pub(crate) epoch: u64,
    pub(crate) nonce: u64,
    /// The first segment that is still needed.
    pub(crate) segment: u32,
    /// Seq of the first record in that segment.
    pub(crate) first_seq: u64,
    /// The first seq after the epoch; [`OPEN`] for the one that is written.
    pub(crate) end_seq: u64,
}

/// The end of an epoch that has not ended.
pub(crate) const OPEN: u64 = u64::MAX;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Which of the two counts.
    pub(crate) generation: u64,
    /// Random; the sidecar names it.
    pub(crate) identity: u64,
    /// Ownership of the disk that opened it last.
    pub(crate) owner: u64,
    pub(crate) geometry: Geometry,
    /// Everything before this seq is on the backing, durably.
    pub(crate) destaged_seq: u64,
    /// In their order; the last is [`OPEN`].
    pub(crate) epochs: Vec<Epoch>,
}

impl Superblock {
    pub(crate) fn encode(&self) -> Bytes {
        assert!(
            (1..=EPOCHS_MAX).contains(&self.epochs.len()),
            "a superblock has room for its epochs"
        );
        let mut bytes = vec![0; self.geometry.header_bytes()];
        bytes[..8].copy_from_slice(MAGIC);
        bytes.put_u32(8, CACHE_FORMAT_VERSION);
        bytes.put_u32(12, u32::try_from(self.epochs.len()).expect("checked"));
        bytes.put_u64(16, self.generation);
        bytes.put_u64(24, self.identity);
        bytes.put_u64(32, self.owner);
        bytes.put_u64(40, self.destaged_seq);
        let geometry = &self.geometry;
        let sizes = [
            geometry.block,
            geometry.unit,
            geometry.header,
            geometry.segment,
            geometry.footer,
            geometry.segments,
            geometry.region,
            geometry.regions,
        ];
        for (index, size) in sizes.into_iter().enumerate() {
            bytes.put_u32(48 + 4 * index, size);
        }
        for (index, one) in self.epochs.iter().enumerate() {
            let at = EPOCHS_AT + index * EPOCH_BYTES;
            bytes.put_u64(at, one.epoch);
            bytes.put_u64(at + 8, one.nonce);
            bytes.put_u64(at + 16, one.first_seq);
            bytes.put_u64(at + 24, one.end_seq);
            bytes.put_u32(at + 32, one.segment);
        }
        let crc = crc(&bytes[..USED_BYTES]);
        bytes.put_u32(CRC_AT, crc);
        bytes.into()
    }

    /// The version of a superblock that verifies and is not of this one. Every version has its sum,
    /// over as many bytes, at the same place (S3).
    pub(crate) fn other_version(bytes: &[u8]) -> Option<u32> {
        let version = Self::verified(bytes)?.get_u32(8)?;
        (version != CACHE_FORMAT_VERSION).then_some(version)
    }

    /// What the sum covers.
    fn verified(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut content = bytes.get(..USED_BYTES)?.to_vec();
        let sum = content.get_u32(CRC_AT)?;
        content.put_u32(CRC_AT, 0);
        (&content[..8] == MAGIC && crc(&content) == sum).then_some(content)
    }

    /// Reads one of the two places; `None`: it holds no valid superblock of this version.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let content = Self::verified(bytes)?;
        let count = usize::try_from(content.get_u32(12)?).ok()?;
        if content.get_u32(8)? != CACHE_FORMAT_VERSION || !(1..=EPOCHS_MAX).contains(&count) {
            return None;
        }
        let geometry = Geometry {
            block: content.get_u32(48)?,
            unit: content.get_u32(52)?,
            header: content.get_u32(56)?,
            segment: content.get_u32(60)?,
            footer: content.get_u32(64)?,
            segments: content.get_u32(68)?,
            region: content.get_u32(72)?,
            regions: content.get_u32(76)?,
        };
        geometry.validate().ok()?;
        let epochs = (0..count)
            .map(|index| {
                let at = EPOCHS_AT + index * EPOCH_BYTES;
                Some(Epoch {
                    epoch: content.get_u64(at)?,
                    nonce: content.get_u64(at + 8)?,
                    first_seq: content.get_u64(at + 16)?,
                    end_seq: content.get_u64(at + 24)?,
                    segment: content.get_u32(at + 32)?,
                })
            })
            .collect::<Option<Vec<_>>>()?;
        let superblock = Self {
            generation: content.get_u64(16)?,
            identity: content.get_u64(24)?,
            owner: content.get_u64(32)?,
            destaged_seq: content.get_u64(40)?,
            geometry,
            epochs,
        };
        superblock.is_in_range().then_some(superblock)
    }

    /// Whether the numbers are such as this code writes. The sum is not seeded: an image from
    /// elsewhere can have any.
    fn is_in_range(&self) -> bool {
        let is_fine = |one: &Epoch| {
            one.segment < self.geometry.segments
                && one.epoch <= COUNT_MAX
                && one.first_seq <= COUNT_MAX
                && (one.end_seq == OPEN || one.end_seq <= COUNT_MAX)
        };
        self.generation <= COUNT_MAX
            && self.destaged_seq <= COUNT_MAX
            && self.epochs.iter().all(is_fine)
    }

    /// The one that counts.
    pub(crate) fn newer(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        [one, other]
            .into_iter()
            .flatten()
            .max_by_key(|superblock| superblock.generation)
    }

    /// The epoch that is written.
    pub(crate) fn current(&self) -> &Epoch {
        self.epochs.last().expect("a superblock has an epoch")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::record::tests::geometry;

    pub(crate) fn sample(generation: u64) -> Superblock {
        let epoch = |epoch, first_seq, end_seq| Epoch {
            epoch,
            nonce: 3,
            segment: 2,
            first_seq,
            end_seq,
        };
        Superblock {
            generation,
            identity: 1,
            owner: 2,
            geometry: geometry(),
            destaged_seq: 9,
            epochs: vec![epoch(4, 5, 11), epoch(6, 11, OPEN)],
        }
    }

    #[test]
    fn superblock_comes_back_and_the_newer_counts() {
        let (old, new) = (sample(7), sample(8));
        let decoded = |one: &Superblock| Superblock::decode(&one.encode());
        assert_eq!(decoded(&old), Some(old.clone()));
        assert_eq!(
            Superblock::newer(decoded(&new), decoded(&old)),
            Some(new.clone())
        );
        assert_eq!(Superblock::newer(None, decoded(&old)), Some(old));
        assert_eq!(new.current().epoch, 6);
    }

    /// What another version of this code would write.
    pub(crate) fn of_version(version: u32, bytes: &[u8]) -> Vec<u8> {
        let mut other = bytes.to_vec();
        other.put_u32(8, version);
        other.put_u32(CRC_AT, 0);
        let sum = crc(&other[..USED_BYTES]);
        other.put_u32(CRC_AT, sum);
        other
    }

    #[test]
    fn superblock_of_another_version_is_known_as_one() {
        let bytes = sample(7).encode();
        let other = of_version(CACHE_FORMAT_VERSION + 1, &bytes);
        assert_eq!(Superblock::decode(&other), None);
        assert_eq!(
            Superblock::other_version(&other),
            Some(CACHE_FORMAT_VERSION + 1)
        );
        assert_eq!(Superblock::other_version(&bytes), None);
        let mut damaged = bytes.to_vec();
        damaged[8] = 2;
        assert_eq!(
            Superblock::other_version(&damaged),
            None,
            "damage is no version"
        );
    }

    #[test]
    fn damaged_superblock_is_none() {
        let bytes = sample(7).encode();
        for at in 0..USED_BYTES {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 0x10;
            assert_eq!(Superblock::decode(&damaged), None, "{at}");
        }
        assert_eq!(Superblock::decode(&bytes[..100]), None);
    }
}
