//! [`FileDevice`]: a regular file or block special file as a block device.
//!
//! Each operation is one or a few [`Request`]s to the engine; this file decides which, and turns
//! what fails into an error that names the file.
//!
//! Invariants: no memory is copied where the caller's is aligned as the file needs it; a flush
//! that failed while the page cache held writes is never followed by one that succeeds, because
//! the kernel forgets such writes after telling of them once.

use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::{
    fs::{FallocateFlags, SeekFrom, seek},
    io::Errno,
};
use tokio::task::coop::consume_budget;
use vaio_core::{
    Allocation, AllocationMap, BlockDevice, BufferPool, DeviceInfo, Error, ErrorKind, Extent, Io,
    Op, OpKind, Reply, Result, Rt, RuntimeExt,
};

use super::{
    engine::{AnyEngine, Failure, Payload, Request},
    geometry::{self, Engine, FileOptions, MEMORY_ALIGN, Opened},
    inline::Inline,
    threads::Threads,
    uring::Ring,
};

/// Unused aligned memory that one device keeps, in bytes.
const POOL_HELD_MAX: usize = 1 << 20;
/// Zeroes written by one request where the file system cannot zero by itself, in bytes.
const ZEROES_CHUNK: u64 = 256 << 10;
/// Pieces that one allocation map tells; what is beyond is told as data.
const ALLOCATION_PIECES_MAX: usize = 16 << 10;

/// A [`BlockDevice`] over a regular file or a block special file.
///
/// # Contract
/// Blocks are what the file system needs for direct IO, else 512 bytes. The device does not lock
/// the file: see [`ImageLock`](super::ImageLock).
///
/// # Durability
/// A flush is `fdatasync`; fua is `RWF_DSYNC` for writes, and a flush after write zeroes and
/// discards. After a flush failed in buffered mode, every later flush fails too: reopen the device
/// and compare or restore.
///
/// # Cancellation
/// An IO whose future is dropped goes on in the kernel; its memory lives until it has ended.
/// Dropping the device lets such IO end in the background.
pub struct FileDevice {
    path: PathBuf,
    /// All but the capacity, which may grow.
    info: DeviceInfo,
    capacity: AtomicU64,
    is_direct: bool,
    /// Whether blocks are allocated one by one, so that holes can be told and made.
    is_regular: bool,
    engine: AnyEngine,
    file: Arc<File>,
    /// For the page cache only.
    inline: Inline,
    pool: BufferPool,
    rt: Rt,
    /// A flush failed: what it should have covered may be gone from the page cache.
    is_flush_lost: AtomicBool,
    /// The file system does not zero ranges and keep them allocated.
    is_zero_range_missing: AtomicBool,
    /// It does not make holes after all (some block devices).
    is_punch_missing: AtomicBool,
}

impl FileDevice {
    /// Opens `path`. Changes nothing.
    ///
    /// Call it on the runtime that will do the IO: the ring of `io_uring` is driven there.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] with the path and what to do: missing, a directory, neither file nor
    /// block device, empty, not whole blocks, not permitted, or no direct IO or `io_uring` where
    /// the options insist.
    pub fn open(path: impl AsRef<Path>, options: &FileOptions, rt: &Rt) -> Result<Self> {
        let path = path.as_ref();
        let Opened {
            file,
            info,
            is_direct,
            is_regular,
        } = geometry::open(path, options)?;
        info.validate()?;
        let no = |cause: std::io::Error| {
            Error::config(format!("cannot start io, path={}", path.display())).with_source(cause)
        };
        let engine = start(options.engine, &file, rt).map_err(no)?;
        tracing::debug!(
            path = %path.display(),
            engine = engine.name(),
            is_direct,
            logical_block = info.logical_block,
            "file device opened"
        );
        Ok(Self {
            path: path.to_owned(),
            info,
            capacity: AtomicU64::new(info.capacity),
            is_direct,
            is_regular,
            engine,
            file: Arc::new(file),
            inline: Inline::default(),
            pool: BufferPool::new(MEMORY_ALIGN, POOL_HELD_MAX),
            rt: Arc::clone(rt),
            is_flush_lost: AtomicBool::new(false),
            is_zero_range_missing: AtomicBool::new(false),
            is_punch_missing: AtomicBool::new(false),
        })
    }

