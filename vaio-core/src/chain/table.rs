//! The hop table: for every level and operation, where an IO goes and what has to be done to it
//! on the way. Pure: made once per chain from what filters and device say.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::{Layer, panic_text};
use crate::{
    Capabilities, Descriptor, DeviceInfo, Disposition, Error, ErrorKind, Extent, OpKind, Result,
    Support,
};

/// Largest payload that the framework takes in one IO; it splits what a layer cannot take.
pub(crate) const TRANSFER_MAX: u32 = 32 << 20;

/// One level of a chain, seen by whoever submits into it.
#[derive(Debug)]
pub(crate) struct Level {
    pub(crate) info: DeviceInfo,
    pub(crate) rules: [Rule; OpKind::COUNT],
}

impl Level {
    /// What is wrong with an extent that a filter submits into this level, if anything.
    pub(crate) fn misfit(&self, kind: OpKind, extent: Extent) -> Option<&'static str> {
        let info = &self.info;
        let is_data = matches!(kind, OpKind::Read | OpKind::Write);
        if kind == OpKind::Flush {
            None
        } else if extent.end() > info.capacity {
            Some("an extent past the end")
        } else if extent.is_empty() || !extent.is_aligned(info.logical_block) {
            Some("an empty or misaligned extent")
        } else if is_data && extent.len() > u64::from(info.transfer_max) {
            Some("an extent above the largest transfer")
        } else {
            None
        }
    }
}

/// What becomes of `fua` on the way to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FuaRule {
    /// The target does it.
    Native,
    /// Nothing below is volatile: every write is as good as fua.
    Needless,
    /// A flush after the write does it.
    Flush,
}

/// Where an operation goes from a level, and what the target can take.
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own about a target"
)]
pub(crate) struct Rule {
    /// The first layer that does not pass the operation; the number of layers: the device.
    pub(crate) to: u8,
    /// The layer that submits into this level has said that it would not.
    pub(crate) is_forbidden: bool,
    /// The target does not do it: the framework emulates it there, or refuses.
    pub(crate) is_refused: bool,
    pub(crate) fua: FuaRule,
    pub(crate) can_unmap: bool,
    pub(crate) can_be_fast: bool,
    /// Longest extent that the target takes, in bytes.
    pub(crate) len_max: u64,
    pub(crate) plain: Plain,
}

/// What an extent has to be for the common case: a read, or a write without fua, that whoever
/// submits into the level may send and the target takes as it is. Whatever is not of that case is
/// looked at in detail.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plain {
    end_max: u64,
    align_mask: u64,
    /// 0: nothing.
    len_max: u64,
}

impl Rule {
    /// Whether an extent is of the common case, and not empty.
    #[inline]
    pub(crate) const fn takes_plain(&self, extent: Extent) -> bool {
        extent.end() <= self.plain.end_max
            && (extent.offset() | extent.len()) & self.plain.align_mask == 0
            && extent.len().wrapping_sub(1) < self.plain.len_max
    }

    fn set_plain(&mut self, kind: OpKind, info: &DeviceInfo) {
        let is_data = matches!(kind, OpKind::Read | OpKind::Write);
        self.plain = if is_data && !self.is_forbidden && !self.is_refused {
            Plain {
                end_max: info.capacity,
                align_mask: u64::from(info.logical_block) - 1,
                len_max: self.len_max.min(info.transfer_max.into()),
            }
        } else {
            Plain::default()
        };
    }
}

/// Builds the levels, bottom first. `levels[i]` is what layer `i - 1` (or the port) sees.
pub(crate) fn build(layers: &[Arc<Layer>], device: &DeviceInfo) -> Result<Box<[Level]>> {
    device.validate()?;
    let mut levels = vec![device_level(layers.len(), device)];
    for (index, layer) in layers.iter().enumerate().rev() {
        let below = levels.last_mut().expect("the device's level is there");
        for kind in OpKind::ALL {
            below.rules[kind as usize].is_forbidden =
                layer.descriptor.ops.of(kind) == Disposition::Refuse;
        }
        let named = |error: Error| error.with_filter(Arc::clone(&layer.name));
        let below = levels.last().expect("the device's level is there");
        let shaped = catch_unwind(AssertUnwindSafe(|| layer.filter.shape(&below.info)))
            .unwrap_or_else(|panic| {
                let text = panic_text(panic.as_ref());
                Err(Error::new(ErrorKind::FilterFault, text))
            })
            .map_err(named)?;
        shaped.validate().map_err(named)?;
        let level = filter_level(index, &layer.descriptor, shaped, below).map_err(named)?;
        levels.push(level);
    }
    for level in &mut levels {
        for kind in OpKind::ALL {
            level.rules[kind as usize].set_plain(kind, &level.info);
        }
    }
    levels.reverse();
    Ok(levels.into())
}

fn device_level(target: usize, device: &DeviceInfo) -> Level {
    let device = &device.with_caps(|caps| {
        // What it says of an operation that it does not do means nothing.
        if caps.discard != Support::Native {
            caps.discard_reads = crate::DiscardReads::OldOrZero;
        }
        caps.fast_zeroes &= caps.write_zeroes == Support::Native;
    });
    let caps = device.caps;
    let fua = match (caps.fua, caps.volatile_cache) {
        (Support::Native, _) => FuaRule::Native,
        (_, false) => FuaRule::Needless,
        (_, true) => FuaRule::Flush,
    };
    let rules = OpKind::ALL.map(|kind| Rule {
        to: u8::try_from(target).expect("at most LAYERS_MAX filters"),
        is_forbidden: false,
        is_refused: caps.support(kind) != Support::Native,
        fua,
        can_unmap: true,
        can_be_fast: caps.fast_zeroes,
        len_max: len_max(device, kind),
        plain: Plain::default(),
    });
    Level {
        info: emulated(*device),
        rules,
    }
}

