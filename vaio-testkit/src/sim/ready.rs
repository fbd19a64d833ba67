//! [`Schedule`] and the queue of tasks that can run: which one is next.

use std::collections::{BTreeSet, VecDeque};

use crate::tape::{Family, NameId, Tape};

/// In which order tasks run that could all run now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// In the order in which they were woken. Asks the tape nothing.
    Fifo,
    /// A woken task may overtake up to 63 that wait, as the tape says: at each wake one choice of
    /// [`Family::Schedule`] under `host.task`, 0 = the place of [`Schedule::Fifo`], j = j places
    /// ahead.
    Random,
    /// Strict priorities, which the tape gives at spawn, and `depth - 1` moments in every 1,000
    /// polls at which the running task drops to the lowest. Finds bugs that need few, precisely
    /// placed switches. A task that runs 100 times in a row drops too, so that a task which spins
    /// lets the others run.
    Pct {
        /// Number of ordered steps that a bug needs; 1 to 8 make sense.
        depth: u32,
    },
}

/// How far a woken task may overtake.
const PLACES_MAX: usize = 63;
/// Tasks of a small world.
const TASKS_USUAL: usize = 16;
const PCT_CLASSES: u32 = 16;
const PCT_WINDOW: u32 = 1_000;
const PCT_TURNS: u32 = 100;
const PCT_LOWEST: u64 = 1 << 48;

/// The queue. Knows tasks by the number of their slot.
#[derive(Debug)]
pub(super) enum Ready {
    Fifo(VecDeque<u32>),
    Random(VecDeque<u32>),
    Pct(Box<Pct>),
}

#[derive(Debug)]
pub(super) struct Pct {
    depth: u32,
    queue: BTreeSet<(u64, u32)>,
    ranks: Vec<u64>,
    spawned: u64,
    demoted: u64,
    polls: u32,
    changes: Vec<u32>,
    last: u32,
    turns: u32,
}

impl Ready {
    pub(super) fn new(schedule: Schedule) -> Self {
        match schedule {
            Schedule::Fifo => Self::Fifo(VecDeque::with_capacity(TASKS_USUAL)),
            Schedule::Random => Self::Random(VecDeque::with_capacity(TASKS_USUAL)),
            Schedule::Pct { depth } => Self::Pct(Box::new(Pct {
                depth,
                queue: BTreeSet::new(),
                ranks: Vec::new(),
                spawned: 0,
                demoted: 0,
                polls: 0,
                changes: Vec::new(),
                last: u32::MAX,
                turns: 0,
            })),
        }
    }

    /// Whether the tape will be asked, so that a task needs a name there.
    pub(super) fn asks(&self) -> bool {
        !matches!(self, Self::Fifo(_))
    }

    /// A task begins.
    pub(super) fn spawned(&mut self, task: u32, name: Option<NameId>, tape: &Tape) {
        let Self::Pct(pct) = self else { return };
        let class = name.map_or(0, |name| tape.choose_named(PCT_CLASSES, name));
        let at = task as usize;
        if pct.ranks.len() <= at {
            pct.ranks.resize(at + 1, 0);
        }
        pct.spawned += 1;
        pct.ranks[at] = (u64::from(class) << 32) + pct.spawned;
    }

    /// A task can run. It is in the queue once.
    pub(super) fn push(&mut self, task: u32, name: Option<NameId>, tape: &Tape) {
        match self {
            Self::Fifo(queue) => queue.push_back(task),
            Self::Random(queue) => {
                let places = queue.len().min(PLACES_MAX);
                let ahead = match name {
                    Some(name) if places > 0 => {
                        let options = u32::try_from(places + 1).expect("places are few");
                        tape.choose_named(options, name) as usize
                    }
                    _ => 0,
                };
                if ahead == 0 {
                    queue.push_back(task);
                } else {
                    queue.insert(queue.len() - ahead, task);
                }
            }
            Self::Pct(pct) => {
                let is_new = pct.queue.insert((pct.ranks[task as usize], task));
                assert!(is_new, "a task is queued once");
            }
        }
    }

    /// The task that runs now.
    pub(super) fn pop(&mut self, tape: &Tape) -> Option<u32> {
        match self {
            Self::Fifo(queue) | Self::Random(queue) => queue.pop_front(),
            Self::Pct(pct) => pct.pop(tape),
        }
    }

    pub(super) fn clear(&mut self) {
        match self {
            Self::Fifo(queue) | Self::Random(queue) => queue.clear(),
            Self::Pct(pct) => pct.queue.clear(),
        }
    }
}

impl Pct {
    fn pop(&mut self, tape: &Tape) -> Option<u32> {
        let (_, task) = self.queue.pop_first()?;
        if self.polls == 0 {
            self.changes.clear();
            for _ in 1..self.depth {
                let at = tape.choose(PCT_WINDOW, Family::Schedule, "pct.change");
                self.changes.push(at);
            }
        }
        self.polls = (self.polls + 1) % PCT_WINDOW;
        self.turns = if task == self.last { self.turns + 1 } else { 1 };
        self.last = task;
        // Change point 0 is none.
        let drops = self.polls != 0 && self.changes.contains(&self.polls);
        if drops || self.turns >= PCT_TURNS {
            self.turns = 0;
            self.demoted += 1;
            self.ranks[task as usize] = PCT_LOWEST + self.demoted;
        }
        Some(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(ready: &mut Ready, tape: &Tape) -> Vec<u32> {
        std::iter::from_fn(|| ready.pop(tape)).collect()
    }

    #[test]
    fn random_queue_overtakes_as_the_tape_says() {
        let tape = Tape::replay("choose schedule t#1 = 2".parse().unwrap());
        let name = Some(tape.name(Family::Schedule, "t"));
        let mut ready = Ready::new(Schedule::Random);
        for task in 0..4 {
            ready.push(task, name, &tape);
        }
        // The first push has no one to overtake, so it asks nothing: #1 is the third.
        assert_eq!(order(&mut ready, &tape), [2, 0, 1, 3]);
    }

    #[test]
    fn benign_schedules_keep_the_order_of_wakes() {
        for schedule in [Schedule::Fifo, Schedule::Random, Schedule::Pct { depth: 3 }] {
            let tape = Tape::benign();
            let name = Some(tape.name(Family::Schedule, "t"));
            let mut ready = Ready::new(schedule);
            for task in 0..4 {
                ready.spawned(task, name, &tape);
                ready.push(task, name, &tape);
            }
            assert_eq!(order(&mut ready, &tape), [0, 1, 2, 3], "{schedule:?}");
        }
    }

    #[test]
    fn pct_task_drops_at_a_change_point_and_when_it_spins() {
        let tape = Tape::replay("choose schedule pct.change#0 = 3".parse().unwrap());
        let name = Some(tape.name(Family::Schedule, "t"));
        let mut ready = Ready::new(Schedule::Pct { depth: 2 });
        for task in 0..2 {
            ready.spawned(task, name, &tape);
            ready.push(task, name, &tape);
        }
        let mut ran = Vec::new();
        for _ in 0..200 {
            let task = ready.pop(&tape).unwrap();
            ran.push(task);
            ready.push(task, name, &tape);
        }
        assert_eq!(ran[..5], [0, 0, 0, 1, 1]);
        assert_eq!(ran[3..103], [1; 100]);
        assert_eq!(ran[103], 0);
    }
}
