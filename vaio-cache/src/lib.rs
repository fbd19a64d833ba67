//! The reference write-back cache filter for [vaio](https://docs.rs/vaio-core).

mod bytes_at;
mod checksum;
mod footer;
mod geometry;
mod log;
mod map;
mod order;
mod record;
mod segments;
mod superblock;
