//! Destaging: batches move to the backing, then their segments become free.
//!
//! * E1: nothing is destaged that the log could still lose, unless the cache device failed.
//! * E2: one batch at a time. All its writes have ended before the backing is flushed; an error
//!   anywhere repeats the whole batch: after a failed flush nothing of it counts as written.
//! * E3: then the superblock with the new `destaged_seq` is made durable, then the log forgets.
//!   In this order, each awaited.
//! * E4: work that someone waits for does not wait for the gate: a write that needs room is itself
//!   what a quiesce waits for.
//! * E5: relaxed, the sidecar says "torn between a and b" while a batch is on its way, because the
//!   backing alone is no crash image then.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    StreamExt,
    future::{Either, select},
    stream::FuturesUnordered,
};
use vaio_core::{
    BlockDeviceExt, Error, ErrorKind, Extent, Instant, Result, RuntimeExt, Severity, Step,
};

use crate::{
    cache::Cache,
    geometry::At,
    log::{Batch, Destage, Folded},
    map::{Found, Source},
    pace::{Load, make_way, wait},
    record::Header,
    report::Counters,
    scan::headers_of,
};

/// IOs of the destager at the same time; the filter's reserved slots.
pub(crate) const DEPTH: u16 = 8;
/// Bytes written to the backing at once.
const RUN_BYTES_MAX: u64 = 256 << 10;
/// How long after a failure it is tried again, if no one asks.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Key in the sidecar: the batch that is on its way, relaxed (E5).
pub(crate) const TORN: &str = "torn";

/// What others want of the destager.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    /// The seq that someone waits for.
    to: u64,
    /// Do it now, though no one waits.
    is_kicked: bool,
    /// Batches begun.
    begun: u64,
    /// The last failure, and which batch it was.
    failed: Option<(u64, Error)>,
    last_bytes: u64,
    last_begun: Instant,
}

