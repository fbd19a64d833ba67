//! [`Contained`]: a filter's source of dirty data as the framework calls it. A panic in it is
//! caught and blamed, and what it did not say is answered with the worst: everything is dirty, and
//! no level is reached.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::FutureExt;

use crate::{
    DirtyMap, DirtyMark, DirtyPiece, DirtyPolicy, DirtySource, DirtySummary, Error, ErrorKind,
    Extent, HeldPoint, Instant, Level, Result,
    chain::{Layer, panic_text},
    core::Core,
    event::EventKind,
};

/// A source that hurts no one.
#[derive(Debug)]
pub(super) struct Contained {
    core: Arc<Core>,
    layer: Arc<Layer>,
    /// `None`: the filter panicked when it was asked for its source.
    source: Option<Arc<dyn DirtySource>>,
}

impl Contained {
    /// The source of a filter, if it has one.
    pub(super) fn of(core: &Arc<Core>, layer: &Arc<Layer>) -> Option<Arc<dyn DirtySource>> {
        let source = match catch_unwind(AssertUnwindSafe(|| layer.filter.dirty())) {
            Ok(source) => Some(source?),
            Err(panic) => {
                blame(core, layer, panic.as_ref());
                None
            }
        };
        Some(Arc::new(Self {
            core: Arc::clone(core),
            layer: Arc::clone(layer),
            source,
        }))
    }

    fn ask<T>(&self, ask: impl FnOnce(&dyn DirtySource) -> T) -> Option<T> {
        let source = self.source.as_deref()?;
        catch_unwind(AssertUnwindSafe(|| ask(source)))
            .map_err(|panic| blame(&self.core, &self.layer, panic.as_ref()))
            .ok()
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        match AssertUnwindSafe(call).catch_unwind().await {
            Ok(result) => result,
            Err(panic) => {
                blame(&self.core, &self.layer, panic.as_ref());
                Err(self.broken())
            }
        }
    }

    fn source(&self) -> Result<&dyn DirtySource> {
        self.source.as_deref().ok_or_else(|| self.broken())
    }

    fn broken(&self) -> Error {
        Error::new(
            ErrorKind::FilterFault,
            "the filter panicked when it was asked for its dirty data; everything counts as dirty",
        )
        .with_filter(Arc::clone(&self.layer.name))
    }
}

fn blame(core: &Core, layer: &Layer, panic: &(dyn std::any::Any + Send)) {
    layer.blame(core, EventKind::FilterPanicked, &panic_text(panic));
}

#[async_trait]
impl DirtySource for Contained {
    fn summary(&self, level: Level) -> DirtySummary {
        self.ask(|source| source.summary(level))
            .unwrap_or_else(|| DirtySummary::new(u64::MAX, Duration::ZERO))
    }

    fn remaining(&self, level: Level, mark: DirtyMark) -> u64 {
        self.ask(|source| source.remaining(level, mark))
            .unwrap_or(u64::MAX)
    }

    fn extents(&self, level: Level, range: Extent) -> DirtyMap {
        self.ask(|source| source.extents(level, range))
            .unwrap_or_else(|| std::iter::once(range).collect())
    }

    fn mark(&self) -> DirtyMark {
        self.ask(DirtySource::mark).unwrap_or(DirtyMark(u64::MAX))
    }

    async fn read_dirty(
        &self,
        level: Level,
        from: DirtyMark,
        bytes_max: u64,
    ) -> Result<Vec<DirtyPiece>> {
        let source = self.source()?;
        self.call(async move { source.read_dirty(level, from, bytes_max).await })
            .await
    }

    async fn flush_to(&self, mark: DirtyMark, level: Level) -> Result<()> {
        let source = self.source()?;
        self.call(async move { source.flush_to(mark, level).await })
            .await
    }

    async fn hold(&self, until: Instant) -> Result<Arc<dyn HeldPoint>> {
        let source = self.source()?;
        self.call(async move { source.hold(until).await }).await
    }

    async fn set_policy(&self, policy: DirtyPolicy) -> Result<()> {
        let source = self.source()?;
        self.call(async move { source.set_policy(policy).await })
            .await
    }
}
