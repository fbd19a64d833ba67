//! How small a workload shows each crash bug of the zoo: every workload of one, two and three guest
//! operations, in the order of their length, until one is caught.
//!
//! What was expected stands in the rows of the zoo, written before any of them ran; it is compared
//! here and not changed. The table is kept in `docs/spec/smallest-workloads.md`, with the number of
//! the run that is caught: an ordinary run of this test does that run, all runs of one operation and
//! a sample of the others, and fails if the table says something else. The whole search (minutes)
//! writes the table:
//!
//! ```text
//! VAIO_TABLE=write cargo test -p vaio-testkit --test smallest -- --nocapture
//! ```

use std::{collections::BTreeMap, fmt::Write as _, fs, sync::Mutex};

use vaio_testkit::{
    GuestOp, Tape,
    conformance::lab_of,
    disk::{CrashSpec, Survivors, Tier},
    explore::{
        BACKING, Crash, CrashKind, Era, How, Lab, Plan, Seen,
        enumerate::{Small, Space},
        run,
    },
    zoo::{Need, Row, rows},
};

/// As `println!`, but shown where the test passes, too: libtest keeps what its own macros print.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout().lock(), $($text)*).expect("standard output is open")
    }};
}

/// Longest workload that is looked at.
const OPS_MAX: usize = 3;

/// Groups that catch their rows by something that no guest operation is: a close, a change of
/// policy, a cancelled IO, a bypass. A workload cannot say it, so those rows have no smallest one.
const NOT_BY_WORKLOAD: [&str; 5] = ["lifecycle", "dirty", "cancel", "bypass", "liveness"];

/// Whether the sequence that exposes the row has a crash in it.
fn needs_crash(row: &Row) -> bool {
    ["crash", "power cut", "replica keeps"]
        .iter()
        .any(|word| row.exposes.contains(word))
}

fn is_by_workload(row: &Row) -> bool {
    !NOT_BY_WORKLOAD.contains(&row.expected_case)
}

/// The suite's cases in which a device fails once.
const FAULTS: [&str; 7] = [
    "fsyncgate::backing",
    "fsyncgate::beside",
    "faults::backing_read",
    "faults::backing_write",
    "faults::beside_read",
    "faults::beside_write",
    "faults::recovery_read",
];

/// IOs that pass before the fault, at most; as in the suite.
const SWEEP: u32 = 5;
/// The same over several lives: the first one has IOs of its own.
const SWEEP_LIVES: u32 = 14;

/// What is looked for: crash images of the usual tiers at every boundary and a second era after
/// each, as in the suite's exhaustive cases, and what the row needs beyond it.
fn labs(row: &Row, sweep: u32) -> Vec<Lab> {
    let subject = row.twin.subject(row.promise, Some(row.bug));
    if row.needs.contains(&Need::Fault) {
        let cases = FAULTS
            .iter()
            .filter(|case| case.starts_with(row.expected_case));
        return cases
            .flat_map(|case| (0..sweep).map(|after| failing_after(lab_of(&subject, case), after)))
            .collect();
    }
    let mut lab = Lab::new(subject);
    if row.needs.contains(&Need::Kill) {
        lab.checks.kinds = vec![CrashKind::Kill];
    }
    lab.checks.recovery_crash = row.expected_case == "recovery_crash";
    vec![lab]
}

fn failing_after(mut lab: Lab, after: u32) -> Lab {
    for faults in [&mut lab.checks.faults, &mut lab.checks.recovery_faults] {
        for fault in faults {
            if let How::Rule(rule) = &mut fault.how {
                *rule = rule.after(after);
            }
        }
    }
    lab
}

const fn w(block: u64, count: u64, fua: bool) -> GuestOp {
    GuestOp::Write { block, count, fua }
}

/// One life: the suite's `crash::any_moment`, every operation at depths 1 and 2 under five
/// schedules; where the row needs several operations in flight, depths 2 and 3 under nine.
fn one_life(row: &Row, ops: usize) -> Space {
    let mut space = Space {
        ops_max: ops,
        schedules: 4,
        ..Space::new("crash::any_moment", 4)
    };
    if row.needs.contains(&Need::Fault) {
        // As in the suite's cases of faults; each is done once for every moment of the fault.
        let read = GuestOp::Read { block: 0, count: 2 };
        let write = |count| w(0, count, false);
        space.alphabet = vec![write(1), GuestOp::Flush, GuestOp::Idle, read, write(2)];
    }
    if row.needs.contains(&Need::Concurrency) {
        space.depths = vec![2, 3];
        space.schedules = 8;
    }
    space
}

/// Boundaries after which a life ends, beside its end.
const ENDS: u32 = 12;
/// The same for a life that is a recovery and nothing else.
const ENDS_RECOVERY: u32 = 40;