/// Neighbouring blocks that are written to the backing at once.
#[derive(Clone, Copy, Debug)]
enum Run<'a> {
    Data(&'a [Found]),
    Zeroes(&'a [Found]),
}

/// What was written since the guest was last considered.
struct Stretch {
    begun: Instant,
    runs: u16,
    bytes: u64,
}

impl Stretch {
    fn new(begun: Instant) -> Self {
        Self {
            begun,
            runs: 0,
            bytes: 0,
        }
    }

    fn add(&mut self, bytes: u64) {
        self.runs += 1;
        self.bytes += bytes;
    }

    /// Enough to tell what it does to the guest.
    fn is_whole(&self) -> bool {
        self.runs >= DEPTH
    }
}

impl Cache {
    /// Waits until everything before `seq` is on the backing, durably; what the log can no longer
    /// take, because the cache device failed, is not waited for. Cancel-safe: the destaging goes on.
    ///
    /// # Errors
    /// Those of a batch that was begun after this call.
    pub(crate) async fn destage_to(&self, seq: u64) -> Result<()> {
        let begun = self.demand().begun;
        loop {
            let (ended, progress) = (self.ended.listen(), self.progress.listen());
            let (destaged, to) = {
                let log = self.log();
                (log.destaged(), log.destageable(seq))
            };
            if destaged >= to {
                return Ok(());
            }
            {
                let mut demand = self.demand();
                if let Some((batch, error)) = &demand.failed
                    && *batch > begun
                {
                    return Err(error.clone());
                }
                demand.to = demand.to.max(to);
            }
            self.wanted.notify_all();
            select(ended, progress).await;
        }
    }

    /// Brings everything to the backing that is answered by now, or, where it is held at a point,
    /// everything before that.
    pub(crate) async fn destage_all(&self) -> Result<()> {
        let to = {
            let log = self.log();
            log.held().unwrap_or(log.published())
        };
        self.destage_to(to).await
    }

    /// Asks for everything that is answered by now, soon.
    pub(crate) fn drain_soon(&self) {
        let to = self.log().published();
        let mut demand = self.demand();
        demand.to = demand.to.max(to);
        drop(demand);
        self.wanted.notify_all();
    }

    /// Asks for a batch soon.
    pub(crate) fn kick(&self) {
        self.demand().is_kicked = true;
        self.wanted.notify_all();
    }

    fn is_awaited(&self) -> bool {
        let destaged = self.log().destaged();
        let demand = self.demand();
        demand.is_kicked || demand.to > destaged
    }

    /// Resolves when someone waits for more than there is.
    async fn awaited(&self) {
        loop {
            let wanted = self.wanted.listen();
            let destaged = self.log().destaged();
            if self.demand().to > destaged {
                return;
            }
            wanted.await;
        }
    }

    /// Resolves when there is a batch, and it is time for it.
    async fn due(&self) {
        loop {
            let wanted = self.wanted.listen();
            let has_batch = self.log().has_batch();
            let pause = if has_batch {
                wait(&self.pressure(), &self.settings)
            } else {
                Duration::MAX
            };
            // A cut that is due takes no more records, and is whole when the last of it is there.
            if pause.is_zero() && self.is_whole() {
                return;
            }
            if pause.is_zero() {
                wanted.await;
                continue;
            }
            if has_batch {
                select(self.cx.rt().sleep(pause), wanted).await;
            } else {
                wanted.await;
            }
        }
    }

    /// Whether the next batch is there, or can be read back.
    fn is_whole(&self) -> bool {
        let how = self.settings.destage();
        let mut log = self.log();
        log.to_unfold(how).is_some() || log.batch_end(how).is_some()
    }

    /// Reads back what the next batch may need.
    async fn unfold(&self, how: Destage) -> Result<()> {
        loop {
            let Some(folded) = self.log().to_unfold(how) else {
                return Ok(());
            };
            let own = self.headers_of(&folded).await?;
            self.cx.rt().probe("cache.unfold");
            self.log().unfold(&folded, own);
        }
    }

    /// The headers that were folded, from the device (P3). Whoever calls keeps the segment.
    pub(crate) async fn headers_of(&self, folded: &Folded) -> Result<Vec<(Header, At)>> {
        let (live, epoch) = (folded.live(), folded.epoch());
        let headers = headers_of(&self.device, &epoch, live.segment, live.first_seq).await?;
        folded.own(headers).ok_or_else(|| {
            let text = format!(
                "records of dirty data on the cache device do not verify, segment={} end_seq={}; \
                 replace the cache device",
                live.segment,
                folded.end_seq()
            );
            Error::new(ErrorKind::Corrupt, text)
        })
    }

    fn pressure(&self) -> Load {
        let now = self.cx.rt().now();
        let (dirty_bytes, oldest, segments) = {
            let log = self.log();
            (log.dirty_bytes(), log.oldest_from(0), log.segments_used())
        };
        let is_awaited = self.is_awaited();
        let demand = self.demand();
        Load {
            dirty_bytes,
            oldest_age: oldest.map_or(Duration::ZERO, |since| now.since(since)),
            is_awaited,
            last_bytes: demand.last_bytes,
            since_last: now.since(demand.last_begun),
            segments,
        }
    }

    /// A turn to work: a step that a quiesce waits for, or none where someone waits (E4). `None`:
    /// the instance is closing.
    async fn turn(&self) -> Option<Option<Step>> {
        match select(pin!(self.cx.step()), pin!(self.awaited())).await {
            Either::Left((step, _)) => step.map(Some),
            Either::Right(((), _)) => Some(None),
        }
    }

    /// Brings one batch to the backing; gives its bytes.
    pub(crate) async fn destage_batch(&self) -> Result<u64> {
        let how = self.settings.destage();
        self.unfold(how).await?;
        let (end, is_failed) = {
            let mut log = self.log();
            (log.batch_end(how), log.is_failed())
        };
        let Some(end) = end else {
            return Ok(0);
        };
        if !is_failed {
            // E1.
            self.make_durable(end).await?;
        }
        let batch = self.log().batch(end);
        if how == Destage::Relaxed {
            let mark = [batch.from.to_le_bytes(), batch.end.to_le_bytes()].concat();
            let mark = Bytes::from(mark);
            self.cx.sidecar().commit(&[(TORN, Some(mark))]).await?;
        }
        let bytes = self.move_all(&batch).await?;
        Counters::add(&self.counters.destaged_bytes, bytes);
        // E2.
        self.cx.lower().flush().await?;
        self.still(end).await;
        // E3.
        self.persist(end).await?;
        if how == Destage::Relaxed {
            self.cx.sidecar().commit(&[(TORN, None)]).await?;
        }
        self.still(end).await;
        self.log().set_destaged(end);
        self.is_full.store(false, Relaxed);
        self.moved_on();
        self.cx.rt().probe("cache.destaged");
        Ok(bytes)
    }

    /// Writes a batch's last versions, [`DEPTH`] at a time; every write that was begun ends, also after
    /// one has failed.
    async fn move_all(&self, batch: &Batch) -> Result<u64> {
        let geometry = self.device.geometry();
        let mut runs = runs(&batch.moves, RUN_BYTES_MAX / geometry.bytes(1)).into_iter();
        let mut going = FuturesUnordered::new();
        let mut moved = Ok(0);
        let mut stretch = Stretch::new(self.cx.rt().now());
        loop {
            let pause = self.pause_after(&stretch);
            if going.is_empty() {
                self.is_destaging.store(false, Relaxed);
                self.make_way(pause).await;
            }
            if pause.is_zero() || going.is_empty() {
                if stretch.is_whole() {
                    stretch = Stretch::new(self.cx.rt().now());
                }
                let room = usize::from(DEPTH) - going.len();
                let more = runs.by_ref().take(if moved.is_ok() { room } else { 0 });
                going.extend(more.map(|run| self.move_run(run)));
                self.is_destaging.store(true, Relaxed);
            }
            match going.next().await {
                Some(Ok(bytes)) => {
                    stretch.add(bytes);
                    moved = moved.map(|moved| moved + bytes);
                }
                Some(Err(error)) => moved = moved.and(Err(error)),
                None => break,
            }
        }
        self.is_destaging.store(false, Relaxed);
        moved
    }

    /// How long to leave the devices to the guest now; zero where someone waits for the batch.
    fn pause_after(&self, stretch: &Stretch) -> Duration {
        if !stretch.is_whole() || self.is_awaited() {
            return Duration::ZERO;
        }
        let took = self.cx.rt().now().since(stretch.begun);
        make_way(*self.guest(), stretch.bytes, took, &self.settings)
    }

    /// Leaves the backing and the cache device to the guest for a while.
    async fn make_way(&self, pause: Duration) {
        if pause.is_zero() {
            return;
        }
        self.cx.rt().probe("cache.make_way");
        // Whoever waits for the batch, or for this step of it, is not kept waiting (T1).
        let (awaited, draining) = (pin!(self.awaited()), pin!(self.cx.draining()));
        select(self.cx.rt().sleep(pause), select(awaited, draining)).await;
    }

    async fn move_run(&self, run: Run<'_>) -> Result<u64> {
        let geometry = self.device.geometry();
        let (Run::Data(found) | Run::Zeroes(found)) = run;
        let (first, last) = (found[0].span.start, found[found.len() - 1].span.end());
        let extent = Extent::from_range(geometry.bytes(first), geometry.bytes(last));
        let lower = self.cx.lower();
        match run {
            Run::Data(found) => {
                let taken = self.take(&mut self.log(), found);
                let data = self.load(&taken).await?;
                lower.write(extent.offset(), data).await?;
            }
            Run::Zeroes(_) => lower.write_zeroes(extent.offset(), extent.len()).await?,
        }
        Ok(extent.len())
    }

    /// Resolves when no record before `end` is being written again (L4).
    async fn still(&self, end: u64) {
        loop {
            let progress = self.progress.listen();
            if self.log().is_still(end) {
                return;
            }
            progress.await;
        }
    }
}

/// Cuts a batch into runs of at most `blocks_max` blocks of data; zeroes are not limited.
fn runs(moves: &[Found], blocks_max: u64) -> Vec<Run<'_>> {
    let is_zero = |found: &Found| {
        let source = found.piece.map(|piece| piece.source);
        matches!(source, Some(Source::Zeroes { .. }))
    };
    let mut runs = Vec::new();
    let mut rest = moves;
    while let Some(first) = rest.first() {
        let is_zeroes = is_zero(first);
        let mut end = first.span.start;
        let count = rest
            .iter()
            .take_while(|found| {
                let is_next = found.span.start == end && is_zero(found) == is_zeroes;
                end = found.span.end();
                let blocks = end - first.span.start;
                is_next && (is_zeroes || blocks <= blocks_max || blocks == found.span.count)
            })
            .count();
        let (run, after) = rest.split_at(count);
        runs.push(if is_zeroes {
            Run::Zeroes(run)
        } else {
            Run::Data(run)
        });
        rest = after;
    }
    runs
}

