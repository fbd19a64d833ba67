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
    geometry::{At, index},
    log::{Folded, Log, Part, entries_of},
    read::Taken,
    record::{Entry, Header, Kind},
};

/// What the filter hands out.
#[derive(Debug)]
pub(crate) struct Source(pub(crate) Arc<Cache>);

/// An entry of the log, its seq, and what holds it.
type Dirty<'a> = (u64, Entry, Taken<'a>);

/// What is in the log at some seq.
enum Held<'a> {
    End,
    /// And the seq behind them.
    Records(u64, Vec<Dirty<'a>>),
    /// On the device, and its segment kept.
    Folded(Folded, Taken<'a>),
}

/// The seq up to which everything has reached a level; `None`: nothing is ever short of it.
fn reached(log: &Log, level: Level) -> Option<u64> {
    match level {
        Level::Drained => None,
        Level::CacheDurable => Some(log.durable()),
        Level::BackingDurable | Level::ReplicaDurable => Some(log.destaged()),
    }
}

impl Cache {
    /// What is short of a level within a range (Q1).
    fn dirty_within(&self, level: Level, range: Extent) -> DirtyMap {
        if level == Level::Drained {
            return DirtyMap::new();
        }
        let mut extents = self.below.dirty().extents().to_vec();
        {
            let log = self.log();
            let geometry = log.geometry();
            let within = |span| Some(geometry.extent(span)).filter(|one| one.overlaps(range));
            match level {
                Level::CacheDurable => extents.extend(log.volatile_spans().filter_map(within)),
                _ => extents.extend(log.dirty_spans().filter_map(within)),
            }
        }
        // Sorted and merged with the lock given back.
        let within = extents.into_iter();
        within.filter_map(|one| one.intersect(range)).collect()
    }

    /// Bytes of [`dirty_within`](Self::dirty_within) the whole disk, in time that does not grow with them; what is overwritten
    /// at the moment may count twice.
    pub(crate) fn dirty_bytes(&self, level: Level) -> u64 {
        let log = match level {
            Level::Drained => return 0,
            Level::CacheDurable => self.log().volatile_bytes(),
            _ => self.log().dirty_blocks_bytes(),
        };
        log + self.below.dirty().bytes()
    }

    /// Dirty entries from a seq on, about up to a size, each with what holds it. Empty only where
    /// there are none.
    async fn dirty_entries(
        &self,
        level: Level,
        from: u64,
        bytes_max: u64,
    ) -> Result<Vec<Dirty<'_>>> {
        let Some(reached) = reached(&self.log(), level) else {
            return Ok(Vec::new());
        };
        let mut from = from.max(reached);
        loop {
            let (end, entries) = match self.part(from, bytes_max) {
                Held::End => return Ok(Vec::new()),
                Held::Records(end, entries) => (end, entries),
                Held::Folded(folded, pin) => {
                    let headers = self.headers_of(&folded).await?;
                    let entries = self.take_entries(&mut self.log(), &headers, from, bytes_max);
                    drop(pin);
                    (folded.end_seq(), entries)
                }
            };
            if !entries.is_empty() {
                return Ok(entries);
            }
            // Nothing but writes that were given up.
            from = end;
        }
    }

    /// What is at a seq, held there in the same moment.
    fn part(&self, from: u64, bytes_max: u64) -> Held<'_> {
        let mut log = self.log();
        match log.part_from(from, bytes_max) {
            Part::End => Held::End,
            Part::Records(headers) => {
                let end = headers.last().map_or(from, |(last, _)| last.end());
                let entries = self.take_entries(&mut log, &headers, from, bytes_max);
                Held::Records(end, entries)
            }
            Part::Folded(folded) => {
                let pin = self.pin_segment(&mut log, folded.live().segment);
                Held::Folded(folded, pin)
            }
        }
    }

    fn take_entries(
        &self,
        log: &mut Log,
        headers: &[(Header, At)],
        from: u64,
        bytes_max: u64,
    ) -> Vec<Dirty<'_>> {
        let geometry = *log.geometry();
        let entries = headers
            .iter()
            .flat_map(|(header, at)| entries_of(header, *at, &geometry))
            .filter(|(seq, _, _)| *seq >= from);
        let mut bytes = 0;
        let mut taken = Vec::new();
        for (seq, entry, found) in entries {
            bytes += geometry.bytes(entry.span.count);
            if bytes > bytes_max && !taken.is_empty() {
                break;
            }
            taken.push((seq, entry, self.take(log, &found)));
        }
        taken
    }
}

#[async_trait]
impl DirtySource for Source {
    fn summary(&self, level: Level) -> DirtySummary {
        let bytes = self.0.dirty_bytes(level);
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
        for (seq, entry, taken) in cache.dirty_entries(level, from.0, bytes_max).await? {
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
            self.0.drain_soon();
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