    /// The file's path as it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether IO goes around the page cache.
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// What does the system calls: `io_uring` or `threads`.
    pub fn engine(&self) -> &'static str {
        self.engine.name()
    }

    /// Makes the device larger: a file grows, sparse; a block device must have grown already. IO
    /// within the old capacity goes on meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a capacity that is smaller or not whole blocks, else as the file
    /// system; the old capacity stays.
    pub async fn grow(&self, capacity: u64) -> Result<()> {
        let at = self.path.display();
        let now = self.info().capacity;
        let block = u64::from(self.info.logical_block);
        if capacity < now || !capacity.is_multiple_of(block) || capacity > DeviceInfo::CAPACITY_MAX
        {
            return Err(Error::invalid(format!(
                "a disk grows, by whole blocks, path={at} capacity={capacity} now={now} block={block}"
            )));
        }
        let (file, is_regular) = (Arc::clone(&self.file), self.is_regular);
        let grown = self.rt.offload_with(move || {
            let mut file = &*file;
            if is_regular {
                file.set_len(capacity).and_then(|()| file.sync_all())?;
            }
            std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))
        });
        let size = grown
            .await
            .ok_or_else(|| self.explain(Failure::Stopped, OpKind::Write, Extent::new(0, 0)))?
            .map_err(|cause| Error::io(format!("cannot grow the disk, path={at}"), cause))?;
        if size < capacity {
            return Err(Error::invalid(format!(
                "grow the block device first, path={at} capacity={capacity} size={size}"
            )));
        }
        self.capacity.store(capacity, Ordering::Release);
        Ok(())
    }

    async fn read(&self, extent: Extent) -> Result<Reply, Failure> {
        let mut buffer = self.pool.take(index(extent.len()));
        let offset = extent.offset();
        if !self.is_direct {
            consume_budget().await; // never waits, so that it must not go on for ever
            if self.inline.read(&self.file, offset, buffer.as_mut()) {
                return Ok(Reply::Data(buffer.freeze()));
            }
        }
        let filled = self.engine.run(Request::Read { offset, buffer }).await?;
        let buffer = filled.expect("a read is answered with its buffer");
        Ok(Reply::Data(buffer.freeze()))
    }

    async fn write(&self, offset: u64, data: Bytes, durable: bool) -> Result<(), Failure> {
        if !self.is_direct && !durable {
            consume_budget().await;
            if self.inline.write(&self.file, offset, &data, &self.rt) {
                return Ok(());
            }
        }
        let align = self.info.memory_align as usize;
        let data = if self.is_direct && !(data.as_ptr() as usize).is_multiple_of(align) {
            Payload::Pooled(self.pool.copy_of(&data))
        } else {
            Payload::Shared(data)
        };
        let request = Request::Write {
            offset,
            data,
            durable,
        };
        self.engine.run(request).await.map(drop)
    }

    async fn flush(&self) -> Result<(), Failure> {
        if self.is_flush_lost.load(Ordering::Acquire) {
            return Err(Failure::Errno(Errno::IO.raw_os_error()));
        }
        let result = self.engine.run(Request::Flush).await.map(drop);
        if matches!(result, Err(Failure::Errno(_))) && !self.is_direct {
            self.is_flush_lost.store(true, Ordering::Release);
        }
        result
    }

    async fn discard(&self, extent: Extent, fua: bool) -> Result<(), Failure> {
        if self.punch(extent).await? && fua {
            self.flush().await?;
        }
        Ok(())
    }

    async fn write_zeroes(&self, extent: Extent, how: Zeroing) -> Result<(), Failure> {
        let is_done = how.may_unmap && self.punch(extent).await? || self.zero_range(extent).await?;
        if is_done {
            if how.fua {
                self.flush().await?;
            }
            return Ok(());
        }
        if how.fast_only {
            return Err(Failure::Errno(Errno::OPNOTSUPP.raw_os_error()));
        }
        for piece in extent.split(ZEROES_CHUNK) {
            let data = zero_memory().slice(..index(piece.len()));
            self.write(piece.offset(), data, how.fua).await?;
        }
        Ok(())
    }

    /// Makes a hole, which reads as zeroes. `false`: cannot be done here, nothing was changed.
    async fn punch(&self, extent: Extent) -> Result<bool, Failure> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.allocate(mode, extent, &self.is_punch_missing).await
    }

    /// Zeroes that stay allocated. `false`: cannot be done here, nothing was changed.
    async fn zero_range(&self, extent: Extent) -> Result<bool, Failure> {
        let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        self.allocate(mode, extent, &self.is_zero_range_missing)
            .await
    }

    async fn allocate(
        &self,
        mode: FallocateFlags,
        extent: Extent,
        is_missing: &AtomicBool,
    ) -> Result<bool, Failure> {
        if is_missing.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match self.engine.run(Request::Allocate { mode, extent }).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.is_unsupported() => {
                is_missing.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(failure) => Err(failure),
        }
    }

    /// What the caller is told.
    fn explain(&self, failure: Failure, op: OpKind, extent: Extent) -> Error {
        let at = self.path.display();
        let error = match failure {
            Failure::EndOfFile => Error::new(
                ErrorKind::Io,
                format!("the file is shorter than when it was opened: restore its size, path={at}"),
            ),
            Failure::QueueFull => Error::new(
                ErrorKind::Busy,
                format!("too many requests wait for the file: try again later, path={at}"),
            ),
            Failure::Stopped => Error::new(
                ErrorKind::Gone,
                format!("the file's io has stopped with its runtime, path={at}"),
            ),
            Failure::Errno(_)
                if op == OpKind::Flush && self.is_flush_lost.load(Ordering::Acquire) =>
            {
                Error::new(
                    ErrorKind::Io,
                    format!(
                        "a flush failed and the system forgot what it held: reopen the disk and check it, path={at}"
                    ),
                )
            }
            Failure::Errno(_) if failure.is_unsupported() => Error::new(
                ErrorKind::Unsupported,
                format!("the file system cannot do it, path={at}"),
            ),
            Failure::Errno(errno) => {
                let hint = if errno == Errno::NOSPC.raw_os_error()
                    || errno == Errno::DQUOT.raw_os_error()
                {
                    "no space for the file: free some below it"
                } else if errno == Errno::INVAL.raw_os_error() {
                    "the file refused the request: its size, blocks or mount may have changed, reopen it"
                } else {
                    "io on the file failed: see the kernel log for the device below"
                };
                let cause = failure.os().expect("an errno is the system's");
                Error::io(format!("{hint}, path={at}"), cause)
            }
        };
        error.with_op(op).with_extent(extent)
    }
}

