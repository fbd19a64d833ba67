//! [`CacheFactory`]: what the cache says of itself, and how an instance comes to be.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use async_trait::async_trait;
use vaio_core::{
    AttachContext, BlockDevice, BlockDeviceExt, BypassSafety, Class, Descriptor, DeviceNeed,
    Filter, FilterFactory, FlushRetry, OpKind, OpenReason, Promise, Result,
};

use crate::{
    cache::Cache,
    destage,
    device::CacheDevice,
    filter::CacheFilter,
    geometry::{Geometry, Sizes},
    log::{Limits, Log},
    recover,
    settings::{CACHE_DEVICE, CacheSettings, Durability, Mode, SPECS},
    store,
};

/// Name of the filter.
pub const NAME: &str = "cache";

/// Bytes of zeroes and discards in the log that the backing lacks: 32 MiB of the map in memory. More
/// go at the pace of the backing, as where the log is full.
const DIRTY_ZEROES_MAX: u64 = 8 << 30;

const DEVICES: &[DeviceNeed] = &[DeviceNeed {
    name: CACHE_DEVICE,
    capacity_min: 8 << 10,
}];

/// Makes instances of the cache.
///
/// ```
/// use vaio_cache::CacheFactory;
/// use vaio_core::{FilterFactory, Promise};
///
/// let descriptor = CacheFactory::default().descriptor();
/// assert_eq!(descriptor.name, "cache");
/// assert_eq!(descriptor.promise, Some(Promise::AtFlush));
/// ```
#[derive(Clone, Debug, Default)]
pub struct CacheFactory {
    sizes: Sizes,
    durability: Durability,
}

impl CacheFactory {
    /// The same with a log of other sizes: a few blocks, so that a test wraps it.
    #[must_use]
    pub const fn with_sizes(mut self, sizes: Sizes) -> Self {
        self.sizes = sizes;
        self
    }

    /// The same for disks that are all opened with this durability: the descriptor promises it,
    /// and the setting cannot weaken it.
    #[must_use]
    pub const fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    fn geometry(
        &self,
        cx: &AttachContext,
        device: &dyn BlockDevice,
        settings: &CacheSettings,
    ) -> Result<Geometry> {
        let block = cx.below().logical_block;
        let sizes = self.sizes.with_read_percent(settings.read_percent);
        Geometry::new(block, device.info().capacity, &sizes)
    }

    fn settings(&self, cx: &AttachContext) -> CacheSettings {
        let mut settings = CacheSettings::of(cx.settings());
        if self.durability == Durability::AtAck {
            settings.durability = Durability::AtAck;
        }
        settings
    }
}

#[async_trait]
impl FilterFactory for CacheFactory {
    fn descriptor(&self) -> Descriptor {
        let promise = match self.durability {
            Durability::AtFlush => Promise::AtFlush,
            Durability::AtAck => Promise::AtAck,
        };
        Descriptor::new(NAME, env!("CARGO_PKG_VERSION"), Class::Cache)
            .with_summary("Write-back cache over an ordered, checksummed log.")
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
            .with_promise(promise)
            .with_flush_retry(FlushRetry::Covers)
            .with_bypass(BypassSafety::Never)
            .with_reserved_slots(destage::DEPTH)
            .with_devices(DEVICES)
            .with_settings(SPECS)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        // The framework has parsed them; the device is looked at when it is open.
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let settings = self.settings(&cx);
        let device = cx.device(CACHE_DEVICE)?;
        let geometry = self.geometry(&cx, &*device, &settings)?;
        let device = CacheDevice::new(device, geometry)?;
        let limits = Limits {
            unflushed_bytes_max: settings.unflushed_bytes_max,
            cut_bytes_max: settings.cut_bytes_max,
            dirty_bytes_max: geometry.bytes(geometry.blocks()) + DIRTY_ZEROES_MAX,
        };
        if cx.reason() != OpenReason::Unclean {
            // What went past the log before is durable before anything is destaged over it.
            cx.lower().flush().await?;
        }
        let opened = recover::open(&cx, &device, limits, settings.discard_dirty).await?;
        let log = Log::new(opened.start);
        let is_write_back = settings.mode == Mode::WriteBack;
        let identity = (opened.identity, opened.generation);
        let cache = Arc::new(Cache::new(cx, settings, device, log, identity));
        if opened.is_crowded || !is_write_back {
            cache.drain().await?;
        }
        cache.is_bypassed.store(!is_write_back, Relaxed);
        cache
            .cx
            .spawn("cache.destage", destage::run(Arc::clone(&cache)));
        if cache.store.is_there() {
            cache.cx.spawn("cache.fill", store::run(Arc::clone(&cache)));
        }
        Ok(Arc::new(CacheFilter(cache)))
    }
}
