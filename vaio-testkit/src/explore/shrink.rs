//! Makes a failing plan small: fewer eras, operations, choices; then simpler ones. Pure.
//!
//! Each pass proposes smaller plans and keeps one if it still breaks the same rule. Passes repeat
//! until none helps or the budget of tries is used up. Order matters: what removes most comes
//! first.
//!
//! A choice is named by how often its name was asked before, so an operation that goes takes the
//! meaning of later choices along. Where nothing can go any more, a smaller plan is therefore also
//! tried *afresh*: with crashes at other moments and choices by chance, which are then dropped like
//! those that were found.

use std::ops::Range;

use super::{
    plan::{Crash, CrashKind, Plan},
    simpler::{simpler, weight},
};
use crate::{
    Choices, Family,
    sim::Schedule,
    tape::{Key, mix},
};

/// Tries of a whole shrink by default.
pub const TRIES_MAX: usize = 20_000;
/// Seeds that a plan is tried afresh with.
const SEEDS: u64 = 24;
/// The same for one that is still long.
const SEEDS_LONG: u64 = 160;
/// Operations up to which a plan with one crash is easy to follow.
const OPS_EASY: usize = 5;
/// About how many boundaries an operation has at most, background work included.
const BOUNDARIES_PER_OP: u64 = 8;

/// What came of a shrink.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The smallest plan found that still fails.
    pub plan: Plan,
    /// Runs that were made.
    pub tries: usize,
}

/// A plan that may still fail.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// `Some`: a tape of this seed decides, not the plan's choices, of which there are none.
    pub seed: Option<u64>,
}

