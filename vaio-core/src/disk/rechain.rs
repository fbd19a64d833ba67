//! Attach, detach and replace a filter on a running disk: `prepare` (touches no device), close
//! the gate, drain, change the instance, swap the chain, open the gate. Never two instances of
//! one filter, so never two on one cache device. Whatever fails, the old stack serves on.

use std::sync::Arc;

use super::{Control, Disk, DiskInner, contained::Contained, instance::Attached};
use crate::{
    Content, DirtyDisposition, DirtyPolicy, ErrorKind, FilterSpec, Health, Level, OpenReason,
    Phase, Resolved, Result, Verb,
    chain::Chain,
    event::{EventKind, Notice, Severity},
    registry::check_stack,
    sync::lock,
};

impl Disk {
    /// Attaches a filter: at its class's place, below those of its class.
    ///
    /// # Errors
    /// The old stack serves on; only if the sidecar cannot be written after the filter joined, the
    /// new one does, and the error says so. [`ErrorKind::Config`] for an unknown filter, a setting, or a
    /// stack that would be wrong; [`ErrorKind::Refused`] where the filter may not join a running
    /// disk or one with data; [`ErrorKind::TimedOut`] where the disk does not drain.
    pub async fn attach(&self, spec: FilterSpec) -> Result<()> {
        self.verb("attach", |inner| async move {
            let mut control = inner.control.lock().await;
            *lock(&inner.running) = Some("attach");
            inner.refuse_while_held()?;
            inner.attach(&mut control, spec).await
        })
        .await
    }

    /// Detaches a filter; what becomes of data that it holds says `dirty`.
    ///
    /// # Errors
    /// The filter stays. [`ErrorKind::Config`] where there is no such filter,
    /// [`ErrorKind::Refused`] while it holds dirty data beyond what `dirty` allows, or where the
    /// disk's content needs it; else what its `Detach` or the flush says.
    pub async fn detach(&self, name: impl Into<String>, dirty: DirtyDisposition) -> Result<()> {
        let name = name.into();
        self.verb("detach", move |inner| async move {
            let mut control = inner.control.lock().await;
            *lock(&inner.running) = Some("detach");
            inner.refuse_while_held()?;
            inner.detach(&mut control, &name, dirty).await
        })
        .await
    }

    /// Replaces the filter `name` with `spec`: a new version, new settings, or another filter of
    /// the same class. The old instance is closed before the new one opens; if that fails, the
    /// old one is opened again.
    ///
    /// # Errors
    /// As [`attach`](Self::attach). If the old filter cannot be opened again either, the error
    /// says so and IO that needs it fails.
    pub async fn replace(&self, name: impl Into<String>, spec: FilterSpec) -> Result<()> {
        let name = name.into();
        self.verb("replace", move |inner| async move {
            let mut control = inner.control.lock().await;
            *lock(&inner.running) = Some("replace");
            inner.refuse_while_held()?;
            inner.replace(&mut control, &name, spec).await
        })
        .await
    }
}

fn resolve(control: &Control, spec: FilterSpec) -> Result<Resolved> {
    let factory = control.registry.get(&spec.name)?;
    let descriptor = factory.descriptor();
    descriptor.validate()?;
    Ok(Resolved {
        spec,
        factory,
        descriptor,
    })
}

fn position(control: &Control, name: &str) -> Result<usize> {
    let found = control
        .attached
        .iter()
        .position(|one| one.resolved.descriptor.name == name);
    found.ok_or_else(|| {
        let names: Vec<_> = control
            .attached
            .iter()
            .map(|one| one.resolved.descriptor.name)
            .collect();
        crate::Error::config(format!(
            "the disk has no such filter, filter={name} has={names:?}"
        ))
    })
}

