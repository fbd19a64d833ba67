//! [`Host`]: one process of the simulated world, and the `Runtime` that it gives to what runs in
//! it.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use vaio_core::{BoxFuture, Instant, Rt, Runtime, WallTime};

use super::{Shared, clock::Sleep, panic_text, trace::StepKind};
use crate::tape::{Family, mix};

/// The wall clock of a host without skew at the start of a run: 2026-01-01 UTC.
const WALL_START: u64 = 1_767_225_600_000_000_000;
/// Streams of entropy that the tape can choose from, so that seeds differ in identities too.
const ENTROPY_STREAMS: u32 = 1 << 16;

/// A process. Clones are the same process; [`restart`](Host::restart) gives a new one of the same
/// name.
#[derive(Clone)]
pub struct Host(Arc<HostCell>);

pub(super) struct HostCell {
    shared: Arc<Shared>,
    index: u32,
    incarnation: u32,
    name: Arc<str>,
    is_alive: AtomicBool,
    is_paused: AtomicBool,
    skew: AtomicI64,
    /// 0 = the stream is not chosen yet.
    entropy: AtomicU64,
}

impl Host {
    pub(super) fn start(shared: &Arc<Shared>, name: Arc<str>, incarnation: u32, skew: i64) -> Self {
        let mut core = shared.lock();
        assert!(!core.is_closed(), "the simulator is gone");
        let cell = Arc::new(HostCell {
            shared: Arc::clone(shared),
            index: u32::try_from(core.hosts.len()).expect("hosts fit in memory"),
            incarnation,
            name,
            is_alive: AtomicBool::new(true),
            is_paused: AtomicBool::new(false),
            skew: AtomicI64::new(skew),
            entropy: AtomicU64::new(0),
        });
        core.hosts.push(Arc::clone(&cell));
        Self(cell)
    }

    /// Time, tasks and chance in this process. A dead host's runtime drops what is spawned, and
    /// its timers and offloaded work never end.
    pub fn rt(&self) -> Rt {
        Arc::<HostCell>::clone(&self.0)
    }

    /// Its name; all incarnations have it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How often it was restarted.
    pub fn incarnation(&self) -> u32 {
        self.0.incarnation
    }

    /// Whether it runs; false for ever once killed.
    pub fn is_alive(&self) -> bool {
        self.0.is_alive()
    }

    /// Runs `task` in this process.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(name, Box::pin(task));
    }

    /// Kills the process, as `kill -9` does: it is dead from now on, then its tasks, timers and
    /// pending events are dropped, in the order of their making. What their drop does sees a dead
    /// host. A task that runs now (one that kills its own host) is dropped when its poll returns.
    ///
    /// A panic in a drop is reported by the run.
    pub fn kill(&self) {
        let cell = &self.0;
        if !cell.is_alive.swap(false, Relaxed) {
            return;
        }
        cell.shared
            .trace
            .step(StepKind::Kill, u64::from(cell.index));
        cell.shared.record(Some(&cell.name), "kill", 0, String::new);
        let removed = cell.shared.lock().remove_host(cell.index);
        cell.shared.bury(removed);
    }

    /// Stops polling its tasks: timers fire and IO completes, but no one looks until
    /// [`resume`](Self::resume).
    pub fn pause(&self) {
        self.0.is_paused.store(true, Relaxed);
        self.0
            .shared
            .record(Some(&self.0.name), "pause", 0, String::new);
    }

    /// Polls its tasks again.
    pub fn resume(&self) {
        self.0.is_paused.store(false, Relaxed);
        self.0
            .shared
            .record(Some(&self.0.name), "resume", 0, String::new);
        let shared = &self.0.shared;
        shared.lock().unpark(shared, self.0.index);
    }

    /// Kills this incarnation, if it lives, and starts the next one. Handles of this one stay
    /// dead.
    #[must_use = "the new incarnation is another handle"]
    pub fn restart(&self) -> Self {
        self.kill();
        let cell = &self.0;
        let skew = cell.skew.load(Relaxed);
        Self::start(
            &cell.shared,
            Arc::clone(&cell.name),
            cell.incarnation + 1,
            skew,
        )
    }

    /// Sets its wall clock ahead of (behind, if negative) the world's by `nanos`.
    pub fn set_skew(&self, nanos: i64) {
        self.0.skew.store(nanos, Relaxed);
    }

    pub(super) fn index(&self) -> u32 {
        self.0.index
    }

    pub(crate) fn shared_name(&self) -> &Arc<str> {
        &self.0.name
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Debug for HostCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("name", &self.name)
            .field("incarnation", &self.incarnation)
            .field("is_alive", &self.is_alive)
            .finish_non_exhaustive()
    }
}

impl HostCell {
    pub(super) fn is_alive(&self) -> bool {
        self.is_alive.load(Relaxed)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.is_paused.load(Relaxed)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    pub(super) fn set_dead(&self) {
        self.is_alive.store(false, Relaxed);
    }
}

impl Runtime for HostCell {
    fn now(&self) -> Instant {
        self.shared.call();
        self.shared.now()
    }

    fn wall(&self) -> WallTime {
        self.shared.call();
        let wall = WALL_START.saturating_add(self.shared.now_nanos());
        WallTime(wall.saturating_add_signed(self.skew.load(Relaxed)))
    }

    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()> {
        let shared = Arc::clone(&self.shared);
        Box::pin(Sleep::new(shared, self.index, at.as_nanos()))
    }

    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) {
        self.shared.spawn(self.index, name, task);
    }

    fn offload(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        let shared = Arc::clone(&self.shared);
        let host = Arc::clone(&self.name);
        // A panic is the work's own: whoever waits sees that there is no result.
        let action = Box::new(move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                let text = || panic_text(&*panic);
                shared.record(Some(&host), "offload panicked", 0, text);
            }
        });
        Box::pin(
            self.shared
                .event(self.index, "offload", Some(action))
                .detach(),
        )
    }

    fn entropy(&self) -> u64 {
        let mut counter = self.entropy.load(Relaxed);
        if counter == 0 {
            let stream = self
                .shared
                .tape
                .choose(ENTROPY_STREAMS, Family::Entropy, &self.name);
            let salt = (u64::from(stream) << 32) | u64::from(self.index);
            counter = mix(salt + 1) | 1;
        }
        // An odd start and an even step: the counter is never 0.
        counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c16);
        self.entropy.store(counter, Relaxed);
        mix(counter)
    }

    fn buggify(&self, point: &'static str) -> bool {
        self.shared.call();
        let is_hit = self.shared.tape.flip(Family::Kick, point);
        if is_hit {
            self.shared.mark(&self.name, "buggify", point);
        }
        is_hit
    }

    fn probe(&self, point: &'static str) {
        self.shared.call();
        self.shared.mark(&self.name, "probe", point);
    }
}
