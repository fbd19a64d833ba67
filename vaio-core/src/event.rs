//! Events: edges, for the person on call and for software. Bounded, counted and rate-limited:
//! a reader that is slow loses the oldest and is told how many, and what a guest or a filter can
//! trigger cannot flood the rest.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    Extent, Instant, OpKind, Rt, WallTime,
    sync::{Notify, lock},
};

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum Severity {
    /// As expected.
    Info,
    /// Look at it in the morning.
    Warning,
    /// Look at it now.
    Error,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum EventKind {
    /// The disk serves IO.
    Opened,
    /// The disk is closed.
    Closed,
    /// A filter joined.
    Attached,
    /// A filter left.
    Detached,
    /// A filter was replaced.
    Replaced,
    /// Capacity or capabilities changed.
    Reshaped,
    /// The disk admits no new IO.
    Quiesced,
    /// The disk admits IO again.
    Resumed,
    /// A hold or quiesce ended by itself, before it was released.
    ThawedEarly,
    /// A filter panicked.
    FilterPanicked,
    /// A filter broke the IO contract (wrong reply, forbidden operation, out of range).
    FilterLied,
    /// A filter failed and IO goes on without it.
    FilterBypassed,
    /// A filter failed and IO that needs it fails from now on.
    FilterFaulted,
    /// An IO has been in flight for too long.
    IoStalled,
    /// An IO was failed to its asker because it took too long; it is still in flight.
    IoExpired,
    /// An IO whose asker let go is still in flight and runs to its end.
    IoOrphaned,
    /// An orphaned IO ended.
    OrphanEnded,
    /// A thread that polls IO has not come back for too long.
    ThreadBlocked,
    /// A verb (snapshot, resize and others) was done.
    VerbDone,
    /// A verb was refused, failed or timed out, and was undone.
    VerbAborted,
    /// Something else that a filter tells.
    Filter,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Event {
    /// Number on this disk, without gaps before loss: 1, 2, 3...
    pub seq: u64,
    /// Time of day.
    pub at: WallTime,
    /// How much it matters.
    pub severity: Severity,
    /// What happened.
    pub kind: EventKind,
    /// The disk.
    pub disk: Arc<str>,
    /// The filter concerned, if any.
    pub filter: Option<Arc<str>>,
    /// The operation concerned, if any.
    pub op: Option<OpKind>,
    /// The bytes concerned, if any.
    pub extent: Option<Extent>,
    /// What happened, in words.
    pub text: String,
    /// What to do about it; empty where there is nothing to do.
    pub next_step: String,
    /// Events of this kind and filter that were held back before this one by the rate limit.
    pub suppressed: u64,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}, disk={}", self.kind, self.text, self.disk)?;
        if let Some(filter) = &self.filter {
            write!(f, " filter={filter}")?;
        }
        if let Some(op) = self.op {
            write!(f, " op={op}")?;
        }
        if let Some(extent) = self.extent {
            write!(f, " extent={extent}")?;
        }
        if self.suppressed > 0 {
            write!(f, " suppressed={}", self.suppressed)?;
        }
        if !self.next_step.is_empty() {
            write!(f, "; {}", self.next_step)?;
        }
        Ok(())
    }
}

/// An event on its way: everything but what the bus adds.
#[derive(Clone, Debug)]
#[must_use = "send it"]
pub struct Notice {
    severity: Severity,
    kind: EventKind,
    filter: Option<Arc<str>>,
    op: Option<OpKind>,
    extent: Option<Extent>,
    text: String,
    next_step: String,
}

impl Notice {
    /// Something a filter tells; see [`EventKind::Filter`].
    pub fn new(severity: Severity, text: impl Into<String>) -> Self {
        Self::of(severity, EventKind::Filter, text)
    }

    pub(crate) fn of(severity: Severity, kind: EventKind, text: impl Into<String>) -> Self {
        Self {
            severity,
            kind,
            filter: None,
            op: None,
            extent: None,
            text: text.into(),
            next_step: String::new(),
        }
    }

    /// Adds the IO concerned.
    pub const fn with_io(mut self, op: OpKind, extent: Extent) -> Self {
        self.op = Some(op);
        self.extent = Some(extent);
        self
    }

