//! Simulated disks, crashes and hosts that prove a [vaio](https://docs.rs/vaio-core) filter keeps
//! its promises.

pub mod disk;
pub mod sim;
pub mod tape;

pub use sim::{
    Boundary, Cause, Difference, EventFuture, Host, Limits, Schedule, Sim, Stuck, Trace,
    TraceEvent, first_difference,
};
pub use tape::{Choices, ChoicesError, Family, Odometer, Swarm, Tape};
