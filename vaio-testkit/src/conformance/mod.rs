//! The conformance suite: named cases, derived from what a filter promises.
//!
//! [`conformance!`](crate::conformance!) makes a test of each case. Most cases are *explored*: a
//! table says which workloads, crashes and faults, and [`explore`](crate::explore) does the rest.
//! Some are *scripted*: they do something particular with an open disk, over many seeds.

mod bench;
mod explored;
mod hosts;
mod list;
pub(crate) mod quietly;
mod scripted;
mod skipped;

use std::{env, fs, path::Path};

pub use list::CASES;

use crate::{
    Subject,
    explore::{Broken, Failure, Lab, Plan, TRIES_MAX, Work, replay},
    report,
};

/// Where a case is called from.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Cases that must fail, and why.
    pub known_failures: &'static [(&'static str, &'static str)],
    /// Name of the package.
    pub package: &'static str,
    /// Folder of the package's manifest.
    pub folder: &'static str,
    /// Path of the test, crate first.
    pub test: &'static str,
}

/// What came of a case.
#[derive(Debug)]
pub enum Said {
    /// Nothing was found.
    Passed(Work),
    /// The promise does not cover it: why.
    Skipped(String),
    /// Something is broken.
    Failed(Box<Found>),
}

/// What a case found.
#[derive(Debug)]
pub struct Found {
    /// What is broken.
    pub broken: Broken,
    /// The run, where the case is explored.
    pub failure: Option<Box<Failure>>,
    /// Operations and crashes of the run as it was found.
    pub was: (usize, usize),
    /// The lab it was found in.
    pub lab: Lab,
    /// What replays it, where the case is a script.
    pub seed: Option<u64>,
    /// What the script did.
    pub recording: Option<Box<report::Recording>>,
}

/// How much each case does, as a factor of what a pull request should wait for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// 1: quick.
    pub factor: f64,
    /// First seed of random runs.
    pub seed: u64,
    /// Tries of the shrinker.
    pub tries_max: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            factor: 1.0,
            seed: 0,
            tries_max: TRIES_MAX,
        }
    }
}

impl Budget {
    /// As the environment says.
    ///
    /// # Panics
    /// If a variable is set to what it cannot be.
    pub fn from_env() -> Self {
        let var = |name: &str| env::var(name).ok();
        let factor = match var("VAIO_BUDGET").as_deref() {
            None | Some("quick" | "") => 1.0,
            Some("nightly") => 50.0,
            Some(text) => {
                let factor: Option<f64> =
                    text.parse().ok().filter(|f| (0.01..=10_000.0).contains(f));
                factor.expect("VAIO_BUDGET is quick, nightly, or a factor from 0.01 to 10000")
            }
        };
        let seed = var("VAIO_SEED").map_or(0, |text| text.parse().expect("VAIO_SEED is a number"));
        let tries_max = if var("VAIO_SHRINK").as_deref() == Some("0") {
            0
        } else {
            TRIES_MAX
        };
        Self {
            factor,
            seed,
            tries_max,
        }
    }

    pub(crate) fn runs(&self, quick: u64) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a number of runs, bounded by the factor"
        )]
        let runs = (quick as f64 * self.factor) as u64;
        runs.max(1)
    }
}

/// Does one case.
///
/// # Panics
/// If there is no such case.
pub fn run_case(subject: &Subject, name: &str, budget: &Budget) -> Said {
    if let Some(why) = skipped::why(subject, name) {
        return Said::Skipped(why);
    }
    if let Some(case) = hosts::find(name) {
        return hosts::run(case, subject, budget);
    }
    if let Some(script) = scripted::find(name) {
        return script(subject, budget);
    }
    let case = explored::find(name).expect("every case of the list is explored or scripted");
    case.run(subject, name, budget)
}

