//! [`Semaphore`]: a fair count of slots.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use super::lock;

/// A fixed number of permits, given first come, first served.
#[derive(Clone, Debug)]
pub struct Semaphore(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    next_key: u64,
    queue: VecDeque<(u64, Option<Waker>)>,
}

impl Semaphore {
    /// A semaphore of `permits` permits.
    pub fn new(permits: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: permits,
            next_key: 0,
            queue: VecDeque::new(),
        })))
    }

    /// Waits for a permit. Fair and cancel-safe.
    pub fn acquire(&self) -> impl Future<Output = Permit> + Send + use<> {
        Acquire {
            state: Arc::clone(&self.0),
            key: None,
        }
    }

    /// A permit, if one is free and no one waits.
    pub fn try_acquire(&self) -> Option<Permit> {
        let mut state = lock(&self.0);
        if state.free == 0 || !state.queue.is_empty() {
            return None;
        }
        state.free -= 1;
        drop(state);
        Some(Permit(Arc::clone(&self.0)))
    }

    /// Permits that are free now.
    pub fn free(&self) -> usize {
        lock(&self.0).free
    }
}

/// A permit; dropping it gives it back.
#[derive(Debug)]
#[must_use = "dropping a permit gives it back"]
pub struct Permit(Arc<Mutex<State>>);

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.free += 1;
        wake_first(state);
    }
}

fn wake_first(mut state: std::sync::MutexGuard<'_, State>) {
    let waker = if state.free > 0 {
        state.queue.front_mut().and_then(|(_, waker)| waker.take())
    } else {
        None
    };
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

struct Acquire {
    state: Arc<Mutex<State>>,
    key: Option<u64>,
}

impl Future for Acquire {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit> {
        let shared = Arc::clone(&self.state);
        let mut state = lock(&shared);
        let key = *self.key.get_or_insert_with(|| {
            state.next_key += 1;
            let key = state.next_key;
            state.queue.push_back((key, None));
            key
        });
        let first = state.queue.front().is_some_and(|(front, _)| *front == key);
        if first && state.free > 0 {
            state.free -= 1;
            state.queue.pop_front();
            self.key = None;
            wake_first(state);
            return Poll::Ready(Permit(Arc::clone(&shared)));
        }
        if let Some((_, waker)) = state.queue.iter_mut().find(|(other, _)| *other == key) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let mut state = lock(&self.state);
            state.queue.retain(|(other, _)| *other != key);
            wake_first(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, executor::block_on};

    #[test]
    fn permits_are_given_in_order_and_survive_a_cancelled_waiter() {
        let semaphore = Semaphore::new(1);
        let held = semaphore.try_acquire().unwrap();
        let mut first = Box::pin(semaphore.acquire());
        let mut second = Box::pin(semaphore.acquire());
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        drop(held);
        assert!(
            semaphore.try_acquire().is_none(),
            "no barging past those who wait"
        );
        drop(first);
        let permit = block_on(second);
        assert_eq!(semaphore.free(), 0);
        drop(permit);
        assert_eq!(semaphore.free(), 1);
    }
}