/// The background task: one batch after another, until the instance closes.
pub(crate) async fn run(cache: Arc<Cache>) {
    let rt = Arc::clone(cache.cx.rt());
    loop {
        let due = pin!(cache.due());
        if matches!(select(pin!(cache.cx.stopped()), due).await, Either::Left(_)) {
            return;
        }
        let Some(turn) = cache.turn().await else {
            return;
        };
        let batch = {
            let mut demand = cache.demand();
            demand.is_kicked = false;
            demand.begun += 1;
            demand.last_begun = rt.now();
            demand.begun
        };
        let moved = cache.destage_batch().await;
        drop(turn);
        let failed = {
            let mut demand = cache.demand();
            match moved {
                Ok(bytes) => {
                    demand.last_bytes = bytes;
                    None
                }
                Err(error) => {
                    demand.failed = Some((batch, error.clone()));
                    // Whoever still wants it asks again.
                    demand.to = 0;
                    Some(error)
                }
            }
        };
        cache.ended.notify_all();
        if let Some(error) = failed {
            let text = format!("destaging failed and is tried again: {}", error.to_line());
            cache.event(
                Severity::Warning,
                text,
                "look at the backing and the cache device",
            );
            let awaited = pin!(cache.awaited());
            let pause = select(rt.sleep(RETRY_INTERVAL), awaited);
            select(pin!(cache.cx.stopped()), pause).await;
        }
    }
}
