//! The staging device: records, stamps, and what its flush is worth.
//!
//! Flushes and stamps come one after another. Whoever sees one fail tells the sheets before the
//! next begins (G4).

use std::sync::Arc;

use bytes::Bytes;
use vaio_core::{
    BlockDevice, BlockDeviceExt, Error, Extent, Result,
    sync::{Mutex, MutexGuard},
};

use crate::record::{self, Content, Geometry, Stamp};

#[derive(Debug)]
pub(crate) struct Device {
    below: Arc<dyn BlockDevice>,
    geometry: Geometry,
    /// Number of this ownership of the disk.
    owner: u64,
    turn: Mutex<()>,
}

/// The right to flush, one at a time.
pub(crate) struct Turn<'a> {
    of: &'a Device,
    _alone: MutexGuard<'a, ()>,
}

impl Device {
    /// # Errors
    /// The device does not fit.
    pub(crate) fn new(
        device: Arc<dyn BlockDevice>,
        geometry: Geometry,
        owner: u64,
    ) -> Result<Self> {
        let info = device.info();
        let fits = u64::from(info.logical_block) == geometry.block
            && info.capacity >= geometry.device_len();
        if !fits {
            return Err(Error::config(format!(
                "the staging device needs the disk's logical block and room for two sheets, \
                 logical_block={} capacity_min={}",
                geometry.block,
                geometry.device_len()
            )));
        }
        Ok(Self {
            below: device,
            geometry,
            owner,
            turn: Mutex::new(()),
        })
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(crate) async fn write_record(
        &self,
        sheet: usize,
        generation: u64,
        place: usize,
        extent: Extent,
        content: &Content,
    ) -> Result<()> {
        let bytes = record::encode(&self.geometry, generation, place, extent, content);
        let at = self.geometry.record_at(sheet, place);
        self.below.write(at, bytes).await
    }

    pub(crate) async fn read_record(&self, sheet: usize, place: usize) -> Result<Bytes> {
        let at = self.geometry.record_at(sheet, place);
        self.below.read(at, self.geometry.record_len()).await
    }

    pub(crate) async fn read_stamp(&self, sheet: usize) -> Result<Option<Stamp>> {
        let at = self.geometry.stamp_at(sheet);
        let block = self.below.read(at, self.geometry.block).await?;
        Ok(record::stamp_of(&block))
    }

    pub(crate) async fn turn(&self) -> Turn<'_> {
        Turn {
            of: self,
            _alone: self.turn.lock().await,
        }
    }
}

impl Turn<'_> {
    pub(crate) async fn flush(&self) -> Result<()> {
        self.of.below.flush().await
    }

    /// Gives a sheet a generation: empty and durable when this returns.
    pub(crate) async fn stamp(&self, sheet: usize, generation: u64) -> Result<()> {
        let at = self.of.geometry.stamp_at(sheet);
        let owner = self.of.owner;
        let block = record::stamp(&self.of.geometry, Stamp { generation, owner });
        self.of.below.write(at, block).await?;
        self.of.below.flush().await
    }
}
