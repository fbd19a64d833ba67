//! Writes that go straight to the backing: the modes that hold nothing, and a cache device that
//! failed.
//!
//! * Y1: the way is entered under the closed passage: no write is on its way, everything that was
//!   logged is on the backing, flushed, and that is durable, so that the log can never put older
//!   content over what is written now.
//! * Y2: it is not left while the instance lives; the next open begins with a flush of the backing.
//! * Y3: what the backing has not flushed is kept in memory, bounded, in the order of writes. After
//!   a failed flush its last versions are written again before the next one counts: the promise of
//!   [`FlushRetry::Covers`](vaio_core::FlushRetry::Covers) holds here too.

use std::sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed};

use vaio_core::{
    BlockDeviceExt, DirtyMap, Extent, Io, Next, Op, Reply, Result, Severity,
    sync::{self, LockMode, RangeLock},
};

use crate::{cache::Cache, geometry::index, settings::Durability, write::Content};

/// Extents kept (Y3).
const KEPT_MAX: usize = 4096;

/// What went below and is not flushed there.
#[derive(Debug)]
pub(crate) struct Below {
    kept: Mutex<Kept>,
    /// Overlapping writes go down one after another, so that their order is known.
    ranges: RangeLock,
    /// Flushes come one after another.
    flushing: sync::Mutex<()>,
}

impl Default for Below {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            ranges: RangeLock::default(),
            flushing: sync::Mutex::new(()),
        }
    }
}

#[derive(Debug, Default)]
struct Kept {
    writes: Vec<(Extent, Content)>,
    bytes: u64,
    /// A flush failed: what is kept may be lost below.
    is_doubtful: bool,
}

impl Below {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the backing may lose.
    pub(crate) fn dirty(&self) -> DirtyMap {
        let kept = self.kept();
        kept.writes.iter().map(|(extent, _)| *extent).collect()
    }
}

impl Cache {
    /// The cache device failed: everything that is dirty goes to the backing, then writes do.
    ///
    /// # Errors
    /// As the backing, or as reads of the cache device: nothing was given up, and the next write
    /// tries again.
    pub(crate) async fn degrade(&self) -> Result<()> {
        let _closed = self.passage.close().await;
        if self.is_bypassed() {
            return Ok(());
        }
        let text = "the cache device failed: writes go through to the backing";
        self.event(Severity::Error, text, "replace the cache device");
        self.let_go();
        let (published, next) = {
            let mut log = self.log();
            log.drop_unpublished();
            (log.published(), log.next())
        };
        self.destage_to(published).await?;
        // Y1: also past the records that were given up: one may be whole on the device.
        self.persist(next).await?;
        self.is_bypassed.store(true, Relaxed);
        // What it holds for reads is used as long as it verifies; it takes no more.
        self.store.stop();
        self.cx.rt().probe("cache.degraded");
        Ok(())
    }

    /// Enters the way while the instance is opened: no write is there yet.
    pub(crate) async fn drain(&self) -> Result<()> {
        while !self.log().is_empty() {
            self.destage_batch().await?;
        }
        Ok(())
    }

    /// A write, zeroes or discard past the log.
    pub(crate) async fn write_below(
        &self,
        io: &Io,
        extent: Extent,
        content: &Content,
        next: Next<'_>,
    ) -> Result<Reply> {
        if self.is_full_below() {
            self.flush_below().await?;
        }
        let _order = self.below.ranges.lock(extent, LockMode::Exclusive).await;
        let mut op = match &io.op {
            // Above, discarded blocks read as zeroes.
            Op::Discard { extent, fua } => Op::WriteZeroes {
                extent: *extent,
                may_unmap: true,
                fast_only: false,
                fua: *fua,
            },
            op => op.clone(),
        };
        if self.settings.durability == Durability::AtAck {
            op = op.with_fua(true);
        }
        next.submit(io.with_op(op)).await?;
        let mut kept = self.below.kept();
        kept.bytes += extent.len();
        // What is durable already, too: an older version must not be written over it.
        kept.writes.push((extent, content.clone()));
        Ok(Reply::Done)
    }

    fn is_full_below(&self) -> bool {
        let kept = self.below.kept();
        kept.bytes >= self.settings.unflushed_bytes_max || kept.writes.len() >= KEPT_MAX
    }

    /// Makes durable on the backing what went past the log.
    pub(crate) async fn flush_below(&self) -> Result<()> {
        let _alone = self.below.flushing.lock().await;
        let lower = self.cx.lower();
        let is_doubtful = self.below.kept().is_doubtful;
        if is_doubtful {
            // Y3: no write is on its way meanwhile.
            let whole = self.cx.below().extent();
            let _alone = self.below.ranges.lock(whole, LockMode::Exclusive).await;
            let newest = newest(&self.below.kept().writes);
            // X1: what is below may be older at the moment.
            let geometry = self.device.geometry();
            let changes = newest.iter().map(|(extent, _)| geometry.span(*extent));
            let _changes: Vec<_> = changes.map(|span| self.store.change(span)).collect();
            for (extent, content) in newest {
                match content {
                    Content::Data(data) => lower.write(extent.offset(), data).await?,
                    Content::Zeroes | Content::Discard => {
                        lower.write_zeroes(extent.offset(), extent.len()).await?;
                    }
                }
            }
            self.below.kept().is_doubtful = false;
            self.cx.rt().probe("cache.written_again_below");
        }
        let count = self.below.kept().writes.len();
        let flushed = lower.flush().await;
        let mut kept = self.below.kept();
        match flushed {
            Ok(()) => {
                let gone: u64 = kept.writes.drain(..count).map(|(one, _)| one.len()).sum();
                kept.bytes -= gone;
            }
            Err(_) => kept.is_doubtful = true,
        }
        flushed
    }
}

/// The last version of each block: an older one on the backing, if only for a moment, could take
/// the place of what was durable.
fn newest(writes: &[(Extent, Content)]) -> Vec<(Extent, Content)> {
    let mut covered = DirtyMap::new();
    let mut newest = Vec::new();
    for (extent, content) in writes.iter().rev() {
        let mut rest: DirtyMap = [*extent].into_iter().collect();
        for newer in covered.extents() {
            rest.remove(*newer);
        }
        for part in rest.extents() {
            let content = match content {
                Content::Data(data) => {
                    let from = index(part.offset() - extent.offset());
                    Content::Data(data.slice(from..from + index(part.len())))
                }
                other => other.clone(),
            };
            newest.push((*part, content));
        }
        covered.insert(*extent);
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn newest_versions_are_disjoint_and_leave_no_older_one() {
        let data = |byte, len| Content::Data(Bytes::from(vec![byte; len]));
        let writes = [
            (Extent::new(0, 4), data(1, 4)),
            (Extent::new(1, 2), data(2, 2)),
            (Extent::new(2, 4), Content::Zeroes),
        ];
        let expected = [
            (Extent::new(2, 4), Content::Zeroes),
            (Extent::new(1, 1), data(2, 1)),
            (Extent::new(0, 1), data(1, 1)),
        ];
        assert_eq!(newest(&writes), expected);
    }
}
