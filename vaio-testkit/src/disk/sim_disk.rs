//! [`SimDisk`]: a named medium in a simulated world. It outlives the processes that use it.
//!
//! An IO is in flight from its submission until the simulator picks its event; then it takes
//! effect and is answered. That event belongs to no host: when the process is gone, its mutations
//! in flight still land or not, as the tape says.
//!
//! Invariants: a process that is dead reads and writes nothing more by itself; what it left in
//! flight is decided before the next process gets a handle, or, on a [shared](SimDisk::shared)
//! disk, at the latest when it is fenced.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use vaio_core::{BlockDevice, OpKind, sync::Notify};

use super::{
    cache::{Media, Snapshot},
    fault::{Fault, Faults},
    handle::Handle,
    image::Image,
    journal::Journal,
    mutation::{Moment, MutationId},
    spec::Survivors,
};
use crate::{Family, Host, Sim};

/// Findings that one disk keeps; the first ones matter.
pub const FINDINGS_MAX: usize = 64;

/// How long an IO to [shared](SimDisk::shared) storage may be held up on its way: longer than a
/// cluster waits before it declares a host dead.
pub const HELD_UP: Duration = Duration::from_secs(90);
/// One IO in so many is held up on a tape that draws uniformly.
const HELD_UP_ONE_IN: u32 = 32;

/// Numbers the events of a run, so that moments of several disks compare. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Moments(Arc<AtomicU64>);

impl Moments {
    /// Moments after `at`: for media that have a past.
    pub fn after(at: Moment) -> Self {
        Self(Arc::new(AtomicU64::new(at)))
    }

    /// The next moment; the first is 1.
    pub fn next(&self) -> Moment {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The latest one.
    pub fn now(&self) -> Moment {
        self.0.load(Ordering::Relaxed)
    }
}

/// A simulated disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) sim: Sim,
    pub(super) moments: Moments,
    pub(super) events: Arc<EventNames>,
    pub(super) state: Mutex<State>,
    /// Told when faults end.
    pub(super) quiet: Notify,
}

pub(super) struct State {
    pub(super) media: Media,
    pub(super) faults: Faults,
    pub(super) journal: Journal,
    pub(super) flying: BTreeMap<u64, Flying>,
    pub(super) findings: Vec<String>,
    pub(super) last_ticket: u64,
    pub(super) is_gone: bool,
    /// Handles below this epoch are refused.
    pub(super) fence: u64,
    last_epoch: u64,
    /// Who opened it last.
    owner: Option<Host>,
    is_shared: bool,
}

/// An IO between submission and event.
pub(super) struct Flying {
    pub(super) host: Host,
    pub(super) epoch: u64,
    pub(super) mutation: Option<MutationId>,
    pub(super) entry: u64,
}

/// Names of a disk's events by operation.
type EventNames = [String; OpKind::COUNT];

/// Disks whose names are remembered: worlds come and go, and their disks are called the same.
const NAMES_KEPT_MAX: usize = 32;

fn event_names(disk: &str) -> (Arc<str>, Arc<EventNames>) {
    thread_local! {
        static KNOWN: RefCell<Vec<(Arc<str>, Arc<EventNames>)>> = const { RefCell::new(Vec::new()) };
    }
    KNOWN.with_borrow_mut(|known| {
        if let Some(names) = known.iter().find(|(name, _)| **name == *disk) {
            return names.clone();
        }
        let names = Arc::new(OpKind::ALL.map(|op| format!("{disk}.{op}")));
        let names = (Arc::from(disk), names);
        known.truncate(NAMES_KEPT_MAX - 1);
        known.push(names.clone());
        names
    })
}

impl SimDisk {
    /// Puts a medium into a world. Disks that may lose power together share `moments`.
    pub fn new(sim: &Sim, moments: &Moments, name: &str, media: Media) -> Self {
        let state = State {
            media,
            faults: Faults::default(),
            journal: Journal::default(),
            flying: BTreeMap::new(),
            findings: Vec::new(),
            last_ticket: 0,
            is_gone: false,
            fence: 0,
            last_epoch: 0,
            owner: None,
            is_shared: false,
        };
        let events = event_names(name);
        Self(Arc::new(Shared {
            name: Arc::clone(&events.0),
            sim: sim.clone(),
            moments: moments.clone(),
            events: Arc::clone(&events.1),
            state: Mutex::new(state),
            quiet: Notify::default(),
        }))
    }

    /// Makes it a disk that several hosts reach: IO of a dead host may land until that host is
    /// fenced, however late, and any IO may be [held up](HELD_UP) on its way.
    #[must_use]
    pub fn shared(self) -> Self {
        self.0.lock().is_shared = true;
        self
    }

