//! [`WriteBackFactory`]: what the cache says of itself, and how an instance comes to be.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64},
};

use async_trait::async_trait;
use vaio_core::{
    AttachContext, BlockDevice, BypassSafety, Class, Descriptor, DeviceNeed, Error, Filter,
    FilterFactory, FlushRetry, OpKind, Promise, Result, SettingKind, SettingSpec,
    sync::{Notify, RangeLock},
};

use super::{
    super::ordered::Replica, CACHE_DEVICE, Cache, NAME, WriteBack, destage, log::Log,
    record::Geometry, recover, store::Store,
};
use crate::zoo::Bug;

/// Slots of its own IO below: a batch writes at most so many extents together.
const RESERVED_SLOTS: u16 = 4;
const DEVICES: &[DeviceNeed] = &[DeviceNeed {
    name: CACHE_DEVICE,
    capacity_min: 2048,
}];

const SETTINGS: &[SettingSpec] = &[SettingSpec::new(
    CACHE_DEVICE,
    SettingKind::Path,
    CACHE_DEVICE,
    "Device that holds the log",
)];

/// Makes [`WriteBack`] instances.
#[derive(Clone, Debug)]
pub struct WriteBackFactory {
    promise: Promise,
    slots: u64,
    slot_blocks: u64,
    bug: Option<Bug>,
}

impl WriteBackFactory {
    /// A cache with a log of `slots` slots (at least 1) of up to `slot_blocks` data blocks (at
    /// least 1) each. `promise` is [`Promise::AtAck`] or [`Promise::AtFlush`].
    ///
    /// # Panics
    /// For numbers or a promise other than those.
    pub fn new(promise: Promise, slots: u64, slot_blocks: u64) -> Self {
        assert!(slots > 0 && slot_blocks > 0, "a log has slots");
        assert!(
            matches!(promise, Promise::AtAck | Promise::AtFlush),
            "a cache keeps no order"
        );
        Self {
            promise,
            slots,
            slot_blocks,
            bug: None,
        }
    }

    /// Three slots of two blocks: wraps, fills and splits within three writes.
    pub fn tiny(promise: Promise) -> Self {
        Self::new(promise, 3, 2)
    }

    /// The same with a bug of the zoo in it.
    #[must_use]
    pub fn with_bug(mut self, bug: Bug) -> Self {
        self.bug = Some(bug);
        self
    }

    /// Bytes that the cache device needs for blocks of `block` bytes.
    pub const fn device_len(&self, block: u64) -> u64 {
        self.geometry(block).device_len()
    }

    const fn geometry(&self, block: u64) -> Geometry {
        Geometry {
            block,
            slots: self.slots,
            slot_blocks: self.slot_blocks,
        }
    }
}

#[async_trait]
impl FilterFactory for WriteBackFactory {
    fn descriptor(&self) -> Descriptor {
        let bypass = match self.bug {
            Some(Bug::BypassWhileDirty) => BypassSafety::WhenClean,
            _ => BypassSafety::Never,
        };
        Descriptor::new(NAME, env!("CARGO_PKG_VERSION"), Class::Cache)
            .with_summary("Write-back cache over a log; a model and a subject of the testkit.")
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
            .with_promise(self.promise)
            .with_flush_retry(FlushRetry::Covers)
            .with_bypass(bypass)
            .with_reserved_slots(RESERVED_SLOTS)
            .with_devices(DEVICES)
            .with_settings(SETTINGS)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let device = cx.device(CACHE_DEVICE)?;
        self.open_over(cx, device, None).await
    }
}

impl WriteBackFactory {
    /// Opens an instance with its log on `device`.
    pub(in crate::twins) async fn open_over(
        &self,
        cx: AttachContext,
        device: Arc<dyn BlockDevice>,
        replica: Option<Replica>,
    ) -> Result<Arc<dyn Filter>> {
        let block = u64::from(cx.below().logical_block);
        let geometry = self.geometry(block);
        let info = device.info();
        if u64::from(info.logical_block) != block || info.capacity < geometry.device_len() {
            return Err(Error::config(format!(
                "the cache device needs the disk's logical block and room for the log, \
                 logical_block={block} capacity_min={}",
                geometry.device_len()
            )));
        }
        let rt = Arc::clone(cx.rt());
        let mut store = Store::new(device, rt, geometry, self.bug);
        let tail = recover::open(&cx, &mut store, replica.as_ref(), self.bug).await?;
        let cache = Arc::new(Cache {
            promise: self.promise,
            bug: self.bug,
            store,
            replica,
            log: Mutex::new(Log::new(self.slots, block, tail, self.bug)),
            ranges: RangeLock::default(),
            demand: Mutex::default(),
            wanted: Notify::default(),
            ended: Notify::default(),
            is_write_through: AtomicBool::new(false),
            hold: Mutex::new(None),
            written_end: AtomicU64::new(u64::MAX),
            cx,
        });
        cache
            .cx
            .spawn("write_back.destage", destage::run(Arc::clone(&cache)));
        Ok(Arc::new(WriteBack { cache }))
    }
}
