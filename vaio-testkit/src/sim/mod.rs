//! [`Sim`]: a world that runs on one thread, under a virtual clock, as a [`Tape`] says.
//!
//! Everything under test runs as tasks of [`Host`]s and reaches time, tasks and chance only
//! through the host's `Rt`. Completions of IO, messages and the guest's next operation are
//! *events*: when no task can run, the simulator lets the oldest one happen (0), or another one,
//! or lets the clock jump to the next timer first. So time is an adversary, not a delay: a timer
//! can fire between any two events without any help of the code that set it.
//!
//! Invariants: one thread; the tape, and nothing else, decides (equal tapes give equal runs, see
//! [`Trace::hash`]); a host is dead before its tasks are dropped; dropping the `Sim` that
//! [`Sim::new`] gave frees everything, whatever refers to what.

mod clock;
mod event;
mod executor;
mod host;
mod ready;
mod stuck;
mod trace;

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake},
    time::Duration,
};

use vaio_core::{BoxFuture, Instant};

pub use event::{Boundary, EVENTS_SEEN_MAX, EventFuture};
pub use host::Host;
pub use ready::Schedule;
pub use stuck::{Cause, Stuck, TaskName, Waiting};
pub use trace::{Difference, TRACE_EVENTS_MAX, Trace, TraceEvent, first_difference};

use self::{
    clock::Sleep,
    event::{Action, Pending},
    executor::{Core, MAIN, NO_HOST, Next, Polled, Removed},
    trace::StepKind,
};
use crate::tape::Tape;

type Observer = Box<dyn FnMut(&Boundary<'_>) + Send>;

/// What ends a run that does not end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Polls while no time passes. Default 1,000,000.
    pub drain_polls: u64,
    /// Polls and events in all. Default 50,000,000.
    pub steps: u64,
    /// Virtual time from the start of the world. Default one hour.
    pub time: Duration,
    /// How far a kick lets the clock jump. Default ten minutes.
    pub kick_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            drain_polls: 1_000_000,
            steps: 50_000_000,
            time: Duration::from_hours(1),
            kick_max: Duration::from_mins(10),
        }
    }
}

impl Limits {
    fn time_nanos(&self) -> u64 {
        u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A simulated world. Clones are handles to it; the world ends when the value that [`Sim::new`]
/// returned is dropped: its tasks are dropped then, its hosts are dead, and no clone can run it.
///
/// ```
/// use std::time::Duration;
/// use vaio_core::RuntimeExt;
/// use vaio_testkit::{Schedule, Sim, Tape};
///
/// let sim = Sim::new(Tape::random(1), Schedule::Random);
/// let host = sim.host("a");
/// let rt = host.rt();
/// let after = sim.run(async {
///     rt.sleep(Duration::from_secs(60)).await;
///     rt.now()
/// })?;
/// assert_eq!(after.as_nanos(), 60_000_000_000);
/// # Ok::<(), vaio_testkit::Stuck>(())
/// ```
pub struct Sim {
    shared: Arc<Shared>,
    is_owner: bool,
}

pub(crate) struct Shared {
    tape: Tape,
    trace: Trace,
    now: AtomicU64,
    /// The thread that may wake tasks.
    thread: AtomicUsize,
    core: Mutex<Core>,
    observers: Mutex<Vec<Observer>>,
    marks: Mutex<BTreeMap<&'static str, u64>>,
}

/// What a task's waker knows.
struct TaskCell {
    shared: Arc<Shared>,
    task: u32,
    generation: u32,
}

impl Wake for TaskCell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let shared = &self.shared;
        let is_foreign = shared.thread.load(Relaxed) != this_thread();
        let mut core = shared.lock();
        core.wake(shared, self.task, self.generation, is_foreign);
    }
}

impl Sim {
    /// A world at time 0 with no host. `tape` decides what happens in it.
    pub fn new(tape: Tape, schedule: Schedule) -> Self {
        let shared = Arc::new(Shared {
            trace: Trace::of(tape.clone()),
            tape,
            now: AtomicU64::new(0),
            thread: AtomicUsize::new(this_thread()),
            core: Mutex::new(Core::new(schedule)),
            observers: Mutex::default(),
            marks: Mutex::default(),
        });
        let main = shared.lock().spawn(&shared, NO_HOST, "main", None);
        debug_assert!(matches!(main, Ok(MAIN)), "main is the first task");
        Self {
            shared,
            is_owner: true,
        }
    }

