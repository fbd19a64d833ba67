//! [`Faults`]: how a simulated disk fails, as a test says or as the tape decides.
//!
//! Pure: what a fault does is the handle's part. A disk has no fault until it is given a
//! [`Rule`] or [allowed](Faults::allow) some kinds; [`quiet`](Faults::quiet) ends all of it, so
//! that a run can ask whether everything completes in the end.

use std::time::Duration;

use vaio_core::{Extent, OpKind};

/// Rules that one disk holds.
pub const RULES_MAX: usize = 1024;
/// How long an IO stalls where the tape decides, by its choice.
const STALLS: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_secs(1),
    Duration::from_secs(100),
];

/// What goes wrong with one IO.
///
/// The first six are environment: a filter may fail IO then, never lie. The others a filter has
/// to stand only if it claims to check integrity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Fails; of a mutation each block is old or new. A failed flush takes with it the right of
    /// any later flush to cover what succeeded before.
    Error,
    /// A mutation fails and changes nothing.
    NoSpace,
    /// Takes that long, in virtual time.
    Stall(Duration),
    /// Does not complete until the disk is [quiet](Faults::quiet).
    Hang,
    /// The device is gone: this IO and every later one fails until it is
    /// [restored](super::SimDisk::restore).
    Gone,
    /// Reads of the block fail until it is written: what a power cut leaves of a block that was
    /// being written. For [`allow`](Faults::allow).
    Latent,
    /// A read returns one flipped bit.
    BitRot,
    /// A read returns another block's content.
    MisdirectedRead,
    /// A write goes to the next place of its length.
    MisdirectedWrite,
    /// A write succeeds and does nothing.
    PhantomWrite,
    /// Half of the last block is written.
    ShornWrite,
}

impl Fault {
    /// Whether it can happen to such an IO.
    pub const fn fits(self, op: OpKind) -> bool {
        match self {
            Self::Error | Self::Stall(_) | Self::Hang | Self::Gone => true,
            Self::NoSpace => op.is_mutation(),
            Self::Latent | Self::BitRot | Self::MisdirectedRead => matches!(op, OpKind::Read),
            Self::MisdirectedWrite | Self::PhantomWrite | Self::ShornWrite => {
                matches!(op, OpKind::Write)
            }
        }
    }
}

/// A fault that a test asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What happens.
    pub fault: Fault,
    /// To which operations; `None`: to all that it fits.
    pub op: Option<OpKind>,
    /// To which bytes; `None`: anywhere. A flush has none: it has to be named.
    pub extent: Option<Extent>,
    /// How many such IOs it lets pass first.
    pub after: u32,
    /// How often it happens; `None`: for ever.
    pub times: Option<u32>,
    /// A completed write to the extent ends it.
    pub heals: bool,
}

impl Rule {
    /// Once, to the next IO that it fits.
    pub const fn once(fault: Fault) -> Self {
        Self {
            fault,
            op: None,
            extent: None,
            after: 0,
            times: Some(1),
            heals: false,
        }
    }

    /// To every IO that it fits, for ever.
    pub const fn always(fault: Fault) -> Self {
        Self {
            times: None,
            ..Self::once(fault)
        }
    }

    /// The same, for one operation.
    #[must_use]
    pub const fn on(mut self, op: OpKind) -> Self {
        self.op = Some(op);
        self
    }

    /// The same, for some bytes.
    #[must_use]
    pub const fn at(mut self, extent: Extent) -> Self {
        self.extent = Some(extent);
        self
    }

    /// The same, after some IOs.
    #[must_use]
    pub const fn after(mut self, ios: u32) -> Self {
        self.after = ios;
        self
    }

    fn fits(&self, op: OpKind, extent: Extent) -> bool {
        let is_there = match op {
            OpKind::Flush => self.extent.is_none() || self.op == Some(op),
            _ => self.extent.is_none_or(|own| own.overlaps(extent)),
        };
        self.times != Some(0)
            && self.op.is_none_or(|own| own == op)
            && self.fault.fits(op)
            && is_there
    }
}

/// The faults of one disk.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    rules: Vec<Rule>,
    allowed: Vec<Fault>,
    /// Where the tape may cause faults; `None`: anywhere.
    mask: Option<Extent>,
    is_quiet: bool,
    happened: u64,
}

impl Faults {
    /// Adds a rule. Earlier ones go first.
    ///
    /// # Panics
    /// Above [`RULES_MAX`].
    pub fn add(&mut self, rule: Rule) {
        assert!(self.rules.len() < RULES_MAX, "too many rules for one disk");
        self.rules.push(rule);
    }

    /// Lets the tape cause these, within `mask` (`None`: anywhere). Of a stall only the kind
    /// counts: the tape chooses how long.
    pub fn allow(&mut self, kinds: &[Fault], mask: Option<Extent>) {
        self.allowed = kinds.to_vec();
        self.mask = mask;
    }

    /// No faults from now on, and what hangs goes on.
    pub fn quiet(&mut self) {
        self.is_quiet = true;
        self.rules.clear();
    }

    /// Whether faults have ended.
    pub fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// Faults that happened so far.
    pub fn happened(&self) -> u64 {
        self.happened
    }

