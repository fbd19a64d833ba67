//! Holding the backing at a point, while the guest goes on writing into the log.
//!
//! * H1: the point is everything composed when the hold begins, and a cut ends there: what is on
//!   the backing then is one moment of the guest's history, in every order mode.
//! * H2: the hold ends once: released, or lost. It is lost when the log needs the room, when the
//!   cache device fails, at its time limit and when the instance closes. A guest's write never
//!   waits for a hold.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
};

use futures::future::select;
use vaio_core::{
    BoxFuture, DirtyMark, Error, ErrorKind, HeldPoint, Instant, Release, Result, Severity,
    sync::Notify,
};

use crate::{cache::Cache, report::Counters};

const HELD: u8 = 0;
const RELEASED: u8 = 1;
const LOST: u8 = 2;

/// The hold that is in force, if one is.
#[derive(Debug, Default)]
pub(crate) struct Hold(Mutex<Option<Arc<State>>>);

/// The state of one hold; ends once (H2).
#[derive(Debug, Default)]
struct State {
    how: AtomicU8,
    changed: Notify,
}

impl State {
    async fn until_not(&self, how: u8) {
        loop {
            let changed = self.changed.listen();
            if self.how.load(Relaxed) != how {
                return;
            }
            changed.await;
        }
    }
}

impl Hold {
    fn state(&self) -> MutexGuard<'_, Option<Arc<State>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// Brings the backing to a point and holds it there.
    pub(crate) async fn hold(self: &Arc<Self>, until: Instant) -> Result<Arc<dyn HeldPoint>> {
        if self.is_bypassed() {
            return Err(no_hold());
        }
        let held = {
            // H1.
            let Some(point) = self.log().hold() else {
                return Err(Error::new(ErrorKind::Busy, "the backing is held already"));
            };
            let state = Arc::<State>::default();
            *self.hold.state() = Some(Arc::clone(&state));
            let cache = Arc::clone(self);
            Held {
                cache,
                state,
                point,
            }
        };
        // Failed or cancelled here, `held` is dropped and lets go.
        self.destage_to(held.point).await?;
        if held.state.how.load(Relaxed) != HELD {
            return Err(Error::new(
                ErrorKind::NoSpace,
                "the log was full before the backing had reached the point: the guest writes \
                 faster than the backing takes it; try again, or with a larger cache device",
            ));
        }
        if self.is_bypassed() {
            return Err(no_hold());
        }
        let (state, cache) = (Arc::clone(&held.state), Arc::clone(self));
        let sleep = self.cx.rt().sleep_until(until);
        let stopped = self.cx.stopped();
        self.cx.spawn("cache.hold", async move {
            let released = pin!(state.until_not(HELD));
            select(released, select(sleep, pin!(stopped))).await;
            cache.end_hold(&state, LOST);
        });
        Ok(Arc::new(held))
    }

    /// Gives up a hold (H2); whether there was one.
    pub(crate) fn let_go(&self) -> bool {
        let state = self.hold.state().clone();
        let is_lost = state.is_some_and(|state| self.end_hold(&state, LOST));
        if is_lost {
            self.cx.rt().probe("cache.let_go");
        }
        is_lost
    }

    /// Gives up a hold because the log needs the room, and says so.
    pub(crate) fn let_go_for_room(&self) {
        if self.let_go() {
            self.event(
                Severity::Warning,
                "the log is full: the hold on the backing is given up, so that the guest can go on",
                "take the snapshot again, with a faster command or a larger cache device",
            );
        }
    }

    /// Ends a hold; whether it was in force until now.
    fn end_hold(&self, state: &State, how: u8) -> bool {
        let ended = state.how.compare_exchange(HELD, how, Relaxed, Relaxed);
        if ended.is_err() {
            return false;
        }
        if how == LOST {
            Counters::add(&self.counters.holds_lost, 1);
        }
        self.log().let_go();
        *self.hold.state() = None;
        state.changed.notify_all();
        self.wanted.notify_all();
        true
    }
}

fn no_hold() -> Error {
    let text = "the cache holds no writes now, so it cannot hold the backing; quiesce the disk";
    Error::new(ErrorKind::Unsupported, text)
}

/// The handle on a hold. Dropping it lets go.
#[derive(Debug)]
struct Held {
    cache: Arc<Cache>,
    state: Arc<State>,
    point: u64,
}

impl HeldPoint for Held {
    fn mark(&self) -> DirtyMark {
        DirtyMark(self.point)
    }

    fn release(&self) -> Release {
        if self.cache.end_hold(&self.state, RELEASED) {
            Release::Held
        } else {
            Release::ThawedEarly
        }
    }

    fn lost(&self) -> BoxFuture<'static, ()> {
        let state = Arc::clone(&self.state);
        Box::pin(async move {
            state.until_not(HELD).await;
            // Released by its owner: it is never lost.
            state.until_not(RELEASED).await;
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.cache.end_hold(&self.state, RELEASED);
    }
}
