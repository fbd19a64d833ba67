//! [`PlainSocket`]: a stream socket as a [`Wire`], with as few system calls and wake-ups as the
//! kernel allows.
//!
//! * A receive that got less than it offered room for has emptied the socket (edge-triggered
//!   readiness), so the next one waits for the reactor instead of asking the kernel and being told
//!   `EAGAIN`. The same holds for a send that was cut short.
//! * Sends just try. Whoever asks the kernel for writability is woken for every reply that the
//!   client takes, though nothing waits for room; so it is asked for only once a client was too
//!   slow, and then for the rest of the connection.

use std::{
    io::{self, IoSlice, IoSliceMut, Read},
    net::Shutdown,
    os::fd::OwnedFd,
    task::{Context, Poll, ready},
};

use nix::libc::MSG_NOSIGNAL;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::{TcpStream, UnixStream},
};

use super::wire::Wire;
use crate::watched::{Watched, watch};

/// A connected socket that does not block.
#[derive(Debug)]
pub(super) struct PlainSocket {
    readable: Watched,
    /// A second handle, for a client that was too slow once.
    writable: Option<Watched>,
}

impl PlainSocket {
    pub(super) fn new(stream: impl Transport) -> io::Result<Self> {
        let readable = watch(stream.into_socket()?, Interest::READABLE)?;
        let writable = None;
        Ok(Self { readable, writable })
    }

    /// The socket, for a TLS session.
    pub(super) fn into_stream<S: Transport>(self) -> io::Result<S> {
        S::from_socket(self.readable.into_inner())
    }
}

/// A stream that is a socket.
pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin + Sized {
    fn into_socket(self) -> io::Result<OwnedFd>;
    fn from_socket(socket: OwnedFd) -> io::Result<Self>;
}

impl Transport for UnixStream {
    fn into_socket(self) -> io::Result<OwnedFd> {
        self.into_std().map(OwnedFd::from)
    }

    fn from_socket(socket: OwnedFd) -> io::Result<Self> {
        Self::from_std(socket.into())
    }
}

impl Transport for TcpStream {
    fn into_socket(self) -> io::Result<OwnedFd> {
        self.into_std().map(OwnedFd::from)
    }

    fn from_socket(socket: OwnedFd) -> io::Result<Self> {
        Self::from_std(socket.into())
    }
}

impl Wire for PlainSocket {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let offered: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        loop {
            let mut ready = ready!(self.readable.poll_read_ready(cx))?;
            let received = recv(ready.get_inner(), buffers);
            if is_exhausted(&received, offered) {
                ready.clear_ready();
            }
            if let Some(received) = moved(received) {
                return Poll::Ready(received);
            }
        }
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let offered: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        loop {
            let Some(writable) = &self.writable else {
                let socket = self.readable.get_ref();
                let sent = send(socket, buffers);
                if is_exhausted(&sent, offered) {
                    let second = socket.try_clone()?;
                    self.writable = Some(watch(second, Interest::WRITABLE)?);
                }
                match moved(sent) {
                    Some(sent) => return Poll::Ready(sent),
                    None => continue,
                }
            };
            let mut ready = ready!(writable.poll_write_ready(cx))?;
            let sent = send(ready.get_inner(), buffers);
            if is_exhausted(&sent, offered) {
                ready.clear_ready();
            }
            if let Some(sent) = moved(sent) {
                return Poll::Ready(sent);
            }
        }
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(self.readable.get_ref()).shutdown(Shutdown::Write))
    }
}

/// Whether the kernel has no more to give or take now.
fn is_exhausted(call: &io::Result<usize>, offered: usize) -> bool {
    match call {
        // Nothing received is the end of the stream, which stays ready.
        Ok(moved) => *moved > 0 && *moved < offered,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// What came of a call, unless it is to be made again.
fn moved(call: io::Result<usize>) -> Option<io::Result<usize>> {
    match &call {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
        _ => Some(call),
    }
}

fn recv(socket: &OwnedFd, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let socket = SockRef::from(socket);
    match buffers {
        [one] => { &*socket }.read(one),
        many => { &*socket }.read_vectored(many),
    }
}

fn send(socket: &OwnedFd, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
    let socket = SockRef::from(socket);
    match buffers {
        [one] => socket.send_with_flags(one, MSG_NOSIGNAL),
        many => socket.send_vectored_with_flags(many, MSG_NOSIGNAL),
    }
}
