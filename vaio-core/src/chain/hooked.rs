//! Filters that an IO passes by their [`Hooks`], on the straight way through a hop. They have no
//! future, so the hop keeps nothing of them but one bit: which ones it passed is read from the hop
//! table again.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll},
};

use super::{
    LAYERS_MAX, Layer,
    answer::Answer,
    enter::{Asked, Found},
    fault::layer_fault,
    hop::Submit,
    panic_text,
};
use crate::{Health, Hooks, Passed, Verdict, event::EventKind};

impl Submit<'_> {
    /// Goes on from a filter that has hooks: passes it, and those below it, until one has to be
    /// entered.
    #[inline(never)]
    pub(super) fn poll_hooked(&mut self, asked: Asked, context: &mut Context<'_>) -> Poll<Answer> {
        let chain = self.chain();
        let mut caller = self.way.caller();
        let mut found = Found::Filter(&chain.layers[usize::from(self.to)]);
        while let Found::Filter(layer) = found
            && let Some(hooks) = &layer.hooks
        {
            match self.before(layer, hooks.as_ref()) {
                Some(Verdict::Pass) => {
                    caller = self.to + 1;
                    found = self.find(caller, caller, asked);
                }
                Some(Verdict::Call) => {
                    chain.core.polling.store(self.to + 1, Relaxed);
                    break;
                }
                None => found = Found::Unfit(layer),
            }
        }
        let mut poll = self.enter(found, caller, context);
        if self.way.is_hooked()
            && let Poll::Ready(answer) = &mut poll
        {
            self.after(answer);
        }
        poll
    }

    /// Asks a filter's hooks. `None`: they panicked, and the filter is unfit now.
    #[inline]
    fn before(&mut self, layer: &Layer, hooks: &dyn Hooks) -> Option<Verdict> {
        let verdict = catch_unwind(AssertUnwindSafe(|| hooks.before(&self.io)));
        let core = &self.chain().core;
        core.polling.store(self.way.caller(), Relaxed);
        match verdict {
            Ok(verdict) => {
                if verdict == Verdict::Pass {
                    // What fails before the next target is found has passed this one too.
                    self.way = self.way.hooked();
                }
                Some(verdict)
            }
            Err(panic) => {
                layer.blame(core, EventKind::FilterPanicked, &panic_text(panic.as_ref()));
                None
            }
        }
    }

    /// Tells the filters that were passed, bottom to top, what came of the IO. One that panics as
    /// it hears it, and cannot be bypassed, turns the answer into its fault.
    #[inline(never)]
    pub(super) fn after(&self, answer: &mut Answer) {
        let (layers, count) = self.passed();
        let slot = &self.cx.slot;
        for index in (0..count).rev() {
            let target = layers[index];
            slot.at.store(target + 1, Relaxed);
            let layer = &self.chain().layers[usize::from(target)];
            if self.after_one(layer, target, Some(answer)).is_err()
                && layer.health.get() == Health::Faulted
            {
                let error = layer_fault(layer, self.kind, self.extent());
                if self.stands_for_slot() {
                    slot.fail(&error);
                }
                *answer = Err(error);
            }
            if answer.is_err() {
                layer.counters.errors.fetch_add(1, Relaxed);
            }
            if slot.is_sampled.load(Relaxed) {
                self.record_time(target, self.caller_of(&layers[..index]), true);
            }
        }
        slot.at.store(self.way.caller(), Relaxed);
    }

    /// Tells the filters that were passed that the IO was let go of.
    pub(super) fn let_hooks_go(&self) {
        let (layers, count) = self.passed();
        for &target in layers[..count].iter().rev() {
            let layer = &self.chain().layers[usize::from(target)];
            let _ = self.after_one(layer, target, None);
        }
    }

    /// `Err`: it panicked.
    fn after_one(&self, layer: &Layer, target: u8, answer: Option<&Answer>) -> Result<(), ()> {
        let core = &self.chain().core;
        let Some(hooks) = layer.hooks.as_ref().filter(|_| layer.health.is_active()) else {
            return Ok(());
        };
        let io = Passed {
            kind: self.kind,
            extent: self.extent(),
            id: self.io.id,
        };
        let polling = core.polling.load(Relaxed);
        core.polling.store(target + 1, Relaxed);
        let told = catch_unwind(AssertUnwindSafe(|| hooks.after(&io, answer)));
        core.polling.store(polling, Relaxed);
        told.map_err(|panic| {
            let text = panic_text(panic.as_ref());
            layer.blame(core, EventKind::FilterPanicked, &text);
        })
    }

    /// Who submitted into the target of this hop, plus one: the last filter that was passed, or
    /// whoever submitted into the hop.
    #[cold]
    pub(super) fn last_caller(&self) -> u8 {
        let (layers, count) = self.passed();
        self.caller_of(&layers[..count])
    }

    fn caller_of(&self, passed: &[u8]) -> u8 {
        passed.last().map_or(self.way.caller(), |layer| layer + 1)
    }

    /// The filters that were passed, top to bottom.
    #[inline]
    fn passed(&self) -> ([u8; LAYERS_MAX], usize) {
        let (mut layers, mut count) = ([0; LAYERS_MAX], 0);
        if !self.way.is_hooked() {
            return (layers, count);
        }
        let mut at = self.way.level();
        loop {
            let to = self.chain().levels[usize::from(at)].rules[self.kind as usize].to;
            if to == self.to {
                return (layers, count);
            }
            layers[count] = to;
            count += 1;
            at = to + 1;
        }
    }
}
