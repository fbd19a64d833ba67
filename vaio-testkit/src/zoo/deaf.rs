//! [`FirstFlushLost`]: a device that answers a flush that comes first of all and does nothing.
//!
//! The framework flushes every lower device before an unclean open, so no filter can forget to.
//! This takes that flush away, to show that the kit would see it: wrap the backing at each open but
//! the first.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use async_trait::async_trait;
use vaio_core::{AllocationMap, BlockDevice, DeviceInfo, Extent, Io, Op, Reply, Result};

/// The wrapper.
#[derive(Debug)]
pub struct FirstFlushLost {
    device: Arc<dyn BlockDevice>,
    is_awake: AtomicBool,
}

impl FirstFlushLost {
    /// Wraps a device.
    pub const fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self {
            device,
            is_awake: AtomicBool::new(false),
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlockDevice for FirstFlushLost {
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        let is_first = !self.is_awake.swap(true, Relaxed);
        if is_first && io.op == Op::Flush {
            return Ok(Reply::Done);
        }
        self.device.submit(io).await
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        self.device.allocation(range).await
    }
}
