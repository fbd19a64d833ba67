//! [`BlockDeviceExt`]: typed sugar over [`BlockDevice::submit`]. No one implements it.

use std::future::Future;

use bytes::Bytes;

use crate::{BlockDevice, Extent, Io, Result};

/// Typed calls on any [`BlockDevice`]. Each is one [`Io`] of the guest's origin, with the
/// contract of [`BlockDevice::submit`].
pub trait BlockDeviceExt: BlockDevice {
    /// Reads `len` bytes at `offset`.
    fn read(&self, offset: u64, len: u64) -> impl Future<Output = Result<Bytes>> + Send {
        async move {
            let extent = checked(offset, len)?;
            Ok(self.submit(Io::read(extent)).await?.into_data())
        }
    }

    /// Writes; durable after the next successful flush.
    fn write(
        &self,
        offset: u64,
        data: impl Into<Bytes> + Send,
    ) -> impl Future<Output = Result<()>> + Send {
        async move { self.submit(Io::write(offset, data.into())).await.map(drop) }
    }

    /// Writes; durable when this returns.
    fn write_fua(
        &self,
        offset: u64,
        data: impl Into<Bytes> + Send,
    ) -> impl Future<Output = Result<()>> + Send {
        async move {
            self.submit(Io::write(offset, data.into()).with_fua())
                .await
                .map(drop)
        }
    }

    /// Zeroes `len` bytes; may deallocate them.
    fn write_zeroes(&self, offset: u64, len: u64) -> impl Future<Output = Result<()>> + Send {
        async move {
            let extent = checked(offset, len)?;
            self.submit(Io::write_zeroes(extent)).await.map(drop)
        }
    }

    /// Discards `len` bytes.
    fn discard(&self, offset: u64, len: u64) -> impl Future<Output = Result<()>> + Send {
        async move {
            let extent = checked(offset, len)?;
            self.submit(Io::discard(extent)).await.map(drop)
        }
    }

    /// Makes all completed writes durable.
    fn flush(&self) -> impl Future<Output = Result<()>> + Send {
        async move { self.submit(Io::flush()).await.map(drop) }
    }
}

impl<T: BlockDevice + ?Sized> BlockDeviceExt for T {}

fn checked(offset: u64, len: u64) -> Result<Extent> {
    Extent::checked(offset, len).ok_or_else(|| {
        crate::Error::invalid(format!("extent overflows, offset={offset} len={len}"))
    })
}
