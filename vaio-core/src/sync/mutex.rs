//! [`Mutex`]: a fair asynchronous mutex, deterministic under a simulator.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync,
};

use super::{Permit, Semaphore, lock};

/// A mutex that may be held across an `await`. First come, first served; waiting is cancel-safe.
///
/// Prefer one owner task. Never leave a broken invariant inside while awaiting: a cancelled
/// holder unlocks.
pub struct Mutex<T> {
    turn: Semaphore,
    value: sync::Mutex<Option<T>>,
}

impl<T> Mutex<T> {
    /// A mutex that holds `value`.
    pub fn new(value: T) -> Self {
        Self {
            turn: Semaphore::new(1),
            value: sync::Mutex::new(Some(value)),
        }
    }

    /// Waits for the lock.
    ///
    /// # Panics
    /// Never: the permit guarantees that the value is in place.
    pub async fn lock(&self) -> MutexGuard<'_, T> {
        let permit = self.turn.acquire().await;
        let value = lock(&self.value).take();
        assert!(
            value.is_some(),
            "the permit holder finds the value in place"
        );
        MutexGuard {
            home: self,
            value,
            _permit: permit,
        }
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex")
            .field("locked", &(self.turn.free() == 0))
            .finish_non_exhaustive()
    }
}

/// The lock; dropping it unlocks.
pub struct MutexGuard<'a, T> {
    home: &'a Mutex<T>,
    value: Option<T>,
    _permit: Permit,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("held until drop")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("held until drop")
    }
}

impl<T: fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    // Runs before the permit's own drop: the value is home before the next turn.
    fn drop(&mut self) {
        *lock(&self.home.value) = self.value.take();
    }
}
