//! The keeper: polls every IO whose asker let go to its end. Dropping a handle drops the answer,
//! never the IO.

use std::{
    collections::BTreeMap,
    fmt,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
};

use futures::{StreamExt, channel::oneshot, stream::FuturesUnordered, task::AtomicWaker};

use crate::{
    BoxFuture, Extent, OpKind, Reply, Result,
    core::Core,
    event::{EventKind, Notice, Severity},
    fence::Raised,
    slot::Slot,
    sync::lock,
};

/// An IO without an asker.
pub(crate) struct Orphan {
    pub(crate) future: BoxFuture<'static, Result<Reply>>,
    pub(crate) kind: OpKind,
    pub(crate) extent: Extent,
    /// Level that it was submitted from.
    pub(crate) level: u8,
    /// Who let go: a filter's name or what stands for one.
    pub(crate) dropped_by: Arc<str>,
    pub(crate) slot: Arc<Slot>,
    /// Whether this ends the slot's IO (a whole IO was let go, not a part of one).
    pub(crate) ends_slot: bool,
    /// Whether its answer is one to the slot's IO.
    pub(crate) stands_for_slot: bool,
}

impl fmt::Debug for Orphan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orphan")
            .field("kind", &self.kind)
            .field("extent", &self.extent)
            .finish_non_exhaustive()
    }
}

type Kept = BoxFuture<'static, ()>;

/// An orphan that a failed observer's hop has to wait for.
struct Awaited {
    number: u64,
    /// Its answer, if that is one to the slot's IO; else only its end.
    answer: oneshot::Receiver<Option<Result<Reply>>>,
}

#[derive(Default)]
pub(crate) struct Keeper {
    inbox: Mutex<Vec<Kept>>,
    arrived: AtomicWaker,
    total: AtomicU64,
    /// What a failed observer's hop waits for, by slot.
    rescues: Mutex<BTreeMap<usize, Vec<Awaited>>>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper")
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

impl Keeper {
    /// IOs taken in so far.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Takes an orphan in: it is counted by the gate and fenced from this moment.
    pub(crate) fn adopt(core: &Arc<Core>, orphan: Orphan) {
        core.gate.enter_always();
        let raised = core
            .fence
            .raise(orphan.extent, orphan.kind.is_mutation(), orphan.level);
        let number = core.keeper.total.fetch_add(1, Relaxed);
        core.events.send(
            Notice::of(
                Severity::Warning,
                EventKind::IoOrphaned,
                "an IO's asker let go of it; it runs to its end and its range is fenced",
            )
            .with_filter(&orphan.dropped_by)
            .with_io(orphan.kind, orphan.extent)
            .with_next_step("look at the time-outs of the filter named, and at the device below"),
        );
        let (send, answer) = oneshot::channel();
        if !orphan.ends_slot {
            // A whole IO is no one's answer: a hop inside it would wait for itself.
            let awaited = Awaited { number, answer };
            let mut rescues = lock(&core.keeper.rescues);
            rescues
                .entry(slot_key(&orphan.slot))
                .or_default()
                .push(awaited);
        }
        let kept = Self::keep(Arc::clone(core), orphan, raised, number, send);
        lock(&core.keeper.inbox).push(kept);
        core.keeper.arrived.wake();
    }

    fn keep(
        core: Arc<Core>,
        orphan: Orphan,
        raised: Raised,
        number: u64,
        answer: oneshot::Sender<Option<Result<Reply>>>,
    ) -> Kept {
        let Orphan {
            mut future,
            kind,
            extent,
            dropped_by,
            slot,
            ends_slot,
            stands_for_slot,
            ..
        } = orphan;
        Box::pin(async move {
            let result = poll_fn(|cx| {
                if ends_slot {
                    // The watcher changes the fate of what hangs: look at it again then.
                    *lock(&slot.waker) = Some(cx.waker().clone());
                }
                let poll = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
                poll.unwrap_or_else(|_| {
                    Poll::Ready(Err(crate::Error::new(
                        crate::ErrorKind::FilterFault,
                        "a filter panicked below an orphaned IO",
                    )))
                })
            })
            .await;
            // Let go of the future before the gate: a detach that waits must see it gone.
            drop(future);
            drop(raised);
            if ends_slot {
                *lock(&slot.waker) = None;
                slot.end();
            } else {
                core.keeper.forget(&slot, number);
            }
            let text = match &result {
                Ok(_) => "an orphaned IO ended".to_owned(),
                Err(error) => format!("an orphaned IO failed: {}", error.to_line()),
            };
            core.events.send(
                Notice::of(Severity::Info, EventKind::OrphanEnded, text)
                    .with_filter(&dropped_by)
                    .with_io(kind, extent),
            );
            let _ = answer.send(stands_for_slot.then_some(result));
            drop(slot);
            core.gate.exit();
        })
    }

    /// Waits for the orphans of this slot that are in flight now. The answer is one to the slot's
    /// IO, of the orphan made last; a success goes before an error, `None`: there is no such one.
    pub(crate) fn rescue(
        &self,
        slot: &Arc<Slot>,
    ) -> impl Future<Output = Option<Result<Reply>>> + Send + use<> {
        let awaited = lock(&self.rescues).remove(&slot_key(slot));
        async move {
            let mut best = None;
            for one in awaited.unwrap_or_default() {
                if let Ok(Some(answer)) = one.answer.await
                    && (answer.is_ok() || !matches!(best, Some(Ok(_))))
                {
                    best = Some(answer);
                }
            }
            best
        }
    }

    fn forget(&self, slot: &Arc<Slot>, number: u64) {
        let mut rescues = lock(&self.rescues);
        if let Some(awaited) = rescues.get_mut(&slot_key(slot)) {
            awaited.retain(|one| one.number != number);
            if awaited.is_empty() {
                rescues.remove(&slot_key(slot));
            }
        }
    }

    /// The task that polls the orphans; ends when the disk is closed and none is left.
    pub(crate) async fn run(core: Arc<Core>) {
        let mut kept = FuturesUnordered::new();
        poll_fn(|cx| {
            core.keeper.arrived.register(cx.waker());
            loop {
                kept.extend(lock(&core.keeper.inbox).drain(..));
                match kept.poll_next_unpin(cx) {
                    Poll::Ready(Some(())) => {}
                    Poll::Ready(None) if core.is_closed() => return Poll::Ready(()),
                    Poll::Ready(None) | Poll::Pending => {
                        if lock(&core.keeper.inbox).is_empty() {
                            return Poll::Pending;
                        }
                    }
                }
            }
        })
        .await;
    }

    /// Wakes the task so that it can end.
    pub(crate) fn wake(&self) {
        self.arrived.wake();
    }
}

fn slot_key(slot: &Arc<Slot>) -> usize {
    Arc::as_ptr(slot).addr()
}
