//! The barrier audit: is every flush, fua and awaited order of a filter needed, and is it tested?
//!
//! The suite shows that a filter keeps its promises. The audit asks the reverse: it runs cases of
//! the suite again and again, each time with the IO of *one* call site in the filter spoiled (a
//! flush that is answered and not done, a write without its fua, an answer before the write has
//! ended, two writes in the wrong order, an error that is not told). If no case fails, that
//! barrier is not needed, or nothing tests it; either is worth knowing. The filter's source is not
//! changed: sites are found on the stack (`site`), and the lower devices do the spoiling
//! (`mutant`).
//!
//! Which barriers a filter has is what the cases reached: the report says how often each was.
//! [`barrier_audit!`](crate::barrier_audit!) makes a test of it.
//!
//! What cannot be seen: IO that a filter does other than through its lower devices, its commits of
//! the sidecar, and what another filter of the same stack does.

mod mutant;
mod report;
mod site;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

pub use mutant::Mutant;
pub(crate) use mutant::Taps;
pub use report::{AuditReport, AuditRow, Explained, Verdict};
pub use site::{Place, Site};

use crate::{
    Subject,
    conformance::{Budget, CASES, Said, quietly, run_case},
};
use mutant::{Change, Count, Tap};
use site::{SiteId, Sites};

/// Groups of cases that durability, order and errors are judged by.
const GROUPS: &[&str] = &[
    "crash",
    "flush",
    "fua",
    "era2",
    "torn",
    "recovery_crash",
    "fsyncgate",
    "faults",
    "order",
    "zero_discard",
    "dirty",
    "ordered",
];

/// What an audit does.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AuditSettings {
    /// Cases of the suite that must kill the mutants. Default: those about durability, order and
    /// errors.
    pub cases: Vec<&'static str>,
    /// How much each case does. Nothing is shrunk. Default: as quick as in the suite.
    pub budget: Budget,
    /// How many times that budget each case gets once more for a mutant that survived it; 0: none.
    /// Default: 8. What survives is rare in a finished filter, so this costs little.
    pub persistence: f64,
    /// Parts of the labels of the call sites that are audited: see [`Site::label`]. Default: none,
    /// which means all.
    pub sites: Vec<String>,
    /// Mutants that are made. Default: all.
    pub mutants: Vec<Mutant>,
    /// Survivors that are accepted.
    pub explained: Vec<Explained>,
}

impl Default for AuditSettings {
    fn default() -> Self {
        let group = |case: &str| {
            case.split_once("::")
                .map_or("", |(group, _)| group)
                .to_owned()
        };
        Self {
            cases: CASES
                .iter()
                .copied()
                .filter(|case| GROUPS.contains(&&*group(case)))
                .collect(),
            budget: Budget::default(),
            persistence: 8.0,
            sites: Vec::new(),
            mutants: Mutant::ALL.to_vec(),
            explained: Vec::new(),
        }
    }
}