fn filter_level(
    target: usize,
    descriptor: &Descriptor,
    shaped: DeviceInfo,
    below: &Level,
) -> Result<Level> {
    if descriptor.ops.of(OpKind::Flush) == Disposition::Refuse && below.info.caps.volatile_cache {
        return Err(Error::config(
            "the filter refuses flush, and what is below it has a volatile cache: \
             nothing could be made durable",
        ));
    }
    let flags = descriptor.ops.flags();
    let rules = OpKind::ALL.map(|kind| match descriptor.ops.of(kind) {
        Disposition::Pass => below.rules[kind as usize],
        disposition => Rule {
            to: u8::try_from(target).expect("at most LAYERS_MAX filters"),
            is_forbidden: false,
            is_refused: disposition == Disposition::Refuse
                || shaped.caps.support(kind) == Support::None,
            fua: match (flags.fua, shaped.caps.volatile_cache) {
                (true, _) => FuaRule::Native,
                (false, false) => FuaRule::Needless,
                (false, true) => FuaRule::Flush,
            },
            can_unmap: flags.may_unmap,
            can_be_fast: flags.fast_only && shaped.caps.fast_zeroes,
            len_max: len_max(&shaped, kind),
            plain: Plain::default(),
        },
    });
    Ok(Level {
        info: emulated(masked(descriptor, shaped, &below.info.caps)),
        rules,
    })
}

fn len_max(info: &DeviceInfo, kind: OpKind) -> u64 {
    match kind {
        OpKind::Read | OpKind::Write => info.transfer_max.into(),
        OpKind::WriteZeroes | OpKind::Discard => info.zeroes_max,
        OpKind::Flush | OpKind::Prefetch => u64::MAX,
    }
}

/// Takes off what the descriptor refuses, and what a filter claims for an operation that it does
/// not even see.
fn masked(descriptor: &Descriptor, shaped: DeviceInfo, below: &Capabilities) -> DeviceInfo {
    shaped.with_caps(|caps| {
        let limit = |kind: OpKind, own: &mut Support| {
            *own = match descriptor.ops.of(kind) {
                Disposition::Intercept => *own,
                Disposition::Pass => (*own).min(below.support(kind)),
                Disposition::Refuse => Support::None,
            };
        };
        let (mut zeroes, mut discard, mut prefetch) =
            (caps.write_zeroes, caps.discard, caps.prefetch);
        limit(OpKind::WriteZeroes, &mut zeroes);
        limit(OpKind::Discard, &mut discard);
        limit(OpKind::Prefetch, &mut prefetch);
        if discard != Support::Native {
            caps.discard_reads = crate::DiscardReads::OldOrZero;
        }
        (caps.write_zeroes, caps.discard, caps.prefetch) = (zeroes, discard, prefetch);
        let flags = descriptor.ops.flags();
        let seen = descriptor.ops.of(OpKind::Write) == Disposition::Intercept;
        if seen && !flags.fua {
            caps.fua = caps.fua.min(Support::Emulated);
        }
        let zeroes_seen = descriptor.ops.of(OpKind::WriteZeroes) == Disposition::Intercept;
        caps.fast_zeroes &= zeroes == Support::Native && (!zeroes_seen || flags.fast_only);
    })
}

/// Raises what the framework emulates from nothing to emulated.
fn emulated(info: DeviceInfo) -> DeviceInfo {
    let mut info = info.with_caps(|caps| {
        if caps.read_only {
            (caps.write_zeroes, caps.discard) = (Support::None, Support::None);
            caps.fast_zeroes = false;
        } else {
            caps.write_zeroes = caps.write_zeroes.max(Support::Emulated);
            caps.discard = caps.discard.max(Support::Emulated);
        }
        caps.fua = caps.fua.max(Support::Emulated);
        caps.prefetch = caps.prefetch.max(Support::Emulated);
    });
    info.transfer_max = TRANSFER_MAX;
    info.zeroes_max = DeviceInfo::CAPACITY_MAX;
    info
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Op, chain::emulate};
    use proptest::prelude::*;

    proptest! {
        /// The quick check lets nothing through that the checks in detail would stop.
        #[test]
        fn what_is_plain_is_no_breach_and_needs_no_emulation(
            offset in prop_oneof![0..1u64 << 21, Just(u64::MAX - (1 << 21))],
            len in 0..1u64 << 21,
            to_block in any::<bool>(),
            transfer_max in prop_oneof![Just(4096u32), Just(1 << 20)],
            is_forbidden in any::<bool>(),
            is_refused in any::<bool>(),
            kind in prop_oneof![Just(OpKind::Read), Just(OpKind::Discard)],
        ) {
            let mask = if to_block { !4095 } else { !0 };
            let extent = Extent::new(offset & mask, len & mask);
            let mut info = DeviceInfo::new(1 << 20, 4096);
            info.transfer_max = transfer_max;
            let mut level = device_level(0, &info);
            let rule = &mut level.rules[kind as usize];
            rule.is_forbidden = is_forbidden;
            rule.is_refused = is_refused;
            rule.set_plain(kind, &info);
            let rule = level.rules[kind as usize];
            let is_stopped = is_forbidden
                || level.misfit(kind, extent).is_some()
                || emulate::is_needed(&Op::Read { extent }, extent, &rule);
            if kind == OpKind::Read {
                prop_assert_eq!(rule.takes_plain(extent), !is_stopped);
            } else {
                prop_assert!(!rule.takes_plain(extent), "only reads and writes are plain");
            }
        }
    }
}
