//! A mirror: every write goes to the disk below and to a mirror device, and one of them is enough
//! to go on with.
//!
//! * M1: a write is acknowledged when it ended on both sides, and well on one.
//! * M2: overlapping writes go one after another ([`RangeLock`]), so both sides choose the same
//!   winner; reads wait for writes of the same blocks, so that two reads, each from another side,
//!   never see new and then old.
//! * M3: a read goes only to a side that is valid for the block; the other one is for when that
//!   fails and both are valid.
//! * M4: a flush is answered when every block written since the last one is durable on a side, and
//!   a crash would read such a side: where that is not the one that is recorded, the *record is
//!   durable first*. Where one side's flush failed, what was written since counts as lost there.
//!   No write is under way meanwhile, so it is clear what a flush covers, or has dropped.
//! * M5: a copy from side to side goes on alone, from the read to the flush: no write is
//!   overwritten by something older, and no side is valid again before it is durable.
//! * M6: after a crash a block that is recorded as safe on both sides is taken from the primary
//!   and copied: what was under way may be on one side only, and what is read once must stay.
//!
//! The record is a byte per block in the sidecar: for small disks.

mod sides;
mod source;

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{
    future::{Either, select},
    join,
};
use vaio_core::{
    AttachContext, BlockDevice, BlockDeviceExt, BypassSafety, Class, Content, Descriptor,
    DeviceInfo, DeviceNeed, DirtySource, Error, ErrorKind, Extent, Filter, FilterFactory,
    FilterState, Io, Lifecycle, Next, Op, OpKind, OpenReason, Outcome, Phase, Promise, Reply,
    Result, RuntimeExt, SettingKind, SettingSpec, Support, Verb,
    sync::{self, LockMode, Notify, RangeLock},
};

use crate::zoo::Bug;
use sides::{BOTH, MIRROR, PRIMARY, Sides};

/// Name of the filter.
pub const NAME: &str = "twin-mirror";
/// The second side.
pub const MIRROR_DEVICE: &str = "mirror";
/// Most blocks of a disk that can be mirrored.
pub const BLOCKS_MAX: u64 = 1 << 16;

/// Key in the sidecar: valid sides, a byte per block.
const RECORD: &str = "sides";
/// How long after a failed copy the next is tried.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

const DEVICES: &[DeviceNeed] = &[DeviceNeed {
    name: MIRROR_DEVICE,
    capacity_min: 512,
}];

const SETTINGS: &[SettingSpec] = &[SettingSpec::new(
    MIRROR_DEVICE,
    SettingKind::Path,
    MIRROR_DEVICE,
    "Device that every write goes to as well",
)];

/// What one instance is.
#[derive(Debug)]
struct Shared {
    cx: AttachContext,
    mirror: Arc<dyn BlockDevice>,
    sides: Mutex<Sides>,
    ranges: RangeLock,
    /// One record at a time, so that an older one never follows a newer one.
    recording: sync::Mutex<()>,
    /// Flushes, of whatever reason, that left a block durable nowhere; and how many of them a
    /// guest's flush has failed for.
    losses: AtomicU64,
    losses_told: AtomicU64,
    /// Some side may be stale.
    stale: Notify,
    bug: Option<Bug>,
}

const fn side_if(side: u8, is_in: bool) -> u8 {
    if is_in { side } else { 0 }
}

/// The sides on which a result is good.
fn good<A, B>(primary: &Result<A>, mirror: &Result<B>) -> u8 {
    side_if(PRIMARY, primary.is_ok()) | side_if(MIRROR, mirror.is_ok())
}

impl Shared {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn sides(&self) -> MutexGuard<'_, Sides> {
        self.sides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn lock(&self, extent: Extent, mode: LockMode) -> Option<sync::RangeGuard> {
        if self.has(Bug::SidesUnordered) {
            return None;
        }
        Some(self.ranges.lock(extent, mode).await)
    }

