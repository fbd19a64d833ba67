//! [`DiskBuilder`]: opens a disk with its stack, or leaves nothing behind.

use std::{
    fmt,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use async_trait::async_trait;

use super::{
    Control, Disk, DiskInner, SINGLES_MAX, instance::Attached, sub_block::SubBlock, watch,
};
use crate::{
    Allocation, AllocationMap, BlockDevice, Content, DirtyPolicy, DiskLock, DiskSettings, Error,
    ErrorKind, Extent, FilterRegistry, Io, MemorySidecar, OpenReason, Phase, Policy, Rechain,
    Resolved, Result, Rt, SidecarStore, Verb,
    chain::Chain,
    core::Core,
    event::{EventKind, Notice, Severity},
    keeper::Keeper,
    manifest::Manifest,
    sidecar::SidecarFile,
    state::Latest,
    stats::LayerCounters,
    sync::{self, Semaphore},
};

/// Opens the devices that filters need beside the disk. A host implements it.
#[async_trait]
pub trait DeviceProvider: fmt::Debug + Send + Sync + 'static {
    /// Opens what the setting `name` of `filter` names.
    ///
    /// # Errors
    /// Why it cannot be opened, naming `spec` and what to do.
    async fn open_device(
        &self,
        filter: &str,
        name: &str,
        spec: &str,
    ) -> Result<Arc<dyn BlockDevice>>;
}

/// Refuses every device: for stacks whose filters need none.
#[derive(Debug)]
struct NoDevices;

#[async_trait]
impl DeviceProvider for NoDevices {
    async fn open_device(
        &self,
        filter: &str,
        name: &str,
        spec: &str,
    ) -> Result<Arc<dyn BlockDevice>> {
        Err(Error::config(format!(
            "the embedding program opens no devices for filters; give the builder a \
             DeviceProvider, device={name} spec={spec}"
        ))
        .with_filter(filter))
    }
}

/// Describes a disk and opens it.
#[derive(Debug)]
#[must_use = "a builder does nothing until opened"]
pub struct DiskBuilder {
    device: Arc<dyn BlockDevice>,
    rt: Rt,
    name: Arc<str>,
    vm: Arc<str>,
    policy: Policy,
    registry: FilterRegistry,
    settings: DiskSettings,
    sidecar: Arc<dyn SidecarStore>,
    devices: Arc<dyn DeviceProvider>,
    lock: Option<Box<dyn DiskLock>>,
}

impl DiskBuilder {
    pub(super) fn new(device: Arc<dyn BlockDevice>, rt: Rt) -> Self {
        Self {
            device,
            rt,
            name: Arc::from("disk"),
            vm: Arc::from("vm"),
            policy: Policy::empty(),
            registry: FilterRegistry::default(),
            settings: DiskSettings::default(),
            sidecar: Arc::new(MemorySidecar::default()),
            devices: Arc::new(NoDevices),
            lock: None,
        }
    }

    /// Name of the disk in events, errors and status. Default `disk`.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Name of the VM. Default `vm`.
    pub fn vm(mut self, vm: impl Into<Arc<str>>) -> Self {
        self.vm = vm.into();
        self
    }

    /// Which filters the disk gets, and the registry that knows them. Default: none.
    pub fn policy(mut self, policy: Policy, registry: FilterRegistry) -> Self {
        self.policy = policy;
        self.registry = registry;
        self
    }

