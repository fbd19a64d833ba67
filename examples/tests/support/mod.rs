//! A runtime on tokio's clock, so that a test can own time, and devices that are slow or watched.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of it"
)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use vaio_core::*;

#[derive(Debug)]
pub struct TestRt {
    start: tokio::time::Instant,
    seed: AtomicU64,
}

impl TestRt {
    #[expect(clippy::new_ret_no_self, reason = "the handle is what is used")]
    pub fn new() -> Rt {
        Arc::new(Self {
            start: tokio::time::Instant::now(),
            seed: AtomicU64::new(1),
        })
    }
}

impl Runtime for TestRt {
    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.start.elapsed().as_nanos()).unwrap())
    }

    fn wall(&self) -> WallTime {
        WallTime(self.now().as_nanos())
    }

    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()> {
        let at = self.start + Duration::from_nanos(at.as_nanos());
        Box::pin(tokio::time::sleep_until(at))
    }

    #[allow(clippy::disallowed_methods, reason = "this is the door")]
    fn spawn(&self, _name: &'static str, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn offload(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        let done = tokio::task::spawn_blocking(work);
        Box::pin(async move {
            let _ = done.await;
        })
    }

    fn entropy(&self) -> u64 {
        self.seed
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
    }
}

/// A RAM disk that answers after a while.
#[derive(Debug)]
pub struct Slow {
    pub ram: Arc<RamDisk>,
    pub delay: Duration,
}

#[async_trait]
impl BlockDevice for Slow {
    fn info(&self) -> DeviceInfo {
        self.ram.info()
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        pause(self.delay).await;
        self.ram.submit(io).await
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        self.ram.allocation(range).await
    }
}

pub fn builder(device: Arc<dyn BlockDevice>, filters: &[FilterSpec]) -> DiskBuilder {
    let mut policy = Policy::empty();
    policy.filters.extend_from_slice(filters);
    Disk::builder(device, TestRt::new()).policy(policy, vaio_examples::registry())
}

pub async fn open(device: Arc<dyn BlockDevice>, filters: &[FilterSpec]) -> Disk {
    builder(device, filters).open().await.unwrap()
}

pub async fn open_ram(filters: &[FilterSpec]) -> Disk {
    open(Arc::new(RamDisk::new(64 << 20)), filters).await
}

/// The error of opening a disk so.
pub async fn refusal(filters: &[FilterSpec]) -> Error {
    builder(Arc::new(RamDisk::new(64 << 20)), filters)
        .open()
        .await
        .unwrap_err()
}

pub async fn read(disk: &Disk, offset: u64, len: u64) -> Result<Vec<u8>> {
    Ok(disk
        .submit(Io::read(Extent::new(offset, len)))
        .await?
        .into_data()
        .to_vec())
}

pub async fn write(disk: &Disk, offset: u64, byte: u8, len: usize) -> Result<()> {
    disk.submit(Io::write(offset, vec![byte; len].into()))
        .await
        .map(drop)
}

/// Writes 256 blocks at depth 32, reads them back and compares: each block has its own content.
pub async fn verify_concurrently(disk: &Disk) {
    let content = |tag: u64| vec![u8::try_from(tag % 251).unwrap() + 1; 4096];
    let mut port = disk.port(32).unwrap();
    for is_read in [false, true] {
        let (mut next, mut ended) = (0..256u64, 0);
        while ended < 256 {
            while !port.is_full()
                && let Some(tag) = next.next()
            {
                let io = if is_read {
                    Io::read(Extent::new(tag * 4096, 4096))
                } else {
                    Io::write(tag * 4096, content(tag).into())
                };
                port.push(tag, io).unwrap();
            }
            let done = port.next().await;
            let data = done.result.unwrap().into_data();
            assert!(!is_read || data == content(done.tag), "tag={}", done.tag);
            ended += 1;
        }
    }
}

/// Every event of a kind so far.
pub fn events_of(disk: &Disk, kind: EventKind) -> Vec<Event> {
    let mut stream = disk.events();
    std::iter::from_fn(|| stream.try_next())
        .filter(|event| event.kind == kind)
        .collect()
}

/// A value that a filter tells of itself.
pub fn detail(disk: &Disk, filter: &str, name: &str) -> String {
    let layer = disk
        .state()
        .layers
        .into_iter()
        .find(|layer| &*layer.name == filter)
        .unwrap();
    layer
        .filter
        .details
        .into_iter()
        .find(|(key, _)| *key == name)
        .unwrap()
        .1
}

pub fn health(disk: &Disk, filter: &str) -> Health {
    disk.state()
        .layers
        .into_iter()
        .find(|layer| &*layer.name == filter)
        .unwrap()
        .health
}

/// Lets virtual or real time pass.
#[expect(clippy::disallowed_methods, reason = "a test owns its time")]
pub async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}
