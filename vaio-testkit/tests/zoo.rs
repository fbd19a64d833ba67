//! The bug zoo: every row is found by the suite, and no twin without a bug raises an alarm.
//!
//! `VAIO_BUDGET=nightly` does fifty times the runs of each case.

use std::collections::BTreeMap;

use vaio_core::Promise;
use vaio_testkit::{
    conformance::{Budget, CASES, Said, run_case},
    explore::Work,
    zoo::{Row, Twin, rows},
};

/// Rows that are known to survive, and why. Empty is the aim.
const SURVIVORS: &[(&str, &str)] = &[];

/// Alarms on correct twins that are known and not yet mended, each as the start of
/// `twin case`; `*`: any twin. Empty is the aim; the figure counts them all the same.
const KNOWN_ALARMS: &[(&str, &str)] = &[];

fn is_known(twin: Twin, case: &str) -> bool {
    KNOWN_ALARMS.iter().any(|(start, _)| {
        let (of, which) = start.split_once(' ').expect("a twin and a case");
        (of == "*" || of == format!("{twin:?}")) && case.starts_with(which)
    })
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

#[test]
fn every_row_is_caught() {
    let mut rows = rows();
    // One row, while working on it.
    if let Ok(only) = std::env::var("VAIO_ROW") {
        rows.retain(|row| row.name == only);
    }
    let mut survivors = Vec::new();
    let mut elsewhere = 0;
    println!(
        "{:32} {:14} {:10} {:14} caught by",
        "row", "twin", "promise", "expected"
    );
    for row in &rows {
        let found = caught(row);
        let by = match &found {
            Some((case, rule)) => format!("{case} ({rule})"),
            None => "SURVIVES".to_owned(),
        };
        let (twin, promise) = (format!("{:?}", row.twin), format!("{:?}", row.promise));
        println!(
            "{:32} {twin:14} {promise:10} {:14} {by}",
            row.name, row.expected_case
        );
        match found {
            Some((case, _)) if !case.starts_with(row.expected_case) => elsewhere += 1,
            Some(_) => {}
            None => survivors.push(row.name),
        }
    }
    println!("figure zoo_rows {} rows", rows.len());
    println!("figure zoo_caught {} rows", rows.len() - survivors.len());
    println!("figure zoo_caught_by_another_group {elsewhere} rows");
    survivors.retain(|name| !SURVIVORS.iter().any(|(known, _)| known == name));
    assert!(survivors.is_empty(), "rows that survive: {survivors:?}");
    let is_whole = std::env::var_os("VAIO_ROW").is_none();
    assert!(
        rows.len() >= 40 || !is_whole,
        "the zoo has at least 40 rows"
    );
}

#[test]
fn no_twin_without_a_bug_raises_an_alarm() {
    let mut work = Work::default();
    // Some cases, while working on them.
    let only = std::env::var("VAIO_CASE").unwrap_or_default();
    let mut alarms = BTreeMap::new();
    let mut known = 0;
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
                    Said::Failed(_) if is_known(twin, case) => known += 1,
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
        println!("ALARM {name}\n{text}");
    }
    println!("figure zoo_false_alarms {} alarms", alarms.len() + known);
    println!("figure zoo_false_alarms_known {known} alarms");
    println!("figure zoo_clean_runs {} runs", work.runs);
    println!("figure zoo_clean_crash_images {} images", work.images);
    println!("figure zoo_clean_crash_states {} states", work.states);
    assert!(alarms.is_empty(), "{:?}", alarms.keys().collect::<Vec<_>>());
    let is_whole = only.is_empty();
    assert!(
        work.images >= 500_000 || !is_whole,
        "too little was tried: {work}"
    );
}
