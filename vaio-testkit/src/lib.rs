//! Simulated disks, crashes and hosts that prove a [vaio](https://docs.rs/vaio-core) filter keeps
//! its promises.

pub mod audit;
pub mod conformance;
pub mod disk;
pub mod explore;
pub mod oracle;
pub mod report;
pub mod sim;
pub mod stamp;
#[cfg(feature = "proptest")]
pub mod strategy;
mod subject;
pub mod tape;
pub mod twins;
pub mod workload;
pub mod world;
pub mod zoo;

pub use oracle::{Oracle, OracleSettings, Outcome, Violation};
pub use sim::{
    Boundary, Cause, Difference, EventFuture, Host, Limits, Schedule, Sim, Stuck, Trace,
    TraceEvent, first_difference,
};
pub use stamp::{Stamp, Value};
pub use subject::{Beside, Blocks, MakeFactory, Scale, Subject, Target};
pub use tape::{Choices, ChoicesError, Family, Odometer, Swarm, Tape};
pub use workload::GuestOp;

#[cfg(doctest)]
#[doc = include_str!("../../docs/guide/testing-a-filter.md")]
struct TestingAFilter;

#[cfg(doctest)]
#[doc = include_str!("../../docs/spec/oracle.md")]
struct OracleInProse;
