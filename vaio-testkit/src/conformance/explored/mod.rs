//! The explored cases: which workloads, crashes and faults each one is. A table.

mod faults;

use vaio_core::OpKind;

use super::{Budget, Found, Said};
use crate::{
    GuestOp, Subject,
    disk::{Fault, Rule, Tier},
    explore::{
        Checks, CrashKind, FaultBelow, How, Lab, On, Work,
        campaign::{Effort, Verdict, exhaustive, random},
        enumerate::Space,
        random::Large,
    },
};

/// One case.
#[derive(Clone, Debug)]
pub(super) struct Explored {
    how: Runs,
    checks: Checks,
    /// What fails. A rule is tried at its first IO and at a few later ones.
    faults: Vec<FaultBelow>,
    when: When,
}

/// When something fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// While the guest works.
    Work,
    /// From before a disk opens, also what a crash left.
    Open,
    /// While what a crash left is recovered.
    Recovery,
    /// While it is read again.
    Reread,
}

#[derive(Clone, Debug)]
enum Runs {
    /// Every small workload over these operations.
    Small {
        ops: Vec<GuestOp>,
        len: usize,
        depths: Vec<usize>,
        schedules: u64,
        quick: u64,
    },
    /// Random large runs.
    Large {
        quick: u64,
        ops: (u32, u32),
        crashes_max: u32,
        depth_max: u32,
    },
}

/// IOs that pass before a swept fault happens, at most.
const SWEEP: u32 = 5;

impl Explored {
    pub(super) fn lab(&self, subject: &Subject) -> Lab {
        let mut lab = Lab::new(subject.clone());
        lab.checks = self.checks.clone();
        self.put(&mut lab, self.faults.clone());
        lab
    }

    fn put(&self, lab: &mut Lab, faults: Vec<FaultBelow>) {
        let checks = &mut lab.checks;
        match self.when {
            When::Work => checks.faults = faults,
            When::Open => {
                checks.open_faults.clone_from(&faults);
                checks.recovery_faults = faults;
            }
            When::Recovery => checks.recovery_faults = faults,
            When::Reread => checks.reread_faults = faults,
        }
    }

    pub(super) fn run(&self, subject: &Subject, name: &str, budget: &Budget) -> Said {
        let mut work = Work::default();
        for lab in self.labs(subject) {
            let mut verdict = self.campaign(&lab, name, budget);
            work += verdict.work;
            if let Some(failure) = verdict.failure.take() {
                let was = verdict
                    .found
                    .map_or((0, 0), |plan| (plan.ops(), plan.crashes()));
                let broken = failure.broken.clone();
                return Said::Failed(Box::new(Found {
                    broken,
                    failure: Some(failure),
                    was,
                    lab,
                    seed: None,
                    recording: None,
                }));
            }
        }
        Said::Passed(work)
    }

    /// One lab, or one for each moment of each swept fault.
    pub(super) fn labs(&self, subject: &Subject) -> Vec<Lab> {
        let lab = self.lab(subject);
        let mut swept: Vec<Vec<FaultBelow>> = vec![Vec::new()];
        for FaultBelow { on, how } in &self.faults {
            let How::Rule(rule) = how else {
                return vec![lab];
            };
            let at = |after| FaultBelow {
                on: *on,
                how: How::Rule(rule.after(after)),
            };
            swept = (swept.iter())
                .flat_map(|faults| {
                    (0..SWEEP).map(move |after| [&faults[..], &[at(after)]].concat())
                })
                .collect();
        }
        let labs = swept.into_iter().map(|faults| {
            let mut lab = lab.clone();
            self.put(&mut lab, faults);
            lab
        });
        labs.collect()
    }