impl DiskInner {
    async fn attach(self: &Arc<Self>, control: &mut Control, spec: FilterSpec) -> Result<()> {
        let resolved = resolve(control, spec)?;
        let name: Arc<str> = Arc::from(resolved.descriptor.name);
        let stack = control.attached.iter().map(|one| &one.resolved.descriptor);
        check_stack(stack.chain([&resolved.descriptor]))?;
        let class = resolved.descriptor.class;
        let at = control
            .attached
            .partition_point(|one| one.resolved.descriptor.class <= class);
        self.check_rechain(control, resolved.descriptor.rechain)
            .await
            .map_err(|error| error.with_filter(Arc::clone(&name)))?;
        let settings = self.prepare_layer(control, &resolved, at).await?;
        let is_recorded_first = resolved.descriptor.content != Content::Unchanged;
        let before = *self.chain().0.info(0);

        if is_recorded_first {
            // Leaves less to the one with the gate closed, for which the guest waits.
            self.flush_below(at).await?;
        }
        let closed = self.close_gate();
        self.drain(0).await?;
        // Again, now that nothing moves: a write may have come since the first look.
        self.check_rechain(control, resolved.descriptor.rechain)
            .await
            .map_err(|error| error.with_filter(Arc::clone(&name)))?;
        if is_recorded_first {
            self.flush_below(at).await?;
        }
        let opened = self
            .open_layer(control, resolved, settings, at, OpenReason::Attach)
            .await?;
        let layer = Arc::clone(&opened.layer);
        let policed = self.police(&layer).await;
        control.attached.insert(at, opened);
        let mut done = policed.and_then(|()| self.install(control));
        if done.is_ok() && is_recorded_first {
            done = self.record(control, false).await;
        }
        if let Err(error) = done {
            let opened = control.attached.remove(at);
            self.install(control)?;
            let _ = self.tell(&layer, &Verb::Attach, Phase::Abort).await;
            let _ = self.close_layer(&opened, true).await;
            return Err(error);
        }
        self.commit_or_report(&layer, &Verb::Attach).await;
        drop(closed);
        self.rechained(
            EventKind::Attached,
            "the filter joined the disk",
            &name,
            before,
        );
        self.record(control, false).await
    }

    async fn detach(
        self: &Arc<Self>,
        control: &mut Control,
        name: &str,
        dirty: DirtyDisposition,
    ) -> Result<()> {
        let at = position(control, name)?;
        let descriptor = control.attached[at].resolved.descriptor.clone();
        let layer = Arc::clone(&control.attached[at].layer);
        let is_fit = layer.health.get() == Health::Active;
        self.check_rechain(control, descriptor.rechain)
            .await
            .map_err(|error| error.with_filter(descriptor.name))?;
        self.settle_dirty(&layer, dirty).await?;
        if is_fit && let Err(error) = self.tell(&layer, &Verb::Detach, Phase::Prepare).await {
            let _ = self.tell(&layer, &Verb::Detach, Phase::Abort).await;
            return Err(error);
        }
        let before = *self.chain().0.info(0);
        let closed = self.close_gate();
        let mut ready = self.drain(0).await;
        if ready.is_ok() {
            // What came in since; the gate is closed, so this is the last of it.
            ready = self.settle_dirty(&layer, dirty).await;
        }
        if ready.is_ok() {
            ready = self.check_rechain(control, descriptor.rechain).await;
        }
        if ready.is_ok() && is_fit && descriptor.content != Content::Unchanged {
            ready = self.flush_chain().await;
        }
        if ready.is_ok() {
            // Those above may need what it offers: better to learn of it while it is there.
            ready = self.try_without(control, at);
        }
        if let Err(error) = ready {
            let _ = self.tell(&layer, &Verb::Detach, Phase::Abort).await;
            return Err(error);
        }
        let _ = self.tell(&layer, &Verb::Detach, Phase::Commit).await;
        let removed = control.attached.remove(at);
        // What it says now is reported; it has made its data durable below.
        let _ = self.close_layer(&removed, true).await;
        self.install(control)?;
        let recorded = if descriptor.content == Content::Unchanged {
            Ok(())
        } else {
            self.record(control, false).await
        };
        drop(closed);
        let name: Arc<str> = Arc::from(descriptor.name);
        self.rechained(
            EventKind::Detached,
            "the filter left the disk",
            &name,
            before,
        );
        recorded?;
        self.record(control, false).await
    }