    /// Limits. Default: [`DiskSettings::default`].
    pub fn settings(mut self, settings: DiskSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Where the disk's sidecar lives. Default: in memory, gone with the disk: a transform or a
    /// cache then cannot be protected from being left out at the next open.
    pub fn sidecar(mut self, sidecar: Arc<dyn SidecarStore>) -> Self {
        self.sidecar = sidecar;
        self
    }

    /// What opens the devices that filters need. Default: none can be opened.
    pub fn devices(mut self, devices: Arc<dyn DeviceProvider>) -> Self {
        self.devices = devices;
        self
    }

    /// The disk's exclusive lock, taken by the caller, held until the disk is closed.
    pub fn lock(mut self, lock: Box<dyn DiskLock>) -> Self {
        self.lock = Some(lock);
        self
    }

    /// Opens the disk: checks policy and manifest, prepares every filter, opens them bottom up,
    /// records the stack and serves.
    ///
    /// # Errors
    /// Nothing is served and every filter that was opened is closed again. Among them
    /// [`ErrorKind::Config`] for a policy, setting or device that is wrong, and
    /// [`ErrorKind::Refused`] for a stack that lacks a filter which the disk's content needs.
    /// In a program built with `panic = "abort"` every open is refused: containment needs
    /// unwinding.
    pub async fn open(self) -> Result<Disk> {
        let name = Arc::clone(&self.name);
        self.open_inner()
            .await
            .map_err(|error| error.with_disk(name))
    }

    async fn open_inner(self) -> Result<Disk> {
        if cfg!(panic = "abort") {
            return Err(Error::config(
                "this program was built with panic=abort, so a filter's panic could not be \
                 contained; build it with panic=unwind",
            ));
        }
        self.settings.validate()?;
        let resolved = self.policy.resolve(&self.registry)?;
        let device_info = self.device.info();
        device_info.validate()?;
        let sidecar = SidecarFile::open(self.sidecar).await?;
        let core = Core::new(self.name, self.vm, self.rt, self.settings);
        let manifest = match sidecar.get(Manifest::KEY).await {
            Some(bytes) => Manifest::decode(&bytes)?,
            None => Manifest {
                identity: core.rt.entropy(),
                generation: 1,
                clean: true,
                capacity: device_info.capacity,
                layers: Vec::new(),
            },
        };
        let device = SubBlock::wrap(self.device);
        let is_transformed = resolved
            .iter()
            .any(|one| one.descriptor.content == Content::Transformed);
        let is_empty = is_transformed && is_empty_disk(device.as_ref()).await?;
        manifest.check(resolved.iter().map(|one| &one.descriptor), is_empty)?;
        let control = Control {
            attached: Vec::new(),
            device,
            device_counters: Arc::<LayerCounters>::default(),
            registry: self.registry,
            devices: self.devices,
            sidecar,
            manifest,
            ownership: 1,
            lock: self.lock,
        };
        start(core, control, resolved).await
    }
}

/// Makes the disk, opens its filters and starts its tasks.
async fn start(core: Arc<Core>, control: Control, resolved: Vec<Resolved>) -> Result<Disk> {
    let bare = Chain::new(
        Arc::clone(&core),
        Vec::new(),
        Arc::clone(&control.device),
        Arc::clone(&control.device_counters),
    )?;
    let generation = AtomicU64::new(control.manifest.generation);
    let inner = Arc::new(DiskInner {
        chain: Mutex::new(Arc::new(bare)),
        epoch: AtomicU64::new(1),
        places: Mutex::default(),
        control: sync::Mutex::new(control),
        running: Mutex::new(Some("open")),
        published: Latest::new(()),
        generation,
        dirty_policy: Mutex::new(DirtyPolicy::Allow),
        singles: Semaphore::new(SINGLES_MAX),
        single_slots: Mutex::default(),
        single_counters: core.new_counters(),
        core: Arc::clone(&core),
    });
    core.take_slots(SINGLES_MAX)?;
    core.rt
        .spawn("vaio-keeper", Box::pin(Keeper::run(Arc::clone(&core))));
    core.rt.spawn(
        "vaio-watch",
        Box::pin(watch::run(Arc::downgrade(&inner), Arc::clone(&core))),
    );
    let mut control = inner.control.lock().await;
    let opened = inner.open_stack(&mut control, resolved).await;
    drop(control);
    *sync::lock(&inner.running) = None;
    if let Err(error) = opened {
        core.set_closed();
        return Err(error);
    }
    inner.published.set(());
    core.events.send(Notice::of(
        Severity::Info,
        EventKind::Opened,
        "the disk serves IO",
    ));
    Ok(Disk { inner })
}

impl DiskInner {
    async fn open_stack(
        self: &Arc<Self>,
        control: &mut Control,
        resolved: Vec<Resolved>,
    ) -> Result<()> {
        let reason = if control.manifest.clean {
            OpenReason::Clean
        } else {
            OpenReason::Unclean
        };
        if reason == OpenReason::Unclean {
            // Recovery is itself durable: nothing is answered from data that a power cut could
            // still take back.
            control.device.submit(Io::flush()).await?;
        }
        let mut prepared = Vec::with_capacity(resolved.len());
        for one in resolved {
            let settings = self
                .prepare_layer(control, &one, control.attached.len())
                .await?;
            prepared.push((one, settings));
        }
        let known: Vec<_> = control
            .manifest
            .layers
            .iter()
            .map(|layer| layer.name.clone())
            .collect();
        for (one, settings) in prepared.into_iter().rev() {
            let is_known = known.iter().any(|name| name == one.descriptor.name);
            let reason = if is_known { reason } else { OpenReason::Attach };
            match self.open_layer(control, one, settings, 0, reason).await {
                Ok(attached) => control.attached.insert(0, attached),
                Err(error) => return Err(self.undo_open(control, error).await),
            }
        }
        let chain = self.install(control);
        if let Err(error) = chain {
            return Err(self.undo_open(control, error).await);
        }
        let capacity = self.chain().0.info(0).capacity;
        control.manifest.capacity = capacity;
        if let Err(error) = self.record(control, false).await {
            return Err(self.undo_open(control, error).await);
        }
        for one in &control.attached {
            self.commit_or_report(&one.layer, &Verb::Open).await;
        }
        Ok(())
    }