    fn campaign(&self, lab: &Lab, name: &str, budget: &Budget) -> Verdict {
        let effort = |quick| Effort {
            runs_max: budget.runs(quick),
            tries_max: budget.tries_max,
        };
        match &self.how {
            Runs::Small {
                ops,
                len,
                depths,
                schedules,
                quick,
            } => {
                let blocks = lab.subject.blocks(crate::Scale::Tiny);
                let mut alphabet = ops.clone();
                alphabet.retain(|op| op.is_within(blocks) && can(&lab.subject, op));
                let space = Space {
                    alphabet,
                    ops_max: *len,
                    depths: depths.clone(),
                    schedules: *schedules,
                    ..Space::new(name, blocks)
                };
                exhaustive(lab, &space, effort(*quick))
            }
            Runs::Large {
                quick,
                ops,
                crashes_max,
                depth_max,
            } => {
                let large = Large {
                    ops: *ops,
                    crashes_max: *crashes_max,
                    depth_max: *depth_max,
                    ..Large::new(name, &lab.subject)
                };
                random(lab, &large, budget.seed, effort(*quick))
            }
        }
    }
}

/// Whether the disk above the filter does the operation at all.
fn can(subject: &Subject, op: &GuestOp) -> bool {
    let refuses = |kind| subject.descriptor().ops.of(kind) == vaio_core::Disposition::Refuse;
    match op {
        GuestOp::Discard { .. } => !refuses(OpKind::Discard),
        _ => true,
    }
}

const fn w(block: u64, count: u64) -> GuestOp {
    GuestOp::Write {
        block,
        count,
        fua: false,
    }
}

const fn fua(block: u64, count: u64) -> GuestOp {
    GuestOp::Write {
        block,
        count,
        fua: true,
    }
}

const fn r(block: u64, count: u64) -> GuestOp {
    GuestOp::Read { block, count }
}

const fn z(block: u64, count: u64) -> GuestOp {
    GuestOp::WriteZeroes {
        block,
        count,
        may_unmap: false,
        fua: false,
    }
}

const fn d(block: u64, count: u64) -> GuestOp {
    GuestOp::Discard {
        block,
        count,
        fua: false,
    }
}

const F: GuestOp = GuestOp::Flush;
const I: GuestOp = GuestOp::Idle;

fn small(ops: &[GuestOp], len: usize, quick: u64) -> Explored {
    Explored {
        how: Runs::Small {
            ops: ops.to_vec(),
            len,
            depths: vec![1, 2],
            schedules: 4,
            quick,
        },
        checks: Checks {
            tiers: Vec::new(),
            kinds: Vec::new(),
            ..Checks::default()
        },
        faults: Vec::new(),
        when: When::Work,
    }
}

fn large(quick: u64, crashes_max: u32) -> Explored {
    Explored {
        how: Runs::Large {
            quick,
            ops: (10, 120),
            crashes_max,
            depth_max: 16,
        },
        checks: Checks {
            tiers: Vec::new(),
            kinds: Vec::new(),
            ..Checks::default()
        },
        faults: Vec::new(),
        when: When::Work,
    }
}

impl Explored {
    fn crashing(mut self, tiers: &[Tier]) -> Self {
        self.checks.tiers = tiers.to_vec();
        self.checks.kinds = vec![CrashKind::Power];
        self
    }

    fn killing(mut self) -> Self {
        self.checks.kinds = vec![CrashKind::Kill];
        self
    }

    fn one_era(mut self) -> Self {
        self.checks.second_era = false;
        self
    }

    fn recovery(mut self) -> Self {
        self.checks.recovery_crash = true;
        self
    }

    fn dirty(mut self) -> Self {
        self.checks.dirty = true;
        self
    }

    fn depths(mut self, of: &[usize], more: u64) -> Self {
        if let Runs::Small {
            depths, schedules, ..
        } = &mut self.how
        {
            *depths = of.to_vec();
            *schedules = more;
        }
        self
    }

    /// One more rule.
    fn rule(mut self, on: On, rule: Rule) -> Self {
        self.faults.push(FaultBelow {
            on,
            how: How::Rule(rule),
        });
        self
    }

    fn when(mut self, when: When) -> Self {
        self.when = when;
        self
    }

    fn any_fault(mut self, on: On, kinds: &[Fault]) -> Self {
        self.faults = vec![FaultBelow {
            on,
            how: How::Tape(kinds.to_vec()),
        }];
        self
    }
}

