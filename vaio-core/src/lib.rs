//! The contract of vaio: filters in the IO path of a virtual disk.
//!
//! A **filter** sees every IO of one virtual disk before it lands on storage, in user space. A
//! **vendor** implements [`Filter`] and [`FilterFactory`]; a **host** (a VMM, a storage daemon,
//! the `vaio` program) opens a [`BlockDevice`] under a stack of filters as a [`Disk`] and pushes
//! IO through [`Port`]s. This crate is both sides' contract and the machinery between them; it
//! starts no thread, opens no file and reads no clock: a [`Runtime`] does.
//!
//! # The life of one IO
//! ```text
//!  guest / NBD / your VMM
//!     | push                                  ^ completion, exactly one
//!  +--v----+  validates once, owns the IO until it ends
//!  | Port  |
//!  +--+----+  gate: open -> draining -> quiesced
//!  +--v----+  filters in class order; one that does not intercept an operation costs nothing
//!  | chain |  inspect*  qos*  replicate  cache  transform*
//!  +--+----+
//!     v
//!  BlockDevice
//! ```
//!
//! # Where to start
//! * Writing a filter: [`Filter`], [`Descriptor`], [`Next`], [`AttachContext`].
//! * Embedding a disk: [`Disk::builder`], [`Port`], [`Runtime`].
//! * What an IO means: [`BlockDevice::submit`].
//! * Who holds dirty data: [`DirtySource`], [`Level`], [`Disk::flush_to`].

mod admit;
mod allocation;
mod chain;
mod context;
mod core;
mod descriptor;
mod device;
mod device_ext;
mod dirty;
mod disk;
mod error;
mod event;
mod extent;
mod fence;
mod filter;
mod gate;
mod hooks;
mod io;
mod keeper;
mod lifecycle;
mod manifest;
mod pool;
mod port;
mod ram_disk;
mod registry;
mod root;
mod runtime;
mod settings;
mod sidecar;
mod slot;
mod state;
mod stats;
pub mod sync;
mod tally;

pub use self::core::{DiskSettings, OnStall};
pub use allocation::{Allocation, AllocationMap};
pub use chain::{LAYERS_MAX, Next, Submit};
pub use context::{AttachContext, Lower, Step};
pub use descriptor::{
    AcceptedFlags, ApiVersion, BypassSafety, Class, Content, Descriptor, DeviceNeed, Disposition,
    FlushRetry, Needs, OpPolicy, Promise, Rechain,
};
pub use device::{BlockDevice, Capabilities, DeviceInfo, DiscardReads, Support};
pub use device_ext::BlockDeviceExt;
pub use dirty::{
    DirtyMap, DirtyMark, DirtyPiece, DirtyPolicy, DirtySource, DirtySummary, FlushProgress,
    HeldPoint, Level, Release,
};
pub use disk::{
    DeviceProvider, Disk, DiskBuilder, Flushing, PointInTime, Prepared, Quiesced, StateStream,
};
pub use error::{Error, ErrorKind, Result, Retry};
pub use event::{Event, EventBus, EventKind, EventStream, Notice, Severity};
pub use extent::Extent;
pub use filter::{Filter, FilterFactory};
pub use hooks::{Hooks, Passed, Verdict};
pub use io::{Io, Op, OpKind, Origin, Reply, zeroes};
pub use lifecycle::{DirtyDisposition, Lifecycle, OpenReason, Outcome, Phase, Verb};
pub use pool::{AlignedBuf, BufferPool};
pub use port::{Completion, PORT_DEPTH_MAX, Port};
pub use ram_disk::{NullDisk, RamDisk};
pub use registry::{FilterRegistry, FilterSpec, Policy, Resolved};
pub use runtime::{BoxFuture, Instant, Rt, Runtime, RuntimeExt, WallTime};
pub use settings::{SettingKind, SettingSpec, SettingValue, Settings, parse_bytes, parse_duration};
pub use sidecar::{
    DiskLock, MemorySidecar, SIDECAR_BYTES_MAX, SIDECAR_VERSION, Sidecar, SidecarStore,
    sidecar_value,
};
pub use state::{DiskPhase, DiskState, FilterState, Health, LayerState};
pub use stats::{DiskStats, Histogram, LayerStats, OpStats, Quantiles, SAMPLE_EVERY};