/// Several lives: the workload is cut in two by a power loss at each of the first boundaries, which
/// takes nothing, everything, or everything that one disk holds; or power fails in its recovery.
fn lives(row: &Row, ops: usize) -> impl Iterator<Item = Small> + use<> {
    let read = GuestOp::Read { block: 0, count: 1 };
    let space = Space {
        alphabet: vec![
            w(0, 1, false),
            w(1, 1, false),
            GuestOp::Flush,
            GuestOp::Idle,
            read,
        ],
        ops_max: ops,
        depths: vec![1],
        schedules: 0,
        ..Space::new("crash::any_moment", 4)
    };
    let is_in_recovery = row.expected_case == "recovery_crash";
    let specs = specs(row);
    let workloads: Vec<_> = space.runs().filter(move |s| s.plan.ops() == ops).collect();
    workloads.into_iter().flat_map(move |small| {
        let mut found = Vec::new();
        for spec in &specs {
            let (cuts, ends) = if is_in_recovery {
                (1, ENDS_RECOVERY)
            } else {
                (ops, ENDS)
            };
            for after in (1..=ends).chain([Crash::AT_END]) {
                for cut in 1..=cuts {
                    let crash = crash(after, spec.clone());
                    let eras = if is_in_recovery {
                        in_recovery(&small.plan, crash)
                    } else {
                        cut_in_two(&small.plan, cut, crash)
                    };
                    let plan = Plan {
                        eras,
                        ..small.plan.clone()
                    };
                    found.push(Small { plan, seed: None });
                }
            }
        }
        found
    })
}

fn crash(after: u32, spec: CrashSpec) -> Crash {
    Crash {
        kind: CrashKind::Power,
        after,
        spec: Some(spec),
    }
}

fn cut_in_two(plan: &Plan, cut: usize, crash: Crash) -> Vec<Era> {
    let (before, after) = plan.eras[0].ops.split_at(cut);
    let first = Era {
        ops: before.to_vec(),
        crash: Some(crash),
    };
    let second = Era {
        ops: after.to_vec(),
        crash: None,
    };
    vec![first, second]
}

fn in_recovery(plan: &Plan, cut: Crash) -> Vec<Era> {
    let first = Era {
        ops: plan.eras[0].ops.clone(),
        crash: Some(crash(Crash::AT_END, CrashSpec::default())),
    };
    let second = Era {
        ops: Vec::new(),
        crash: Some(cut),
    };
    vec![first, second, Era::default()]
}

/// Everything is kept; nothing is; all but what one of the disks holds.
fn specs(row: &Row) -> Vec<CrashSpec> {
    let beside = row.twin.devices(2048, 512);
    let names: Vec<_> = std::iter::once(BACKING)
        .chain(beside.iter().map(|(name, _)| *name))
        .map(|name| (name.to_owned(), Survivors::Keep(Vec::new())))
        .collect();
    let mut specs = vec![
        CrashSpec::default(),
        CrashSpec {
            disks: names.clone(),
        },
    ];
    specs.extend(
        names
            .into_iter()
            .map(|name| CrashSpec { disks: vec![name] }),
    );
    specs
}

/// A run of a row's search.
struct Try {
    lab: Lab,
    small: Small,
}

/// Every run with so many operations, in a fixed order: what its number in the table counts.
fn tries(row: &Row, ops: usize) -> impl Iterator<Item = Try> {
    let with = move |lab: &Lab, small| Try {
        lab: lab.clone(),
        small,
    };
    let first = {
        let row = row.clone();
        labs(&row, SWEEP).into_iter().flat_map(move |lab| {
            let runs: Vec<_> = one_life(&row, ops).runs().collect();
            let runs = runs.into_iter().filter(move |s| s.plan.ops() == ops);
            runs.map(move |small| with(&lab, small))
        })
    };
    let row = row.clone();
    // With a fault at any moment three operations are too many.
    let has_faults = row.needs.contains(&Need::Fault);
    let most = if has_faults { 2 } else { OPS_MAX };
    let several = labs(&row, SWEEP_LIVES)
        .into_iter()
        .filter(move |_| ops <= most);
    let second = several.flat_map(move |mut lab| {
        if !lab.checks.tiers.is_empty() {
            lab.checks.tiers = vec![Tier::None, Tier::All];
        }
        lab.checks.recovery_crash = false;
        lives(&row, ops).map(move |small| with(&lab, small))
    });
    first.chain(second)
}

fn caught(one: &Try, seen: &mut Seen) -> Option<String> {
    let tape: Tape = one.small.tape();
    let failure = run(&one.lab, &one.small.plan, &tape, seen).failure?;
    Some(failure.broken.rule)
}

