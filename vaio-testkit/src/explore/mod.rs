//! Finds runs in which a filter breaks its promise: small workloads exhaustively, large ones at
//! random, a crash at every boundary, and a second era after each.
//!
//! ```text
//!   enumerate / random -> Plan -> run -> at each boundary: crash images -> state -> Broken
//!                          ^                                                         |
//!                          '----------------------- shrink <-------------------------'
//! ```
//! [`Plan`] and [`shrink`] are pure. A [`run`](run::run) is a function of its plan: the same plan
//! gives the same events.

mod broken;
pub mod campaign;
mod dirty;
pub mod enumerate;
mod guest;
mod hash;
pub mod plan;
pub mod random;
mod recovered;
mod rig;
pub mod run;
mod shrink;
mod simpler;
mod state;
pub(crate) mod target;
mod watch;

use std::sync::Arc;

use vaio_core::Disk;

pub use broken::Broken;
pub use guest::{Belief, Guest, IDLE, Look, OnError, io_of};
pub use plan::{Crash, CrashKind, Era, Plan, PlanError};
pub use rig::{BACKING, Rig, RigSnapshot, limits};
pub(crate) use run::recorded_in;
pub use run::{Failure, Ran, replay, run, run_in};
pub use shrink::{Attempt, Shrunk, TRIES_MAX, shrink};
pub use state::{Left, State};
pub use watch::{Seen, Work, values_of};

use crate::{
    Subject,
    disk::{Fault, Rule, SimDisk, Tier},
};

/// What is looked for in a run.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each switches a check of its own"
)]
pub struct Checks {
    /// Crash images that are checked at every boundary of the last era; empty: none are.
    pub tiers: Vec<Tier>,
    /// How hosts die there.
    pub kinds: Vec<CrashKind>,
    /// Whether each state goes through a second era.
    pub second_era: bool,
    /// Whether power fails at each boundary of each recovery too.
    pub recovery_crash: bool,
    /// Whether the run ends with a clean close, after which the lower device alone must hold what
    /// the guest wrote.
    pub close: bool,
    /// Whether what the filter says of dirty data is compared with the truth.
    pub dirty: bool,
    /// Whether the target of an ordered promise is checked at every boundary.
    pub ordered: bool,
    /// What fails below; empty: nothing. Where something may fail, errors are honest.
    pub faults: Vec<FaultBelow>,
    /// What fails below from before each open of a run, and goes on into the work if it has not
    /// happened by then: it may keep the disk from opening, a few times, and may not make it
    /// forget. Errors are honest then too.
    pub open_faults: Vec<FaultBelow>,
    /// What fails below while a crash state is recovered: it may keep the disk from opening, and
    /// may not make it forget.
    pub recovery_faults: Vec<FaultBelow>,
    /// What fails below after a recovered crash state was read, while it is read again: what was
    /// shown once stays, whichever copy it comes from. Errors are honest meanwhile.
    pub reread_faults: Vec<FaultBelow>,
    /// Media that were recovered before are not recovered again for a guest with another history:
    /// what was read from them is put to its oracle. Off: every state is recovered, much slower.
    pub reuses_recoveries: bool,
}

impl Default for Checks {
    /// Crashes at every boundary, the usual images, a second era, a clean close.
    fn default() -> Self {
        Self {
            tiers: Tier::USUAL.to_vec(),
            kinds: vec![CrashKind::Power],
            second_era: true,
            recovery_crash: false,
            close: true,
            dirty: false,
            ordered: true,
            faults: Vec::new(),
            open_faults: Vec::new(),
            recovery_faults: Vec::new(),
            reread_faults: Vec::new(),
            reuses_recoveries: true,
        }
    }
}

impl Checks {
    /// Whether anything fails below in a run.
    pub(crate) fn may_fail(&self) -> bool {
        !self.faults.is_empty() || !self.open_faults.is_empty()
    }
}

/// Something that fails below the filter while the guest works; not while a crash state is
/// checked.
#[derive(Clone, Debug)]
pub struct FaultBelow {
    /// Which disks.
    pub on: On,
    /// What happens.
    pub how: How,
}

/// Which of the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// The lower device.
    Backing,
    /// Those that the filter's needs name.
    Beside,
    /// All of them.
    All,
}

/// How they fail.
#[derive(Clone, Debug)]
pub enum How {
    /// As a rule says.
    Rule(Rule),
    /// As the tape says, in any of these ways.
    Tape(Vec<Fault>),
}

/// A filter under test, and what is looked for.
#[derive(Clone, Debug)]
pub struct Lab {
    /// The filter and its world.
    pub subject: Arc<Subject>,
    /// What is looked for.
    pub checks: Checks,
}

impl Lab {
    /// A lab with the default checks.
    pub fn new(subject: impl Into<Subject>) -> Self {
        Self {
            subject: Arc::new(subject.into()),
            checks: Checks::default(),
        }
    }

    /// What an error means to the guest.
    fn on_error(&self) -> OnError {
        if self.checks.may_fail() {
            OnError::Allowed
        } else {
            OnError::Broken
        }
    }

    /// Looks at an open disk that is quiet and whose content the guest has just read.
    fn look(&self, disk: &Disk, rig: &Rig, belief: &Belief) -> Result<(), Broken> {
        if self.checks.dirty {
            dirty::check(self, disk, rig, belief)?;
        }
        Ok(())
    }
}

/// Makes the disks fail as the checks say.
fn set_faults(rig: &Rig, faults: &[FaultBelow]) {
    let (backing, beside) = rig.disks().split_at(1);
    for fault in faults {
        let set = |disk: &SimDisk| {
            disk.faults(|faults| match &fault.how {
                How::Rule(rule) => faults.add(*rule),
                How::Tape(kinds) => faults.allow(kinds, None),
            });
        };
        if fault.on != On::Beside {
            backing.iter().for_each(set);
        }
        if fault.on != On::Backing {
            beside.iter().for_each(set);
        }
    }
}
