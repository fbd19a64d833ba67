//! The NBD server from outside: a hand-made client that can misbehave, real clients where they are
//! installed, and its life from listen to shutdown.

mod client;
mod device;
mod lifecycle;
mod server;
mod tls;
mod tools;
mod transmission;