/// The flags of a write zeroes.
#[derive(Clone, Copy, Debug)]
struct Zeroing {
    may_unmap: bool,
    fast_only: bool,
    fua: bool,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlockDevice for FileDevice {
    fn info(&self) -> DeviceInfo {
        let mut info = self.info;
        info.capacity = self.capacity.load(Ordering::Acquire);
        info
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        let (kind, extent) = (io.op.kind(), io.op.extent());
        debug_assert!(
            extent.is_aligned(self.info.logical_block) && extent.end() <= self.info().capacity
        );
        if kind.is_mutation() && self.info.caps.read_only {
            let text = format!(
                "the file is open for reading only, path={}",
                self.path.display()
            );
            return Err(Error::new(ErrorKind::ReadOnly, text)
                .with_op(kind)
                .with_extent(extent));
        }
        let done = match io.op {
            Op::Read { extent } => {
                let read = self.read(extent).await;
                return read.map_err(|failure| self.explain(failure, kind, extent));
            }
            Op::Write { offset, data, fua } => self.write(offset, data, fua).await,
            Op::WriteZeroes {
                extent,
                may_unmap,
                fast_only,
                fua,
            } => {
                let how = Zeroing {
                    may_unmap,
                    fast_only,
                    fua,
                };
                self.write_zeroes(extent, how).await
            }
            Op::Discard { extent, fua } => self.discard(extent, fua).await,
            Op::Flush if self.info.caps.read_only => Ok(()),
            Op::Flush => self.flush().await,
            Op::Prefetch { .. } if self.is_direct => Ok(()),
            Op::Prefetch { extent } => {
                let advice = self.engine.run(Request::WillNeed { extent }).await;
                advice.map(drop)
            }
            _ => return Err(Error::unsupported(kind)),
        };
        done.map(|()| Reply::Done)
            .map_err(|failure| self.explain(failure, kind, extent))
    }

    /// Data and holes as the file system tells them; a block device is all data.
    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        if !self.is_regular {
            return Ok(AllocationMap::uniform(range, Allocation::Data));
        }
        let file = Arc::clone(&self.file);
        let map = self.rt.offload_with(move || scan(&file, range)).await;
        match map {
            Some(Ok(map)) => Ok(map),
            Some(Err(errno)) => {
                let failure = Failure::Errno(errno.raw_os_error());
                Err(self.explain(failure, OpKind::Read, range))
            }
            None => Err(self.explain(Failure::Stopped, OpKind::Read, range)),
        }
    }
}

