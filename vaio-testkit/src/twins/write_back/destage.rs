//! Destaging: records move to the backing, then their slots become free.
//!
//! * D1: the tail moves only after the batch was written to the backing, the backing was flushed,
//!   and the superblock with the new tail is durable: in this order, each awaited.
//! * D2: one batch at a time, and all its writes have ended before it does: the backing sees
//!   versions of a block in their order.
//! * D3: a batch that failed anywhere is done again as a whole, from memory: after a failed flush
//!   of the backing nothing of it counts as written.
//! * D4: work that someone waits for does not wait for the gate. A write that needs a slot is
//!   itself what a quiesce waits for.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::future::{Either, join_all, select};
use vaio_core::{BlockDeviceExt, Error, Extent, Result, RuntimeExt, Step};

use super::{Cache, record::Content};
use crate::zoo::Bug;

/// How long a record may wait for others to be destaged with.
const INTERVAL: Duration = Duration::from_millis(5);
/// How long after a failure it is tried again, if no one asks.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What others want of the destager.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// The tail that someone waits for.
    to: u64,
    /// Do it now, though no one waits.
    is_kicked: bool,
    /// Batches begun.
    begun: u64,
    /// The last failure, and which batch it was.
    failed: Option<(u64, Error)>,
}

impl Cache {
    /// Waits until the tail is at `seq` or beyond. Cancel-safe: the destaging goes on.
    ///
    /// # Errors
    /// Those of a batch that was begun after this call.
    pub(super) async fn destage_to(&self, seq: u64) -> Result<()> {
        let begun = self.demand().begun;
        loop {
            let ended = self.ended.listen();
            let reached = if self.has(Bug::DrainBeforeFlush) {
                self.log().destaging()
            } else {
                self.log().tail()
            };
            if reached >= seq {
                return Ok(());
            }
            {
                let mut demand = self.demand();
                if let Some((batch, error)) = &demand.failed
                    && *batch > begun
                {
                    return Err(error.clone());
                }
                demand.to = demand.to.max(seq);
            }
            self.wanted.notify_all();
            ended.await;
        }
    }

    /// Brings everything down that is in the log now, or, where the backing is held at a point,
    /// everything before that.
    pub(super) async fn destage_all(&self) -> Result<()> {
        let to = {
            let log = self.log();
            log.held().unwrap_or(log.head())
        };
        self.destage_to(to).await
    }

    /// Asks for a batch soon.
    pub(super) fn kick(&self) {
        self.demand().is_kicked = true;
        self.wanted.notify_all();
    }

    fn is_awaited(&self) -> bool {
        let tail = self.log().tail();
        self.demand().to > tail
    }

    /// Resolves when someone waits for a tail that is not reached.
    async fn awaited(&self) {
        loop {
            let wanted = self.wanted.listen();
            if self.is_awaited() {
                return;
            }
            wanted.await;
        }
    }

    /// Resolves when there is a batch that is asked for.
    async fn asked(&self) {
        loop {
            let wanted = self.wanted.listen();
            let is_asked = self.demand().is_kicked || self.is_awaited();
            if is_asked && self.log().has_batch() {
                return;
            }
            wanted.await;
        }
    }

    /// Resolves when there is something to destage.
    async fn filled(&self) {
        loop {
            let wanted = self.wanted.listen();
            if self.log().has_batch() {
                return;
            }
            wanted.await;
        }
    }

    /// A turn to work: a step that a quiesce waits for, or none where someone waits (D4). `None`:
    /// the instance is closing.
    async fn turn(&self) -> Option<Option<Step>> {
        let step = pin!(self.cx.step());
        if self.has(Bug::DestageWaitsForGate) {
            return step.await.map(Some);
        }
        match select(step, pin!(self.awaited())).await {
            Either::Left((step, _)) => step.map(Some),
            Either::Right(((), _)) => Some(None),
        }
    }

