//! [`Server`]: exports, listening sockets, and the connections on them.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    path::Path,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::{task::JoinSet, time};
use vaio_core::{BufferPool, Error, Result};

use super::{
    budget::Budget,
    export::Export,
    listen::{self, Listener, Stream},
    session,
    stop::Stop,
    tls::TlsServer,
};

/// Aligned to what any device may ask of its memory, in bytes.
const POOL_ALIGN: usize = 4096;
/// Unused payload buffers that a server keeps, in bytes.
const POOL_HELD_MAX: usize = 1 << 20;
/// Connections beyond the limit that are told so at one time; further ones are closed unheard.
const REFUSALS_MAX: usize = 8;
/// Pause after accept failed, for instance for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Limits and security of a [`Server`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerSettings {
    /// Most connections at a time; the next one is told so. Default 64.
    pub connections_max: usize,
    /// Most requests of one connection in flight; further ones wait in the socket. Default 128.
    pub in_flight_max: usize,
    /// Most payload and reply bytes that one connection holds; further requests wait in the
    /// socket. A single request may exceed it. Default 64 MiB.
    pub buffered_bytes_max: usize,
    /// Most payload and reply bytes that all connections hold together; requests beyond wait in
    /// their sockets, first come, first served. Each connection may have one request all the
    /// same. Receive buffers (144 KiB per connection) are not counted. Default 256 MiB.
    pub memory_bytes_max: usize,
    /// A client that stops for longer in the middle of a message, or does not take its replies, is
    /// disconnected, after twice as long at the latest. Between requests it may be idle for ever.
    /// Default 60 s.
    pub stall_timeout: Duration,
    /// From accept to transmission. Default 10 s.
    pub handshake_timeout: Duration,
    /// How long a stopping server waits for IO in flight and slow readers. Default 20 s.
    pub stop_timeout: Duration,
    /// Lets clients start TLS. Default none.
    pub tls: Option<TlsServer>,
    /// Refuses clients which do not start TLS. Default false.
    pub tls_required: bool,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            connections_max: 64,
            in_flight_max: 128,
            buffered_bytes_max: 64 << 20,
            memory_bytes_max: 256 << 20,
            stall_timeout: Duration::from_mins(1),
            handshake_timeout: Duration::from_secs(10),
            stop_timeout: Duration::from_secs(20),
            tls: None,
            tls_required: false,
        }
    }
}

impl ServerSettings {
    fn validate(&self) -> Result<()> {
        let limits = [
            self.connections_max,
            self.in_flight_max,
            self.buffered_bytes_max,
            self.memory_bytes_max,
        ];
        if limits.contains(&0) || self.stall_timeout.is_zero() {
            return Err(Error::config(
                "limits of connections, requests in flight, buffered bytes, memory and stalls are \
                 more than 0",
            ));
        }
        if self.tls_required && self.tls.is_none() {
            return Err(Error::config("TLS is required but there is no certificate"));
        }
        Ok(())
    }
}

/// What every connection shares.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) exports: Vec<Export>,
    pub(super) settings: Arc<ServerSettings>,
    pub(super) pool: BufferPool,
    pub(super) stop: Stop,
    pub(super) budget: Arc<Budget>,
    connections: AtomicUsize,
}

/// An NBD server: newstyle fixed, for one thread.
///
/// Make it, let it [`listen_unix`](Self::listen_unix) or [`listen_tcp`](Self::listen_tcp), and
/// [`run`](Self::run) it on the runtime that polls the disks. Each connection is one task.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<Listener>,
}

impl Server {
    /// A server of these exports. The first is also the default one, under the empty name.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](vaio_core::ErrorKind::Config): no export, a name used twice or not
    /// sayable in the protocol, or settings that contradict each other.
    pub fn new(exports: Vec<Export>, settings: ServerSettings) -> Result<Self> {
        settings.validate()?;
        if exports.is_empty() {
            return Err(Error::config("a server needs at least one export"));
        }
        for (index, export) in exports.iter().enumerate() {
            export.validate()?;
            if exports[..index]
                .iter()
                .any(|other| other.name() == export.name())
            {
                return Err(Error::config(format!(
                    "export name is used twice, export={}",
                    export.name()
                )));
            }
        }
        Ok(Self {
            shared: Arc::new(Shared {
                exports,
                budget: Budget::new(settings.memory_bytes_max),
                settings: Arc::new(settings),
                pool: BufferPool::new(POOL_ALIGN, POOL_HELD_MAX),
                stop: Stop::default(),
                connections: AtomicUsize::new(0),
            }),
            listeners: Vec::new(),
        })
    }

