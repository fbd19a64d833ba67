//! The NBD server from outside: a hand-made client that can misbehave, real clients where they are
//! installed, and its life from listen to shutdown.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "a test's modules are for each other")]

mod client;
mod device;
mod lifecycle;
mod limits;
mod server;
mod tls;
mod tools;
mod transmission;
