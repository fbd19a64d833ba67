//! [`NbdDevice`]: an export of an NBD server as a block device.
//!
//! Many requests are in flight on one connection. A connection that is lost is not replaced: what
//! the server had acknowledged but not flushed may be gone with it, and only whoever holds the
//! whole picture (a mirror, an operator) can decide what to do. Every IO fails from then on.

mod calls;
mod handshake;
mod link;
mod tls;

use std::{fmt, io, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::net::{TcpStream, UnixStream};
use vaio_core::{
    Allocation, AllocationMap, BlockDevice, BufferPool, DeviceInfo, Error, ErrorKind, Extent, Io,
    Op, OpKind, Reply, Result, Retry, Rt, RuntimeExt,
};

use self::{
    calls::{Answer, Call, Failure},
    link::{Link, Stream},
};
use super::spec::{NbdAddress, NbdUri};
use crate::nbd::proto::{Command, Errno, Request, cmd_flag, status_flag};

pub use calls::IN_FLIGHT_MAX as NBD_IN_FLIGHT_MAX;

/// How long connecting and the handshake may take together.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(20);
/// Idle time after which TCP probes whether the server is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Unused memory for reads that one device keeps, in bytes.
const POOL_HELD_MAX: usize = 16 << 20;
/// Alignment of memory for reads, so that what is read can be written to a file without a copy.
const MEMORY_ALIGN: usize = 4096;
/// Bytes asked about by one block status request.
const STATUS_MAX: u64 = 1 << 31;
/// Pieces that one allocation map tells; what is beyond is told as data.
const ALLOCATION_PIECES_MAX: usize = 16 << 10;

/// A [`BlockDevice`] over one connection to an NBD server.
///
/// # Contract
/// Newstyle; structured replies, block sizes and `base:allocation` where the server has them.
/// Capabilities are what the export's flags say. Blocks are the server's smallest, at least 512
/// bytes. At most [`NBD_IN_FLIGHT_MAX`] requests are with the server; more wait.
///
/// # Errors
/// After the connection is lost, every IO in flight and every later one fails with
/// [`ErrorKind::Gone`], to be tried later on a new device. An IO in flight then may have happened
/// or not, and what was not flushed is not durable.
///
/// # Cancellation
/// An IO whose future is dropped goes on. Dropping the device ends the connection in the
/// background when all is answered.
pub struct NbdDevice {
    uri: NbdUri,
    info: DeviceInfo,
    link: Link,
    pool: BufferPool,
}

impl NbdDevice {
    /// Connects to an export. With `read_only`, writes are refused whatever the server allows.
    ///
    /// Call it on the tokio runtime that will do the IO.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where nothing listens, the export does not exist or the server cannot
    /// serve us; [`ErrorKind::Gone`] where it hangs up; [`ErrorKind::TimedOut`] after
    /// [`HANDSHAKE_MAX`].
    ///
    /// # Cancellation
    /// Dropped, it leaves no connection behind.
    pub async fn connect(uri: &NbdUri, read_only: bool, rt: &Rt) -> Result<Self> {
        let agree = async {
            let stream = dial(&uri.address).await.map_err(|cause| {
                Error::config(format!(
                    "cannot connect: is the NBD server running, uri={uri}"
                ))
                .with_retry(Retry::Later)
                .with_source(cause)
            })?;
            handshake::agree(stream, uri, read_only).await
        };
        let deadline = rt.now() + HANDSHAKE_MAX;
        let agreed = rt.timeout_at(deadline, agree).await.unwrap_or_else(|| {
            Err(Error::new(
                ErrorKind::TimedOut,
                format!("the NBD server does not answer, uri={uri}"),
            ))
        })?;
        Ok(Self {
            uri: uri.clone(),
            info: agreed.info,
            link: Link::start(agreed.stream, agreed.mode, agreed.context, rt),
            pool: BufferPool::new(MEMORY_ALIGN, POOL_HELD_MAX),
        })
    }

    /// Where the export is.
    pub fn uri(&self) -> &NbdUri {
        &self.uri
    }

    async fn call(&self, what: What) -> Result<Answer, Failure> {
        let buffer = (what.command == Command::Read).then(|| {
            self.pool
                .take(usize::try_from(what.extent.len()).expect("a transfer"))
        });
        let request = Request {
            flags: what.flags,
            command: what.command.to_wire(),
            cookie: 0,
            offset: what.extent.offset(),
            len: what.extent.len(),
        };
        let call = Call {
            request,
            payload: what.payload,
            buffer,
            wants_status: what.command == Command::BlockStatus,
        };
        self.link.call(call).await
    }

    fn explain(&self, failure: Failure, op: OpKind, extent: Extent) -> Error {
        let uri = &self.uri;
        let error = match failure {
            Failure::Gone => Error::new(
                ErrorKind::Gone,
                format!("the connection to the NBD server is lost: reopen the disk, uri={uri}"),
            )
            .with_retry(Retry::Later),
            Failure::QueueFull => Error::new(
                ErrorKind::Busy,
                format!("too many requests wait for the NBD server: try again later, uri={uri}"),
            ),
            Failure::Server { error, text } => {
                let said = if text.is_empty() {
                    String::new()
                } else {
                    format!(" server=\"{}\"", text.escape_debug())
                };
                let kind = kind(error);
                let error = Error::new(
                    kind,
                    format!("the NBD server failed the request, uri={uri} errno={error}{said}"),
                );
                match kind {
                    ErrorKind::Gone => error.with_retry(Retry::Later),
                    _ => error,
                }
            }
        };
        error.with_op(op).with_extent(extent)
    }
}

/// What an error number of the protocol means to a caller.
fn kind(error: u32) -> ErrorKind {
    match Errno::from_wire(error) {
        Some(Errno::Perm) => ErrorKind::ReadOnly,
        Some(Errno::NoSpace) => ErrorKind::NoSpace,
        Some(Errno::Inval | Errno::Overflow) => ErrorKind::Invalid,
        Some(Errno::NotSup) => ErrorKind::Unsupported,
        Some(Errno::Shutdown) => ErrorKind::Gone,
        Some(Errno::Io | Errno::NoMem) | None => ErrorKind::Io,
    }
}

async fn dial(address: &NbdAddress) -> io::Result<Stream> {
    match address {
        NbdAddress::Unix(path) => Ok(Stream::new(UnixStream::connect(path).await?)),
        NbdAddress::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            let probes = socket2::TcpKeepalive::new()
                .with_time(KEEPALIVE)
                .with_interval(KEEPALIVE);
            socket2::SockRef::from(&stream).set_tcp_keepalive(&probes)?;
            Ok(Stream::new(stream))
        }
    }
}

