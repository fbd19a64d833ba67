//! Random large runs: long workloads, many in flight, several crashes. Every option comes from the
//! seed.

use super::{Crash, CrashKind, Era, Plan};
use crate::{
    Family, Scale, Swarm, Tape,
    sim::Schedule,
    workload::{WorkloadSettings, random_workload},
};

/// How large random runs are.
#[derive(Clone, Debug)]
pub struct Large {
    /// The case that its plans are made for.
    pub case: String,
    /// Logical blocks of the guest's disk, by scale.
    pub blocks: [(Scale, u64); 2],
    /// Operations in all, least and most.
    pub ops: (u32, u32),
    /// Most crashes before the end of the last era.
    pub crashes_max: u32,
    /// Most guest IOs in flight at once.
    pub depth_max: u32,
}

/// A run and the tape that decides what its plan leaves open.
#[derive(Clone, Debug)]
pub struct LargeRun {
    /// The plan.
    pub plan: Plan,
    /// The tape.
    pub tape: Tape,
}

impl Large {
    /// 10 to 200 operations, up to 5 crashes, up to 16 in flight.
    pub fn new(case: &str, subject: &crate::Subject) -> Self {
        Self {
            case: case.to_owned(),
            blocks: [Scale::Tiny, Scale::Small].map(|scale| (scale, subject.blocks(scale))),
            ops: (10, 200),
            crashes_max: 5,
            depth_max: 16,
        }
    }

    /// The run of a seed.
    pub fn run(&self, seed: u64) -> LargeRun {
        let of_plan = Tape::random(seed);
        let mut choose = |n: u32, name: &str| of_plan.choose(n.max(1), Family::Op, name);
        // Two in three at tiny scale, where everything wraps and evicts.
        let (scale, blocks) = self.blocks[usize::from(choose(3, "scale") == 2)];
        let depth = match choose(4, "deep") {
            0 => 1,
            1 => 2,
            _ => 1 + choose(self.depth_max, "depth"),
        };
        let span = self.ops.1 - self.ops.0 + 1;
        let ops = match choose(3, "long") {
            0 | 1 => self.ops.0 + choose(span.min(40), "ops"),
            _ => self.ops.0 + choose(span, "ops"),
        };
        let crashes = choose(self.crashes_max + 1, "crashes");
        let schedule = match choose(4, "schedule") {
            0 => Schedule::Fifo,
            1 => Schedule::Pct { depth: 3 },
            _ => Schedule::Random,
        };
        let mut workload = random_workload(&WorkloadSettings::new(blocks, ops), &mut choose);
        let mut eras = Vec::new();
        for _ in 0..crashes {
            let left = u32::try_from(workload.len()).unwrap_or(u32::MAX);
            let rest = workload.split_off(choose(left + 1, "cut") as usize);
            let kind = match choose(4, "kind") {
                3 => CrashKind::Kill,
                _ => CrashKind::Power,
            };
            let after = 1 + choose(
                8 + 8 * u32::try_from(workload.len()).unwrap_or(1000),
                "after",
            );
            eras.push(Era {
                ops: std::mem::replace(&mut workload, rest),
                crash: Some(Crash {
                    kind,
                    after,
                    spec: None,
                }),
            });
        }
        eras.push(Era {
            ops: workload,
            crash: None,
        });
        let mut plan = Plan::new(
            &self.case,
            scale,
            blocks,
            usize::try_from(depth).unwrap_or(1),
            Vec::new(),
        );
        plan.eras = eras;
        plan.schedule = schedule;
        // Crashes and what survives them are never off: they are what a run is for.
        let tape = Tape::random(seed).with_swarm(Swarm::random(seed));
        LargeRun { plan, tape }
    }
}
