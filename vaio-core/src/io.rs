//! One IO as a value: [`Io`], what it asks ([`Op`]), who asks ([`Origin`]) and the answer
//! ([`Reply`]). The meaning of each operation is the contract on
//! [`BlockDevice::submit`](crate::BlockDevice::submit).

use std::fmt;

use bytes::Bytes;

use crate::{Extent, Instant};

/// What an IO asks of a disk.
///
/// `#[non_exhaustive]`: a filter's wildcard arm returns
/// [`Error::unsupported`](crate::Error::unsupported), never forwards. An old filter never sees a
/// new operation: its [`Descriptor`](crate::Descriptor) refuses what it does not name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Op {
    /// Reads the extent. Answered with [`Reply::Data`] of exactly `extent.len()` bytes.
    Read {
        /// Bytes to read.
        extent: Extent,
    },
    /// Writes `data` at `offset`.
    Write {
        /// First byte written.
        offset: u64,
        /// Payload; owned and immutable, so that it can be kept without a copy.
        data: Bytes,
        /// Durable at its ack. Covers this write only; not a barrier.
        fua: bool,
    },
    /// Writes zeroes; a write in every respect.
    WriteZeroes {
        /// Bytes to zero.
        extent: Extent,
        /// The device may deallocate, as long as the extent reads as zeroes.
        may_unmap: bool,
        /// Fail with [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported), having changed
        /// nothing, rather than write zeroes as slowly as data.
        fast_only: bool,
        /// Durable at its ack.
        fua: bool,
    },
    /// Tells that the content is no longer needed. Until written, each block reads as its old
    /// content or as zeroes (see [`DiscardReads`](crate::DiscardReads)).
    Discard {
        /// Bytes to discard.
        extent: Extent,
        /// Durable at its ack.
        fua: bool,
    },
    /// Makes every write, write-zeroes and discard durable whose success was returned before this
    /// flush was submitted.
    Flush,
    /// Advises that the extent will be read soon. Changes no content; may do nothing.
    Prefetch {
        /// Bytes to prefetch.
        extent: Extent,
    },
}

impl Op {
    /// The kind of this operation.
    pub const fn kind(&self) -> OpKind {
        match self {
            Self::Read { .. } => OpKind::Read,
            Self::Write { .. } => OpKind::Write,
            Self::WriteZeroes { .. } => OpKind::WriteZeroes,
            Self::Discard { .. } => OpKind::Discard,
            Self::Flush => OpKind::Flush,
            Self::Prefetch { .. } => OpKind::Prefetch,
        }
    }

    /// The bytes it touches; empty for a flush.
    ///
    /// # Panics
    /// If a write's `offset + data.len()` overflows; the port refuses such an IO.
    pub const fn extent(&self) -> Extent {
        match self {
            Self::Read { extent }
            | Self::WriteZeroes { extent, .. }
            | Self::Discard { extent, .. }
            | Self::Prefetch { extent } => *extent,
            Self::Write { offset, data, .. } => Extent::new(*offset, data.len() as u64),
            Self::Flush => Extent::new(0, 0),
        }
    }

    /// Whether it must be durable at its ack.
    pub const fn is_fua(&self) -> bool {
        matches!(
            self,
            Self::Write { fua: true, .. }
                | Self::WriteZeroes { fua: true, .. }
                | Self::Discard { fua: true, .. }
        )
    }

    /// The same operation with its `fua` flag set to `fua`; others come back unchanged.
    #[must_use]
    pub fn with_fua(mut self, value: bool) -> Self {
        match &mut self {
            Self::Write { fua, .. } | Self::WriteZeroes { fua, .. } | Self::Discard { fua, .. } => {
                *fua = value;
            }
            Self::Read { .. } | Self::Flush | Self::Prefetch { .. } => {}
        }
        self
    }
}

/// The kinds of [`Op`]: a closed vocabulary, exhaustive on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[repr(u8)]
pub enum OpKind {
    /// [`Op::Read`].
    Read = 0,
    /// [`Op::Write`].
    Write = 1,
    /// [`Op::WriteZeroes`].
    WriteZeroes = 2,
    /// [`Op::Discard`].
    Discard = 3,
    /// [`Op::Flush`].
    Flush = 4,
    /// [`Op::Prefetch`].
    Prefetch = 5,
}

impl OpKind {
    /// Number of kinds.
    pub const COUNT: usize = 6;

