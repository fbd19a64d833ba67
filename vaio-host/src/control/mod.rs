//! The control thread: control socket, metrics over HTTP, signals, and the watchdog of the IO
//! thread. It answers while that thread does not.
//!
//! `request` what can be asked · `session` one connection · `verbs` what is done · `hold` a
//! backing held for a snapshot. The protocol is `docs/spec/control.md`.

mod hold;
mod request;
mod session;
mod verbs;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures::channel::oneshot;
pub(crate) use request::{Request, encode};
use tokio::{
    net::TcpListener,
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, watch},
};
pub(crate) use verbs::filters as filters_json;

use vaio_core::{Disk, Error, ErrorKind, FilterRegistry, Result, Rt};

use crate::{
    device::{FileDevice, Spec},
    exit::Exit,
    filter_devices::FilterDevices,
    metrics,
    nbd::{
        ServerWatch,
        listen::{self, Listener, Stream},
    },
    plan::DiskPlan,
    stack::Opened,
    watchdog::{Heartbeat, PING_EVERY, Watchdog},
};

/// Version of the protocol; the number in `docs/spec/control.md`.
pub(crate) const PROTOCOL_VERSION: u64 = 1;
/// Control connections at a time.
const CONNECTIONS_MAX: usize = 32;
/// Threads for calls into filters that may not come back.
const CALL_THREADS_MAX: usize = 4;
/// From the first signal to the end; then the process ends without waiting longer.
const STOP_MAX: Duration = Duration::from_mins(1);
/// Signals within this time after the first are the same wish.
const SAME_WISH: Duration = Duration::from_secs(1);
/// Pause after accept failed, for instance for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What the process serves.
#[derive(Debug)]
pub(crate) struct Hosted {
    pub(crate) rt: Rt,
    pub(crate) disks: Vec<HostedDisk>,
    pub(crate) registry: FilterRegistry,
    pub(crate) server: ServerWatch,
}

/// One disk of it.
#[derive(Debug)]
pub(crate) struct HostedDisk {
    pub(crate) disk: Disk,
    pub(crate) spec: Spec,
    /// As the user wrote it.
    pub(crate) text: String,
    /// The device at the bottom, where it is a file.
    pub(crate) file: Option<Arc<FileDevice>>,
    /// Opens what filters need.
    pub(crate) devices: Arc<FilterDevices>,
    /// Whether what a filter keeps is remembered beyond this process.
    pub(crate) is_remembered: bool,
}

impl HostedDisk {
    pub(crate) fn new(plan: &DiskPlan, opened: Opened) -> Self {
        Self {
            disk: opened.disk,
            file: opened.file,
            devices: opened.devices,
            spec: plan.spec.clone(),
            text: plan.text.clone(),
            is_remembered: plan.sidecar.is_some(),
        }
    }
}

/// What every task of the control thread shares.
#[derive(Debug)]
struct Shared {
    hosted: Hosted,
    heartbeat: Arc<Heartbeat>,
    started: Instant,
    /// Becomes true when the process is to end: whoever holds a disk lets go.
    stopping: watch::Sender<bool>,
}

/// The running control thread.
#[derive(Debug)]
pub(crate) struct Control {
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// Where to listen.
struct Places {
    socket: Option<PathBuf>,
    metrics: Option<SocketAddr>,
}

/// What the thread holds once it listens.
struct Bound {
    socket: Option<Listener>,
    metrics: Option<TcpListener>,
    signals: [tokio::signal::unix::Signal; 2],
}

impl Control {
    /// Starts the thread, listening and with signals handled when this returns. The receiver
    /// resolves when the process shall end.
    ///
    /// # Errors
    /// A socket or address that cannot be listened on.
    #[expect(
        clippy::disallowed_methods,
        reason = "the process's second thread, and its clock"
    )]
    pub(crate) fn start(
        hosted: Hosted,
        socket: Option<PathBuf>,
        metrics: Option<SocketAddr>,
    ) -> Result<(Self, oneshot::Receiver<()>)> {
        let shared = Arc::new(Shared {
            hosted,
            heartbeat: Arc::default(),
            started: Instant::now(),
            stopping: watch::Sender::new(false),
        });
        let (end, ended) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let (send, receive) = mpsc::sync_channel(1);
        let places = Places { socket, metrics };
        let thread = std::thread::Builder::new()
            .name("vaio-control".into())
            .spawn(move || thread_main(&shared, &places, &send, stop, ended))
            .map_err(|cause| Error::io("cannot start the control thread", cause))?;
        let bound = receive.recv().unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Internal,
                "the control thread ended at its start",
            ))
        });
        bound.map(|()| (Self { end, thread }, stopped))
    }

    /// Ends the thread and removes its sockets.
    pub(crate) fn end(self) {
        // It is gone already if the receiver is.
        let _ = self.end.send(());
        let _ = self.thread.join();
    }
}

