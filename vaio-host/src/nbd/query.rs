//! [`Queries`]: block status requests, answered beside the IO.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use vaio_core::{Disk, Error, ErrorKind, Extent, Result};

use super::{
    context::{MetaContext, STATUS_RANGE_MAX, StatusMap},
    export::Export,
    proto::StatusChunk,
};

/// Where the answer to one context comes from.
#[derive(Clone, Debug)]
enum Source {
    Allocation,
    Registered(Arc<dyn MetaContext>),
}

/// The meta contexts that a client chose, by their numbers on the wire.
#[derive(Clone, Debug)]
pub(super) struct Queries(Vec<(u32, Source)>);

impl Queries {
    /// The contexts of `export` numbered `chosen`: 0 is `base:allocation`, the registered ones
    /// follow in their order.
    pub(super) fn new(export: &Export, chosen: &[u32]) -> Self {
        let registered = export.contexts.iter().map(Arc::clone);
        let all = std::iter::once(Source::Allocation).chain(registered.map(Source::Registered));
        let numbered = (0..).zip(all);
        Self(numbered.filter(|(id, _)| chosen.contains(id)).collect())
    }

    /// Begins a query over `len` bytes at `offset`, of the contexts in `only`, or of all.
    ///
    /// # Errors
    /// The range is not on the disk or not of whole blocks, or a context was not chosen.
    pub(super) fn start(
        &self,
        disk: &Disk,
        (offset, len): (u64, u64),
        one: bool,
        only: Option<&[u32]>,
    ) -> Result<BoxFuture<'static, Result<Vec<StatusChunk>>>> {
        let info = disk.info();
        let block = info.sub_block.unwrap_or(info.logical_block);
        Extent::checked(offset, len)
            .filter(|range| !range.is_empty() && range.is_aligned(block))
            .filter(|range| info.extent().contains(*range))
            .ok_or_else(|| {
                Error::invalid(format!(
                    "block status range is empty, unaligned or past the end, offset={offset} len={len}"
                ))
            })?;
        let wanted = |id: &u32| only.is_none_or(|only| only.contains(id));
        if only.is_some_and(|only| {
            only.iter()
                .any(|id| self.0.iter().all(|(own, _)| own != id))
        }) {
            return Err(Error::invalid(
                "block status of a context that was not chosen",
            ));
        }
        let sources: Vec<_> = self
            .0
            .iter()
            .filter(|(id, _)| wanted(id))
            .cloned()
            .collect();
        if sources.is_empty() {
            return Err(Error::invalid("block status without a meta context"));
        }
        let range = Extent::new(offset, len.min(STATUS_RANGE_MAX));
        let disk = disk.clone();
        Ok(Box::pin(async move {
            let mut chunks = Vec::with_capacity(sources.len());
            for (context, source) in sources {
                let status = match source {
                    Source::Allocation => {
                        StatusMap::from_allocation(&disk.allocation(range).await?)
                    }
                    Source::Registered(context) => context.status(range).await?,
                };
                let extents = status.to_extents(range.len(), one);
                if extents.is_empty() {
                    return Err(Error::new(
                        ErrorKind::Internal,
                        "meta context has no answer",
                    ));
                }
                chunks.push(StatusChunk { context, extents });
            }
            Ok(chunks)
        }))
    }
}

/// A query in flight and the tag of its request.
pub(super) struct Query {
    tag: u64,
    answer: BoxFuture<'static, Result<Vec<StatusChunk>>>,
}

impl Query {
    pub(super) fn new(tag: u64, answer: BoxFuture<'static, Result<Vec<StatusChunk>>>) -> Self {
        Self { tag, answer }
    }
}

impl Future for Query {
    type Output = (u64, Result<Vec<StatusChunk>>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let tag = self.tag;
        self.answer.as_mut().poll(cx).map(|result| (tag, result))
    }
}
