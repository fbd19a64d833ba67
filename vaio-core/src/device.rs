//! [`BlockDevice`]: what a filter sits on, and what the whole stack looks like from above.

use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::{AllocationMap, BoxFuture, Extent, Io, OpKind, Reply, Result};

/// How well a disk does an operation that it may also have to imitate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum Support {
    /// Not done; asked for, it fails with [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
    #[default]
    None,
    /// Done by the framework with other operations; correct, no faster than they are.
    Emulated,
    /// Done by the device.
    Native,
}

/// What a block reads as after a successful discard, until written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum DiscardReads {
    /// Its old content or zeroes; once read as zero it stays zero.
    #[default]
    OldOrZero,
    /// Zeroes.
    Zero,
}

/// What a device offers beside read and write, folded over the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own about a device"
)]
pub struct Capabilities {
    /// A completed write may be lost in a crash until flushed. Without a volatile cache a flush
    /// is answered and every write is as good as fua.
    pub volatile_cache: bool,
    /// [`Op::Write`](crate::Op::Write) and others with `fua`; emulated by a flush after it.
    pub fua: Support,
    /// [`Op::WriteZeroes`](crate::Op::WriteZeroes); emulated by writes.
    pub write_zeroes: Support,
    /// `fast_only` zeroes can succeed.
    pub fast_zeroes: bool,
    /// [`Op::Discard`](crate::Op::Discard); emulated by doing nothing.
    pub discard: Support,
    /// What discarded blocks read as.
    pub discard_reads: DiscardReads,
    /// [`Op::Prefetch`](crate::Op::Prefetch); emulated by doing nothing.
    pub prefetch: Support,
    /// `allocation` tells data from holes.
    pub allocation: bool,
    /// Writes and the like are refused.
    pub read_only: bool,
}

impl Capabilities {
    /// The support for an operation kind. Reads are always native; writes unless read-only.
    pub const fn support(&self, kind: OpKind) -> Support {
        match kind {
            OpKind::Write if self.read_only => Support::None,
            OpKind::Read | OpKind::Flush | OpKind::Write => Support::Native,
            OpKind::WriteZeroes => self.write_zeroes,
            OpKind::Discard => self.discard,
            OpKind::Prefetch => self.prefetch,
        }
    }
}

/// What a disk looks like to the layer above. Constant while attached: it changes only inside a
/// quiesced resize or re-chain, with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Size in bytes; a multiple of `logical_block`.
    pub capacity: u64,
    /// Smallest unit and alignment of IO, and the unit that is never torn, in bytes: a power of
    /// two, 512 to 64 KiB.
    pub logical_block: u32,
    /// Unit that the device does best, in bytes: a power of two, at least `logical_block`.
    pub optimal_block: u32,
    /// Largest read or write payload in bytes; a multiple of `logical_block`. The framework
    /// splits what is larger.
    pub transfer_max: u32,
    /// Largest write-zeroes or discard in bytes; the framework splits what is larger.
    pub zeroes_max: u64,
    /// Alignment of buffer memory that avoids a copy, in bytes; 1 where it does not matter.
    pub memory_align: u32,
    /// Asks the framework to serve IO smaller than `logical_block`, down to this many bytes, by
    /// read-modify-write. `None`: such IO is refused.
    pub sub_block: Option<u32>,
    /// What it offers beside read and write.
    pub caps: Capabilities,
}

impl DeviceInfo {
    /// Largest capacity that is accepted, in bytes (what a signed file offset can name).
    pub const CAPACITY_MAX: u64 = i64::MAX as u64 & !0xffff;
    /// Largest logical block that is accepted, in bytes.
    pub const BLOCK_MAX: u32 = 64 << 10;

    /// A plain disk: no volatile cache, nothing beside read and write, 32 MiB transfers.
    pub const fn new(capacity: u64, logical_block: u32) -> Self {
        Self {
            capacity,
            logical_block,
            optimal_block: if logical_block > 4096 {
                logical_block
            } else {
                4096
            },
            transfer_max: 32 << 20,
            zeroes_max: 1 << 40,
            memory_align: 1,
            sub_block: None,
            caps: Capabilities {
                volatile_cache: false,
                fua: Support::None,
                write_zeroes: Support::None,
                fast_zeroes: false,
                discard: Support::None,
                discard_reads: DiscardReads::OldOrZero,
                prefetch: Support::None,
                allocation: false,
                read_only: false,
            },
        }
    }

    /// The same with other capabilities.
    #[must_use]
    pub fn with_caps(mut self, set: impl FnOnce(&mut Capabilities)) -> Self {
        set(&mut self.caps);
        self
    }

    /// The whole disk as an extent.
    pub const fn extent(&self) -> Extent {
        Extent::new(0, self.capacity)
    }

