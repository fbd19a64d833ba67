//! What the framework costs per IO: panic containment and the shipped statistics on, beside a raw
//! dyn call of the same device in the same run. One thread, no real IO below.
//!
//! Where it goes, per layer that intercepts and does its IO in `io` (`chain/hop.rs` says why): one box, made by
//! `async_trait` for the filter's future (232 bytes here), which is allocated, filled by a copy and
//! freed; four copies of the IO (72 bytes) down and four of the answer (40 bytes) up; no atomic
//! read-modify-write, lock or clock. A filter that holds or changes data costs a second box and two
//! reference counts up and down. A port costs per IO: one box, four reference counts, two steps at
//! the gate.
//!
//! `VAIO_QUICK=400` gives the least of that many short runs instead, for a busy machine. There are
//! no hardware counters in most VMs: count instructions with `valgrind --tool=callgrind`.
//!
//! * `raw_dyn_ns`: `dyn BlockDevice::submit` of a 4 KiB read, the device answers at once.
//! * `bare_layer_ns`: a layer of nothing but one `async_trait` call that passes on, mean of 8: the
//!   floor under `async_layer_ns` on the machine at hand.
//! * `port_qd1_ns`, `port_qd32_ns`: what a port adds to that, at depth 1 and 32.
//! * `port_qd32_pending_ns`: the same over a device that is pending once, so that all 32 are in
//!   flight and every one is woken (less the same device polled twice).
//! * `active_layer_ns`: each filter that intercepts and passes on, mean of 8 over none, by its
//!   hooks: the way for whoever lets an IO through unchanged and at once.
//! * `async_layer_ns`: the same by `io`, a future for every IO: observers (`Always`) that wait for
//!   something, or keep something of each IO.
//! * `owned_layer_ns`: the same for filters that hold or change data (`Never`), whose IO outlives
//!   a caller that lets go.
//! * `transparent_layer_ns`: each filter that does not intercept, mean of 8.
//! * `allocs_*`: calls of the allocator per IO.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::too_many_lines,
    clippy::wildcard_imports,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "a benchmark, and support code that it shares with the tests"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
    collections::BTreeMap,
    hint::black_box,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use criterion::{BenchmarkId, Criterion};
use vaio_core::{
    AllocationMap, AttachContext, BlockDevice, BypassSafety, Class, Descriptor, DeviceInfo, Disk,
    Extent, Filter, FilterFactory, FilterRegistry, FilterSpec, Hooks, Io, Lifecycle, Next,
    NullDisk, OpKind, Outcome, Passed, Policy, Port, Reply, Result, Verdict,
};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
thread_local! { static COUNTING: Cell<bool> = const { Cell::new(false) }; }

struct Counting;

