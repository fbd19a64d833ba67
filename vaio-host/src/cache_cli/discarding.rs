//! [`Discarding`]: a device that is read and never changed, for a dry run. Writes and flushes end
//! well and do nothing, so it is only for a user that does not read back what it wrote.

use std::sync::Arc;

use async_trait::async_trait;
use vaio_core::{
    AllocationMap, BlockDevice, DeviceInfo, DeviceProvider, Extent, Io, Op, Reply, Result,
};

#[derive(Debug)]
pub(super) struct Discarding(pub(super) Arc<dyn BlockDevice>);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlockDevice for Discarding {
    fn info(&self) -> DeviceInfo {
        let mut info = self.0.info();
        info.caps.read_only = false;
        info
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        match io.op {
            Op::Read { .. } => self.0.submit(io).await,
            _ => Ok(Reply::Done),
        }
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        self.0.allocation(range).await
    }
}

/// Gives filters their devices so that they change nothing.
#[derive(Debug)]
pub(super) struct DiscardingDevices(pub(super) Arc<dyn DeviceProvider>);

#[async_trait]
impl DeviceProvider for DiscardingDevices {
    async fn open_device(
        &self,
        filter: &str,
        name: &str,
        spec: &str,
    ) -> Result<Arc<dyn BlockDevice>> {
        let device = self.0.open_device(filter, name, spec).await?;
        Ok(Arc::new(Discarding(device)))
    }
}