    /// Brings one batch to the backing.
    async fn destage_batch(&self) -> Result<()> {
        // Ordered: one record at a time, see `ordered`.
        let records_max = if self.replica.is_some() { 1 } else { u64::MAX };
        let Some(batch) = self.log().batch(records_max) else {
            return Ok(());
        };
        if let Some(replica) = &self.replica {
            // Nothing on the replica that a crash could take from the log.
            if !replica.has(Bug::ReplicaAheadOfLog) {
                self.make_durable().await?;
            }
            replica.apply(&batch.pieces).await?;
        }
        let lower = self.cx.lower();
        let is_flush_enough = self.has(Bug::BackingFsyncGate) && self.was_written(batch.end);
        let writes = batch
            .pieces
            .iter()
            .filter(|(extent, _)| !(self.passes_superseded(*extent, batch.end) || is_flush_enough))
            .map(|(extent, content)| self.destage_piece(*extent, content));
        let early_flush = async {
            if self.has(Bug::FlushBeforeWritesEnd) {
                lower.flush().await
            } else {
                Ok(())
            }
        };
        // D2: every write ends, also after one has failed.
        let (written, flushed) = futures::join!(join_all(writes), early_flush);
        let written: Result<()> = written.into_iter().collect();
        if !self.has(Bug::DestageErrorIgnored) {
            written.and(flushed)?;
        }
        self.set_written(batch.end);
        if self.has(Bug::SlotFreedBeforeTail) {
            self.log().advance(batch.end);
        }
        if !self.has(Bug::TailBeforeFlush) && !self.has(Bug::FlushBeforeWritesEnd) {
            // D1: the backing has it for good before the log may forget it.
            lower.flush().await?;
        }
        self.store.write_tail(batch.end).await?;
        // D1: free only now; a new record in one of these slots under the old tail would be lost
        // to recovery, and the old one with it.
        self.still(batch.end).await;
        self.log().advance(batch.end);
        self.cx.rt().probe("write_back.destaged");
        Ok(())
    }

    /// Resolves when no slot before `end` is being written again.
    async fn still(&self, end: u64) {
        loop {
            let wanted = self.wanted.listen();
            if self.has(Bug::SlotFreedBeforeTail) || self.log().is_still(end) {
                return;
            }
            wanted.await;
        }
    }

    async fn destage_piece(&self, extent: Extent, content: &Content) -> Result<()> {
        let lower = self.cx.lower();
        match content {
            Content::Data(data) => lower.write(extent.offset(), data.clone()).await,
            Content::Zeroes => lower.write_zeroes(extent.offset(), extent.len()).await,
        }
    }

    /// The bug: what a newer record holds is left to that record, durable or not.
    fn passes_superseded(&self, extent: Extent, end: u64) -> bool {
        self.has(Bug::TailPassesSuperseded) && self.log().has_newer(extent, end)
    }
}

/// The background task: one batch after another, until the instance closes.
pub(super) async fn run(cache: Arc<Cache>) {
    let rt = Arc::clone(cache.cx.rt());
    let mut pause = INTERVAL;
    loop {
        if select(pin!(cache.cx.stopped()), pin!(cache.filled()))
            .await
            .is_left()
        {
            return;
        }
        let asked = pin!(cache.asked());
        let soon = pin!(select(rt.sleep(pause), asked));
        if select(pin!(cache.cx.stopped()), soon).await.is_left() {
            return;
        }
        let Some(turn) = cache.turn().await else {
            return;
        };
        let batch = {
            let mut demand = cache.demand();
            demand.is_kicked = false;
            demand.begun += 1;
            demand.begun
        };
        let result = cache.destage_batch().await;
        drop(turn);
        pause = if result.is_ok() {
            INTERVAL
        } else {
            RETRY_INTERVAL
        };
        if let Err(error) = result {
            let mut demand = cache.demand();
            demand.failed = Some((batch, error));
            // Whoever still wants it asks again.
            demand.to = 0;
        }
        cache.ended.notify_all();
    }
}

/// `is_left` of a select's answer, whatever it selected.
trait IsLeft {
    fn is_left(&self) -> bool;
}

impl<A, B> IsLeft for Either<A, B> {
    fn is_left(&self) -> bool {
        matches!(self, Either::Left(_))
    }
}
