//! [`Trace`]: what happened in a run, as a hash that is always kept and a list that is kept on
//! demand. Two runs of one tape must have equal hashes; where they do not, the lists name the
//! first event that differs.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use vaio_core::Instant;

use crate::tape::{Tape, hash_text};

/// A sensible limit for [`Trace::start`].
pub const TRACE_EVENTS_MAX: usize = 1 << 20;

/// The trace of one run. One thread writes it.
#[derive(Debug)]
pub struct Trace {
    tape: Option<Tape>,
    hash: AtomicU64,
    steps: AtomicU64,
    dropped: AtomicU64,
    /// Most events of the list; 0 = no list.
    limit: AtomicUsize,
    events: Mutex<Vec<TraceEvent>>,
}

/// One line of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TraceEvent {
    /// When.
    pub at: Instant,
    /// In which process; `None` for the environment.
    pub host: Option<Arc<str>>,
    /// The task that ran; `None` where the simulator itself acted.
    pub task: Option<&'static str>,
    /// What: `poll`, `spawn`, `end`, `event`, `timer`, `kill`, `probe`, or what a device says.
    pub kind: &'static str,
    /// More about it.
    pub text: String,
    /// What was hashed beside the text (a number of a task, an event, a block).
    pub value: u64,
    /// A hash over all choices of the tape up to here.
    pub choices: u64,
}

impl Trace {
    /// Keeps the hash only.
    pub fn off() -> Self {
        Self {
            tape: None,
            hash: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            limit: AtomicUsize::new(0),
            events: Mutex::default(),
        }
    }

    pub(super) fn of(tape: Tape) -> Self {
        Self {
            tape: Some(tape),
            ..Self::off()
        }
    }

    /// Keeps the list from now on: its first `events_max` events. 0 stops.
    pub fn start(&self, events_max: usize) {
        self.limit.store(events_max, Relaxed);
    }

    /// Whether a list is kept.
    pub fn is_on(&self) -> bool {
        self.limit.load(Relaxed) > 0
    }

    /// A hash over every step so far (task picked, event taken, timer fired, what devices said)
    /// and every choice of the tape. Equal runs have equal hashes.
    pub fn hash(&self) -> u64 {
        let choices = self.choices();
        (self.hash.load(Relaxed) ^ choices).wrapping_mul(STEP_FACTOR)
    }

    /// Steps hashed so far.
    pub fn steps(&self) -> u64 {
        self.steps.load(Relaxed)
    }

    /// Events that were not kept for want of room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// The list so far; empty if it is off.
    pub fn events(&self) -> Vec<TraceEvent> {
        self.list().clone()
    }

    fn choices(&self) -> u64 {
        self.tape.as_ref().map_or(0, Tape::hash)
    }

    /// One step into the hash. Single-threaded: a load and a store, no atomic exchange.
    pub(super) fn step(&self, kind: StepKind, value: u64) {
        let word = value ^ ((kind as u64) << 56);
        let hash = (self.hash.load(Relaxed).rotate_left(23) ^ word).wrapping_mul(STEP_FACTOR);
        self.hash.store(hash, Relaxed);
        self.steps.store(self.steps.load(Relaxed) + 1, Relaxed);
    }

    /// A step with a name of its own.
    pub(super) fn step_named(&self, kind: &str, value: u64) {
        self.step(StepKind::Note, hash_text(kind) >> 8);
        self.step(StepKind::Note, value);
    }

