//! The reference replication filter for [vaio](https://docs.rs/vaio-core).
//!
//! Nothing is implemented in this version. The crate exists so that its name and place in the
//! workspace are fixed: it will depend on `vaio-core` only and sit above the cache, where it sees
//! every guest write.
