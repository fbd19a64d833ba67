//! Network block device: our server, newstyle fixed, and the wire format for both sides.
//!
//! ```text
//!   listen -> server -> session      accept, limits, stop    one task per connection
//!                         |
//!                      negotiate *   handshake: option in, replies out
//!                         |
//!                      connection    transmission: wire -> inbox -> plan * -> Port
//!                         |                        wire <- outbox <- reply * <-'
//!                      proto *       bytes <-> values        (* pure)
//! ```
//! Simple, structured and extended replies; all of read, write, flush, trim, write zeroes (no
//! hole, fast), cache and block status with `base:allocation` and registered
//! [`MetaContext`]s; several exports; STARTTLS. Everything runs on the thread that polls the disk.
//!
//! A read of zeroes alone is answered with a hole chunk, where the client takes chunks: its length
//! goes over the wire, not its bytes.
//!
//! Not done: the withdrawn parts of the protocol.

mod budget;
mod connection;
mod context;
mod export;
mod inbox;
pub(crate) mod listen;
pub mod negotiate;
mod outbox;
mod plan;
pub mod proto;
mod query;
mod reply;
mod server;
mod session;
mod slots;
mod socket;
mod stall;
mod stop;
mod tls;
mod wire;

pub use context::{BASE_ALLOCATION, MetaContext, STATUS_RANGE_MAX, StatusMap};
pub use export::Export;
pub use server::{Server, ServerSettings, ServerWatch};
pub use tls::TlsServer;
