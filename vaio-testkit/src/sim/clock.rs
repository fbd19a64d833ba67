//! The virtual clock's timers, and the future that waits for one.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::{Shared, executor::NO_HOST};

/// When, and the how-many-eth timer it is: ties fire in order of registration.
pub(super) type TimerKey = (u64, u64);

/// Timers that are set, in the order in which they fire.
#[derive(Debug, Default)]
pub(super) struct Timers {
    set: BTreeMap<TimerKey, (u32, Waker)>,
    registered: u64,
}

impl Timers {
    /// When the next one is due.
    pub(super) fn next(&self) -> Option<u64> {
        self.set.first_key_value().map(|((at, _), _)| *at)
    }

    fn add(&mut self, at: u64, host: u32, waker: Waker) -> TimerKey {
        self.registered += 1;
        let key = (at, self.registered);
        self.set.insert(key, (host, waker));
        key
    }

    /// The first timer that is due, which fires now.
    pub(super) fn pop_due(&mut self, now: u64) -> Option<(TimerKey, Waker)> {
        if self.next()? > now {
            return None;
        }
        self.set.pop_first().map(|(key, (_, waker))| (key, waker))
    }

    /// Removes a host's timers; the caller drops them outside any lock.
    pub(super) fn remove_host(&mut self, host: u32) -> Vec<Waker> {
        self.set
            .extract_if(.., |_, (owner, _)| *owner == host)
            .map(|(_, (_, waker))| waker)
            .collect()
    }
}

/// Waits for a moment. A dead host's never comes.
#[derive(Debug)]
pub(super) struct Sleep {
    shared: Arc<Shared>,
    host: u32,
    at: u64,
    key: Option<TimerKey>,
}

impl Sleep {
    pub(super) fn new(shared: Arc<Shared>, host: u32, at: u64) -> Self {
        Self {
            shared,
            host,
            at,
            key: None,
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let waker = cx.waker().clone();
        let this = &mut *self;
        let mut core = this.shared.lock();
        if this.host != NO_HOST && !core.is_alive(this.host) {
            return Poll::Pending;
        }
        if this.at <= this.shared.now_nanos() {
            this.key = None;
            return Poll::Ready(());
        }
        let replaced = if let Some(key) = this.key {
            let Some((_, set)) = core.timers.set.get_mut(&key) else {
                return Poll::Pending;
            };
            Some(std::mem::replace(set, waker))
        } else {
            this.key = Some(core.timers.add(this.at, this.host, waker));
            None
        };
        // A waker is foreign code: never dropped under the lock.
        drop(core);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let removed = self.shared.lock().timers.set.remove(&key);
            drop(removed);
        }
    }
}