    /// What goes wrong with this IO, if anything. `choose(n)` gives a number below `n`, 0 for the
    /// most benign; it is asked only where some fault is allowed.
    pub fn decide(
        &mut self,
        op: OpKind,
        extent: Extent,
        choose: &mut dyn FnMut(u32) -> u32,
    ) -> Option<Fault> {
        if self.is_quiet {
            return None;
        }
        let ruled = self.by_rule(op, extent);
        let fault = ruled.or_else(|| self.by_chance(op, extent, choose));
        self.happened += u64::from(fault.is_some());
        fault
    }

    fn by_rule(&mut self, op: OpKind, extent: Extent) -> Option<Fault> {
        for rule in self.rules.iter_mut().filter(|rule| rule.fits(op, extent)) {
            if rule.after > 0 {
                rule.after -= 1;
                continue;
            }
            if let Some(times) = &mut rule.times {
                *times -= 1;
            }
            return Some(rule.fault);
        }
        None
    }

    fn by_chance(
        &self,
        op: OpKind,
        extent: Extent,
        choose: &mut dyn FnMut(u32) -> u32,
    ) -> Option<Fault> {
        let is_masked = op != OpKind::Flush && self.mask.is_some_and(|mask| !mask.contains(extent));
        // A latent error is caused by a power cut, not by a read.
        let fits = |fault: &&Fault| fault.fits(op) && **fault != Fault::Latent;
        let fitting: Vec<Fault> = self.allowed.iter().filter(fits).copied().collect();
        if is_masked || fitting.is_empty() {
            return None;
        }
        let kinds = u32::try_from(fitting.len()).ok()?;
        let chosen = choose(kinds + 1).checked_sub(1)?;
        match *fitting.get(usize::try_from(chosen).ok()?)? {
            Fault::Stall(_) => {
                let stalls = u32::try_from(STALLS.len()).ok()?;
                let which = usize::try_from(choose(stalls)).ok()?;
                STALLS.get(which).copied().map(Fault::Stall)
            }
            fault => Some(fault),
        }
    }

    /// A power cut may leave one of these blocks unreadable until it is written.
    pub fn after_power_cut(&mut self, blocks: &[Extent], choose: &mut dyn FnMut(u32) -> u32) {
        if self.is_quiet || !self.allowed.contains(&Fault::Latent) || blocks.is_empty() {
            return;
        }
        let count = u32::try_from(blocks.len()).unwrap_or(u32::MAX - 1);
        let chosen = choose(count + 1)
            .checked_sub(1)
            .and_then(|at| usize::try_from(at).ok());
        if let Some(block) = chosen.and_then(|at| blocks.get(at)) {
            self.add(Rule {
                heals: true,
                ..Rule::always(Fault::Latent).at(*block)
            });
        }
    }

    /// A write to these bytes has completed.
    pub fn written(&mut self, extent: Extent) {
        self.rules
            .retain(|rule| !(rule.heals && rule.extent.is_some_and(|own| extent.contains(own))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: Extent = Extent::new(512, 512);

    #[test]
    fn rule_waits_happens_and_ends() {
        let mut faults = Faults::default();
        faults.add(Rule::once(Fault::Error).on(OpKind::Write).after(1));
        let mut decide = |op| faults.decide(op, BLOCK, &mut |_| 0);
        assert_eq!(decide(OpKind::Read), None, "another operation");
        assert_eq!(decide(OpKind::Write), None, "the first passes");
        assert_eq!(decide(OpKind::Write), Some(Fault::Error));
        assert_eq!(decide(OpKind::Write), None, "once");
    }

    #[test]
    fn tape_causes_only_what_is_allowed_where_it_is() {
        let mut faults = Faults::default();
        let mut last = |n| n - 1;
        assert_eq!(faults.decide(OpKind::Write, BLOCK, &mut last), None);
        faults.allow(&[Fault::Error, Fault::NoSpace], Some(Extent::new(0, 512)));
        assert_eq!(
            faults.decide(OpKind::Write, BLOCK, &mut last),
            None,
            "outside the mask"
        );
        faults.allow(&[Fault::Error, Fault::NoSpace], Some(BLOCK));
        assert_eq!(
            faults.decide(OpKind::Write, BLOCK, &mut last),
            Some(Fault::NoSpace)
        );
        assert_eq!(
            faults.decide(OpKind::Read, BLOCK, &mut last),
            Some(Fault::Error)
        );
        assert_eq!(
            faults.decide(OpKind::Read, BLOCK, &mut |_| 0),
            None,
            "benign"
        );
        faults.quiet();
        assert_eq!(faults.decide(OpKind::Read, BLOCK, &mut last), None, "quiet");
    }

    #[test]
    fn latent_error_heals_when_written() {
        let mut faults = Faults::default();
        faults.allow(&[Fault::Latent], None);
        faults.after_power_cut(&[BLOCK], &mut |n| n - 1);
        assert_eq!(
            faults.decide(OpKind::Read, BLOCK, &mut |_| 0),
            Some(Fault::Latent)
        );
        assert_eq!(faults.decide(OpKind::Write, BLOCK, &mut |_| 0), None);
        faults.written(BLOCK);
        assert_eq!(faults.decide(OpKind::Read, BLOCK, &mut |_| 0), None);
    }

    #[test]
    fn rule_that_does_not_heal_stays_when_written() {
        let mut faults = Faults::default();
        faults.add(Rule::always(Fault::Error).on(OpKind::Read).at(BLOCK));
        faults.written(BLOCK);
        assert_eq!(
            faults.decide(OpKind::Read, BLOCK, &mut |_| 0),
            Some(Fault::Error)
        );
    }
}
