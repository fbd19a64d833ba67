//! What all handles of a world share, and what happens outside of its lock: polls, actions,
//! observers and drops. See `executor` for the state under the lock.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake},
};

use vaio_core::{BoxFuture, Instant};

use super::{
    Boundary, EventFuture, Host,
    event::{Action, Pending},
    executor::{Core, NO_HOST, Polled, Removed},
    stuck::{Cause, Stuck, TaskName},
    trace::{StepKind, Trace, TraceEvent},
};
use crate::tape::{Family, Tape};

pub(super) type Observer = Box<dyn FnMut(&Boundary<'_>) + Send>;

/// Calls of runtimes within one poll of a task before it counts as spinning.
const CALLS_MAX: u64 = 1_000_000;

pub(crate) struct Shared {
    pub(super) tape: Tape,
    pub(super) trace: Trace,
    pub(super) now: AtomicU64,
    /// Calls of runtimes since a task was last polled.
    pub(super) calls: AtomicU64,
    /// The thread that may wake tasks.
    pub(super) thread: AtomicUsize,
    pub(super) core: Mutex<Core>,
    pub(super) observers: Mutex<Vec<Observer>>,
    pub(super) marks: Mutex<BTreeMap<&'static str, u64>>,
}

/// What a task's waker knows.
pub(super) struct TaskCell {
    pub(super) shared: Arc<Shared>,
    pub(super) task: u32,
    pub(super) generation: u32,
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

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim")
            .field("now", &self.now())
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        lock(&self.core)
    }

    pub(super) fn now_nanos(&self) -> u64 {
        self.now.load(Relaxed)
    }

    pub(super) fn now(&self) -> Instant {
        Instant::from_nanos(self.now_nanos())
    }

    pub(super) fn set_now(&self, nanos: u64) {
        assert!(nanos >= self.now_nanos(), "time does not go back");
        self.now.store(nanos, Relaxed);
    }

    pub(super) fn spawn(
        self: &Arc<Self>,
        host: u32,
        name: &'static str,
        task: BoxFuture<'static, ()>,
    ) {
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

    pub(super) fn event(
        self: &Arc<Self>,
        host: u32,
        name: &str,
        action: Option<Action>,
    ) -> EventFuture {
        let id = self.tape.name(Family::Event, name);
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
    pub(super) fn poll(&self, mut polled: Polled) -> Option<Polled> {
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
        self.drop_quietly(name, (polled.future, polled.waker));
        None
    }

    /// An event that was taken: its action, then the observers, then who waits for it.
    pub(super) fn happen(&self, event: Pending) {
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

    pub(super) fn act(&self, action: Option<Action>) {
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

    pub(super) fn is_observed(&self) -> bool {
        !lock(&self.observers).is_empty()
    }

    pub(super) fn observe(&self, kind: &'static str, name: &str) {
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
    pub(super) fn bury(&self, removed: Removed) {
        for (name, future) in removed.tasks {
            self.drop_quietly(name, future);
        }
        let name = TaskName {
            host: None,
            task: "event",
        };
        self.drop_quietly(name, (removed.events, removed.wakers));
    }

    fn drop_quietly<T>(&self, name: TaskName, dropped: T) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(dropped))) {
            self.lock().set_panic(name, panic_text(&*panic));
        }
    }

    pub(super) fn broken(&self) -> Option<Stuck> {
        let cause = self.lock().broken()?;
        Some(self.stuck(cause))
    }

    pub(super) fn stuck(&self, cause: Cause) -> Stuck {
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
    pub(super) fn close(&self) {
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

    pub(super) fn mark(&self, host: &Arc<str>, kind: &'static str, point: &'static str) {
        *lock(&self.marks).entry(point).or_default() += 1;
        self.trace.step_named(point, 0);
        self.record(Some(host), kind, 0, || point.to_owned());
    }

    pub(super) fn record_poll(&self, task: u32) {
        self.calls.store(0, Relaxed);
        if self.trace.is_on() {
            let host = self.lock().name_of(task).host;
            self.record(host.as_ref(), "poll", u64::from(task), String::new);
        }
    }

    /// Counts a call of a runtime. A task that makes them without end and never yields cannot be
    /// interrupted, only made to panic; who polled it contains that.
    pub(super) fn call(&self) {
        let calls = self.calls.load(Relaxed) + 1;
        if calls <= CALLS_MAX || std::thread::panicking() {
            self.calls.store(calls, Relaxed);
            return;
        }
        // What runs while this unwinds may call, too.
        self.calls.store(0, Relaxed);
        panic!("the task spins: it called its runtime {CALLS_MAX} times without yielding");
    }

    /// Adds to the trace's list, if there is one.
    pub(super) fn record(
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
pub(super) struct Running<'a>(pub(super) &'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut core = self.0.lock();
        core.is_running = false;
        core.running = None;
    }
}

pub(super) fn host_index(host: Option<&Host>) -> u32 {
    host.map_or(NO_HOST, Host::index)
}

/// A number that no other live thread has.
pub(super) fn this_thread() -> usize {
    thread_local! { static MARK: u8 = const { 0 }; }
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is locked is never left half changed: no foreign code runs under it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without text").to_owned()
}
