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
    task::{Context, Poll, ready},
};

use nix::libc::MSG_NOSIGNAL;
use socket2::Socket;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, unix::AsyncFd},
    net::{TcpStream, UnixStream},
};

use super::wire::Wire;

/// A connected socket that does not block.
#[derive(Debug)]
pub(super) struct PlainSocket {
    readable: AsyncFd<Socket>,
    /// A second handle, for a client that was too slow once.
    writable: Option<AsyncFd<Socket>>,
}

impl PlainSocket {
    pub(super) fn new(stream: impl Transport) -> io::Result<Self> {
        let readable = register(stream.into_socket()?, Interest::READABLE)?;
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
    fn into_socket(self) -> io::Result<Socket>;
    fn from_socket(socket: Socket) -> io::Result<Self>;
}

impl Transport for UnixStream {
    fn into_socket(self) -> io::Result<Socket> {
        self.into_std().map(Socket::from)
    }

    fn from_socket(socket: Socket) -> io::Result<Self> {
        Self::from_std(socket.into())
    }
}

impl Transport for TcpStream {
    fn into_socket(self) -> io::Result<Socket> {
        self.into_std().map(Socket::from)
    }

    fn from_socket(socket: Socket) -> io::Result<Self> {
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
                    self.writable = Some(register(second, Interest::WRITABLE)?);
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
        Poll::Ready(self.readable.get_ref().shutdown(Shutdown::Write))
    }
}

/// Asks the reactor to watch a socket.
#[expect(
    unsafe_code,
    reason = "the reactor trusts its caller that the descriptor stays open"
)]
fn register(socket: Socket, interest: Interest) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a `Socket` owns its descriptor, always gives the same one, and closes it when it is
    // dropped; it is not dropped before the `AsyncFd` that owns it.
    let registered = unsafe { AsyncFd::register_with_interest(socket, interest) };
    Ok(registered?)
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

fn recv(socket: &Socket, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    match buffers {
        [one] => { socket }.read(one),
        many => { socket }.read_vectored(many),
    }
}

fn send(socket: &Socket, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
    match buffers {
        [one] => socket.send_with_flags(one, MSG_NOSIGNAL),
        many => socket.send_vectored_with_flags(many, MSG_NOSIGNAL),
    }
}