const USUAL: &[Tier] = &Tier::USUAL;
const PLAIN: &[Tier] = &[Tier::None, Tier::All, Tier::DropOne, Tier::KeepOne];

/// What a case does; `None`: it is scripted.
pub(super) fn find(name: &str) -> Option<Explored> {
    let (group, case) = name.split_once("::")?;
    match group {
        "basic" => basic(case),
        "order" => order(case),
        "flush" | "fua" => durable(group, case),
        "zero_discard" => zero_discard(case),
        "crash" | "era2" | "torn" | "recovery_crash" => crash(group, case),
        "faults" | "fsyncgate" => faults::find(group, case),
        "dirty" => dirty(case),
        "ordered" => ordered(case),
        _ => None,
    }
}

fn basic(case: &str) -> Option<Explored> {
    Some(match case {
        "read_your_writes" => small(&[w(0, 1), r(0, 1), I, r(0, 4), w(1, 2)], 3, 600),
        "neighbours" => small(&[w(1, 1), w(0, 2), w(2, 2), r(0, 4), I], 3, 600),
        "whole_disk" => small(&[w(0, 4), r(0, 4), z(0, 4), I, F], 3, 600),
        "deep_queue" => small(&[w(0, 1), w(1, 1), r(0, 2), w(0, 3)], 4, 400).depths(&[4, 8], 4),
        "long_runs" => large(120, 0),
        _ => return None,
    })
}

fn order(case: &str) -> Option<Explored> {
    Some(match case {
        "overlapping_writes" => small(&[w(0, 1), w(0, 2), r(0, 2), F], 3, 500)
            .depths(&[2, 3], 8)
            .crashing(PLAIN),
        "read_against_write" => small(&[w(0, 2), r(0, 2), r(1, 1), I], 3, 700).depths(&[2, 3], 8),
        "partial_overlaps" => {
            small(&[w(0, 3), w(1, 1), w(2, 2), r(0, 4), I], 3, 700).depths(&[1, 3], 6)
        }
        "schedules" => large(120, 0),
        _ => return None,
    })
}

fn durable(group: &str, case: &str) -> Option<Explored> {
    Some(match (group, case) {
        ("flush", "covers_acked") => small(&[w(0, 1), F, w(1, 1), w(0, 2)], 3, 250).crashing(PLAIN),
        ("flush", "nothing_to_flush") => small(&[F, I, r(0, 1), w(0, 1)], 3, 200).crashing(PLAIN),
        ("flush", "against_writes") => small(&[w(0, 1), F, w(0, 1), w(1, 1)], 4, 250)
            .depths(&[2, 3], 6)
            .crashing(PLAIN),
        ("flush", "repeated") => small(&[F, w(0, 1), I], 4, 250).crashing(PLAIN),
        ("fua", "durable_at_ack") => {
            small(&[fua(0, 1), fua(0, 2), fua(1, 1)], 3, 250).crashing(PLAIN)
        }
        ("fua", "covers_itself") => small(&[fua(0, 1), w(1, 1), fua(2, 1)], 3, 250).crashing(PLAIN),
        ("fua", "mixed_with_plain") => small(&[w(0, 1), fua(0, 1), w(0, 2), F, I], 3, 250)
            .depths(&[1, 2], 6)
            .crashing(PLAIN),
        _ => return None,
    })
}

fn zero_discard(case: &str) -> Option<Explored> {
    Some(match case {
        "zeroes" => small(&[w(0, 2), z(0, 1), r(0, 2), I, z(0, 4)], 3, 600),
        "zeroes_survive" => small(&[w(0, 1), z(0, 1), F, I], 3, 250).crashing(PLAIN),
        "discard" => small(&[w(0, 2), d(0, 1), r(0, 2), I, d(0, 4)], 3, 600),
        "discard_survives" => small(&[w(0, 1), d(0, 1), F, I, w(0, 2)], 3, 250).crashing(PLAIN),
        "discard_against_write" => small(&[w(0, 1), d(0, 1), r(0, 1), F], 3, 300)
            .depths(&[2, 3], 8)
            .crashing(PLAIN),
        "neighbours" => small(&[w(0, 3), d(1, 1), z(1, 1), r(0, 4), I], 3, 600),
        _ => return None,
    })
}

