//! [`Notify`]: wakes everyone who listened before the call.

use std::{
    future::Future,
    pin::Pin,
    sync::Mutex,
    task::{Context, Poll, Waker},
};

use super::lock;

/// An edge that many can wait for.
///
/// Listen first, look at the condition, then wait: a notification between the look and the wait
/// is not lost.
///
/// ```
/// # futures::executor::block_on(async {
/// let notify = vaio_core::sync::Notify::default();
/// let listener = notify.listen();
/// notify.notify_all();
/// listener.await; // returns at once: the call came after `listen`
/// # });
/// ```
#[derive(Debug, Default)]
pub struct Notify {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    epoch: u64,
    next_key: u64,
    wakers: Vec<(u64, Waker)>,
}

impl Notify {
    /// Starts to listen.
    pub fn listen(&self) -> Listener<'_> {
        let mut state = lock(&self.state);
        state.next_key += 1;
        Listener {
            notify: self,
            epoch: state.epoch,
            key: state.next_key,
        }
    }

    /// Wakes everyone who listens now.
    pub fn notify_all(&self) {
        let wakers = {
            let mut state = lock(&self.state);
            state.epoch += 1;
            std::mem::take(&mut state.wakers)
        };
        for (_, waker) in wakers {
            waker.wake();
        }
    }
}

/// Resolves at the first [`Notify::notify_all`] after [`Notify::listen`].
#[derive(Debug)]
#[must_use = "a listener does nothing until awaited"]
pub struct Listener<'a> {
    notify: &'a Notify,
    epoch: u64,
    key: u64,
}

impl Future for Listener<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.notify.state);
        if state.epoch != self.epoch {
            return Poll::Ready(());
        }
        match state.wakers.iter_mut().find(|(key, _)| *key == self.key) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => state.wakers.push((self.key, cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.notify.state);
        if state.epoch == self.epoch {
            state.wakers.retain(|(key, _)| *key != self.key);
        }
    }
}
