//! One hop: an IO on its way from one layer into the next, and its answer on the way back. What
//! happens when a target breaks its contract, and other ways than the straight one, is in
//! [`fault`](super::fault).
//!
//! This is the hottest code of the crate. The straight way (target fit, IO within limits, answer
//! at the first poll) is `poll_new` ([`enter`](super::enter)) -> `poll_filter`/`poll_device` ->
//! `polled`. What it costs per
//! layer, beside the filter's own box that `async_trait` makes:
//!
//! * Allocations: none into an observer, and none where the IO enters the chain. One into a filter
//!   that holds or changes data, and into a device below filters, because that future outlives a
//!   caller that lets go of it.
//! * Atomic read-modify-writes: none ([`Tally`](crate::tally::Tally) counts without). Where the
//!   future outlives the caller, the reference counts of what it needs: two up, two down (device:
//!   one). The rest is relaxed loads and stores.
//! * Copies of the IO (72 bytes): one to the filter; a read leaves its note in place, what else an
//!   observer gets leaves a clone (for a write: one more reference to the payload). The filter
//!   makes three more: one to make its future, one into its box, one out of it.
//! * Copies of the answer (40 bytes): two here, two in the filter.
//! * Clocks and locks: none, except for the IO in 64 that is timed.
//!
//! What is written in small parts and read in large ones right after makes the processor wait for
//! its store buffer. So a hop keeps its pieces in places of their own rather than in enums, IO and
//! answer move as a whole and are looked at only where they lie, and a `Next` is two registers.

use std::{
    fmt,
    future::Future,
    mem::ManuallyDrop,
    panic::{AssertUnwindSafe, Location, catch_unwind},
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use super::{
    Chain, IoCx, Layer, Next, Path,
    answer::{Answer, Came, Caught, Place, ask, take},
    next::Way,
};
use crate::{
    BoxFuture, Extent, Health, Instant, Io, Op, OpKind, slot::Reached, stats::LayerCounters,
};

/// The future of an IO submitted through [`Next`].
///
/// Nothing happens before the first poll. Dropped after it, the IO runs to its end by itself.
#[must_use = "an IO does nothing until it is awaited"]
pub struct Submit<'a> {
    pub(super) cx: &'a IoCx,
    pub(super) site: &'static Location<'static>,
    /// The IO, where `has_io`; else a read of its extent, as a note of that.
    pub(super) io: Io,
    /// Part of the caller's future: a target's, or a detour's (see `stage`).
    pub(super) borrowed: Option<BoxFuture<'a, Answer>>,
    /// The target's, outlives the caller.
    pub(super) owned: Option<BoxFuture<'static, Answer>>,
    pub(super) way: Way,
    pub(super) to: u8,
    /// Set at the first poll: to look into the IO before it lies still would take it apart.
    pub(super) kind: OpKind,
    pub(super) stage: Stage,
    /// Before the start, and while it is in an observer, should that fail.
    has_io: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not started.
    New,
    /// Not started; the fence was waited for, or is the business of the IO that this is a part of.
    PastFence,
    /// In a filter or device whose future is part of the caller's.
    Borrowed,
    /// In a filter or device whose future outlives the caller.
    Owned,
    /// As `Owned`, but other IOs stand for this one: they are counted and timed at the target, not
    /// it.
    Emulated,
    /// Waiting for the fence, emulating, or rescuing: other hops do the work.
    Detour,
    Ended,
}

impl<'a> Submit<'a> {
    #[inline]
    pub(super) fn new(next: Next<'a>, io: Io, site: &'static Location<'static>) -> Self {
        Self {
            cx: next.cx,
            site,
            io,
            borrowed: None,
            owned: None,
            way: next.way,
            to: 0,
            kind: OpKind::Read,
            stage: Stage::New,
            has_io: true,
        }
    }

    /// An IO, or a part of one, that has waited for the fence.
    pub(super) fn past_fence(next: Next<'a>, io: Io, site: &'static Location<'static>) -> Self {
        let mut submit = Self::new(next, io, site);
        submit.stage = Stage::PastFence;
        submit
    }

    /// Where the filter made the call.
    pub fn site(&self) -> &'static Location<'static> {
        self.site
    }

