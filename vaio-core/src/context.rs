//! [`AttachContext`]: a filter instance's whole world. Whoever makes it, a host or a testkit, is
//! that world: the filter reaches nothing around it.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
};

use async_trait::async_trait;

use crate::{
    AllocationMap, BlockDevice, DeviceInfo, Disposition, Error, ErrorKind, Extent, Io, OpPolicy,
    OpenReason, Origin, Reply, Result, Rt, Settings, Sidecar,
    chain::{Chain, IoCx, Layer, panic_text},
    core::Core,
    disk::DiskInner,
    event::{EventKind, Notice, Severity},
    root::{Entered, Rooted},
    slot::Slot,
    sync::{Notify, Semaphore, lock},
};

/// Everything that one filter instance has. Cheap to clone; clones are the same world.
#[derive(Clone, Debug)]
pub struct AttachContext {
    pub(crate) inner: Arc<World>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) core: Arc<Core>,
    pub(crate) filter: Arc<str>,
    pub(crate) settings: Settings,
    pub(crate) below: DeviceInfo,
    pub(crate) reason: OpenReason,
    pub(crate) generation: u64,
    pub(crate) epoch: u64,
    pub(crate) sidecar: Sidecar,
    pub(crate) devices: BTreeMap<&'static str, Arc<dyn BlockDevice>>,
    pub(crate) lower: Lower,
    pub(crate) tasks: Arc<Tasks>,
}

impl AttachContext {
    /// Name of the VM.
    pub fn vm(&self) -> &str {
        &self.inner.core.vm
    }

    /// Name of the disk, unique in its VM.
    pub fn disk(&self) -> &str {
        &self.inner.core.name
    }

    /// This filter's settings: every declared one has a value.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// What is below the filter now.
    pub fn below(&self) -> &DeviceInfo {
        &self.inner.below
    }

    /// Why it is opened.
    pub fn reason(&self) -> OpenReason {
        self.inner.reason
    }

    /// Lineage of the disk's content.
    pub fn generation(&self) -> u64 {
        self.inner.generation
    }

    /// Number of this ownership of the disk: strictly higher at every open.
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// IO below this filter. Keep it for as long as the instance lives.
    pub fn lower(&self) -> Lower {
        self.inner.lower.clone()
    }

    /// A device that the descriptor's needs asked for.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where the descriptor did not ask for it. In
    /// [`prepare`](crate::FilterFactory::prepare) no device is open yet.
    pub fn device(&self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        self.inner.devices.get(name).map(Arc::clone).ok_or_else(|| {
            Error::config(format!(
                "the filter's needs name no such open device, device={name}"
            ))
            .with_filter(Arc::clone(&self.inner.filter))
        })
    }

    /// This filter's part of the disk's sidecar.
    pub fn sidecar(&self) -> &Sidecar {
        &self.inner.sidecar
    }

    /// Time, tasks and chance.
    pub fn rt(&self) -> &Rt {
        &self.inner.core.rt
    }

    /// Sends an event in this filter's name. Never blocks; rate-limited.
    pub fn event(&self, notice: Notice) {
        self.inner
            .core
            .events
            .send(notice.with_filter(&self.inner.filter));
    }

