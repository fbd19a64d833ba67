//! One hop: an IO on its way from one layer into the next. Everything that keeps a bad filter
//! from hurting others is here: the checks on what it sends down and answers, the catching of
//! panics, the adoption of IO that it lets go, and the rescue of IO above a failed observer.
//!
//! This is the hottest code of the crate. The common way (target fit, IO within limits, answer at
//! the first poll) is `poll_new` -> `poll_filter`/`poll_device` -> `leave`, and moves the IO once.

use std::{
    any::Any,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, Location, catch_unwind},
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use super::{Chain, Layer, Next, Path, Rule, emulate, panic_text};
use crate::{
    BoxFuture, Error, ErrorKind, Extent, Health, Instant, Io, Op, OpKind, Reply, Result,
    event::{EventKind, Notice, Severity},
    keeper::{Keeper, Orphan},
    slot::Reached,
};

type Answer = Result<Reply>;

/// What came of the first poll of a target.
enum Once<F> {
    Ready(Answer),
    Pending(F),
}

impl<F> Once<F> {
    #[inline]
    fn map_pending<T>(self, keep: impl FnOnce(F) -> T) -> Once<T> {
        match self {
            Self::Ready(answer) => Once::Ready(answer),
            Self::Pending(future) => Once::Pending(keep(future)),
        }
    }
}

#[inline]
fn once<'f>(
    mut future: BoxFuture<'f, Answer>,
    context: &mut Context<'_>,
) -> Once<BoxFuture<'f, Answer>> {
    match future.as_mut().poll(context) {
        Poll::Ready(answer) => Once::Ready(answer),
        Poll::Pending => Once::Pending(future),
    }
}

/// The future of an IO submitted through [`Next`].
///
/// Nothing happens before the first poll. Dropped after it, the IO runs to its end by itself.
#[must_use = "an IO does nothing until it is awaited"]
pub struct Submit<'a> {
    next: Next<'a>,
    site: &'static Location<'static>,
    /// Before the start: the IO. While it is in an observer: the IO again, should that fail.
    io: Option<Io>,
    target: Target<'a>,
    /// The fence was waited for, or is the business of the IO that this is a part of.
    is_past_fence: bool,
    /// Other IOs stand for this one: they are counted and timed at the target, not it.
    is_emulated: bool,
    to: u8,
    kind: OpKind,
    /// Whether this hop is timed.
    is_timed: bool,
    extent: Extent,
}