    #[inline]
    pub(super) fn chain(&self) -> &'a Arc<Chain> {
        &self.cx.chain
    }

    #[inline]
    pub(super) fn layer(&self) -> Option<&'a Arc<Layer>> {
        self.chain().layers.get(usize::from(self.to))
    }

    pub(super) fn counters(&self) -> &'a LayerCounters {
        self.layer()
            .map_or(&self.chain().device_counters, |layer| &layer.counters)
    }

    pub(super) fn extent(&self) -> Extent {
        self.io.op.extent()
    }

    /// Bytes asked for, if this is a read.
    #[inline]
    pub(super) fn read_len(&self) -> u64 {
        match &self.io.op {
            Op::Read { extent } => extent.len(),
            _ => 0,
        }
    }

    /// The way that this IO came, from `level` on.
    pub(super) fn next_at(&self, level: u8) -> Next<'a> {
        Next {
            cx: self.cx,
            way: self.way.at(level, self.last_caller()),
        }
    }

    pub(super) fn next(&self) -> Next<'a> {
        self.next_at(self.way.level())
    }

    /// Whether the IO is still or again here.
    pub(super) fn has_spare(&self) -> bool {
        self.has_io
    }

    /// The IO, if it is still or again here.
    pub(super) fn spare(&mut self) -> Option<Io> {
        self.has_io.then(|| self.take_io())
    }

    /// The IO, for good; its extent stays.
    #[inline]
    pub(super) fn take_io(&mut self) -> Io {
        debug_assert!(self.has_io);
        self.has_io = false;
        let mut note = Io::read(self.extent());
        note.id = self.io.id;
        std::mem::replace(&mut self.io, note)
    }

    /// The IO; an equal one stays. It is the original that goes on, as a whole, and a read is not
    /// cloned but noted.
    #[inline]
    fn lend_io(&mut self) -> Io {
        let Op::Read { extent } = self.io.op else {
            return self.lend_clone();
        };
        let same = self.io.with_op(Op::Read { extent });
        std::mem::replace(&mut self.io, same)
    }

    #[inline(never)]
    fn lend_clone(&mut self) -> Io {
        let same = self.io.clone();
        std::mem::replace(&mut self.io, same)
    }

    /// Enters a filter and polls it once.
    #[inline]
    pub(super) fn poll_filter(
        &mut self,
        layer: &'a Layer,
        kind: OpKind,
        context: &mut Context<'_>,
    ) -> Poll<Answer> {
        let (cx, way, below) = (self.cx, self.way, self.to + 1);
        if layer.is_never && !way.is(Path::Root) {
            return self.poll_owned_filter(context);
        }
        let path = if layer.is_never || way.is(Path::Filtered) {
            Path::Filtered
        } else {
            Path::Observed
        };
        let mut place = ManuallyDrop::new(Poll::Pending);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let io = if layer.is_never {
                self.take_io()
            } else {
                self.lend_io()
            };
            let next = Next::new(cx, below, below, path);
            let mut future = layer.filter.io(io, next);
            let came = ask(&mut place, kind, self.read_len(), future.as_mut(), context);
            if came == Came::Nothing {
                self.borrowed = Some(future);
            }
            came
        }));
        self.polled(caught, &mut place, Stage::Borrowed, context)
    }

    /// Enters a filter that holds or changes data, below one that may let go of it.
    #[inline(never)]
    fn poll_owned_filter(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        self.mark_reached();
        let mut place = ManuallyDrop::new(Poll::Pending);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let (cx, to) = (self.cx.clone(), self.to);
            let io = self.take_io();
            let mut future = Box::pin(async move {
                let below = Next::new(&cx, to + 1, to + 1, Path::Filtered);
                cx.chain.layers[usize::from(to)].filter.io(io, below).await
            });
            let (kind, len) = (self.kind, self.read_len());
            let came = ask(&mut place, kind, len, future.as_mut(), context);
            if came == Came::Nothing {
                self.owned = Some(future);
            }
            came
        }));
        self.polled(caught, &mut place, Stage::Owned, context)
    }

    /// Enters the device and polls it once.
    #[inline(never)]
    pub(super) fn poll_device(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        let chain = self.chain();
        if chain.core.is_fenced_off() {
            return self.not_ours();
        }
        chain.device_counters.ios.add(self.kind);
        chain.core.polling.store(self.to + 1, Relaxed);
        let mut place = ManuallyDrop::new(Poll::Pending);
        if self.way.is(Path::Root) {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                let mut future = chain.device.submit(self.take_io());
                let (kind, len) = (self.kind, self.read_len());
                let came = ask(&mut place, kind, len, future.as_mut(), context);
                if came == Came::Nothing {
                    self.borrowed = Some(future);
                }
                came
            }));
            return self.polled(caught, &mut place, Stage::Borrowed, context);
        }
        self.mark_reached();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let device = Arc::clone(&chain.device);
            let io = self.take_io();
            let mut future = Box::pin(async move { device.submit(io).await });
            let (kind, len) = (self.kind, self.read_len());
            let came = ask(&mut place, kind, len, future.as_mut(), context);
            if came == Came::Nothing {
                self.owned = Some(future);
            }
            came
        }));
        self.polled(caught, &mut place, Stage::Owned, context)
    }

    /// What came of a poll; `stage`: how it goes on if it is pending.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a copy of the answer less")]
    pub(super) fn polled(
        &mut self,
        caught: Caught,
        place: &mut Place,
        stage: Stage,
        context: &mut Context<'_>,
    ) -> Poll<Answer> {
        let (cx, way) = (self.cx, self.way);
        cx.chain.core.polling.store(way.caller(), Relaxed);
        match caught {
            Ok(Came::Fit) => {
                self.leave();
                if self.stands_for_slot() {
                    cx.slot.set_reached(Reached::Done);
                }
                self.stage = Stage::Ended;
                ManuallyDrop::into_inner(take(place))
            }
            Ok(Came::Nothing) => {
                self.stage = stage;
                Poll::Pending
            }
            Ok(Came::Unfit) => self.leave_badly(take(place), context),
            Err(panic) => self.panicked(panic.as_ref(), context),
        }
    }

    /// Polls what was pending.
    #[inline(never)]
    fn poll_on(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        let mut poll = match self.stage {
            Stage::Detour => self.poll_detour(context),
            _ => self.poll_target(context),
        };
        if self.way.is_hooked()
            && let Poll::Ready(answer) = &mut poll
        {
            self.after(answer);
        }
        poll
    }

    /// Polls the target again.
    fn poll_target(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        self.chain().core.polling.store(self.to + 1, Relaxed);
        let mut place = ManuallyDrop::new(Poll::Pending);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let (kind, len) = (self.kind, self.read_len());
            #[expect(clippy::match_same_arms, reason = "their types differ")]
            match (&mut self.borrowed, &mut self.owned) {
                (Some(target), _) => ask(&mut place, kind, len, target.as_mut(), context),
                (None, Some(target)) => ask(&mut place, kind, len, target.as_mut(), context),
                (None, None) => unreachable!("a target that is pending has its future"),
            }
        }));
        if !matches!(caught, Ok(Came::Nothing)) {
            self.drop_target();
        } else if self.stage == Stage::Borrowed
            && self
                .layer()
                .is_some_and(|layer| layer.health.get() == Health::Bypassed)
        {
            self.chain().core.polling.store(self.way.caller(), Relaxed);
            self.drop_target();
            return self.fault("the filter was bypassed while it held the IO", context);
        }
        self.polled(caught, &mut place, self.stage, context)
    }

    /// Whether this hop does the whole operation of its slot's IO, below observers alone: only then
    /// does it say how far that IO came. An observer may send something else, or a part, first.
    #[inline]
    pub(super) fn stands_for_slot(&self) -> bool {
        self.way.is(Path::Observed) && self.cx.slot.is_for(self.kind, self.extent())
    }

    pub(super) fn mark_reached(&self) {
        if self.stands_for_slot() {
            self.cx.slot.set_reached(Reached::InFlight);
        }
    }

    /// Leaves the target.
    #[inline]
    pub(super) fn leave(&self) {
        let slot = &self.cx.slot;
        slot.at.store(self.way.caller(), Relaxed);
        if slot.is_sampled.load(Relaxed) {
            self.record_time(self.to, self.last_caller(), self.stage != Stage::Emulated);
        }
    }

    #[cold]
    pub(super) fn start_time(&self) {
        let now = self.chain().core.rt.now().as_nanos();
        self.cx.slot.entered[usize::from(self.to)].store(now, Relaxed);
    }

    /// Times a layer that is being left. `is_answer`: for its own statistics too.
    #[cold]
    pub(super) fn record_time(&self, target: u8, caller: u8, is_answer: bool) {
        let (slot, chain) = (&self.cx.slot, self.chain());
        let since = slot.entered[usize::from(target)].load(Relaxed);
        let total = chain.core.rt.now().since(Instant::from_nanos(since));
        let below = slot.below[usize::from(target)].swap(0, Relaxed);
        if is_answer {
            let counters = match chain.layers.get(usize::from(target)) {
                Some(layer) => &layer.counters,
                None => &chain.device_counters,
            };
            counters.record_time(total, std::time::Duration::from_nanos(below));
        }
        if let Some(caller) = caller.checked_sub(1) {
            slot.below[usize::from(caller)].fetch_add(crate::stats::nanos(total), Relaxed);
        }
    }
}

impl Future for Submit<'_> {
    type Output = Answer;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        match self.stage {
            Stage::New | Stage::PastFence => self.poll_new(context),
            Stage::Borrowed | Stage::Owned | Stage::Emulated | Stage::Detour => {
                self.poll_on(context)
            }
            Stage::Ended => panic!("an IO was polled after it ended"),
        }
    }
}

impl Drop for Submit<'_> {
    #[inline]
    fn drop(&mut self) {
        if !matches!(self.stage, Stage::New | Stage::PastFence | Stage::Ended) {
            self.let_go();
        }
    }
}

impl fmt::Debug for Submit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submit")
            .field("site", &self.site)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_is_two_cache_lines() {
        assert_eq!(size_of::<Submit<'_>>(), 128);
    }
}