    /// Listens on a Unix socket, whose file has mode 0600 and is removed when the server ends.
    /// The file of a server that is gone is replaced.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`](vaio_core::ErrorKind::Busy) if another server listens there.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn listen_unix(&mut self, path: &Path) -> Result<()> {
        self.listeners.push(listen::unix(path)?);
        Ok(())
    }

    /// Listens on TCP; returns the address, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](vaio_core::ErrorKind::Config) for an address that is not a loopback
    /// one, unless the settings require TLS;
    /// [`ErrorKind::Busy`](vaio_core::ErrorKind::Busy) if the address is in use.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn listen_tcp(&mut self, address: SocketAddr) -> Result<SocketAddr> {
        let (listener, address) = listen::tcp(address, self.shared.settings.tls_required)?;
        self.listeners.push(listener);
        Ok(address)
    }

    /// Listens on a Unix socket that someone else bound (socket activation). Its file stays.
    ///
    /// # Errors
    /// The kernel's, if it is not a listening socket.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn adopt_unix(&mut self, listener: std::os::unix::net::UnixListener) -> Result<()> {
        let adopt = || {
            listener.set_nonblocking(true)?;
            tokio::net::UnixListener::from_std(listener)
        };
        let listener = adopt().map_err(|error| Error::io("cannot adopt a socket", error))?;
        self.listeners.push(Listener::Unix(listener, None));
        Ok(())
    }

    /// A handle to watch the server with.
    pub fn watch(&self) -> ServerWatch {
        ServerWatch(Arc::clone(&self.shared))
    }

    /// Serves until `stop` resolves; then stops accepting and reading, lets IO in flight end and
    /// be answered within `stop_timeout`, refuses what was received but not begun, and closes.
    /// Does not flush the disks.
    ///
    /// Dropping the future closes every connection at once; IO in flight still ends.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { shared, listeners } = self;
        let mut tasks = JoinSet::new();
        let mut stop = pin!(stop);
        let mut refusals = JoinSet::new();
        while let Some(accepted) = next(&listeners, stop.as_mut()).await {
            reap(&mut tasks);
            reap(&mut refusals);
            match accepted {
                Ok(stream) => admit(&shared, stream, &mut tasks, &mut refusals),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection, trying again");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
        drop(listeners);
        shared.stop.stop();
        refusals.abort_all();
        let drained = async { while tasks.join_next().await.is_some() {} };
        if within(shared.settings.stop_timeout, drained)
            .await
            .is_none()
        {
            tracing::warn!(
                connections = shared.connections.load(Ordering::Relaxed),
                "closing connections which did not end in time"
            );
        }
    }
}

/// Watches a running [`Server`].
#[derive(Clone, Debug)]
pub struct ServerWatch(Arc<Shared>);

impl ServerWatch {
    /// Connections now.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// Payload and reply bytes that all connections hold now.
    pub fn memory_bytes(&self) -> usize {
        self.0.budget.held()
    }
}

/// The next connection, or `None` when the server shall stop.
async fn next(
    listeners: &[Listener],
    mut stop: Pin<&mut impl Future<Output = ()>>,
) -> Option<std::io::Result<Stream>> {
    poll_fn(|cx| {
        if stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        for listener in listeners {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                return Poll::Ready(Some(accepted));
            }
        }
        Poll::Pending
    })
    .await
}

fn admit(
    shared: &Arc<Shared>,
    stream: Stream,
    tasks: &mut JoinSet<()>,
    refusals: &mut JoinSet<()>,
) {
    let shared = Arc::clone(shared);
    if shared.connections.load(Ordering::Relaxed) < shared.settings.connections_max {
        let counted = Counted::new(&shared);
        tasks.spawn(async move {
            session::serve(stream, &shared).await;
            drop(counted);
        });
    } else if refusals.len() < REFUSALS_MAX {
        tracing::warn!(
            max = shared.settings.connections_max,
            "refusing a connection beyond the limit"
        );
        refusals.spawn(async move { session::refuse(stream, &shared).await });
    }
}

/// Forgets tasks that ended. A panic is a defect of ours; it ends its own connection only.
fn reap(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.try_join_next() {
        if let Err(error) = ended {
            tracing::error!(%error, "nbd connection ended in a panic");
        }
    }
}

/// Counts a connection while it lives, whatever way it ends.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[expect(clippy::disallowed_methods, reason = "sockets live in real time")]
async fn sleep(duration: Duration) {
    time::sleep(duration).await;
}

/// Waits for `future`, at most `duration`.
#[expect(clippy::disallowed_methods, reason = "sockets live in real time")]
pub(super) async fn within<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    time::timeout(duration, future).await.ok()
}
