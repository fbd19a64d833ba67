//! The way in: where an IO goes from a level, and entering it there.

use std::{
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll},
};

use super::{
    Layer, Level, Rule,
    answer::Answer,
    emulate,
    hop::{Stage, Submit},
};
use crate::{Extent, Io, Op, OpKind};

/// What an IO asks for, as far as the hop table wants to know.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) kind: OpKind,
    extent: Extent,
    /// Whether it is anything but a read, or a write without fua.
    has_flags: bool,
}

/// Where an IO goes from a level.
#[derive(Clone, Copy)]
pub(super) enum Found<'a> {
    /// Into a filter.
    Filter(&'a Layer),
    Device,
    /// Around a filter that failed before, or nowhere.
    Unfit(&'a Layer),
    /// To be done by other means.
    Emulation(&'a Rule),
    /// Nowhere before the fence is lifted.
    Fence,
    /// Nowhere: whoever submitted it must not.
    Breach(&'static str),
}

impl<'a> Submit<'a> {
    /// Finds the target and enters it, or takes a detour, or ends at once. Not inlined: every filter
    /// shares it, and the answer is moved as a whole.
    #[inline(never)]
    pub(super) fn poll_new(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        let (kind, extent, has_flags) = match &self.io.op {
            Op::Read { extent } => (OpKind::Read, Some(*extent), false),
            Op::Write { offset, data, fua } => {
                let extent = Extent::checked(*offset, data.len() as u64);
                (OpKind::Write, extent, *fua)
            }
            op => (op.kind(), Some(op.extent()), true),
        };
        self.kind = kind;
        let Some(extent) = extent else {
            self.io = Io::read(Extent::default());
            return self.forbidden(self.way.caller(), "a write that overflows");
        };
        let asked = Asked {
            kind,
            extent,
            has_flags,
        };
        let found = self.find(self.way.level(), self.way.caller(), asked);
        match found {
            Found::Filter(layer) if layer.hooks.is_some() => self.poll_hooked(asked, context),
            _ => self.enter(found, self.way.caller(), context),
        }
    }

    /// Finds where the IO goes from level `at`, into which `caller` submitted.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "what it found stays in registers")]
    pub(super) fn find(&mut self, at: u8, caller: u8, asked: Asked) -> Found<'a> {
        let chain = self.chain();
        let Asked { kind, extent, .. } = asked;
        let level = &chain.levels[usize::from(at)];
        let rule = &level.rules[kind as usize];
        self.to = rule.to;
        let is_plain = !asked.has_flags && rule.takes_plain(extent);
        if !is_plain && let Some(what) = self.breach(level, at, caller, extent) {
            return Found::Breach(what);
        }
        let fence = &chain.core.fence;
        if !fence.is_empty()
            && self.stage == Stage::New
            && !self.way.is_hooked()
            && fence.blocks(extent, kind.is_mutation(), caller)
        {
            return Found::Fence;
        }
        if !is_plain && emulate::is_needed(&self.io.op, extent, rule) {
            return Found::Emulation(rule);
        }
        let slot = &self.cx.slot;
        slot.at.store(rule.to + 1, Relaxed);
        if slot.is_sampled.load(Relaxed) {
            self.start_time();
        }
        let Some(layer) = chain.layers.get(usize::from(rule.to)) else {
            return Found::Device;
        };
        if !layer.health.is_active() {
            return Found::Unfit(layer);
        }
        layer.counters.ios.add(kind);
        chain.core.polling.store(rule.to + 1, Relaxed);
        Found::Filter(layer)
    }

    /// Enters what was found below `caller`, and polls it once.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "what was found stays in registers")]
    pub(super) fn enter(
        &mut self,
        found: Found<'a>,
        caller: u8,
        context: &mut Context<'_>,
    ) -> Poll<Answer> {
        match found {
            Found::Filter(layer) => self.poll_filter(layer, self.kind, context),
            Found::Device => self.poll_device(context),
            Found::Unfit(layer) => self.pass_unfit(layer, context),
            Found::Emulation(rule) => self.emulate(caller, *rule, context),
            Found::Fence => self.wait_for_fence(context),
            Found::Breach(what) => self.forbidden(caller, what),
        }
    }

    /// What is wrong with what the filter sent down, if anything. The port checks for itself.
    #[inline(never)]
    fn breach(&self, level: &Level, at: u8, caller: u8, extent: Extent) -> Option<&'static str> {
        if caller == 0 {
            return None;
        }
        if level.rules[self.kind as usize].is_forbidden && at == caller {
            return Some("an operation that its descriptor refuses");
        }
        level.misfit(self.kind, extent)
    }
}
