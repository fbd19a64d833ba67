//! The cases on several hosts, each over many seeds.

use super::{Budget, Found, Said};
use crate::{
    Subject, Swarm, Tape,
    explore::{Lab, Work},
    world::{CASES, Case},
};

/// Seeds of a quick run.
const QUICK: u64 = 40;

/// The case of this name, if it takes several hosts.
pub(super) fn find(name: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.name == name)
}

pub(super) fn run(case: &Case, subject: &Subject, budget: &Budget) -> Said {
    if !case.covers(subject) {
        return Said::Skipped("the filter has nothing that this case is about".into());
    }
    let mut work = Work::default();
    for number in 0..budget.runs(QUICK) {
        let seed = budget.seed + number;
        let tape = match seed {
            0 => Tape::benign(),
            seed => Tape::random(seed).with_swarm(Swarm::random(seed)),
        };
        work.runs += 1;
        if let Err(broken) = (case.run)(subject, &tape) {
            return Said::Failed(Box::new(Found {
                broken,
                failure: None,
                was: (0, 0),
                lab: Lab::new(subject.clone()),
                seed: Some(seed),
                recording: None,
            }));
        }
    }
    Said::Passed(work)
}
