//! Staging: a filter that answers writes from a fast device of its own and moves them to the
//! backing later.
//!
//! The staging device is cut into two *sheets*. One takes records, one after another; when it is
//! full, or has been filling for a while, the two change roles, and what the full one holds is
//! moved to the backing as a whole. When the backing has it durably, the sheet gets a new
//! generation, and with that it is empty.
//!
//! ```text
//! staging device:  | stamp | record | record | record | stamp | record | record | record |
//!                  '--------- sheet 0: moving --------'--------- sheet 1: filling -------'
//! ```
//! What makes it safe, and where:
//! * G1: a write that was answered is in a record that recovery takes, or is on the backing
//!   durably (`mover`: the stamp comes last).
//! * G2: sheets are moved and given up in the order of their generations, one after the other;
//!   never is an older one valid when a newer one no longer is (`mover`, `recovery`).
//! * G3: overlapping writes are recorded, shown and answered one after another (`filter`).
//! * G4: after a failed flush of the staging device nothing in it is believed: a flush that the
//!   guest sends then moves it all to the backing instead (`filter`, `sheets`).
//! * G5 (`recovery`): sheets that were not there when the disk was last opened are refused: what
//!   they hold is old.
//! * G6: what is not on the backing durably is reported as dirty (`dirty`).
//!
//! It promises what a disk with a volatile cache does, [`AtFlush`](vaio_core::Promise::AtFlush).
//! The proof is `tests/conformance.rs`.

mod device;
mod dirty;
mod factory;
mod filter;
mod mover;
mod record;
mod recovery;
mod sheets;

pub use factory::{STAGING_DEVICE, StagingFactory};