    /// Closes what was opened, last opened first.
    async fn undo_open(&self, control: &mut Control, error: Error) -> Error {
        for one in std::mem::take(&mut control.attached) {
            let _ = self.tell(&one.layer, &Verb::Open, Phase::Abort).await;
            let _ = self.close_layer(&one, true).await;
        }
        error
    }

    /// Records stack and clean mark in the sidecar, durably.
    pub(super) async fn record(&self, control: &mut Control, clean: bool) -> Result<()> {
        control.manifest.clean = clean;
        control.manifest.layers =
            Manifest::layers_of(control.attached.iter().map(|one| &one.resolved.descriptor));
        let bytes = control.manifest.encode();
        control
            .sidecar
            .commit(vec![(Manifest::KEY.into(), Some(bytes))])
            .await
    }

    /// Whether a filter with this rule may come or go now.
    pub(super) async fn check_rechain(&self, control: &Control, rule: Rechain) -> Result<()> {
        match rule {
            Rechain::Live => Ok(()),
            Rechain::Offline => Err(self.error(
                ErrorKind::Refused,
                "the filter cannot come or go on a running disk; close the disk and open it with \
                 the other stack",
            )),
            Rechain::EmptyDisk => {
                if is_empty_disk(control.device.as_ref()).await? {
                    return Ok(());
                }
                Err(self.error(
                    ErrorKind::Refused,
                    "the disk holds data, and the filter changes content: what is there would \
                     read as garbage; copy the data to a new disk that has the other stack",
                ))
            }
        }
    }
}

/// Whether every byte is known to be zero or never written.
async fn is_empty_disk(device: &dyn BlockDevice) -> Result<bool> {
    let whole = Extent::new(0, device.info().capacity);
    let map: AllocationMap = device.allocation(whole).await?;
    Ok(map
        .pieces()
        .iter()
        .all(|(_, what)| matches!(what, Allocation::Hole | Allocation::Zero)))
}

impl Disk {
    /// Closes the disk: refuses new IO, waits for what is in flight, flushes, closes every filter
    /// top down, and marks the disk clean. IO fails with [`ErrorKind::Gone`] from then on.
    ///
    /// # Errors
    /// The disk is closed in any case. An error says that it is not clean: the next open recovers.
    pub async fn close(&self) -> Result<()> {
        self.verb("close", |inner| async move {
            let mut control = inner.control.lock().await;
            *sync::lock(&inner.running) = Some("close");
            let result = inner.close_stack(&mut control).await;
            control.lock = None;
            inner.core.set_closed();
            let (severity, text) = match &result {
                Ok(()) => (Severity::Info, "the disk is closed and clean".to_owned()),
                Err(error) => (
                    Severity::Error,
                    format!("the disk was closed unclean: {}", error.to_line()),
                ),
            };
            inner
                .core
                .events
                .send(Notice::of(severity, EventKind::Closed, text));
            result
        })
        .await
    }
}

impl DiskInner {
    async fn close_stack(self: &Arc<Self>, control: &mut Control) -> Result<()> {
        let closed = self.close_gate();
        let mut result = self.drain(0).await;
        if result.is_ok() {
            result = self.flush_chain().await;
        }
        let mut is_clean = result.is_ok();
        let attached: Vec<Attached> = std::mem::take(&mut control.attached);
        let descriptors: Vec<_> = attached
            .iter()
            .map(|one| one.resolved.descriptor.clone())
            .collect();
        for one in &attached {
            if let Err(error) = self.close_layer(one, true).await {
                is_clean = false;
                result = result.and(Err(error));
            }
        }
        if is_clean {
            result = control.device.submit(Io::flush()).await.map(drop);
        }
        control.manifest.clean = result.is_ok();
        control.manifest.layers = Manifest::layers_of(descriptors.iter());
        let bytes = control.manifest.encode();
        let recorded = control
            .sidecar
            .commit(vec![(Manifest::KEY.into(), Some(bytes))])
            .await;
        // Let go of filters and devices: whoever opens the disk next needs their locks.
        let _ = self.install(control);
        self.core.set_closed();
        drop(closed);
        result.and(recorded)
    }
}
