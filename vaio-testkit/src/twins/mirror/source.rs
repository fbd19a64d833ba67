//! The mirror as a source of dirty data: blocks that the primary lacks are short of the backing,
//! blocks that either side lacks or may lose are short of the replica.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::channel::oneshot;
use vaio_core::{
    BlockDeviceExt, DirtyMap, DirtyMark, DirtyPiece, DirtyPolicy, DirtySource, DirtySummary, Error,
    ErrorKind, Extent, HeldPoint, Instant, Level, Result, sync::LockMode,
};

use super::{BOTH, MIRROR, PRIMARY, Shared};

/// What the filter hands out.
#[derive(Debug)]
pub(super) struct Source(pub(super) Arc<Shared>);

impl Source {
    fn lacking(&self, level: Level) -> DirtyMap {
        let sides = self.0.sides();
        match level {
            Level::Drained => DirtyMap::new(),
            // Not flushed is short of durable, wherever it is.
            Level::CacheDurable | Level::BackingDurable => sides.lacking(PRIMARY, true),
            Level::ReplicaDurable => sides.lacking(BOTH, true),
        }
    }
}

#[async_trait]
impl DirtySource for Source {
    fn summary(&self, level: Level) -> DirtySummary {
        DirtySummary::new(self.lacking(level).bytes(), Duration::ZERO)
    }

    fn extents(&self, level: Level, range: Extent) -> DirtyMap {
        let lacking = self.lacking(level);
        let inside = lacking
            .extents()
            .iter()
            .filter_map(|one| one.intersect(range));
        inside.collect()
    }

    /// A mirror keeps no order: the mark is that of now.
    fn mark(&self) -> DirtyMark {
        DirtyMark(self.0.sides().writes())
    }

    async fn read_dirty(
        &self,
        level: Level,
        from: DirtyMark,
        bytes_max: u64,
    ) -> Result<Vec<DirtyPiece>> {
        let mark = self.mark();
        let mut pieces = Vec::new();
        let mut bytes = 0;
        if from > mark {
            return Ok(pieces);
        }
        for extent in self.lacking(level).extents() {
            let _order = self.0.lock(*extent, LockMode::Shared).await;
            let runs = self.0.sides().runs(*extent);
            for (run, valid) in runs {
                bytes += run.len();
                if bytes > bytes_max && !pieces.is_empty() {
                    return Ok(pieces);
                }
                let data = if valid == MIRROR {
                    self.0.mirror.read(run.offset(), run.len()).await?
                } else {
                    self.0.cx.lower().read(run.offset(), run.len()).await?
                };
                pieces.push(DirtyPiece::new(run, mark, data));
            }
        }
        Ok(pieces)
    }

    /// Copies what is stale now, in a task of its own: it ends also if the caller lets go.
    async fn flush_to(&self, _mark: DirtyMark, level: Level) -> Result<()> {
        if level == Level::Drained {
            return Ok(());
        }
        let stale = match level {
            Level::CacheDurable => DirtyMap::new(),
            Level::BackingDurable => self.0.sides().lacking(PRIMARY, false),
            _ => self.0.sides().lacking(BOTH, false),
        };
        let (send, receive) = oneshot::channel();
        let mirror = Arc::clone(&self.0);
        self.0.cx.spawn("mirror.flush", async move {
            let work = async {
                for extent in stale.extents() {
                    mirror.resync(*extent).await?;
                }
                mirror.flush().await
            };
            let _ = send.send(work.await);
        });
        let gone = || Error::new(ErrorKind::Gone, "the mirror was closed meanwhile");
        receive.await.unwrap_or_else(|_| Err(gone()))
    }

    async fn hold(&self, _until: Instant) -> Result<Arc<dyn HeldPoint>> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "a mirror does not keep writes from the disk; quiesce it instead",
        ))
    }

    /// A mirror makes no dirty data of its own accord.
    async fn set_policy(&self, _policy: DirtyPolicy) -> Result<()> {
        Ok(())
    }
}