    /// The world's decisions.
    pub fn tape(&self) -> &Tape {
        &self.shared.tape
    }

    /// Virtual time since the world's start.
    pub fn now(&self) -> Instant {
        self.shared.now()
    }

    /// The trace of everything that happens. [`Trace::start`] keeps a list of it.
    pub fn trace(&self) -> &Trace {
        &self.shared.trace
    }

    /// Replaces what ends a run that does not end by itself.
    pub fn set_limits(&self, limits: Limits) {
        self.shared.lock().limits = limits;
    }

    /// Starts a process. Two of one name are two processes.
    pub fn host(&self, name: &str) -> Host {
        Host::start(&self.shared, name.into(), 0, 0)
    }

    /// Runs a task of the environment: it belongs to no host and no one kills it.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.shared.spawn(NO_HOST, name, Box::pin(task));
    }

    /// Waits for a moment, as the environment does.
    pub fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()> {
        let shared = Arc::clone(&self.shared);
        Box::pin(Sleep::new(shared, NO_HOST, at.as_nanos()))
    }

    /// Waits for `duration` of virtual time.
    pub fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.sleep_until(self.now() + duration)
    }

    /// Registers an event of the environment, pending from now on. It resolves when the simulator
    /// picks it: as [`Family::Event`](crate::Family::Event) says under the name of the oldest
    /// pending event, 0 = that one, j = the j-th after it. Taking it takes one microsecond.
    ///
    /// An event of a host is dropped with the host. What outlives a process (IO in flight in a
    /// device) has no host.
    pub fn event(&self, host: Option<&Host>, name: &str) -> EventFuture {
        self.shared.event(host_index(host), name, None)
    }

    /// As [`event`](Self::event), and `action` runs at the moment at which it is taken, before
    /// observers look and before the future resolves. With [`EventFuture::detach`] it happens
    /// even if no one waits: IO that lands after its process died.
    pub fn event_with(
        &self,
        host: Option<&Host>,
        name: &str,
        action: impl FnOnce() + Send + 'static,
    ) -> EventFuture {
        let action: Action = Box::new(action);
        self.shared.event(host_index(host), name, Some(action))
    }

    /// Calls `observer` after each event was taken (and its action ran) and before anyone who
    /// waits for it runs, and at each [`boundary`](Self::boundary). An observer may look at the
    /// world; a boundary within an observer is not observed.
    pub fn on_event(&self, observer: impl FnMut(&Boundary<'_>) + Send + 'static) {
        lock(&self.shared.observers).push(Box::new(observer));
    }

    /// Tells the observers of a moment that is not an event, such as a guest's acknowledgement.
    pub fn boundary(&self, kind: &'static str) {
        self.shared.observe(kind, "");
    }

    /// Adds to the trace: `kind` and `value` to its hash, always; `text` to its list, if there is
    /// one (it is not called otherwise).
    pub fn note(
        &self,
        host: Option<&Host>,
        kind: &'static str,
        value: u64,
        text: impl FnOnce() -> String,
    ) {
        self.shared.trace.step_named(kind, value);
        let host = host.map(Host::shared_name);
        self.shared.record(host, kind, value, text);
    }

    /// Counts a place that was reached, as [`vaio_core::Runtime::probe`] does.
    pub fn mark(&self, point: &'static str) {
        *lock(&self.shared.marks).entry(point).or_default() += 1;
    }

    /// How often each probe was reached and each `buggify` point hit.
    pub fn marks(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.shared.marks).clone()
    }

    /// Polls `main` and all tasks until `main` is done. Tasks that have not ended stay, and go on
    /// in the next run. A panic of `main` passes through.
    ///
    /// # Errors
    /// [`Stuck`] when nothing can happen any more, a limit is passed, a task panicked, or one was
    /// woken from another thread.
    ///
    /// # Panics
    /// If the world runs already, or the value that [`Sim::new`] returned is gone.
    pub fn run<F: Future>(&self, main: F) -> Result<F::Output, Stuck> {
        let shared = &self.shared;
        shared.thread.store(this_thread(), Relaxed);
        let waker = {
            let mut core = shared.lock();
            assert!(!core.is_closed(), "the Sim that Sim::new returned is gone");
            assert!(!core.is_running, "a run inside a run");
            core.begin(shared);
            core.main_waker()
        };
        let _running = Running(shared);
        let mut main = std::pin::pin!(main);
        let mut cx = Context::from_waker(&waker);
        let mut back = None;
        loop {
            let next = shared.lock().next(shared, back.take());
            match next {
                Next::Main => {
                    shared.record_poll(MAIN);
                    if let Poll::Ready(output) = main.as_mut().poll(&mut cx) {
                        return match self.shared.broken() {
                            Some(stuck) => Err(stuck),
                            None => Ok(output),
                        };
                    }
                }
                Next::Poll(polled) => back = shared.poll(polled),
                Next::Drop(polled, name) => shared.bury(Removed {
                    wakers: vec![polled.waker],
                    events: Vec::new(),
                    tasks: vec![(name, polled.future)],
                }),
                Next::Timer((at, number), waker) => {
                    shared.record(None, "timer", number, || format!("due={at}ns"));
                    waker.wake();
                }
                Next::Event(event) => shared.happen(event),
                Next::Stuck(cause) => return Err(shared.stuck(cause)),
            }
        }
    }
}

