//! The life of one filter instance: prepare, open, life-cycle calls, close.

use std::{collections::BTreeMap, sync::Arc};

use super::{Control, DiskInner, bounded};
use crate::{
    AttachContext, Error, ErrorKind, Health, Lifecycle, OpenReason, Outcome, Phase, Resolved,
    Result, RuntimeExt, Settings, Verb,
    chain::{Chain, Layer, LayerHealth},
    context::{Lower, Tasks, World},
    event::{EventKind, Notice, Severity},
    stats::LayerCounters,
    sync::lock,
};

/// How long recovery in a filter's `open` may take.
const OPEN_LIMIT: std::time::Duration = std::time::Duration::from_mins(10);

/// A filter instance on the disk.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) resolved: Resolved,
    pub(super) settings: Settings,
    pub(super) layer: Arc<Layer>,
    pub(super) tasks: OwnTasks,
    pub(super) instance: u64,
}

/// The tasks of an instance, ended with it however it ends.
#[derive(Debug)]
pub(super) struct OwnTasks(Arc<Tasks>);

impl Drop for OwnTasks {
    fn drop(&mut self) {
        self.0.stop();
        self.0.kill();
    }
}

impl DiskInner {
    /// The context of an instance over the layers `below`.
    fn context(
        self: &Arc<Self>,
        control: &Control,
        resolved: &Resolved,
        settings: &Settings,
        below: &Chain,
        how: &Opening,
    ) -> AttachContext {
        let name: Arc<str> = Arc::from(resolved.descriptor.name);
        AttachContext {
            inner: Arc::new(World {
                core: Arc::clone(&self.core),
                settings: settings.clone(),
                below: *below.info(0),
                reason: how.reason,
                generation: control.manifest.generation,
                epoch: control.ownership,
                sidecar: control.sidecar.scope(&name),
                devices: how.devices.clone(),
                lower: Lower::new(
                    self,
                    how.instance,
                    Arc::clone(&name),
                    resolved.descriptor.needs.reserved_slots,
                    resolved.descriptor.ops,
                ),
                tasks: Arc::clone(&how.tasks),
                filter: name,
            }),
        }
    }

    fn chain_below(&self, control: &Control, from: usize) -> Result<Arc<Chain>> {
        let layers = control.attached[from..]
            .iter()
            .map(|one| Arc::clone(&one.layer))
            .collect();
        let mut chain = Chain::new(
            Arc::clone(&self.core),
            layers,
            Arc::clone(&control.device),
            Arc::clone(&control.device_counters),
        )?;
        chain.is_part = true;
        Ok(Arc::new(chain))
    }

    /// Types the settings and asks the factory whether it can; touches no device. `at` is the
    /// place in the chain.
    pub(super) async fn prepare_layer(
        self: &Arc<Self>,
        control: &Control,
        resolved: &Resolved,
        at: usize,
    ) -> Result<Settings> {
        let name = resolved.descriptor.name;
        let settings = Settings::parse(resolved.descriptor.settings, &resolved.spec.settings)
            .map_err(|error| error.with_filter(name))?;
        let below = self.chain_below(control, at)?;
        let how = Opening::new(0, OpenReason::Attach);
        let cx = self.context(control, resolved, &settings, &below, &how);
        let factory = Arc::clone(&resolved.factory);
        let limit = self.core.settings.lifecycle_timeout;
        bounded(&self.core, "prepare", limit, async move {
            factory.prepare(&cx).await
        })
        .await
        .map_err(|error| error.with_filter(name))?;
        Ok(settings)
    }

    /// Opens an instance above the layers from `at` on. On failure nothing of it is left.
    pub(super) async fn open_layer(
        self: &Arc<Self>,
        control: &Control,
        resolved: Resolved,
        settings: Settings,
        at: usize,
        reason: OpenReason,
    ) -> Result<Attached> {
        let name = resolved.descriptor.name;
        let slots = usize::from(resolved.descriptor.needs.reserved_slots);
        self.core.take_slots(slots)?;
        let mut how = Opening::new(self.core.take_ids(1), reason);
        let opened = self
            .try_open(control, &resolved, &settings, at, &mut how)
            .await;
        match opened {
            Ok(layer) => {
                how.tasks.belong_to(&self.core, &layer);
                let Opening {
                    tasks, instance, ..
                } = how;
                Ok(Attached {
                    resolved,
                    settings,
                    layer,
                    tasks: OwnTasks(tasks),
                    instance,
                })
            }
            Err(error) => {
                how.tasks.stop();
                how.tasks.kill();
                lock(&self.places).remove(&how.instance);
                self.core.give_slots(slots);
                Err(error.with_filter(name))
            }
        }
    }

