//! Listening sockets: a Unix socket that only its owner may use, and TCP.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use vaio_core::{Error, ErrorKind, Result};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// Asked of the kernel for each direction of a connection, in bytes; it may give less. Large
/// enough for a batch of 32 reads of 4 KiB in one send.
const SOCKET_BUFFER: usize = 1 << 20;
/// After this silence a TCP peer is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_mins(1);

/// One listening socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix(
        UnixListener,
        #[expect(dead_code, reason = "removes the file when dropped")] Option<SocketFile>,
    ),
    Tcp(TcpListener),
}

/// One accepted connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Listener {
    /// Accepts one connection.
    pub(crate) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        match self {
            Self::Unix(listener, _) => {
                let (stream, _) = ready!(listener.poll_accept(cx))?;
                // Best effort: a smaller buffer only costs system calls.
                let _ = SockRef::from(&stream).set_send_buffer_size(SOCKET_BUFFER);
                Poll::Ready(Ok(Stream::Unix(stream)))
            }
            Self::Tcp(listener) => {
                let (stream, _) = ready!(listener.poll_accept(cx))?;
                stream.set_nodelay(true)?;
                let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
                SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                Poll::Ready(Ok(Stream::Tcp(stream)))
            }
        }
    }
}

/// The file of a Unix socket; removed when dropped, unless someone put another in its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Listens on a Unix socket with mode 0600. The file of a server that is gone is replaced; one
/// that answers is left alone.
///
/// # Errors
/// [`ErrorKind::Busy`] where another server listens, [`ErrorKind::Config`] where something else
/// is in the way, or the kernel's error.
pub(crate) fn unix(path: &Path) -> Result<Listener> {
    let failed = |what: &str, error: io::Error| {
        Error::io(format!("{what}, socket={}", path.display()), error)
    };
    remove_stale(path)?;
    let bound = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // Before bind: the file is born with this mode, so there is no moment when others may
        // connect.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
        socket.bind(&SockAddr::unix(path)?)?;
        Ok(socket)
    };
    let socket = bound().map_err(|error| failed("cannot bind socket", error))?;
    let listen = || -> io::Result<Listener> {
        let file = SocketFile {
            path: path.to_owned(),
            identity: identity(path)?,
        };
        socket.listen(BACKLOG)?;
        let listener = UnixListener::from_std(socket.into())?;
        Ok(Listener::Unix(listener, Some(file)))
    };
    listen().map_err(|error| failed("cannot listen", error))
}

fn remove_stale(path: &Path) -> Result<()> {
    let place = path.display();
    let Ok(meta) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !meta.file_type().is_socket() {
        return Err(Error::config(format!(
            "something that is no socket is in the way, socket={place}"
        )));
    }
    let probe = || -> io::Result<()> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // A server with a full backlog must not hold us up.
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    match probe() {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| {
                Error::io(
                    format!("cannot remove a stale socket, socket={place}"),
                    error,
                )
            }),
        _ => Err(Error::new(
            ErrorKind::Busy,
            format!("socket in use, another server listens on it, socket={place}"),
        )),
    }
}

/// Listens on TCP.
///
/// # Errors
/// The address is not this machine's own and `anywhere` is false, or the kernel's error.
pub(crate) fn tcp(address: SocketAddr, anywhere: bool) -> Result<(Listener, SocketAddr)> {
    if !anywhere && !address.ip().is_loopback() {
        return Err(Error::config(format!(
            "refusing to serve beyond this machine without TLS, require it or use a loopback \
             address, address={address}"
        )));
    }
    let bound = || -> io::Result<(Listener, SocketAddr)> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        let address = listener.local_addr()?;
        Ok((Listener::Tcp(listener), address))
    };
    bound().map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => Error::new(
            ErrorKind::Busy,
            format!("address in use, address={address}"),
        )
        .with_source(error),
        _ => Error::io(format!("cannot listen, address={address}"), error),
    })
}