    /// Runs a background task that belongs to this instance: its panic is caught and blamed on
    /// the filter, and it is dropped when the instance closes and it has not ended soon after
    /// [`stopped`](Self::stopped). Take a [`step`](Self::step) for each bounded piece of work.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let world = Arc::clone(&self.inner);
        world.tasks.live.fetch_add(1, Ordering::AcqRel);
        let mut task = Box::pin(task);
        let tasks = Arc::clone(&world.tasks);
        let (core, filter) = (Arc::clone(&world.core), Arc::clone(&world.filter));
        // The task holds no world: a task that outlives its instance must not keep it alive.
        let running = async move {
            let mut killed = Box::pin(tasks.killed());
            std::future::poll_fn(|cx| {
                if killed.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))) {
                    Ok(poll) => poll,
                    Err(panic) => {
                        let text = format!("{}, task={name}", panic_text(panic.as_ref()));
                        tasks.blame(&core, &filter, &text);
                        Poll::Ready(())
                    }
                }
            })
            .await;
            let _ = catch_unwind(AssertUnwindSafe(|| drop(task)));
            drop(killed);
            tasks.end();
        };
        world.core.rt.spawn(name, Box::pin(running));
    }

    /// Waits until the disk admits background work, and counts this step of it: a quiesce waits
    /// for the step to end, and starts no new one. `None`: the instance is closing, stop.
    ///
    /// Hold it for bounded work only. Cancel-safe.
    pub async fn step(&self) -> Option<Step> {
        let core = &self.inner.core;
        let mut stopped = std::pin::pin!(self.stopped());
        let mut entered = std::pin::pin!(core.gate.enter());
        std::future::poll_fn(|cx| {
            if stopped.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            entered.as_mut().poll(cx).map(|()| {
                Some(Step {
                    _entered: Entered(Arc::clone(core)),
                })
            })
        })
        .await
    }

    /// Resolves when the disk drains, at once if it does so now: no new guest IO comes, and a verb
    /// waits for all that is in flight. A filter that holds IO back lets it go then, or the guest
    /// waits for both. Cancel-safe.
    ///
    /// Whatever verb it is, and whichever filter it is about: this is no sign that this instance
    /// closes.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        let core = Arc::clone(&self.inner.core);
        async move { core.gate.wait_closed().await }
    }

    /// Resolves when the instance is closing: background tasks end then. Cancel-safe.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let tasks = Arc::clone(&self.inner.tasks);
        async move {
            loop {
                let listener = tasks.changed.listen();
                if tasks.is_stopping.load(Ordering::Acquire) {
                    return;
                }
                listener.await;
            }
        }
    }
}

/// A counted step of background work; dropping it ends the step.
#[derive(Debug)]
#[must_use = "dropping a step ends it"]
pub struct Step {
    _entered: Entered,
}

/// The background tasks of one instance.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    live: AtomicUsize,
    is_stopping: AtomicBool,
    is_killed: AtomicBool,
    changed: Notify,
    layer: OnceLock<Weak<Layer>>,
    /// A panic from before the instance had a layer.
    early: Mutex<Option<String>>,
}

impl Tasks {
    fn end(&self) {
        self.live.fetch_sub(1, Ordering::AcqRel);
        self.changed.notify_all();
    }

    async fn killed(&self) {
        loop {
            let listener = self.changed.listen();
            if self.is_killed.load(Ordering::Acquire) {
                return;
            }
            listener.await;
        }
    }

    fn blame(&self, core: &Core, filter: &Arc<str>, text: &str) {
        let mut early = lock(&self.early);
        let Some(layer) = self.layer.get() else {
            *early = Some(text.to_owned());
            drop(early);
            core.events.send(
                Notice::of(Severity::Error, EventKind::FilterPanicked, text).with_filter(filter),
            );
            return;
        };
        drop(early);
        if let Some(layer) = layer.upgrade() {
            layer.blame(core, EventKind::FilterPanicked, text);
            core.kick_all();
        }
    }

    /// The instance is open: from now on its tasks' faults are the layer's, and so is one that
    /// came before.
    pub(crate) fn belong_to(&self, core: &Core, layer: &Arc<Layer>) {
        let early = {
            let mut early = lock(&self.early);
            let _ = self.layer.set(Arc::downgrade(layer));
            early.take()
        };
        if let Some(text) = early {
            layer.blame(core, EventKind::FilterPanicked, &text);
        }
    }

    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    pub(crate) fn kill(&self) {
        self.is_killed.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Resolves when no task is left.
    pub(crate) async fn ended(&self) {
        loop {
            let listener = self.changed.listen();
            if self.live.load(Ordering::Acquire) == 0 {
                return;
            }
            listener.await;
        }
    }
}

/// IO below one filter, for its own work. A [`BlockDevice`]; use
/// [`BlockDeviceExt`](crate::BlockDeviceExt) for typed calls.
///
/// It finds its place in the chain anew at every call, so it survives re-chaining; after the
/// instance is gone every call fails with [`ErrorKind::Gone`]. IO is counted by the gate, and at
/// most the descriptor's `reserved_slots` are in flight: more wait.
///
/// # Cancellation
/// As everywhere: dropped after its first poll, the IO runs to its end by itself.
#[derive(Clone)]
pub struct Lower(Arc<LowerInner>);

struct LowerInner {
    disk: Weak<DiskInner>,
    instance: u64,
    name: Arc<str>,
    ops: OpPolicy,
    turns: Semaphore,
    free: Mutex<Vec<Arc<Slot>>>,
}

impl Lower {
    pub(crate) fn new(
        disk: &Arc<DiskInner>,
        instance: u64,
        name: Arc<str>,
        reserved_slots: u16,
        ops: OpPolicy,
    ) -> Self {
        Self(Arc::new(LowerInner {
            disk: Arc::downgrade(disk),
            instance,
            name,
            ops,
            turns: Semaphore::new(reserved_slots.into()),
            free: Mutex::default(),
        }))
    }

