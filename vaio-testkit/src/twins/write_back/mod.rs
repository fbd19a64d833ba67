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
//!   That is what [`FlushRetry::Covers`] says.
//! * W6: what is dirty stays reported until the tail, durable, has passed it (`dirty`).
//!
//! Content of the log is kept in memory too: a few slots. A large cache would read it back, and
//! would then have to keep readers' slots from being reused.

mod destage;
mod dirty;
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
    AttachContext, BlockDevice, BypassSafety, Class, Descriptor, DeviceInfo, DeviceNeed,
    DirtySource, DiscardReads, Error, Extent, Filter, FilterFactory, FilterState, FlushRetry, Io,
    Lifecycle, Next, Op, OpKind, Outcome, Phase, Promise, Reply, Result, SettingKind, SettingSpec,
    Support, Verb,
    sync::{LockMode, Notify, RangeLock},
};

use super::ordered::Replica;
use crate::zoo::Bug;
use destage::Demand;
use log::Log;
use record::Geometry;
pub(crate) use record::{Content, index};
use store::Store;

/// Name of the filter, and of its device in [`DeviceNeed`] and settings.
pub const NAME: &str = "twin-write-back";
/// The cache device.
pub const CACHE_DEVICE: &str = "cache";

/// Slots of its own IO below: a batch writes at most so many extents together.
const RESERVED_SLOTS: u16 = 4;
/// Largest write-zeroes or discard taken as one record, in blocks; the framework splits.
const ZEROES_BLOCKS_MAX: u64 = 1024;
/// How often a durable write is repeated because other flushes failed in between.
const REWRITES_MAX: u32 = 16;

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
        let _order = match self.bug {
            Some(Bug::OverlapUnordered) => None,
            _ => {
                // Ordered: one write at a time, so that what a crash leaves has no gaps.
                let whole = self.cx.below().extent();
                let fenced = self.replica.as_ref().map_or(extent, |_| whole);
                Some(self.ranges.lock(fenced, LockMode::Exclusive).await)
            }
        };
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

/// The bugs that need more than a condition.
impl Cache {
    /// W4 broken: takes the slots of all pieces before it writes the first.
    async fn reserve_early(&self, extent: Extent, content: &Content) -> Result<Vec<u64>> {
        let mut reserved = Vec::new();
        if self.has(Bug::SlotsHeldTogether) {
            for piece in self.pieces(extent, content) {
                let part = content.part(extent, piece);
                reserved.push(self.reserve(piece, part).await?);
            }
        }
        Ok(reserved)
    }

    /// W2, W3 broken: a record that never gets to the device.
    fn is_kept_in_memory(&self, seq: u64, extent: Extent, content: &Content) -> bool {
        match self.bug {
            Some(Bug::ZeroesNotLogged) => *content == Content::Zeroes,
            Some(Bug::SecondWriteNotLogged) => {
                let held = self.log().read(extent);
                *content != Content::Zeroes && seq > 0 && !held.is_empty()
            }
            _ => false,
        }
    }

    /// Discards in other ways than by a record of zeroes.
    async fn discard(&self, extent: Extent, is_fua: bool, next: Next<'_>) -> Result<Reply> {
        match self.bug {
            Some(Bug::DiscardDropsRecord) => {
                let _order = self.ranges.lock(extent, LockMode::Exclusive).await;
                self.log().forget_touched(extent);
                next.write_zeroes(extent).await?;
                Ok(Reply::Done)
            }
            Some(Bug::DiscardUnordered) => {
                next.write_zeroes(extent).await?;
                self.log().forget_blocks(extent);
                Ok(Reply::Done)
            }
            Some(Bug::DiscardInMemory) => {
                let _order = self.ranges.lock(extent, LockMode::Exclusive).await;
                let seq = self.reserve(extent, Content::Zeroes).await?;
                self.log().written(seq, self.store.trust());
                self.log().publish(seq);
                self.wanted.notify_all();
                Ok(Reply::Done)
            }
            _ => self.write(extent, Content::Zeroes, is_fua).await,
        }
    }

    /// Write-through past the log: the log still holds older content of these blocks.
    async fn write_past_log(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        let extent = io.op.extent();
        let _order = self.ranges.lock(extent, LockMode::Exclusive).await;
        let reply = next.submit(io).await?;
        self.log().forget_blocks(extent);
        Ok(reply)
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
    fn is_past_log(&self) -> bool {
        self.has(Bug::WriteThroughPastLog) && self.is_write_through.load(Relaxed)
    }

    /// Records in the sidecar that the log of this epoch is empty.
    async fn mark_clean(&self) -> Result<()> {
        let mark: Bytes = recover::clean_mark(self.store.epoch());
        let key = recover::CLEAN_EPOCH;
        self.cx.sidecar().commit(&[(key, Some(mark))]).await
    }
}

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
    pub(super) async fn open_over(
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
