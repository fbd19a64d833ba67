//! [`Disk`]: the embedding handle. Opens a device with a stack of filters, serves IO through
//! ports, changes the stack while it runs, and answers for its state.
//!
//! `mod` what it is · `builder` open · `instance` one filter's life · `rechain` attach, detach,
//! replace · `verbs` snapshot, resize and others · `quiesce` · `durability` flush and hold ·
//! `contained` a panic in a source of dirty data · `watch` the stall ladder.

mod builder;
mod contained;
mod durability;
mod instance;
mod quiesce;
mod rechain;
mod sub_block;
mod verbs;
mod watch;

pub use builder::{DeviceProvider, DiskBuilder};
pub use durability::{Flushing, PointInTime};
pub use quiesce::Quiesced;
pub use verbs::Prepared;

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures::channel::oneshot;

use crate::{
    AllocationMap, BlockDevice, DeviceInfo, DirtyPolicy, DiskPhase, DiskState, DiskStats, Error,
    ErrorKind, EventStream, Extent, FilterRegistry, Io, Port, Reply, Result, Rt, RuntimeExt,
    admit::{Admission, check},
    chain::{Chain, IoCx, panic_text},
    core::Core,
    event::EventBus,
    manifest::Manifest,
    root::{Entered, Rooted},
    sidecar::SidecarFile,
    slot::Slot,
    state::Latest,
    stats::LayerCounters,
    sync::{self, Semaphore, lock},
};

use instance::Attached;

/// Single IOs of [`Disk::submit`] in flight together; more wait.
const SINGLES_MAX: usize = 64;

/// One open disk: a device under a stack of filters. Clones are the same disk.
///
/// # Cancellation
/// A control call (attach, quiesce, flush and the like) runs to its end even if its future is
/// dropped: it is undone or done, never half.
#[derive(Clone)]
pub struct Disk {
    inner: Arc<DiskInner>,
}

pub(crate) struct DiskInner {
    pub(crate) core: Arc<Core>,
    chain: Mutex<Arc<Chain>>,
    epoch: AtomicU64,
    /// Where each filter instance's IO of its own starts.
    places: Mutex<BTreeMap<u64, (Arc<Chain>, u8)>>,
    /// Held by the one verb that runs.
    control: sync::Mutex<Control>,
    running: Mutex<Option<&'static str>>,
    published: Latest<()>,
    generation: AtomicU64,
    dirty_policy: Mutex<DirtyPolicy>,
    singles: Semaphore,
    single_slots: Mutex<Vec<Arc<Slot>>>,
    single_counters: Arc<crate::stats::OpCounters>,
}

/// What only the running verb touches.
struct Control {
    /// Top to bottom.
    attached: Vec<Attached>,
    device: Arc<dyn BlockDevice>,
    device_counters: Arc<LayerCounters>,
    registry: FilterRegistry,
    devices: Arc<dyn DeviceProvider>,
    sidecar: SidecarFile,
    manifest: Manifest,
    ownership: u64,
    lock: Option<Box<dyn crate::DiskLock>>,
}

impl DiskInner {
    /// The chain now, and its number.
    pub(crate) fn chain(&self) -> (Arc<Chain>, u64) {
        let chain = lock(&self.chain);
        (Arc::clone(&chain), self.epoch())
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn resolve(&self, instance: u64) -> Option<(Arc<Chain>, u8)> {
        lock(&self.places).get(&instance).cloned()
    }

    /// Puts a new chain in place. The caller has drained the disk.
    fn install(&self, control: &Control) -> Result<()> {
        let layers = control
            .attached
            .iter()
            .map(|one| Arc::clone(&one.layer))
            .collect();
        let chain = Arc::new(Chain::new(
            Arc::clone(&self.core),
            layers,
            Arc::clone(&control.device),
            Arc::clone(&control.device_counters),
        )?);
        {
            let mut places = lock(&self.places);
            for (level, one) in (1..).zip(&control.attached) {
                places.insert(one.instance, (Arc::clone(&chain), level));
            }
        }
        let mut current = lock(&self.chain);
        *current = chain;
        self.epoch.fetch_add(1, Ordering::AcqRel);
        drop(current);
        self.published.set(());
        Ok(())
    }

    fn error(&self, kind: ErrorKind, text: impl Into<String>) -> Error {
        Error::new(kind, text).with_disk(Arc::clone(&self.core.name))
    }

    fn rt(&self) -> &Rt {
        &self.core.rt
    }
}

/// Runs a control call to its end, whether or not the caller waits: panics caught, counted as
/// work that a drain waits for if `counted`.
fn run_to_end<T, F>(
    core: &Arc<Core>,
    name: &'static str,
    call: F,
) -> impl Future<Output = Result<T>> + Send + use<T, F>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let (send, receive) = oneshot::channel();
    let mut call = Box::pin(call);
    core.rt.spawn(
        name,
        Box::pin(async move {
            let result = std::future::poll_fn(|cx| {
                catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx))).unwrap_or_else(|panic| {
                    let text = panic_text(panic.as_ref());
                    Poll::Ready(Err(Error::new(ErrorKind::FilterFault, text)))
                })
            })
            .await;
            // A destructor may panic too; the answer is what counts.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(call)));
            let _ = send.send(result);
        }),
    );
    async move {
        receive.await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Gone,
                "the runtime ended before the call did",
            ))
        })
    }
}

