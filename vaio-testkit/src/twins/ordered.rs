//! An ordered replicator: at every moment, and after a crash at any moment, the replica alone
//! equals the disk as it was after some prefix of its acknowledged writes.
//!
//! It is the [write-back cache](super::write_back) with a second place to destage to. The log
//! gives each write its place in the order; what order adds to a cache is:
//!
//! * P1: records go to the replica one by one, each written and flushed before the next. What a
//!   crash leaves of the one in between is the write itself, half done, which is a legal cut.
//! * P2: the durable tail follows each record. Recovery may apply a record again that is the
//!   newest on the replica, never an older one: that would take the replica to a state it never
//!   was in. So it is in recovery too, which may be cut short itself.
//! * P3: nothing is applied that the log could still lose: the log is flushed first, else the
//!   replica would be ahead of the disk.
//! * P4: writes enter the log one at a time, and a write that failed gives its number back, so that
//!   an acknowledged durable record never lies behind a gap; recovery stops at a gap, because what
//!   is behind it was written later than what is missing.
//! * P5: source and replica get the same records in the same order, so overlapping writes have the
//!   same winner.
//!
//! The replica that does not take a write stops the log, and the disk when the log is full: a twin
//! has no second log for what it missed.

use std::sync::Arc;

use async_trait::async_trait;
use vaio_core::{
    AttachContext, BlockDevice, BlockDeviceExt, BypassSafety, Class, Descriptor, DeviceNeed, Error,
    Extent, Filter, FilterFactory, FlushRetry, Lower, OpKind, Promise, Result, SettingKind,
    SettingSpec, zeroes,
};

use super::write_back::{Content, WriteBackFactory, index};
use crate::zoo::Bug;

/// Name of the filter.
pub const NAME: &str = "twin-ordered";
/// The device that holds the log.
pub const JOURNAL_DEVICE: &str = "journal";
/// The device that is kept a prefix.
pub const REPLICA_DEVICE: &str = "replica";

const DEVICES: &[DeviceNeed] = &[
    DeviceNeed {
        name: JOURNAL_DEVICE,
        capacity_min: 2048,
    },
    DeviceNeed {
        name: REPLICA_DEVICE,
        capacity_min: 512,
    },
];

const SETTINGS: &[SettingSpec] = &[
    SettingSpec::new(
        JOURNAL_DEVICE,
        SettingKind::Path,
        JOURNAL_DEVICE,
        "Device that holds the log",
    ),
    SettingSpec::new(
        REPLICA_DEVICE,
        SettingKind::Path,
        REPLICA_DEVICE,
        "Device that is kept a prefix of the disk",
    ),
];

/// Bytes copied at once when the replica joins.
const COPY_MAX: u64 = 64 << 10;

/// The replica as the log sees it.
#[derive(Debug)]
pub(super) struct Replica {
    device: Arc<dyn BlockDevice>,
    bug: Option<Bug>,
}

impl Replica {
    pub(super) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Applies one record, durably (P1).
    pub(super) async fn apply(&self, pieces: &[(Extent, Content)]) -> Result<()> {
        for (extent, content) in pieces {
            let applied = self.write(*extent, content).await;
            if !self.has(Bug::ReplicaErrorForgotten) {
                applied?;
            }
        }
        if self.has(Bug::StepNotFlushed) {
            return Ok(());
        }
        self.device.flush().await
    }

    async fn write(&self, extent: Extent, content: &Content) -> Result<()> {
        for part in extent.split(self.device.info().transfer_max.into()) {
            let data = content.bytes_of(extent, part);
            self.device.write(part.offset(), data).await?;
        }
        Ok(())
    }

    /// Makes the replica a copy, before it is promised to be one.
    pub(super) async fn copy_from(&self, lower: &Lower) -> Result<()> {
        let info = self.device.info();
        let part_max = COPY_MAX.min(info.transfer_max.into());
        for part in lower.info().extent().split(part_max) {
            let data = lower.read(part.offset(), part.len()).await?;
            debug_assert_eq!(data.len(), zeroes(index(part.len())).len());
            self.device.write(part.offset(), data).await?;
        }
        self.device.flush().await
    }
}

/// Makes instances of the replicator.
#[derive(Clone, Debug)]
pub struct OrderedFactory {
    log: WriteBackFactory,
    bug: Option<Bug>,
}

impl OrderedFactory {
    /// A replicator with a log of `slots` slots of up to `slot_blocks` data blocks each; limits
    /// as [`WriteBackFactory::new`].
    pub fn new(slots: u64, slot_blocks: u64) -> Self {
        Self {
            log: WriteBackFactory::new(Promise::AtFlush, slots, slot_blocks),
            bug: None,
        }
    }

    /// Three slots of two blocks.
    pub fn tiny() -> Self {
        Self::new(3, 2)
    }

    /// The same with a bug of the zoo in it.
    #[must_use]
    pub fn with_bug(mut self, bug: Bug) -> Self {
        self.log = self.log.with_bug(bug);
        self.bug = Some(bug);
        self
    }

    /// Bytes that the journal needs for blocks of `block` bytes.
    pub const fn journal_len(&self, block: u64) -> u64 {
        self.log.device_len(block)
    }
}

#[async_trait]
impl FilterFactory for OrderedFactory {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new(NAME, env!("CARGO_PKG_VERSION"), Class::Replicate)
            .with_summary("Keeps a replica that is always a prefix; a model of the testkit.")
            .intercept(&[
                OpKind::Read,
                OpKind::Write,
                OpKind::WriteZeroes,
                OpKind::Discard,
                OpKind::Flush,
            ])
            .pass(&[OpKind::Prefetch])
            .accept_fua()
            .accept_zeroes_flags()
            .with_promise(Promise::Ordered)
            .with_flush_retry(FlushRetry::Covers)
            .with_bypass(BypassSafety::Never)
            .with_reserved_slots(4)
            .with_devices(DEVICES)
            .with_settings(SETTINGS)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let device = cx.device(REPLICA_DEVICE)?;
        let (info, below) = (device.info(), *cx.below());
        if info.logical_block != below.logical_block || info.capacity < below.capacity {
            return Err(Error::config(format!(
                "the replica needs the disk's logical block and capacity, \
                 logical_block={} capacity_min={}",
                below.logical_block, below.capacity
            )));
        }
        let journal = cx.device(JOURNAL_DEVICE)?;
        let replica = Replica {
            device,
            bug: self.bug,
        };
        self.log.open_over(cx, journal, Some(replica)).await
    }
}
