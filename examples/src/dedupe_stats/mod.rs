//! Estimates how much of what a guest writes is there already: what a deduplicating store could
//! save, before buying one.
//!
//! It looks at writes as they pass, in whole blocks of 4 KiB: what was written since it was
//! attached, not what is on the disk. Zero blocks are counted apart.
//!
//! Invariants: memory is bounded (16 KiB for the estimate, and [`PENDING_BYTES_MAX`] of payloads
//! that wait); a large write is looked at beside the IO thread, and where that falls behind,
//! writes are skipped and counted.

mod sketch;

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use async_trait::async_trait;
use bytes::Bytes;
use vaio_core::{
    AllocationMap, AttachContext, Class, Descriptor, DeviceInfo, Error, Filter, FilterFactory,
    FilterState, Hooks, Io, Lifecycle, Next, Op, OpKind, Outcome, Reply, Result, Rt, Verdict,
};

use sketch::Sketch;

/// Unit of comparison in bytes.
pub const BLOCK: usize = 4096;
/// Writes up to this size are looked at on the IO thread; a few microseconds.
const INLINE_BYTES_MAX: usize = 64 << 10;
/// Payloads that wait to be looked at, in bytes. What is beyond is skipped.
pub const PENDING_BYTES_MAX: u64 = 64 << 20;

/// What was seen so far.
#[derive(Debug, Default)]
struct Seen {
    sketch: Mutex<Sketch>,
    blocks: AtomicU64,
    zero_blocks: AtomicU64,
    skipped_bytes: AtomicU64,
    pending_bytes: AtomicU64,
}

impl Seen {
    /// Looks at the whole blocks of a write.
    fn look(&self, offset: u64, data: &[u8]) {
        let block = BLOCK as u64;
        let head = usize::try_from(offset.next_multiple_of(block) - offset).unwrap_or(0);
        let Some(aligned) = data.get(head..) else {
            return;
        };
        for content in aligned.chunks_exact(BLOCK) {
            if content.iter().all(|byte| *byte == 0) {
                self.zero_blocks.fetch_add(1, Relaxed);
                continue;
            }
            let checksum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, content);
            self.sketch
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .add(checksum);
            self.blocks.fetch_add(1, Relaxed);
        }
    }
}

/// The filter.
#[derive(Debug)]
pub struct DedupeStats {
    rt: Rt,
    seen: Arc<Seen>,
}

#[async_trait]
impl Filter for DedupeStats {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        match &io.op {
            Op::Write { offset, data, .. } => {
                self.look(*offset, data);
                next.submit(io).await
            }
            other => Err(Error::unsupported(other.kind())),
        }
    }

    fn hooks(self: Arc<Self>) -> Option<Arc<dyn Hooks>> {
        Some(self)
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }

    fn state(&self) -> FilterState {
        let seen = &self.seen;
        let blocks = seen.blocks.load(Relaxed);
        let sketch = seen.sketch.lock().unwrap_or_else(PoisonError::into_inner);
        let distinct = sketch.estimate().min(blocks);
        let saved = (blocks - distinct) * 100;
        FilterState::default()
            .with_detail("blocks", blocks.to_string())
            .with_detail("zero_blocks", seen.zero_blocks.load(Relaxed).to_string())
            .with_detail("distinct_estimate", distinct.to_string())
            .with_detail(
                "saved_percent",
                saved.checked_div(blocks).unwrap_or(0).to_string(),
            )
            .with_detail(
                "skipped_bytes",
                seen.skipped_bytes.load(Relaxed).to_string(),
            )
    }

    fn allocation(&self, below: AllocationMap) -> AllocationMap {
        below
    }
}

/// It never waits, so no write needs a future of its own here.
impl Hooks for DedupeStats {
    fn before(&self, io: &Io) -> Verdict {
        match &io.op {
            Op::Write { offset, data, .. } => {
                self.look(*offset, data);
                Verdict::Pass
            }
            _ => Verdict::Call,
        }
    }
}

impl DedupeStats {
    /// Never waits.
    fn look(&self, offset: u64, data: &Bytes) {
        if data.len() <= INLINE_BYTES_MAX {
            self.seen.look(offset, data);
            return;
        }
        let len = data.len() as u64;
        if self.seen.pending_bytes.fetch_add(len, Relaxed) + len > PENDING_BYTES_MAX {
            self.seen.pending_bytes.fetch_sub(len, Relaxed);
            self.seen.skipped_bytes.fetch_add(len, Relaxed);
            return;
        }
        let (seen, data) = (Arc::clone(&self.seen), data.clone());
        // Runs to its end without being awaited.
        drop(self.rt.offload(Box::new(move || {
            seen.look(offset, &data);
            seen.pending_bytes.fetch_sub(len, Relaxed);
        })));
    }
}

/// Makes [`DedupeStats`] instances.
#[derive(Debug)]
pub struct DedupeStatsFactory;

#[async_trait]
impl FilterFactory for DedupeStatsFactory {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new("dedupe-stats", env!("CARGO_PKG_VERSION"), Class::Inspect)
            .with_summary("Estimates how much of what is written a deduplicating store would save.")
            .intercept(&[OpKind::Write])
            .pass(&[
                OpKind::Read,
                OpKind::WriteZeroes,
                OpKind::Discard,
                OpKind::Flush,
                OpKind::Prefetch,
            ])
            .accept_fua()
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        Ok(Arc::new(DedupeStats {
            rt: Arc::clone(cx.rt()),
            seen: Arc::default(),
        }))
    }
}