enum Target<'a> {
    /// Not started.
    New,
    /// In a filter or device whose future is part of the caller's.
    Borrowed(BoxFuture<'a, Answer>),
    /// In a filter or device whose future outlives the caller.
    Owned(BoxFuture<'static, Answer>),
    /// Waiting for the fence, emulating, or rescuing: other hops do the work.
    Detour(BoxFuture<'a, Answer>),
    Ended,
}

impl<'a> Submit<'a> {
    #[inline]
    pub(super) fn new(next: Next<'a>, io: Io, site: &'static Location<'static>) -> Self {
        Self {
            next,
            site,
            kind: io.op.kind(),
            io: Some(io),
            target: Target::New,
            is_past_fence: false,
            is_emulated: false,
            to: 0,
            extent: Extent::default(),
            is_timed: false,
        }
    }

    /// An IO, or a part of one, that has waited for the fence.
    pub(super) fn past_fence(next: Next<'a>, io: Io, site: &'static Location<'static>) -> Self {
        let mut submit = Self::new(next, io, site);
        submit.is_past_fence = true;
        submit
    }

    /// Where the filter made the call.
    pub fn site(&self) -> &'static Location<'static> {
        self.site
    }

    #[inline]
    fn chain(&self) -> &'a Arc<Chain> {
        &self.next.cx.chain
    }

    fn layer(&self) -> Option<&'a Arc<Layer>> {
        self.chain().layers.get(usize::from(self.to))
    }

    /// Finds the target and enters it, or takes a detour, or ends at once.
    #[inline]
    fn poll_new(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        let chain = self.chain();
        let io = self.io.as_ref().expect("a new hop has its IO");
        if let Op::Write { offset, data, .. } = &io.op
            && Extent::checked(*offset, data.len() as u64).is_none()
        {
            return self.forbidden("a write that overflows");
        }
        self.extent = io.op.extent();
        let level = &chain.levels[usize::from(self.next.level)];
        let rule = &level.rules[self.kind as usize];
        if self.next.caller != 0 {
            if rule.is_forbidden && self.next.level == self.next.caller {
                return self.forbidden("an operation that its descriptor refuses");
            }
            if let Some(what) = level.misfit(self.kind, self.extent) {
                return self.forbidden(what);
            }
        }
        let fence = &chain.core.fence;
        if !fence.is_empty()
            && !self.is_past_fence
            && fence.blocks(self.extent, self.kind.is_mutation(), self.next.caller)
        {
            return self.wait_for_fence(context);
        }
        self.to = rule.to;
        if emulate::is_needed(&io.op, self.extent, rule) {
            return self.emulate(*rule, context);
        }
        self.next.cx.slot.at.store(rule.to + 1, Relaxed);
        if self.next.cx.slot.is_sampled.load(Relaxed) {
            self.start_time();
        }
        match chain.layers.get(usize::from(rule.to)) {
            Some(layer) => self.poll_filter(layer, context),
            None => self.poll_device(context),
        }
    }

    /// Does the IO by other means. Below a filter that is one owned future: let go half way it
    /// runs to its end as a whole, and what an observer is rescued with is the answer of the
    /// whole.
    #[cold]
    fn emulate(&mut self, rule: Rule, context: &mut Context<'_>) -> Poll<Answer> {
        let cx = self.next.cx;
        cx.slot.at.store(rule.to + 1, Relaxed);
        let io = self.io.take().expect("a new hop has its IO");
        let (cx, caller, site) = (cx.clone(), self.next.caller, self.site);
        let run = Box::pin(emulate::run(cx, caller, io, rule, site));
        if self.next.path == Path::Root {
            return self.detour(run, context);
        }
        self.is_emulated = true;
        if self.next.cx.slot.is_sampled.load(Relaxed) {
            self.start_time();
        }
        self.mark_reached();
        let polled = catch_unwind(AssertUnwindSafe(|| once(run, context)));
        self.polled(polled.map(|once| once.map_pending(Target::Owned)), context)
    }

    /// Enters a filter and polls it once.
    #[inline]
    fn poll_filter(&mut self, layer: &'a Arc<Layer>, context: &mut Context<'_>) -> Poll<Answer> {
        if !layer.health.is_active() {
            return self.pass_unfit(layer, context);
        }
        let (next, to) = (self.next, self.to);
        layer.counters.ios[self.kind as usize].fetch_add(1, Relaxed);
        let below = Next {
            cx: next.cx,
            level: to + 1,
            caller: to + 1,
            path: if layer.is_never || next.path == Path::Filtered {
                Path::Filtered
            } else {
                Path::Observed
            },
        };
        let core = &self.chain().core;
        core.polling.store(to + 1, Relaxed);
        if layer.is_never && next.path != Path::Root {
            return self.poll_owned_filter(context);
        }
        // The IO is made where it is used: it is large enough for a copy to show.
        let io = &mut self.io;
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let io = if layer.is_never {
                io.take()
            } else {
                io.clone()
            };
            once(
                layer.filter.io(io.expect("a new hop has its IO"), below),
                context,
            )
        }));
        self.polled(
            polled.map(|once| once.map_pending(Target::Borrowed)),
            context,
        )
    }

    /// Enters a filter that holds or changes data, below one that may let go of it.
    #[inline]
    fn poll_owned_filter(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        self.mark_reached();
        let (cx, to) = (self.next.cx.clone(), self.to);
        let io = &mut self.io;
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let io = io.take().expect("a new hop has its IO");
            let owned: BoxFuture<'static, Answer> = Box::pin(async move {
                let below = Next {
                    cx: &cx,
                    level: to + 1,
                    caller: to + 1,
                    path: Path::Filtered,
                };
                cx.chain.layers[usize::from(to)].filter.io(io, below).await
            });
            once(owned, context)
        }));
        self.polled(polled.map(|once| once.map_pending(Target::Owned)), context)
    }

    /// Enters the device and polls it once.
    #[inline]
    fn poll_device(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        let chain = self.chain();
        chain.device_counters.ios[self.kind as usize].fetch_add(1, Relaxed);
        chain.core.polling.store(self.to + 1, Relaxed);
        if self.next.path == Path::Root {
            let io = &mut self.io;
            let polled = catch_unwind(AssertUnwindSafe(|| {
                once(
                    chain
                        .device
                        .submit(io.take().expect("a new hop has its IO")),
                    context,
                )
            }));
            return self.polled(
                polled.map(|once| once.map_pending(Target::Borrowed)),
                context,
            );
        }
        self.mark_reached();
        let device = Arc::clone(&chain.device);
        let io = &mut self.io;
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let io = io.take().expect("a new hop has its IO");
            let owned: BoxFuture<'static, Answer> =
                Box::pin(async move { device.submit(io).await });
            once(owned, context)
        }));
        self.polled(polled.map(|once| once.map_pending(Target::Owned)), context)
    }

    /// What came of the first poll.
    #[inline]
    fn polled(
        &mut self,
        polled: Result<Once<Target<'a>>, Box<dyn Any + Send>>,
        context: &mut Context<'_>,
    ) -> Poll<Answer> {
        self.chain().core.polling.store(self.next.caller, Relaxed);
        match polled {
            Ok(Once::Ready(answer)) => self.leave(answer, context),
            Ok(Once::Pending(target)) => {
                self.target = target;
                Poll::Pending
            }
            Err(panic) => self.panicked(&panic_text(panic.as_ref()), context),
        }
    }

    /// Polls the target again.
    fn poll_target(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        let core = &self.chain().core;
        core.polling.store(self.to + 1, Relaxed);
        let target = &mut self.target;
        let polled = catch_unwind(AssertUnwindSafe(|| match target {
            Target::Borrowed(future) => future.as_mut().poll(context),
            Target::Owned(future) => future.as_mut().poll(context),
            _ => unreachable!("only a target is polled"),
        }));
        core.polling.store(self.next.caller, Relaxed);
        match polled {
            Ok(Poll::Ready(answer)) => {
                self.drop_target();
                self.leave(answer, context)
            }
            Ok(Poll::Pending) => {
                let was_bypassed = matches!(self.target, Target::Borrowed(_))
                    && self
                        .layer()
                        .is_some_and(|layer| layer.health.get() == Health::Bypassed);
                if was_bypassed {
                    self.drop_target();
                    return self.fault("the filter was bypassed while it held the IO", context);
                }
                Poll::Pending
            }
            Err(panic) => {
                self.drop_target();
                self.panicked(&panic_text(panic.as_ref()), context)
            }
        }
    }

    /// Ends the target's future without letting its destructor hurt anyone.
    fn drop_target(&mut self) {
        let target = std::mem::replace(&mut self.target, Target::Ended);
        let _ = catch_unwind(AssertUnwindSafe(|| drop(target)));
    }

    fn mark_reached(&self) {
        if self.next.path == Path::Observed {
            self.next.cx.slot.set_reached(Reached::InFlight);
        }
    }

    /// Leaves the target with its answer.
    #[inline]
    fn leave(&mut self, answer: Answer, context: &mut Context<'_>) -> Poll<Answer> {
        let cx = self.next.cx;
        cx.slot.at.store(self.next.caller, Relaxed);
        if self.is_timed {
            self.record_time();
        }
        match &answer {
            Ok(reply) if reply.answers(self.kind, self.extent.len()) => {
                if self.next.path == Path::Observed {
                    cx.slot.set_reached(Reached::Done);
                }
            }
            Ok(reply) => {
                let text = wrong_answer(reply, self.kind, self.extent);
                return self.lied(&text, context);
            }
            Err(error) => {
                let chain = self.chain();
                let counters = self
                    .layer()
                    .map_or(&chain.device_counters, |layer| &layer.counters);
                if !self.is_emulated {
                    counters.errors.fetch_add(1, Relaxed);
                }
                // An observer that was taken out of the path while it had the IO, and answers
                // with the error it got for its own breach: its IO goes on without it.
                if self.io.is_some() && self.layer().is_some_and(|layer| is_own(layer, error)) {
                    let text = error.message().to_owned();
                    return self.fault(&text, context);
                }
                if self.next.path == Path::Observed {
                    cx.slot.fail(error);
                }
            }
        }
        self.target = Target::Ended;
        Poll::Ready(answer)
    }

    #[cold]
    fn start_time(&mut self) {
        self.is_timed = true;
        let now = self.chain().core.rt.now().as_nanos();
        self.next.cx.slot.entered[usize::from(self.to)].store(now, Relaxed);
    }

    #[cold]
    fn record_time(&mut self) {
        let (cx, chain) = (self.next.cx, self.chain());
        self.is_timed = false;
        let since = cx.slot.entered[usize::from(self.to)].load(Relaxed);
        let total = chain.core.rt.now().since(Instant::from_nanos(since));
        let counters = self
            .layer()
            .map_or(&chain.device_counters, |layer| &layer.counters);
        let below = cx.slot.below[usize::from(self.to)].swap(0, Relaxed);
        if !self.is_emulated {
            counters.record_time(total, std::time::Duration::from_nanos(below));
        }
        if let Some(caller) = self.next.caller.checked_sub(1) {
            cx.slot.below[usize::from(caller)].fetch_add(crate::stats::nanos(total), Relaxed);
        }
    }

    #[cold]
    fn detour(
        &mut self,
        mut future: BoxFuture<'a, Answer>,
        context: &mut Context<'_>,
    ) -> Poll<Answer> {
        let poll = future.as_mut().poll(context);
        self.target = if poll.is_ready() {
            Target::Ended
        } else {
            Target::Detour(future)
        };
        poll
    }

    #[cold]
    fn wait_for_fence(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        let (next, kind, extent) = (self.next, self.kind, self.extent);
        let (io, site) = (self.io.take().expect("a new hop has its IO"), self.site);
        let wait = async move {
            next.cx
                .chain
                .core
                .fence
                .wait(extent, kind.is_mutation(), next.caller)
                .await;
            Submit::past_fence(next, io, site).await
        };
        self.detour(Box::pin(wait), context)
    }

    /// The filter sent down what it must not.
    #[cold]
    fn forbidden(&mut self, what: &str) -> Poll<Answer> {
        let chain = self.chain();
        let text = format!("the filter sent down {what}, at={}", self.site);
        let caller = self.next.caller.saturating_sub(1);
        if let Some(layer) = chain.layers.get(usize::from(caller)) {
            layer.rebuke(&chain.core, &text);
        }
        self.target = Target::Ended;
        Poll::Ready(Err(Error::new(ErrorKind::FilterFault, text)
            .with_op(self.kind)
            .with_extent(self.extent)
            .with_filter(chain.name_of(caller))))
    }

    /// The target is a filter that failed before.
    #[cold]
    fn pass_unfit(&mut self, layer: &Arc<Layer>, context: &mut Context<'_>) -> Poll<Answer> {
        if layer.health.get() == Health::Faulted {
            self.target = Target::Ended;
            return Poll::Ready(Err(layer_fault(layer, self.kind, self.extent)));
        }
        let io = self.io.take().expect("a new hop has its IO");
        let below = Next {
            level: self.to + 1,
            ..self.next
        };
        let around = Submit::past_fence(below, io, self.site);
        self.detour(Box::pin(around), context)
    }

    #[cold]
    fn panicked(&mut self, text: &str, context: &mut Context<'_>) -> Poll<Answer> {
        let core = &self.chain().core;
        match self.layer() {
            Some(layer) => {
                layer.blame(core, EventKind::FilterPanicked, text);
            }
            None => {
                let text = text.replace("the filter", "the device");
                core.events.send(Notice::of(
                    Severity::Error,
                    EventKind::FilterPanicked,
                    text.clone(),
                ));
                return self.fault(&text, context);
            }
        }
        self.fault(text, context)
    }

    #[cold]
    fn lied(&mut self, text: &str, context: &mut Context<'_>) -> Poll<Answer> {
        match self.layer() {
            Some(layer) => {
                layer.rebuke(&self.chain().core, text);
                self.fault(text, context)
            }
            None => self.fault(&text.replace("the filter", "the device"), context),
        }
    }

    /// The target broke off (panicked, hung or lied) before it gave a usable answer: goes on
    /// without it where that is safe, else fails the IO.
    #[cold]
    fn fault(&mut self, text: &str, context: &mut Context<'_>) -> Poll<Answer> {
        self.next.cx.slot.at.store(self.next.caller, Relaxed);
        let (next, kind, extent) = (self.next, self.kind, self.extent);
        // Below a filter that is not an observer no one knows whether it was forwarded.
        let is_known = next.path != Path::Filtered || !kind.is_mutation();
        let io = self.io.take().filter(|_| is_known);
        let layer = self.layer();
        let bypassed = layer.filter(|layer| layer.health.get() == Health::Bypassed);
        let (Some(layer), Some(io)) = (bypassed, io) else {
            let kind_of = if layer.is_some() {
                ErrorKind::FilterFault
            } else {
                ErrorKind::Internal
            };
            let mut error = Error::new(kind_of, text).with_op(kind).with_extent(extent);
            if let Some(layer) = layer {
                error = error.with_filter(Arc::clone(&layer.name));
            }
            self.target = Target::Ended;
            return Poll::Ready(Err(error));
        };
        let slot = &next.cx.slot;
        let answer = match slot.reached() {
            Reached::Done if kind != OpKind::Read => Some(Ok(Reply::Done)),
            Reached::Failed => Some(Err(crate::sync::lock(&slot.error)
                .take()
                .unwrap_or_else(|| layer_fault(layer, kind, extent)))),
            Reached::Nothing | Reached::InFlight | Reached::Done => None,
        };
        let rescue = next.cx.chain.core.keeper.rescue(slot);
        let below = Next {
            level: self.to + 1,
            ..next
        };
        let site = self.site;
        let rescued = async move {
            if let Some(answer) = answer {
                return answer;
            }
            // The filter had forwarded it: the answer that it would have had is used.
            if let Some(rescue) = rescue
                && let Ok(answer) = rescue.await
            {
                return answer;
            }
            // Whatever fence there is was raised after the IO came, perhaps for the IO itself.
            Submit::past_fence(below, io, site).await
        };
        self.detour(Box::pin(rescued), context)
    }
}