    /// Where its moments come from.
    pub fn moments(&self) -> &Moments {
        &self.0.moments
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its name, to be kept.
    pub(crate) fn shared_name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// The device as this process sees it; dead once the process is.
    ///
    /// First decides what dead processes left: in flight, as the tape says; what failed, by what the
    /// disk shows (`Media::hand_over`). Not so if the disk is [shared](Self::shared).
    pub fn handle(&self, host: &Host) -> Arc<dyn BlockDevice> {
        self.open(host).0
    }

    /// The same, with the handle's epoch for [`fence`](Self::fence).
    pub fn open(&self, host: &Host) -> (Arc<dyn BlockDevice>, u64) {
        let mut state = self.0.lock();
        if !state.is_shared {
            self.0.settle(&mut state, |flying| !flying.host.is_alive());
            if (state.owner.replace(host.clone())).is_some_and(|owner| !owner.is_alive()) {
                state.media.hand_over();
            }
        }
        state.last_epoch += 1;
        let epoch = state.last_epoch;
        drop(state);
        (
            Arc::new(Handle::new(self.clone(), host.clone(), epoch)),
            epoch,
        )
    }

    /// Refuses all handles below `epoch` from now on. What they have in flight lands now or never,
    /// as the tape says.
    pub fn fence(&self, epoch: u64) {
        let mut state = self.0.lock();
        state.fence = state.fence.max(epoch);
        self.0.settle(&mut state, |flying| flying.epoch < epoch);
    }

    /// Decides what dead processes left in flight, as [`handle`](Self::handle) does.
    pub fn settle(&self) {
        self.0
            .settle(&mut self.0.lock(), |flying| !flying.host.is_alive());
    }

    /// The process that had the disk is gone, though its host lives: as
    /// [`Media::hand_over`](super::Media::hand_over).
    pub fn hand_over(&self) {
        self.0.lock().media.hand_over();
    }

    /// The medium now: cheap.
    pub fn snapshot(&self) -> Snapshot {
        self.0.lock().media.snapshot()
    }

    /// A copy of the medium that goes its own way: cheap.
    pub fn media(&self) -> Media {
        self.0.lock().media.clone()
    }

    /// Loses power: the disk holds `image` from now on, one of the images that a
    /// [`CrashPoint`](super::CrashPoint) of its [`snapshot`](Self::snapshot) gives; `kept` says
    /// what survived, for the journal. Kill the processes that use it first.
    pub fn lose_power(&self, image: Image, kept: Option<&Survivors>) {
        let mut guard = self.0.lock();
        let state = &mut *guard;
        let info = *state.media.info();
        let pending: Vec<_> = state.media.pending().map(|m| (m.id(), m.count())).collect();
        let in_doubt: Vec<_> = (state.media.pending().filter(|m| m.end().is_none()))
            .flat_map(|m| m.block()..m.block() + m.count())
            .map(|block| {
                let len = u64::from(info.logical_block);
                vaio_core::Extent::new(block * len, len)
            })
            .collect();
        state.journal.crash(&pending, kept);
        state.flying.clear();
        state.media.lose_power(image);
        state.faults.after_power_cut(&in_doubt, &mut |n| {
            let name = format!("{}.latent", self.0.name);
            self.0.sim.tape().choose(n, Family::Fault, &name)
        });
    }

    /// Changes how the disk fails.
    pub fn faults<R>(&self, change: impl FnOnce(&mut Faults) -> R) -> R {
        change(&mut self.0.lock().faults)
    }

    /// Ends all faults: what hangs goes on, what is gone stays gone.
    pub fn quiet(&self) {
        self.0.lock().faults.quiet();
        self.0.quiet.notify_all();
    }

    /// Takes the device away: every IO fails with [`Gone`](vaio_core::ErrorKind::Gone).
    pub fn remove(&self) {
        self.0.lock().is_gone = true;
    }

    /// Brings it back, as it was.
    pub fn restore(&self) {
        self.0.lock().is_gone = false;
    }

    /// What was asked of the disk that no device has to answer: IO that is misaligned, past the
    /// end, too large, or of an operation it does not do. Each is a bug above.
    pub fn findings(&self) -> Vec<String> {
        self.0.lock().findings.clone()
    }

    /// A copy of what was asked and what became of it.
    pub fn journal(&self) -> Journal {
        self.0.lock().journal.clone()
    }

    /// IOs in flight.
    pub fn in_flight(&self) -> usize {
        self.0.lock().flying.len()
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock and has changed half of something.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides IO in flight that has no process behind it any more: lands (1) or not (0).
    fn settle(&self, state: &mut State, which: impl Fn(&Flying) -> bool) {
        let found: Vec<_> = state
            .flying
            .iter()
            .filter(|(_, f)| which(f))
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in found {
            let Some(flying) = state.flying.remove(&ticket) else {
                continue;
            };
            self.decide_orphan(state, &flying);
        }
    }

    pub(super) fn decide_orphan(&self, state: &mut State, flying: &Flying) {
        let Some(id) = flying.mutation else {
            return;
        };
        if self
            .sim
            .tape()
            .flip(Family::Crash, &format!("{}.orphan", self.name))
        {
            let at = self.moments.next();
            state.media.complete(id, at);
            state.journal.end(flying.entry, (self.sim.now(), at), true);
        } else {
            state.media.abandon(id);
        }
    }

    /// Whether an IO is held up on its way: on shared storage only, as the tape says.
    pub(super) fn holds_up(&self) -> bool {
        if !self.lock().is_shared {
            return false;
        }
        let name = format!("{}.held-up", self.name);
        self.sim.tape().choose(HELD_UP_ONE_IN, Family::Net, &name) == 1
    }

    pub(super) fn fault_name(&self, op: OpKind) -> &str {
        &self.events[op as usize]
    }
}

impl State {
    pub(super) fn find(&mut self, finding: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    pub(super) fn decide(
        &mut self,
        shared: &Shared,
        op: OpKind,
        extent: vaio_core::Extent,
    ) -> Option<Fault> {
        let tape = shared.sim.tape();
        let name = shared.fault_name(op);
        self.faults
            .decide(op, extent, &mut |n| tape.choose(n, Family::Fault, name))
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk")
            .field("name", &self.0.name)
            .finish_non_exhaustive()
    }
}
