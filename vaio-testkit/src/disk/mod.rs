//! Simulated disks: what they hold, what a crash leaves of it, and how they fail.
//!
//! [`Image`] is content, [`Media`] content behind a volatile cache, [`CrashPoint`] the images that
//! a crash may leave, [`Faults`] what goes wrong; these are pure. [`SimDisk`] is a medium with a
//! name in a simulated world.

mod cache;
mod crash;
mod fault;
mod handle;
mod image;
mod journal;
mod mutation;
mod sidecar;
mod sim_disk;
mod spec;
mod tier;

pub use cache::{Landing, Media, PENDING_MAX, Snapshot};
pub use crash::{CrashCase, CrashPoint};
pub use fault::{Fault, Faults, RULES_MAX, Rule};
pub use image::{Content, Data, Fill, Image};
pub use journal::{Fate, JOURNAL_MAX, Journal, LowerIo};
pub use mutation::{Change, ChangeKind, End, Moment, Mutation, MutationId};
pub use sidecar::{SidecarSnapshot, SimDevices, SimSidecar};
pub use sim_disk::{FINDINGS_MAX, HELD_UP, Moments, SimDisk};
pub use spec::{CrashSpec, Piece, Survivors};
pub use tier::{EXHAUSTIVE_MAX, PAIRS_MAX, Tier};

/// Bytes of a logical block, where nothing else is asked for.
pub const BLOCK: u64 = 512;
