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
mod dirty;
pub mod enumerate;
mod guest;
pub mod plan;
mod rig;
pub mod run;
mod shrink;
mod state;
mod watch;

use std::sync::Arc;

use vaio_core::Disk;

pub use broken::Broken;
pub use guest::{Belief, Guest, IDLE, OnError};
pub use plan::{Crash, CrashKind, Era, Plan, PlanError};
pub use rig::{BACKING, Rig, RigSnapshot};
pub(crate) use run::recorded_in;
pub use run::{Failure, Ran, replay, run, run_in};
pub use shrink::{Shrunk, TRIES_MAX, shrink};
pub use state::{Left, State};
pub use watch::{Seen, Work};

use crate::{Subject, disk::Tier};

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
    /// Whether IO below may fail, as the tape says: then errors are honest.
    pub faults: bool,
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
            faults: false,
        }
    }
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

    /// Looks at an open disk that is quiet and whose content the guest has just read.
    fn look(&self, disk: &Disk, rig: &Rig, belief: &Belief) -> Result<(), Broken> {
        if self.checks.dirty {
            dirty::check(self, disk, rig, belief)?;
        }
        Ok(())
    }
}
