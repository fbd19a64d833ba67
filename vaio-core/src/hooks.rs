//! [`Hooks`]: the quick way through a filter that need not wait.

use std::fmt;

use crate::{Extent, Io, OpKind, Reply, Result};

/// A pair of plain functions around the IO that a filter lets through as it is.
///
/// [`Filter::io`](crate::Filter::io) can do anything, and costs a future of its own for every IO.
/// A filter that sees an IO, decides at once and passes it on unchanged needs none: it returns
/// hooks from [`Filter::hooks`](crate::Filter::hooks), and the framework asks
/// [`before`](Self::before) for each IO whether it may go on without `io`. That costs about a
/// third of what `io` does. The filter is in the path all the same: its IO is counted and timed, a
/// panic is caught and blamed on it, a hook that spins is found and named, and what its descriptor
/// says holds. `io` has to do the same for an IO that `before` would pass: whatever wraps a filter
/// need not know of hooks.
///
/// # Ordering
/// `before` is called on the way down, in order of the chain; nothing of the IO is below the
/// filter yet. `after` is called on the way up, in reverse order, before anyone above has the
/// answer. Each IO that `before` passed gets exactly one `after`, unless the filter was bypassed or
/// faulted meanwhile: then it hears no more. An IO that is issued again, because a filter above
/// failed with it, is another one to the hooks. Calls for different IOs overlap.
///
/// What has to be done before the guest has its answer, whoever fails above, belongs in `io` of a
/// filter that is never bypassed: `after` may hear `None` of an IO that the guest is told of.
///
/// # Limits
/// Both run on the thread that moves the guest's IO: they must not block, wait for a lock that is
/// held for long, or read a file.
///
/// # Panics
/// Are caught. A filter that may be bypassed is, and the IO goes on without it; else the IO fails
/// and the filter is faulted, as in [`Filter::io`](crate::Filter::io).
pub trait Hooks: fmt::Debug + Send + Sync + 'static {
    /// Looks at an IO that the descriptor intercepts, and says whether it may pass.
    fn before(&self, io: &Io) -> Verdict;

    /// Hears what came of an IO that passed. `None`: whoever asked for it, above, let go of it; it
    /// may still be in flight, and what it comes to is not told.
    fn after(&self, io: &Passed, answer: Option<&Result<Reply>>) {
        let _ = (io, answer);
    }
}

/// What [`Hooks::before`] decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The IO goes on unchanged to whatever is next; [`Hooks::after`] hears of its end.
    Pass,
    /// [`Filter::io`](crate::Filter::io) does it, as without hooks; `after` is not called.
    Call,
}

/// An IO that passed: what is left of it when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Passed {
    /// Its operation.
    pub kind: OpKind,
    /// The bytes it touches; empty for a flush.
    pub extent: Extent,
    /// [`Io::id`], the same as in `before`. Parts that stand for one IO share it.
    pub id: u64,
}
