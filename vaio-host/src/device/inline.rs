//! [`Inline`]: small IO on the page cache, done there and then by the caller's thread.
//!
//! Copying 4 KiB to or from the page cache takes less than a microsecond to a few; handing it to
//! another thread takes tens. A read is done only if it is cached (`RWF_NOWAIT`). So is a write
//! where the file system can tell; where it cannot (ext4), a plain write is nearly always a copy
//! too, but waits when the system throttles writers. Then one write is late, and for
//! [`REST`] times as long the next ones go to the engine instead: the thread waits for at most one
//! part in that many.

use std::{
    fs::File,
    io::{IoSlice, IoSliceMut},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};
use vaio_core::{Instant, Rt};

/// Largest transfer that is done inline, in bytes.
const BYTES_MAX: usize = 64 << 10;
/// A write that took longer was throttled.
const SLOW: Duration = Duration::from_millis(1);
/// How many times a slow write's own time writes are not done inline after it.
const REST: u32 = 20;

/// What is known of a file's page cache.
#[derive(Debug, Default)]
pub(super) struct Inline {
    /// The file system does not do `RWF_NOWAIT` reads.
    is_read_missing: AtomicBool,
    /// The file system does not do `RWF_NOWAIT` writes.
    is_nowait_missing: AtomicBool,
    /// Writes go to the engine until then, in nanoseconds of the runtime's clock.
    rest_until: AtomicU64,
}

impl Inline {
    /// Fills `buffer` from `offset` if the page cache has it all. `false`: ask the engine.
    pub(super) fn read(&self, file: &File, offset: u64, buffer: &mut [u8]) -> bool {
        let len = buffer.len();
        if len > BYTES_MAX || self.is_read_missing.load(Ordering::Relaxed) {
            return false;
        }
        let mut into = [IoSliceMut::new(buffer)];
        match preadv2(file, &mut into, offset, ReadWriteFlags::NOWAIT) {
            Ok(moved) => moved == len,
            Err(Errno::OPNOTSUPP) => {
                self.is_read_missing.store(true, Ordering::Relaxed);
                false
            }
            Err(_) => false,
        }
    }

    /// Writes `data` at `offset` if that is likely not to wait. `false`: ask the engine to write
    /// it all, also where a part was written or it failed.
    pub(super) fn write(&self, file: &File, offset: u64, data: &[u8], rt: &Rt) -> bool {
        if data.len() > BYTES_MAX {
            return false;
        }
        let from = [IoSlice::new(data)];
        if !self.is_nowait_missing.load(Ordering::Relaxed) {
            match pwritev2(file, &from, offset, ReadWriteFlags::NOWAIT) {
                Err(Errno::OPNOTSUPP) => self.is_nowait_missing.store(true, Ordering::Relaxed),
                result => return result == Ok(data.len()),
            }
        }
        let start = rt.now();
        if start < Instant::from_nanos(self.rest_until.load(Ordering::Relaxed)) {
            return false;
        }
        let result = pwritev2(file, &from, offset, ReadWriteFlags::empty());
        let end = rt.now();
        let took = end.since(start);
        if took > SLOW {
            let until = (end + took * REST).as_nanos();
            self.rest_until.store(until, Ordering::Relaxed);
        }
        result == Ok(data.len())
    }
}
