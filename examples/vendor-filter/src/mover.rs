//! The background task: brings one sheet after another to the backing.
//!
//! The order is the whole point: write all of it to the backing; flush the backing; and only then
//! give the sheet its new generation, durably. After a failure a sheet is moved again as a whole,
//! from memory: after a failed flush of the backing nothing of it counts as written.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::future::{Either, join_all, select};
use vaio_core::{BlockDeviceExt, Error, Extent, Result, RuntimeExt, Step};

use crate::{filter::Staging, record::Content, sheets::Move};

/// How long a sheet may fill before it is moved.
const INTERVAL: Duration = Duration::from_millis(20);
/// How long after a failure it is tried again, if no one waits.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What others want of the mover.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    /// Someone waits until every record before this number is moved.
    to: u64,
    is_kicked: bool,
    /// Moves begun.
    begun: u64,
    failed: Option<(u64, Error)>,
}

impl Staging {
    /// Waits until every record before `number` is on the backing durably. Cancel-safe.
    ///
    /// # Errors
    /// Those of a move that began after this call.
    pub(crate) async fn move_to(&self, number: u64) -> Result<()> {
        let begun = self.demand().begun;
        loop {
            let ended = self.ended.listen();
            if self.sheets().tail() >= number {
                return Ok(());
            }
            {
                let mut demand = self.demand();
                if let Some((failed, error)) = &demand.failed
                    && *failed > begun
                {
                    return Err(error.clone());
                }
                demand.to = demand.to.max(number);
            }
            self.wanted.notify_all();
            ended.await;
        }
    }

    /// Brings down everything that is recorded now.
    pub(crate) async fn move_all(&self) -> Result<()> {
        let head = {
            let sheets = self.sheets();
            sheets.held().unwrap_or(sheets.head())
        };
        self.move_to(head).await
    }

    /// Asks for a move soon.
    pub(crate) fn kick(&self) {
        self.demand().is_kicked = true;
        self.wanted.notify_all();
    }

    fn is_awaited(&self) -> bool {
        let tail = self.sheets().tail();
        self.demand().to > tail
    }

    /// Resolves when this is so; whatever may make it so wakes it.
    async fn when(&self, is_so: impl Fn(&Self) -> bool) {
        loop {
            let wanted = self.wanted.listen();
            if is_so(self) {
                return;
            }
            wanted.await;
        }
    }

    /// A turn to work: a step, which a quiesce waits for; none where someone waits for the work,
    /// for that may be what the quiesce itself waits for. `None`: the instance closes.
    async fn turn(&self) -> Option<Option<Step>> {
        let step = pin!(self.cx.step());
        match select(step, pin!(self.when(Self::is_awaited))).await {
            Either::Left((step, _)) => step.map(Some),
            Either::Right(((), _)) => Some(None),
        }
    }

    async fn move_sheet(&self, of: &Move) -> Result<()> {
        let lower = self.cx.lower();
        let writes = of.pieces.iter().map(|one| self.move_piece(one));
        // All of them end, also after one has failed: none may land later.
        let written: Result<()> = join_all(writes).await.into_iter().collect();
        written?;
        lower.flush().await?;
        // G1: given up only now.
        let turn = self.device.turn().await;
        let stamped = turn.stamp(of.sheet, of.generation).await;
        let mut sheets = self.sheets();
        if stamped.is_ok() {
            sheets.moved(of);
        } else {
            sheets.doubt();
        }
        stamped
    }

    async fn move_piece(&self, (extent, content): &(Extent, Content)) -> Result<()> {
        let lower = self.cx.lower();
        match content {
            Content::Data(data) => lower.write(extent.offset(), data.clone()).await,
            Content::Zeroes => lower.write_zeroes(extent.offset(), extent.len()).await,
        }
    }
}

/// Moves sheets until the instance closes.
pub(crate) async fn run(staging: Arc<Staging>) {
    let rt = Arc::clone(staging.cx.rt());
    let mut pause = INTERVAL;
    loop {
        let has_work = pin!(staging.when(|it| it.sheets().has_work()));
        if let Either::Left(_) = select(pin!(staging.cx.stopped()), has_work).await {
            return;
        }
        let asked = pin!(staging.when(|it| it.is_awaited() || it.demand().is_kicked));
        let soon = pin!(select(rt.sleep(pause), asked));
        if let Either::Left(_) = select(pin!(staging.cx.stopped()), soon).await {
            return;
        }
        let Some(turn) = staging.turn().await else {
            return;
        };
        let number = {
            let mut demand = staging.demand();
            demand.is_kicked = false;
            demand.begun += 1;
            demand.begun
        };
        let next = staging.sheets().next_move();
        let Some(of) = next else {
            drop(turn);
            // A record is still being written: its end wakes us.
            let pending = pin!(staging.when(|it| it.sheets().is_movable()));
            if let Either::Left(_) = select(pin!(staging.cx.stopped()), pending).await {
                return;
            }
            continue;
        };
        let result = staging.move_sheet(&of).await;
        drop(turn);
        pause = if result.is_ok() {
            INTERVAL
        } else {
            RETRY_INTERVAL
        };
        if let Err(error) = result {
            let mut demand = staging.demand();
            demand.failed = Some((number, error));
            // Whoever still wants it asks again.
            demand.to = 0;
        }
        staging.ended.notify_all();
    }
}
