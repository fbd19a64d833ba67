//! Liveness and determinism.

use std::time::Duration;

use vaio_core::OpKind;

use super::{Bench, Broken, Script, seeds};
use crate::{
    GuestOp, Subject, Tape,
    conformance::{Budget, Found, Said},
    disk::{Fault, Rule},
    explore::{Lab, OnError, Seen, Work, random::Large, run_in},
    sim::{Sim, first_difference},
};

/// Events of a run that are kept to name the first that differs.
const KEPT: usize = 200_000;

pub(super) fn find(name: &str) -> Option<Script> {
    Some(match name {
        "liveness::smallest_reserve" => {
            |subject, budget| seeds(subject, budget, 60, smallest_reserve)
        }
        "liveness::everything_ends" => {
            |subject, budget| seeds(subject, budget, 60, everything_ends)
        }
        "liveness::idle_ends" => |subject, budget| seeds(subject, budget, 4, idle_ends),
        "liveness::stalls_below" => |subject, budget| seeds(subject, budget, 60, stalls_below),
        "determinism::same_run" => |subject, budget| same(subject, budget, 40, false),
        "determinism::same_plan" => |subject, budget| same(subject, budget, 30, true),
        _ => return None,
    })
}

/// Far more IO in flight than the filter has slots below itself: everything ends.
fn smallest_reserve(bench: &Bench) -> Result<(), Broken> {
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    let guest = bench.guest(&disk, 64);
    bench.run(guest.run(&bench.workload(64)))?;
    bench.run(guest.read_all())?;
    bench.must("close", disk.close())
}

/// After faults below have ended, every IO ends and the disk closes or says why not.
fn everything_ends(bench: &Bench) -> Result<(), Broken> {
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    let mut guest = bench.guest(&disk, 4);
    guest.on_error = OnError::Allowed;
    for below in bench.rig.disks() {
        below.faults(|faults| {
            faults.allow(&[Fault::Error, Fault::Stall(Duration::from_secs(1))], None);
        });
    }
    bench.run(guest.run(&bench.workload(16)))?;
    for below in bench.rig.disks() {
        below.quiet();
    }
    bench.run(guest.run(&bench.workload(10)))?;
    bench.run(guest.read_all())?;
    // It may refuse to be clean after what it went through; it may not hang.
    let _ = bench.sim.run(disk.close())?;
    Ok(())
}

/// A disk with nothing to do comes to rest: a virtual hour costs next to nothing.
fn idle_ends(bench: &Bench) -> Result<(), Broken> {
    /// Events of an hour: a timer a second, and some.
    const STEPS_MAX: u64 = 50_000;
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    bench.run(bench.guest(&disk, 2).run(&bench.workload(6)))?;
    bench.run(bench.guest(&disk, 1).submit(GuestOp::Idle))?;
    let before = bench.sim.trace().steps();
    bench.run(async {
        bench.sim.sleep(Duration::from_mins(50)).await;
        Ok(())
    })?;
    let steps = bench.sim.trace().steps() - before;
    if steps > STEPS_MAX {
        let what = format!(
            "an idle disk does not come to rest: steps={steps} in 50 minutes, at most {STEPS_MAX}"
        );
        return Err(Broken::new("busy-when-idle", what));
    }
    Ok(())
}

/// A lower IO that takes a second delays, and loses nothing.
fn stalls_below(bench: &Bench) -> Result<(), Broken> {
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    let guest = bench.guest(&disk, 4);
    for (number, below) in (0..).zip(bench.rig.disks()) {
        let stall = Rule::once(Fault::Stall(Duration::from_secs(1)));
        for op in [OpKind::Write, OpKind::Flush, OpKind::Read] {
            below.faults(|faults| faults.add(stall.on(op).after(number)));
        }
    }
    bench.run(guest.run(&bench.workload(16)))?;
    bench.run(guest.read_all())?;
    bench.must("close", disk.close())
}

/// Pairs of runs that are written down until two differ.
const PAIRS_MAX: usize = 32;

/// The same seed, or the same plan, twice: the same events.
fn same(subject: &Subject, budget: &Budget, quick: u64, by_plan: bool) -> Said {
    let lab = {
        let mut lab = Lab::new(subject.clone());
        lab.checks.tiers.clear();
        lab.checks.kinds.clear();
        lab
    };
    let mut large = Large::new("determinism::same_run", subject);
    large.ops = (5, 40);
    let mut work = Work::default();
    for seed in budget.seed..budget.seed + budget.runs(quick) {
        let once = |choices: Option<&crate::Choices>, kept| {
            let run = large.run(seed);
            let tape = choices.map_or(run.tape, |choices| Tape::replay(choices.clone()));
            let sim = Sim::new(tape, run.plan.schedule);
            if kept {
                sim.trace().start(KEPT);
            }
            let ran = run_in(&lab, &run.plan, &sim, &mut Seen::default());
            let taken = sim.tape().taken();
            (sim, ran, taken)
        };
        let (_, first, taken) = once(None, false);
        let choices = by_plan.then_some(&taken);
        let (_, second, _) = once(choices, false);
        work += first.work;
        // A replay draws nothing, so its trace is compared with another replay.
        let second_again = if by_plan {
            once(choices, false).1.hash
        } else {
            first.hash
        };
        if second.hash == second_again && second.outcome == first.outcome {
            continue;
        }
        // Once more with everything written down; what differs by chance may be the same by chance.
        let where_ = (0..PAIRS_MAX).find_map(|_| {
            let (one, other) = (once(choices, true), once(choices, true));
            first_difference(one.0.trace(), other.0.trace())
        });
        let where_ = where_.map_or_else(
            || "in what is not listed".to_owned(),
            |difference| difference.to_string(),
        );
        let what = format!(
            "two runs of seed {seed} differ: the filter uses time, threads, chance or hash order \
             beside its Runtime\n  first difference: {where_}"
        );
        let broken = Broken::new("not-deterministic", what);
        return Said::Failed(Box::new(Found {
            broken,
            failure: None,
            was: (0, 0),
            lab,
            seed: Some(seed),
            recording: None,
        }));
    }
    Said::Passed(work)
}
