//! CRC32C, and how it is bound to one record of one log.
//!
//! * C1: a sum of metadata covers (nonce, epoch, seq) too: what an older lap, another log or the
//!   guest's own data left at the same place never verifies, whatever it looks like.
//! * C2: a payload's sum is stored masked with the same three. It is unmasked when its header has
//!   been verified, so that the map keeps plain sums and a read needs no header.

use crc_fast::{CrcAlgorithm, Digest, checksum};

/// Whose sums they are: one record of one epoch of one log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seed {
    /// Random, drawn at every open; a guest cannot know it.
    pub(crate) nonce: u64,
    /// Number of the open.
    pub(crate) epoch: u64,
    /// First seq of the record.
    pub(crate) seq: u64,
}

/// The plain sum of some data.
pub(crate) fn crc(data: &[u8]) -> u32 {
    narrow(checksum(CrcAlgorithm::Crc32Iscsi, data))
}

impl Seed {
    /// The sum of metadata (C1).
    pub(crate) fn crc(self, data: &[u8]) -> u32 {
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(&self.bytes());
        digest.update(data);
        narrow(digest.finalize())
    }

    /// The sum of metadata in which the four bytes at `at` count as zero: its own field.
    pub(crate) fn crc_without(self, data: &[u8], at: usize) -> u32 {
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(&self.bytes());
        digest.update(&data[..at]);
        digest.update(&[0; 4]);
        digest.update(&data[at + 4..]);
        narrow(digest.finalize())
    }

    /// What masks a payload's sum, by exclusive or, and unmasks it (C2).
    pub(crate) fn mask(self) -> u32 {
        narrow(checksum(CrcAlgorithm::Crc32Iscsi, &self.bytes()))
    }

    fn bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        for (place, word) in bytes
            .chunks_exact_mut(8)
            .zip([self.nonce, self.epoch, self.seq])
        {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

fn narrow(sum: u64) -> u32 {
    u32::try_from(sum).expect("the algorithm is 32 bits wide")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_of_check_string_is_the_published_one() {
        assert_eq!(crc(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn seed_changes_the_sum_in_each_of_its_parts() {
        let seed = Seed {
            nonce: 1,
            epoch: 2,
            seq: 3,
        };
        let others = [
            Seed { nonce: 9, ..seed },
            Seed { epoch: 9, ..seed },
            Seed { seq: 9, ..seed },
        ];
        for other in others {
            assert_ne!(seed.crc(b"x"), other.crc(b"x"));
            assert_ne!(seed.mask(), other.mask());
        }
        let (whole, field) = ([1, 2, 9, 9, 9, 9, 3], [1, 2, 0, 0, 0, 0, 3]);
        assert_eq!(seed.crc_without(&whole, 2), seed.crc(&field));
    }
}