impl AuditSettings {
    /// These cases only.
    #[must_use]
    pub fn with_cases(mut self, cases: &[&'static str]) -> Self {
        self.cases = cases.to_vec();
        self
    }

    /// Another [`persistence`](Self::persistence).
    #[must_use]
    pub fn with_persistence(mut self, times: f64) -> Self {
        self.persistence = times;
        self
    }

    /// Only call sites with one of these in their [`label`](Site::label).
    #[must_use]
    pub fn with_sites(mut self, parts: &[&str]) -> Self {
        self.sites = parts.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    /// Only these mutants.
    #[must_use]
    pub fn with_mutants(mut self, mutants: &[Mutant]) -> Self {
        self.mutants = mutants.to_vec();
        self
    }

    fn includes(&self, site: &Site) -> bool {
        let label = site.label();
        self.sites.is_empty() || self.sites.iter().any(|part| label.contains(part))
    }

    /// Accepts survivors. See [`Explained::new`].
    #[must_use]
    pub fn with_explained(mut self, explained: &[(&str, &str)]) -> Self {
        let explained = explained
            .iter()
            .map(|(site, why)| Explained::new(site, why));
        self.explained.extend(explained);
        self
    }

    /// Another budget.
    #[must_use]
    pub fn with_budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }
}

/// What the cases did without any mutant.
struct Baseline {
    /// Cases that passed, with what they reached.
    reached: Vec<(&'static str, BTreeMap<SiteId, Count>)>,
    broken: Vec<(&'static str, String)>,
    of_framework: u64,
}

/// Audits a filter. The same subject and settings give the same report, in the same build.
///
/// # Panics
/// If a case of the settings does not exist.
pub fn run(subject: &Subject, settings: &AuditSettings) -> AuditReport {
    for case in &settings.cases {
        assert!(CASES.contains(case), "`{case}` is no case");
    }
    let quiet = quietly::begin();
    let budget = Budget {
        tries_max: 0,
        ..settings.budget
    };
    let sites = Arc::<Sites>::default();
    let baseline = baseline(subject, settings, &budget, &sites);
    let below = subject.info_below(1);
    let mut found: Vec<_> = sites
        .all()
        .into_iter()
        .enumerate()
        .filter(|(_, site)| settings.includes(site))
        .map(|(id, site)| (site, SiteId(id)))
        .collect();
    found.sort();
    let mut trials = Trials {
        subject,
        budget,
        persistence: settings.persistence,
        sites: &sites,
        order: (0..baseline.reached.len()).collect(),
        baseline: &baseline,
        alone: BTreeMap::new(),
        cases_run: 0,
    };
    let mut rows = Vec::new();
    for (site, id) in found {
        let count = baseline.count(id);
        for mutant in &settings.mutants {
            if !mutant.changes(site.op, count.fua > 0, &below) {
                continue;
            }
            let change = Change {
                site: id,
                mutant: *mutant,
                op: site.op,
            };
            rows.push(AuditRow {
                site: site.clone(),
                ios: count.ios,
                mutant: *mutant,
                verdict: trials.verdict(change),
            });
        }
    }
    let (cases_run, alone) = (trials.cases_run, trials.alone);
    let broken = alone
        .into_iter()
        .filter_map(|(case, rule)| Some((case, rule?)));
    let broken = [baseline.broken.clone(), broken.collect()].concat();
    drop(quiet);
    let mut report = AuditReport {
        subject: subject.name(),
        rows,
        cases: baseline.reached.len(),
        broken,
        of_framework: baseline.of_framework,
        has_lines: sites.has_lines(),
        cases_run,
        stale: Vec::new(),
    };
    report.explain(&settings.explained);
    report
}

fn baseline(
    subject: &Subject,
    settings: &AuditSettings,
    budget: &Budget,
    sites: &Arc<Sites>,
) -> Baseline {
    let mut baseline = Baseline {
        reached: Vec::new(),
        broken: Vec::new(),
        of_framework: 0,
    };
    for case in &settings.cases {
        let tap = Tap::recording(sites);
        match run_tapped(subject, case, budget, &tap) {
            Ended::Passed => {
                baseline.of_framework += tap.of_framework();
                baseline.reached.push((case, tap.counted()));
            }
            Ended::Failed(rule) => baseline.broken.push((case, rule)),
            Ended::Skipped => {}
        }
    }
    baseline
}

impl Baseline {
    fn count(&self, site: SiteId) -> Count {
        let counts = self
            .reached
            .iter()
            .filter_map(|(_, counts)| counts.get(&site));
        counts.fold(Count::default(), |sum, count| Count {
            ios: sum.ios + count.ios,
            fua: sum.fua + count.fua,
            failed: sum.failed + count.failed,
        })
    }

    /// Whether the case gives the mutant a chance.
    fn reaches(&self, case: usize, change: &Change) -> bool {
        let count = self.reached[case].1.get(&change.site);
        count.is_some_and(|count| match change.mutant {
            Mutant::ErrorIgnored => count.failed > 0,
            Mutant::NoFua => count.fua > 0,
            _ => count.ios > 0,
        })
    }
}

/// Mutants, one after another.
struct Trials<'a> {
    subject: &'a Subject,
    budget: Budget,
    persistence: f64,
    sites: &'a Arc<Sites>,
    baseline: &'a Baseline,
    /// Cases, those that killed last first.
    order: Vec<usize>,
    /// What cases break without a mutant where they run for longer than the baseline did.
    alone: BTreeMap<&'static str, Option<String>>,
    cases_run: u64,
}

impl Trials<'_> {
    fn verdict(&mut self, change: Change) -> Verdict {
        let again = Budget {
            factor: self.budget.factor * self.persistence,
            ..self.budget
        };
        let budget = self.budget;
        match self.round(change, &budget) {
            Verdict::Survived { .. } if self.persistence > 0.0 => self.round(change, &again),
            verdict => verdict,
        }
    }