#[allow(
    unsafe_code,
    reason = "an allocator that counts; forwards to the system's"
)]
// SAFETY: every call is forwarded unchanged to the allocator that the `vaio` program uses.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTING.get() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's obligations are passed on.
        unsafe { mimalloc::MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's obligations are passed on.
        unsafe { mimalloc::MiMalloc.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NAMES: [&str; 8] = ["n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8"];

/// Passes everything on, by hooks or by `io`.
#[derive(Clone, Debug)]
struct Noop(Descriptor, Kind);

#[async_trait]
impl Filter for Noop {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        next.submit(io).await
    }

    fn hooks(self: Arc<Self>) -> Option<Arc<dyn Hooks>> {
        match self.1 {
            Kind::Hooked => Some(self),
            _ => None,
        }
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }
}

impl Hooks for Noop {
    fn before(&self, io: &Io) -> Verdict {
        black_box(io);
        Verdict::Pass
    }

    fn after(&self, io: &Passed, answer: Option<&Result<Reply>>) {
        black_box((io, answer));
    }
}

#[async_trait]
impl FilterFactory for Noop {
    fn descriptor(&self) -> Descriptor {
        self.0.clone()
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, _cx: AttachContext) -> Result<Arc<dyn Filter>> {
        Ok(Arc::new(self.clone()))
    }
}

/// A null device that is pending once.
#[derive(Debug)]
struct Yielding(NullDisk);

#[async_trait]
impl BlockDevice for Yielding {
    fn info(&self) -> DeviceInfo {
        self.0.info()
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        let mut yielded = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        self.0.submit(io).await
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        self.0.allocation(range).await
    }
}

/// A device around a device that only passes on: what `async_trait` alone costs per layer, with
/// no chain, check, containment or count.
#[derive(Debug)]
struct Bare(Arc<dyn BlockDevice>);

#[async_trait]
impl BlockDevice for Bare {
    fn info(&self) -> DeviceInfo {
        self.0.info()
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        self.0.submit(io).await
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        self.0.allocation(range).await
    }
}

fn bare(device: &Arc<dyn BlockDevice>, layers: usize) -> Arc<dyn BlockDevice> {
    (0..layers).fold(Arc::clone(device), |below, _| Arc::new(Bare(below)))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Hooked,
    Observing,
    Owning,
    Transparent,
}

async fn open(device: Arc<dyn BlockDevice>, layers: usize, kind: Kind) -> Disk {
    let mut registry = FilterRegistry::default();
    let mut policy = Policy::empty();
    for name in &NAMES[..layers] {
        let descriptor = Descriptor::new(name, "1", Class::Inspect);
        let descriptor = match kind {
            Kind::Hooked | Kind::Observing => descriptor.intercept(&OpKind::ALL).accept_fua(),
            Kind::Owning => descriptor
                .intercept(&OpKind::ALL)
                .accept_fua()
                .with_bypass(BypassSafety::Never),
            Kind::Transparent => descriptor.pass(&OpKind::ALL),
        };
        registry = registry.with(Noop(descriptor, kind));
        policy = policy.with(FilterSpec::new(*name));
    }
    Disk::builder(device, support::TokioRt::new())
        .policy(policy, registry)
        .open()
        .await
        .unwrap()
}

fn read_at(n: u64) -> Io {
    Io::read(Extent::new((n % 1024) * 4096, 4096))
}

/// `count` IOs at `depth`.
fn through_port(port: &mut Port, depth: usize, count: u64) {
    let mut context = Context::from_waker(Waker::noop());
    let mut pushed = 0;
    let mut ended = 0;
    while ended < count {
        while pushed < count && port.in_flight() < depth {
            port.push(pushed, read_at(pushed)).unwrap();
            pushed += 1;
        }
        while let Poll::Ready(done) = port.poll_complete(&mut context) {
            black_box(&done.result);
            ended += 1;
        }
    }
}

fn raw(device: &dyn BlockDevice, count: u64) {
    let mut context = Context::from_waker(Waker::noop());
    for n in 0..count {
        let mut future = device.submit(read_at(n));
        while future
            .as_mut()
            .poll(&mut context)
            .map(black_box)
            .is_pending()
        {}
    }
}

/// The least of many short runs: for tuning on a busy machine.
fn quick(runtime: &tokio::runtime::Runtime) {
    let runs: u32 = std::env::var("VAIO_QUICK")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(400);
    let least = |run: &mut dyn FnMut(u64)| {
        let scratch = Results::default();
        (0..runs)
            .map(|_| timed(&scratch, "x", 2000, &mut *run).as_nanos() as f64 / 2000.0)
            .fold(f64::INFINITY, f64::min)
    };
    let null: Arc<dyn BlockDevice> = Arc::new(NullDisk::new(1 << 30));
    println!("least raw_dyn {:.1}", least(&mut |n| raw(null.as_ref(), n)));
    let layered = bare(&null, 8);
    let (one, nine) = (
        least(&mut |n| raw(null.as_ref(), n)),
        least(&mut |n| raw(layered.as_ref(), n)),
    );
    println!("least bare_layer {:.1}", (nine - one) / 8.0);
    for (label, kind) in [
        ("active", Kind::Hooked),
        ("async", Kind::Observing),
        ("owned", Kind::Owning),
        ("transparent", Kind::Transparent),
    ] {
        let mut first = 0.0;
        for layers in [0usize, 1, 8] {
            let disk = runtime.block_on(open(Arc::clone(&null), layers, kind));
            let mut port = disk.port(32).unwrap();
            let ns = least(&mut |n| through_port(&mut port, 32, n));
            if layers == 0 {
                first = ns;
            }
            println!("least {label}_{layers} {ns:.1}");
            if layers == 8 {
                println!("least {label}_layer {:.1}", (ns - first) / 8.0);
            }
        }
    }
}

/// Median nanoseconds per IO of every benchmark, by name.
type Results = Mutex<BTreeMap<String, Vec<f64>>>;

fn timed(results: &Results, name: &str, count: u64, run: impl FnOnce(u64)) -> Duration {
    #[allow(clippy::disallowed_methods, reason = "a benchmark measures time")]
    let start = std::time::Instant::now();
    run(count);
    let elapsed = start.elapsed();
    if count > 1000 {
        let per_io = elapsed.as_nanos() as f64 / count as f64;
        results
            .lock()
            .unwrap()
            .entry(name.into())
            .or_default()
            .push(per_io);
    }
    elapsed
}

fn allocations(run: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    COUNTING.set(true);
    run();
    COUNTING.set(false);
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    if std::env::var_os("VAIO_QUICK").is_some() {
        return quick(&runtime);
    }
    let results = Results::default();
    let mut criterion = Criterion::default()
        .sample_size(40)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .configure_from_args();

    let null: Arc<dyn BlockDevice> = Arc::new(NullDisk::new(1 << 30));
    let yielding: Arc<dyn BlockDevice> = Arc::new(Yielding(NullDisk::new(1 << 30)));
    let layered = bare(&null, 8);
    for (name, device) in [
        ("raw_dyn", &null),
        ("raw_dyn_bare_8", &layered),
        ("raw_yielding", &yielding),
    ] {
        criterion.bench_function(name, |b| {
            b.iter_custom(|n| timed(&results, name, n, |n| raw(device.as_ref(), n)));
        });
    }
    for (name, device, depth) in [
        ("port_qd1", &null, 1),
        ("port_qd32", &null, 32),
        ("port_qd32_pending", &yielding, 32),
    ] {
        let disk = runtime.block_on(open(Arc::clone(device), 0, Kind::Observing));
        let mut port = disk.port(depth).unwrap();
        criterion.bench_function(name, |b| {
            b.iter_custom(|n| timed(&results, name, n, |n| through_port(&mut port, depth, n)));
        });
    }
    let mut group = criterion.benchmark_group("stack");
    for (label, kind) in [
        ("active", Kind::Hooked),
        ("async", Kind::Observing),
        ("owned", Kind::Owning),
        ("transparent", Kind::Transparent),
    ] {
        for layers in [0usize, 1, 4, 8] {
            let disk = runtime.block_on(open(Arc::clone(&null), layers, kind));
            let mut port = disk.port(32).unwrap();
            let name = format!("{label}_{layers}");
            group.bench_function(BenchmarkId::new(label, layers), |b| {
                b.iter_custom(|n| timed(&results, &name, n, |n| through_port(&mut port, 32, n)));
            });
        }
    }
    group.finish();
    criterion.final_summary();

    let median = |name: &str| {
        let mut all = results
            .lock()
            .unwrap()
            .get(name)
            .cloned()
            .unwrap_or_default();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let figure = |name: &str, value: f64| println!("figure {name} {value:.1} ns");
    figure("raw_dyn_ns", median("raw_dyn"));
    figure(
        "bare_layer_ns",
        (median("raw_dyn_bare_8") - median("raw_dyn")) / 8.0,
    );
    figure("port_qd1_ns", median("port_qd1") - median("raw_dyn"));
    figure("port_qd32_ns", median("port_qd32") - median("raw_dyn"));
    figure(
        "port_qd32_pending_ns",
        median("port_qd32_pending") - median("raw_yielding"),
    );
    figure(
        "active_layer_ns",
        (median("active_8") - median("active_0")) / 8.0,
    );
    figure(
        "async_layer_ns",
        (median("async_8") - median("async_0")) / 8.0,
    );
    figure(
        "owned_layer_ns",
        (median("owned_8") - median("owned_0")) / 8.0,
    );
    figure(
        "transparent_layer_ns",
        (median("transparent_8") - median("transparent_0")) / 8.0,
    );

    for (label, layers, kind) in [
        ("port", 0, Kind::Observing),
        ("one_active", 1, Kind::Hooked),
        ("eight_active", 8, Kind::Hooked),
        ("one_async", 1, Kind::Observing),
        ("eight_async", 8, Kind::Observing),
        ("eight_owned", 8, Kind::Owning),
    ] {
        let disk = runtime.block_on(open(Arc::clone(&null), layers, kind));
        let mut port = disk.port(32).unwrap();
        through_port(&mut port, 32, 10_000);
        let count = allocations(|| through_port(&mut port, 32, 10_000));
        println!(
            "figure allocs_{label} {:.2} per_io",
            count as f64 / 10_000.0
        );
    }
    let count = allocations(|| raw(null.as_ref(), 10_000));
    println!(
        "figure allocs_raw_dyn {:.2} per_io",
        count as f64 / 10_000.0
    );
}
