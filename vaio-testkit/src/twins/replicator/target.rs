//! [`Target`]: applies what the newest owner sends, and nothing else (N7). An owner in the same
//! process is one of the older ones: what it has in flight is fenced at the disk.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use vaio_core::{BlockDevice, BlockDeviceExt, Result, RuntimeExt, SidecarStore, sync};

use super::{Message, Session};
use crate::{
    disk::SimDisk,
    sim::Host,
    world::{End, Link},
    zoo::Bug,
};

/// How long the epoch stays in memory only, for the bug.
const LAZY: Duration = Duration::from_secs(5);

/// The target of one process. It serves until the process dies.
#[derive(Debug)]
pub struct Target {
    host: Host,
    medium: SimDisk,
    /// As the newest epoch's target sees it.
    disk: Mutex<Arc<dyn BlockDevice>>,
    meta: Arc<dyn SidecarStore>,
    /// The newest that is known.
    newest: Mutex<Session>,
    /// One record at a time, and none while a session becomes the newest.
    applying: sync::Mutex<()>,
    bug: Option<Bug>,
}

impl Target {
    /// Starts from what an earlier process left: `meta` has the newest epoch.
    ///
    /// # Errors
    /// As `meta` and the disk.
    pub async fn start(
        host: &Host,
        medium: &SimDisk,
        meta: Arc<dyn SidecarStore>,
        bug: Option<Bug>,
    ) -> Result<Arc<Self>> {
        let disk = opened(medium, host);
        let known = meta.load().await?;
        let epoch = known
            .and_then(|bytes| Some(u64::from_le_bytes(bytes[..].try_into().ok()?)))
            .unwrap_or(0);
        Ok(Arc::new(Self {
            host: host.clone(),
            medium: medium.clone(),
            disk: Mutex::new(disk),
            meta,
            newest: Mutex::new(Session { epoch, number: 0 }),
            applying: sync::Mutex::new(()),
            bug,
        }))
    }

    fn newest(&self) -> MutexGuard<'_, Session> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self) -> Arc<dyn BlockDevice> {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&disk)
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Takes connections until the process dies.
    pub async fn serve(self: Arc<Self>, link: Link<Message>) {
        loop {
            let end = link.accept(&self.host).await;
            let target = Arc::clone(&self);
            self.host.spawn("target.connection", async move {
                // Whatever ends it, the source dials again.
                let _ = target.connection(&end).await;
                end.break_off();
            });
        }
    }

    /// From now on nothing of an older owner is applied, and what was applied is durable: the disk
    /// may be read.
    ///
    /// # Errors
    /// As the disk and `meta`; a newer owner is known.
    pub async fn seal(&self, epoch: u64) -> Result<()> {
        let number = 0;
        self.raise(Session { epoch, number }).await?;
        self.disk().flush().await
    }

    async fn raise(&self, session: Session) -> Result<()> {
        let _alone = self.applying.lock().await;
        let before = *self.newest();
        if session <= before {
            return Ok(());
        }
        *self.newest() = session;
        if session.epoch == before.epoch {
            return Ok(());
        }
        let disk = opened(&self.medium, &self.host);
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = disk;
        let content = Bytes::copy_from_slice(&session.epoch.to_le_bytes());
        if self.has(Bug::EpochLazy) {
            let (meta, rt) = (Arc::clone(&self.meta), self.host.rt());
            self.host.spawn("target.lazy", async move {
                rt.sleep(LAZY).await;
                let _ = meta.replace(content).await;
            });
            return Ok(());
        }
        // N7: before anyone is answered.
        self.meta.replace(content).await
    }

    /// Whether a record of this session may change anything.
    fn accepts(&self, session: Session) -> bool {
        let newest = *self.newest();
        let is_epoch = session.epoch == newest.epoch || self.has(Bug::OldEpochApplied);
        let is_session = session.number == newest.number
            || self.has(Bug::OldSessionApplied)
            || session.epoch != newest.epoch;
        is_epoch && is_session
    }

    async fn connection(&self, end: &End<Message>) -> Option<()> {
        let Message::Hello(session) = end.recv().await.ok()? else {
            return None;
        };
        if session < *self.newest() || self.raise(session).await.is_err() {
            return end.send(Message::Refused).ok();
        }
        end.send(Message::Welcome).ok()?;
        loop {
            let answer = match end.recv().await.ok()? {
                Message::Write {
                    session,
                    seq,
                    offset,
                    data,
                } => {
                    let _alone = self.applying.lock().await;
                    if !self.accepts(session) {
                        return end.send(Message::Refused).ok();
                    }
                    match self.disk().write(offset, data).await {
                        Ok(()) => Message::Written { seq },
                        Err(_) => Message::Nack,
                    }
                }
                Message::Flush { seq } if self.has(Bug::FlushAckedEarly) => {
                    end.send(Message::Flushed { seq }).ok()?;
                    let _ = self.disk().flush().await;
                    continue;
                }
                Message::Flush { seq } => match self.disk().flush().await {
                    Ok(()) => Message::Flushed { seq },
                    Err(_) => Message::Nack,
                },
                _ => return None,
            };
            // The source may be gone; what it sent counts all the same.
            let _ = end.send(answer);
        }
    }
}

/// Opens the disk and fences whoever had it.
fn opened(medium: &SimDisk, host: &Host) -> Arc<dyn BlockDevice> {
    let (disk, epoch) = medium.open(host);
    medium.fence(epoch);
    disk
}