    /// Every case that reaches the site, until one fails.
    fn round(&mut self, change: Change, budget: &Budget) -> Verdict {
        let tap = Tap::mutating(self.sites, change);
        let mut tried = 0;
        for place in 0..self.order.len() {
            let number = self.order[place];
            if !self.baseline.reaches(number, &change) {
                continue;
            }
            tried += 1;
            self.cases_run += 1;
            let case = self.baseline.reached[number].0;
            if let Ended::Failed(rule) = run_tapped(self.subject, case, budget, &tap) {
                if budget.factor > self.budget.factor && !self.passes_alone(case, budget) {
                    // The longer run breaks by itself: that says nothing of the mutant.
                    continue;
                }
                self.order[..=place].rotate_right(1);
                return Verdict::Killed { case, rule };
            }
        }
        match tried {
            0 => Verdict::NotTried,
            cases => Verdict::Survived { cases },
        }
    }
}

impl Trials<'_> {
    /// Whether the case passes without a mutant.
    fn passes_alone(&mut self, case: &'static str, budget: &Budget) -> bool {
        let (subject, sites) = (self.subject, self.sites);
        let alone = self.alone.entry(case).or_insert_with(|| {
            let tap = Tap::recording(sites);
            match run_tapped(subject, case, budget, &tap) {
                Ended::Failed(rule) => Some(rule),
                Ended::Passed | Ended::Skipped => None,
            }
        });
        alone.is_none()
    }
}

enum Ended {
    Passed,
    Skipped,
    /// The rule that was broken.
    Failed(String),
}

fn run_tapped(subject: &Subject, case: &str, budget: &Budget, tap: &Arc<Tap>) -> Ended {
    let tap = Arc::clone(tap);
    let tapped = subject.tapped(move |host| Taps::new(&tap, host));
    // A mutant may break what the kit itself takes for granted: that is a failure too.
    match catch_unwind(AssertUnwindSafe(|| run_case(&tapped, case, budget))) {
        Ok(Said::Passed(_)) => Ended::Passed,
        Ok(Said::Skipped(_)) => Ended::Skipped,
        Ok(Said::Failed(found)) => Ended::Failed(found.broken.rule.clone()),
        Err(_) => Ended::Failed("panic".into()),
    }
}

/// Audits a filter as a test does: prints the report, and how long it took.
///
/// # Panics
/// If a mutant survives that is not explained, if an explanation fits no survivor, if a case fails
/// without a mutant, if no call site was found, or if `VAIO_BUDGET` is what it cannot be.
pub fn check(subject: &Subject, explained: &[(&str, &str)]) {
    let mut settings = AuditSettings::default()
        .with_budget(Budget::from_env())
        .with_explained(explained);
    if let Ok(parts) = std::env::var("VAIO_AUDIT") {
        let parts: Vec<_> = parts.split(',').map(str::trim).collect();
        settings = settings.with_sites(&parts);
        // Of the others nothing survives.
        let is_asked = |one: &Explained| parts.iter().any(|part| one.site.contains(part));
        settings.explained.retain(is_asked);
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "told to whoever waits for it; nothing depends on it"
    )]
    let begun = std::time::Instant::now();
    let report = run(subject, &settings);
    println!(
        "{report}\nfigure audit_s {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    assert!(report.is_accepted(), "{}", report.complaints());
}

/// Makes a test that audits a filter's barriers. See [`audit`](crate::audit).
///
/// A full audit runs the suite once for each mutant: some minutes in a debug build. So it is
/// usually left to a nightly job: with `#[ignore]` on it,
/// `cargo test --release -- --ignored barriers` runs it.
///
/// Environment: `VAIO_AUDIT` (only call sites with one of these parts, separated by commas, in
/// their label, such as `src/log.rs:commit`), `VAIO_BUDGET` and `VAIO_SEED` as in
/// [`conformance!`](crate::conformance!).
///
/// In a release build, call sites have lines only with `debug = "line-tables-only"` (or more) in
/// the profile.
///
/// A survivor is accepted if it is explained: by a part of its site, `file:function`, and if only
/// one mutant is meant, its name. An explanation that fits no survivor fails the test, so that the
/// list stays true.
///
/// ```no_run
/// # use vaio_testkit::twins::observer::ObserverFactory;
/// vaio_testkit::barrier_audit! {
///     #[ignore = "nightly: cargo test --release -- --ignored barriers"]
///     barriers: ObserverFactory::default(),
///     explained = [
///         "src/log.rs:trim_tail" => "only saves work at the next open",
///         "src/log.rs:commit early" => "the caller waits for the next flush",
///     ]
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! barrier_audit {
    ($(#[$attribute:meta])* $name:ident : $subject:expr
        $(, explained = [$($site:literal => $why:literal),* $(,)?])? $(,)?) => {
        $(#[$attribute])*
        #[test]
        fn $name() {
            $crate::audit::check(
                &$crate::Subject::from($subject),
                &[$($(($site, $why)),*)?],
            );
        }
    };
}
