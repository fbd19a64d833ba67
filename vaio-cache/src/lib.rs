//! The reference write-back cache filter for [vaio](https://docs.rs/vaio-core).
//!
//! Writes are answered from an append log on a fast device that the host opens for the filter, and
//! reach the backing later. Nothing that was acknowledged is lost by a crash, a torn write, a
//! failed flush or a late write; what is dirty is told; and in ordered mode, which is the default,
//! the backing *alone* is at all times a legal crash image of the guest.
//!
//! # The life of a write
//! ```text
//!  guest -> filter -> write: queued, given a seq
//!                      |     composed into a record with what else waits (log/compose)
//!                      |     given a cut (order), written to the cache device
//!                      v
//!                    published in the map, answered (log)
//!                      :
//!                    flush: durable in the log            <- the guest's flush, fua
//!                      :
//!                    destage: its cut is written to the backing and flushed there,
//!                      |      the superblock says so, durably
//!                      v
//!                    forgotten; its segment is free (segments)
//! ```
//! # Where to start
//! `filter.rs` is the table of operations. The state of the log is pure: `log`, with `order` (what
//! may be shown together), `segments` (the ring), `map` (what is where). `write`, `read`, `flush`,
//! `destage`, `bypass`, `hold` and `dirty` act on it. `recover` opens it after whatever happened
//! (`scan` reads it, `lost` counts what an open would give up);
//! `superblock`, `record`, `footer` and `checksum` are the format, which `docs/spec/cache-format.md`
//! describes. `store` is what is
//! kept for reads.
//!
//! Invariants are numbered in the first lines of the file that keeps them, and named where code
//! depends on them.

mod bypass;
mod bytes_at;
mod cache;
mod checksum;
mod destage;
mod device;
mod dirty;
mod factory;
mod filter;
mod flush;
mod footer;
mod geometry;
mod hold;
pub mod inspect;
mod log;
mod lost;
mod map;
mod order;
mod pace;
mod passage;
mod read;
mod record;
mod recover;
mod report;
mod scan;
mod segments;
mod settings;
mod store;
mod superblock;
mod table;
mod write;

pub use factory::{CacheFactory, NAME};
pub use geometry::Sizes;
pub use settings::{CACHE_DEVICE, CacheSettings, Durability, Mode};
pub use superblock::CACHE_FORMAT_VERSION;
