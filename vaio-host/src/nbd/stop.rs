//! [`Stop`]: tells every connection that the server stops. Costs one load per poll.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures::task::AtomicWaker;

/// The server's end.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    stopped: AtomicBool,
    waiting: Mutex<Vec<Weak<AtomicWaker>>>,
}

/// A connection's end.
#[derive(Debug)]
pub(super) struct Stopped {
    shared: Arc<Shared>,
    waker: Arc<AtomicWaker>,
}

impl Stop {
    /// A new end for one connection.
    pub(super) fn subscribe(&self) -> Stopped {
        let waker = Arc::new(AtomicWaker::new());
        let mut waiting = self
            .0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Ends of closed connections go when a new one comes, so there are never many.
        waiting.retain(|waker| waker.strong_count() > 0);
        waiting.push(Arc::downgrade(&waker));
        let shared = Arc::clone(&self.0);
        Stopped { shared, waker }
    }

    /// Tells all, now and later.
    pub(super) fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        let waiting = self
            .0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for waker in waiting.iter().filter_map(Weak::upgrade) {
            waker.wake();
        }
    }
}

impl Stopped {
    /// Whether the server stops; wakes the task once it does.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.shared.stopped.load(Ordering::SeqCst)
    }

    /// Waits for `future`, unless the server stops first: `None`.
    pub(super) async fn unless<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if self.poll(cx) {
                return Poll::Ready(None);
            }
            future.as_mut().poll(cx).map(Some)
        })
        .await
    }
}
