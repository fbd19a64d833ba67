//! [`Wire`]: a stream socket or a TLS session as the connection sees it: vectored, poll-style,
//! with as few system calls as the kernel allows.
//!
//! A receive that got less than it offered room for has emptied the socket (edge-triggered
//! readiness), so the next one waits for the reactor instead of asking the kernel and being told
//! `EAGAIN`. The same holds for a send that was cut short.

use std::{
    io::{self, IoSlice, IoSliceMut, Read},
    pin::Pin,
    task::{Context, Poll, ready},
};

use nix::libc::MSG_NOSIGNAL;
use socket2::{SockRef, Socket};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::server::TlsStream;

/// A byte stream, both ways. Polls count against tokio's cooperative budget, so that a busy
/// connection lets others run.
pub(super) trait Wire: Send + Unpin {
    /// Receives into the buffers in order; 0 is the end of the stream.
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>>;

    /// Sends from the buffers in order; may send a part.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>>;

    /// Sends what an earlier send took but held back (TLS records). Must be polled to its end
    /// after the last send.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Sends what is held back and tells the peer that no more comes.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

macro_rules! socket_wire {
    ($stream:ty) => {
        impl Wire for $stream {
            fn poll_recv(
                &mut self,
                cx: &mut Context<'_>,
                buffers: &mut [IoSliceMut<'_>],
            ) -> Poll<io::Result<usize>> {
                loop {
                    ready!(self.poll_read_ready(cx))?;
                    let result = drained(
                        |io| self.try_io(Interest::READABLE, io),
                        buffers.iter().map(|buffer| buffer.len()).sum(),
                        || recv(&SockRef::from(&*self), buffers),
                    );
                    if let Some(result) = result {
                        return Poll::Ready(result);
                    }
                }
            }

            fn poll_send(
                &mut self,
                cx: &mut Context<'_>,
                buffers: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                loop {
                    ready!(self.poll_write_ready(cx))?;
                    let result = drained(
                        |io| self.try_io(Interest::WRITABLE, io),
                        buffers.iter().map(|buffer| buffer.len()).sum(),
                        || send(&SockRef::from(&*self), buffers),
                    );
                    if let Some(result) = result {
                        return Poll::Ready(result);
                    }
                }
            }

            fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(self).poll_shutdown(cx)
            }
        }
    };
}

socket_wire!(UnixStream);
socket_wire!(TcpStream);

/// Runs one system call under `try_io`, and forgets the readiness if it moved less than `offered`
/// bytes. `None`: nothing moved, wait for readiness.
fn drained(
    try_io: impl FnOnce(&mut dyn FnMut() -> io::Result<()>) -> io::Result<()>,
    offered: usize,
    mut call: impl FnMut() -> io::Result<usize>,
) -> Option<io::Result<usize>> {
    let mut result = None;
    let forgotten = try_io(&mut || match call() {
        Ok(moved) => {
            result = Some(Ok(moved));
            if moved < offered && moved > 0 {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                Ok(())
            }
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        Err(error) => Err(error),
    });
    match (result, forgotten) {
        (Some(result), _) => Some(result),
        (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => Some(Err(error)),
        (None, _) => None,
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

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Wire for TlsStream<S> {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some(first) = buffers.iter_mut().find(|buffer| !buffer.is_empty()) else {
            return Poll::Ready(Ok(0));
        };
        let mut buffer = ReadBuf::new(first);
        ready!(Pin::new(self).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(self), cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_shutdown(cx)
    }
}
