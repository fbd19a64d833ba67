//! Quiesce: stop admission, wait for what is in flight, bring data to a level, hold, and thaw:
//! by hand, or by itself when the time is up.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use super::{Disk, DiskInner};
use crate::{
    ErrorKind, Instant, Level, Release, Result, RuntimeExt,
    core::Core,
    event::{EventKind, Notice, Severity},
    slot::Slot,
};

/// The gate, closed once; opens when dropped.
#[derive(Debug)]
pub(super) struct ClosedGate(Option<Arc<Core>>);

impl ClosedGate {
    /// Leaves the opening to the caller.
    fn pass_on(mut self) {
        self.0 = None;
    }
}

impl Drop for ClosedGate {
    fn drop(&mut self) {
        if let Some(core) = &self.0 {
            core.gate.open(core.rt.now());
        }
    }
}

impl DiskInner {
    /// Refuses a verb that would write below a quiesce that someone holds: what is being copied
    /// there would be torn.
    pub(super) fn refuse_while_held(&self) -> Result<()> {
        let mut holds = crate::sync::lock(&self.holds);
        holds.retain(|hold| hold.upgrade().is_some_and(|hold| hold.is_held()));
        if holds.is_empty() {
            return Ok(());
        }
        Err(self.error(
            ErrorKind::Busy,
            "the disk is quiesced and held, perhaps for a snapshot; release it first",
        ))
    }

    /// Ends every hold: its guard will say so.
    pub(super) fn break_holds(&self) {
        let holds = std::mem::take(&mut *crate::sync::lock(&self.holds));
        for hold in holds.iter().filter_map(Weak::upgrade) {
            hold.open(THAWED);
        }
    }

    pub(super) fn close_gate(&self) -> ClosedGate {
        self.core.gate.close(self.core.rt.now());
        ClosedGate(Some(Arc::clone(&self.core)))
    }

    /// Waits until at most `left` are in flight, for the life-cycle time-out at most.
    pub(super) async fn drain(&self, left: u64) -> Result<()> {
        self.drain_until(
            left,
            self.core.rt.now() + self.core.settings.lifecycle_timeout,
        )
        .await
    }

    pub(super) async fn drain_until(&self, left: u64, deadline: Instant) -> Result<()> {
        let rt = self.rt();
        if rt
            .timeout_at(deadline, self.core.gate.wait_drained(left))
            .await
            .is_some()
        {
            return Ok(());
        }
        let busy = self.core.slots.busy();
        let chain = self.chain().0;
        let oldest = busy.iter().min_by_key(|slot| slot.started());
        let who = oldest.map_or_else(
            || "background work".to_owned(),
            |slot: &Arc<Slot>| {
                let at = slot.deepest().checked_sub(1);
                let at = at.map_or_else(|| Arc::from("port"), |at| chain.name_of(at));
                format!(
                    "{} id={} at={at} extent={}",
                    slot.kind(),
                    slot.id(),
                    slot.extent()
                )
            },
        );
        Err(self.error(
            ErrorKind::TimedOut,
            format!(
                "the disk did not drain in time and serves on; oldest in flight: {who}, in_flight={}",
                self.core.gate.in_flight()
            ),
        ))
    }
}

/// A quiesced disk. Dropping it thaws; so does the time limit.
#[derive(Debug)]
#[must_use = "dropping the guard thaws the disk"]
pub struct Quiesced {
    shared: Arc<Hold>,
}

#[derive(Debug)]
pub(super) struct Hold {
    core: Arc<Core>,
    state: AtomicU8,
    released: crate::sync::Notify,
}

const HELD: u8 = 0;
const RELEASED: u8 = 1;
const THAWED: u8 = 2;

impl Hold {
    fn is_held(&self) -> bool {
        self.state.load(Ordering::Acquire) == HELD
    }

    /// Opens the gate if it is still held; whoever comes first.
    fn open(&self, state: u8) -> bool {
        let won = self
            .state
            .compare_exchange(HELD, state, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if won {
            self.core.gate.open(self.core.rt.now());
            self.released.notify_all();
            self.core.published.set(());
        }
        won
    }
}

impl Quiesced {
    fn hold(disk: &Arc<DiskInner>, closed: ClosedGate, limit: Duration) -> Self {
        let core = &disk.core;
        let shared = Arc::new(Hold {
            core: Arc::clone(core),
            state: AtomicU8::new(HELD),
            released: crate::sync::Notify::default(),
        });
        closed.pass_on();
        crate::sync::lock(&disk.holds).push(Arc::downgrade(&shared));
        let timer = Arc::clone(&shared);
        core.rt.spawn(
            "vaio-thaw",
            Box::pin(async move {
                let deadline = timer.core.rt.now() + limit;
                let released = timer.released.listen();
                if timer.state.load(Ordering::Acquire) != HELD {
                    return;
                }
                if timer.core.rt.timeout_at(deadline, released).await.is_none()
                    && timer.open(THAWED)
                {
                    timer.core.events.send(
                        Notice::of(
                            Severity::Error,
                            EventKind::ThawedEarly,
                            format!("the quiesce was held for {limit:?} and ended by itself"),
                        )
                        .with_next_step(
                            "what was copied meanwhile is torn: take the snapshot again",
                        ),
                    );
                }
            }),
        );
        Self { shared }
    }

    /// Thaws, and says whether the disk was quiesced until now.
    pub fn release(self) -> Release {
        if self.thaw() {
            Release::Held
        } else {
            Release::ThawedEarly
        }
    }

    fn thaw(&self) -> bool {
        let was_held = self.shared.open(RELEASED);
        if was_held {
            self.shared.core.events.send(Notice::of(
                Severity::Info,
                EventKind::Resumed,
                "the disk serves on",
            ));
        }
        was_held
    }

    /// Whether it still holds.
    pub fn is_held(&self) -> bool {
        self.shared.is_held()
    }
}

impl Drop for Quiesced {
    fn drop(&mut self) {
        self.thaw();
    }
}

impl Disk {
    /// Quiesces the disk: brings data to `level` while the guest still runs, then stops
    /// admission, waits for what is in flight, and brings the rest to `level`. Guest IO waits in
    /// its ports until the guard is released, dropped, or thaws by itself after
    /// [`hold_max`](crate::DiskSettings::hold_max). Meanwhile verbs that write below or change the
    /// stack are refused with [`ErrorKind::Busy`]; closing the disk thaws, and the guard says so.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] naming what is in flight, or the error that keeps the level from
    /// being reached: the disk serves on.
    pub async fn quiesce(&self, level: Level, deadline: Instant) -> Result<Quiesced> {
        self.verb("quiesce", move |inner| async move {
            let _control = inner.control.lock().await;
            *crate::sync::lock(&inner.running) = Some("quiesce");
            if level > Level::Drained {
                inner.refuse_while_held()?;
                inner.reach(level, deadline).await?;
            }
            let closed = inner.close_gate();
            inner.drain_until(0, deadline).await?;
            if level > Level::Drained {
                inner.reach(level, deadline).await?;
            }
            let core = &inner.core;
            core.events.send(Notice::of(
                Severity::Info,
                EventKind::Quiesced,
                format!("the disk admits no new IO, level={level}"),
            ));
            Ok(Quiesced::hold(&inner, closed, core.settings.hold_max))
        })
        .await
    }
}