/// Shrinks `plan`. `fails` makes an attempt and gives its plan back, with the choices that were
/// taken and the crash state that failed written into it, if it still breaks the same rule.
pub fn shrink(
    plan: Plan,
    tries_max: usize,
    fails: impl FnMut(Attempt<'_>) -> Option<Plan>,
) -> Shrunk {
    let mut shrinker = Shrinker {
        plan,
        tries: 0,
        tries_max,
        fails,
    };
    loop {
        shrinker.passes();
        if shrinker.is_spent() || !shrinker.afresh() {
            break;
        }
    }
    shrinker.blocks();
    Shrunk {
        plan: shrinker.plan,
        tries: shrinker.tries,
    }
}

/// What shrinking makes smaller, most important first.
fn size(plan: &Plan) -> (usize, usize, usize, u64, usize) {
    let weight = plan.eras.iter().flat_map(|era| &era.ops).map(weight).sum();
    let schedule = usize::from(plan.schedule != Schedule::Fifo);
    (
        plan.eras.len(),
        plan.ops(),
        plan.choices.len() + schedule,
        weight,
        plan.depth,
    )
}

/// The plan with something left out, most first: an era, a crash, operations.
fn cuts(plan: &Plan) -> Vec<Plan> {
    let mut found = Vec::new();
    let mut cut = |change: &dyn Fn(&mut Plan)| {
        let mut plan = plan.clone();
        change(&mut plan);
        found.push(plan);
    };
    for at in 0..plan.eras.len() - 1 {
        cut(&|plan| {
            plan.eras.remove(at);
        });
        cut(&|plan| {
            let gone = plan.eras.remove(at);
            plan.eras[at].ops.splice(0..0, gone.ops);
        });
    }
    let longest = plan.eras.iter().map(|era| era.ops.len()).max().unwrap_or(0);
    let mut chunk = longest;
    while chunk > 0 {
        for (era, ops) in plan.eras.iter().map(|era| era.ops.len()).enumerate() {
            for at in (0..ops).step_by(chunk) {
                cut(&|plan| {
                    plan.eras[era].ops.drain(at..(at + chunk).min(ops));
                });
            }
        }
        chunk /= 2;
    }
    found
}

/// The plan without its choices; the moments of its crashes by chance, except for the first seeds.
fn stirred(plan: &Plan, seed: u64) -> Plan {
    let mut plan = plan.clone();
    plan.choices = Choices::new();
    plan.end = None;
    for (number, era) in (1..).zip(&mut plan.eras) {
        let Some(crash) = &mut era.crash else {
            continue;
        };
        crash.spec = None;
        if seed % 4 == 2 {
            crash.after = Crash::AT_END;
        } else if seed >= 2 {
            let most = BOUNDARIES_PER_OP * (2 + era.ops.len() as u64);
            let after = 1 + mix(seed ^ mix(number)) % most;
            crash.after = u32::try_from(after).unwrap_or(u32::MAX);
        }
    }
    plan
}

struct Shrinker<F> {
    plan: Plan,
    tries: usize,
    tries_max: usize,
    fails: F,
}

impl<F: FnMut(Attempt<'_>) -> Option<Plan>> Shrinker<F> {
    fn is_spent(&self) -> bool {
        self.tries >= self.tries_max
    }

    /// Every pass, until none makes the plan smaller.
    fn passes(&mut self) {
        loop {
            let before = size(&self.plan);
            self.eras();
            self.all_choices();
            self.crashes();
            self.ops();
            self.depth_and_schedule();
            self.choices();
            self.simpler_ops();
            if size(&self.plan) >= before || self.is_spent() {
                return;
            }
        }
    }

    /// Tries plans with fewer eras or operations with other choices and other moments of the
    /// crashes; the first that fails is kept.
    fn afresh(&mut self) -> bool {
        let cuts = cuts(&self.plan);
        // What is easy to follow already is not worth the longer search.
        let is_small = self.plan.ops() <= OPS_EASY && self.plan.crashes() <= 1;
        self.with_seeds(&cuts, 0..SEEDS) || !is_small && self.with_seeds(&cuts, SEEDS..SEEDS_LONG)
    }

    fn with_seeds(&mut self, cuts: &[Plan], seeds: Range<u64>) -> bool {
        cuts.iter().any(|cut| {
            seeds.clone().any(|seed| {
                let plan = &stirred(cut, seed);
                self.attempt(Attempt {
                    plan,
                    seed: Some(seed),
                })
            })
        })
    }

    /// Keeps the plan if it still fails.
    fn try_plan(&mut self, plan: &Plan) -> bool {
        *plan != self.plan && self.attempt(Attempt { plan, seed: None })
    }

    fn attempt(&mut self, attempt: Attempt<'_>) -> bool {
        if self.is_spent() {
            return false;
        }
        self.tries += 1;
        match (self.fails)(attempt) {
            Some(failed) => {
                self.plan = failed;
                true
            }
            None => false,
        }
    }

    fn try_change(&mut self, change: impl FnOnce(&mut Plan)) -> bool {
        let mut plan = self.plan.clone();
        change(&mut plan);
        self.try_plan(&plan)
    }

    /// Drops whole eras, the first first: what failed is mostly at the end. Where an era cannot
    /// go, only its crash may: its operations join the next one.
    fn eras(&mut self) {
        let mut at = 0;
        while self.plan.eras.len() > 1 && at + 1 < self.plan.eras.len() {
            let dropped = self.try_change(|plan| {
                plan.eras.remove(at);
            }) || self.try_change(|plan| {
                let gone = plan.eras.remove(at);
                plan.eras[at].ops.splice(0..0, gone.ops);
            });
            if !dropped {
                at += 1;
            }
        }
    }

    /// Drops runs of operations, long ones first.
    fn ops(&mut self) {
        for era in 0..self.plan.eras.len() {
            let mut chunk = self.plan.eras[era].ops.len().max(1);
            loop {
                let mut at = 0;
                while at < self.plan.eras[era].ops.len() {
                    let dropped = self.try_change(|plan| {
                        let ops = &mut plan.eras[era].ops;
                        let end = (at + chunk).min(ops.len());
                        ops.drain(at..end);
                    });
                    if !dropped {
                        at += chunk;
                    }
                }
                if chunk == 1 || self.is_spent() {
                    break;
                }
                chunk /= 2;
            }
        }
    }

    /// Drops all choices, or all of one family: cheap and often enough.
    fn all_choices(&mut self) {
        if self.try_change(|plan| plan.choices = Choices::new()) {
            return;
        }
        for family in Family::ALL {
            if self
                .plan
                .choices
                .iter()
                .any(|(key, _)| key.family == family)
            {
                self.try_change(|plan| plan.choices.retain(|key, _| key.family != family));
            }
        }
    }

    /// Drops choices in runs, long ones first, then makes the rest smaller.
    fn choices(&mut self) {
        let mut chunk = self.plan.choices.len();
        while chunk > 0 && !self.is_spent() {
            let mut at = 0;
            while at < self.plan.choices.len() {
                let keys: Vec<Key> = self.keys().into_iter().skip(at).take(chunk).collect();
                let dropped = self.try_change(|plan| {
                    plan.choices.retain(|key, _| !keys.contains(key));
                });
                if !dropped {
                    at += chunk;
                }
            }
            chunk /= 2;
        }
        for key in self.keys() {
            let value = self.plan.choices.get(key.family, &key.name, key.nth);
            if value > 1 {
                self.try_change(|plan| plan.choices.set(key, 1));
            }
        }
    }

    fn keys(&self) -> Vec<Key> {
        self.plan
            .choices
            .iter()
            .map(|(key, _)| key.clone())
            .collect()
    }

    fn depth_and_schedule(&mut self) {
        self.try_change(|plan| plan.schedule = Schedule::Fifo);
        for depth in [1, 2, self.plan.depth / 2] {
            if depth >= 1 && depth < self.plan.depth && self.try_change(|plan| plan.depth = depth) {
                break;
            }
        }
    }

    /// Fewer blocks, lower blocks, no flags, plainer kinds.
    fn simpler_ops(&mut self) {
        for era in 0..self.plan.eras.len() {
            for at in 0..self.plan.eras[era].ops.len() {
                for simpler in simpler(&self.plan.eras[era].ops[at]) {
                    if self.try_change(|plan| plan.eras[era].ops[at] = simpler) {
                        break;
                    }
                }
            }
        }
    }

    /// Earlier crashes, and power cuts rather than kills.
    fn crashes(&mut self) {
        for era in 0..self.plan.eras.len() {
            let Some(crash) = self.plan.eras[era].crash.clone() else {
                continue;
            };
            if crash.kind == CrashKind::Kill {
                self.try_change(|plan| {
                    if let Some(crash) = &mut plan.eras[era].crash {
                        crash.kind = CrashKind::Power;
                    }
                });
            }
            self.crash_earlier(era, crash.after);
        }
    }

    /// At the end of its era, which outlives edits that add IO below; else as early as halving and
    /// single steps lead.
    fn crash_earlier(&mut self, era: usize, mut now: u32) {
        if now == Crash::AT_END
            || self.try_change(|plan| {
                if let Some(crash) = &mut plan.eras[era].crash {
                    crash.after = Crash::AT_END;
                }
            })
        {
            return;
        }
        let mut step = now / 2;
        while step > 0 {
            let is_earlier = self.try_change(|plan| {
                if let Some(crash) = &mut plan.eras[era].crash {
                    crash.after = now - step;
                }
            });
            if is_earlier {
                now -= step;
            } else {
                step /= 2;
            }
            step = step.min(now.saturating_sub(1));
        }
    }

    /// A smaller disk, at the end: it changes what every name means.
    fn blocks(&mut self) {
        let used = self.plan.eras.iter().flat_map(|era| &era.ops);
        let used = used.map(|op| op.blocks().end).max().unwrap_or(1).max(1);
        for blocks in [used, used.max(4)] {
            if blocks < self.plan.blocks && self.try_change(|plan| plan.blocks = blocks) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GuestOp, Scale, explore::plan::Era};

    fn write(block: u64) -> GuestOp {
        GuestOp::Write {
            block,
            count: 2,
            fua: true,
        }
    }

    /// Fails while block 7 is written before a flush in the last era, after a crash.
    fn fails(attempt: Attempt<'_>) -> Option<Plan> {
        let plan = attempt.plan;
        let era = plan.eras[1..].last()?;
        let wrote = era
            .ops
            .iter()
            .position(|op| op.name() == "write" && op.blocks().contains(&7))?;
        let flushed = era.ops.iter().rposition(|op| *op == GuestOp::Flush)?;
        let kicked = plan.choices.get(Family::Kick, "timer", 2) > 0;
        (wrote < flushed && kicked).then(|| plan.clone())
    }

    #[test]
    fn plan_is_shrunk_to_what_matters() {
        let mut plan = Plan::new("x::y", Scale::Small, 64, 8, Vec::new());
        plan.schedule = Schedule::Random;
        let noise: Vec<_> = (0..12).map(write).collect();
        let mut end = noise.clone();
        end.push(GuestOp::Flush);
        end.extend(noise.clone());
        let crash = Crash {
            kind: CrashKind::Kill,
            after: 9,
            spec: None,
        };
        plan.eras = (0..4)
            .map(|_| Era {
                ops: noise.clone(),
                crash: Some(crash.clone()),
            })
            .collect();
        plan.eras.push(Era {
            ops: end,
            crash: None,
        });
        for nth in 0..40 {
            for (family, name) in [(Family::Kick, "timer"), (Family::Event, "disk.write")] {
                plan.choices.set(
                    Key {
                        family,
                        name: name.into(),
                        nth,
                    },
                    1 + nth % 3,
                );
            }
        }
        let shrunk = shrink(plan, TRIES_MAX, fails);
        assert_eq!(
            (shrunk.plan.eras.len(), shrunk.plan.ops()),
            (2, 2),
            "{}",
            shrunk.plan
        );
        assert_eq!(shrunk.plan.choices.to_string(), "choose kick timer#2 = 1\n");
        assert_eq!(
            (shrunk.plan.depth, shrunk.plan.schedule),
            (1, Schedule::Fifo)
        );
        assert_eq!(shrunk.plan.eras[1].ops[0].to_string(), "write 7 1");
        assert!(shrunk.tries < 400, "tries={}", shrunk.tries);
    }

    /// Fails if the last write is reordered: a choice whose number is that of the operation, so
    /// that none can go while the choices stay as they are.
    fn fails_by_number(attempt: Attempt<'_>) -> Option<Plan> {
        let ops = &attempt.plan.eras.last()?.ops;
        let last = Key {
            family: Family::Event,
            name: "guest".into(),
            nth: u32::try_from(ops.len()).ok()?.checked_sub(1)?,
        };
        let mut plan = attempt.plan.clone();
        match attempt.seed {
            // One seed in four happens to reorder it.
            Some(seed) if seed % 4 == 3 => plan.choices.set(last, 1),
            Some(_) => return None,
            None => {
                let is_set = plan.choices.get(last.family, &last.name, last.nth) > 0;
                return is_set.then_some(plan);
            }
        }
        Some(plan)
    }

    #[test]
    fn choices_that_count_operations_do_not_keep_them() {
        let mut plan = Plan::new("x::y", Scale::Tiny, 16, 1, vec![write(0); 30]);
        let key = Key {
            family: Family::Event,
            name: "guest".into(),
            nth: 29,
        };
        plan.choices.set(key, 1);
        let shrunk = shrink(plan, TRIES_MAX, fails_by_number);
        assert_eq!(shrunk.plan.ops(), 1, "{}", shrunk.plan);
        assert_eq!(
            shrunk.plan.choices.to_string(),
            "choose event guest#0 = 1\n"
        );
    }

    #[test]
    fn crash_at_the_end_is_preferred() {
        let mut plan = Plan::new("x::y", Scale::Tiny, 4, 1, vec![write(0)]);
        let crash = Crash {
            kind: CrashKind::Power,
            after: 40,
            spec: None,
        };
        plan.eras[0].crash = Some(crash);
        plan.eras.push(Era::default());
        let after = |plan: &Plan| plan.eras[0].crash.as_ref().map(|crash| crash.after);
        let needs = |least: u32, most: u32| {
            let shrunk = shrink(plan.clone(), TRIES_MAX, |Attempt { plan, .. }| {
                let is_between = after(plan).is_some_and(|now| (least..=most).contains(&now));
                is_between.then(|| plan.clone())
            });
            after(&shrunk.plan)
        };
        assert_eq!(needs(9, u32::MAX), Some(Crash::AT_END));
        assert_eq!(needs(9, 100), Some(9));
    }

    #[test]
    fn budget_of_tries_is_kept() {
        let mut asked = 0;
        let plan = Plan::new("x::y", Scale::Tiny, 4, 2, vec![write(0); 50]);
        let shrunk = shrink(plan, 7, |Attempt { plan, .. }| {
            asked += 1;
            (!plan.eras[0].ops.is_empty()).then(|| plan.clone())
        });
        assert_eq!((asked, shrunk.tries), (7, 7));
    }
}
