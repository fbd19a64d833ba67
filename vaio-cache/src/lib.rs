//! The reference write-back cache filter for [vaio](https://docs.rs/vaio-core).
//!
//! Nothing is implemented in this version. The crate exists so that its name and place in the
//! workspace are fixed: it will depend on `vaio-core` only, hold dirty data in an append log on a
//! device that the host opens for it, and answer dirty queries through
//! `vaio_core::DirtySource`.