    /// Says what is wrong with these numbers, if anything: every device and every
    /// [`Filter::shape`](crate::Filter::shape) is checked with it before use.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) naming the first number that is wrong.
    pub fn validate(&self) -> Result<()> {
        let bad = |what: &str, value: u64| {
            Err(crate::Error::config(format!(
                "device says {what}, value={value}"
            )))
        };
        let block = self.logical_block;
        if !block.is_power_of_two() || !(512..=Self::BLOCK_MAX).contains(&block) {
            return bad(
                "a logical block that is not a power of two from 512 to 65536",
                block.into(),
            );
        }
        if !self.optimal_block.is_power_of_two() || self.optimal_block < block {
            return bad(
                "an optimal block that is not a power of two of whole blocks",
                self.optimal_block.into(),
            );
        }
        if !self.capacity.is_multiple_of(block.into()) || self.capacity > Self::CAPACITY_MAX {
            return bad(
                "a capacity that is not whole blocks or too large",
                self.capacity,
            );
        }
        if self.transfer_max == 0 || !self.transfer_max.is_multiple_of(block) {
            return bad(
                "a largest transfer that is not whole blocks",
                self.transfer_max.into(),
            );
        }
        if self.zeroes_max == 0 || !self.zeroes_max.is_multiple_of(block.into()) {
            return bad(
                "a largest write-zeroes that is not whole blocks",
                self.zeroes_max,
            );
        }
        if !self.memory_align.is_power_of_two() {
            return bad(
                "a memory alignment that is not a power of two",
                self.memory_align.into(),
            );
        }
        if self
            .sub_block
            .is_some_and(|sub| !sub.is_power_of_two() || sub < 512 || sub > block)
        {
            return bad(
                "a sub-block that is no power of two below the block",
                self.sub_block.unwrap_or(0).into(),
            );
        }
        Ok(())
    }
}

/// A disk: the lower device of a filter, the backing of a stack.
///
/// Implement it for your own storage; a host hands it to [`Disk::builder`](crate::Disk::builder).
/// Wrappers should carry `#[deny(clippy::missing_trait_methods)]`.
#[async_trait]
pub trait BlockDevice: fmt::Debug + Send + Sync + 'static {
    /// What the device looks like. Cheap; constant while attached.
    fn info(&self) -> DeviceInfo;

    /// Does one IO.
    ///
    /// # Contract
    /// **Validation.** The caller (a port, `Next` or `Lower`) has checked alignment, bounds,
    /// operation, size limits and payload length. Devices assert, they do not check again.
    ///
    /// **Laziness and cancellation.** Nothing happens before the first poll. After it the caller
    /// polls to completion: the framework adopts an IO whose caller lets go, so a device never
    /// sees a half-polled IO dropped while the disk lives.
    ///
    /// **Concurrency.** Any number at once, from any thread; never block the thread.
    ///
    /// **Replies.** Exactly one: [`Reply::Data`] of the exact length for a read, else
    /// [`Reply::Done`].
    ///
    /// # Ordering
    /// None between IOs in flight together. Overlapping writes in flight together: each logical
    /// block ends as one of them.
    ///
    /// # Durability
    /// A flush covers every write, write-zeroes and discard whose success was returned before the
    /// flush was submitted, and nothing else. `fua` makes that IO durable at its ack; it covers
    /// only itself and is no barrier. What is neither may be lost in a crash, whole or in part,
    /// in any subset of logical blocks; a logical block is never mixed.
    ///
    /// # Errors
    /// A failed write leaves each block old or new, and it stays undecided until overwritten or
    /// read after recovery. A failed flush guarantees nothing.
    async fn submit(&self, io: Io) -> Result<Reply>;

    /// Which parts of `range` hold data, are holes, or read as zeroes.
    ///
    /// "All data" is always a true answer; a hole may be reported as data, never the reverse.
    /// What this tells is a moment's truth: a write in flight may change it.
    ///
    /// # Errors
    /// As the device's reads.
    async fn allocation(&self, range: Extent) -> Result<AllocationMap>;
}

/// Costs nothing: the device's own futures are passed on, in no box of their own.
#[deny(clippy::missing_trait_methods)]
impl<T: BlockDevice + ?Sized> BlockDevice for Arc<T> {
    fn info(&self) -> DeviceInfo {
        (**self).info()
    }

    fn submit<'a, 'f>(&'a self, io: Io) -> BoxFuture<'f, Result<Reply>>
    where
        'a: 'f,
        Self: 'f,
    {
        (**self).submit(io)
    }

    fn allocation<'a, 'f>(&'a self, range: Extent) -> BoxFuture<'f, Result<AllocationMap>>
    where
        'a: 'f,
        Self: 'f,
    {
        (**self).allocation(range)
    }
}
