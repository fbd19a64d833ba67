//! The cache device in blocks.

use std::sync::Arc;

use bytes::Bytes;
use vaio_core::{BlockDevice, BlockDeviceExt, Error, Result};

use crate::{
    geometry::{At, Geometry},
    superblock::{CACHE_FORMAT_VERSION, Superblock},
};

/// Any [`BlockDevice`]: a file, a partition, a mirror of two.
#[derive(Debug)]
pub(crate) struct CacheDevice {
    below: Arc<dyn BlockDevice>,
    geometry: Geometry,
}

impl CacheDevice {
    /// # Errors
    /// A device with a larger logical block than the disk's.
    pub(crate) fn new(below: Arc<dyn BlockDevice>, geometry: Geometry) -> Result<Self> {
        let block = below.info().logical_block;
        if !geometry.block.is_multiple_of(block) {
            return Err(Error::config(format!(
                "the cache device has a larger logical block than the disk, \
                 cache_logical_block={block} logical_block={}",
                geometry.block
            )));
        }
        Ok(Self { below, geometry })
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(crate) async fn read(&self, at: At, blocks: u64) -> Result<Bytes> {
        let (offset, len) = (self.geometry.offset(at), self.geometry.bytes(blocks));
        self.below.read(offset, len).await
    }

    pub(crate) async fn write(&self, at: At, bytes: Bytes) -> Result<()> {
        self.below.write(self.geometry.offset(at), bytes).await
    }

    pub(crate) async fn flush(&self) -> Result<()> {
        self.below.flush().await
    }

    /// The superblock that counts, if there is one.
    ///
    /// # Errors
    /// There is one of another version (S3).
    pub(crate) async fn read_superblock(&self) -> Result<Option<Superblock>> {
        let mut found = None;
        for generation in 0..2 {
            let at = self.geometry.superblock_at(generation);
            let bytes = self.read(at, self.geometry.header.into()).await?;
            if let Some(other) = Superblock::other_version(&bytes) {
                return Err(Error::config(format!(
                    "the cache device has a log in a format of another version, version={other} \
                     known={CACHE_FORMAT_VERSION}: open it with the version of vaio that wrote it"
                )));
            }
            found = Superblock::newer(found, Superblock::decode(&bytes));
        }
        Ok(found)
    }

    pub(crate) async fn write_superblock(&self, superblock: &Superblock) -> Result<()> {
        let at = self.geometry.superblock_at(superblock.generation);
        self.write(at, superblock.encode()).await
    }
}
