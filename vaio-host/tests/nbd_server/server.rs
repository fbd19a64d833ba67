//! A server on a thread of its own, in a temporary directory.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{runtime::Handle, sync::oneshot};
use vaio_core::{BlockDevice, Disk, RamDisk, Result};
use vaio_host::{
    nbd::{Export, Server, ServerSettings, ServerWatch},
    runtime::HostRuntime,
};

pub async fn open(device: Arc<dyn BlockDevice>) -> Disk {
    Disk::builder(device, HostRuntime::current().unwrap())
        .open()
        .await
        .unwrap()
}

/// How to make a server; see [`TestServer::start`].
pub struct Plan {
    pub devices: Vec<(&'static str, Arc<dyn BlockDevice>)>,
    pub settings: ServerSettings,
    pub tcp: bool,
    pub exports: fn(Export) -> Export,
}

impl Plan {
    pub fn ram(mib: u64) -> Self {
        Self::device(Arc::new(RamDisk::new(mib << 20)))
    }

    pub fn device(device: Arc<dyn BlockDevice>) -> Self {
        Self {
            devices: vec![("", device)],
            settings: ServerSettings::default(),
            tcp: false,
            exports: |export| export,
        }
    }

    pub fn settings(mut self, set: impl FnOnce(&mut ServerSettings)) -> Self {
        set(&mut self.settings);
        self
    }

    pub fn start(self) -> TestServer {
        TestServer::start(self)
    }
}

pub struct TestServer {
    pub dir: TempDir,
    pub socket: PathBuf,
    pub address: Option<SocketAddr>,
    pub watch: ServerWatch,
    /// The first export's disk, and where its verbs run.
    pub disk: Disk,
    pub runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TestServer {
    #[expect(
        clippy::disallowed_methods,
        reason = "the server needs a thread of its own"
    )]
    fn start(plan: Plan) -> Self {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("nbd.sock");
        let (stop, stopped) = oneshot::channel::<()>();
        let (send, receive) = mpsc::channel();
        let path = socket.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async move {
                let (mut exports, mut disks) = (Vec::new(), Vec::new());
                for (name, device) in plan.devices {
                    let disk = open(device).await;
                    exports.push((plan.exports)(Export::new(name, disk.clone())));
                    disks.push(disk);
                }
                let disk = disks.swap_remove(0);
                let ready = || -> Result<_> {
                    let mut server = Server::new(exports, plan.settings)?;
                    server.listen_unix(&path)?;
                    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
                    let address = plan.tcp.then(|| server.listen_tcp(loopback)).transpose()?;
                    Ok((server, address))
                };
                let (server, address) = ready().unwrap();
                let runtime = Handle::current();
                send.send((address, server.watch(), disk, runtime)).unwrap();
                server
                    .run(async {
                        let _ = stopped.await;
                    })
                    .await;
            });
        });
        let (address, watch, disk, runtime) = receive.recv().unwrap();
        Self {
            dir,
            socket,
            address,
            watch,
            disk,
            runtime,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// Tells the server to stop, without waiting.
    pub fn begin_stop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
    }

    /// Stops the server and waits for its end.
    pub fn stop(&mut self) {
        self.begin_stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server does not panic");
        }
    }

    /// Waits until this many connections are open.
    pub fn wait_connections(&self, want: usize) {
        wait_until("connections", || self.watch.connections() == want);
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits for what must come soon.
#[expect(
    clippy::disallowed_methods,
    reason = "the test looks at another thread"
)]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{what} did not come");
}