fn wrong_answer(reply: &Reply, kind: OpKind, extent: Extent) -> String {
    let got = match reply {
        Reply::Data(data) => format!("{} bytes of data", data.len()),
        Reply::Done => "no data".to_owned(),
    };
    format!("the filter answered with {got}, op={kind} extent={extent}")
}

/// Whether a bypassed filter's error is the one that it got for its own breach.
fn is_own(layer: &Layer, error: &Error) -> bool {
    layer.health.get() == Health::Bypassed
        && error.kind() == ErrorKind::FilterFault
        && error.filter() == Some(&layer.name)
}

fn layer_fault(layer: &Layer, kind: OpKind, extent: Extent) -> Error {
    let fault = layer.health.fault().unwrap_or_default();
    Error::new(
        ErrorKind::FilterFault,
        format!(
            "the filter failed before and the disk cannot go on without it; replace it: {fault}"
        ),
    )
    .with_filter(Arc::clone(&layer.name))
    .with_op(kind)
    .with_extent(extent)
}

impl Future for Submit<'_> {
    type Output = Answer;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        match &mut self.target {
            Target::New => self.poll_new(context),
            Target::Borrowed(_) | Target::Owned(_) => self.poll_target(context),
            Target::Detour(future) => {
                let poll = future.as_mut().poll(context);
                if poll.is_ready() {
                    self.target = Target::Ended;
                }
                poll
            }
            Target::Ended => panic!("an IO was polled after it ended"),
        }
    }
}

