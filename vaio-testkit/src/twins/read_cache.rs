//! A read cache in memory. Writes go through; what was read stays, to be answered again.
//!
//! * C1: a fill and a change of the same blocks never overlap ([`RangeLock`]): a read that misses
//!   holds its extent shared from before it asks below until the answer is kept; whatever changes
//!   content holds it alone from before it is sent until it ended.
//! * C2: what may change is forgotten *before* it is sent, and nothing is kept of it: after an
//!   error, or when the caller lets go, the disk below alone knows what is there.
//! * C3: it holds nothing that the disk lacks, and a write is never answered by it: it can be left
//!   out at any time, and its future can be dropped at any await. A write that was let go of is
//!   still in flight below, where the framework fences its range: a read waits there, so nothing
//!   older than its outcome can be kept.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use vaio_core::{
    AllocationMap, AttachContext, BypassSafety, Class, Content, Descriptor, DeviceInfo, Error,
    Extent, Filter, FilterFactory, Io, Lifecycle, Next, Op, OpKind, Outcome, Phase, Promise, Reply,
    Result, Verb,
    sync::{LockMode, RangeLock},
};

use crate::zoo::Bug;

/// Name of the filter.
pub const NAME: &str = "twin-read-cache";

/// The filter.
#[derive(Debug)]
pub struct ReadCache {
    block: u64,
    blocks_max: usize,
    kept: Mutex<BTreeMap<u64, Bytes>>,
    ranges: RangeLock,
    bug: Option<Bug>,
}

#[async_trait]
impl Filter for ReadCache {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        match io.op {
            Op::Read { extent } => self.read(io, extent, next).await,
            Op::WriteZeroes { .. } if self.bug == Some(Bug::ZeroesKeepCached) => {
                next.submit(io).await
            }
            Op::Write { .. } | Op::WriteZeroes { .. } | Op::Discard { .. } => {
                self.change(io, next).await
            }
            _ => Err(Error::unsupported(io.op.kind())),
        }
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, event: Lifecycle<'_>) -> Result<Outcome> {
        if matches!(event.verb, Verb::Resize { .. }) && event.phase == Phase::Commit {
            self.kept().clear();
        }
        Ok(Outcome::Done)
    }

    fn allocation(&self, below: AllocationMap) -> AllocationMap {
        below
    }
}

impl ReadCache {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<u64, Bytes>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, io: Io, extent: Extent, next: Next<'_>) -> Result<Reply> {
        // C1.
        let _fill = match self.bug {
            Some(Bug::FillUnlocked) => None,
            _ => Some(self.ranges.lock(extent, LockMode::Shared).await),
        };
        if let Some(data) = self.find(extent) {
            return Ok(Reply::Data(data));
        }
        let data = next.submit(io).await?.into_data();
        self.keep(extent, &data);
        Ok(Reply::Data(data))
    }

    async fn change(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        let extent = io.op.extent();
        let _change = match self.bug {
            Some(Bug::FillUnlocked) => None,
            _ => Some(self.ranges.lock(extent, LockMode::Exclusive).await),
        };
        // C2.
        self.forget(extent);
        next.submit(io).await
    }

    /// The whole extent, if every block of it is kept.
    fn find(&self, extent: Extent) -> Option<Bytes> {
        let kept = self.kept();
        let mut data = BytesMut::new();
        for block in self.blocks(extent) {
            data.extend_from_slice(kept.get(&block)?);
        }
        Some(data.freeze())
    }

    fn keep(&self, extent: Extent, data: &Bytes) {
        let mut kept = self.kept();
        let len = usize::try_from(self.block).expect("a logical block fits into memory");
        for (index, block) in self.blocks(extent).enumerate() {
            if kept.len() >= self.blocks_max && !kept.contains_key(&block) {
                kept.pop_first();
            }
            kept.insert(block, data.slice(index * len..(index + 1) * len));
        }
        debug_assert!(kept.len() <= self.blocks_max, "a bounded cache");
    }

    fn forget(&self, extent: Extent) {
        let mut blocks = self.blocks(extent);
        if self.bug == Some(Bug::ForgetsFirstBlockOnly) {
            blocks.end = blocks.end.min(blocks.start + 1);
        }
        let mut kept = self.kept();
        for block in blocks {
            kept.remove(&block);
        }
    }

    fn blocks(&self, extent: Extent) -> std::ops::Range<u64> {
        extent.offset() / self.block..extent.end().div_ceil(self.block)
    }
}

/// Makes [`ReadCache`] instances.
#[derive(Clone, Debug)]
pub struct ReadCacheFactory {
    blocks_max: usize,
    bug: Option<Bug>,
}

impl ReadCacheFactory {
    /// A cache of up to `blocks_max` blocks (at least 1).
    ///
    /// # Panics
    /// For none.
    pub const fn new(blocks_max: usize) -> Self {
        assert!(blocks_max > 0, "a cache keeps something");
        Self {
            blocks_max,
            bug: None,
        }
    }

    /// Three blocks: evicts within four reads.
    pub const fn tiny() -> Self {
        Self::new(3)
    }

    /// The same with a bug of the zoo in it.
    #[must_use]
    pub const fn with_bug(mut self, bug: Bug) -> Self {
        self.bug = Some(bug);
        self
    }
}

#[async_trait]
impl FilterFactory for ReadCacheFactory {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new(NAME, env!("CARGO_PKG_VERSION"), Class::Cache)
            .with_summary("Keeps what was read; a model of the testkit.")
            .intercept(&[
                OpKind::Read,
                OpKind::Write,
                OpKind::WriteZeroes,
                OpKind::Discard,
            ])
            .pass(&[OpKind::Flush, OpKind::Prefetch])
            .accept_fua()
            .accept_zeroes_flags()
            .with_content(Content::Unchanged)
            .with_bypass(BypassSafety::WhenClean)
            .with_promise(Promise::AtFlush)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        Ok(Arc::new(ReadCache {
            block: cx.below().logical_block.into(),
            blocks_max: self.blocks_max,
            kept: Mutex::default(),
            ranges: RangeLock::default(),
            bug: self.bug,
        }))
    }
}
