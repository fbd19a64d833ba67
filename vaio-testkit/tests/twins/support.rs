//! A runtime with a clock that jumps, and a disk with a twin on it, for tests of the twins alone.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
};

use async_trait::async_trait;
use futures::{StreamExt, stream::FuturesUnordered};
use vaio_core::*;

/// Tasks and timers of a test; one thread.
#[derive(Debug, Default)]
pub struct TestRt {
    now: AtomicU64,
    entropy: AtomicU64,
    spawned: Mutex<Vec<Task>>,
    timers: Mutex<BTreeMap<u64, Vec<Waker>>>,
}

struct Task(BoxFuture<'static, ()>);

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

impl Runtime for TestRt {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.now.load(Relaxed))
    }

    fn wall(&self) -> WallTime {
        WallTime(0)
    }

    fn sleep_until(&self, _at: Instant) -> BoxFuture<'static, ()> {
        unreachable!("the handle does it")
    }

    fn spawn(&self, _name: &'static str, task: BoxFuture<'static, ()>) {
        self.spawned.lock().unwrap().push(Task(task));
    }

    fn offload(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        Box::pin(async move { work() })
    }

    fn entropy(&self) -> u64 {
        self.entropy.fetch_add(1, Relaxed)
    }
}

/// The handle: a timer needs to find its runtime again.
#[derive(Debug)]
struct Handle(Arc<TestRt>);

impl Runtime for Handle {
    fn now(&self) -> Instant {
        self.0.now()
    }

    fn wall(&self) -> WallTime {
        self.0.wall()
    }

    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()> {
        let rt = Arc::clone(&self.0);
        Box::pin(std::future::poll_fn(move |cx| {
            if rt.now() >= at {
                return Poll::Ready(());
            }
            let mut timers = rt.timers.lock().unwrap();
            let wakers = timers.entry(at.as_nanos()).or_default();
            wakers.push(cx.waker().clone());
            Poll::Pending
        }))
    }

    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) {
        self.0.spawn(name, task);
    }

    fn offload(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        self.0.offload(work)
    }

    fn entropy(&self) -> u64 {
        self.0.entropy()
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// Runs `main` with its tasks; time jumps to the next timer when nothing else can happen.
pub fn run<F: Future>(main: impl FnOnce(Rt) -> F) -> F::Output {
    let rt = Arc::<TestRt>::default();
    let mut main = Box::pin(main(Arc::new(Handle(Arc::clone(&rt)))));
    let mut tasks = FuturesUnordered::new();
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&flag));
    let mut cx = Context::from_waker(&waker);
    for _ in 0..1_000_000 {
        if flag.0.swap(false, Relaxed) {
            if let Poll::Ready(done) = main.as_mut().poll(&mut cx) {
                return done;
            }
            let spawned = std::mem::take(&mut *rt.spawned.lock().unwrap());
            tasks.extend(spawned.into_iter().map(|task| task.0));
            while let Poll::Ready(Some(())) = tasks.poll_next_unpin(&mut cx) {}
            continue;
        }
        let spawned = std::mem::take(&mut *rt.spawned.lock().unwrap());
        if !spawned.is_empty() {
            tasks.extend(spawned.into_iter().map(|task| task.0));
            flag.0.store(true, Relaxed);
            continue;
        }
        let next = rt.timers.lock().unwrap().pop_first();
        let (at, wakers) = next.expect("stuck: no task can run and no timer is left");
        rt.now.fetch_max(at, Relaxed);
        wakers.into_iter().for_each(Waker::wake);
    }
    panic!("it never ends");
}

/// A disk's media: they outlive the disk.
#[derive(Clone, Debug)]
pub struct Media {
    pub backing: Arc<dyn BlockDevice>,
    pub other: Arc<dyn BlockDevice>,
    /// Devices by name; `other` stands for those that are not here.
    pub named: Vec<(&'static str, Arc<dyn BlockDevice>)>,
    pub sidecar: Arc<MemorySidecar>,
}

impl Media {
    pub fn new() -> Self {
        Self {
            backing: Arc::new(RamDisk::with_block(8 * 512, 512)),
            other: Arc::new(RamDisk::with_block(64 * 512, 512)),
            named: Vec::new(),
            sidecar: Arc::default(),
        }
    }

    pub async fn open(&self, rt: &Rt, factory: impl FilterFactory) -> Result<Disk> {
        let name = factory.descriptor().name;
        self.open_in(rt, name, FilterRegistry::default().with(factory))
            .await
    }

    pub async fn open_in(&self, rt: &Rt, name: &str, registry: FilterRegistry) -> Result<Disk> {
        Disk::builder(Arc::clone(&self.backing), Arc::clone(rt))
            .policy(Policy::empty().with(FilterSpec::new(name)), registry)
            .sidecar(Arc::<MemorySidecar>::clone(&self.sidecar))
            .devices(Arc::new(self.clone()))
            .open()
            .await
    }
}

#[async_trait]
impl DeviceProvider for Media {
    async fn open_device(&self, _: &str, name: &str, _: &str) -> Result<Arc<dyn BlockDevice>> {
        let named = self.named.iter().find(|(known, _)| *known == name);
        Ok(named.map_or_else(|| Arc::clone(&self.other), |(_, device)| Arc::clone(device)))
    }
}

/// Blocks of these bytes.
pub fn blocks(bytes: &[u8]) -> bytes::Bytes {
    bytes
        .iter()
        .flat_map(|byte| [*byte; 512])
        .collect::<Vec<_>>()
        .into()
}

/// The first byte of each of `count` blocks; all of a block are the same.
pub async fn peek(device: &(impl BlockDevice + ?Sized), block: u64, count: u64) -> Vec<u8> {
    let extent = Extent::new(block * 512, count * 512);
    let data = device.submit(Io::read(extent)).await.unwrap().into_data();
    first_bytes(&data)
}

pub fn first_bytes(data: &[u8]) -> Vec<u8> {
    data.chunks(512)
        .map(|block| {
            assert!(block.iter().all(|byte| *byte == block[0]), "a mixed block");
            block[0]
        })
        .collect()
}

pub async fn peek_disk(disk: &Disk, block: u64, count: u64) -> Vec<u8> {
    let extent = Extent::new(block * 512, count * 512);
    first_bytes(&disk.submit(Io::read(extent)).await.unwrap().into_data())
}

pub async fn poke(disk: &Disk, block: u64, bytes: &[u8]) {
    disk.submit(Io::write(block * 512, blocks(bytes)))
        .await
        .unwrap();
}