    async fn try_open(
        self: &Arc<Self>,
        control: &Control,
        resolved: &Resolved,
        settings: &Settings,
        at: usize,
        how: &mut Opening,
    ) -> Result<Arc<Layer>> {
        for need in resolved.descriptor.needs.devices {
            let spec = settings.text(need.name).ok_or_else(|| {
                Error::config(format!("the filter needs a device, setting={}", need.name))
            })?;
            let device = control
                .devices
                .open_device(resolved.descriptor.name, need.name, spec)
                .await?;
            let capacity = device.info().capacity;
            if capacity < need.capacity_min {
                return Err(Error::config(format!(
                    "the filter's device is too small, device={} capacity={capacity} capacity_min={}",
                    need.name, need.capacity_min
                )));
            }
            if how.reason == OpenReason::Unclean {
                // What a killed process left unflushed is readable now, and a power cut could
                // still take it back: make it durable before anything is answered from it.
                device.submit(crate::Io::flush()).await?;
            }
            how.devices.insert(need.name, device);
        }
        let below = self.chain_below(control, at)?;
        lock(&self.places).insert(how.instance, (Arc::clone(&below), 0));
        let cx = self.context(control, resolved, settings, &below, how);
        let factory = Arc::clone(&resolved.factory);
        let (filter, hooks) = bounded(&self.core, "open", OPEN_LIMIT, async move {
            let filter = factory.open(cx).await?;
            let hooks = Arc::clone(&filter).hooks();
            Ok((filter, hooks))
        })
        .await?;
        Ok(Arc::new(Layer {
            name: Arc::from(resolved.descriptor.name),
            is_never: resolved.descriptor.bypass == crate::BypassSafety::Never,
            descriptor: resolved.descriptor.clone(),
            filter,
            hooks,
            health: Arc::<LayerHealth>::default(),
            counters: Arc::<LayerCounters>::default(),
        }))
    }

    /// One life-cycle call: bounded, its panic caught and blamed. A filter that is bypassed is
    /// not asked.
    pub(super) async fn tell(
        &self,
        layer: &Arc<Layer>,
        verb: &Verb,
        phase: Phase,
    ) -> Result<Outcome> {
        if layer.health.get() == Health::Bypassed {
            return Ok(Outcome::Done);
        }
        let limit = self.core.settings.lifecycle_timeout;
        let deadline = self.core.rt.now() + limit;
        let (called, verb_value) = (Arc::clone(layer), verb.clone());
        let result = bounded(&self.core, "lifecycle", limit, async move {
            called
                .filter
                .lifecycle(Lifecycle::new(&verb_value, phase, deadline))
                .await
        })
        .await;
        let Err(error) = result else { return result };
        let text = format!(
            "{}, verb={} phase={}",
            error.message(),
            verb.name(),
            phase.name()
        );
        let is_fault = error.kind() == ErrorKind::FilterFault;
        if is_fault && layer.blame(&self.core, EventKind::FilterPanicked, &text) {
            // An observer is out of the path now; what it would have said does not matter.
            return Ok(Outcome::Done);
        }
        Err(error.with_filter(Arc::clone(&layer.name)))
    }

    /// Ends an instance: `Close` in two phases, then its tasks. With `force` nothing that it says
    /// keeps it.
    ///
    /// # Errors
    /// What it said. With `force` it is closed all the same, but not in order.
    pub(super) async fn close_layer(&self, one: &Attached, force: bool) -> Result<()> {
        let prepared = self.tell(&one.layer, &Verb::Close, Phase::Prepare).await;
        if prepared.is_err() && !force {
            let _ = self.tell(&one.layer, &Verb::Close, Phase::Abort).await;
            return prepared.map(drop);
        }
        let committed = self.tell(&one.layer, &Verb::Close, Phase::Commit).await;
        let closed = prepared.and(committed).map(drop);
        if let Err(error) = &closed {
            let text = format!("the filter's close failed and stands: {}", error.to_line());
            self.core.events.send(
                Notice::of(Severity::Warning, EventKind::VerbAborted, text)
                    .with_filter(&one.layer.name),
            );
        }
        self.end_tasks(one).await;
        lock(&self.places).remove(&one.instance);
        self.core
            .give_slots(one.resolved.descriptor.needs.reserved_slots.into());
        if force { closed } else { Ok(()) }
    }

    async fn end_tasks(&self, one: &Attached) {
        one.tasks.0.stop();
        let rt = self.rt();
        let deadline = rt.now() + self.core.settings.lifecycle_timeout;
        if rt.timeout_at(deadline, one.tasks.0.ended()).await.is_some() {
            return;
        }
        one.tasks.0.kill();
        self.core.events.send(
            Notice::of(
                Severity::Warning,
                EventKind::Filter,
                "background tasks did not end when the instance closed; they were dropped",
            )
            .with_filter(&one.layer.name),
        );
        let deadline = rt.now() + self.core.settings.lifecycle_timeout;
        let _ = rt.timeout_at(deadline, one.tasks.0.ended()).await;
    }
}

/// How an instance is being opened.
struct Opening {
    instance: u64,
    reason: OpenReason,
    devices: BTreeMap<&'static str, Arc<dyn crate::BlockDevice>>,
    tasks: Arc<Tasks>,
}

impl Opening {
    fn new(instance: u64, reason: OpenReason) -> Self {
        Self {
            instance,
            reason,
            devices: BTreeMap::new(),
            tasks: Arc::default(),
        }
    }
}
