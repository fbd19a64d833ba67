//! [`RangeLock`]: the overlap service. Serialises IO that touches the same bytes and nothing else.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use super::lock;
use crate::Extent;

/// How a range is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockMode {
    /// Together with other shared holders.
    Shared,
    /// Alone.
    Exclusive,
}

/// Locks on extents, granted in the order asked for.
///
/// A request waits for every *earlier* request that overlaps it unless both are shared, so it is
/// fair: a stream of small locks cannot starve a large one. Cost is linear in the number of
/// requests held and waiting. Waiting is cancel-safe. An empty extent conflicts with nothing.
#[derive(Clone, Debug, Default)]
pub struct RangeLock(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    next_id: u64,
    requests: Vec<Request>,
}

#[derive(Debug)]
struct Request {
    id: u64,
    extent: Extent,
    mode: LockMode,
    granted: bool,
    waker: Option<Waker>,
}

impl Queue {
    fn is_grantable(&self, index: usize) -> bool {
        let this = &self.requests[index];
        !self.requests[..index].iter().any(|earlier| {
            earlier.extent.overlaps(this.extent)
                && !(earlier.mode == LockMode::Shared && this.mode == LockMode::Shared)
        })
    }

    fn grant(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        for index in 0..self.requests.len() {
            if !self.requests[index].granted && self.is_grantable(index) {
                self.requests[index].granted = true;
                wakers.extend(self.requests[index].waker.take());
            }
        }
        wakers
    }
}

impl RangeLock {
    /// Waits for `extent`. The place in the order is taken at the call, not at the first poll.
    pub fn lock(
        &self,
        extent: Extent,
        mode: LockMode,
    ) -> impl Future<Output = RangeGuard> + Send + use<> {
        let mut queue = lock(&self.0);
        queue.next_id += 1;
        let id = queue.next_id;
        queue.requests.push(Request {
            id,
            extent,
            mode,
            granted: false,
            waker: None,
        });
        let index = queue.requests.len() - 1;
        queue.requests[index].granted = queue.is_grantable(index);
        drop(queue);
        Acquire(Some(RangeGuard {
            lock: self.clone(),
            id,
            extent,
        }))
    }

    /// `extent`, if no one holds or waits for a conflicting range.
    pub fn try_lock(&self, extent: Extent, mode: LockMode) -> Option<RangeGuard> {
        let mut queue = lock(&self.0);
        queue.next_id += 1;
        let id = queue.next_id;
        queue.requests.push(Request {
            id,
            extent,
            mode,
            granted: true,
            waker: None,
        });
        if queue.is_grantable(queue.requests.len() - 1) {
            drop(queue);
            return Some(RangeGuard {
                lock: self.clone(),
                id,
                extent,
            });
        }
        queue.requests.pop();
        None
    }

    /// Requests that are held or waiting.
    pub fn len(&self) -> usize {
        lock(&self.0).requests.len()
    }

    /// Whether nothing is held and no one waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A held range; dropping it unlocks.
#[derive(Debug)]
#[must_use = "dropping a guard unlocks the range"]
pub struct RangeGuard {
    lock: RangeLock,
    id: u64,
    extent: Extent,
}

impl RangeGuard {
    /// The range that is held.
    pub fn extent(&self) -> Extent {
        self.extent
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        let wakers = {
            let mut queue = lock(&self.lock.0);
            queue.requests.retain(|request| request.id != self.id);
            queue.grant()
        };
        for waker in wakers {
            waker.wake();
        }
    }
}

/// Holds the guard from the start, so that dropping a waiter leaves the queue like a holder does.
struct Acquire(Option<RangeGuard>);

impl Future for Acquire {
    type Output = RangeGuard;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<RangeGuard> {
        let guard = self.0.take().expect("polled once after completion");
        let granted = {
            let mut queue = lock(&guard.lock.0);
            let request = queue
                .requests
                .iter_mut()
                .find(|request| request.id == guard.id)
                .expect("a request stays queued until its guard drops");
            if !request.granted {
                request.waker = Some(cx.waker().clone());
            }
            request.granted
        };
        if granted {
            return Poll::Ready(guard);
        }
        self.0 = Some(guard);
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use proptest::prelude::*;

    #[test]
    fn shared_overlap_and_exclusive_waits_in_order() {
        let locks = RangeLock::default();
        let a = locks
            .lock(Extent::new(0, 10), LockMode::Shared)
            .now_or_never()
            .unwrap();
        let b = locks
            .lock(Extent::new(5, 10), LockMode::Shared)
            .now_or_never()
            .unwrap();
        let mut c = Box::pin(locks.lock(Extent::new(8, 1), LockMode::Exclusive));
        let mut d = Box::pin(locks.lock(Extent::new(8, 1), LockMode::Shared));
        assert!(c.as_mut().now_or_never().is_none());
        assert!(
            d.as_mut().now_or_never().is_none(),
            "a later reader does not pass a writer"
        );
        drop(a);
        assert!(c.as_mut().now_or_never().is_none());
        drop(b);
        let held = c.as_mut().now_or_never().unwrap();
        assert!(d.as_mut().now_or_never().is_none());
        drop(held);
        assert!(d.as_mut().now_or_never().is_some());
    }

    #[test]
    fn cancelled_waiter_lets_the_next_one_in() {
        let locks = RangeLock::default();
        let a = locks
            .lock(Extent::new(0, 4), LockMode::Shared)
            .now_or_never()
            .unwrap();
        let b = locks.lock(Extent::new(0, 4), LockMode::Exclusive);
        let mut c = Box::pin(locks.lock(Extent::new(0, 4), LockMode::Shared));
        assert!(c.as_mut().now_or_never().is_none());
        drop(b);
        let held = c.as_mut().now_or_never();
        assert!(held.is_some());
        drop(a);
        assert!(
            locks
                .try_lock(Extent::new(0, 4), LockMode::Exclusive)
                .is_none()
        );
    }

    proptest! {
        #[test]
        fn holders_never_conflict(ops in prop::collection::vec((0u64..16, 1u64..8, any::<bool>(), any::<bool>()), 1..60)) {
            let locks = RangeLock::default();
            let mut waiting: Vec<(Extent, LockMode, _)> = Vec::new();
            let mut held: Vec<(Extent, LockMode, RangeGuard)> = Vec::new();
            for (offset, len, shared, release) in ops {
                let mode = if shared { LockMode::Shared } else { LockMode::Exclusive };
                let extent = Extent::new(offset, len);
                waiting.push((extent, mode, Box::pin(locks.lock(extent, mode))));
                if release && !held.is_empty() {
                    drop(held.remove(0));
                }
                let mut still = Vec::new();
                for (extent, mode, mut future) in waiting {
                    match future.as_mut().now_or_never() {
                        Some(guard) => {
                            for (other, other_mode, _) in &held {
                                let both = mode == LockMode::Shared && *other_mode == LockMode::Shared;
                                prop_assert!(!other.overlaps(extent) || both);
                            }
                            held.push((extent, mode, guard));
                        }
                        None => still.push((extent, mode, future)),
                    }
                }
                waiting = still;
            }
            while !held.is_empty() || !waiting.is_empty() {
                prop_assert!(!held.is_empty(), "someone waits and no one holds");
                held.clear();
                let mut still = Vec::new();
                for (extent, mode, mut future) in waiting {
                    match future.as_mut().now_or_never() {
                        Some(guard) => held.push((extent, mode, guard)),
                        None => still.push((extent, mode, future)),
                    }
                }
                waiting = still;
            }
            prop_assert!(locks.is_empty());
        }
    }
}
