//! Waker-only primitives: no thread, no clock, no chance, so that a simulator can own the order.
//!
//! Every wait here is cancel-safe: dropping the future gives its place up.

mod mutex;
mod notify;
mod range_lock;
mod semaphore;

pub use mutex::{Mutex, MutexGuard};
pub use notify::{Listener, Notify};
pub use range_lock::{LockMode, RangeGuard, RangeLock};
pub use semaphore::{Permit, Semaphore};

use std::sync::{MutexGuard as StdGuard, PoisonError};

/// Locks a standard mutex whose content is never left half changed: poison is ignored.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> StdGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
