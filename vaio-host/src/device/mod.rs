//! Block devices of a real host: files and block special files ([`FileDevice`]), NBD exports
//! (`NbdDevice`), and the locks that keep two owners off one image. `open_spec` makes a device
//! from what a user wrote (`Spec`).

mod engine;
mod file;
mod geometry;
mod table;
mod threads;
mod uring;

pub use file::FileDevice;
pub use geometry::{Direct, Engine, FileOptions};
pub use table::IN_FLIGHT_MAX;
pub use threads::THREADS;
