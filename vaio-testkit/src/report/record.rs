//! [`Recording`]: a failing plan, replayed once with everything written down, as a story in
//! chapters: what the guest asked, what the filter asked below, what was durable when, what a
//! crash left, and what recovery made of it.
//!
//! The trace says in which order things happened; the journals of the disks and the history of the
//! oracle say what they were. The crash state that failed is checked in a world of its own, so its
//! chapters come from a second trace. Invariant: a recording holds the whole run; what is left out
//! of a text is the text's business.

use vaio_core::{Instant, OpKind};

use super::{chapter::Builder, content::Labels, story};
use crate::{
    GuestOp, Schedule, Sim, Subject, Tape, TraceEvent,
    disk::Fate,
    explore::{Belief, Broken, CrashKind, Lab, Plan, Rig, Seen, recorded_in},
    oracle::{Moment, OpId, promise_name},
    sim::TRACE_EVENTS_MAX,
    stamp::Stamp,
};

/// A failing run, in chapters.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The filter's name.
    pub filter: &'static str,
    /// What it promises.
    pub promise: &'static str,
    /// What was broken.
    pub broken: Broken,
    /// The case that found it.
    pub case: String,
    /// The plan, with the crash state that failed; `None` for a script, which a seed replays.
    pub plan: Option<Plan>,
    /// Names of the lower devices, the backing first.
    pub disks: Vec<String>,
    /// From each opening of the disk to its end.
    pub chapters: Vec<Chapter>,
    /// Where the data of the block in question went, write by write.
    pub story: Vec<story::Told>,
    /// Every event of both worlds (0: the run, 1: what was made of its crash).
    pub events: Vec<(usize, TraceEvent)>,
}

