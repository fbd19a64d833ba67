//! The root of one IO: the future that owns the whole way down. Dropped after its first poll, it
//! leaves the IO to the keeper.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use crate::{
    BoxFuture, Error, ErrorKind, Extent, Io, OpKind, Origin, Reply, Result,
    chain::{IoCx, Next},
    core::Core,
    keeper::{Keeper, Orphan},
    slot::Slot,
    sync::lock,
};

/// Starts an IO at `level` of a chain. Owns everything it needs; lazy.
pub(crate) fn launch(cx: IoCx, level: u8, io: Io) -> BoxFuture<'static, Result<Reply>> {
    Box::pin(async move { Next::root(&cx, level).submit(io).await })
}

/// What the asker of an expired IO is told.
pub(crate) fn expired(kind: OpKind, extent: Extent) -> Error {
    Error::new(
        ErrorKind::TimedOut,
        "the IO took too long; it is still in flight and its range is fenced until it ends",
    )
    .with_op(kind)
    .with_extent(extent)
}

/// Ends one entry of the gate when dropped.
#[derive(Debug)]
pub(crate) struct Entered(pub(crate) Arc<Core>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.gate.exit();
    }
}

/// An IO that was admitted, without a port: a filter's own, or an embedder's single one.
pub(crate) struct Rooted {
    future: Option<BoxFuture<'static, Result<Reply>>>,
    is_polled: bool,
    kind: OpKind,
    extent: Extent,
    level: u8,
    by: Arc<str>,
    slot: Arc<Slot>,
    entered: Entered,
}

impl Rooted {
    /// `entered` is the gate's entry for this IO, `by` who is to be named if it is let go.
    pub(crate) fn new(cx: IoCx, level: u8, io: Io, by: Arc<str>, entered: Entered) -> Self {
        let (kind, extent) = (io.op.kind(), io.op.extent());
        let core = &entered.0;
        let tick = core.tick.load(Relaxed);
        cx.slot.start(io.id, kind, extent, tick, false);
        let is_own = level > 0 || io.origin == Origin::Filter;
        cx.slot.is_own.store(is_own, Relaxed);
        cx.slot.is_part.store(cx.chain.is_part, Relaxed);
        core.wake_watch();
        let slot = Arc::clone(&cx.slot);
        let future = Some(launch(cx, level, io));
        Self {
            future,
            is_polled: false,
            kind,
            extent,
            level,
            by,
            slot,
            entered,
        }
    }

    fn orphan(&mut self) {
        *lock(&self.slot.waker) = None;
        let Some(future) = self.future.take() else {
            return;
        };
        if !self.is_polled {
            self.slot.end();
            return;
        }
        let orphan = Orphan {
            future,
            kind: self.kind,
            extent: self.extent,
            level: self.level,
            dropped_by: Arc::clone(&self.by),
            slot: Arc::clone(&self.slot),
            ends_slot: true,
            stands_for_slot: true,
        };
        Keeper::adopt(&self.entered.0, orphan);
    }
}

impl Future for Rooted {
    type Output = Result<Reply>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.slot.is_expired() {
            this.orphan();
            return Poll::Ready(Err(expired(this.kind, this.extent)));
        }
        let future = this.future.as_mut().expect("polled once after it ended");
        this.is_polled = true;
        let poll = future.as_mut().poll(context);
        if poll.is_ready() {
            this.future = None;
            *lock(&this.slot.waker) = None;
            this.slot.end();
        } else {
            *lock(&this.slot.waker) = Some(context.waker().clone());
        }
        poll
    }
}

impl Drop for Rooted {
    fn drop(&mut self) {
        self.orphan();
    }
}
