//! vaio-core
mod allocation;
mod device;
mod device_ext;
mod error;
mod extent;
mod io;
mod pool;
mod ram_disk;
mod runtime;

pub use allocation::{Allocation, AllocationMap};
pub use device::{BlockDevice, Capabilities, DeviceInfo, DiscardReads, Support};
pub use device_ext::BlockDeviceExt;
pub use error::{Error, ErrorKind, Result, Retry};
pub use extent::Extent;
pub use io::{Io, Op, OpKind, Origin, Reply, zeroes};
pub use pool::{AlignedBuf, BufferPool};
pub use ram_disk::{NullDisk, RamDisk};
pub use runtime::{BoxFuture, Instant, Rt, Runtime, RuntimeExt, WallTime};