    /// Does with dirty data what the caller said; errors while some would be left.
    async fn settle_dirty(
        self: &Arc<Self>,
        layer: &Arc<crate::chain::Layer>,
        dirty: DirtyDisposition,
    ) -> Result<()> {
        let held = |layer: &Arc<crate::chain::Layer>| layer.state(&self.core).filter.dirty_bytes;
        let bytes = held(layer);
        if bytes == 0 {
            return Ok(());
        }
        let refuse = |bytes: u64| {
            Err(self
                .error(
                    ErrorKind::Refused,
                    format!(
                        "the filter holds dirty data; flush it first, or name the bytes to give \
                         up, dirty_bytes={bytes}"
                    ),
                )
                .with_filter(Arc::clone(&layer.name)))
        };
        match dirty {
            DirtyDisposition::Discard { bytes_max } if bytes <= bytes_max => Ok(()),
            DirtyDisposition::Refuse | DirtyDisposition::Discard { .. } => refuse(bytes),
            DirtyDisposition::Flush => {
                let deadline = self.core.rt.now() + self.core.settings.lifecycle_timeout;
                self.reach(Level::BackingDurable, deadline).await?;
                // While the gate is open new writes may make new dirty data: looked at again
                // when it is closed.
                if self.core.gate.is_closed() && held(layer) > 0 {
                    return refuse(held(layer));
                }
                Ok(())
            }
        }
    }

    async fn replace(
        self: &Arc<Self>,
        control: &mut Control,
        name: &str,
        spec: FilterSpec,
    ) -> Result<()> {
        let at = position(control, name)?;
        let resolved = resolve(control, spec)?;
        let old = &control.attached[at].resolved.descriptor;
        if old.class != resolved.descriptor.class {
            return Err(self.error(
                ErrorKind::Config,
                format!(
                    "a filter is replaced by one of its class; detach and attach instead, \
                     old={name} new={}",
                    resolved.descriptor.name
                ),
            ));
        }
        let others = control.attached.iter().map(|one| &one.resolved.descriptor);
        check_stack(
            others
                .filter(|other| other.name != name)
                .chain([&resolved.descriptor]),
        )?;
        for rule in [old.rechain, resolved.descriptor.rechain] {
            self.check_rechain(control, rule)
                .await
                .map_err(|error| error.with_filter(resolved.descriptor.name))?;
        }
        let is_other = old.name != resolved.descriptor.name;
        let new_name: Arc<str> = Arc::from(resolved.descriptor.name);
        let settings = self.prepare_layer(control, &resolved, at + 1).await?;
        let before = *self.chain().0.info(0);

        let closed = self.close_gate();
        self.drain(0).await?;
        if is_other {
            self.settle_dirty(&control.attached[at].layer, DirtyDisposition::Flush)
                .await?;
        }
        self.try_without(control, at)?;
        let result = self.swap_instance(control, at, resolved, settings).await;
        let recorded = self.record(control, false).await;
        if result.is_ok() {
            let layer = Arc::clone(&control.attached[at].layer);
            self.commit_or_report(&layer, &Verb::Attach).await;
        }
        drop(closed);
        result.and(recorded)?;
        self.rechained(
            EventKind::Replaced,
            "the filter was replaced",
            &new_name,
            before,
        );
        Ok(())
    }

    /// Closes the instance at `at` and opens another in its place; on failure the old one again.
    async fn swap_instance(
        self: &Arc<Self>,
        control: &mut Control,
        at: usize,
        resolved: Resolved,
        settings: crate::Settings,
    ) -> Result<()> {
        let is_fit = control.attached[at].layer.health.get() == Health::Active;
        let closed_old = self.close_layer(&control.attached[at], !is_fit).await;
        if is_fit {
            closed_old?;
        }
        let old = control.attached.remove(at);
        // Lets go of the old instance's devices before the new one opens them.
        self.install(control)?;
        drop(old.layer);
        let old = (old.resolved, old.settings);
        let is_other = old.0.descriptor.name != resolved.descriptor.name;
        let reason = if is_other {
            OpenReason::Attach
        } else {
            OpenReason::Replace
        };
        let is_flushed = if is_other && resolved.descriptor.content != Content::Unchanged {
            self.flush_below(at).await
        } else {
            Ok(())
        };
        let opened = match is_flushed {
            Ok(()) => {
                self.open_layer(control, resolved, settings, at, reason)
                    .await
            }
            Err(error) => Err(error),
        };
        let joined = match opened {
            Ok(opened) => self.join(control, opened, at).await,
            Err(error) => Err(error),
        };
        match joined {
            Ok(()) => Ok(()),
            Err(error) => self.reopen_old(control, old, at, error).await,
        }
    }

