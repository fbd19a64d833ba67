//! Network block device: the server in front of a stack.

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
mod stop;
mod tls;
mod wire;

pub use context::{BASE_ALLOCATION, MetaContext, STATUS_RANGE_MAX, StatusMap};
pub use export::Export;
pub use server::{Server, ServerSettings, ServerWatch};
pub use tls::TlsServer;
