//! The cache as a source of dirty data.
//!
//! * Q1: over-reporting is allowed, under-reporting never: a write is reported from the moment it
//!   is queued until the superblock says, durably, that the backing has it. So is what went past
//!   the log and the backing has not flushed.
//! * Q2: a mark is a seq: everything before it was answered before the mark was taken.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use async_trait::async_trait;
use bytes::Bytes;
use futures::channel::oneshot;
use vaio_core::{
    DirtyMap, DirtyMark, DirtyPiece, DirtyPolicy, DirtySource, DirtySummary, Error, ErrorKind,
    Extent, HeldPoint, Instant, Level, Result, zeroes,
};

use crate::{
    cache::Cache,
    geometry::index,
    log::Log,
    read::Taken,
    record::{Entry, Kind},
};

/// What the filter hands out.
#[derive(Debug)]
pub(crate) struct Source(pub(crate) Arc<Cache>);

/// The seq up to which everything has reached a level; `None`: nothing is ever short of it.
fn reached(log: &Log, level: Level) -> Option<u64> {
    match level {
        Level::Drained => None,
        Level::CacheDurable => Some(log.durable()),
        Level::BackingDurable | Level::ReplicaDurable => Some(log.destaged()),
    }
}

impl Cache {
    /// What is short of a level (Q1).
    pub(crate) fn dirty(&self, level: Level) -> DirtyMap {
        self.dirty_within(level, self.cx.below().extent())
    }

    /// What is short of a level within a range (Q1).
    fn dirty_within(&self, level: Level, range: Extent) -> DirtyMap {
        let mut extents = Vec::new();
        if level != Level::Drained {
            extents.extend_from_slice(self.below.dirty().extents());
        }
        {
            let log = self.log();
            if let Some(from) = reached(&log, level) {
                let spans = log.spans_from(from);
                let within = spans.map(|span| log.geometry().extent(span));
                extents.extend(within.filter(|one| one.overlaps(range)));
            }
        }
        // Sorted and merged with the lock given back.
        let within = extents.into_iter();
        within.filter_map(|one| one.intersect(range)).collect()
    }

    /// Dirty entries from a seq on, up to a size, each with what holds it.
    fn dirty_entries(
        &self,
        level: Level,
        from: u64,
        bytes_max: u64,
    ) -> Vec<(u64, Entry, Taken<'_>)> {
        let mut log = self.log();
        let Some(reached) = reached(&log, level) else {
            return Vec::new();
        };
        let mut bytes = 0;
        let mut entries: Vec<(u64, Entry)> = Vec::new();
        for (seq, entry) in log.entries_from(from.max(reached)) {
            bytes += log.geometry().bytes(entry.span.count);
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push((seq, entry));
        }
        let taken = entries.into_iter().map(|(seq, entry)| {
            let found = log.found_of(seq);
            (seq, entry, self.take(&mut log, &found))
        });
        taken.collect()
    }
}

#[async_trait]
impl DirtySource for Source {
    fn summary(&self, level: Level) -> DirtySummary {
        let bytes = self.0.dirty(level).bytes();
        let log = self.0.log();
        let oldest = reached(&log, level).and_then(|from| log.oldest_from(from));
        let now = self.0.cx.rt().now();
        DirtySummary::new(
            bytes,
            oldest.map_or_else(Default::default, |since| now.since(since)),
        )
    }

    fn extents(&self, level: Level, range: Extent) -> DirtyMap {
        self.0.dirty_within(level, range)
    }

    fn remaining(&self, level: Level, mark: DirtyMark) -> u64 {
        let below = self.0.below.dirty().bytes();
        let log = self.0.log();
        let left = reached(&log, level).map_or(0, |from| log.bytes_between(from, mark.0));
        left + if level == Level::Drained { 0 } else { below }
    }

    fn mark(&self) -> DirtyMark {
        // Q2.
        DirtyMark(self.0.log().published())
    }

    async fn read_dirty(
        &self,
        level: Level,
        from: DirtyMark,
        bytes_max: u64,
    ) -> Result<Vec<DirtyPiece>> {
        let cache = &self.0;
        let mut pieces = Vec::new();
        for (seq, entry, taken) in cache.dirty_entries(level, from.0, bytes_max) {
            let extent = cache.device.geometry().extent(entry.span);
            let data: Bytes = match entry.kind {
                Kind::Data => cache.load(&taken).await?,
                Kind::Zeroes | Kind::Discard | Kind::Void => zeroes(index(extent.len())),
            };
            pieces.push(DirtyPiece::new(extent, DirtyMark(seq), data));
        }
        Ok(pieces)
    }

    async fn flush_to(&self, mark: DirtyMark, level: Level) -> Result<()> {
        let published = self.0.log().published();
        let to = mark.0.min(published);
        match level {
            Level::Drained => Ok(()),
            Level::CacheDurable => self.flush_in_background(to).await,
            Level::BackingDurable | Level::ReplicaDurable => {
                self.0.destage_to(to).await?;
                if self.0.below.dirty().is_empty() {
                    return Ok(());
                }
                self.flush_in_background(to).await
            }
        }
    }

    async fn hold(&self, until: Instant) -> Result<Arc<dyn HeldPoint>> {
        self.0.hold(until).await
    }

    async fn set_policy(&self, policy: DirtyPolicy) -> Result<()> {
        // Each write looks at it right before its answer.
        let is_write_through = policy == DirtyPolicy::WriteThrough;
        self.0.is_write_through.store(is_write_through, Relaxed);
        if is_write_through {
            self.0.kick();
        }
        Ok(())
    }
}

impl Source {
    /// Flushes, to the end even if the caller lets go: the device's IO has no other owner.
    async fn flush_in_background(&self, to: u64) -> Result<()> {
        let (send, receive) = oneshot::channel();
        let cache = Arc::clone(&self.0);
        self.0.cx.spawn("cache.flush", async move {
            let flushed = if cache.below.dirty().is_empty() {
                cache.make_durable(to).await
            } else {
                cache.flush_below().await
            };
            let _ = send.send(flushed);
        });
        let gone = || Error::new(ErrorKind::Gone, "the cache was closed meanwhile");
        receive.await.unwrap_or_else(|_| Err(gone()))
    }
}
