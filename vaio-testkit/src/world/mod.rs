//! Several hosts: links between them, who owns a disk, and what happens when a host is dead, or
//! only thought to be.
//!
//! There is one guest per disk, and it moves; so the [oracle](crate::oracle) is the one of a single
//! host, and a fail-over is a crash to it. What is new is what an old owner left under way: IO on
//! shared storage, messages on a link, a cache in its own slots. None of it may reach the guest's
//! disk after another owner answered the guest.

mod case;
mod failover;
mod ha;
mod handover;
mod host;
mod lease;
mod link;
mod pair;
mod remote;
mod rows;
mod script;
mod scripts;
mod shared_sidecar;
mod wire;

pub use case::{CASES, Case, Needs, Run, cases};
pub use ha::{LEASE, NotOpened, Opened, Rules, Stack, Vm, is_fenced};
pub use host::{Kept, Local, lose_power};
pub use lease::{Lease, LeaseStore, NotOwner, Record, Swap, TRIES_MAX};
pub use link::{End, FLYING_MAX, LATE, Link, Lost, Mode, Side, TROUBLE_ONE_IN, swizzle};
pub use pair::{BLOCKS, Pair, Site};
pub use remote::{Caller, DiskFrame, Frame, RemoteDisk, serve, serve_disk};
pub use rows::{Shows, WorldRow, random, rows};
pub use script::{Script, Step, play, play_cut};
pub use scripts::SCRIPTS;
pub use shared_sidecar::SharedSidecar;
