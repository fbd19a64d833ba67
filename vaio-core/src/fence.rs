//! The fence: an IO whose asker let go is still in flight, and nothing that overlaps it may pass
//! it until it ends. Else a retry could land first and the late original after it.

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
    entries: Mutex<Vec<Entry>>,
    lifted: Notify,
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
        !self.is_empty()
            && lock(&self.entries).iter().any(|entry| {
                level <= entry.level && (mutates || entry.mutates) && entry.extent.overlaps(extent)
            })
    }

    /// Waits until nothing blocks the IO.
    pub(crate) async fn wait(&self, extent: Extent, mutates: bool, level: u8) {
        loop {
            let lifted = self.lifted.listen();
            if !self.blocks(extent, mutates, level) {
                return;
            }
            lifted.await;
        }
    }

    /// Raises the fence for an orphan.
    pub(crate) fn raise(self: &Arc<Self>, extent: Extent, mutates: bool, level: u8) -> Raised {
        let mut entries = lock(&self.entries);
        let id = entries.last().map_or(1, |entry| entry.id + 1);
        entries.push(Entry {
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
            entries.retain(|entry| entry.id != self.id);
            self.fence.count.fetch_sub(1, Ordering::AcqRel);
        }
        self.fence.lifted.notify_all();
    }
}
