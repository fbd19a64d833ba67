//! A write-back cache over a log on a device of its own.
//!
//! A write is acknowledged when its record is in the log (and, if it has to be durable, the log is
//! flushed); it reaches the backing later, in the background. What makes that safe, and where:
//!
//! * W1: overlapping writes are logged, published and acknowledged one after another
//!   ([`RangeLock`]), so that memory, log and backing agree on who won.
//! * W2: an acknowledged write is in a record that recovery would take, until the backing has it
//!   durably (`record`, `log`, `destage`).
//! * W3: zeroes and discards are records like any write: what is only in memory is forgotten.
//! * W4: a write holds at most one slot that is not yet published, so that the writes that hold
//!   slots can always end, and the tail always move.
//! * W5: a failed flush keeps its duties: what it may have dropped is written again before the
//!   next one counts (`store`), and a failed batch is destaged again as a whole (`destage`).
//!   That is what [`FlushRetry::Covers`](vaio_core::FlushRetry::Covers) says.
//! * W6: what is dirty stays reported until the tail, durable, has passed it (`dirty`).
//!
//! Content of the log is kept in memory too: a few slots. A large cache would read it back, and
//! would then have to keep readers' slots from being reused.

mod broken;
mod destage;
mod dirty;
mod factory;
mod log;
mod record;
mod recover;
mod store;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use vaio_core::{
    AttachContext, DeviceInfo, DirtySource, DiscardReads, Error, Extent, Filter, FilterState, Io,
    Lifecycle, Next, Op, Outcome, Phase, Promise, Reply, Result, Support, Verb,
    sync::{LockMode, Notify, RangeGuard, RangeLock},
};

use super::ordered::Replica;
use crate::zoo::Bug;
use destage::Demand;
pub use factory::WriteBackFactory;
use log::Log;
pub(crate) use record::{Content, index};
use store::Store;

/// Name of the filter.
pub const NAME: &str = "twin-write-back";
/// The cache device, in needs and settings.
pub const CACHE_DEVICE: &str = "cache";

/// Largest write-zeroes or discard taken as one record, in blocks; the framework splits.
const ZEROES_BLOCKS_MAX: u64 = 1024;
/// How often a durable write is repeated because other flushes failed in between.
const REWRITES_MAX: u32 = 16;

/// What one instance is, shared by its IO, its background task and its source of dirty data.
#[derive(Debug)]
pub(super) struct Cache {
    cx: AttachContext,
    promise: Promise,
    bug: Option<Bug>,
    store: Store,
    /// Where each record goes too, in order: see [`ordered`](super::ordered).
    replica: Option<Replica>,
    log: Mutex<Log>,
    /// W1. Reads need none: a block that is not in the log when they look is below, and stays
    /// there while it is overwritten.
    ranges: RangeLock,
    demand: Mutex<Demand>,
    /// Something may be there to destage, or is asked for.
    wanted: Notify,
    /// A batch ended.
    ended: Notify,
    is_write_through: AtomicBool,
    hold: Mutex<Option<Arc<dirty::Hold>>>,
    /// End of the batch whose writes were done last, for the bug that does not do them again.
    written_end: AtomicU64,
}

impl Cache {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn demand(&self) -> MutexGuard<'_, Demand> {
        self.demand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn was_written(&self, end: u64) -> bool {
        self.written_end.load(Relaxed) == end
    }

    fn set_written(&self, end: u64) {
        self.written_end.store(end, Relaxed);
    }

    async fn read(&self, io: Io, extent: Extent, next: Next<'_>) -> Result<Reply> {
        let held = self.log().read(extent);
        if held.is_empty() {
            return next.submit(io).await;
        }
        let mut data = BytesMut::with_capacity(index(extent.len()));
        let mut at = extent.offset();
        for (piece, bytes) in held {
            self.read_below(at, piece.offset(), extent, next, &mut data)
                .await?;
            data.extend_from_slice(&bytes);
            at = piece.end();
        }
        self.read_below(at, extent.end(), extent, next, &mut data)
            .await?;
        Ok(Reply::Data(data.freeze()))
    }

