//! What a report on a cache device is made of: plain data, for whoever shows it. Byte offsets are
//! those of the device, extents those of the disk.

use vaio_core::Extent;

/// What is at a superblock's place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Zeroes: never written.
    Empty,
    /// Something that does not verify.
    Invalid,
    /// A superblock in a format of another version: its log is not looked into.
    OtherVersion {
        /// The format's version.
        version: u32,
    },
    /// A superblock with this generation. The higher one counts.
    Valid {
        /// Its generation.
        generation: u64,
    },
}

/// A superblock's place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SuperblockPlace {
    /// Byte offset on the device.
    pub offset: u64,
    /// What is there.
    pub verdict: Verdict,
}

impl SuperblockPlace {
    /// The version of the format that is there, if it is not the one that this code knows.
    pub fn other_version(&self) -> Option<u32> {
        match self.verdict {
            Verdict::OtherVersion { version } => Some(version),
            _ => None,
        }
    }
}

/// The records of one open of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EpochView {
    /// Number of the open.
    pub epoch: u64,
    /// Seq of the first record that is still kept.
    pub first_seq: u64,
    /// The first seq after it as the superblock says; `None` for the epoch that was written last.
    pub end_seq: Option<u64>,
    /// The first seq that is not there.
    pub found_end_seq: u64,
    /// Records found.
    pub records: u64,
}

/// A segment that holds records.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentView {
    /// Its place in the ring.
    pub segment: u32,
    /// Byte offset on the device.
    pub offset: u64,
    /// Whose records it holds.
    pub epoch: u64,
    /// Seq of its first record.
    pub first_seq: u64,
    /// The first seq after its records.
    pub end_seq: u64,
    /// Its records.
    pub records: u64,
    /// It has a valid footer: it was filled, and nothing more goes into it.
    pub is_sealed: bool,
    /// Something in it is not on the backing yet.
    pub is_dirty: bool,
}

/// A record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordView {
    /// Byte offset of its header on the device.
    pub offset: u64,
    /// The open that wrote it.
    pub epoch: u64,
    /// Seq of its first write.
    pub seq: u64,
    /// The first seq after it.
    pub end_seq: u64,
    /// Everything before this was durable when it was composed.
    pub durable_seq: u64,
    /// Its cut: the backing shows the records of one cut together.
    pub cut: u64,
    /// Bytes of payload.
    pub payload_bytes: u64,
    /// What it changes on the disk, in order; data and zeroes.
    pub extents: Vec<Extent>,
    /// Whether every payload sum verifies; `None`: not looked at.
    pub is_payload_valid: Option<bool>,
    /// It is not on the backing yet, as far as the device knows.
    pub is_dirty: bool,
}

/// Where the log is not what it should be, and an open refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// What is wrong, with the seq, and what to do.
    pub text: String,
    /// What an open would lose at most if it went on: the setting `discard_dirty` that allows it,
    /// where the disk is not smaller. 0: not known.
    pub lost_bytes: u64,
}

/// What is on a cache device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// Bytes of the device.
    pub capacity: u64,
    /// The two places, in their order.
    pub superblocks: Vec<SuperblockPlace>,
    /// The log; `None`: no superblock is valid.
    pub log: Option<LogView>,
}

impl Inspection {
    /// The version of a log that this code does not look into, nor write over.
    pub fn other_version(&self) -> Option<u32> {
        self.superblocks
            .iter()
            .find_map(SuperblockPlace::other_version)
    }
}

/// A log that a superblock describes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogView {
    /// Random; the disk's sidecar has the same.
    pub identity: u64,
    /// Ownership epoch of the disk at the last open.
    pub owner: u64,
    /// Generation of the superblock that counts.
    pub generation: u64,
    /// Everything before this seq is on the backing, durably.
    pub destaged_seq: u64,
    /// Bytes of a logical block of the disk.
    pub logical_block: u32,
    /// Bytes of a unit, a header, a segment, a footer and a region.
    pub sizes: crate::Sizes,
    /// Segments in the ring.
    pub segment_count: u32,
    /// Regions of the read store behind them; 0: none. What is in them is known in memory only.
    pub region_count: u32,
    /// Opens whose records may be there, oldest first.
    pub epochs: Vec<EpochView>,
    /// Segments that hold records, oldest first.
    pub segments: Vec<SegmentView>,
    /// The first seq that is not in the log.
    pub end_seq: u64,
    /// Everything before this seq was durable, as the records know.
    pub durable_seq: u64,
    /// Byte offset of the first place that does not continue the log; `None`: there is no record.
    pub end_offset: Option<u64>,
    /// Records found, listed or not.
    pub record_count: u64,
    /// The records, oldest first, with [`Depth::Payloads`](super::Depth::Payloads); at most [`RECORDS_LISTED_MAX`](super::RECORDS_LISTED_MAX).
    pub records: Vec<RecordView>,
    /// Records with payload that does not verify, with [`Depth::Payloads`](super::Depth::Payloads).
    pub bad_payloads: u64,
    /// What the backing lacks: disjoint, in the order of offsets.
    pub dirty: Vec<Extent>,
    /// Bytes of `dirty`.
    pub dirty_bytes: u64,
    /// Why an open would refuse; `None`: it would not, as far as the device can tell.
    pub damage: Option<Damage>,
}
