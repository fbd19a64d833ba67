//! [`Watched`]: a descriptor that the runtime's reactor watches, for what tokio has no type for.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor that is watched until it is dropped. Does not block.
pub(crate) type Watched = AsyncFd<OwnedFd>;

/// Registers a descriptor with the reactor.
///
/// # Errors
/// The kernel's; the descriptor is closed then.
///
/// # Panics
/// Outside of a runtime.
pub(crate) fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<Watched> {
    #[expect(
        unsafe_code,
        reason = "the descriptor is owned and open as long as the AsyncFd"
    )]
    // SAFETY: an `OwnedFd` owns its descriptor, `as_raw_fd` always returns that one, and nothing
    // closes it before the `AsyncFd` is dropped or gives it back.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    Ok(watched?)
}
