//! The cases for any filter.

use vaio_testkit::{Tape, world::CASES};

use super::{seeds, subjects::twins, tape};

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
