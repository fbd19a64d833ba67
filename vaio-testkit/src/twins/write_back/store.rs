//! The cache device: reads and writes of slots and superblock, and what its flush is worth.
//!
//! * S1: a failed flush may have dropped what it should have covered, and no later flush covers
//!   that. So each failure raises [`trust`](Store::trust), and what was written under an older
//!   trust is written again before anyone relies on a flush.
//! * S2: flushes do not overlap, so that "the trust did not change meanwhile" means what it says.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use vaio_core::{
    BlockDevice, BlockDeviceExt, Error, ErrorKind, Extent, Result, Rt, RuntimeExt, sync::Mutex,
};

use super::record::{self, Content, Geometry, Superblock};
use crate::zoo::Bug;

/// How often a write is repeated because other flushes failed in between.
const REWRITES_MAX: u32 = 16;
/// For the bug that gives up waiting: far more than an undisturbed write takes.
const WRITE_PATIENCE: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Store {
    device: Arc<dyn BlockDevice>,
    rt: Rt,
    geometry: Geometry,
    /// Of the records that are written now.
    epoch: u64,
    trust: AtomicU64,
    /// S2.
    flushing: Mutex<()>,
    bug: Option<Bug>,
}

impl Store {
    pub(super) fn new(
        device: Arc<dyn BlockDevice>,
        rt: Rt,
        geometry: Geometry,
        bug: Option<Bug>,
    ) -> Self {
        Self {
            device,
            rt,
            geometry,
            epoch: 0,
            trust: AtomicU64::new(0),
            flushing: Mutex::new(()),
            bug,
        }
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The number of flushes that failed. A write counts as being in the device's cache, to be
    /// covered by the next flush, only while this is what it was at the write's end.
    pub(super) fn trust(&self) -> u64 {
        self.trust.load(Relaxed)
    }

    /// Makes durable what was written under the present trust.
    pub(super) async fn flush(&self) -> Result<()> {
        let _alone = self.flushing.lock().await;
        let result = self.device.flush().await;
        if result.is_err() && self.bug != Some(Bug::FsyncGate) {
            self.trust.fetch_add(1, Relaxed);
        }
        result
    }

    /// All slots of the log, one after another: a twin's log is small.
    pub(super) async fn read_slots(&self) -> Result<Bytes> {
        let len = self.geometry.slots * self.geometry.slot_len();
        self.device.read(self.geometry.offset_of(0), len).await
    }

    pub(super) async fn write_slot(
        &self,
        seq: u64,
        extent: Extent,
        content: &Content,
    ) -> Result<()> {
        let bytes = record::encode(self.geometry.block, self.epoch, seq, extent, content);
        let write = self.device.write(self.geometry.offset_of(seq), bytes);
        if self.bug != Some(Bug::WriteGivenUp) {
            return write.await;
        }
        let deadline = self.rt.now() + WRITE_PATIENCE;
        let answer = self.rt.timeout_at(deadline, write).await;
        answer.unwrap_or_else(|| Err(Error::new(ErrorKind::TimedOut, "the cache device is slow")))
    }

    pub(super) async fn read_superblock(&self) -> Result<Option<Superblock>> {
        let block = self.device.read(0, self.geometry.block).await?;
        Ok(Superblock::decode(&block))
    }

    /// Moves the tail: durable when this returns.
    pub(super) async fn write_tail(&self, tail: u64) -> Result<()> {
        let superblock = Superblock {
            epoch: self.epoch,
            tail,
            geometry: self.geometry,
        };
        for _ in 0..REWRITES_MAX {
            self.device.write(0, superblock.encode()).await?;
            let trust = self.trust();
            if self.bug == Some(Bug::TailNotFlushed) {
                return Ok(());
            }
            self.flush().await?;
            if self.trust() == trust {
                return Ok(());
            }
        }
        Err(too_often())
    }

    /// Goes on with a log that is there.
    pub(super) fn adopt(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    /// Starts the log anew, under an epoch of its own: durable when this returns. Before the
    /// first record.
    pub(super) async fn begin(&mut self, epoch: u64, tail: u64) -> Result<()> {
        self.epoch = epoch;
        if self.bug != Some(Bug::EpochNotDurable) {
            return self.write_tail(tail).await;
        }
        let geometry = self.geometry;
        let superblock = Superblock {
            epoch,
            tail,
            geometry,
        };
        self.device.write(0, superblock.encode()).await
    }
}

/// Every flush is followed by another's that fails: the device is not to be relied on.
pub(super) fn too_often() -> Error {
    Error::new(
        ErrorKind::Io,
        "flushes of the cache device keep failing; replace it",
    )
}