/// What was found of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Smallest {
    ops: usize,
    /// Number of the run among those with so many operations; the first is 0.
    number: usize,
    workload: String,
    rule: String,
    /// Runs of that size that were done afresh, and those of them that were caught.
    share: (usize, usize),
}

/// The whole search.
fn search(row: &Row) -> Option<Smallest> {
    (1..=OPS_MAX).find_map(|ops| {
        // Equal states need one check; a lab of its own for each fault.
        let mut seen = Seen::default();
        let mut lab = String::new();
        tries(row, ops).enumerate().find_map(|(number, one)| {
            let now = format!("{:?}", one.lab.checks);
            if lab != now {
                (lab, seen) = (now, Seen::default());
            }
            let rule = caught(&one, &mut seen)?;
            Some(smallest(row, ops, number, &one, rule, 1000))
        })
    })
}

/// What the table says is so: the run that it names is caught, and none of one operation, nor of
/// a sample of those with fewer.
fn look_up(row: &Row, said: Option<(usize, usize)>) -> Option<Smallest> {
    let (most, named) = said.map_or((OPS_MAX + 1, None), |(ops, number)| (ops, Some(number)));
    let fewer = (1..most.min(OPS_MAX + 1)).find_map(|ops| {
        let step = if ops == 1 { 1 } else { 61 };
        let mut found = tries(row, ops).enumerate().step_by(step).take(SAMPLE);
        found.find_map(|(number, one)| {
            let rule = caught(&one, &mut Seen::default())?;
            Some(smallest(row, ops, number, &one, rule, 0))
        })
    });
    fewer.or_else(|| {
        let one = tries(row, most).nth(named?)?;
        let rule = caught(&one, &mut Seen::default())?;
        Some(smallest(row, most, named?, &one, rule, 20))
    })
}

/// Runs of a size that an ordinary test looks at.
const SAMPLE: usize = 60;

fn smallest(
    row: &Row,
    ops: usize,
    number: usize,
    one: &Try,
    rule: String,
    sample: usize,
) -> Smallest {
    Smallest {
        ops,
        number,
        workload: words(&one.small),
        rule,
        share: share(row, ops, one, sample),
    }
}

/// How many of the runs of this size, in the same lab and with as many lives, are caught; an even
/// part of them where they are many.
fn share(row: &Row, ops: usize, like: &Try, sample: usize) -> (usize, usize) {
    let kind = |one: &Try| (one.small.plan.eras.len(), format!("{:?}", one.lab.checks));
    let like = kind(like);
    let same: Vec<_> = tries(row, ops).filter(|one| kind(one) == like).collect();
    // A step that no number of schedules and depths divides, so that all of them are seen.
    let part = (0..sample.min(same.len())).map(|at| &same[at * 7919 % same.len()]);
    part.fold((0, 0), |(done, hits), one| {
        let is_hit = caught(one, &mut Seen::default()).is_some();
        (done + 1, hits + usize::from(is_hit))
    })
}

/// The workload in words.
fn words(small: &Small) -> String {
    let mut text = String::new();
    for era in &small.plan.eras {
        for op in &era.ops {
            let _ = write!(text, "{op}, ");
        }
        if let Some(crash) = &era.crash {
            let when = match crash.after {
                Crash::AT_END => "at the end".to_owned(),
                after => format!("at {after}"),
            };
            let spec = crash.spec.as_ref().map(CrashSpec::to_string);
            let spec = spec
                .filter(|spec| !spec.is_empty())
                .unwrap_or("keep all".into());
            let _ = write!(text, "crash {when} ({spec}), ");
        }
    }
    let text = text.trim_end_matches(", ");
    match small.seed {
        None if small.plan.depth == 1 => text.to_owned(),
        None => format!("{text}; depth {}", small.plan.depth),
        Some(seed) => format!("{text}; depth {}, seed {seed}", small.plan.depth),
    }
}

const DOCUMENT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../docs/spec/smallest-workloads.md"
);
const BEGIN: &str = "<!-- table: written by the test -->\n";
const END: &str = "<!-- end of the table -->\n";

/// The lines of the document's table: row to operations found and number of the run.
fn documented(text: &str) -> BTreeMap<String, Option<(usize, usize)>> {
    let table = text
        .split(BEGIN)
        .nth(1)
        .and_then(|rest| rest.split(END).next());
    let lines = table.unwrap_or_default().lines().skip(2);
    lines
        .filter_map(|line| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            let name = cells.get(1)?.trim_matches('`').to_owned();
            let number = |at: usize| cells.get(at)?.parse().ok();
            Some((name, number(3).zip(number(4))))
        })
        .collect()
}