/// One command, before it is a call.
struct What {
    command: Command,
    flags: u16,
    extent: Extent,
    payload: Bytes,
}

impl What {
    fn new(command: Command, extent: Extent) -> Self {
        Self {
            command,
            flags: 0,
            extent,
            payload: Bytes::new(),
        }
    }

    fn with(mut self, flag: u16, is_set: bool) -> Self {
        if is_set {
            self.flags |= flag;
        }
        self
    }

    /// The command for an operation, if there is one.
    fn of(op: Op) -> Option<Self> {
        let extent = op.extent();
        Some(match op {
            Op::Read { .. } => Self::new(Command::Read, extent),
            Op::Write { data, fua, .. } => {
                let mut what = Self::new(Command::Write, extent).with(cmd_flag::FUA, fua);
                what.payload = data;
                what
            }
            Op::WriteZeroes {
                may_unmap,
                fast_only,
                fua,
                ..
            } => Self::new(Command::WriteZeroes, extent)
                .with(cmd_flag::FUA, fua)
                .with(cmd_flag::NO_HOLE, !may_unmap)
                .with(cmd_flag::FAST_ZERO, fast_only),
            Op::Discard { fua, .. } => Self::new(Command::Trim, extent).with(cmd_flag::FUA, fua),
            Op::Flush => Self::new(Command::Flush, Extent::new(0, 0)),
            Op::Prefetch { .. } => Self::new(Command::Cache, extent),
            _ => return None,
        })
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlockDevice for NbdDevice {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        let (kind, extent, is_fua) = (io.op.kind(), io.op.extent(), io.op.is_fua());
        debug_assert!(extent.is_aligned(self.info.logical_block));
        let caps = &self.info.caps;
        if kind.is_mutation() && caps.read_only {
            let text = format!("the export is read-only, uri={}", self.uri);
            let error = Error::new(ErrorKind::ReadOnly, text);
            return Err(error.with_op(kind).with_extent(extent));
        }
        if kind == OpKind::Flush && !caps.volatile_cache {
            return Ok(Reply::Done); // the server has no flush to ask for
        }
        let has_fua = caps.fua != vaio_core::Support::None;
        let is_fast = matches!(
            io.op,
            Op::WriteZeroes {
                fast_only: true,
                ..
            }
        );
        // Flags that a server did not offer must not reach it.
        if caps.support(kind) == vaio_core::Support::None
            || is_fua && !has_fua
            || is_fast && !caps.fast_zeroes
        {
            return Err(Error::unsupported(kind).with_extent(extent));
        }
        let what = What::of(io.op).ok_or_else(|| Error::unsupported(kind))?;
        let answer = self.call(what).await;
        let answer = answer.map_err(|failure| self.explain(failure, kind, extent))?;
        Ok(match answer.buffer {
            Some(buffer) => Reply::Data(buffer.freeze()),
            None => Reply::Done,
        })
    }

    /// As the server's `base:allocation` tells; all data where it has none.
    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        if !self.info.caps.allocation {
            return Ok(AllocationMap::uniform(range, Allocation::Data));
        }
        let mut map = AllocationMap::starting_at(range.offset());
        while map.range().end() < range.end() {
            let at = map.range().end();
            if map.pieces().len() >= ALLOCATION_PIECES_MAX {
                map.push(range.end() - at, Allocation::Data);
                break;
            }
            // Whole blocks, as everything that is asked of a server.
            let block = self.info.logical_block;
            let part = Extent::new(at, (range.end() - at).min(STATUS_MAX));
            let part = part.align_out(block).unwrap_or(part);
            let answer = self.call(What::new(Command::BlockStatus, part)).await;
            let answer = answer.map_err(|f| self.explain(f, OpKind::Read, part))?;
            let mut from = part.offset();
            for told in answer.extents {
                let end = from.saturating_add(told.len).min(range.end());
                let start = from.max(at);
                map.push(end.saturating_sub(start), allocation(told.flags));
                from = end;
            }
            if map.range().end() == at {
                // A status shorter than a block: the rest is told as data, which is always true.
                map.push(range.end() - at, Allocation::Data);
            }
        }
        Ok(map)
    }
}

fn allocation(flags: u64) -> Allocation {
    match (
        flags & status_flag::HOLE != 0,
        flags & status_flag::ZERO != 0,
    ) {
        (true, true) => Allocation::Hole,
        (true, false) => Allocation::Unmapped,
        (false, true) => Allocation::Zero,
        (false, false) => Allocation::Data,
    }
}

impl fmt::Debug for NbdDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdDevice")
            .field("uri", &format_args!("{}", self.uri))
            .finish_non_exhaustive()
    }
}

const _: () = assert!(STATUS_MAX <= u32::MAX as u64);
