//! [`LeaseStore`]: who owns a disk, kept apart from all hosts, and [`Lease`]: what an owner holds.
//!
//! The store offers a read and a compare-and-swap, and its answers get lost: [`Swap::Unknown`]
//! leaves open what happened. An owner raises its beat; a contender takes over when *it* has seen
//! the beat unchanged for the lease's length on its own clock, or at once if the tape lets the
//! lease expire early: a lease alone proves nothing about an old owner, only a fence does.
//!
//! Invariants: epochs strictly rise, one owner per epoch; an owner that could not renew for the
//! lease's length, by its own clock, says that its [lock](Lease::lock) is lost.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use vaio_core::{DiskLock, Instant, RuntimeExt, sync};

use crate::{Family, Host, Sim};

/// Tries of a swap whose answer was lost, before the holder gives up.
pub const TRIES_MAX: u32 = 16;
/// One answer in so many is lost on a tape that draws uniformly.
const TROUBLE_ONE_IN: u32 = 16;

/// What the store knows of the disk.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Record {
    /// Rises with every owner.
    pub epoch: u64,
    /// The owner's host and a number of its own; `None`: free.
    pub owner: Option<(String, u64)>,
    /// Raised by the owner as long as it lives.
    pub beat: u64,
    /// Whether the replica has everything that the guest was told is durable.
    pub in_sync: bool,
    /// The side that holds the disk's content, for disks without shared storage.
    pub home: Option<String>,
}

/// How a compare-and-swap ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// Done; the record's version now.
    Done(u64),
    /// Not done: the record is another one.
    Conflict(u64, Record),
    /// No answer came: done or not.
    Unknown,
}

/// The store. Clones are the same store; it survives every host.
#[derive(Clone)]
pub struct LeaseStore(Arc<Store>);

struct Store {
    sim: Sim,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    version: u64,
    record: Record,
    cut: BTreeSet<String>,
}