impl Clone for Sim {
    /// A handle: it does not keep the world alive.
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            is_owner: false,
        }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if self.is_owner {
            self.shared.close();
        }
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.shared, f)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim")
            .field("now", &self.now())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        lock(&self.core)
    }

    fn now_nanos(&self) -> u64 {
        self.now.load(Relaxed)
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.now_nanos())
    }

    fn set_now(&self, nanos: u64) {
        assert!(nanos >= self.now_nanos(), "time does not go back");
        self.now.store(nanos, Relaxed);
    }

    fn spawn(self: &Arc<Self>, host: u32, name: &'static str, task: BoxFuture<'static, ()>) {
        let refused = self.lock().spawn(self, host, name, Some(task));
        match refused {
            Ok(task) if self.trace.is_on() => {
                let host = self.lock().name_of(task).host;
                let text = || format!("spawned={name}");
                self.record(host.as_ref(), "spawn", u64::from(task), text);
            }
            Ok(_) => {}
            // Dropped here, without the lock.
            Err(refused) => drop(refused),
        }
    }

    fn event(self: &Arc<Self>, host: u32, name: &str, action: Option<Action>) -> EventFuture {
        let id = self.tape.name(crate::tape::Family::Event, name);
        let mut core = self.lock();
        let is_dead = core.is_closed() || (host != NO_HOST && !core.is_alive(host));
        if is_dead {
            drop(core);
            drop(action);
            return EventFuture::new(Arc::clone(self), host, 0);
        }
        let number = core.events.add(host, id, action);
        EventFuture::new(Arc::clone(self), host, number)
    }

    /// Polls one task; gives it back if it has not ended.
    fn poll(&self, mut polled: Polled) -> Option<Polled> {
        self.record_poll(polled.task);
        let mut cx = Context::from_waker(&polled.waker);
        let future = polled.future.as_mut();
        match catch_unwind(AssertUnwindSafe(|| future.poll(&mut cx))) {
            Ok(Poll::Pending) => return Some(polled),
            Ok(Poll::Ready(())) => {}
            Err(panic) => {
                let mut core = self.lock();
                let name = core.name_of(polled.task);
                core.set_panic(name, panic_text(&*panic));
            }
        }
        let name = {
            let mut core = self.lock();
            let name = core.name_of(polled.task);
            core.end(polled.task);
            name
        };
        self.bury(Removed {
            wakers: vec![polled.waker],
            events: Vec::new(),
            tasks: vec![(name, polled.future)],
        });
        None
    }

    /// An event that was taken: its action, then the observers, then who waits for it.
    fn happen(&self, event: Pending) {
        self.trace.step(
            StepKind::Event,
            event.id ^ (u64::from(event.name.number()) << 40),
        );
        if self.trace.is_on() || self.is_observed() {
            let name = self.tape.text(event.name);
            let host = self.lock().host_name(event.host);
            self.record(host.as_ref(), "event", event.id, || name.to_string());
            self.act(event.action);
            self.observe("event", &name);
        } else {
            self.act(event.action);
        }
        if let Some(waker) = event.waker {
            waker.wake();
        }
    }

    fn act(&self, action: Option<Action>) {
        if let Some(action) = action
            && let Err(panic) = catch_unwind(AssertUnwindSafe(action))
        {
            let name = TaskName {
                host: None,
                task: "event",
            };
            self.lock().set_panic(name, panic_text(&*panic));
        }
    }

    fn is_observed(&self) -> bool {
        !lock(&self.observers).is_empty()
    }

    fn observe(&self, kind: &'static str, name: &str) {
        // Taken out, so that an observer may look at the world without a lock held.
        let mut observers = std::mem::take(&mut *lock(&self.observers));
        if observers.is_empty() {
            return;
        }
        let boundary = Boundary {
            at: self.now(),
            kind,
            name,
        };
        for observer in &mut observers {
            observer(&boundary);
        }
        let mut kept = lock(&self.observers);
        observers.append(&mut kept);
        *kept = observers;
    }

    /// Drops what was taken out of the world, in order; a panic is kept for the run's report.
    fn bury(&self, removed: Removed) {
        let quietly = |name: TaskName, drops: Box<dyn FnOnce() + '_>| {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(drops)) {
                self.lock().set_panic(name, panic_text(&*panic));
            }
        };
        for (name, future) in removed.tasks {
            quietly(name, Box::new(move || drop(future)));
        }
        let rest = (removed.events, removed.wakers);
        let name = TaskName {
            host: None,
            task: "event",
        };
        quietly(name, Box::new(move || drop(rest)));
    }

    fn broken(&self) -> Option<Stuck> {
        let cause = self.lock().broken()?;
        Some(self.stuck(cause))
    }

    fn stuck(&self, cause: Cause) -> Stuck {
        let core = self.lock();
        let pending = core.events.pending.iter();
        Stuck {
            cause,
            at: self.now(),
            waiting: core.waiting(),
            pending: pending.map(|event| self.tape.text(event.name)).collect(),
        }
    }

    /// Ends the world: hosts die, everything is dropped, and what the drops made too.
    fn close(&self) {
        let (removed, hosts) = {
            let mut core = self.lock();
            for host in &core.hosts {
                host.set_dead();
            }
            core.close()
        };
        self.bury(removed);
        let observers = std::mem::take(&mut *lock(&self.observers));
        drop((hosts, observers));
    }

    fn mark(&self, host: &Arc<str>, kind: &'static str, point: &'static str) {
        *lock(&self.marks).entry(point).or_default() += 1;
        self.trace.step_named(point, 0);
        self.record(Some(host), kind, 0, || point.to_owned());
    }

    fn record_poll(&self, task: u32) {
        if self.trace.is_on() {
            let host = self.lock().name_of(task).host;
            self.record(host.as_ref(), "poll", u64::from(task), String::new);
        }
    }

    /// Adds to the trace's list, if there is one.
    fn record(
        &self,
        host: Option<&Arc<str>>,
        kind: &'static str,
        value: u64,
        text: impl FnOnce() -> String,
    ) {
        if !self.trace.is_on() {
            return;
        }
        let task = {
            let core = self.lock();
            core.running.map(|task| core.name_of(task).task)
        };
        self.trace.push(TraceEvent {
            at: self.now(),
            host: host.map(Arc::clone),
            task,
            kind,
            text: text(),
            value,
            choices: 0,
        });
    }
}

/// Marks the world as running, and as not running when `run` returns or unwinds.
struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut core = self.0.lock();
        core.is_running = false;
        core.running = None;
    }
}

fn host_index(host: Option<&Host>) -> u32 {
    host.map_or(NO_HOST, Host::index)
}

/// A number that no other live thread has.
fn this_thread() -> usize {
    thread_local! { static MARK: u8 = const { 0 }; }
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is locked is never left half changed: no foreign code runs under it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without text").to_owned()
}

#[cfg(test)]
mod tests;
