//! Serves a null or RAM disk on a Unix socket, for measuring: `nbd_null SOCKET null|ram SIZE_MIB`.
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use vaio_core::*;
use vaio_host::nbd::{Export, Server, ServerSettings};
#[derive(Debug)]
struct TokioRt {
    start: tokio::time::Instant,
    seed: AtomicU64,
}
impl Runtime for TokioRt {
    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.start.elapsed().as_nanos()).unwrap())
    }
    fn wall(&self) -> WallTime {
        WallTime(0)
    }
    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep_until(
            self.start + Duration::from_nanos(at.as_nanos()),
        ))
    }
    fn spawn(&self, _name: &'static str, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }
    fn offload(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let _ = tokio::task::spawn_blocking(work).await;
        })
    }
    fn entropy(&self) -> u64 {
        self.seed
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
    }
}
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<_> = std::env::args().collect();
    let size = args[3].parse::<u64>().unwrap() << 20;
    let device: Arc<dyn BlockDevice> = if args[2] == "null" {
        Arc::new(NullDisk::new(size))
    } else {
        Arc::new(RamDisk::new(size))
    };
    let rt = Arc::new(TokioRt {
        start: tokio::time::Instant::now(),
        seed: AtomicU64::new(1),
    });
    let disk = Disk::builder(device, rt).open().await.unwrap();
    let mut server = Server::new(
        vec![Export::new("", disk).with_description("measure")],
        ServerSettings::default(),
    )
    .unwrap();
    server.listen_unix(Path::new(&args[1])).unwrap();
    server
        .run(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await;
}
