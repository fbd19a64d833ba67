//! Simulated disks, crashes and hosts that prove a [vaio](https://docs.rs/vaio-core) filter keeps
//! its promises.

pub mod twins;
pub mod zoo;
