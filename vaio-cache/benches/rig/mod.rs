//! Disks with a cache for the benchmark: a runtime, devices that count, and an allocator that does.

mod counting;

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
pub use counting::{Counting, LIVE};
use futures::future::BoxFuture;
use vaio_cache::CacheFactory;
use vaio_core::{
    AllocationMap, BlockDevice, DeviceInfo, DeviceProvider, Disk, Error, ErrorKind, Extent,
    FilterRegistry, FilterSpec, Instant, Io, MemorySidecar, Op, Policy, Reply, Result, Rt, Runtime,
    Support, WallTime,
};

#[derive(Debug)]
struct BenchRt {
    start: tokio::time::Instant,
    seed: AtomicU64,
}

pub fn rt() -> Rt {
    Arc::new(BenchRt {
        start: tokio::time::Instant::now(),
        seed: AtomicU64::new(1),
    })
}

impl Runtime for BenchRt {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.start.elapsed().as_nanos() as u64)
    }

    fn wall(&self) -> WallTime {
        WallTime(0)
    }

    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()> {
        let at = self.start + Duration::from_nanos(at.as_nanos());
        Box::pin(tokio::time::sleep_until(at))
    }

    fn spawn(&self, _name: &'static str, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn offload(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        Box::pin(async move { work() })
    }

    fn entropy(&self) -> u64 {
        self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed)
    }
}

/// Counts what goes to a device, which is pending once for each IO.
#[derive(Debug)]
pub struct Counted {
    pub below: Arc<dyn BlockDevice>,
    pub reads: AtomicU64,
    pub writes: AtomicU64,
    pub written_bytes: AtomicU64,
}

impl Counted {
    pub fn new(below: Arc<dyn BlockDevice>) -> Arc<Self> {
        Arc::new(Self {
            below,
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
        })
    }
}

#[async_trait]
impl BlockDevice for Counted {
    fn info(&self) -> DeviceInfo {
        self.below.info()
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        match &io.op {
            Op::Read { .. } => {
                self.reads.fetch_add(1, Relaxed);
            }
            Op::Write { data, .. } => {
                self.writes.fetch_add(1, Relaxed);
                self.written_bytes.fetch_add(data.len() as u64, Relaxed);
            }
            _ => {}
        }
        // As a device does that takes time: what comes together is in flight together.
        tokio::task::yield_now().await;
        self.below.submit(io).await
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        self.below.allocation(range).await
    }
}

/// Memory that was touched before it is measured.
#[derive(Debug)]
pub struct Flat(Mutex<Vec<u8>>);

impl Flat {
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![1; bytes as usize])))
    }
}

#[async_trait]
impl BlockDevice for Flat {
    fn info(&self) -> DeviceInfo {
        let bytes = self.0.lock().unwrap().len() as u64;
        DeviceInfo::new(bytes, 4096).with_caps(|caps| {
            caps.write_zeroes = Support::Native;
            caps.fua = Support::Native;
        })
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        let mut memory = self.0.lock().unwrap();
        let place = |extent: Extent| extent.offset() as usize..extent.end() as usize;
        Ok(match &io.op {
            Op::Read { extent, .. } => Reply::Data(Bytes::copy_from_slice(&memory[place(*extent)])),
            Op::Write { data, .. } => {
                memory[place(io.op.extent())].copy_from_slice(data);
                Reply::Done
            }
            Op::WriteZeroes { extent, .. } => {
                memory[place(*extent)].fill(0);
                Reply::Done
            }
            _ => Reply::Done,
        })
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        Ok(AllocationMap::uniform(range, vaio_core::Allocation::Data))
    }
}

/// Takes writes and forgets them but for its first blocks: a log of any size without its memory.
#[derive(Debug)]
pub struct Forgetful {
    capacity: u64,
    front: Mutex<BTreeMap<u64, Bytes>>,
}

/// What a forgetful device remembers: the superblocks.
const FRONT_BYTES: u64 = 8 << 10;

impl Forgetful {
    pub fn new(capacity: u64) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            front: Mutex::default(),
        })
    }
}

