//! What happens to a disk beside IO, as values: [`Verb`], its two [`Phase`]s, and the order in
//! which filters hear of it.

use std::sync::Arc;

use crate::Instant;

/// Something that happens to a disk. Each is announced to every filter in two phases.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Verb {
    /// This filter joined a running disk. Only `Commit` and `Abort` are sent: the factory's
    /// `prepare` and `open` are its first phase.
    Attach,
    /// The disk was opened with this filter. Only `Commit` and `Abort` are sent.
    Open,
    /// A snapshot of the disk below the whole stack is taken.
    Snapshot {
        /// Name given by the caller.
        name: Arc<str>,
    },
    /// The capacity changes.
    Resize {
        /// Bytes now, as seen at the top of the chain.
        from: u64,
        /// Bytes then.
        to: u64,
    },
    /// The disk moves to another host.
    Migrate {
        /// Where, for people.
        destination: Arc<str>,
    },
    /// The disk is copied; its sidecar is not.
    Clone {
        /// Name of the copy.
        name: Arc<str>,
    },
    /// The disk is removed for good; state kept elsewhere goes with it.
    Delete,
    /// This filter leaves the disk for good. `Prepare` has made its data durable below.
    Detach,
    /// This instance ends and another takes its place: the disk closes, or the filter is
    /// replaced. After `Commit` nothing is called any more.
    Close,
}

impl Verb {
    /// Name in logs and events.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Open => "open",
            Self::Snapshot { .. } => "snapshot",
            Self::Resize { .. } => "resize",
            Self::Migrate { .. } => "migrate",
            Self::Clone { .. } => "clone",
            Self::Delete => "delete",
            Self::Detach => "detach",
            Self::Close => "close",
        }
    }
}

/// The phases of a verb: `Prepare`, then either `Commit` or `Abort`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum Phase {
    /// May be slow, may do IO below itself, may refuse. Guest IO goes on.
    Prepare,
    /// The disk is quiesced. Short; must not refuse: an error is reported and the verb stands.
    Commit,
    /// The verb does not happen. Undoes `Prepare`. Sent in reverse order to those that prepared,
    /// also to one whose `Prepare` timed out.
    Abort,
}

impl Phase {
    /// Name in logs and events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Commit => "commit",
            Self::Abort => "abort",
        }
    }
}

/// One life-cycle call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Lifecycle<'a> {
    /// What happens.
    pub verb: &'a Verb,
    /// Which phase.
    pub phase: Phase,
    /// When the caller stops waiting. The call is not cancelled then: it goes on, and the verb is
    /// aborted.
    pub deadline: Instant,
}

impl<'a> Lifecycle<'a> {
    pub(crate) const fn new(verb: &'a Verb, phase: Phase, deadline: Instant) -> Self {
        Self {
            verb,
            phase,
            deadline,
        }
    }
}

/// A filter's answer to a life-cycle call it agrees with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// Done, or nothing to do.
    Done,
}

/// Why a filter is opened; what it may find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum OpenReason {
    /// First time on this disk: there is no state of its own. On a disk that runs, what was
    /// acknowledged before is durable below a filter that holds or changes data
    /// ([`Content`](crate::Content)): its flush need not cover it.
    Attach,
    /// The disk was closed in order.
    Clean,
    /// The disk was not closed in order, or it is not known: recover. Every lower device was
    /// flushed before this call.
    Unclean,
    /// The same filter, with new settings or version, on a quiesced disk; also the way back when
    /// a replacement fails.
    Replace,
}

/// Why a filter leaves, and what becomes of its dirty data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum DirtyDisposition {
    /// Refuse while there is dirty data.
    #[default]
    Refuse,
    /// Flush it to the backing first.
    Flush,
    /// Throw it away, if it is at most this many bytes.
    Discard {
        /// Bytes that the caller has seen and gives up.
        bytes_max: u64,
    },
}
