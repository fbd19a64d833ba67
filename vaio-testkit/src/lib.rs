//! Simulated disks, crashes and hosts that prove a [vaio](https://docs.rs/vaio-core) filter keeps
//! its promises.
//!
//! Nothing is implemented in this version. The crate exists so that its name and place in the
//! workspace are fixed: it will own time, scheduling and chance through `vaio_core::Runtime`.
