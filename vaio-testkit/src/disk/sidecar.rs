//! [`SimSidecar`] and [`SimDevices`]: the rest of what a host provides to a disk.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use vaio_core::{BlockDevice, DeviceProvider, Error, Result, SidecarStore};

use super::sim_disk::SimDisk;
use crate::{Family, Host, Sim};

/// A sidecar that outlives processes. Clones are the same sidecar.
///
/// A replacement is atomic. If its process dies meanwhile, the old content is there or the new, as
/// the tape says when the next process comes.
#[derive(Clone)]
pub struct SimSidecar(Arc<Store>);

struct Store {
    name: String,
    sim: Sim,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    content: Option<Bytes>,
    /// Replacements under way, oldest first, with who asked.
    pending: BTreeMap<u64, (Host, Bytes)>,
    last: u64,
}

/// A sidecar at one moment: its content, and what it may turn into in a crash.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SidecarSnapshot {
    /// The content; `None` where there is none yet.
    pub content: Option<Bytes>,
    /// Replacements under way, oldest first.
    pub pending: Vec<Bytes>,
}

impl SidecarSnapshot {
    /// Every content that a crash may leave, the old one first.
    pub fn images(&self) -> Vec<Option<Bytes>> {
        let new = self.pending.iter().cloned().map(Some);
        std::iter::once(self.content.clone()).chain(new).collect()
    }
}

impl SimSidecar {
    /// A sidecar with content from before the run, or none.
    pub fn new(sim: &Sim, name: &str, content: Option<Bytes>) -> Self {
        let state = State {
            content,
            ..State::default()
        };
        Self(Arc::new(Store {
            name: name.to_owned(),
            sim: sim.clone(),
            state: Mutex::new(state),
        }))
    }

    /// The sidecar as this process sees it; dead once the process is. First decides what earlier
    /// processes left under way.
    pub fn handle(&self, host: &Host) -> Arc<dyn SidecarStore> {
        let mut state = self.0.lock();
        let left: Vec<u64> = state
            .pending
            .iter()
            .filter(|(_, (by, _))| !by.is_alive())
            .map(|(id, _)| *id)
            .collect();
        for id in left {
            let Some((_, content)) = state.pending.remove(&id) else {
                continue;
            };
            if self
                .0
                .sim
                .tape()
                .flip(Family::Crash, &format!("{}.replaced", self.0.name))
            {
                state.content = Some(content);
            }
        }
        Arc::new(SidecarHandle {
            store: Arc::clone(&self.0),
            host: host.clone(),
        })
    }

    /// The state now.
    pub fn snapshot(&self) -> SidecarSnapshot {
        let state = self.0.lock();
        let pending = state
            .pending
            .values()
            .map(|(_, content)| content.clone())
            .collect();
        SidecarSnapshot {
            content: state.content.clone(),
            pending,
        }
    }

    /// Power is lost: this is the content, and nothing is under way.
    pub fn restore(&self, content: Option<Bytes>) {
        let mut state = self.0.lock();
        state.pending.clear();
        state.content = content;
    }
}

impl fmt::Debug for SimSidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimSidecar")
            .field("name", &self.0.name)
            .finish_non_exhaustive()
    }
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct SidecarHandle {
    store: Arc<Store>,
    host: Host,
}

impl fmt::Debug for SidecarHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SidecarHandle")
            .field("host", &self.host.name())
            .finish_non_exhaustive()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl SidecarStore for SidecarHandle {
    async fn load(&self) -> Result<Option<Bytes>> {
        if !self.host.is_alive() {
            return std::future::pending().await;
        }
        self.store
            .sim
            .event(Some(&self.host), &format!("{}.load", self.store.name))
            .await;
        Ok(self.store.lock().content.clone())
    }

    async fn replace(&self, content: Bytes) -> Result<()> {
        if !self.host.is_alive() {
            return std::future::pending().await;
        }
        let store = Arc::clone(&self.store);
        let id = {
            let mut state = store.lock();
            state.last += 1;
            let id = state.last;
            state.pending.insert(id, (self.host.clone(), content));
            id
        };
        let name = format!("{}.replace", store.name);
        let at_event = Arc::clone(&self.store);
        // Of the host: once it is dead, the next process decides.
        let event = store.sim.event_with(Some(&self.host), &name, move || {
            let mut state = at_event.lock();
            if let Some((_, content)) = state.pending.remove(&id) {
                state.content = Some(content);
            }
        });
        event.detach().await;
        Ok(())
    }
}

/// The devices of one process, by name: what a filter's setting names is a [`SimDisk`].
#[derive(Clone, Debug)]
pub struct SimDevices {
    host: Host,
    disks: BTreeMap<String, SimDisk>,
}

impl SimDevices {
    /// The disks that this process can open, by their names.
    pub fn new(host: &Host, disks: impl IntoIterator<Item = SimDisk>) -> Self {
        let disks = disks
            .into_iter()
            .map(|disk| (disk.name().to_owned(), disk))
            .collect();
        Self {
            host: host.clone(),
            disks,
        }
    }
}

#[async_trait]
impl DeviceProvider for SimDevices {
    async fn open_device(
        &self,
        filter: &str,
        name: &str,
        spec: &str,
    ) -> Result<Arc<dyn BlockDevice>> {
        let disk = self.disks.get(spec).ok_or_else(|| {
            Error::config(format!(
                "no simulated disk of that name, filter={filter} setting={name} disk={spec}"
            ))
        })?;
        Ok(disk.handle(&self.host))
    }
}