/// The same with a limit on the wait. What was called goes on after it, counted by the gate.
async fn bounded<T: Send + 'static>(
    core: &Arc<Core>,
    name: &'static str,
    limit: Duration,
    call: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    core.gate.enter_always();
    let entered = Entered(Arc::clone(core));
    let running = run_to_end(core, name, async move {
        let result = call.await;
        drop(entered);
        result
    });
    let deadline = core.rt.now() + limit;
    match core.rt.timeout_at(deadline, running).await {
        Some(result) => result,
        None => Err(Error::new(
            ErrorKind::TimedOut,
            format!("the call took too long and goes on by itself, call={name} limit={limit:?}"),
        )),
    }
}

impl Disk {
    /// Starts to describe a disk over `device`.
    pub fn builder(device: Arc<dyn BlockDevice>, rt: Rt) -> DiskBuilder {
        DiskBuilder::new(device, rt)
    }

    /// Name of the disk.
    pub fn name(&self) -> &Arc<str> {
        &self.inner.core.name
    }

    /// What the disk looks like from the top, now.
    pub fn info(&self) -> DeviceInfo {
        *self.inner.chain().0.info(0)
    }

    /// Opens a queue of `depth` IOs (1 to [`PORT_DEPTH_MAX`](crate::PORT_DEPTH_MAX)).
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a depth out of range, [`ErrorKind::Busy`] when the disk has no
    /// slots left, [`ErrorKind::Gone`] when it is closed.
    pub fn port(&self, depth: usize) -> Result<Port> {
        Port::new(Arc::clone(&self.inner), depth)
    }

    /// Does one IO: for tools and tests. A front end uses a [`Port`].
    ///
    /// # Cancellation
    /// Dropped after its first poll, the IO runs to its end by itself.
    ///
    /// # Errors
    /// What the IO contract says; [`ErrorKind::Gone`] when the disk is closed.
    pub async fn submit(&self, mut io: Io) -> Result<Reply> {
        let inner = &self.inner;
        let core = &inner.core;
        let named = |error: Error| error.with_disk(Arc::clone(&core.name));
        if core.is_closed() {
            return Err(core.gone());
        }
        // The turn first: a single that waits for one holds up no drain.
        let turn = inner.singles.acquire().await;
        core.gate.enter().await;
        let entered = Entered(Arc::clone(core));
        if core.is_closed() {
            return Err(core.gone());
        }
        let (chain, _) = inner.chain();
        match check(chain.info(0), &io.op).map_err(named)? {
            Admission::Answer(reply) => return Ok(reply),
            Admission::Go(_) => {}
        }
        io.id = core.take_ids(1);
        let (kind, bytes) = (io.op.kind(), io.op.extent().len());
        let slot = lock(&inner.single_slots)
            .pop()
            .unwrap_or_else(|| core.slots.new_slot());
        let cx = IoCx {
            chain,
            slot: Arc::clone(&slot),
        };
        let result = Rooted::new(cx, 0, io, Arc::from("caller"), entered).await;
        {
            let mut slots = lock(&inner.single_slots);
            inner.single_counters.count(kind, bytes, result.is_err());
            if Arc::strong_count(&slot) == 1 {
                slots.push(slot);
            }
        }
        drop(turn);
        result.map_err(named)
    }

