//! A runtime over tokio for the tests of core, and small filters that do one thing each.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test file uses a part of it"
)]

mod device;
mod toy;

pub use device::*;
pub use toy::Toy;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use vaio_core::*;

#[derive(Debug)]
pub struct TokioRt {
    start: tokio::time::Instant,
    seed: AtomicU64,
}

impl TokioRt {
    #[allow(clippy::new_ret_no_self, reason = "only the handle is of use")]
    pub fn new() -> Rt {
        Arc::new(Self {
            start: tokio::time::Instant::now(),
            seed: AtomicU64::new(1),
        })
    }
}

impl Runtime for TokioRt {
    fn now(&self) -> Instant {
        let nanos = self.start.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(nanos).unwrap())
    }

    fn wall(&self) -> WallTime {
        WallTime(0)
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
        Box::pin(async move {
            let _ = tokio::task::spawn_blocking(work).await;
        })
    }

    fn entropy(&self) -> u64 {
        self.seed
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
    }
}

type IoFn = Arc<dyn for<'a> Fn(Io, Next<'a>) -> BoxFuture<'a, Result<Reply>> + Send + Sync>;
type LifeFn = Arc<dyn Fn(&'static str, Phase) -> Result<Outcome> + Send + Sync>;
type OpenFn = Arc<dyn Fn(&AttachContext) -> Result<()> + Send + Sync>;

/// A filter made of closures. Its life-cycle calls are written down.
#[derive(Clone)]
pub struct Custom {
    pub descriptor: Descriptor,
    pub io: IoFn,
    pub life: LifeFn,
    pub open: OpenFn,
    pub dirty: Option<Arc<dyn DirtySource>>,
    pub dirty_bytes: Arc<AtomicU64>,
    pub calls: Arc<Mutex<Vec<String>>>,
    pub shape: fn(&DeviceInfo) -> Result<DeviceInfo>,
    pub hooks: Option<Arc<dyn Hooks>>,
}

impl std::fmt::Debug for Custom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.descriptor.name)
    }
}

pub fn every_op(name: &'static str, class: Class) -> Descriptor {
    Descriptor::new(name, "1", class)
        .intercept(&OpKind::ALL)
        .accept_fua()
        .accept_zeroes_flags()
}

/// A filter that passes everything.
pub fn passing(descriptor: Descriptor) -> Custom {
    custom(descriptor, |io, next| Box::pin(next.submit(io)))
}

pub fn custom(
    descriptor: Descriptor,
    io: impl for<'a> Fn(Io, Next<'a>) -> BoxFuture<'a, Result<Reply>> + Send + Sync + 'static,
) -> Custom {
    Custom {
        descriptor,
        io: Arc::new(io),
        life: Arc::new(|_, _| Ok(Outcome::Done)),
        open: Arc::new(|_| Ok(())),
        dirty: None,
        dirty_bytes: Arc::default(),
        calls: Arc::default(),
        shape: |below| Ok(*below),
        hooks: None,
    }
}

impl Custom {
    pub fn on_life(
        mut self,
        life: impl Fn(&'static str, Phase) -> Result<Outcome> + Send + Sync + 'static,
    ) -> Self {
        self.life = Arc::new(life);
        self
    }

    pub fn on_open(
        mut self,
        open: impl Fn(&AttachContext) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.open = Arc::new(open);
        self
    }
}

#[async_trait]
impl Filter for Custom {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        (self.io)(io, next).await
    }

    fn hooks(self: Arc<Self>) -> Option<Arc<dyn Hooks>> {
        self.hooks.clone()
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        (self.shape)(below)
    }

    async fn lifecycle(&self, event: Lifecycle<'_>) -> Result<Outcome> {
        let call = format!(
            "{}:{}:{}",
            self.descriptor.name,
            event.verb.name(),
            event.phase.name()
        );
        self.calls.lock().unwrap().push(call);
        (self.life)(event.verb.name(), event.phase)
    }

    fn state(&self) -> FilterState {
        FilterState::dirty(self.dirty_bytes.load(Ordering::Relaxed))
    }

    fn dirty(&self) -> Option<Arc<dyn DirtySource>> {
        self.dirty.clone()
    }

    fn allocation(&self, below: AllocationMap) -> AllocationMap {
        below
    }
}

#[async_trait]
impl FilterFactory for Custom {
    fn descriptor(&self) -> Descriptor {
        self.descriptor.clone()
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        (self.open)(&cx)?;
        Ok(Arc::new(self.clone()))
    }
}

pub fn registry(filters: Vec<Custom>) -> (Policy, FilterRegistry) {
    let mut policy = Policy::empty();
    let mut registry = FilterRegistry::default();
    for filter in filters {
        policy = policy.with(FilterSpec {
            name: filter.descriptor.name.into(),
            settings: BTreeMap::new(),
        });
        registry = registry.with(filter);
    }
    (policy, registry)
}

pub async fn open(device: impl BlockDevice, filters: Vec<Custom>) -> Disk {
    let (policy, registry) = registry(filters);
    Disk::builder(Arc::new(device), TokioRt::new())
        .policy(policy, registry)
        .open()
        .await
        .unwrap()
}

pub fn soon(rt: &Rt) -> Instant {
    rt.now() + Duration::from_secs(5)
}

/// Every event of a kind so far.
pub fn events_of(disk: &Disk, kind: EventKind) -> Vec<Event> {
    let mut stream = disk.events();
    let mut found = Vec::new();
    while let Some(event) = stream.try_next() {
        if event.kind == kind {
            found.push(event);
        }
    }
    found
}

pub fn write_of(offset: u64, byte: u8, len: usize) -> Io {
    Io::write(offset, vec![byte; len].into())
}

pub async fn read_all(disk: &Disk, offset: u64, len: u64) -> Vec<u8> {
    disk.submit(Io::read(Extent::new(offset, len)))
        .await
        .unwrap()
        .into_data()
        .to_vec()
}

/// Polls once; the future stays where it is.
pub async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    futures::future::poll_immediate(future).await
}

pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub async fn sleep(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Runs `future` for at most `seconds` of virtual time.
pub async fn within<F: Future>(seconds: u64, future: F) -> F::Output {
    let limit = secs(seconds);
    tokio::time::timeout(limit, future)
        .await
        .expect("ends in time")
}

/// Opens with everything given.
pub async fn open_with(
    device: Arc<dyn BlockDevice>,
    filters: Vec<Custom>,
    settings: impl FnOnce(&mut DiskSettings),
) -> Disk {
    let (policy, registry) = registry(filters);
    let mut limits = DiskSettings::default();
    settings(&mut limits);
    Disk::builder(device, TokioRt::new())
        .policy(policy, registry)
        .settings(limits)
        .open()
        .await
        .unwrap()
}

/// A filter that lets go of what is below after `limit`, and tries once more if `again`.
pub fn timing_out(name: &'static str, limit: Duration, again: bool) -> Custom {
    custom(every_op(name, Class::Inspect), move |io, next| {
        Box::pin(async move {
            match tokio::time::timeout(limit, next.submit(io.clone())).await {
                Ok(result) => result,
                Err(_) if again => next.submit(io).await,
                Err(_) => Err(Error::new(ErrorKind::TimedOut, "too slow")),
            }
        })
    })
}
