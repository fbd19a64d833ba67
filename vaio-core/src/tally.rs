//! [`Tally`]: a count of IOs by operation that any thread adds to and none waits for.
//!
//! Every thread has a column of its own and adds to it with a plain load and store: an atomic add
//! would make the processor drain its stores and stop looking ahead, once per layer and IO. The
//! count is exact: a number belongs to one living thread at a time, and threads that got none
//! share a column that is added to atomically.

use std::{
    cell::Cell,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::{OpKind, sync::lock};

/// Threads that have a column of their own.
const COLUMNS: usize = 15;
const UNSET: usize = usize::MAX;

/// Numbers taken, one bit each.
static TAKEN: Mutex<u64> = Mutex::new(0);

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(UNSET) };
    static LEASE: Lease = const { Lease(Cell::new(UNSET)) };
}

/// A thread's number, given back when the thread ends. The mutex orders what the thread wrote
/// before what the number's next owner does.
struct Lease(Cell<usize>);

impl Drop for Lease {
    fn drop(&mut self) {
        // Whatever is counted in later destructors of this thread is shared.
        NUMBER.set(COLUMNS);
        let number = self.0.get();
        if number < COLUMNS {
            *lock(&TAKEN) &= !(1 << number);
        }
    }
}

#[inline]
fn number() -> usize {
    let number = NUMBER.get();
    if number == UNSET { lease() } else { number }
}

#[cold]
fn lease() -> usize {
    let number = LEASE
        .try_with(|lease| {
            let mut taken = lock(&TAKEN);
            let number = (taken.trailing_ones() as usize).min(COLUMNS);
            if number < COLUMNS {
                *taken |= 1 << number;
            }
            lease.0.set(number);
            number
        })
        .unwrap_or(COLUMNS);
    NUMBER.set(number);
    number
}

/// One column; a cache line, so that threads do not disturb each other.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Column([AtomicU64; OpKind::COUNT]);

#[derive(Debug, Default)]
pub(crate) struct Tally {
    own: [Column; COLUMNS],
    shared: Column,
}

impl Tally {
    /// Counts one.
    #[inline]
    pub(crate) fn add(&self, kind: OpKind) {
        if let Some(column) = self.own.get(number()) {
            let count = &column.0[kind as usize];
            count.store(count.load(Relaxed) + 1, Relaxed);
        } else {
            self.shared.0[kind as usize].fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn of(&self, kind: OpKind) -> u64 {
        self.own
            .iter()
            .chain([&self.shared])
            .map(|column| column.0[kind as usize].load(Relaxed))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Barrier};

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test of threads")]
    fn more_threads_than_columns_at_once_and_in_turn_are_counted_exactly() {
        const THREADS: usize = COLUMNS + 5;
        const EACH: u64 = 10_000;
        let tally = Arc::new(Tally::default());
        for _ in 0..3 {
            let together = Arc::new(Barrier::new(THREADS));
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    let (tally, together) = (Arc::clone(&tally), Arc::clone(&together));
                    std::thread::spawn(move || {
                        tally.add(OpKind::Flush);
                        together.wait();
                        for _ in 0..EACH {
                            tally.add(OpKind::Read);
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
        }
        assert_eq!(tally.of(OpKind::Read), 3 * THREADS as u64 * EACH);
        assert_eq!(tally.of(OpKind::Flush), 3 * THREADS as u64);
        assert!(tally.shared.0[0].load(Relaxed) > 0, "some had to share");
    }
}
