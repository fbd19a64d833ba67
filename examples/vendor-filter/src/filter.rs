//! The filter: what it does with each IO.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use async_trait::async_trait;
use bytes::BytesMut;
use vaio_core::{
    AttachContext, DeviceInfo, DirtySource, DiscardReads, Error, ErrorKind, Extent, Filter,
    FilterState, Io, Lifecycle, Next, Op, Outcome, Phase, Reply, Result, Support, Verb,
    sync::{LockMode, Notify, RangeLock},
};

use crate::{
    device::Device,
    dirty,
    mover::Demand,
    record::{Content, index},
    sheets::{Place, Sheets},
};

/// Most blocks of one record of zeroes; the framework splits what is longer.
const ZEROES_BLOCKS_MAX: u64 = 256;

/// How often a flush starts again because others failed meanwhile.
const DOUBTS_MAX: u32 = 16;

/// What an instance is, shared by its IO, its mover and its source of dirty data.
#[derive(Debug)]
pub(crate) struct Staging {
    pub(crate) cx: AttachContext,
    pub(crate) device: Device,
    sheets: Mutex<Sheets>,
    demand: Mutex<Demand>,
    /// G3.
    ranges: RangeLock,
    /// There may be something to move, or someone waits for it.
    pub(crate) wanted: Notify,
    /// A move ended.
    pub(crate) ended: Notify,
    pub(crate) is_write_through: AtomicBool,
    pub(crate) hold: dirty::Holder,
}

impl Staging {
    pub(crate) fn new(cx: AttachContext, device: Device, sheets: Sheets) -> Self {
        Self {
            cx,
            device,
            sheets: Mutex::new(sheets),
            demand: Mutex::default(),
            ranges: RangeLock::default(),
            wanted: Notify::default(),
            ended: Notify::default(),
            is_write_through: AtomicBool::new(false),
            hold: dirty::Holder::default(),
        }
    }

    pub(crate) fn sheets(&self) -> MutexGuard<'_, Sheets> {
        self.sheets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn demand(&self) -> MutexGuard<'_, Demand> {
        self.demand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, io: Io, extent: Extent, next: Next<'_>) -> Result<Reply> {
        let here = self.sheets().read(extent);
        if here.is_empty() {
            return next.submit(io).await;
        }
        let mut data = BytesMut::with_capacity(index(extent.len()));
        let mut at = extent.offset();
        for (piece, content) in here {
            if at < piece.offset() {
                data.extend_from_slice(&next.read(Extent::from_range(at, piece.offset())).await?);
            }
            data.extend_from_slice(&content.bytes(piece.len()));
            at = piece.end();
        }
        if at < extent.end() {
            data.extend_from_slice(&next.read(Extent::from_range(at, extent.end())).await?);
        }
        Ok(Reply::Data(data.freeze()))
    }

    async fn write(&self, extent: Extent, content: Content, is_fua: bool) -> Result<Reply> {
        // G3: held until the answer.
        let _alone = self.ranges.lock(extent, LockMode::Exclusive).await;
        let geometry = self.device.geometry();
        let piece_max = match content {
            Content::Data(_) => geometry.record_blocks * geometry.block,
            Content::Zeroes => extent.len().max(geometry.block),
        };
        // One at a time: a write never holds a place while it waits for another.
        for piece in extent.split(piece_max) {
            self.record(piece, content.part(extent, piece)).await?;
        }
        if is_fua {
            self.make_durable().await?;
        }
        if self.is_write_through.load(Relaxed) {
            self.move_all().await?;
        }
        Ok(Reply::Done)
    }

    /// Records one piece, and shows it.
    async fn record(&self, extent: Extent, content: Content) -> Result<()> {
        let at = self.take(extent, &content).await?;
        let written = self
            .device
            .write_record(at.sheet, at.generation, at.index, extent, &content)
            .await;
        {
            let mut sheets = self.sheets();
            match written {
                Ok(()) => sheets.show(at),
                Err(_) => sheets.fail(at),
            }
        }
        self.wanted.notify_all();
        if self.cx.rt().buggify("staging.move") {
            self.kick();
        }
        written
    }

    /// A place for a record; waits until one is free.
    async fn take(&self, extent: Extent, content: &Content) -> Result<Place> {
        loop {
            let now = self.cx.rt().now();
            let (place, tail) = {
                let mut sheets = self.sheets();
                let place = sheets.take(extent, content.clone(), now);
                (place, sheets.tail())
            };
            if let Some(place) = place {
                return Ok(place);
            }
            self.cx.rt().probe("staging.full");
            // Rather than the guest, who holds the backing at a point has to do without.
            self.hold.lose(self);
            self.move_to(tail + 1).await?;
        }
    }

    /// Makes every write durable that was answered before.
    pub(crate) async fn make_durable(&self) -> Result<()> {
        for _ in 0..DOUBTS_MAX {
            let turn = self.device.turn().await;
            if !self.sheets().is_doubtful() {
                let flushed = turn.flush().await;
                if flushed.is_err() {
                    self.sheets().doubt();
                }
                return flushed;
            }
            drop(turn);
            // G4: the staging device may have lost what it should have kept. The backing takes it.
            self.cx.rt().probe("staging.doubtful");
            self.hold.lose(self);
            self.move_all().await?;
        }
        Err(Error::new(
            ErrorKind::Io,
            "flushes of the staging device keep failing; replace it",
        ))
    }
}

/// The filter.
#[derive(Debug)]
pub(crate) struct StagingFilter(pub(crate) Arc<Staging>);

#[async_trait]
impl Filter for StagingFilter {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        let staging = &self.0;
        match io.op {
            Op::Read { extent } => staging.read(io, extent, next).await,
            Op::Write { offset, data, fua } => {
                let extent = Extent::new(offset, data.len() as u64);
                staging.write(extent, Content::Data(data), fua).await
            }
            Op::WriteZeroes { extent, fua, .. } | Op::Discard { extent, fua } => {
                staging.write(extent, Content::Zeroes, fua).await
            }
            Op::Flush => staging.make_durable().await.map(|()| Reply::Done),
            _ => Err(Error::unsupported(io.op.kind())),
        }
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        let mut info = below.with_caps(|caps| {
            caps.volatile_cache = true;
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
        let staging = &self.0;
        match (event.verb, event.phase) {
            (Verb::Close, Phase::Prepare) => {
                staging.hold.lose(staging);
                // Where the backing does not take it, the sheets keep it for the next open.
                staging.make_durable().await?;
                let _ = staging.move_all().await;
            }
            (Verb::Resize { from, to }, Phase::Prepare) if to < from => {
                return Err(Error::refused(
                    "the staging device may hold writes beyond the new end; detach it first",
                ));
            }
            (Verb::Detach, Phase::Prepare) => {
                staging.hold.lose(staging);
                staging.move_all().await?;
            }
            (Verb::Snapshot { .. } | Verb::Migrate { .. } | Verb::Clone { .. }, Phase::Prepare) => {
                staging.move_all().await?;
            }
            _ => {}
        }
        Ok(Outcome::Done)
    }

    fn state(&self) -> FilterState {
        FilterState::dirty(self.0.sheets().dirty().bytes())
    }

    fn dirty(&self) -> Option<Arc<dyn DirtySource>> {
        Some(Arc::new(dirty::Source(Arc::clone(&self.0))))
    }
}
