//! The filter as a source of dirty data, and a backing that is held at a point.
//!
//! Everything in the sheets is reported, also what the staging device has durably: too much is
//! allowed, too little never (G6).

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use futures::future::select;
use vaio_core::{
    BoxFuture, DirtyMap, DirtyMark, DirtyPiece, DirtyPolicy, DirtySource, DirtySummary, Error,
    ErrorKind, Extent, HeldPoint, Instant, Level, Release, Result, sync::Notify,
};

use crate::filter::Staging;

/// What the filter hands out.
#[derive(Debug)]
pub(crate) struct Source(pub(crate) Arc<Staging>);

#[async_trait]
impl DirtySource for Source {
    fn summary(&self, level: Level) -> DirtySummary {
        if level == Level::Drained {
            return DirtySummary::default();
        }
        let sheets = self.0.sheets();
        let now = self.0.cx.rt().now();
        let age = sheets.oldest().map(|since| now.since(since));
        DirtySummary::new(sheets.dirty().bytes(), age.unwrap_or_default())
    }

    fn extents(&self, level: Level, range: Extent) -> DirtyMap {
        if level == Level::Drained {
            return DirtyMap::new();
        }
        let dirty = self.0.sheets().dirty();
        let inside = dirty.extents().iter();
        inside.filter_map(|one| one.intersect(range)).collect()
    }

    fn mark(&self) -> DirtyMark {
        DirtyMark(self.0.sheets().head())
    }

    async fn read_dirty(
        &self,
        level: Level,
        from: DirtyMark,
        bytes_max: u64,
    ) -> Result<Vec<DirtyPiece>> {
        let mut pieces = Vec::new();
        let mut bytes = 0;
        if level == Level::Drained {
            return Ok(pieces);
        }
        for (number, extent, content) in self.0.sheets().shown_from(from.0) {
            bytes += extent.len();
            if bytes > bytes_max && !pieces.is_empty() {
                break;
            }
            let data = content.bytes(extent.len());
            pieces.push(DirtyPiece::new(extent, DirtyMark(number), data));
        }
        Ok(pieces)
    }

    async fn flush_to(&self, mark: DirtyMark, level: Level) -> Result<()> {
        if level == Level::Drained {
            return Ok(());
        }
        // What is on the backing is durable at every level.
        let head = self.0.sheets().head();
        self.0.move_to(mark.0.min(head)).await
    }

    async fn hold(&self, until: Instant) -> Result<Arc<dyn HeldPoint>> {
        let held = Held::begin(&self.0).await?;
        // Failed or cancelled here, `held` is dropped and lets go.
        self.0.move_to(held.point).await?;
        let (state, staging) = (Arc::clone(&held.hold), Arc::clone(&self.0));
        let (sleep, stopped) = (self.0.cx.rt().sleep_until(until), self.0.cx.stopped());
        self.0.cx.spawn("staging.hold", async move {
            let released = pin!(state.until_not(HELD));
            select(released, select(sleep, pin!(stopped))).await;
            staging.end_hold(&state, LOST);
        });
        Ok(Arc::new(held))
    }

    async fn set_policy(&self, policy: DirtyPolicy) -> Result<()> {
        // Each write looks at it right before its answer.
        let is_write_through = policy == DirtyPolicy::WriteThrough;
        self.0.is_write_through.store(is_write_through, Relaxed);
        Ok(())
    }
}

const HELD: u8 = 0;
const RELEASED: u8 = 1;
const LOST: u8 = 2;

/// The state of a hold; ends once.
#[derive(Debug, Default)]
struct Hold {
    state: AtomicU8,
    changed: Notify,
}

impl Hold {
    async fn until_not(&self, state: u8) {
        loop {
            let changed = self.changed.listen();
            if self.state.load(Relaxed) != state {
                return;
            }
            changed.await;
        }
    }
}

/// The hold that is in force, if one is.
#[derive(Debug, Default)]
pub(crate) struct Holder(Mutex<Option<Arc<Hold>>>);

impl Holder {
    /// Gives the hold up, because the sheets are needed.
    pub(crate) fn lose(&self, staging: &Staging) {
        let hold = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(hold) = hold {
            staging.end_hold(&hold, LOST);
        }
    }

    fn set(&self, hold: Option<Arc<Hold>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = hold;
    }
}

impl Staging {
    /// Ends a hold; whether it was in force until now.
    fn end_hold(&self, hold: &Hold, how: u8) -> bool {
        let ended = hold.state.compare_exchange(HELD, how, Relaxed, Relaxed);
        if ended.is_err() {
            return false;
        }
        self.sheets().let_go();
        self.hold.set(None);
        hold.changed.notify_all();
        self.wanted.notify_all();
        true
    }
}

/// The handle on a hold. Dropping it lets go.
#[derive(Debug)]
struct Held {
    staging: Arc<Staging>,
    hold: Arc<Hold>,
    point: u64,
}

impl Held {
    /// Holds the backing at what is recorded at some moment of this call.
    async fn begin(staging: &Arc<Staging>) -> Result<Self> {
        loop {
            let tail = {
                let mut sheets = staging.sheets();
                if sheets.held().is_some() {
                    return Err(Error::new(ErrorKind::Busy, "the backing is held already"));
                }
                if let Some(point) = sheets.hold() {
                    let hold = Arc::<Hold>::default();
                    staging.hold.set(Some(Arc::clone(&hold)));
                    let staging = Arc::clone(staging);
                    return Ok(Self {
                        staging,
                        hold,
                        point,
                    });
                }
                sheets.tail()
            };
            // The sheet that fills has what is before and after the point; it can end when the
            // other is moved.
            staging.move_to(tail + 1).await?;
        }
    }
}

impl HeldPoint for Held {
    fn mark(&self) -> DirtyMark {
        DirtyMark(self.point)
    }

    fn release(&self) -> Release {
        if self.staging.end_hold(&self.hold, RELEASED) {
            Release::Held
        } else {
            Release::ThawedEarly
        }
    }

    fn lost(&self) -> BoxFuture<'static, ()> {
        let hold = Arc::clone(&self.hold);
        Box::pin(async move {
            hold.until_not(HELD).await;
            // Released by its owner: it is never lost.
            hold.until_not(RELEASED).await;
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.staging.end_hold(&self.hold, RELEASED);
    }
}
