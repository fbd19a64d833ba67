//! Block devices of a real host: files and block special files ([`FileDevice`]), NBD exports
//! ([`NbdDevice`]), and the locks that keep two owners off one image ([`ImageLock`],
//! [`LockFile`]). [`open_spec`] makes a device from what a user wrote ([`Spec`]).

mod engine;
mod file;
mod geometry;
mod inline;
mod lock_file;
mod nbd;
mod qemu_lock;
mod spec;
mod table;
mod threads;
mod uring;

pub use file::FileDevice;
pub use geometry::{Direct, Engine, FileOptions};
pub use lock_file::LockFile;
pub use nbd::{HANDSHAKE_MAX, NBD_IN_FLIGHT_MAX, NbdDevice};
pub use qemu_lock::{ImageLock, ImageUse};
pub use spec::{NBD_PORT, NbdAddress, NbdUri, Spec, open_spec, parse_size};
pub use table::IN_FLIGHT_MAX;
pub use threads::THREADS;