    /// Puts an instance that was opened into the chain, or closes it again: the gate must never
    /// open over a chain that lacks it.
    async fn join(
        self: &Arc<Self>,
        control: &mut Control,
        opened: Attached,
        at: usize,
    ) -> Result<()> {
        let mut done = self.police(&opened.layer).await;
        control.attached.insert(at, opened);
        if done.is_ok() {
            done = self.install(control);
        }
        if done.is_err() {
            let opened = control.attached.remove(at);
            let _ = self.close_layer(&opened, true).await;
        }
        done
    }

    /// Tells a new instance of the disk's dirty policy, where it is not the default.
    async fn police(&self, layer: &Arc<crate::chain::Layer>) -> Result<()> {
        let policy = *lock(&self.dirty_policy);
        match Contained::of(&self.core, layer) {
            Some(source) if policy != DirtyPolicy::Allow => source
                .set_policy(policy)
                .await
                .map_err(|error| error.with_filter(Arc::clone(&layer.name))),
            _ => Ok(()),
        }
    }

    /// Whether the stack would stand without the filter at `at`.
    fn try_without(&self, control: &Control, at: usize) -> Result<()> {
        let mut layers: Vec<_> = control
            .attached
            .iter()
            .map(|one| Arc::clone(&one.layer))
            .collect();
        layers.remove(at);
        let (device, counters) = (&control.device, &control.device_counters);
        Chain::new(
            Arc::clone(&self.core),
            layers,
            Arc::clone(device),
            Arc::clone(counters),
        )
        .map(drop)
    }

    async fn reopen_old(
        self: &Arc<Self>,
        control: &mut Control,
        old: (Resolved, crate::Settings),
        at: usize,
        error: crate::Error,
    ) -> Result<()> {
        let name: Arc<str> = Arc::from(old.0.descriptor.name);
        let content = old.0.descriptor.content;
        let reopened = match self
            .open_layer(control, old.0, old.1, at, OpenReason::Replace)
            .await
        {
            Ok(opened) => self.join(control, opened, at).await,
            Err(second) => Err(second),
        };
        match reopened {
            Ok(()) => {
                let layer = Arc::clone(&control.attached[at].layer);
                self.commit_or_report(&layer, &Verb::Open).await;
                Err(error)
            }
            Err(second) => {
                if content != Content::Unchanged {
                    // Nothing can serve this disk's content now.
                    self.core.set_closed();
                }
                Err(self
                    .error(
                        ErrorKind::FilterFault,
                        format!(
                            "the filter could not be replaced, nor the old one opened again: {}; \
                             first: {}",
                            second.to_line(),
                            error.to_line()
                        ),
                    )
                    .with_filter(name))
            }
        }
    }

    fn rechained(&self, kind: EventKind, text: &str, name: &Arc<str>, before: crate::DeviceInfo) {
        let events = &self.core.events;
        events.send(Notice::of(Severity::Info, kind, text).with_filter(name));
        let now = *self.chain().0.info(0);
        if now != before {
            events.send(Notice::of(
                Severity::Info,
                EventKind::Reshaped,
                format!("what the disk offers has changed, before={before:?} now={now:?}"),
            ));
        }
    }
}

impl Disk {
    /// The stack as it is configured: each filter with its settings as given.
    pub async fn stack(&self) -> Vec<FilterSpec> {
        let control = self.inner.control.lock().await;
        control
            .attached
            .iter()
            .map(|one| {
                let settings = one.resolved.spec.settings.clone();
                FilterSpec {
                    name: one.resolved.spec.name.clone(),
                    settings,
                }
            })
            .collect()
    }
}
