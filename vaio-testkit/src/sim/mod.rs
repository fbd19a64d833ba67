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
mod shared;
mod stuck;
mod trace;

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
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
    event::Action,
    executor::{Core, MAIN, NO_HOST, Next, Removed},
    shared::{Running, Shared, TaskCell, host_index, lock, panic_text, this_thread},
};
use crate::tape::Tape;

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

impl Sim {
    /// A world at time 0 with no host. `tape` decides what happens in it.
    pub fn new(tape: Tape, schedule: Schedule) -> Self {
        let shared = Arc::new(Shared {
            trace: Trace::of(tape.clone()),
            tape,
            now: AtomicU64::new(0),
            calls: AtomicU64::new(0),
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

#[cfg(test)]
mod tests;
