//! The bug zoo: every row is found by the suite, and no twin without a bug raises an alarm.
//!
//! `VAIO_BUDGET=nightly` does fifty times the runs of each case.

use std::collections::BTreeMap;

use vaio_core::Promise;
use vaio_testkit::{
    Swarm, Tape,
    conformance::{Budget, CASES, Said, run_case},
    explore::Work,
    world::{self, Shows, WorldRow},
    zoo::{Row, Twin, rows},
};

/// As `println!`, but shown where the test passes, too: libtest keeps what its own macros print.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout().lock(), $($text)*).expect("standard output is open")
    }};
}

fn budget() -> Budget {
    Budget {
        tries_max: 0,
        ..Budget::from_env()
    }
}

/// The cases of the expected group first, then all others.
fn order(row: &Row) -> Vec<&'static str> {
    let is_expected = |case: &&&str| case.starts_with(&format!("{}::", row.expected_case));
    let expected = CASES.iter().filter(is_expected).copied();
    let others = CASES.iter().filter(|case| !is_expected(case)).copied();
    expected.chain(others).collect()
}

/// The case that catches a row, and the rule that it names.
fn caught(row: &Row) -> Option<(&'static str, String)> {
    let subject = row.twin.subject(row.promise, Some(row.bug));
    order(row)
        .into_iter()
        .find_map(|case| match run_case(&subject, case, &budget()) {
            Said::Failed(found) => Some((case, found.broken.rule)),
            Said::Passed(_) | Said::Skipped(_) => None,
        })
}

/// Seeds within which a row of several hosts is found.
const SEEDS: u64 = 2000;

/// What catches a row of several hosts, and the rule that it names: a seed of its case or script.
fn caught_by_hosts(row: &WorldRow) -> Option<(String, String)> {
    (0..SEEDS).find_map(|seed| {
        let tape = Tape::random(seed).with_swarm(Swarm::random(seed));
        let broken = row.run(Some(row.bug), &tape).err()?;
        let by = match row.shows {
            Shows::Case(case) => format!("failover::{case}"),
            Shows::Script(script) => format!("script {script}, seed {seed}"),
        };
        Some((by, broken.rule))
    })
}

#[test]
fn every_row_is_caught() {
    let (mut rows, mut of_hosts) = (rows(), world::rows().to_vec());
    // One row, while working on it.
    if let Ok(only) = std::env::var("VAIO_ROW") {
        rows.retain(|row| row.name == only);
        of_hosts.retain(|row| row.name == only);
    }
    let mut survivors = Vec::new();
    let mut elsewhere = 0;
    say!(
        "{:32} {:14} {:10} {:14} caught by",
        "row",
        "twin",
        "promise",
        "expected"
    );
    for row in &rows {
        let found = caught(row);
        let by = match &found {
            Some((case, rule)) => format!("{case} ({rule})"),
            None => "SURVIVES".to_owned(),
        };
        let (twin, promise) = (format!("{:?}", row.twin), format!("{:?}", row.promise));
        say!(
            "{:32} {twin:14} {promise:10} {:14} {by}",
            row.name,
            row.expected_case
        );
        match found {
            Some((case, _)) if !case.starts_with(row.expected_case) => elsewhere += 1,
            Some(_) => {}
            None => survivors.push(row.name),
        }
    }
    for row in &of_hosts {
        let by = caught_by_hosts(row).map(|(by, rule)| format!("{by} ({rule})"));
        let shown = by.as_deref().unwrap_or("SURVIVES");
        say!("{:32} {:25} {:14} {shown}", row.name, "several hosts", "");
        if by.is_none() {
            survivors.push(row.name);
        }
    }
    let all = rows.len() + of_hosts.len();
    say!("figure zoo_rows {all} rows");
    say!("figure zoo_caught {} rows", all - survivors.len());
    say!("figure zoo_caught_by_another_group {elsewhere} rows");
    assert!(survivors.is_empty(), "rows that survive: {survivors:?}");
    let is_whole = std::env::var_os("VAIO_ROW").is_none();
    assert!(all >= 40 || !is_whole, "the zoo has at least 40 rows");
}

#[test]
fn no_twin_without_a_bug_raises_an_alarm() {
    let mut work = Work::default();
    // Some cases, while working on them.
    let only = std::env::var("VAIO_CASE").unwrap_or_default();
    let mut alarms = BTreeMap::new();
    for twin in Twin::ALL {
        for promise in [Promise::AtAck, Promise::AtFlush, Promise::Ordered] {
            if !twin.can_promise(promise) {
                continue;
            }
            let subject = twin.subject(promise, None);
            for case in CASES.iter().filter(|case| case.contains(&only)) {
                match run_case(&subject, case, &budget()) {
                    Said::Passed(more) => work += more,
                    Said::Skipped(_) => {}
                    Said::Failed(found) => {
                        let plan = found.failure.map(|failure| failure.plan.to_string());
                        let text = format!("{}\n{}", found.broken, plan.unwrap_or_default());
                        alarms.insert(format!("{twin:?} {promise:?} {case}"), text);
                    }
                }
            }
        }
    }
    for (name, text) in &alarms {
        say!("ALARM {name}\n{text}");
    }
    say!("figure zoo_false_alarms {} alarms", alarms.len());
    say!("figure zoo_clean_runs {} runs", work.runs);
    say!("figure zoo_clean_crash_images {} images", work.images);
    say!("figure zoo_clean_crash_states {} states", work.states);
    assert!(alarms.is_empty(), "{:?}", alarms.keys().collect::<Vec<_>>());
    let is_whole = only.is_empty();
    assert!(
        work.images >= 500_000 || !is_whole,
        "too little was tried: {work}"
    );
}