#[async_trait]
impl BlockDevice for Forgetful {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new(self.capacity, 4096).with_caps(|caps| caps.write_zeroes = Support::Native)
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        Ok(match io.op {
            Op::Read { extent, .. } => {
                let front = self.front.lock().unwrap();
                let known = front.get(&extent.offset()).cloned();
                Reply::Data(known.unwrap_or_else(|| vaio_core::zeroes(extent.len() as usize)))
            }
            Op::Write { offset, data, .. } => {
                if offset < FRONT_BYTES {
                    self.front.lock().unwrap().insert(offset, data);
                }
                Reply::Done
            }
            _ => Reply::Done,
        })
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        Ok(AllocationMap::uniform(range, vaio_core::Allocation::Data))
    }
}

/// A file, written and flushed on this thread, as the control does.
#[derive(Debug)]
pub struct Plain(pub File, pub u64);

#[async_trait]
impl BlockDevice for Plain {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new(self.1, 4096).with_caps(|caps| caps.volatile_cache = true)
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        let failed = |cause: std::io::Error| Error::new(ErrorKind::Io, cause.to_string());
        Ok(match io.op {
            Op::Read { extent, .. } => {
                let mut data = BytesMut::zeroed(extent.len() as usize);
                self.0
                    .read_exact_at(&mut data, extent.offset())
                    .map_err(failed)?;
                Reply::Data(data.freeze())
            }
            Op::Write { offset, data, .. } => {
                self.0.write_all_at(&data, offset).map_err(failed)?;
                Reply::Done
            }
            Op::Flush => {
                self.0.sync_data().map_err(failed)?;
                Reply::Done
            }
            _ => return Err(Error::unsupported(io.op.kind())),
        })
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        Ok(AllocationMap::uniform(range, vaio_core::Allocation::Data))
    }
}

#[derive(Debug)]
struct Beside(Arc<dyn BlockDevice>);

#[async_trait]
impl DeviceProvider for Beside {
    async fn open_device(&self, _: &str, _: &str, _: &str) -> Result<Arc<dyn BlockDevice>> {
        Ok(Arc::clone(&self.0))
    }
}

/// What a disk with a cache is made of; opened again, it is the same disk.
#[derive(Clone, Debug)]
pub struct Parts {
    pub backing: Arc<dyn BlockDevice>,
    pub cache: Arc<dyn BlockDevice>,
    pub sidecar: Arc<MemorySidecar>,
    pub settings: Vec<(&'static str, &'static str)>,
}

impl Parts {
    pub fn new(
        backing: Arc<dyn BlockDevice>,
        cache: Arc<dyn BlockDevice>,
        settings: &[(&'static str, &'static str)],
    ) -> Self {
        Self {
            backing,
            cache,
            sidecar: Arc::default(),
            settings: settings.to_vec(),
        }
    }

    pub async fn open(&self, rt: &Rt) -> Disk {
        let spec = FilterSpec::new("cache").with("file", "beside");
        let pairs = self.settings.iter();
        let spec = pairs.fold(spec, |spec, (key, value)| spec.with(*key, *value));
        let registry = FilterRegistry::default().with(CacheFactory::default());
        let beside = Arc::new(Beside(Arc::clone(&self.cache)));
        let sidecar = Arc::clone(&self.sidecar);
        Disk::builder(Arc::clone(&self.backing), Arc::clone(rt))
            .policy(Policy::empty().with(spec), registry)
            .devices(beside)
            .sidecar(sidecar)
            .open()
            .await
            .unwrap()
    }
}

/// Seconds that this thread has been on a processor: what others do on the machine is not in it.
pub fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanos: u64 = stat.split_whitespace().next().unwrap().parse().unwrap();
    nanos as f64 / 1e9
}

/// `count` IOs at a depth.
pub async fn drive(disk: &Disk, depth: usize, count: u64, mut io: impl FnMut(u64) -> Io) {
    let mut port = disk.port(depth).unwrap();
    let (mut pushed, mut ended) = (0, 0);
    while ended < count {
        while pushed < count && port.in_flight() < depth {
            port.push(pushed, io(pushed)).unwrap();
            pushed += 1;
        }
        port.next().await.result.unwrap();
        ended += 1;
    }
}
