//! Exhaustive small runs: every workload up to a length over a small alphabet, shortest first, at
//! several depths and schedules. Pure.

use super::Plan;
use crate::{Family, GuestOp, Scale, Swarm, Tape, sim::Schedule};

/// The space that is enumerated.
#[derive(Clone, Debug)]
pub struct Space {
    /// The case that its plans are made for.
    pub case: String,
    /// Logical blocks of the guest's disk.
    pub blocks: u64,
    /// What the guest may do, simple things first.
    pub alphabet: Vec<GuestOp>,
    /// Longest workload.
    pub ops_max: usize,
    /// IOs in flight at once.
    pub depths: Vec<usize>,
    /// Random schedules beside FIFO.
    pub schedules: u64,
}

/// One run of a space: the plan, and the seed of what it leaves open; `None`: benign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Small {
    /// The plan.
    pub plan: Plan,
    /// Seed of schedule, events and kicks.
    pub seed: Option<u64>,
}

impl Small {
    /// The tape that decides what the plan leaves open.
    pub fn tape(&self) -> Tape {
        match self.seed {
            None => Tape::benign(),
            Some(seed) => tape_of(seed),
        }
    }
}

/// The tape of a seed: half of them do much of everything, half as their seed says. None draws
/// entropy: identities that differ from run to run would only make equal media look different.
pub(super) fn tape_of(seed: u64) -> Tape {
    let swarm = match seed % 2 {
        0 => Swarm::default(),
        _ => Swarm::random(seed).with(Family::Event, 1),
    };
    Tape::random(seed).with_swarm(swarm.with(Family::Entropy, 0))
}

impl Space {
    /// All operations over `blocks`, up to three of them, depth 1 and 2, FIFO and 8 schedules.
    pub fn new(case: &str, blocks: u64) -> Self {
        Self {
            case: case.to_owned(),
            blocks,
            alphabet: GuestOp::alphabet(blocks),
            ops_max: 3,
            depths: vec![1, 2],
            schedules: 8,
        }
    }

    /// Every run, short workloads first.
    pub fn runs(&self) -> impl Iterator<Item = Small> + '_ {
        (1..=self.ops_max).flat_map(move |len| {
            let workloads = self
                .alphabet
                .len()
                .pow(u32::try_from(len).unwrap_or(u32::MAX));
            (0..workloads).flat_map(move |number| self.of_workload(len, number))
        })
    }

    /// Number of runs.
    pub fn len(&self) -> u64 {
        let ops = self.alphabet.len() as u64;
        let mut workloads = 0;
        let mut of_len = 1;
        for _ in 0..self.ops_max {
            of_len *= ops;
            workloads += of_len;
        }
        workloads * self.depths.len() as u64 * (1 + self.schedules)
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn of_workload(&self, len: usize, mut number: usize) -> impl Iterator<Item = Small> + '_ {
        let mut ops = Vec::with_capacity(len);
        for _ in 0..len {
            ops.push(self.alphabet[number % self.alphabet.len()]);
            number /= self.alphabet.len();
        }
        ops.reverse();
        self.depths
            .iter()
            .filter(move |depth| len > 1 || **depth == 1)
            .flat_map(move |depth| {
                let plan = Plan::new(&self.case, Scale::Tiny, self.blocks, *depth, ops.clone());
                let fifo = Small {
                    plan: plan.clone(),
                    seed: None,
                };
                let others = (0..self.schedules).map(move |seed| {
                    let mut plan = plan.clone();
                    plan.schedule = match seed % 4 {
                        3 => Schedule::Pct { depth: 3 },
                        _ => Schedule::Random,
                    };
                    Small {
                        plan,
                        seed: Some(seed),
                    }
                });
                std::iter::once(fifo).chain(others)
            })
    }
}