    async fn read(&self, extent: Extent, next: Next<'_>) -> Result<Bytes> {
        let _order = self.lock(extent, LockMode::Shared).await;
        let runs = self.sides().runs(extent);
        let mut data = BytesMut::new();
        for (run, valid) in runs {
            let valid = if self.has(Bug::ReadsStaleSide) {
                MIRROR
            } else {
                valid
            };
            let piece = if valid & PRIMARY == 0 {
                self.mirror.read(run.offset(), run.len()).await
            } else {
                match next.read(run).await {
                    // M3.
                    Err(_) if valid == BOTH => self.mirror.read(run.offset(), run.len()).await,
                    read => read,
                }
            };
            data.extend_from_slice(&piece?);
        }
        Ok(data.freeze())
    }

    async fn write(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        let extent = io.op.extent();
        let Op::Write { data, .. } = &io.op else {
            return Err(Error::unsupported(io.op.kind()));
        };
        let data = data.clone();
        // Fua is a flush of everything, with no other flush in between that could fail: it would
        // take the right from this one.
        let is_fua = io.op.is_fua();
        let fenced = if is_fua { self.whole() } else { extent };
        let _order = self.lock(fenced, LockMode::Exclusive).await;
        let op = io.op.clone().with_fua(false);
        let io = io.with_op(op);
        let mirror = async {
            if self.has(Bug::AckBeforeMirror) {
                self.write_mirror_later(extent, data);
                return Ok(());
            }
            self.mirror.write(extent.offset(), data).await
        };
        let (primary, mirror) = join!(next.submit(io), mirror);
        // M1.
        let good = good(&primary, &mirror);
        self.sides().wrote(extent, good);
        self.stale.notify_all();
        if good == 0 {
            return primary;
        }
        if is_fua {
            self.flush_alone().await?;
        }
        Ok(Reply::Done)
    }

    /// The bug: the mirror gets it some time.
    fn write_mirror_later(&self, extent: Extent, data: Bytes) {
        let mirror = Arc::clone(&self.mirror);
        self.cx.spawn("mirror.later", async move {
            let _ = mirror.write(extent.offset(), data).await;
        });
    }

    fn whole(&self) -> Extent {
        self.cx.below().extent()
    }

    /// Flushes both sides (M4). `Ok`: every block written before is durable, and read after a
    /// crash.
    async fn flush(&self) -> Result<()> {
        let told = self.losses_told.load(Relaxed);
        let _alone = self.lock(self.whole(), LockMode::Exclusive).await;
        let flushed = self.flush_alone().await;
        // Also what the flush of a copy or a fua write lost, and a flush that has not yet been
        // answered when this one was asked for: each loss fails every flush that could count on
        // what was lost.
        let losses = self.losses.load(Relaxed);
        self.losses_told.store(losses, Relaxed);
        if losses > told && flushed.is_ok() {
            let text = "an earlier flush failed, and what it lost is not durable";
            return Err(Error::new(ErrorKind::Io, text));
        }
        flushed.map(drop)
    }

    /// Flushes both sides, with no write under way. Says which sides did it.
    async fn flush_alone(&self) -> Result<u8> {
        let lower = self.cx.lower();
        let mirror = async {
            if self.has(Bug::MirrorNotFlushed) {
                return Ok(());
            }
            self.mirror.flush().await
        };
        let (primary, mirror) = join!(lower.flush(), mirror);
        let good = good(&primary, &mirror);
        if good != BOTH && self.has(Bug::OneFlushIsEnough) {
            return primary.or(mirror).map(|()| BOTH);
        }
        let (is_durable, must_record) = {
            let mut sides = self.sides();
            (sides.flushed(good), sides.must_record())
        };
        self.stale.notify_all();
        if must_record && !self.has(Bug::StaleSideNotRecorded) {
            self.record().await?;
        }
        if is_durable {
            return Ok(good);
        }
        self.losses.fetch_add(1, Relaxed);
        let text = "the only side that has a block failed to flush";
        let lost = || Error::new(ErrorKind::Io, text);
        Err(primary.err().or(mirror.err()).unwrap_or_else(lost))
    }

