//! [`SharedSidecar`]: a disk's sidecar on storage that every host reaches, fenced like its disk.
//!
//! A replacement is atomic, and under way until the simulator picks its event, whoever asked: that
//! of a dead or stopped host lands late unless it is fenced first.

use std::{
    fmt,
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use vaio_core::{Error, ErrorKind, Result, SidecarStore};

use crate::{Host, Sim};

/// A sidecar. Clones are the same sidecar.
#[derive(Clone)]
pub struct SharedSidecar(Arc<Store>);

struct Store {
    sim: Sim,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    content: Option<Bytes>,
    fence: u64,
}

impl SharedSidecar {
    /// One without content.
    pub fn new(sim: &Sim) -> Self {
        Self(Arc::new(Store {
            sim: sim.clone(),
            state: Mutex::default(),
        }))
    }

    /// The sidecar as the process of that epoch sees it.
    pub fn open(&self, host: &Host, epoch: u64) -> Arc<dyn SidecarStore> {
        Arc::new(Handle {
            store: self.clone(),
            host: host.clone(),
            epoch,
        })
    }

    /// Refuses handles below `epoch` from now on, what they have under way included.
    pub fn fence(&self, epoch: u64) {
        let mut state = self.lock();
        state.fence = state.fence.max(epoch);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SharedSidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSidecar")
    }
}

struct Handle {
    store: SharedSidecar,
    host: Host,
    epoch: u64,
}

impl Handle {
    fn fenced() -> Error {
        Error::new(ErrorKind::Fenced, "another owner has this disk")
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("host", &self.host.name())
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl SidecarStore for Handle {
    async fn load(&self) -> Result<Option<Bytes>> {
        if !self.host.is_alive() {
            return pending().await;
        }
        let sim = &self.store.0.sim;
        sim.event(Some(&self.host), "sidecar.load").await;
        let state = self.store.lock();
        if self.epoch < state.fence {
            return Err(Self::fenced());
        }
        Ok(state.content.clone())
    }

    async fn replace(&self, content: Bytes) -> Result<()> {
        if !self.host.is_alive() {
            return pending().await;
        }
        let done = Arc::new(Mutex::new(false));
        let (slot, store, epoch) = (Arc::clone(&done), self.store.clone(), self.epoch);
        let event = self
            .store
            .0
            .sim
            .event_with(None, "sidecar.replace", move || {
                let mut state = store.lock();
                if epoch >= state.fence {
                    state.content = Some(content);
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = true;
                }
            });
        event.detach().await;
        let is_done = *done.lock().unwrap_or_else(PoisonError::into_inner);
        match is_done {
            _ if !self.host.is_alive() => pending().await,
            true => Ok(()),
            false => Err(Self::fenced()),
        }
    }
}
