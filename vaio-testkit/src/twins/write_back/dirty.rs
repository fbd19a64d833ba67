//! The cache as a source of dirty data: what is in the log is short of the backing.
//!
//! Everything in the log is reported at every level but [`Level::Drained`], also what the log has
//! durably already: over-reporting is allowed, under-reporting never (W6).

use std::{
    pin::pin,
    sync::{
        Arc, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use futures::{channel::oneshot, future::select};
use vaio_core::{
    BoxFuture, DirtyMap, DirtyMark, DirtyPiece, DirtyPolicy, DirtySource, DirtySummary, Error,
    ErrorKind, Extent, HeldPoint, Instant, Level, Release, Result, sync::Notify,
};

use super::Cache;

/// What the filter hands out.
#[derive(Debug)]
pub(super) struct Source(pub(super) Arc<Cache>);

#[async_trait]
impl DirtySource for Source {
    fn summary(&self, level: Level) -> DirtySummary {
        if level == Level::Drained {
            return DirtySummary::default();
        }
        let log = self.0.log();
        let now = self.0.cx.rt().now();
        let age = log
            .oldest()
            .map_or_else(Default::default, |since| now.since(since));
        DirtySummary::new(log.dirty().bytes(), age)
    }

    fn extents(&self, level: Level, range: Extent) -> DirtyMap {
        if level == Level::Drained {
            return DirtyMap::new();
        }
        let dirty = self.0.log().dirty();
        let inside = dirty
            .extents()
            .iter()
            .filter_map(|one| one.intersect(range));
        inside.collect()
    }

    fn mark(&self) -> DirtyMark {
        DirtyMark(self.0.log().head())
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
        for (seq, extent, content) in self.0.log().published_from(from.0) {
            bytes += extent.len();
            if bytes > bytes_max && !pieces.is_empty() {
                break;
            }
            let data = content.bytes_of(extent, extent);
            pieces.push(DirtyPiece::new(extent, DirtyMark(seq), data));
        }
        Ok(pieces)
    }

    async fn flush_to(&self, mark: DirtyMark, level: Level) -> Result<()> {
        match level {
            Level::Drained => Ok(()),
            // A mark is in no level of its own: the whole log is made durable.
            Level::CacheDurable => self.flush_in_background().await,
            Level::BackingDurable | Level::ReplicaDurable => {
                let head = self.0.log().head();
                self.0.destage_to(mark.0.min(head)).await
            }
        }
    }

    async fn hold(&self, until: Instant) -> Result<Arc<dyn HeldPoint>> {
        let cache = Arc::clone(&self.0);
        let held = {
            let mut log = cache.log();
            if log.held().is_some() {
                return Err(Error::new(ErrorKind::Busy, "the backing is held already"));
            }
            let point = log.head();
            log.hold(Some(point));
            let hold = Arc::<Hold>::default();
            *cache.hold() = Some(Arc::clone(&hold));
            let cache = Arc::clone(&cache);
            Held { cache, hold, point }
        };
        // Failed or cancelled here, `held` is dropped and lets go.
        cache.destage_to(held.point).await?;
        let (hold, timer) = (Arc::clone(&held.hold), Arc::clone(&cache));
        let sleep = cache.cx.rt().sleep_until(until);
        let stopped = cache.cx.stopped();
        cache.cx.spawn("write_back.hold", async move {
            let released = pin!(hold.until_not(HELD));
            select(released, select(sleep, pin!(stopped))).await;
            timer.end_hold(&hold, LOST);
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

impl Source {
    /// Flushes the log, to the end even if the caller lets go: the device's IO has no other owner.
    async fn flush_in_background(&self) -> Result<()> {
        let (send, receive) = oneshot::channel();
        let cache = Arc::clone(&self.0);
        self.0.cx.spawn("write_back.flush", async move {
            let _ = send.send(cache.make_durable().await);
        });
        let gone = || Error::new(ErrorKind::Gone, "the cache was closed meanwhile");
        receive.await.unwrap_or_else(|_| Err(gone()))
    }
}

const HELD: u8 = 0;
const RELEASED: u8 = 1;
const LOST: u8 = 2;

/// The state of a hold; ends once.
#[derive(Debug, Default)]
pub(super) struct Hold {
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

impl Cache {
    fn hold(&self) -> MutexGuard<'_, Option<Arc<Hold>>> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up a hold because the log needs the space.
    pub(super) fn let_go(&self) {
        let hold = self.hold().clone();
        if let Some(hold) = hold {
            self.end_hold(&hold, LOST);
        }
    }

    /// Ends a hold; whether it was held until now.
    fn end_hold(&self, hold: &Hold, how: u8) -> bool {
        let ended = hold.state.compare_exchange(HELD, how, Relaxed, Relaxed);
        if ended.is_err() {
            return false;
        }
        self.log().hold(None);
        *self.hold() = None;
        hold.changed.notify_all();
        self.wanted.notify_all();
        true
    }
}

/// The handle on a hold. Dropping it lets go.
#[derive(Debug)]
struct Held {
    cache: Arc<Cache>,
    hold: Arc<Hold>,
    point: u64,
}

impl HeldPoint for Held {
    fn mark(&self) -> DirtyMark {
        DirtyMark(self.point)
    }

    fn release(&self) -> Release {
        if self.cache.end_hold(&self.hold, RELEASED) {
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
        let _ = self.cache.end_hold(&self.hold, RELEASED);
    }
}
