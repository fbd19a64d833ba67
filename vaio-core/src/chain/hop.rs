//! One hop: an IO on its way from one layer into the next. Everything that keeps a bad filter
//! from hurting others is here: the checks on what it sends down and answers, the catching of
//! panics, the adoption of IO that it lets go, and the rescue of IO above a failed observer.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, Location, catch_unwind},
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use super::{IoCx, Layer, Next, Path, emulate, panic_text};
use crate::{
    BoxFuture, BypassSafety, Disposition, Error, ErrorKind, Extent, Health, Instant, Io, OpKind,
    Reply, Result,
    event::{EventKind, Notice, Severity},
    keeper::{Keeper, Orphan},
    slot::Reached,
};

/// The future of an IO submitted through [`Next`].
///
/// Nothing happens before the first poll. Dropped after it, the IO runs to its end by itself.
#[must_use = "an IO does nothing until it is awaited"]
pub struct Submit<'a> {
    next: Next<'a>,
    site: &'static Location<'static>,
    state: State<'a>,
}

enum State<'a> {
    Start(Io),
    /// In a filter or device whose future is part of the caller's.
    Borrowed(BoxFuture<'a, Result<Reply>>, Hop),
    /// In a filter or device whose future outlives the caller.
    Owned(BoxFuture<'static, Result<Reply>>, Hop),
    /// Waiting for the fence, emulating, or rescuing: other hops do the work.
    Detour(BoxFuture<'a, Result<Reply>>),
    Ended,
}

/// What is known of the IO while it is in the target.
struct Hop {
    to: u8,
    kind: OpKind,
    extent: Extent,
    since: Option<Instant>,
    /// The IO itself, where it may have to be issued again: only into an observer.
    again: Option<Io>,
}

impl<'a> Submit<'a> {
    pub(super) fn new(next: Next<'a>, io: Io, site: &'static Location<'static>) -> Self {
        Self {
            next,
            site,
            state: State::Start(io),
        }
    }

    /// Where the filter made the call.
    pub fn site(&self) -> &'static Location<'static> {
        self.site
    }

    /// Finds the target and enters it, or takes a detour, or ends at once.
    fn start(&self, io: Io) -> State<'a> {
        let next = self.next;
        let chain = &next.cx.chain;
        let (kind, extent) = match self.check(&io) {
            Ok(checked) => checked,
            Err(error) => return State::Detour(Box::pin(async { Err(error) })),
        };
        let rule = chain.rule(next.level, kind);
        if emulate::is_needed(&io.op, extent, rule) {
            return State::Detour(Box::pin(emulate::run(next, io, *rule)));
        }
        let fence = &chain.core.fence;
        if !fence.is_empty() && fence.blocks(extent, kind.is_mutation(), next.caller) {
            return State::Detour(Box::pin(async move {
                next.cx
                    .chain
                    .core
                    .fence
                    .wait(extent, kind.is_mutation(), next.caller)
                    .await;
                next.submit(io).await
            }));
        }
        self.enter(rule.to, io, kind, extent)
    }

    /// Checks what a filter sends down. The port has checked the guest's.
    fn check(&self, io: &Io) -> Result<(OpKind, Extent)> {
        let kind = io.op.kind();
        let caller = self.next.caller;
        if let crate::Op::Write { offset, data, .. } = &io.op
            && Extent::checked(*offset, data.len() as u64).is_none()
        {
            return Err(self.forbidden(kind, Extent::default(), "a write that overflows"));
        }
        let extent = io.op.extent();
        if caller == 0 {
            return Ok((kind, extent));
        }
        let info = self.next.info();
        let layer = &self.next.cx.chain.layers[caller as usize - 1];
        if layer.descriptor.ops.of(kind) == Disposition::Refuse {
            return Err(self.forbidden(kind, extent, "an operation that its descriptor refuses"));
        }
        if kind == OpKind::Flush {
            return Ok((kind, extent));
        }
        if extent.end() > info.capacity {
            return Err(self.forbidden(kind, extent, "an extent past the end"));
        }
        if extent.is_empty() || !extent.is_aligned(info.logical_block) {
            return Err(self.forbidden(kind, extent, "an empty or misaligned extent"));
        }
        if matches!(kind, OpKind::Read | OpKind::Write) && extent.len() > info.transfer_max.into() {
            return Err(self.forbidden(kind, extent, "an extent above the largest transfer"));
        }
        Ok((kind, extent))
    }

    fn forbidden(&self, kind: OpKind, extent: Extent, what: &str) -> Error {
        let chain = &self.next.cx.chain;
        let text = format!("the filter sent down {what}, at={}", self.site);
        if let Some(layer) = (self.next.caller as usize).checked_sub(1) {
            chain.layers[layer].rebuke(&chain.core, &text);
        }
        Error::new(ErrorKind::FilterFault, text)
            .with_op(kind)
            .with_extent(extent)
            .with_filter(chain.name_of(self.next.caller.saturating_sub(1)))
    }

    /// Enters the first layer from `to` on that is fit, or the device.
    fn enter(&self, to: u8, io: Io, kind: OpKind, extent: Extent) -> State<'a> {
        let (next, cx) = (self.next, self.next.cx);
        let Some(layer) = cx.chain.layers.get(to as usize) else {
            return self.enter_device(to, io, kind, extent);
        };
        match layer.health.get() {
            Health::Active => {}
            Health::Bypassed => {
                // Look the next target up from below the bypassed filter.
                let below = Self {
                    next: Next {
                        level: to + 1,
                        ..next
                    },
                    site: self.site,
                    state: State::Ended,
                };
                return below.start(io);
            }
            Health::Faulted => {
                let error = layer_fault(layer, kind, extent);
                return State::Detour(Box::pin(async { Err(error) }));
            }
        }
        layer.counters.ios[kind as usize].fetch_add(1, Relaxed);
        let bypass = layer.descriptor.bypass;
        let mut hop = self.hop(to, kind, extent);
        if bypass != BypassSafety::Never && next.path != Path::Filtered {
            hop.again = Some(io.clone());
        }
        let path = match (next.path, bypass) {
            (Path::Root | Path::Observed, BypassSafety::Always | BypassSafety::WhenClean) => {
                Path::Observed
            }
            _ => Path::Filtered,
        };
        if bypass == BypassSafety::Never && next.path != Path::Root {
            let cx = cx.clone();
            let future = Box::pin(async move {
                let next = Next {
                    cx: &cx,
                    level: to + 1,
                    caller: to + 1,
                    path,
                };
                cx.chain.layers[to as usize].filter.io(io, next).await
            });
            return self.owned(future, hop);
        }
        let below = Next {
            cx,
            level: to + 1,
            caller: to + 1,
            path,
        };
        match self.call(|| layer.filter.io(io, below)) {
            Ok(future) => State::Borrowed(future, hop),
            Err(text) => self.fault(hop, &text),
        }
    }

    fn enter_device(&self, to: u8, io: Io, kind: OpKind, extent: Extent) -> State<'a> {
        let (next, cx) = (self.next, self.next.cx);
        cx.chain.device_counters.ios[kind as usize].fetch_add(1, Relaxed);
        let hop = self.hop(to, kind, extent);
        if next.path == Path::Root {
            return State::Borrowed(cx.chain.device.submit(io), hop);
        }
        let device = Arc::clone(&cx.chain.device);
        self.owned(Box::pin(async move { device.submit(io).await }), hop)
    }

    fn owned(&self, future: BoxFuture<'static, Result<Reply>>, hop: Hop) -> State<'a> {
        if self.next.path == Path::Observed {
            self.next.cx.slot.set_reached(Reached::InFlight);
        }
        State::Owned(future, hop)
    }

    fn hop(&self, to: u8, kind: OpKind, extent: Extent) -> Hop {
        let cx = self.next.cx;
        cx.slot.at.store(to + 1, Relaxed);
        let since = cx
            .slot
            .is_sampled
            .load(Relaxed)
            .then(|| cx.chain.core.rt.now());
        Hop {
            to,
            kind,
            extent,
            since,
            again: None,
        }
    }

    /// Calls into a filter or device, with its name where the thread's watchdog sees it and its
    /// panic caught.
    fn call<T>(&self, call: impl FnOnce() -> T) -> Result<T, String> {
        catch_unwind(AssertUnwindSafe(call)).map_err(|panic| panic_text(panic.as_ref()))
    }

    /// The target broke off (panicked, hung or lied) before it gave a usable answer.
    fn fault(&self, mut hop: Hop, text: &str) -> State<'a> {
        let (next, cx) = (self.next, self.next.cx);
        let Some(layer) = cx.chain.layers.get(hop.to as usize) else {
            // A device: nothing to bypass.
            let error = Error::new(
                ErrorKind::Internal,
                text.replace("the filter", "the device"),
            )
            .with_op(hop.kind)
            .with_extent(hop.extent);
            return State::Detour(Box::pin(async { Err(error) }));
        };
        let Some(io) = hop
            .again
            .take()
            .filter(|_| layer.health.get() == Health::Bypassed)
        else {
            let error = Error::new(ErrorKind::FilterFault, text.to_owned())
                .with_filter(Arc::clone(&layer.name))
                .with_op(hop.kind)
                .with_extent(hop.extent);
            return State::Detour(Box::pin(async { Err(error) }));
        };
        let below = Next {
            level: hop.to + 1,
            ..next
        };
        let answer = match cx.slot.reached() {
            Reached::Done if hop.kind != OpKind::Read => Some(Ok(Reply::Done)),
            Reached::Failed => Some(Err(crate::sync::lock(&cx.slot.error)
                .take()
                .unwrap_or_else(|| layer_fault(layer, hop.kind, hop.extent)))),
            Reached::Nothing | Reached::InFlight | Reached::Done => None,
        };
        let rescue = cx.chain.core.keeper.rescue(&cx.slot);
        State::Detour(Box::pin(async move {
            if let Some(answer) = answer {
                return answer;
            }
            // The filter had forwarded it: the answer that it would have had is used.
            if let Some(rescue) = rescue
                && let Ok(result) = rescue.await
            {
                return result;
            }
            below.submit(io).await
        }))
    }

    /// Leaves the target with its answer.
    fn leave(&self, hop: Hop, result: Result<Reply>) -> Result<Result<Reply>, State<'a>> {
        let (next, cx) = (self.next, self.next.cx);
        let chain = &cx.chain;
        cx.slot.at.store(next.caller, Relaxed);
        let layer = chain.layers.get(hop.to as usize);
        let counters = layer.map_or(&chain.device_counters, |layer| &layer.counters);
        if let Some(since) = hop.since {
            let total = chain.core.rt.now().since(since);
            let below = cx.slot.below[hop.to as usize].swap(0, Relaxed);
            counters.record_time(total, std::time::Duration::from_nanos(below));
            if let Some(caller) = next.caller.checked_sub(1) {
                cx.slot.below[caller as usize].fetch_add(crate::stats::nanos(total), Relaxed);
            }
        }
        let result = match result {
            Ok(reply) if reply.answers(hop.kind, hop.extent.len()) => Ok(reply),
            Ok(reply) => {
                let got = match &reply {
                    Reply::Data(data) => format!("{} bytes of data", data.len()),
                    Reply::Done => "no data".to_owned(),
                };
                let text = format!(
                    "the filter answered with {got}, op={} extent={}",
                    hop.kind, hop.extent
                );
                match layer {
                    Some(layer) => {
                        layer.rebuke(&chain.core, &text);
                        return Err(self.fault(hop, &text));
                    }
                    None => return Err(self.fault(hop, &text.replace("the filter", "the device"))),
                }
            }
            Err(error) => {
                counters.errors.fetch_add(1, Relaxed);
                Err(error)
            }
        };
        if next.path == Path::Observed {
            match &result {
                Ok(_) => cx.slot.set_reached(Reached::Done),
                Err(error) => cx.slot.fail(error),
            }
        }
        Ok(result)
    }

    /// Polls the target once.
    fn poll_target(&mut self, context: &mut Context<'_>) -> Result<Poll<Result<Reply>>, State<'a>> {
        let core = &self.next.cx.chain.core;
        let (to, is_owned) = match &self.state {
            State::Borrowed(_, hop) => (hop.to, false),
            State::Owned(_, hop) => (hop.to, true),
            _ => unreachable!("only a target is polled"),
        };
        core.polling.store(to + 1, Relaxed);
        let polled = catch_unwind(AssertUnwindSafe(|| match &mut self.state {
            State::Borrowed(future, _) => future.as_mut().poll(context),
            State::Owned(future, _) => future.as_mut().poll(context),
            _ => unreachable!("only a target is polled"),
        }));
        core.polling.store(self.next.caller, Relaxed);
        match polled {
            Ok(Poll::Pending) if !is_owned && self.is_target_bypassed(to) => {
                Err(self.abandon("the filter was bypassed while it held the IO"))
            }
            Ok(Poll::Pending) => Ok(Poll::Pending),
            Ok(Poll::Ready(result)) => {
                let (State::Borrowed(_, hop) | State::Owned(_, hop)) =
                    std::mem::replace(&mut self.state, State::Ended)
                else {
                    unreachable!("only a target is polled")
                };
                self.leave(hop, result).map(Poll::Ready)
            }
            Err(panic) => {
                let text = panic_text(panic.as_ref());
                if let Some(layer) = self.next.cx.chain.layers.get(to as usize) {
                    layer.blame(&self.next.cx.chain.core, EventKind::FilterPanicked, &text);
                } else {
                    self.next.cx.chain.core.events.send(Notice::of(
                        Severity::Error,
                        EventKind::FilterPanicked,
                        text.replace("the filter", "the device"),
                    ));
                }
                Err(self.abandon(&text))
            }
        }
    }

    fn is_target_bypassed(&self, to: u8) -> bool {
        self.next
            .cx
            .chain
            .layers
            .get(to as usize)
            .is_some_and(|layer| layer.health.get() == Health::Bypassed)
    }

    /// Drops the target's future, which may orphan what is below it, and goes on without it.
    fn abandon(&mut self, text: &str) -> State<'a> {
        let state = std::mem::replace(&mut self.state, State::Ended);
        let hop = match state {
            State::Borrowed(future, hop) => {
                let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
                hop
            }
            State::Owned(future, hop) => {
                let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
                hop
            }
            _ => unreachable!("only a target is abandoned"),
        };
        self.fault(hop, text)
    }
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
    type Output = Result<Reply>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let next_state = match &mut this.state {
                State::Start(_) => {
                    let State::Start(io) = std::mem::replace(&mut this.state, State::Ended) else {
                        unreachable!("just matched")
                    };
                    this.start(io)
                }
                State::Borrowed(..) | State::Owned(..) => match this.poll_target(context) {
                    Ok(poll) => return poll,
                    Err(state) => state,
                },
                State::Detour(future) => {
                    let poll = future.as_mut().poll(context);
                    if poll.is_ready() {
                        this.state = State::Ended;
                    }
                    return poll;
                }
                State::Ended => panic!("an IO was polled after it ended"),
            };
            this.state = next_state;
        }
    }
}

impl Drop for Submit<'_> {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Owned(future, hop) => {
                let cx: &IoCx = self.next.cx;
                // The outermost hop that is being dropped knows who let go.
                let by = cx.slot.dropper().unwrap_or(self.next.caller);
                let by = match by.checked_sub(1) {
                    Some(layer) => cx.chain.name_of(layer),
                    None => Arc::from("port"),
                };
                let orphan = Orphan {
                    future,
                    kind: hop.kind,
                    extent: hop.extent,
                    level: self.next.caller,
                    dropped_by: by,
                    slot: Arc::clone(&cx.slot),
                    ends_slot: false,
                };
                Keeper::adopt(&cx.chain.core, orphan);
            }
            State::Borrowed(future, _) | State::Detour(future) => {
                let slot = &self.next.cx.slot;
                let is_outermost = slot.set_dropper(self.next.caller);
                // A destructor that panics while another unwinds would end the process.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
                if is_outermost {
                    slot.clear_dropper();
                }
            }
            State::Start(_) | State::Ended => {}
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
