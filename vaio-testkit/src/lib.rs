//! Simulated disks, crashes and hosts that prove a [vaio](https://docs.rs/vaio-core) filter keeps
//! its promises.

pub mod oracle;
pub mod stamp;
#[cfg(feature = "proptest")]
pub mod strategy;
pub mod workload;

pub use oracle::{Oracle, OracleSettings, Outcome, Violation};
pub use stamp::{Stamp, Value};
pub use workload::GuestOp;
