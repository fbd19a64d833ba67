//! Twins: small filters that keep their promises, one of each kind that the [zoo](crate::zoo)
//! breaks.
//!
//! They are written to be read: each file starts with the invariants that make it safe, and the
//! code says where each is used. They are not fast. A vendor reads them to learn how a safe filter
//! is built; the kit uses them to prove that it raises no false alarm, and to show that it finds
//! each [`Bug`](crate::zoo::Bug) when it is put in.
//!
//! Wherever the code asks `has(Bug::X)`, read on as if the answer were `false`.

pub mod barriers;
pub mod mirror;
pub mod observer;
pub mod ordered;
pub mod read_cache;
pub mod replicator;
pub mod transform;
pub mod write_back;

/// CRC-32C of several slices, as if they were one.
pub(crate) fn checksum(parts: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    u32::try_from(digest.finalize()).expect("a 32-bit checksum fits")
}