/// From one opening of the disk to its close or crash.
#[derive(Clone, Debug)]
pub struct Chapter {
    /// Which opening this is.
    pub title: String,
    /// What happened, in order.
    pub rows: Vec<Row>,
    /// IO below that was submitted in it.
    pub ios: Vec<LowerIo>,
    /// How it ended, if by a crash.
    pub crash: Option<Crash>,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub struct Row {
    /// Virtual time.
    pub at: Instant,
    /// The guest's clock, which explanations refer to.
    pub clock: Option<Moment>,
    /// What.
    pub what: What,
    /// Whether it concerns the block in question.
    pub matters: bool,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum What {
    /// The guest submitted an operation.
    Asked {
        /// Its number.
        op: OpId,
        /// What it is.
        text: String,
    },
    /// The guest got an answer.
    Answered {
        /// Number of the operation.
        op: OpId,
        /// `ok`, what was read, or the error.
        text: String,
        /// Whether this answer is the broken promise.
        is_broken: bool,
    },
    /// The disk was opened or closed, or the guest was idle.
    Step(String),
    /// The filter did something beside IO: a timer woke a task, a probe was passed.
    Filter(String),
    /// IO below was submitted; index into [`Chapter::ios`].
    Submit(usize),
    /// IO below was answered.
    Done(usize),
}

/// One IO below.
#[derive(Clone, Debug)]
pub struct LowerIo {
    /// Index into [`Recording::disks`].
    pub disk: usize,
    /// `w3` as crash specifications say, with a prime for each world after the first.
    pub name: String,
    /// What.
    pub op: OpKind,
    /// First block and the one past the last; equal for a flush.
    pub blocks: (u64, u64),
    /// Durable at its answer.
    pub is_fua: bool,
    /// Task that asked; `None`: on behalf of the guest.
    pub task: Option<&'static str>,
    /// What each block holds, in a word.
    pub labels: Vec<String>,
    /// The same, equal neighbours joined.
    pub content: String,
    /// Blocks that carry no stamp, and how they begin, in hexadecimal; the first few.
    pub own: Vec<(u64, String)>,
    /// Stamps of the guest in it.
    pub stamps: Vec<Stamp>,
    /// Index of the row of its submission.
    pub submitted: usize,
    /// Index of the row of its answer.
    pub ended: Option<usize>,
    /// What became of it, crashes included.
    pub fate: Fate,
    /// Row from which on no crash takes it away.
    pub durable: Option<usize>,
    /// Of a flush: names of the writes that it made durable.
    pub covers: Vec<String>,
    /// Whether it concerns the block in question.
    pub matters: bool,
}

impl LowerIo {
    /// Whether it changes what the device holds.
    pub fn is_mutation(&self) -> bool {
        matches!(
            self.op,
            OpKind::Write | OpKind::WriteZeroes | OpKind::Discard
        )
    }

    /// `1..3`; empty for a flush.
    pub fn range(&self) -> String {
        if self.blocks.0 == self.blocks.1 {
            return String::new();
        }
        format!("{}..{}", self.blocks.0, self.blocks.1)
    }
}

/// A crash.
#[derive(Clone, Debug)]
pub struct Crash {
    /// What died, and where in the run.
    pub title: String,
    /// What was not durable on each disk, and what became of it.
    pub undecided: Vec<Undecided>,
}

/// A write that a crash decided.
#[derive(Clone, Debug)]
pub struct Undecided {
    /// Index into [`Recording::disks`].
    pub disk: usize,
    /// Index into [`Chapter::ios`].
    pub io: usize,
    /// Survived, torn or lost.
    pub fate: Fate,
    /// Which of its blocks are there, of a torn one: from 0.
    pub kept: Vec<u64>,
    /// Whether it had been answered.
    pub is_acked: bool,
}

/// Replays `plan` with everything written down; `None` if it does not fail.
pub fn record(lab: &Lab, plan: &Plan) -> Option<Recording> {
    let sim = Sim::new(Tape::replay(plan.choices.clone()), plan.schedule);
    sim.trace().start(TRACE_EVENTS_MAX);
    let run = recorded_in(lab, plan, &sim, &mut Seen::default());
    let failure = *run.ran.failure?;
    let descriptor = lab.subject.descriptor();
    let broken = failure.broken.clone();
    let disks = run.rig.names().iter().map(ToString::to_string).collect();
    let is_coded = descriptor.content == vaio_core::Content::Transformed;
    let mut labels = Labels::new(is_coded);

    let mut first = Builder::new(0, &run.rig, &run.belief, broken.block, &mut labels);
    first.read(&sim.trace().events());
    if let Some(last) = &run.last {
        let boundary = failure.boundary.unwrap_or(0);
        match failure.kind {
            CrashKind::Power => first.power(
                &failure.plan.end.clone().unwrap_or_default(),
                Some((&last.before, boundary)),
            ),
            CrashKind::Kill => first.killed(Some((last.landing, boundary))),
        }
    }
    let mut chapters = first.end();
    let mut events: Vec<_> = sim.trace().events().into_iter().map(|e| (0, e)).collect();

    let mut belief = run.belief;
    if let Some(state) = run.last.and_then(|last| last.state) {
        let sim = Sim::new(Tape::benign(), Schedule::Fifo);
        sim.trace().start(TRACE_EVENTS_MAX);
        let (_, rig, later) = state.recorded_in(lab, &sim);
        let mut second = Builder::new(1, &rig, &later, broken.block, &mut labels);
        second.read(&sim.trace().events());
        let mut later_chapters = second.end();
        let may_be_within = lab.checks.recovery_crash && broken.rule != "dirty-under-reported";
        note_crash_within(&mut later_chapters, may_be_within);
        chapters.extend(later_chapters);
        events.extend(sim.trace().events().into_iter().map(|e| (1, e)));
        belief = later;
    }
    let history = belief.oracle().history().clone();
    let story = story::tell(&history, &chapters, broken.block);
    Some(Recording {
        filter: lab.subject.name(),
        promise: promise_name(lab.subject.promise()),
        broken,
        case: failure.plan.case.clone(),
        plan: Some(failure.plan),
        disks,
        chapters,
        story,
        events,
    })
}

/// What a script did in a world whose trace was kept.
pub(crate) fn record_script(
    subject: &Subject,
    case: &str,
    broken: Broken,
    (rig, belief): (&Rig, &Belief),
) -> Recording {
    let descriptor = subject.descriptor();
    let is_coded = descriptor.content == vaio_core::Content::Transformed;
    let mut labels = Labels::new(is_coded);
    let mut builder = Builder::new(0, rig, belief, broken.block, &mut labels);
    let events = rig.sim().trace().events();
    builder.read(&events);
    let chapters = builder.end();
    let history = belief.oracle().history().clone();
    Recording {
        filter: subject.name(),
        promise: promise_name(subject.promise()),
        case: case.to_owned(),
        story: story::tell(&history, &chapters, broken.block),
        broken,
        plan: None,
        disks: rig.names().iter().map(ToString::to_string).collect(),
        chapters,
        events: events.into_iter().map(|event| (0, event)).collect(),
    }
}

/// The check of a crash state ended well, and still something was found: power failed again while
/// it recovered. That world is not drawn.
fn note_crash_within(chapters: &mut [Chapter], is_reported: bool) {
    let is_shown = |row: &Row| match &row.what {
        What::Answered { is_broken, .. } => *is_broken,
        What::Step(text) => text.starts_with("does not open"),
        _ => false,
    };
    let shown = chapters
        .iter()
        .any(|chapter| chapter.rows.iter().any(is_shown));
    if let Some(first) = chapters.first_mut()
        && is_reported
        && !shown
    {
        let title = "; a power failure within this recovery is what breaks the promise (not drawn)";
        first.title.push_str(title);
    }
}

/// Whether an operation of the guest touches `block`.
pub(super) fn touches(op: &GuestOp, block: Option<u64>) -> bool {
    block.is_some_and(|block| op.blocks().contains(&block))
}