    /// Records durably which sides are valid.
    async fn record(&self) -> Result<()> {
        let _alone = self.recording.lock().await;
        let record = self.sides().to_record();
        let content = Some(record.clone());
        self.cx.sidecar().commit(&[(RECORD, content)]).await?;
        self.sides().recorded(&record);
        Ok(())
    }

    /// Copies what one side lacks of `extent`, durably (M5).
    async fn resync(&self, extent: Extent) -> Result<()> {
        let lower = self.cx.lower();
        let _alone = match self.bug {
            Some(Bug::ResyncUnlocked) => None,
            _ => self.lock(self.whole(), LockMode::Exclusive).await,
        };
        let runs = self.sides().runs(extent);
        for (run, valid) in runs {
            let data = match valid {
                PRIMARY => lower.read(run.offset(), run.len()).await?,
                MIRROR => self.mirror.read(run.offset(), run.len()).await?,
                _ => continue,
            };
            // To the side that it came from, too: a failed flush may have dropped it there.
            lower.write(run.offset(), data.clone()).await?;
            self.mirror.write(run.offset(), data).await?;
            if self.has(Bug::CopiedBeforeFlush) {
                self.sides().copied(run);
                self.record().await?;
            }
            if self.flush_alone().await? != BOTH {
                let text = "a side failed to flush what was copied; it is copied again";
                return Err(Error::new(ErrorKind::Io, text));
            }
            self.sides().copied(run);
        }
        Ok(())
    }
}

/// The background task: copies until no side is stale, and waits for the next time.
async fn run(mirror: Arc<Shared>) {
    loop {
        let stale = mirror.stale.listen();
        let Some(extent) = mirror.sides().first_stale() else {
            match select(pin!(mirror.cx.stopped()), stale).await {
                Either::Left(_) => return,
                Either::Right(_) => continue,
            }
        };
        drop(stale);
        let Some(step) = mirror.cx.step().await else {
            return;
        };
        let mut copied = mirror.resync(extent).await;
        if copied.is_ok() && mirror.sides().first_stale().is_none() {
            // Both, so that the loss of the primary is no loss of the disk.
            copied = mirror.record().await;
        }
        drop(step);
        if copied.is_err() {
            let sleep = mirror.cx.rt().sleep(RETRY_INTERVAL);
            if let Either::Left(_) = select(pin!(mirror.cx.stopped()), sleep).await {
                return;
            }
        }
    }
}

/// The filter.
#[derive(Debug)]
pub struct Mirror {
    shared: Arc<Shared>,
}

#[async_trait]
impl Filter for Mirror {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        match io.op {
            Op::Read { extent } => self.shared.read(extent, next).await.map(Reply::Data),
            Op::Write { .. } => self.shared.write(io, next).await,
            Op::Flush => self.shared.flush().await.map(|()| Reply::Done),
            _ => Err(Error::unsupported(io.op.kind())),
        }
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        let mirror = self.shared.mirror.info();
        let mut info = below.with_caps(|caps| {
            caps.volatile_cache |= mirror.caps.volatile_cache;
            caps.fua = Support::Native;
            caps.allocation = false;
        });
        info.transfer_max = info.transfer_max.min(mirror.transfer_max);
        Ok(info)
    }

    async fn lifecycle(&self, event: Lifecycle<'_>) -> Result<Outcome> {
        match (event.verb, event.phase) {
            // What is not flushed is known to this instance only.
            (Verb::Close, Phase::Prepare) => self.shared.flush().await?,
            // The disk is quiesced and flushed: both means both again at the next open.
            (Verb::Close, Phase::Commit) => self.shared.record().await?,
            (Verb::Resize { .. }, Phase::Prepare) => {
                return Err(Error::refused("a mirror keeps its size; detach it first"));
            }
            _ => {}
        }
        Ok(Outcome::Done)
    }

    fn state(&self) -> FilterState {
        let sides = self.shared.sides();
        let mut state = FilterState::dirty(sides.lacking(PRIMARY, false).bytes());
        state.lag_bytes = sides.lacking(MIRROR, false).bytes();
        match state.dirty_bytes {
            0 => state,
            lacks => state.with_problem(format!(
                "the disk below lacks {lacks} bytes that the mirror has; they are copied back"
            )),
        }
    }

    fn dirty(&self) -> Option<Arc<dyn DirtySource>> {
        Some(Arc::new(source::Source(Arc::clone(&self.shared))))
    }
}

