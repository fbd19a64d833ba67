//! [`StagingFactory`]: what the filter says of itself, and how an instance comes to be.

use std::sync::Arc;

use async_trait::async_trait;
use vaio_core::{
    AttachContext, BypassSafety, Class, Descriptor, DeviceNeed, Filter, FilterFactory, FlushRetry,
    OpKind, Promise, Result, SettingKind, SettingSpec,
};

use crate::{
    device::Device,
    filter::{Staging, StagingFilter},
    mover,
    record::Geometry,
    recovery,
    sheets::Sheets,
};

/// The staging device, in needs and settings.
pub const STAGING_DEVICE: &str = "staging";

/// Slots of its own IO below: a move writes at most so many extents together.
const RESERVED_SLOTS: u16 = 4;
const DEVICES: &[DeviceNeed] = &[DeviceNeed {
    name: STAGING_DEVICE,
    capacity_min: 2048,
}];
const SETTINGS: &[SettingSpec] = &[SettingSpec::new(
    STAGING_DEVICE,
    SettingKind::Path,
    STAGING_DEVICE,
    "Device that holds the sheets",
)];

/// Makes instances of the filter.
///
/// ```
/// use vendor_filter::StagingFactory;
///
/// let factory = StagingFactory::default();
/// assert_eq!(factory.device_blocks(), 2 * (1 + 256 * (1 + 16)));
/// ```
#[derive(Clone, Debug)]
pub struct StagingFactory {
    records: usize,
    record_blocks: u64,
}

impl Default for StagingFactory {
    /// Two sheets of 256 records of up to 16 blocks.
    fn default() -> Self {
        Self::new(256, 16)
    }
}

impl StagingFactory {
    /// Two sheets of `records` records (at least 1) of up to `record_blocks` data blocks (at least
    /// 1) each.
    ///
    /// # Panics
    /// For a number that is 0.
    pub fn new(records: usize, record_blocks: u64) -> Self {
        assert!(records > 0 && record_blocks > 0, "a sheet has records");
        Self {
            records,
            record_blocks,
        }
    }

    /// Logical blocks that the staging device needs.
    pub fn device_blocks(&self) -> u64 {
        self.geometry(1).device_len()
    }

    const fn geometry(&self, block: u64) -> Geometry {
        Geometry {
            block,
            records: self.records,
            record_blocks: self.record_blocks,
        }
    }
}

#[async_trait]
impl FilterFactory for StagingFactory {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new("staging", env!("CARGO_PKG_VERSION"), Class::Cache)
            .with_summary("Answers writes from a fast device and moves them to the backing later.")
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
            .with_promise(Promise::AtFlush)
            .with_flush_retry(FlushRetry::Covers)
            .with_bypass(BypassSafety::Never)
            .with_reserved_slots(RESERVED_SLOTS)
            .with_devices(DEVICES)
            .with_settings(SETTINGS)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let block = u64::from(cx.below().logical_block);
        let device = Device::new(cx.device(STAGING_DEVICE)?, self.geometry(block), cx.epoch())?;
        let generations = recovery::open(&cx, &device).await?;
        let sheets = Sheets::new(self.records, block, generations);
        let staging = Arc::new(Staging::new(cx, device, sheets));
        staging
            .cx
            .spawn("staging.move", mover::run(Arc::clone(&staging)));
        Ok(Arc::new(StagingFilter(staging)))
    }
}