impl LeaseStore {
    /// A store in which the disk is free.
    pub fn new(sim: &Sim) -> Self {
        Self(Arc::new(Store {
            sim: sim.clone(),
            state: Mutex::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts a host off the store.
    pub fn cut(&self, host: &str) {
        self.lock().cut.insert(host.to_owned());
    }

    /// Lets a host reach it again.
    pub fn heal(&self, host: &str) {
        self.lock().cut.remove(host);
    }

    /// The record now, for the test itself.
    pub fn peek(&self) -> Record {
        self.lock().record.clone()
    }

    /// Ends the owner's lease early, as a store does whose clock is ahead, or an operator who
    /// believes that a host is dead: the owner finds out when it renews.
    pub fn expire(&self) {
        let mut state = self.lock();
        state.version += 1;
        state.record.owner = None;
    }

    fn is_cut(&self, host: &Host) -> bool {
        self.lock().cut.contains(host.name())
    }

    /// Reads the record with its version; `None`: no answer came.
    pub async fn read(&self, host: &Host) -> Option<(u64, Record)> {
        self.0.sim.event(Some(host), "lease.read").await;
        if self.is_cut(host) {
            return None;
        }
        let state = self.lock();
        Some((state.version, state.record.clone()))
    }

    /// Replaces the record of `version`.
    ///
    /// # Panics
    /// If its epoch is below the one that it replaces.
    pub async fn swap(&self, host: &Host, version: u64, record: Record) -> Swap {
        let tape = self.0.sim.tape();
        let trouble = tape.choose(TROUBLE_ONE_IN, Family::Net, "lease.swap");
        let answer = Arc::new(Mutex::new(Swap::Unknown));
        let (store, slot) = (self.clone(), Arc::clone(&answer));
        let is_sent = trouble != 1 && !self.is_cut(host);
        // Of no host: a request under way outlives who sent it.
        let event = self.0.sim.event_with(None, "lease.swap", move || {
            if !is_sent {
                return;
            }
            let mut state = store.lock();
            let result = if state.version == version {
                assert!(
                    record.epoch >= state.record.epoch,
                    "an epoch never falls, epoch={}",
                    record.epoch
                );
                state.version += 1;
                state.record = record;
                Swap::Done(state.version)
            } else {
                Swap::Conflict(state.version, state.record.clone())
            };
            drop(state);
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = result;
        });
        event.detach().await;
        if trouble == 2 || self.is_cut(host) {
            return Swap::Unknown;
        }
        answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl fmt::Debug for LeaseStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("LeaseStore")
            .field("version", &state.version)
            .field("record", &state.record)
            .finish_non_exhaustive()
    }
}

/// Why the disk could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOwner {
    /// The store does not answer.
    #[error("the lease store does not answer")]
    Unreachable,
    /// Someone else has it.
    #[error("the disk has another owner, epoch={0}")]
    Taken(u64),
}

/// Ownership of the disk at one epoch. Clones are the same ownership.
#[derive(Clone)]
pub struct Lease(Arc<Held>);

struct Held {
    store: LeaseStore,
    host: Host,
    nonce: u64,
    epoch: u64,
    length: Duration,
    state: Mutex<HeldState>,
    /// One change at a time: each builds on the version before.
    changing: sync::Mutex<()>,
}

struct HeldState {
    version: u64,
    record: Record,
    valid_until: Instant,
    is_lost: bool,
    /// The last change happened or not.
    is_unsure: bool,
}

impl Lease {
    /// Takes the disk: at once where it is free, else when the owner's beat has stood still for
    /// `length` on this host's clock, or the tape says that its lease expired early.
    ///
    /// # Errors
    /// The store does not answer, or the owner lives, or another contender was first.
    pub async fn acquire(
        store: &LeaseStore,
        host: &Host,
        length: Duration,
    ) -> Result<Self, NotOwner> {
        let nonce = host.rt().entropy() ^ u64::from(host.incarnation());
        let (mut version, mut seen) = store.read(host).await.ok_or(NotOwner::Unreachable)?;
        let is_early =
            seen.owner.is_some() && store.0.sim.tape().choose(4, Family::Net, "lease.expire") == 1;
        if seen.owner.is_some() && !is_early {
            host.rt().sleep(length).await;
            let (later, now) = store.read(host).await.ok_or(NotOwner::Unreachable)?;
            if (now.epoch, now.beat) != (seen.epoch, seen.beat) && now.owner.is_some() {
                return Err(NotOwner::Taken(now.epoch));
            }
            (version, seen) = (later, now);
        }
        let started = host.rt().now();
        let record = Record {
            epoch: seen.epoch + 1,
            owner: Some((host.name().to_owned(), nonce)),
            beat: 0,
            ..seen
        };
        let version = settle(store, host, version, &record, nonce).await?;
        Ok(Self(Arc::new(Held {
            store: store.clone(),
            host: host.clone(),
            nonce,
            epoch: record.epoch,
            length,
            state: Mutex::new(HeldState {
                version,
                record,
                valid_until: started + length,
                is_lost: false,
                is_unsure: false,
            }),
            changing: sync::Mutex::new(()),
        })))
    }

    fn lock_state(&self) -> MutexGuard<'_, HeldState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The owner's epoch.
    pub fn epoch(&self) -> u64 {
        self.0.epoch
    }

    /// What the owner last recorded.
    pub fn record(&self) -> Record {
        self.lock_state().record.clone()
    }

    /// Whether [`record`](Self::record) is what the store has: false while a change is under way, or
    /// its outcome is open.
    pub fn is_sure(&self) -> bool {
        !self.lock_state().is_unsure
    }

    /// Changes the record while it is still this owner's, and so renews the lease.
    ///
    /// # Errors
    /// It is not, or the store does not answer: then the change happened or not.
    pub async fn change(&self, change: impl Fn(&mut Record)) -> Result<(), NotOwner> {
        let held = &self.0;
        let _alone = held.changing.lock().await;
        self.reread().await?;
        let (version, mut record) = {
            let state = self.lock_state();
            if state.is_lost {
                return Err(NotOwner::Taken(state.record.epoch));
            }
            (state.version, state.record.clone())
        };
        record.beat += 1;
        change(&mut record);
        let started = held.host.rt().now();
        self.lock_state().is_unsure = true;
        let result = settle(&held.store, &held.host, version, &record, held.nonce).await;
        let mut state = self.lock_state();
        match result {
            Ok(version) => {
                state.version = version;
                state.record = record;
                state.valid_until = started + held.length;
                state.is_unsure = false;
                Ok(())
            }
            Err(error) => {
                state.is_lost |= matches!(error, NotOwner::Taken(_));
                Err(error)
            }
        }
    }

    /// Finds out what became of a change whose answer was lost for good.
    async fn reread(&self) -> Result<(), NotOwner> {
        if !self.lock_state().is_unsure {
            return Ok(());
        }
        let held = &self.0;
        let read = held.store.read(&held.host).await;
        let (version, now) = read.ok_or(NotOwner::Unreachable)?;
        let mut state = self.lock_state();
        if now.epoch == held.epoch && now.owner == state.record.owner {
            (state.version, state.record, state.is_unsure) = (version, now, false);
        } else {
            state.is_lost = true;
        }
        Ok(())
    }

    /// Renews the lease three times in its length as long as it is this host's.
    pub fn keep(&self) {
        let lease = self.clone();
        self.0.host.spawn("lease.keep", async move {
            loop {
                lease.0.host.rt().sleep(lease.0.length / 3).await;
                if matches!(lease.change(|_| {}).await, Err(NotOwner::Taken(_))) {
                    return;
                }
            }
        });
    }

    /// Gives the disk back.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    pub async fn release(&self) -> Result<(), NotOwner> {
        self.change(|record| record.owner = None).await?;
        self.lock_state().is_lost = true;
        Ok(())
    }

    /// Whether the lease is this host's by its own clock.
    pub fn is_held(&self) -> bool {
        let state = self.lock_state();
        !state.is_lost && self.0.host.rt().now() < state.valid_until
    }

    /// The lease as the lock of a disk: held while [`is_held`](Self::is_held).
    pub fn lock(&self) -> Box<dyn DiskLock> {
        Box::new(LeaseLock(self.clone()))
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("host", &self.0.host.name())
            .field("epoch", &self.0.epoch)
            .finish_non_exhaustive()
    }
}

/// Swaps until the outcome is known. A lost answer is settled by reading: the owner's nonce and
/// beat say whether the record is the one that was sent.
async fn settle(
    store: &LeaseStore,
    host: &Host,
    version: u64,
    record: &Record,
    nonce: u64,
) -> Result<u64, NotOwner> {
    for _ in 0..TRIES_MAX {
        match store.swap(host, version, record.clone()).await {
            Swap::Done(version) => return Ok(version),
            Swap::Conflict(version, now) => return ours(version, &now, record, nonce),
            Swap::Unknown => {
                let Some((now_version, now)) = store.read(host).await else {
                    continue;
                };
                if now_version != version {
                    return ours(now_version, &now, record, nonce);
                }
            }
        }
    }
    Err(NotOwner::Unreachable)
}

fn ours(version: u64, now: &Record, sent: &Record, nonce: u64) -> Result<u64, NotOwner> {
    let is_ours = now == sent && sent.owner.as_ref().is_none_or(|owner| owner.1 == nonce);
    if is_ours {
        Ok(version)
    } else {
        Err(NotOwner::Taken(now.epoch))
    }
}

/// See [`Lease::lock`].
#[derive(Debug)]
struct LeaseLock(Lease);

impl DiskLock for LeaseLock {
    fn is_held(&self) -> bool {
        self.0.is_held()
    }
}