    /// Which parts of `range` hold data, are holes, or read as zeroes, as seen from the top.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] past the end; else as the device's reads.
    pub async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        let core = &self.inner.core;
        if core.is_closed() {
            return Err(core.gone());
        }
        core.gate.enter().await;
        let _entered = Entered(Arc::clone(core));
        let (chain, _) = self.inner.chain();
        chain.allocation(0, range).await
    }

    /// The disk and its filters, as they are now. From any thread; never waits for IO.
    pub fn state(&self) -> DiskState {
        let inner = &self.inner;
        let core = &inner.core;
        let (chain, _) = inner.chain();
        let layers: Vec<_> = chain.layers.iter().map(|layer| layer.state(core)).collect();
        let phase = if core.is_closed() {
            DiskPhase::Closed
        } else if core.gate.is_closed() {
            DiskPhase::Quiesced
        } else {
            DiskPhase::Open
        };
        DiskState {
            name: Arc::clone(&core.name),
            vm: Arc::clone(&core.vm),
            phase,
            info: *chain.info(0),
            generation: inner.generation.load(Ordering::Relaxed),
            dirty_bytes: layers
                .iter()
                .fold(0, |sum, layer| layer.filter.dirty_bytes.saturating_add(sum)),
            layers,
            dirty_policy: *lock(&inner.dirty_policy),
            in_flight: core.gate.in_flight(),
            orphans: core.fence.len() as u64,
            running: *lock(&inner.running),
        }
    }

    /// A stream of the newest state: each [`next`](StateStream::next) waits for a change of the
    /// stack, phase or policy since the one before. States in between may be skipped; the newest
    /// never is.
    pub fn watch_state(&self) -> StateStream {
        StateStream {
            disk: self.clone(),
            seen: 0,
        }
    }

    /// Events, from the oldest that is still kept.
    pub fn events(&self) -> EventStream {
        self.inner.core.events.subscribe()
    }

    /// The bus that this disk's events go over.
    pub fn event_bus(&self) -> &Arc<EventBus> {
        &self.inner.core.events
    }

    /// Statistics since the disk was opened. From any thread.
    pub fn stats(&self) -> DiskStats {
        let core = &self.inner.core;
        let (chain, _) = self.inner.chain();
        let mut layers: Vec<_> = chain
            .layers
            .iter()
            .map(|layer| layer.counters.snapshot(Arc::clone(&layer.name)))
            .collect();
        layers.push(chain.device_counters.snapshot(Arc::from("device")));
        DiskStats {
            ops: core.op_stats(),
            layers,
            gate_closed: core.gate.closed_for.snapshot(),
            orphans: core.keeper.total(),
        }
    }

    /// Name of the filter (or `device`) whose code runs on the IO thread at this moment, if any:
    /// what a watchdog on another thread names when that thread does not come back.
    pub fn polling(&self) -> Option<Arc<str>> {
        let polling = self
            .inner
            .core
            .polling
            .load(Ordering::Relaxed)
            .checked_sub(1)?;
        Some(self.inner.chain().0.name_of(polling))
    }

    /// Tells of a thread that has polled one filter for too long; for a host's watchdog, from
    /// another thread.
    pub fn report_blocked(&self, since: Duration) {
        use crate::event::{EventKind, Notice, Severity};
        let mut notice = Notice::of(
            Severity::Error,
            EventKind::ThreadBlocked,
            format!("the disk's IO thread has not come back for {since:?}"),
        )
        .with_next_step(
            "the filter named spins or blocks: report it to its vendor; ending this process \
             affects this VM's disks only",
        );
        if let Some(name) = self.polling() {
            notice = notice.with_filter(&name);
        }
        self.inner.core.events.send(notice);
    }

    /// Runs a verb alone: one at a time, to its end.
    async fn verb<T, F>(
        &self,
        name: &'static str,
        verb: impl FnOnce(Arc<DiskInner>) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send,
    {
        let inner = Arc::clone(&self.inner);
        if inner.core.is_closed() {
            return Err(inner.core.gone());
        }
        run_to_end(&self.inner.core, name, async move {
            let result = verb(Arc::clone(&inner)).await;
            *lock(&inner.running) = None;
            inner.published.set(());
            result.map_err(|error| error.with_disk(Arc::clone(&inner.core.name)))
        })
        .await
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("name", &self.inner.core.name)
            .finish_non_exhaustive()
    }
}

impl Drop for DiskInner {
    /// A disk that no one holds any more is not clean, but it is over: what runs for it ends.
    fn drop(&mut self) {
        self.core.set_closed();
    }
}

impl fmt::Debug for DiskInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskInner")
            .field("name", &self.core.name)
            .finish_non_exhaustive()
    }
}

/// A reader of a disk's newest state.
#[derive(Debug)]
pub struct StateStream {
    disk: Disk,
    seen: u64,
}

impl StateStream {
    /// Waits for a state that is newer than the last one given. Cancel-safe.
    pub async fn next(&mut self) -> DiskState {
        let (version, ()) = self.disk.inner.published.newer_than(self.seen).await;
        self.seen = version;
        self.disk.state()
    }
}