fn thread_main(
    shared: &Arc<Shared>,
    places: &Places,
    report: &mpsc::SyncSender<Result<()>>,
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
) {
    let built = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(CALL_THREADS_MAX)
        .thread_name("vaio-call")
        .build();
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(cause) => {
            let _ = report.send(Err(Error::io(
                "cannot start the control thread's runtime",
                cause,
            )));
            return;
        }
    };
    runtime.block_on(async {
        let bound = match bind(places).await {
            Ok(bound) => bound,
            Err(error) => {
                let _ = report.send(Err(error));
                return;
            }
        };
        let _ = report.send(Ok(()));
        serve(shared, bound, stop, ended).await;
    });
    // A call into a filter that never comes back must not keep the process.
    runtime.shutdown_background();
}

async fn bind(places: &Places) -> Result<Bound> {
    let socket = places.socket.as_deref().map(listen::unix).transpose()?;
    let metrics = match places.metrics {
        None => None,
        Some(address) => Some(TcpListener::bind(address).await.map_err(|cause| {
            let kind = match cause.kind() {
                std::io::ErrorKind::AddrInUse => ErrorKind::Busy,
                _ => ErrorKind::Config,
            };
            let text =
                format!("cannot serve metrics there: use another address, address={address}");
            Error::new(kind, text).with_source(cause)
        })?),
    };
    let handler = |kind| signal(kind).map_err(|cause| Error::io("cannot handle signals", cause));
    Ok(Bound {
        socket,
        metrics,
        signals: [
            handler(SignalKind::terminate())?,
            handler(SignalKind::interrupt())?,
        ],
    })
}

/// Everything on this thread, until the process is done.
async fn serve(
    shared: &Arc<Shared>,
    bound: Bound,
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
) {
    let Bound {
        socket,
        metrics,
        mut signals,
    } = bound;
    let accept = async {
        match &socket {
            Some(listener) => accept(shared, listener).await,
            None => std::future::pending().await,
        }
    };
    let http = async {
        match &metrics {
            Some(listener) => metrics::http::serve(listener, &|| metrics_text(shared)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = accept => {}
        () = http => {}
        () = watch_io(shared) => {}
        () = obey(&mut signals, stop, &shared.stopping) => {}
        _ = ended => {}
    }
}

/// First signal: an orderly end. A later one, or no end in time: at once. Signals that come
/// together are one: a terminal or a wrapper often sends the same wish twice.
async fn obey(
    signals: &mut [tokio::signal::unix::Signal; 2],
    stop: oneshot::Sender<()>,
    stopping: &watch::Sender<bool>,
) {
    let [terminate, interrupt] = signals;
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    next().await;
    tracing::info!("stopping: no new connections, then flush and close");
    stopping.send_replace(true);
    // The IO thread is there until this one ends.
    let _ = stop.send(());
    let together = async {
        loop {
            next().await;
        }
    };
    let _: Option<()> = within(SAME_WISH, together).await;
    if within(STOP_MAX, next()).await.is_some() {
        tracing::error!("second signal: ending at once; the next start recovers");
    } else {
        tracing::error!(
            limit = ?STOP_MAX,
            "the disks did not close in time: ending at once; the next start recovers"
        );
    }
    std::process::exit(Exit::Failed.code().into());
}

async fn watch_io(shared: &Arc<Shared>) {
    let hosted = &shared.hosted;
    let disks = hosted.disks.iter().map(|one| one.disk.clone()).collect();
    let mut watchdog = Watchdog::new(Arc::clone(&hosted.rt), disks, Arc::clone(&shared.heartbeat));
    loop {
        watchdog.look();
        sleep(PING_EVERY).await;
    }
}

async fn accept(shared: &Arc<Shared>, listener: &Listener) {
    let turns = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut sessions = tokio::task::JoinSet::new();
    loop {
        while sessions.try_join_next().is_some() {}
        let accepted = std::future::poll_fn(|cx| listener.poll_accept(cx)).await;
        let stream = match accepted {
            Ok(Stream::Unix(stream)) => stream,
            Ok(Stream::Tcp(_)) => continue,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection, trying again");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        match Arc::clone(&turns).try_acquire_owned() {
            Ok(turn) => {
                let shared = Arc::clone(shared);
                sessions.spawn(async move {
                    session::serve(stream, &shared).await;
                    drop(turn);
                });
            }
            Err(_) => session::refuse(&stream),
        }
    }
}

fn metrics_text(shared: &Shared) -> String {
    let disks: Vec<Disk> = shared
        .hosted
        .disks
        .iter()
        .map(|one| one.disk.clone())
        .collect();
    metrics::text(&disks, shared.hosted.server.connections())
}

#[expect(
    clippy::disallowed_methods,
    reason = "this thread must go on when the disks' clock does not"
)]
async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// Waits for `future`, at most `duration`.
#[expect(
    clippy::disallowed_methods,
    reason = "this thread must go on when the disks' clock does not"
)]
async fn within<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(duration, future).await.ok()
}
