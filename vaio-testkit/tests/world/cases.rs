//! The cases for any filter.

use vaio_core::Promise;
use vaio_testkit::{Tape, world::CASES, zoo::Bug};

use super::{
    seeds,
    subjects::{twins, write_back},
    tape,
};

#[test]
fn correct_twins_raise_no_alarm() {
    let mut failed = Vec::new();
    for subject in twins() {
        for case in CASES.iter().filter(|case| case.covers(&subject)) {
            let tapes = (0..seeds()).map(|seed| (seed, tape(seed)));
            for (seed, tape) in std::iter::once((u64::MAX, Tape::benign())).chain(tapes) {
                if let Err(broken) = (case.run)(&subject, &tape) {
                    failed.push(format!(
                        "{} {:?} {} seed {seed}: {} {broken}",
                        subject.name(),
                        subject.promise(),
                        case.name,
                        broken.rule
                    ));
                    break;
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn equal_tapes_give_equal_runs() {
    for subject in twins() {
        for case in CASES.iter().filter(|case| case.covers(&subject)) {
            for seed in 0..3 {
                let tapes = [tape(seed), tape(seed)];
                let results = tapes.each_ref().map(|tape| (case.run)(&subject, tape));
                assert_eq!(results[0], results[1], "{} {seed}", case.name);
                assert_eq!(tapes[0].hash(), tapes[1].hash(), "{} {seed}", case.name);
            }
        }
    }
}

/// The cases can fail: each bug is found by the case that is about it.
#[test]
fn bug_is_found_by_the_case_that_is_about_it() {
    for (bug, name) in [
        (Bug::MapsFirstBlockOnly, "handover::planned"),
        (Bug::DestageUnordered, "handover::io_in_flight"),
        (Bug::AckBeforeFlush, "failover::devices_survive"),
        (Bug::EpochKept, "failover::devices_stale"),
        (Bug::SecondWriteNotLogged, "failover::double"),
        (Bug::SequenceReset, "failover::failback"),
    ] {
        let promise = match bug {
            Bug::AckBeforeFlush => Promise::AtAck,
            _ => Promise::AtFlush,
        };
        let subject = write_back(promise, Some(bug));
        let case = CASES.iter().find(|case| case.name == name);
        let case = case.expect("there is such a case");
        let found = (0..100).any(|seed| (case.run)(&subject, &tape(seed)).is_err());
        assert!(found, "{name} misses {bug:?}");
    }
}