/// Does one case as a test.
///
/// # Panics
/// If the filter breaks its promise in it, or passes or is skipped although it is a known failure;
/// if a known failure or a saved plan is of no case that exists.
pub fn check(subject: &Subject, name: &str, caller: &Caller) {
    let budget = Budget::from_env();
    for (case, _) in caller.known_failures {
        let is_case = CASES.contains(case);
        assert!(is_case, "known_failures names `{case}`, which is no case");
    }
    let known = caller.known_failures.iter().find(|(case, _)| *case == name);
    let quiet = quietly::begin();
    let plans = saved_plans(name, caller);
    let said = match fails_again(subject, name, &plans) {
        Some(found) => Said::Failed(Box::new(found)),
        None if env::var_os("VAIO_PLAN").is_some() => {
            println!("{name}: {}", no_longer(&plans));
            return;
        }
        None => run_case(subject, name, &budget),
    };
    drop(quiet);
    match (said, known) {
        (Said::Skipped(why), None) => println!("{name}: skipped: {why}"),
        (Said::Skipped(why), Some(_)) => {
            panic!(
                "{name} is skipped ({why}), but is listed as a known failure: take it off the list"
            )
        }
        (Said::Passed(work), None) => println!("{name}: {work}"),
        (Said::Passed(_), Some((_, why))) => {
            panic!("{name} passes, but is listed as a known failure ({why}): take it off the list")
        }
        (Said::Failed(found), Some((_, why))) => {
            println!("{name}: fails as known ({why}): {}", found.broken.rule);
        }
        (Said::Failed(found), None) => panic!("{}", report::failed(subject, name, caller, &found)),
    }
}

/// Replays the saved plans of a case; the first that fails.
fn fails_again(subject: &Subject, name: &str, plans: &[(String, Plan)]) -> Option<Found> {
    plans.iter().find_map(|(path, plan)| {
        // Of a swept fault the plan does not say when it came.
        let (failure, lab) = labs_of(subject, name)
            .into_iter()
            .find_map(|lab| Some((replay(&lab, plan).failure?, lab)))?;
        println!("{name}: {path} fails again");
        let was = (plan.ops(), plan.crashes());
        Some(Found {
            broken: failure.broken.clone(),
            failure: Some(failure),
            was,
            lab,
            seed: None,
            recording: None,
        })
    })
}

/// What is said where `VAIO_PLAN` is set and did not fail.
fn no_longer(plans: &[(String, Plan)]) -> String {
    match plans {
        [] => "skipped: VAIO_PLAN is a plan of another case".to_owned(),
        [(path, _), ..] => format!("passed, the plan no longer fails, path={path}"),
    }
}

/// The lab that a case's plans are replayed in.
pub fn lab_of(subject: &Subject, name: &str) -> Lab {
    explored::find(name).map_or_else(|| Lab::new(subject.clone()), |case| case.lab(subject))
}

/// Every lab that a case's plans may have been found in.
fn labs_of(subject: &Subject, name: &str) -> Vec<Lab> {
    explored::find(name).map_or_else(
        || vec![Lab::new(subject.clone())],
        |case| case.labs(subject),
    )
}

/// Regression plans of a case: `VAIO_PLAN`, else `vaio-regressions/*.vaio` beside the manifest.
fn saved_plans(name: &str, caller: &Caller) -> Vec<(String, Plan)> {
    let read = |path: &Path| -> Option<(String, Plan)> {
        let text = fs::read_to_string(path).unwrap_or_else(|error| {
            panic!("cannot read the plan, path={}: {error}", path.display())
        });
        let plan: Plan = text
            .parse()
            .unwrap_or_else(|error| panic!("path={}: {error}", path.display()));
        assert!(
            CASES.contains(&&*plan.case),
            "the plan is of `{}`, which is no case any more: name another one or remove it, path={}",
            plan.case,
            path.display()
        );
        (plan.case == name).then(|| (path.display().to_string(), plan))
    };
    if let Some(path) = env::var_os("VAIO_PLAN") {
        return read(Path::new(&path)).into_iter().collect();
    }
    let folder = Path::new(caller.folder).join("vaio-regressions");
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "vaio"))
        .collect();
    paths.sort();
    paths.iter().filter_map(|path| read(path)).collect()
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "ok, runs={} boundaries={} crash_images={} crash_states={}",
            self.runs, self.boundaries, self.images, self.states
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_of_the_list_does_something() {
        for name in CASES {
            let known = [
                explored::find(name).is_some(),
                scripted::find(name).is_some(),
                hosts::find(name).is_some(),
            ];
            assert_eq!(known.iter().filter(|is| **is).count(), 1, "{name}");
        }
        assert!(CASES.len() >= 80, "{}", CASES.len());
    }
}
