//! Simulated disks, crashes and hosts that prove a [vaio](https://docs.rs/vaio-core) filter keeps
//! its promises.

pub mod disk;
pub mod tape;

pub use tape::{Choices, ChoicesError, Family, Odometer, Swarm, Tape};
