//! [`Budget`]: how much memory all connections of a server hold together in payloads and replies.
//!
//! Invariants:
//! * Whoever would exceed it waits in line, first come, first served: a small request does not pass
//!   a large one, so nothing starves.
//! * Who holds nothing never asks: each connection may always have one request, so that none waits
//!   for one that waits for it.
//! * Who no longer wants anything leaves the line at once, and wakes the next.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::Context,
};

use futures::task::AtomicWaker;

/// Shared by all connections.
#[derive(Debug)]
pub(super) struct Budget {
    bytes_max: usize,
    held: AtomicUsize,
    /// Whether someone is in the line.
    is_short: AtomicBool,
    line: Mutex<VecDeque<Arc<AtomicWaker>>>,
}

/// One connection's part.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    held: usize,
    waker: Arc<AtomicWaker>,
    is_in_line: bool,
}

impl Budget {
    pub(super) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes_max,
            held: AtomicUsize::new(0),
            is_short: AtomicBool::new(false),
            line: Mutex::default(),
        })
    }

    pub(super) fn share(self: &Arc<Self>) -> Share {
        Share {
            budget: Arc::clone(self),
            held: 0,
            waker: Arc::default(),
            is_in_line: false,
        }
    }

    /// Bytes held by all.
    pub(super) fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    fn line(&self) -> MutexGuard<'_, VecDeque<Arc<AtomicWaker>>> {
        // Poison is ignored: the line is never left half changed.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_first(&self) {
        if self.is_short.load(Relaxed)
            && let Some(first) = self.line().front()
        {
            first.wake();
        }
    }
}

impl Share {
    /// Whom to wake when it is this connection's turn. Before [`fits`](Self::fits), in each poll.
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// Whether this connection may hold `bytes` in all; if not it stands in line.
    pub(super) fn fits(&mut self, bytes: usize) -> bool {
        let budget = &self.budget;
        let others = budget.held().saturating_sub(self.held);
        let has_room = others.saturating_add(bytes) <= budget.bytes_max;
        if has_room && !budget.is_short.load(Relaxed) {
            return true;
        }
        let mut line = budget.line();
        let is_first = line
            .front()
            .is_none_or(|first| Arc::ptr_eq(first, &self.waker));
        if !(has_room && is_first) {
            if !self.is_in_line {
                line.push_back(Arc::clone(&self.waker));
                self.is_in_line = true;
                budget.is_short.store(true, Relaxed);
            }
            return false;
        }
        drop(line);
        self.leave();
        true
    }

    /// This connection wants nothing now.
    pub(super) fn leave(&mut self) {
        if !self.is_in_line {
            return;
        }
        self.is_in_line = false;
        let mut line = self.budget.line();
        line.retain(|waker| !Arc::ptr_eq(waker, &self.waker));
        self.budget.is_short.store(!line.is_empty(), Relaxed);
        drop(line);
        self.budget.wake_first();
    }

    /// What this connection holds now.
    pub(super) fn set(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.held, bytes);
        if bytes > before {
            self.budget.held.fetch_add(bytes - before, Relaxed);
        } else if bytes < before {
            self.budget.held.fetch_sub(before - bytes, Relaxed);
            self.budget.wake_first();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.leave();
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_the_limit_fits_and_beyond_waits_until_another_lets_go() {
        let budget = Budget::new(100);
        let (mut one, mut two) = (budget.share(), budget.share());
        assert!(one.fits(100) && !one.fits(101));
        one.leave();
        one.set(60);
        assert!(two.fits(40));
        assert!(!two.fits(41));
        one.set(59);
        assert!(two.fits(41));
        two.set(41);
        assert_eq!(budget.held(), 100);
        drop((one, two));
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn who_waits_is_not_passed_and_who_leaves_lets_the_next_one_go() {
        let budget = Budget::new(100);
        let (mut large, mut small, mut holder) = (budget.share(), budget.share(), budget.share());
        holder.set(50);
        assert!(!large.fits(60));
        assert!(!small.fits(1), "there is room, but someone came before");
        large.leave();
        assert!(small.fits(1));
        assert!(!large.fits(60));
        drop(large);
        assert!(small.fits(1), "who is gone is in no one's way");
    }
}
