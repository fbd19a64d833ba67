//! The filter: the table of what happens to each operation, and to the disk.

use std::sync::Arc;

use async_trait::async_trait;
use vaio_core::{
    DeviceInfo, DirtySource, DiscardReads, Error, Filter, FilterState, Io, Level, Lifecycle, Next,
    Op, Outcome, Phase, Reply, Result, RuntimeExt, Support, Verb,
};

use crate::{
    cache::Cache, dirty::Source, log::ZEROES_BLOCKS_MAX, map::UNITS_MAX, recover,
    settings::Durability, write::Content,
};

/// One instance of the cache.
#[derive(Debug)]
pub(crate) struct CacheFilter(pub(crate) Arc<Cache>);

#[async_trait]
impl Filter for CacheFilter {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        let cache = &self.0;
        let extent = io.op.extent();
        match &io.op {
            Op::Read { .. } => cache.read(io, extent, next).await,
            Op::Write { data, .. } => {
                let content = Content::Data(data.clone());
                cache.mutate(&io, extent, content, next).await
            }
            Op::WriteZeroes { .. } => cache.mutate(&io, extent, Content::Zeroes, next).await,
            Op::Discard { .. } => cache.mutate(&io, extent, Content::Discard, next).await,
            Op::Flush => cache.flush().await,
            _ => Err(Error::unsupported(io.op.kind())),
        }
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        let geometry = self.0.device.geometry();
        let capacity_max = UNITS_MAX * geometry.bytes(geometry.unit.into());
        if below.capacity > capacity_max {
            return Err(Error::config(format!(
                "the disk is larger than the cache can map, capacity_max={capacity_max}"
            )));
        }
        let mut info = below.with_caps(|caps| {
            caps.volatile_cache = self.0.settings.durability == Durability::AtFlush;
            caps.fua = Support::Native;
            caps.write_zeroes = Support::Native;
            caps.fast_zeroes = true;
            caps.discard = Support::Native;
            caps.discard_reads = DiscardReads::Zero;
            // What is asked below and what is held here are two moments: between them a hole may
            // have been destaged into.
            caps.allocation = false;
        });
        info.zeroes_max = ZEROES_BLOCKS_MAX * u64::from(info.logical_block);
        Ok(info)
    }

    async fn lifecycle(&self, event: Lifecycle<'_>) -> Result<Outcome> {
        let cache = &self.0;
        match (event.verb, event.phase) {
            (Verb::Close, Phase::Prepare) => {
                cache.let_go();
                // Where the backing does not take it, the log keeps it for the next open, which
                // finds that this close was not in order.
                cache.flush().await?;
                cache.destage_all().await?;
            }
            (Verb::Close, Phase::Commit) if cache.is_clean() => {
                recover::note_clean(&cache.cx).await?;
            }
            (Verb::Resize { from, to }, Phase::Prepare) if to < from => {
                return Err(Error::refused(
                    "the cache may hold writes beyond the new end; detach it first",
                ));
            }
            (Verb::Detach, Phase::Prepare) => {
                cache.let_go();
                cache.destage_all().await?;
                cache.flush().await?;
            }
            (Verb::Snapshot { .. }, Phase::Prepare) => {
                // As far as it comes in time: who holds or quiesces the backing brings the rest.
                let rt = cache.cx.rt();
                let now = rt.now();
                let until = now + event.deadline.since(now) / 2;
                let destaged = rt.timeout_at(until, cache.destage_all()).await;
                destaged.unwrap_or(Ok(()))?;
            }
            (Verb::Migrate { .. } | Verb::Clone { .. }, Phase::Prepare) => {
                cache.destage_all().await?;
            }
            _ => {}
        }
        Ok(Outcome::Done)
    }

    fn state(&self) -> FilterState {
        let dirty_bytes = self.0.dirty_bytes(Level::BackingDurable);
        self.0.report(FilterState::dirty(dirty_bytes))
    }

    fn dirty(&self) -> Option<Arc<dyn DirtySource>> {
        Some(Arc::new(Source(Arc::clone(&self.0))))
    }
}

impl Cache {
    /// Whether the backing has everything, durably.
    fn is_clean(&self) -> bool {
        self.log().is_empty() && self.below.dirty().is_empty()
    }
}
