//! A campaign: many runs of one case, until one breaks a promise; then that one, shrunk.

use std::collections::BTreeMap;

use super::{
    Failure, Lab, Plan, Ran, Seen, TRIES_MAX, Work,
    enumerate::{Small, Space, tape_of},
    random::Large,
    run::run,
    shrink,
};
use crate::Tape;

/// What a campaign found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The failure, shrunk.
    pub failure: Option<Box<Failure>>,
    /// The plan before it was shrunk.
    pub found: Option<Box<Plan>>,
    /// What it cost.
    pub work: Work,
    /// Reach marks.
    pub marks: BTreeMap<&'static str, u64>,
}

/// How a campaign goes about its runs.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Most runs.
    pub runs_max: u64,
    /// Tries of the shrinker; 0: what was found is reported as it is.
    pub tries_max: usize,
}

impl Effort {
    /// At most this many runs, shrunk.
    pub const fn runs(runs_max: u64) -> Self {
        Self {
            runs_max,
            tries_max: TRIES_MAX,
        }
    }
}

/// Runs a space, or an evenly spread part of it that fits the effort: short workloads are all
/// done first.
pub fn exhaustive(lab: &Lab, space: &Space, effort: Effort) -> Verdict {
    let mut verdict = Verdict::default();
    let mut seen = Seen::default();
    for small in spread(space, effort.runs_max) {
        if verdict.add(lab, &small.plan, &small.tape(), &mut seen, effort) {
            break;
        }
    }
    verdict
}

/// Runs the seeds from `first` on.
pub fn random(lab: &Lab, large: &Large, first: u64, effort: Effort) -> Verdict {
    let mut verdict = Verdict::default();
    for seed in first..first.saturating_add(effort.runs_max) {
        let run = large.run(seed);
        // States of different seeds are different: nothing to remember.
        if verdict.add(lab, &run.plan, &run.tape, &mut Seen::default(), effort) {
            break;
        }
    }
    verdict
}

impl Verdict {
    /// Does one run; says whether it failed.
    fn add(
        &mut self,
        lab: &Lab,
        plan: &Plan,
        tape: &Tape,
        seen: &mut Seen,
        effort: Effort,
    ) -> bool {
        let ran = run(lab, plan, tape, seen);
        self.work += ran.work;
        for (mark, count) in ran.marks {
            *self.marks.entry(mark).or_default() += count;
        }
        let Some(failure) = ran.failure else {
            return false;
        };
        self.found = Some(Box::new(failure.plan.clone()));
        self.failure = Some(smallest(lab, &failure, effort.tries_max));
        true
    }
}

/// The smallest failure of the same rule that shrinking finds, in at most `tries_max` tries and a
/// few seconds.
pub fn smallest(lab: &Lab, failure: &Failure, tries_max: usize) -> Box<Failure> {
    let rule = failure.broken.rule.clone();
    let mut best = Box::new(failure.clone());
    let mut price = 0;
    shrink(failure.plan.clone(), tries_max, |attempt| {
        if price >= PRICE_MAX {
            return None;
        }
        let tape = match attempt.seed {
            Some(seed) => tape_of(seed),
            None => Tape::replay(attempt.plan.choices.clone()),
        };
        let ran = run(lab, attempt.plan, &tape, &mut Seen::default());
        price += price_of(&ran);
        best = ran.failure.filter(|failed| failed.broken.rule == rule)?;
        Some(best.plan.clone())
    });
    best
}

/// What a shrink may cost, as `price_of` counts: a few seconds of one core.
const PRICE_MAX: u64 = 2_000_000;

/// About the microseconds that a run takes, from what it did: a clock would not give the same
/// answer twice.
const fn price_of(ran: &Ran) -> u64 {
    // Steps alone say little: a task that spins takes a million in a moment.
    let work = &ran.work;
    20 + ran.steps / 300 + 3 * work.boundaries + 10 * work.images + 30 * work.states
}

/// All runs of the space if there are no more than `max`; else all workloads that are shorter than
/// the longest and every n-th of the longest; and if the shorter ones alone are too many, an even
/// part of both.
fn spread(space: &Space, max: u64) -> impl Iterator<Item = Small> + '_ {
    let short = Space {
        ops_max: space.ops_max.saturating_sub(1),
        ..space.clone()
    };
    let (all, short) = (space.len(), short.len());
    let cycle = space.depths.len() as u64 * (1 + space.schedules);
    let step_short = if short <= max {
        1
    } else {
        step(short, max / 2, cycle)
    };
    let step_long = step(all - short, max.saturating_sub(short / step_short), cycle);
    let mut number = 0u64;
    space
        .runs()
        .filter(move |_| {
            number += 1;
            if number <= short {
                number.is_multiple_of(step_short)
            } else {
                (number - short).is_multiple_of(step_long)
            }
        })
        .take(usize::try_from(max).unwrap_or(usize::MAX))
}

/// Every how many of `runs` to take so that about `share` are. Without a divisor of what repeats
/// (schedules, depths), so that each of them is seen.
fn step(runs: u64, share: u64, cycle: u64) -> u64 {
    let shares_divisor =
        |step: u64| (2..=cycle).any(|n| cycle.is_multiple_of(n) && step.is_multiple_of(n));
    let mut step = runs.div_ceil(share.max(1)).max(1);
    while step > 1 && shares_divisor(step) {
        step += 1;
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_below_the_short_workloads_still_has_long_ones_and_every_schedule() {
        let space = Space {
            schedules: 4,
            ..Space::new("a::b", 4)
        };
        for max in [40, 350, 5_000] {
            let runs: Vec<_> = spread(&space, max).collect();
            assert!(
                runs.len() as u64 <= max && runs.len() as u64 > max / 2,
                "{max}"
            );
            let with = |len: usize| runs.iter().filter(|run| run.plan.ops() == len).count();
            assert!(with(3) > runs.len() / 4, "{max}: {}", with(3));
            let seeds: std::collections::BTreeSet<_> = runs.iter().map(|run| run.seed).collect();
            assert_eq!(seeds.len(), 5, "{max}");
        }
    }
}
