//! The state of the world's tasks, and the decision what happens next.
//!
//! Order of things at one moment: timers that are due, then the event that was taken, then tasks
//! that can run; only when there are none of these does time pass. Invariants: a task is in the
//! queue at most once; a slot is used again only when its old number is nowhere in the queue; no
//! future, action or waker is called or dropped while the state is locked.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use vaio_core::{BoxFuture, Instant};

use super::{
    EVENTS_SEEN_MAX, Limits, Shared, TaskCell,
    clock::{TimerKey, Timers},
    event::{Events, Pending},
    host::HostCell,
    ready::{Ready, Schedule},
    stuck::{Cause, TaskName, Waiting},
    trace::StepKind,
};
use crate::tape::{Family, NameId};

/// The environment's place in host numbers.
pub(super) const NO_HOST: u32 = u32::MAX;
/// The slot of the future that `run` was given.
pub(super) const MAIN: u32 = 0;
/// Time that passes when an event is taken.
const EVENT_NANOS: u64 = 1_000;

pub(super) struct Core {
    slots: Vec<Slot>,
    free: Vec<u32>,
    ready: Ready,
    /// Tasks of paused hosts that could run, in the order of the queue.
    parked: VecDeque<u32>,
    pub(super) timers: Timers,
    pub(super) events: Events,
    pub(super) hosts: Vec<Arc<HostCell>>,
    pub(super) limits: Limits,
    taken: Option<Pending>,
    has_due: bool,
    kick: Option<NameId>,
    /// Number of the moment: grows when time passes.
    moment: u64,
    polls_now: u64,
    steps: u64,
    pub(super) running: Option<u32>,
    pub(super) is_running: bool,
    is_closed: bool,
    foreign: Option<u32>,
    panic: Option<(TaskName, String)>,
}

struct Slot {
    future: Option<BoxFuture<'static, ()>>,
    waker: Option<Waker>,
    generation: u32,
    host: u32,
    name: &'static str,
    schedule_name: Option<NameId>,
    is_queued: bool,
    is_live: bool,
    polled_at: u64,
    /// Polls in one moment.
    moment: u64,
    polls: u64,
}

/// A task that was polled and has not ended: goes back to its slot.
pub(super) struct Polled {
    pub(super) task: u32,
    pub(super) future: BoxFuture<'static, ()>,
    pub(super) waker: Waker,
}

/// What happens next.
pub(super) enum Next {
    /// Polls the main future.
    Main,
    /// Polls a task.
    Poll(Polled),
    /// Drops a task that was killed while it ran.
    Drop(Polled, TaskName),
    /// Fires a timer.
    Timer(TimerKey, Waker),
    /// Lets an event happen.
    Event(Pending),
    /// Nothing can.
    Stuck(Cause),
}

impl Core {
    pub(super) fn new(schedule: Schedule) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            ready: Ready::new(schedule),
            parked: VecDeque::new(),
            timers: Timers::default(),
            events: Events::default(),
            hosts: Vec::new(),
            limits: Limits::default(),
            taken: None,
            has_due: false,
            kick: None,
            moment: 1,
            polls_now: 0,
            steps: 0,
            running: None,
            is_running: false,
            is_closed: false,
            foreign: None,
            panic: None,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    pub(super) fn is_alive(&self, host: u32) -> bool {
        self.hosts
            .get(host as usize)
            .is_some_and(|host| host.is_alive())
    }