impl fmt::Debug for FileDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileDevice")
            .field("path", &self.path)
            .field("engine", &self.engine)
            .field("is_direct", &self.is_direct)
            .finish_non_exhaustive()
    }
}

fn start(engine: Engine, file: &File, rt: &Rt) -> std::io::Result<AnyEngine> {
    if engine != Engine::Threads {
        match Ring::new(file.try_clone()?, rt) {
            Ok(ring) => return Ok(AnyEngine::Ring(ring)),
            Err(cause) if engine == Engine::IoUring => return Err(cause),
            Err(cause) => tracing::info!(%cause, "no io_uring: using threads"),
        }
    }
    Ok(AnyEngine::Threads(Threads::new(file.try_clone()?)?))
}

/// Walks data and holes of `range`. Blocks: the file system may have to read its maps.
fn scan(file: &File, range: Extent) -> Result<AllocationMap, Errno> {
    let mut map = AllocationMap::starting_at(range.offset());
    while map.range().end() < range.end() {
        let at = map.range().end();
        if map.pieces().len() >= ALLOCATION_PIECES_MAX {
            map.push(range.end() - at, Allocation::Data);
            break;
        }
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.clamp(at, range.end()),
            Err(Errno::NXIO) => range.end(), // a hole up to the end of the file
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                map.push(range.end() - at, Allocation::Data);
                break;
            }
            Err(errno) => return Err(errno),
        };
        map.push(data - at, Allocation::Hole);
        if data == range.end() {
            break;
        }
        let hole = seek(file, SeekFrom::Hole(data))?.clamp(data, range.end());
        map.push(hole.max(data + 1).min(range.end()) - data, Allocation::Data);
    }
    Ok(map)
}

/// Shared, aligned zeroes of [`ZEROES_CHUNK`] bytes.
fn zero_memory() -> &'static Bytes {
    static ZEROES: OnceLock<Bytes> = OnceLock::new();
    ZEROES.get_or_init(|| {
        let mut buffer = BufferPool::new(MEMORY_ALIGN, 0).take(index(ZEROES_CHUNK));
        buffer.as_mut().fill(0);
        buffer.freeze()
    })
}

/// A transfer is at most what the device's info says.
fn index(value: u64) -> usize {
    usize::try_from(value).expect("a transfer fits in memory")
}