    /// Reads what is between two held pieces of `whole`, if anything.
    async fn read_below(
        &self,
        from: u64,
        to: u64,
        whole: Extent,
        next: Next<'_>,
        data: &mut BytesMut,
    ) -> Result<()> {
        let mut gap = Extent::from_range(from, to);
        if gap.is_empty() {
            return Ok(());
        }
        if self.has(Bug::GapReadAtStart) {
            gap = Extent::new(whole.offset(), gap.len());
        }
        data.extend_from_slice(&next.read(gap).await?);
        Ok(())
    }

    async fn write(&self, extent: Extent, content: Content, is_fua: bool) -> Result<Reply> {
        // W1: held until the answer.
        let _order = self.order(extent).await;
        let is_durable = match self.promise {
            Promise::AtAck => !self.has(Bug::AckBeforeFlush),
            _ => is_fua && !self.has(Bug::FuaIgnored),
        };
        let mut end = 0;
        let mut result = Ok(());
        let mut reserved = self.reserve_early(extent, &content).await?.into_iter();
        for piece in self.pieces(extent, &content) {
            let part = content.part(extent, piece);
            let seq = match reserved.next() {
                Some(seq) => seq,
                None => self.reserve(piece, part).await?,
            };
            end = seq + 1;
            result = self.log_one(seq, is_durable).await;
            if result.is_err() && !self.has(Bug::SplitErrorSwallowed) {
                return result.map(|()| Reply::Done);
            }
        }
        // The last look before the answer: a policy that was set is in force for it.
        if result.is_ok() && self.is_write_through.load(Relaxed) {
            self.destage_to(end).await?;
        }
        result.map(|()| Reply::Done)
    }

    /// A write's turn among those that overlap it. Ordered: among all, so that what a crash leaves
    /// has no gaps.
    async fn order(&self, extent: Extent) -> Option<RangeGuard> {
        if self.has(Bug::OverlapUnordered) {
            return None;
        }
        let fenced = match self.replica {
            Some(_) => self.cx.below().extent(),
            None => extent,
        };
        Some(self.ranges.lock(fenced, LockMode::Exclusive).await)
    }

    /// Logs a reserved record and makes it the newest of its blocks.
    async fn log_one(&self, seq: u64, is_durable: bool) -> Result<()> {
        let mut logged = self.write_record(seq).await;
        if logged.is_err() {
            // On the device it may be whole: the write failed, so either is right; and whatever
            // is written next has a higher number. Ordered: the same number, so that none is
            // missing.
            self.log().void(seq, self.replica.is_some());
        } else {
            if is_durable {
                logged = self.make_durable().await;
            }
            // After a failed flush too: it is in the log now, and may survive.
            self.log().publish(seq);
        }
        self.wanted.notify_all();
        if self.cx.rt().buggify("write_back.destage") {
            self.kick();
        }
        logged
    }

    /// Writes a record that counts one writer into its slot.
    async fn write_record(&self, seq: u64) -> Result<()> {
        let (extent, content) = self.log().content(seq);
        let is_skipped = self.is_kept_in_memory(seq, extent, &content);
        let written = if is_skipped {
            Ok(())
        } else {
            self.store.write_slot(seq, extent, &content).await
        };
        // Without an await in between: the trust is that of the write's end.
        match written {
            Ok(()) => self.log().written(seq, self.store.trust()),
            Err(_) => self.log().not_written(seq),
        }
        written
    }

    /// Makes every record durable whose write has ended.
    async fn make_durable(&self) -> Result<()> {
        for _ in 0..REWRITES_MAX {
            let trust = self.store.trust();
            // W5: what a failed flush may have dropped, again. All of it, also after an error:
            // each is counted as being written.
            let untrusted = self.log().rewrite_untrusted(trust);
            let mut rewritten = Ok(());
            for seq in untrusted {
                rewritten = rewritten.and(self.write_record(seq).await);
            }
            self.wanted.notify_all();
            rewritten?;
            self.store.flush().await?;
            if self.store.trust() == trust {
                return Ok(());
            }
        }
        Err(store::too_often())
    }

    async fn flush(&self) -> Result<Reply> {
        // AtAck: everything acknowledged is durable already.
        if self.promise == Promise::AtAck || self.has(Bug::FlushDoesNothing) {
            return Ok(Reply::Done);
        }
        let flushed = self.make_durable().await;
        if self.has(Bug::FlushErrorSwallowed) {
            return Ok(Reply::Done);
        }
        flushed.map(|()| Reply::Done)
    }