    /// Puts a new task into a slot and into the queue; gives it back where its host is dead.
    pub(super) fn spawn(
        &mut self,
        shared: &Arc<Shared>,
        host: u32,
        name: &'static str,
        future: Option<BoxFuture<'static, ()>>,
    ) -> Result<u32, Option<BoxFuture<'static, ()>>> {
        if self.is_closed || (host != NO_HOST && !self.is_alive(host)) {
            return Err(future);
        }
        let tape = &shared.tape;
        let schedule_name = self
            .ready
            .asks()
            .then(|| match self.hosts.get(host as usize) {
                Some(host) => tape.name(Family::Schedule, &format!("{}.{name}", host.name())),
                None => tape.name(Family::Schedule, name),
            });
        let task = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::empty());
            u32::try_from(self.slots.len() - 1).expect("tasks fit in memory")
        });
        let slot = &mut self.slots[task as usize];
        assert!(!slot.is_live && !slot.is_queued, "a free slot is empty");
        slot.generation = slot.generation.wrapping_add(1);
        slot.waker = Some(Waker::from(Arc::new(TaskCell {
            shared: Arc::clone(shared),
            task,
            generation: slot.generation,
        })));
        slot.future = future;
        slot.host = host;
        slot.name = name;
        slot.schedule_name = schedule_name;
        slot.is_live = true;
        slot.polled_at = shared.now_nanos();
        slot.moment = 0;
        shared
            .trace
            .step(StepKind::Spawn, (u64::from(task) << 24) ^ u64::from(host));
        self.ready.spawned(task, schedule_name, tape);
        self.queue(shared, task);
        Ok(task)
    }

    fn queue(&mut self, shared: &Shared, task: u32) {
        let slot = &mut self.slots[task as usize];
        slot.is_queued = true;
        self.ready.push(task, slot.schedule_name, &shared.tape);
    }

    pub(super) fn wake(&mut self, shared: &Shared, task: u32, generation: u32, is_foreign: bool) {
        let Some(slot) = self.slots.get(task as usize) else {
            return;
        };
        if slot.generation != generation || !slot.is_live {
            return;
        }
        if is_foreign {
            self.foreign.get_or_insert(task);
        } else if !slot.is_queued {
            self.queue(shared, task);
        }
    }

    /// Queues the main future of a new `run`.
    pub(super) fn begin(&mut self, shared: &Shared) {
        self.is_running = true;
        self.moment += 1;
        self.polls_now = 0;
        if !self.slots[MAIN as usize].is_queued {
            self.queue(shared, MAIN);
        }
    }

    /// The next thing that happens. `back` is what was polled last and has not ended.
    pub(super) fn next(&mut self, shared: &Shared, back: Option<Polled>) -> Next {
        self.running = None;
        if let Some(polled) = back {
            let slot = &mut self.slots[polled.task as usize];
            if !slot.is_live {
                let name = self.name_of(polled.task);
                self.free_slot(polled.task);
                return Next::Drop(polled, name);
            }
            slot.future = Some(polled.future);
            slot.waker = Some(polled.waker);
        }
        if let Some(cause) = self.broken() {
            return Next::Stuck(cause);
        }
        loop {
            if self.has_due {
                if let Some((key, waker)) = self.timers.pop_due(shared.now_nanos()) {
                    shared.trace.step(StepKind::Timer, key.0 ^ (key.1 << 40));
                    return Next::Timer(key, waker);
                }
                self.has_due = false;
            }
            if let Some(event) = self.taken.take() {
                return Next::Event(event);
            }
            if let Some(task) = self.ready.pop(&shared.tape) {
                match self.start(shared, task) {
                    Some(next) => return next,
                    None => continue,
                }
            }
            if let Err(cause) = self.pass_time(shared) {
                return Next::Stuck(cause);
            }
        }
    }

    /// What makes a run end at once: something that must not happen did.
    pub(super) fn broken(&mut self) -> Option<Cause> {
        if let Some((task, message)) = self.panic.take() {
            return Some(Cause::Panic { task, message });
        }
        let task = self.foreign.take()?;
        Some(Cause::ForeignThread {
            task: self.name_of(task),
        })
    }

    /// Takes a queued task out for its poll, unless it has ended or its host is paused.
    fn start(&mut self, shared: &Shared, task: u32) -> Option<Next> {
        let (drain_limit, step_limit) = (self.limits.drain_polls, self.limits.steps);
        let slot = &mut self.slots[task as usize];
        if !slot.is_live {
            slot.is_queued = false;
            self.free.push(task);
            return None;
        }
        if slot.host != NO_HOST && self.hosts[slot.host as usize].is_paused() {
            self.parked.push_back(task);
            return None;
        }
        slot.is_queued = false;
        slot.polled_at = shared.now_nanos();
        if slot.moment != self.moment {
            slot.moment = self.moment;
            slot.polls = 0;
        }
        slot.polls += 1;
        self.polls_now += 1;
        self.steps += 1;
        if self.polls_now > drain_limit {
            return Some(Next::Stuck(self.spinning()));
        }
        if self.steps > step_limit {
            return Some(Next::Stuck(Cause::StepLimit));
        }
        shared.trace.step(StepKind::Poll, u64::from(task));
        self.running = Some(task);
        if task == MAIN {
            return Some(Next::Main);
        }
        let slot = &mut self.slots[task as usize];
        let future = slot.future.take().expect("a live task has its future");
        let waker = slot.waker.take().expect("a live task has its waker");
        Some(Next::Poll(Polled {
            task,
            future,
            waker,
        }))
    }

    fn spinning(&self) -> Cause {
        let most = (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.is_live && slot.moment == self.moment)
            .max_by_key(|(task, slot)| (slot.polls, std::cmp::Reverse(*task)));
        let (task, polls) = most.map_or((MAIN, 0), |(task, slot)| (task, slot.polls));
        Cause::Spin {
            task: self.name_of(task),
            polls,
        }
    }

    /// No task can run: an event is taken, or the clock jumps to the next timer.
    fn pass_time(&mut self, shared: &Shared) -> Result<(), Cause> {
        let now = shared.now_nanos();
        let limit = self.limits.time_nanos();
        let timer = self.timers.next();
        let (at, event) = match (self.events.pending.is_empty(), timer) {
            (true, None) => return Err(Cause::Deadlock),
            (true, Some(timer)) => (timer.max(now), None),
            (false, Some(timer)) if self.kicks(shared, now, timer) => (timer.max(now), None),
            (false, _) => (now.saturating_add(EVENT_NANOS), Some(self.pick(shared))),
        };
        if at > limit {
            return Err(Cause::TimeLimit);
        }
        self.steps += u64::from(event.is_some());
        if self.steps > self.limits.steps {
            return Err(Cause::StepLimit);
        }
        self.has_due = timer.is_some_and(|timer| timer <= at);
        shared.set_now(at);
        self.moment += 1;
        self.polls_now = 0;
        if let Some(event) = event {
            self.taken = self.events.pending.remove(event);
        }
        Ok(())
    }

    /// Whether the next timer fires although events are pending. Not in the second half of the
    /// time limit, so that kicks alone cannot end a run.
    fn kicks(&mut self, shared: &Shared, now: u64, timer: u64) -> bool {
        let jump_max = u64::try_from(self.limits.kick_max.as_nanos()).unwrap_or(u64::MAX);
        if timer > self.limits.time_nanos() / 2 || timer.saturating_sub(now) > jump_max {
            return false;
        }
        let name = *self
            .kick
            .get_or_insert_with(|| shared.tape.name(Family::Kick, "timer"));
        shared.tape.choose_named(2, name) == 1
    }

    /// The place of the pending event that happens.
    fn pick(&mut self, shared: &Shared) -> usize {
        let seen = self.events.pending.len().min(EVENTS_SEEN_MAX);
        let options = u32::try_from(seen).expect("few are seen");
        let name = self.events.pending[0].name;
        shared.tape.choose_named(options, name) as usize
    }

    /// A task has ended.
    pub(super) fn end(&mut self, task: u32) {
        self.slots[task as usize].is_live = false;
        self.free_slot(task);
    }

    fn free_slot(&mut self, task: u32) {
        let slot = &mut self.slots[task as usize];
        assert!(!slot.is_live, "only an ended task leaves its slot");
        // A queued number stays taken until it is popped.
        if !slot.is_queued {
            self.free.push(task);
        }
    }

    /// Ends a host's tasks; they and the host's timers and events go to the caller to be dropped.
    pub(super) fn remove_host(&mut self, host: u32) -> Removed {
        let mut removed = Removed {
            wakers: self.timers.remove_host(host),
            events: self.events.remove_host(host),
            tasks: Vec::new(),
        };
        let slots = &mut self.slots;
        self.parked.retain(|task| {
            let slot = &mut slots[*task as usize];
            slot.is_queued &= slot.host != host;
            slot.is_queued
        });
        for task in 0..u32::try_from(self.slots.len()).expect("tasks fit in memory") {
            let slot = &mut self.slots[task as usize];
            if slot.host == host && slot.is_live && (task != MAIN || self.is_closed) {
                slot.is_live = false;
                removed.wakers.extend(slot.waker.take());
                if let Some(future) = slot.future.take() {
                    removed.tasks.push((self.name_of(task), future));
                    self.free_slot(task);
                }
            }
        }
        removed
    }

    /// Ends everything for ever.
    pub(super) fn close(&mut self) -> (Removed, Vec<Arc<HostCell>>) {
        self.is_closed = true;
        self.ready.clear();
        self.parked.clear();
        let mut all = self.remove_host(NO_HOST);
        let hosts = std::mem::take(&mut self.hosts);
        for host in 0..u32::try_from(hosts.len()).expect("hosts fit in memory") {
            let removed = self.remove_host(host);
            all.wakers.extend(removed.wakers);
            all.events.extend(removed.events);
            all.tasks.extend(removed.tasks);
        }
        (all, hosts)
    }

    /// Lets the tasks of a host that was paused run again, in their old order.
    pub(super) fn unpark(&mut self, shared: &Shared, host: u32) {
        let slots = &self.slots;
        let (back, kept): (VecDeque<_>, VecDeque<_>) = self
            .parked
            .drain(..)
            .partition(|task| slots[*task as usize].host == host);
        self.parked = kept;
        for task in back {
            self.queue(shared, task);
        }
    }

    pub(super) fn set_panic(&mut self, task: TaskName, message: String) {
        self.panic.get_or_insert((task, message));
    }

    pub(super) fn name_of(&self, task: u32) -> TaskName {
        let slot = &self.slots[task as usize];
        TaskName {
            host: self.host_name(slot.host),
            task: slot.name,
        }
    }

    pub(super) fn main_waker(&self) -> Waker {
        let main = self.slots[MAIN as usize].waker.as_ref();
        main.expect("main keeps its waker").clone()
    }

    pub(super) fn host_name(&self, host: u32) -> Option<Arc<str>> {
        self.hosts.get(host as usize).map(|host| host.shared_name())
    }

    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn waiting(&self) -> Vec<Waiting> {
        (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.is_live)
            .map(|(task, slot)| Waiting {
                name: self.name_of(task),
                since: Instant::from_nanos(slot.polled_at),
                is_paused: self.parked.contains(&task),
            })
            .collect()
    }
}

impl Slot {
    fn empty() -> Self {
        Self {
            future: None,
            waker: None,
            generation: 0,
            host: NO_HOST,
            name: "",
            schedule_name: None,
            is_queued: false,
            is_live: false,
            polled_at: 0,
            moment: 0,
            polls: 0,
        }
    }
}

/// What was taken out and must be dropped without the lock.
pub(super) struct Removed {
    pub(super) wakers: Vec<Waker>,
    pub(super) events: Vec<Pending>,
    pub(super) tasks: Vec<(TaskName, BoxFuture<'static, ()>)>,
}
