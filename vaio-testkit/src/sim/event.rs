//! Events of the environment: an IO that completes, a message that arrives. Each is pending until
//! the simulator picks it.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use vaio_core::Instant;

use super::{Shared, executor::NO_HOST};
use crate::tape::NameId;

/// Pending events that one choice looks at, the oldest ones: keeps a plan short and a tree narrow.
pub const EVENTS_SEEN_MAX: usize = 8;

/// What an event does when it happens, whoever still waits for it.
pub(super) type Action = Box<dyn FnOnce() + Send>;

/// Pending events, oldest first; numbers only grow.
#[derive(Default)]
pub(super) struct Events {
    pub(super) pending: VecDeque<Pending>,
    registered: u64,
}

pub(super) struct Pending {
    pub(super) id: u64,
    pub(super) name: NameId,
    pub(super) host: u32,
    pub(super) waker: Option<Waker>,
    pub(super) action: Option<Action>,
}

impl Events {
    pub(super) fn add(&mut self, host: u32, name: NameId, action: Option<Action>) -> u64 {
        self.registered += 1;
        self.pending.push_back(Pending {
            id: self.registered,
            name,
            host,
            waker: None,
            action,
        });
        self.registered
    }

    fn position(&self, id: u64) -> Option<usize> {
        self.pending
            .binary_search_by_key(&id, |event| event.id)
            .ok()
    }

    /// Removes a host's events; the caller drops them outside any lock.
    pub(super) fn remove_host(&mut self, host: u32) -> Vec<Pending> {
        let (gone, kept) = self.pending.drain(..).partition(|event| event.host == host);
        self.pending = kept;
        gone.into()
    }
}

/// Resolves when the simulator picks the event. Dropping it cancels the event, unless it was
/// [detached](EventFuture::detach). An event of a host goes with the host: its future stays
/// pending.
#[must_use = "dropping it cancels the event"]
#[derive(Debug)]
pub struct EventFuture {
    shared: Arc<Shared>,
    host: u32,
    id: u64,
    cancels: bool,
}

impl EventFuture {
    pub(super) fn new(shared: Arc<Shared>, host: u32, id: u64) -> Self {
        Self {
            shared,
            host,
            id,
            cancels: true,
        }
    }

    /// From now on the event stays pending when this future is dropped.
    pub fn detach(mut self) -> Self {
        self.cancels = false;
        self
    }
}

impl Future for EventFuture {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let waker = cx.waker().clone();
        let mut core = self.shared.lock();
        if self.host != NO_HOST && !core.is_alive(self.host) {
            return Poll::Pending;
        }
        let Some(at) = core.events.position(self.id) else {
            return if core.is_closed() {
                Poll::Pending
            } else {
                Poll::Ready(())
            };
        };
        let replaced = core.events.pending[at].waker.replace(waker);
        drop(core);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for EventFuture {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        let Some(at) = core.events.position(self.id) else {
            return;
        };
        let waker = core.events.pending[at].waker.take();
        let gone = if self.cancels {
            core.events.pending.remove(at)
        } else {
            None
        };
        drop(core);
        drop((waker, gone));
    }
}

/// A moment that an observer sees: an event was taken, or guest code said so. Nothing runs while
/// it looks.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Boundary<'a> {
    /// When.
    pub at: Instant,
    /// `event`, or what was given to [`Sim::boundary`](super::Sim::boundary).
    pub kind: &'static str,
    /// The event's name; empty for a boundary of guest code.
    pub name: &'a str,
}