/// Most of what a crash can find.
const CRASH: &[GuestOp] = &[w(0, 1), F, I, w(1, 1), fua(0, 1), w(0, 3), z(0, 1)];

fn crash(group: &str, case: &str) -> Option<Explored> {
    Some(match (group, case) {
        ("crash", "none_kept") => small(CRASH, 3, 350).crashing(&[Tier::None]),
        ("crash", "all_kept") => small(CRASH, 3, 350).crashing(&[Tier::All]),
        ("crash", "acked_kept") => small(CRASH, 3, 350).crashing(&[Tier::Acked]),
        ("crash", "drop_one") => small(CRASH, 3, 300).crashing(&[Tier::DropOne]),
        ("crash", "keep_one") => small(CRASH, 3, 300).crashing(&[Tier::KeepOne]),
        ("crash", "prefix") => small(CRASH, 3, 300).crashing(&[Tier::Prefix]),
        ("crash", "pairs") => small(&[w(0, 1), w(1, 1), F, I], 3, 200).crashing(&[Tier::Pairs]),
        ("crash", "process_kill") => small(CRASH, 3, 350).killing(),
        ("crash", "any_moment") => small(&GuestOp::alphabet(4), 3, 400).crashing(USUAL),
        ("crash", "overwrites") => small(&[w(0, 1), fua(0, 1), F], 4, 900)
            .depths(&[2], 12)
            .crashing(USUAL),
        ("crash", "fua_overwritten") => small(&[fua(0, 1), w(1, 1), w(0, 1)], 3, 2600)
            .depths(&[2, 3], 64)
            .crashing(USUAL)
            .one_era(),
        ("crash", "wraps") => small(&[w(0, 1), w(1, 1), F], 6, 900)
            .depths(&[1, 2], 2)
            .crashing(PLAIN),
        ("era2", "write_after_recovery") => small(&[w(0, 1), w(1, 1), F, I], 4, 350).crashing(&[
            Tier::None,
            Tier::All,
            Tier::KeepOne,
        ]),
        ("crash", "several") | ("era2", "long_runs") => large(150, 5),
        ("era2", "kill_then_power") => small(&[w(0, 1), F, I, w(0, 2)], 4, 350).killing(),
        ("torn", "small_writes") => {
            small(&[w(0, 2), w(0, 3), F, I], 3, 300).crashing(&[Tier::Torn])
        }
        ("torn", "large_writes") => {
            small(&[w(0, 4), fua(0, 4), w(1, 3), I], 3, 250).crashing(&[Tier::Torn])
        }
        ("recovery_crash", "small_writes") => small(&[w(0, 1), w(1, 1), F, I], 2, 40)
            .crashing(PLAIN)
            .one_era()
            .recovery(),
        // All of them: a crash in recovery shows only after writes that were flushed.
        ("recovery_crash", "overwrites") => small(&[w(0, 1), w(0, 2), fua(0, 2), F], 3, 168)
            .depths(&[1], 1)
            .crashing(&[Tier::None, Tier::All])
            .recovery(),
        _ => return None,
    })
}

fn dirty(case: &str) -> Option<Explored> {
    Some(match case {
        "never_under_reported" => {
            small(&[w(0, 1), w(0, 2), F, I, z(0, 1), d(0, 1)], 3, 500).dirty()
        }
        "across_crashes" => small(&[w(0, 1), w(0, 2), F, I], 3, 250)
            .crashing(PLAIN)
            .dirty(),
        _ => return None,
    })
}

fn ordered(case: &str) -> Option<Explored> {
    Some(match case {
        "cut_at_every_boundary" => small(&[w(0, 1), w(1, 1), F, I, w(0, 2)], 3, 300)
            .depths(&[1, 2], 6)
            .crashing(&[Tier::None, Tier::All]),
        "cut_in_long_runs" => large(60, 2).crashing(&[Tier::Acked]),
        _ => return None,
    })
}