    fn resolve(&self) -> Result<(Arc<DiskInner>, Arc<Chain>, u8)> {
        let gone = || {
            Error::new(ErrorKind::Gone, "the filter instance is no longer attached")
                .with_filter(Arc::clone(&self.0.name))
        };
        let disk = self.0.disk.upgrade().ok_or_else(gone)?;
        let (chain, level) = disk.resolve(self.0.instance).ok_or_else(gone)?;
        Ok((disk, chain, level))
    }

    /// What is wrong with an IO of a filter that is being opened: its hop has no filter to blame
    /// yet.
    fn misfit(&self, chain: &Chain, io: &Io) -> Option<Error> {
        let (kind, extent) = (io.op.kind(), io.op.extent());
        let what = if self.0.ops.of(kind) == Disposition::Refuse {
            Some("an operation that its descriptor refuses")
        } else {
            chain.misfit(kind, extent)
        };
        what.map(|what| {
            let text = format!("the filter sent down {what} while it was opened");
            Error::new(ErrorKind::FilterFault, text)
                .with_op(kind)
                .with_extent(extent)
                .with_filter(Arc::clone(&self.0.name))
        })
    }

    fn take_slot(&self, core: &Core) -> Arc<Slot> {
        lock(&self.0.free)
            .pop()
            .unwrap_or_else(|| core.slots.new_slot())
    }
}

impl fmt::Debug for Lower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lower")
            .field("filter", &self.0.name)
            .finish_non_exhaustive()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlockDevice for Lower {
    /// What is below the filter; all zero capacity once the instance is gone.
    fn info(&self) -> DeviceInfo {
        match self.resolve() {
            Ok((_, chain, level)) => *chain.info(level.into()),
            Err(_) => DeviceInfo::new(0, 512),
        }
    }

    async fn submit(&self, mut io: Io) -> Result<Reply> {
        let core = Arc::clone(&self.resolve()?.0.core);
        // First the gate, then the turn: an IO that waits at a closed gate must not keep a turn
        // from one that the drain waits for.
        core.gate.enter_below().await;
        let entered = Entered(Arc::clone(&core));
        let turn = self.0.turns.acquire().await;
        let (_, chain, level) = self.resolve()?;
        if io.origin == Origin::Guest {
            io.origin = Origin::Filter;
        }
        if io.id == 0 {
            io.id = core.take_ids(1);
        }
        if let crate::Op::Write { offset, data, .. } = &io.op
            && Extent::checked(*offset, data.len() as u64).is_none()
        {
            return Err(Error::invalid("write overflows").with_filter(Arc::clone(&self.0.name)));
        }
        if level == 0
            && let Some(what) = self.misfit(&chain, &io)
        {
            return Err(what);
        }
        let slot = self.take_slot(&core);
        let cx = IoCx {
            chain,
            slot: Arc::clone(&slot),
        };
        let result = Rooted::new(cx, level, io, Arc::clone(&self.0.name), entered).await;
        if Arc::strong_count(&slot) == 1 {
            lock(&self.0.free).push(slot);
        }
        drop(turn);
        result
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        let (disk, chain, level) = self.resolve()?;
        disk.core.gate.enter_below().await;
        let _entered = Entered(Arc::clone(&disk.core));
        chain.allocation(level, range).await
    }
}