impl Drop for Submit<'_> {
    #[inline]
    fn drop(&mut self) {
        if !matches!(self.target, Target::New | Target::Ended) {
            self.let_go();
        }
    }
}

impl Submit<'_> {
    /// Dropped in flight.
    #[cold]
    fn let_go(&mut self) {
        let (cx, caller) = (self.next.cx, self.next.caller);
        match std::mem::replace(&mut self.target, Target::Ended) {
            Target::Owned(future) => {
                // The outermost hop that is being dropped knows who let go.
                let by = cx.slot.dropper().unwrap_or(caller);
                let dropped_by = match by.checked_sub(1) {
                    Some(layer) => cx.chain.name_of(layer),
                    None => Arc::from("port"),
                };
                let orphan = Orphan {
                    future,
                    kind: self.kind,
                    extent: self.extent,
                    level: caller,
                    dropped_by,
                    slot: Arc::clone(&cx.slot),
                    ends_slot: false,
                };
                Keeper::adopt(&cx.chain.core, orphan);
            }
            Target::Borrowed(future) | Target::Detour(future) => {
                let is_outermost = cx.slot.set_dropper(caller);
                // A destructor that panics while another unwinds would end the process.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
                if is_outermost {
                    cx.slot.clear_dropper();
                }
            }
            Target::New | Target::Ended => {}
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