    /// Adds what to do about it.
    pub fn with_next_step(mut self, next_step: impl Into<String>) -> Self {
        self.next_step = next_step.into();
        self
    }

    pub(crate) fn with_filter(mut self, filter: &Arc<str>) -> Self {
        self.filter = Some(Arc::clone(filter));
        self
    }
}

/// Events of one kind and filter that pass per [`RATE_WINDOW`].
const RATE_MAX: u32 = 20;
/// Window of the rate limit.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Events kept for slow readers.
const KEPT_MAX: usize = 1024;

/// The bounded broadcast of one disk's events.
#[derive(Debug)]
pub struct EventBus {
    disk: Arc<str>,
    rt: Rt,
    state: Mutex<State>,
    sent: Notify,
}

#[derive(Debug, Default)]
struct State {
    last_seq: u64,
    kept: VecDeque<Event>,
    rates: BTreeMap<(EventKind, Option<Arc<str>>), Rate>,
}

#[derive(Debug)]
struct Rate {
    window_from: Instant,
    passed: u32,
    suppressed: u64,
}

impl EventBus {
    pub(crate) fn new(disk: Arc<str>, rt: Rt) -> Arc<Self> {
        Arc::new(Self {
            disk,
            rt,
            state: Mutex::default(),
            sent: Notify::default(),
        })
    }

    /// Sends an event, unless its kind and filter are over the rate limit; then it is counted and
    /// the next that passes says so. Never blocks.
    pub fn send(&self, notice: Notice) {
        let now = self.rt.now();
        {
            let mut state = lock(&self.state);
            let rate = state
                .rates
                .entry((notice.kind, notice.filter.clone()))
                .or_insert(Rate {
                    window_from: now,
                    passed: 0,
                    suppressed: 0,
                });
            if now.since(rate.window_from) >= RATE_WINDOW {
                rate.window_from = now;
                rate.passed = 0;
            }
            if rate.passed >= RATE_MAX {
                rate.suppressed += 1;
                return;
            }
            rate.passed += 1;
            let suppressed = std::mem::take(&mut rate.suppressed);
            state.last_seq += 1;
            let event = Event {
                seq: state.last_seq,
                at: self.rt.wall(),
                severity: notice.severity,
                kind: notice.kind,
                disk: Arc::clone(&self.disk),
                filter: notice.filter,
                op: notice.op,
                extent: notice.extent,
                text: notice.text,
                next_step: notice.next_step,
                suppressed,
            };
            log(&event);
            if state.kept.len() == KEPT_MAX {
                state.kept.pop_front();
            }
            state.kept.push_back(event);
        }
        self.sent.notify_all();
    }

    /// Reads from the oldest event that is still kept.
    pub fn subscribe(self: &Arc<Self>) -> EventStream {
        let oldest = lock(&self.state).kept.front().map_or(1, |event| event.seq);
        EventStream {
            bus: Arc::clone(self),
            next_seq: oldest,
            missed: 0,
        }
    }
}

fn log(event: &Event) {
    match event.severity {
        Severity::Info => tracing::info!(target: "vaio::event", "{event}"),
        Severity::Warning => tracing::warn!(target: "vaio::event", "{event}"),
        Severity::Error => tracing::error!(target: "vaio::event", "{event}"),
    }
}

/// A reader of events.
#[derive(Debug)]
pub struct EventStream {
    bus: Arc<EventBus>,
    next_seq: u64,
    missed: u64,
}

impl EventStream {
    /// The next event, if there is one now.
    pub fn try_next(&mut self) -> Option<Event> {
        let state = lock(&self.bus.state);
        let oldest = state.kept.front()?.seq;
        if self.next_seq < oldest {
            self.missed += oldest - self.next_seq;
            self.next_seq = oldest;
        }
        let index = usize::try_from(self.next_seq - oldest).ok()?;
        let event = state.kept.get(index)?.clone();
        self.next_seq += 1;
        Some(event)
    }

    /// Waits for the next event. Cancel-safe.
    pub async fn next(&mut self) -> Event {
        let bus = Arc::clone(&self.bus);
        loop {
            let sent = bus.sent.listen();
            if let Some(event) = self.try_next() {
                return event;
            }
            sent.await;
        }
    }

    /// Events that this reader lost because it was slow.
    pub const fn missed(&self) -> u64 {
        self.missed
    }
}
