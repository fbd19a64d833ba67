//! systemd: tells it what goes on, and takes the listening socket that it passes.
//!
//! Does nothing where the program was not started by systemd.

use std::os::unix::net::UnixListener;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sd_notify::NotifyState;
use vaio_core::{Error, Result};

/// The disks serve IO.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The program is ending.
pub(crate) fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd was not told");
    }
}

/// The Unix socket that systemd listens on for us (`LISTEN_FDS`), if it passed one.
///
/// # Errors
/// [`ErrorKind::Config`](vaio_core::ErrorKind::Config) where it passed several, or one that is no
/// listening Unix socket.
pub(crate) fn passed_socket() -> Result<Option<UnixListener>> {
    let bad = |what: &str| Error::config(format!("the socket passed by systemd {what}"));
    let mut passed = sd_notify::listen_fds()
        .map_err(|cause| bad("cannot be read from LISTEN_FDS").with_source(cause))?;
    let Some(number) = passed.next() else {
        return Ok(None);
    };
    if passed.next().is_some() {
        return Err(bad("is one of several: give the unit one ListenStream"));
    }
    // A safe way to own a descriptor that is known by its number only: the kernel gives another.
    let fd = pidfd_open(getpid(), PidfdFlags::empty())
        .and_then(|me| pidfd_getfd(&me, number, PidfdGetfdFlags::empty()))
        .map_err(|errno| bad("cannot be taken").with_source(errno))?;
    let socket = UnixListener::from(fd);
    let is_unix = socket.local_addr().is_ok();
    let is_listening = rustix::net::sockopt::socket_acceptconn(&socket).unwrap_or(false);
    if !is_unix || !is_listening {
        return Err(bad("is no listening Unix socket: use ListenStream=/PATH"));
    }
    Ok(Some(socket))
}
