//! [`AnyEngine`]: the few system calls a file device is made of, done by a ring or by threads.
//!
//! A [`Request`] owns its memory from the first poll until the kernel is done with it. Engines
//! finish what the kernel does in part; they know offsets and errno, not blocks, paths or policy.

use std::{fmt, future::Future, io};

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use vaio_core::{AlignedBuf, Extent};

use super::{threads::Threads, uring::Ring};

/// Times that one request is tried again after the system said "interrupted" or "again".
pub(super) const RETRIES_MAX: u8 = 16;

/// Requests that wait for a free place in an engine; one more fails with [`Failure::QueueFull`].
/// A port's depth bounds what a guest can have in flight long before.
pub(super) const WAITING_MAX: usize = 4096;

/// What a write takes its bytes from.
#[derive(Debug)]
pub(super) enum Payload {
    /// The caller's memory, used as it is.
    Shared(Bytes),
    /// A copy in aligned memory.
    Pooled(AlignedBuf),
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Pooled(buffer) => buffer.as_ref(),
        }
    }
}

/// One system call's worth of work, with its memory.
#[derive(Debug)]
pub(super) enum Request {
    /// Fills `buffer` from `offset`; answered with the buffer.
    Read { offset: u64, buffer: AlignedBuf },
    /// Writes all of `data` at `offset`; with `durable`, as if each were followed by a flush of
    /// itself.
    Write {
        offset: u64,
        data: Payload,
        durable: bool,
    },
    /// `fdatasync`.
    Flush,
    /// `fallocate`.
    Allocate {
        mode: FallocateFlags,
        extent: Extent,
    },
    /// Asks for read-ahead.
    WillNeed { extent: Extent },
}

impl Request {
    /// Bytes to transfer; 0 for what is done in one call.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Read { buffer, .. } => buffer.len(),
            Self::Write { data, .. } => data.as_ref().len(),
            Self::Flush | Self::Allocate { .. } | Self::WillNeed { .. } => 0,
        }
    }
}

/// Why an engine failed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The system's errno.
    Errno(i32),
    /// The file ended before the transfer did.
    EndOfFile,
    /// [`WAITING_MAX`] requests wait already.
    QueueFull,
    /// The engine's runtime or threads are gone.
    Stopped,
}

impl Failure {
    /// The system's error, where there is one.
    pub(super) fn os(self) -> Option<io::Error> {
        match self {
            Self::Errno(errno) => Some(io::Error::from_raw_os_error(errno)),
            _ => None,
        }
    }

    /// Whether the system does not know the call, mode or file system.
    pub(super) fn is_unsupported(self) -> bool {
        use rustix::io::Errno;
        matches!(self, Self::Errno(errno)
            if [Errno::OPNOTSUPP, Errno::NOSYS, Errno::NODEV, Errno::NOTTY]
                .iter().any(|known| known.raw_os_error() == errno))
    }
}

/// The buffer of a read, or nothing.
pub(super) type Answer = Result<Option<AlignedBuf>, Failure>;

/// What to do after the kernel answered one step of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The request is over.
    Done(Result<(), Failure>),
    /// Do the rest, from this many bytes on.
    Again(usize),
}

/// Decides from a system call's `result` (bytes, or a negative errno) for a request of `len`
/// bytes of which `progress` are done. `retries` counts tries that moved nothing.
pub(super) fn step(len: usize, progress: usize, result: i32, retries: &mut u8) -> Step {
    use rustix::io::Errno;
    let Ok(moved) = usize::try_from(result) else {
        let errno = result.wrapping_neg();
        let transient = errno == Errno::INTR.raw_os_error() || errno == Errno::AGAIN.raw_os_error();
        if transient && *retries < RETRIES_MAX {
            *retries += 1;
            return Step::Again(progress);
        }
        return Step::Done(Err(Failure::Errno(errno)));
    };
    if len == 0 || progress + moved >= len {
        return Step::Done(Ok(()));
    }
    if moved == 0 {
        return Step::Done(Err(Failure::EndOfFile));
    }
    *retries = 0;
    Step::Again(progress + moved)
}

/// The way requests reach the kernel.
pub(super) enum AnyEngine {
    /// `io_uring`, on the runtime's own thread.
    Ring(Ring),
    /// A pool of threads.
    Threads(Threads),
}

impl AnyEngine {
    /// Does one request. Starts at the first poll; dropped after that, the request goes on and
    /// keeps its memory until the kernel is done.
    pub(super) fn run(&self, request: Request) -> impl Future<Output = Answer> + Send + '_ {
        use futures::future::Either;
        match self {
            Self::Ring(ring) => Either::Left(ring.run(request)),
            Self::Threads(threads) => Either::Right(threads.run(request)),
        }
    }

    /// Name in logs and state.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Ring(_) => "io_uring",
            Self::Threads(_) => "threads",
        }
    }
}

impl fmt::Debug for AnyEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_short_transfer_goes_on_and_end_of_file_fails() {
        let mut retries = 3;
        assert_eq!(step(4096, 0, 512, &mut retries), Step::Again(512));
        assert_eq!(retries, 0);
        assert_eq!(step(4096, 512, 3584, &mut retries), Step::Done(Ok(())));
        assert_eq!(
            step(4096, 512, 0, &mut retries),
            Step::Done(Err(Failure::EndOfFile))
        );
        assert_eq!(step(0, 0, 0, &mut retries), Step::Done(Ok(())));
    }

    #[test]
    fn step_transient_errors_are_tried_up_to_the_limit() {
        let mut retries = 0;
        for _ in 0..RETRIES_MAX {
            assert_eq!(step(4096, 512, -4, &mut retries), Step::Again(512));
        }
        assert_eq!(
            step(4096, 512, -4, &mut retries),
            Step::Done(Err(Failure::Errno(4)))
        );
        assert_eq!(
            step(4096, 0, -5, &mut 0),
            Step::Done(Err(Failure::Errno(5)))
        );
    }
}