fn table(rows: &[(Row, Option<Smallest>)]) -> String {
    let mut text = String::from(
        "| row | expected | found | run | smallest workload | rule | share of runs |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for (row, found) in rows {
        let _ = match found {
            Some(found) => {
                let (done, hits) = found.share;
                writeln!(
                    text,
                    "| `{}` | {} | {} | {} | {} | {} | {hits} of {done} |",
                    row.name, row.smallest, found.ops, found.number, found.workload, found.rule
                )
            }
            None => writeln!(
                text,
                "| `{}` | {} | none | | not within {OPS_MAX} operations | | |",
                row.name, row.smallest
            ),
        };
    }
    text
}

/// Each row on one of two threads: a run stays on one.
fn of_rows(
    rows: Vec<Row>,
    find: impl Fn(&Row) -> Option<Smallest> + Sync,
) -> Vec<(Row, Option<Smallest>)> {
    let next = Mutex::new(rows.iter().enumerate());
    let found = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let one = next.lock().expect("no search panics").next();
                    let Some((at, row)) = one else { break };
                    let smallest = find(row);
                    found.lock().expect("no search panics").insert(at, smallest);
                }
            });
        }
    });
    rows.into_iter()
        .zip(found.into_inner().expect("no search panics").into_values())
        .collect()
}

#[test]
fn crash_rows_are_found_with_three_operations_or_fewer() {
    let mut rows: Vec<Row> = rows()
        .into_iter()
        .filter(|row| needs_crash(row) && is_by_workload(row))
        .collect();
    let only = std::env::var("VAIO_ROW").ok();
    rows.retain(|row| only.as_deref().is_none_or(|only| row.name == only));
    let writes = std::env::var("VAIO_TABLE").is_ok_and(|what| what == "write");
    let document = fs::read_to_string(DOCUMENT).expect("docs/spec/smallest-workloads.md");
    let said = documented(&document);
    let found = of_rows(rows, |row| match said.get(row.name) {
        _ if writes => search(row),
        said => look_up(row, said.copied().flatten()),
    });
    let text = table(&found);
    say!("{text}");
    figures(&found);
    if only.is_some() {
        return;
    }
    if writes {
        let (head, rest) = document.split_once(BEGIN).expect("the table begins");
        let (_, tail) = rest.split_once(END).expect("the table ends");
        fs::write(DOCUMENT, format!("{head}{BEGIN}{text}{END}{tail}")).expect("the document");
    } else {
        let now: BTreeMap<_, _> = (found.iter())
            .map(|(row, found)| {
                let place = found.as_ref().map(|found| (found.ops, found.number));
                (row.name.to_owned(), place)
            })
            .collect();
        assert_eq!(
            now, said,
            "docs/spec/smallest-workloads.md is stale, write it with VAIO_TABLE=write"
        );
    }
    for (row, found) in &found {
        let found = found.as_ref().map(|found| found.ops);
        let note = format!("- `{}`: ", row.name);
        assert!(
            found == Some(row.smallest as usize) || document.contains(&note),
            "{}: expected {}, found {found:?}: say why in the document",
            row.name,
            row.smallest
        );
    }
    let small = found.iter().filter(|(_, found)| found.is_some()).count();
    assert!(small * 10 >= found.len() * 9, "{small} of {}", found.len());
}

fn figures(found: &[(Row, Option<Smallest>)]) {
    let of = |is: &dyn Fn(&Row, &Smallest) -> bool| {
        let rows = found.iter();
        rows.filter(|(row, found)| found.as_ref().is_some_and(|found| is(row, found)))
            .count()
    };
    let small = of(&|_, _| true);
    let expected = of(&|row, found| found.ops == row.smallest as usize);
    say!("figure smallest_rows {} rows", found.len());
    say!("figure smallest_found_at_3_ops {small} rows");
    say!(
        "figure smallest_share_percent {} percent",
        small * 100 / found.len().max(1)
    );
    say!("figure smallest_as_expected {expected} rows");
    for ops in 1..=OPS_MAX {
        say!(
            "figure smallest_at_{ops} {} rows",
            of(&|_, found| found.ops == ops)
        );
    }
}

#[test]
fn crash_rows_that_no_workload_shows_are_few_and_caught_by_a_script() {
    let others: Vec<_> = rows()
        .into_iter()
        .filter(|row| needs_crash(row) && !is_by_workload(row))
        .map(|row| row.name)
        .collect();
    say!("not by a workload: {}", others.join(", "));
    assert_eq!(
        others,
        [
            "write_given_up",
            "epoch_kept",
            "write_through_past_log",
            "clean_mark_early",
            "drain_before_flush"
        ]
    );
}