    /// Every kind, in order of its number.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Read,
        Self::Write,
        Self::WriteZeroes,
        Self::Discard,
        Self::Flush,
        Self::Prefetch,
    ];

    /// Whether it changes what a later read returns.
    pub const fn is_mutation(self) -> bool {
        matches!(self, Self::Write | Self::WriteZeroes | Self::Discard)
    }

    /// Name in logs, events and documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write_zeroes",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::Prefetch => "prefetch",
        }
    }

    pub(crate) const fn from_index(index: u8) -> Option<Self> {
        if (index as usize) < Self::COUNT {
            Some(Self::ALL[index as usize])
        } else {
            None
        }
    }
}

impl fmt::Display for OpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who asks for an IO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Origin {
    /// The VM.
    #[default]
    Guest,
    /// A filter's own work, below itself.
    Filter,
    /// A tool while the VM is off.
    Offline,
    /// A migration or copy of the disk.
    Migration,
    /// A backup.
    Backup,
}

/// One IO: what, who, which, until when.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Io {
    /// What is asked.
    pub op: Op,
    /// Who asks.
    pub origin: Origin,
    /// Number given by the port, unique on this disk while it is open; 0 before that. Derived IO
    /// keeps it, so that one guest IO can be followed through the chain.
    pub id: u64,
    /// When the asker stops waiting. Advice: the IO stays in flight until it ends.
    pub deadline: Option<Instant>,
}

impl Io {
    /// A guest's IO without a deadline.
    pub const fn new(op: Op) -> Self {
        Self {
            op,
            origin: Origin::Guest,
            id: 0,
            deadline: None,
        }
    }

    /// A read of `extent`.
    pub const fn read(extent: Extent) -> Self {
        Self::new(Op::Read { extent })
    }

    /// A write that a crash may lose until flushed.
    pub const fn write(offset: u64, data: Bytes) -> Self {
        Self::new(Op::Write {
            offset,
            data,
            fua: false,
        })
    }

    /// A flush.
    pub const fn flush() -> Self {
        Self::new(Op::Flush)
    }

    /// Zeroes `extent`; may deallocate.
    pub const fn write_zeroes(extent: Extent) -> Self {
        Self::new(Op::WriteZeroes {
            extent,
            may_unmap: true,
            fast_only: false,
            fua: false,
        })
    }

    /// A discard of `extent`.
    pub const fn discard(extent: Extent) -> Self {
        Self::new(Op::Discard { extent, fua: false })
    }

    /// The same IO with its `fua` flag set.
    #[must_use]
    pub fn with_fua(mut self) -> Self {
        self.op = self.op.with_fua(true);
        self
    }

    /// The same asker and number, another operation.
    #[must_use]
    pub fn with_op(&self, op: Op) -> Self {
        Self {
            op,
            origin: self.origin,
            id: self.id,
            deadline: self.deadline,
        }
    }

    /// The same IO from another asker.
    #[must_use]
    pub const fn with_origin(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    /// The same IO with a deadline.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }
}

/// The success answer to an [`Io`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// Answer to everything but a read.
    Done,
    /// Answer to a read: exactly the bytes asked for.
    Data(Bytes),
}

impl Reply {
    /// The bytes of a read's answer; empty for [`Reply::Done`].
    pub fn into_data(self) -> Bytes {
        match self {
            Self::Data(data) => data,
            Self::Done => Bytes::new(),
        }
    }

    /// Whether this is the right kind and length of answer to an operation of `kind` over `len`
    /// bytes.
    pub fn answers(&self, kind: OpKind, len: u64) -> bool {
        match (self, kind) {
            (Self::Data(data), OpKind::Read) => data.len() as u64 == len,
            (Self::Done, kind) => kind != OpKind::Read,
            (Self::Data(_), _) => false,
        }
    }
}

/// A zero payload of `len` bytes that shares one static page where it can.
pub fn zeroes(len: usize) -> Bytes {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    if len <= ZEROES.len() {
        Bytes::from_static(&ZEROES[..len])
    } else {
        Bytes::from(vec![0; len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_of_wrong_kind_or_length_does_not_answer() {
        assert!(Reply::Data(zeroes(8)).answers(OpKind::Read, 8));
        assert!(!Reply::Data(zeroes(7)).answers(OpKind::Read, 8));
        assert!(!Reply::Done.answers(OpKind::Read, 0));
        assert!(!Reply::Data(zeroes(0)).answers(OpKind::Flush, 0));
        assert!(Reply::Done.answers(OpKind::Write, 8));
    }

    #[test]
    fn kinds_number_themselves() {
        for (index, kind) in OpKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
            assert_eq!(OpKind::from_index(u8::try_from(index).unwrap()), Some(kind));
        }
        assert_eq!(OpKind::from_index(6), None);
    }
}