/// Makes [`Mirror`] instances.
#[derive(Clone, Debug, Default)]
pub struct MirrorFactory {
    bug: Option<Bug>,
}

impl MirrorFactory {
    /// The same with a bug of the zoo in it.
    #[must_use]
    pub const fn with_bug(mut self, bug: Bug) -> Self {
        self.bug = Some(bug);
        self
    }

    /// Which sides are valid as the mirror opens.
    async fn recorded(&self, cx: &AttachContext, blocks: usize) -> Result<Vec<u8>> {
        if cx.reason() == OpenReason::Attach {
            return Ok(vec![PRIMARY; blocks]);
        }
        let record = cx.sidecar().get(RECORD).await;
        let Some(record) = record.filter(|record| record.len() == blocks) else {
            let text = "the sidecar does not say which side of the mirror is valid; restore it \
                        from a backup of the disk's folder";
            return Err(Error::new(ErrorKind::Corrupt, text));
        };
        let is_unclean = cx.reason() == OpenReason::Unclean && self.bug != Some(Bug::NoResync);
        let after = |side: &u8| match *side {
            // M6.
            BOTH if is_unclean => PRIMARY,
            side => side,
        };
        Ok(record.iter().map(after).collect())
    }
}

#[async_trait]
impl FilterFactory for MirrorFactory {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new(NAME, env!("CARGO_PKG_VERSION"), Class::Replicate)
            .with_summary("Mirrors the disk to a second device; a model of the testkit.")
            // Zeroes come as writes, and a discard as nothing: one way to do a thing.
            .intercept(&[OpKind::Read, OpKind::Write, OpKind::Flush])
            .pass(&[OpKind::Prefetch])
            .accept_fua()
            .with_content(Content::Held)
            .with_bypass(BypassSafety::Never)
            .with_promise(Promise::AtFlush)
            .with_reserved_slots(4)
            .with_devices(DEVICES)
            .with_settings(SETTINGS)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let mirror = cx.device(MIRROR_DEVICE)?;
        let (info, below) = (mirror.info(), *cx.below());
        let block = u64::from(below.logical_block);
        let blocks = below.capacity / block;
        if u64::from(info.logical_block) != block
            || info.capacity < below.capacity
            || blocks > BLOCKS_MAX
        {
            return Err(Error::config(format!(
                "the mirror needs the disk's logical block and capacity, and at most as many \
                 blocks as can be recorded, logical_block={block} blocks={blocks} \
                 blocks_max={BLOCKS_MAX}"
            )));
        }
        let blocks = usize::try_from(blocks).expect("at most BLOCKS_MAX");
        let valid = self.recorded(&cx, blocks).await?;
        let shared = Arc::new(Shared {
            mirror,
            sides: Mutex::new(Sides::new(block, valid)),
            ranges: RangeLock::default(),
            recording: sync::Mutex::new(()),
            losses: AtomicU64::new(0),
            losses_told: AtomicU64::new(0),
            stale: Notify::default(),
            bug: self.bug,
            cx,
        });
        shared.record().await?;
        shared.cx.spawn("mirror.resync", run(Arc::clone(&shared)));
        Ok(Arc::new(Mirror { shared }))
    }
}
