//! The fence: an IO whose asker let go is still in flight, and nothing that overlaps it may pass
//! it until it ends. Else a retry could land first and the late original after it.
//!
//! An IO waits only for fences that were raised before it came. So fences are a line, not a
//! circle: an IO that is let go while it waits raises its own behind those that it waits for, and
//! never waits for itself.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use crate::{
    Extent,
    sync::{Notify, lock},
};

#[derive(Debug, Default)]
pub(crate) struct Fence {
    /// Number of orphans; read on every hop, so that no orphan costs nothing.
    count: AtomicUsize,
    entries: Mutex<Entries>,
    lifted: Notify,
}

#[derive(Debug, Default)]
struct Entries {
    last_id: u64,
    raised: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: u64,
    extent: Extent,
    mutates: bool,
    /// The orphan was submitted from this level: IO submitted at or above it has to wait, IO
    /// submitted from below is the orphan's own or a lower filter's and goes on.
    level: u8,
}

impl Fence {
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether an IO submitted from `level` has to wait.
    pub(crate) fn blocks(&self, extent: Extent, mutates: bool, level: u8) -> bool {
        !self.is_empty() && self.blocks_until(u64::MAX, extent, mutates, level)
    }

    fn blocks_until(&self, last_id: u64, extent: Extent, mutates: bool, level: u8) -> bool {
        lock(&self.entries).raised.iter().any(|entry| {
            entry.id <= last_id
                && level <= entry.level
                && (mutates || entry.mutates)
                && entry.extent.overlaps(extent)
        })
    }

    /// Waits until nothing that was raised before the first poll blocks the IO.
    pub(crate) async fn wait(&self, extent: Extent, mutates: bool, level: u8) {
        let last_id = lock(&self.entries).last_id;
        loop {
            let lifted = self.lifted.listen();
            if !self.blocks_until(last_id, extent, mutates, level) {
                return;
            }
            lifted.await;
        }
    }

    /// Raises the fence for an orphan.
    pub(crate) fn raise(self: &Arc<Self>, extent: Extent, mutates: bool, level: u8) -> Raised {
        let mut entries = lock(&self.entries);
        entries.last_id += 1;
        let id = entries.last_id;
        entries.raised.push(Entry {
            id,
            extent,
            mutates,
            level,
        });
        self.count.fetch_add(1, Ordering::AcqRel);
        Raised {
            fence: Arc::clone(self),
            id,
        }
    }
}

/// A raised fence; dropping it lowers it.
#[derive(Debug)]
pub(crate) struct Raised {
    fence: Arc<Fence>,
    id: u64,
}

impl Drop for Raised {
    fn drop(&mut self) {
        {
            let mut entries = lock(&self.fence.entries);
            entries.raised.retain(|entry| entry.id != self.id);
            self.fence.count.fetch_sub(1, Ordering::AcqRel);
        }
        self.fence.lifted.notify_all();
    }
}