    /// A slot for a record; waits for one, and has older records destaged for it.
    async fn reserve(&self, piece: Extent, content: Content) -> Result<u64> {
        loop {
            let now = self.cx.rt().now();
            let (free, tail) = {
                let mut log = self.log();
                (log.reserve(piece, content.clone(), now), log.tail())
            };
            if let Some(seq) = free {
                return Ok(seq);
            }
            self.cx.rt().probe("write_back.full");
            // A backing that is held at a point cannot take what would free a slot.
            self.let_go();
            self.destage_to(tail + 1).await?;
        }
    }

    /// Cuts an extent into what a record takes.
    fn pieces(&self, extent: Extent, content: &Content) -> Vec<Extent> {
        match content {
            Content::Data(_) => extent.split(self.store.geometry().record_max()).collect(),
            Content::Zeroes => vec![extent],
        }
    }
}

/// The filter.
#[derive(Debug)]
pub struct WriteBack {
    cache: Arc<Cache>,
}

#[async_trait]
impl Filter for WriteBack {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        let cache = &self.cache;
        match io.op {
            Op::Read { extent } => cache.read(io, extent, next).await,
            Op::Write { .. } if cache.is_past_log() => cache.write_past_log(io, next).await,
            Op::Write { offset, data, fua } => {
                let extent = Extent::new(offset, data.len() as u64);
                cache.write(extent, Content::Data(data), fua).await
            }
            Op::WriteZeroes { extent, fua, .. } => cache.write(extent, Content::Zeroes, fua).await,
            Op::Discard { extent, fua } => cache.discard(extent, fua, next).await,
            Op::Flush => cache.flush().await,
            _ => Err(Error::unsupported(io.op.kind())),
        }
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        let mut info = below.with_caps(|caps| {
            caps.volatile_cache = self.cache.promise != Promise::AtAck;
            caps.fua = Support::Native;
            caps.write_zeroes = Support::Native;
            caps.fast_zeroes = true;
            caps.discard = Support::Native;
            caps.discard_reads = DiscardReads::Zero;
            caps.allocation = false;
        });
        info.zeroes_max = ZEROES_BLOCKS_MAX * u64::from(info.logical_block);
        Ok(info)
    }

    async fn lifecycle(&self, event: Lifecycle<'_>) -> Result<Outcome> {
        let cache = &self.cache;
        match (event.verb, event.phase) {
            (Verb::Close, Phase::Prepare) => {
                if cache.has(Bug::CleanMarkEarly) {
                    cache.mark_clean().await?;
                }
                cache.let_go();
                // Where the backing does not take it, the log keeps it for the next open.
                cache.flush().await?;
                let _ = cache.destage_all().await;
            }
            (Verb::Close, Phase::Commit) if cache.log().is_empty() => cache.mark_clean().await?,
            (Verb::Resize { from, to }, Phase::Prepare) if to < from => {
                return Err(Error::refused(
                    "the cache may hold writes beyond the new end; detach it first",
                ));
            }
            (Verb::Detach, Phase::Prepare) => {
                cache.let_go();
                cache.destage_all().await?;
            }
            (Verb::Snapshot { .. } | Verb::Migrate { .. } | Verb::Clone { .. }, Phase::Prepare) => {
                cache.destage_all().await?;
            }
            _ => {}
        }
        Ok(Outcome::Done)
    }

    fn state(&self) -> FilterState {
        if self.cache.has(Bug::BypassWhileDirty) {
            return FilterState::default();
        }
        FilterState::dirty(self.cache.log().dirty().bytes())
    }

    fn dirty(&self) -> Option<Arc<dyn DirtySource>> {
        Some(Arc::new(dirty::Source(Arc::clone(&self.cache))))
    }
}

impl Cache {
    /// Records in the sidecar that the log of this epoch is empty.
    async fn mark_clean(&self) -> Result<()> {
        let mark: Bytes = recover::clean_mark(self.store.epoch());
        let key = recover::CLEAN_EPOCH;
        self.cx.sidecar().commit(&[(key, Some(mark))]).await
    }
}
