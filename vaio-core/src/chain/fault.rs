//! What happens to an IO off the straight way: its target breaks its contract (sends down what it
//! must not, panics, lies, hangs, was taken out of the path), or it waits for the fence, is
//! emulated, or loses its asker. All of it is rare, so it may allocate.

use std::{
    any::Any,
    mem::ManuallyDrop,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use super::{
    Layer, Path, Rule,
    answer::{Answer, Came, Place, ask},
    emulate,
    hop::{Stage, Submit},
    panic_text,
};
use crate::{
    BoxFuture, Error, ErrorKind, Extent, Health, Op, OpKind, Reply,
    event::{EventKind, Notice, Severity},
    keeper::{Keeper, Orphan},
    slot::Reached,
};

impl<'a> Submit<'a> {
    /// Lets other hops do the work.
    #[cold]
    fn detour(
        &mut self,
        mut future: BoxFuture<'a, Answer>,
        context: &mut Context<'_>,
    ) -> Poll<Answer> {
        let poll = future.as_mut().poll(context);
        self.chain().core.polling.store(self.way.caller(), Relaxed);
        if poll.is_ready() {
            self.stage = Stage::Ended;
        } else {
            self.stage = Stage::Detour;
            self.borrowed = Some(future);
        }
        poll
    }

    #[cold]
    pub(super) fn poll_detour(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        let future = self.borrowed.as_mut().expect("a detour has its future");
        let poll = future.as_mut().poll(context);
        self.chain().core.polling.store(self.way.caller(), Relaxed);
        if poll.is_ready() {
            self.borrowed = None;
            self.stage = Stage::Ended;
        }
        poll
    }

    #[cold]
    pub(super) fn wait_for_fence(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        let (next, kind, extent, site) = (self.next(), self.kind, self.extent(), self.site);
        let io = self.take_io();
        let wait = async move {
            next.cx
                .chain
                .core
                .fence
                .wait(extent, kind.is_mutation(), next.way.caller())
                .await;
            Submit::past_fence(next, io, site).await
        };
        self.detour(Box::pin(wait), context)
    }

    /// Does the IO by other means. Below a filter that is one owned future: let go half way it
    /// runs to its end as a whole, and what an observer is rescued with is the answer of the
    /// whole.
    #[cold]
    pub(super) fn emulate(
        &mut self,
        caller: u8,
        rule: Rule,
        context: &mut Context<'_>,
    ) -> Poll<Answer> {
        self.cx.slot.at.store(rule.to + 1, Relaxed);
        let io = self.take_io();
        let (cx, site) = (self.cx.clone(), self.site);
        let mut run: BoxFuture<'static, Answer> =
            Box::pin(emulate::run(cx, caller, io, rule, site));
        if self.way.is(Path::Root) && !self.way.is_hooked() {
            return self.detour(run, context);
        }
        self.stage = Stage::Emulated;
        if self.cx.slot.is_sampled.load(Relaxed) {
            self.start_time();
        }
        self.mark_reached();
        let mut place = ManuallyDrop::new(Poll::Pending);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let (kind, len) = (self.kind, self.read_len());
            let came = ask(&mut place, kind, len, run.as_mut(), context);
            if came == Came::Nothing {
                self.owned = Some(run);
            }
            came
        }));
        self.polled(caught, &mut place, Stage::Emulated, context)
    }

    /// Ends the target's future without letting its destructor hurt anyone.
    pub(super) fn drop_target(&mut self) {
        let target = (self.borrowed.take(), self.owned.take());
        let _ = catch_unwind(AssertUnwindSafe(|| drop(target)));
    }

    /// The filter sent down what it must not.
    #[cold]
    pub(super) fn forbidden(&mut self, caller: u8, what: &str) -> Poll<Answer> {
        let chain = self.chain();
        let text = format!("the filter sent down {what}, at={}", self.site);
        let caller = caller.saturating_sub(1);
        if let Some(layer) = chain.layers.get(usize::from(caller)) {
            layer.rebuke(&chain.core, &text);
        }
        self.stage = Stage::Ended;
        Poll::Ready(Err(Error::new(ErrorKind::FilterFault, text)
            .with_op(self.kind)
            .with_extent(self.extent())
            .with_filter(chain.name_of(caller))))
    }

    /// The device belongs to someone else now.
    #[cold]
    pub(super) fn not_ours(&mut self) -> Poll<Answer> {
        let error = Error::new(ErrorKind::Gone, "the disk's exclusive lock is lost")
            .with_op(self.kind)
            .with_extent(self.extent());
        self.leave();
        if self.stands_for_slot() {
            self.cx.slot.fail(&error);
        }
        self.stage = Stage::Ended;
        Poll::Ready(Err(error))
    }

    /// The target is a filter that failed before.
    #[cold]
    pub(super) fn pass_unfit(&mut self, layer: &Layer, context: &mut Context<'_>) -> Poll<Answer> {
        if layer.health.get() == Health::Faulted {
            self.stage = Stage::Ended;
            return Poll::Ready(Err(layer_fault(layer, self.kind, self.extent())));
        }
        let below = self.next_at(self.to + 1);
        let around = Submit::past_fence(below, self.take_io(), self.site);
        self.detour(Box::pin(around), context)
    }

    /// The target answered with an error, or with what does not answer the question.
    #[cold]
    pub(super) fn leave_badly(&mut self, place: Place, context: &mut Context<'_>) -> Poll<Answer> {
        self.leave();
        let error = match ManuallyDrop::into_inner(place) {
            Poll::Ready(Ok(reply)) => {
                let text = wrong_answer(&reply, self.kind, self.extent());
                return self.lied(&text, context);
            }
            Poll::Ready(Err(error)) => error,
            Poll::Pending => return Poll::Pending,
        };
        if self.stage != Stage::Emulated {
            self.counters().errors.fetch_add(1, Relaxed);
        }
        if self.kind == OpKind::Flush {
            self.chain().core.failed_flushes.fetch_add(1, Relaxed);
        }
        // An observer that was taken out of the path while it had the IO, and answers with the
        // error it got for its own breach: its IO goes on without it.
        if self.has_spare() && self.layer().is_some_and(|layer| is_own(layer, &error)) {
            let text = error.message().to_owned();
            return self.fault(&text, context);
        }
        if self.stands_for_slot() {
            self.cx.slot.fail(&error);
        }
        self.stage = Stage::Ended;
        Poll::Ready(Err(error))
    }

    #[cold]
    pub(super) fn panicked(
        &mut self,
        panic: &(dyn Any + Send),
        context: &mut Context<'_>,
    ) -> Poll<Answer> {
        let text = panic_text(panic);
        let core = &self.chain().core;
        if let Some(layer) = self.layer() {
            layer.blame(core, EventKind::FilterPanicked, &text);
            return self.fault(&text, context);
        }
        let text = text.replace("the filter", "the device");
        core.events.send(Notice::of(
            Severity::Error,
            EventKind::FilterPanicked,
            text.clone(),
        ));
        self.fault(&text, context)
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
    pub(super) fn fault(&mut self, text: &str, context: &mut Context<'_>) -> Poll<Answer> {
        let slot = &self.cx.slot;
        slot.at.store(self.way.caller(), Relaxed);
        let (kind, extent) = (self.kind, self.extent());
        // Below a filter that is not an observer no one knows whether it was forwarded.
        let is_known = !self.way.is(Path::Filtered) || !kind.is_mutation();
        let io = self.spare().filter(|_| is_known);
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
            self.stage = Stage::Ended;
            return Poll::Ready(Err(error));
        };
        let recorded = match slot.reached() {
            Reached::Done if kind != OpKind::Read => Some(Ok(Reply::Done)),
            Reached::Failed => Some(Err(crate::sync::lock(&slot.error)
                .take()
                .unwrap_or_else(|| layer_fault(layer, kind, extent)))),
            Reached::Nothing | Reached::InFlight | Reached::Done => None,
        };
        let rescue = self.chain().core.keeper.rescue(slot);
        let (below, site) = (self.next_at(self.to + 1), self.site);
        let rescued = async move {
            let answer = match recorded {
                Some(answer) => Some(answer),
                // The filter had forwarded it: the answer that it would have had is used. What else
                // it had sent down must not land after the IO.
                None => rescue.await,
            };
            // Whatever fence there is was raised after the IO came, perhaps for the IO itself.
            match answer {
                // Perhaps the filter forwarded it without its fua.
                Some(Ok(_)) if io.op.is_fua() => {
                    let flush = io.with_op(Op::Flush);
                    Submit::past_fence(below, flush, site).await
                }
                Some(answer) => answer,
                None => Submit::past_fence(below, io, site).await,
            }
        };
        self.detour(Box::pin(rescued), context)
    }

    /// Dropped in flight.
    #[cold]
    pub(super) fn let_go(&mut self) {
        let (cx, caller) = (self.cx, self.way.caller());
        self.stage = Stage::Ended;
        if let Some(future) = self.owned.take() {
            // The outermost hop that is being dropped knows who let go.
            let by = cx.slot.dropper().unwrap_or(caller);
            let dropped_by = match by.checked_sub(1) {
                Some(layer) => cx.chain.name_of(layer),
                None => Arc::from("port"),
            };
            let orphan = Orphan {
                future,
                kind: self.kind,
                extent: self.extent(),
                level: self.last_caller(),
                dropped_by,
                slot: Arc::clone(&cx.slot),
                ends_slot: false,
                stands_for_slot: self.stands_for_slot(),
            };
            Keeper::adopt(&cx.chain.core, orphan);
        } else if let Some(future) = self.borrowed.take() {
            let is_outermost = cx.slot.set_dropper(caller);
            // A destructor that panics while another unwinds would end the process.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
            if is_outermost {
                cx.slot.clear_dropper();
            }
        }
        self.let_hooks_go();
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

pub(super) fn layer_fault(layer: &Layer, kind: OpKind, extent: Extent) -> Error {
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