    /// Adds to the list; only called when it is on.
    pub(super) fn push(&self, mut event: TraceEvent) {
        let mut list = self.list();
        if list.len() < self.limit.load(Relaxed) {
            event.choices = self.choices();
            list.push(event);
        } else {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<TraceEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const STEP_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a step is, in its highest byte.
#[derive(Clone, Copy, Debug)]
pub(super) enum StepKind {
    Poll = 1,
    Event,
    Timer,
    Spawn,
    Kill,
    Note,
}

impl fmt::Display for TraceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = Duration::from_nanos(self.at.as_nanos());
        write!(f, "at={at:?}")?;
        if let Some(host) = &self.host {
            write!(f, " host={host}")?;
        }
        if let Some(task) = self.task {
            write!(f, " task={task}")?;
        }
        write!(f, " {}", self.kind)?;
        if !self.text.is_empty() {
            write!(f, " {}", self.text)?;
        }
        Ok(())
    }
}

/// Where two runs part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Number of the event, from 0; `None` if the lists do not show it.
    pub index: Option<usize>,
    /// What the first run did there; `None` if it had ended.
    pub first: Option<TraceEvent>,
    /// What the second run did there.
    pub second: Option<TraceEvent>,
    /// What both did last before.
    pub before: Option<TraceEvent>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(index) = self.index else {
            return f.write_str(
                "the runs differ, but not in what was recorded: start both traces before the run",
            );
        };
        let show = |event: &Option<TraceEvent>| match event {
            Some(event) => event.to_string(),
            None => "nothing more".to_owned(),
        };
        writeln!(f, "the runs differ at event {index}")?;
        writeln!(f, "  both before: {}", show(&self.before))?;
        writeln!(f, "  first run:   {}", show(&self.first))?;
        write!(f, "  second run:  {}", show(&self.second))?;
        let chose = |event: &Option<TraceEvent>| event.as_ref().map(|event| event.choices);
        if chose(&self.first) != chose(&self.second) {
            write!(
                f,
                "\n  between these they asked the tape other questions, or got other answers"
            )?;
        }
        Ok(())
    }
}

/// The first event in which two runs differ; `None` if they are equal. Names events only if both
/// lists were kept from the start.
pub fn first_difference(a: &Trace, b: &Trace) -> Option<Difference> {
    if std::ptr::eq(a, b) {
        return None;
    }
    let (first, second) = (a.list(), b.list());
    let end = first.len().max(second.len());
    let differs = (0..end).find(|at| first.get(*at) != second.get(*at));
    // A list that was cut short ends without a difference.
    let is_cut = a.dropped() > 0 || b.dropped() > 0;
    match differs {
        Some(at) if !is_cut || at < first.len().min(second.len()) => Some(Difference {
            index: Some(at),
            first: first.get(at).cloned(),
            second: second.get(at).cloned(),
            before: at.checked_sub(1).and_then(|at| first.get(at).cloned()),
        }),
        _ if a.hash() != b.hash() => Some(Difference {
            index: None,
            first: None,
            second: None,
            before: None,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> TraceEvent {
        TraceEvent {
            at: Instant::from_nanos(2_000),
            host: Some("a".into()),
            task: Some("destage"),
            kind: "poll",
            text: text.into(),
            value: 0,
            choices: 0,
        }
    }

    fn trace(events: &[&str], limit: usize) -> Trace {
        let trace = Trace::off();
        trace.start(limit);
        for text in events {
            trace.step_named(text, 1);
            trace.push(event(text));
        }
        trace
    }

    #[test]
    fn first_difference_names_both_events_and_tasks() {
        let (a, b) = (trace(&["x", "y"], 9), trace(&["x", "z"], 9));
        let difference = first_difference(&a, &b).unwrap();
        assert_eq!(
            difference.to_string(),
            "the runs differ at event 1\n  \
             both before: at=2µs host=a task=destage poll x\n  \
             first run:   at=2µs host=a task=destage poll y\n  \
             second run:  at=2µs host=a task=destage poll z"
        );
        assert_eq!(first_difference(&a, &a), None);
    }

    #[test]
    fn run_that_ends_early_differs_at_its_end() {
        let (a, b) = (trace(&["x"], 9), trace(&["x", "z"], 9));
        let difference = first_difference(&a, &b).unwrap();
        assert_eq!((difference.index, difference.first), (Some(1), None));
    }

    #[test]
    fn difference_that_was_not_recorded_is_still_found() {
        let (a, b) = (trace(&["x", "y"], 1), trace(&["x", "z"], 1));
        assert_eq!((a.dropped(), a.events().len()), (1, 1));
        let difference = first_difference(&a, &b).unwrap();
        assert_eq!(difference.index, None);
        assert!(difference.to_string().contains("start both traces"));
    }
}
