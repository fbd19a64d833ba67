//! Two sites and the replicator between them, and the rows of the zoo that take several hosts.

use vaio_testkit::{
    Tape,
    world::{self, SCRIPTS, rows},
};

use super::{seeds, tape};

/// Runs within which a row must be found.
const FOUND_WITHIN: u64 = 2000;

#[test]
fn correct_pair_raises_no_alarm() {
    let mut failed = Vec::new();
    for script in SCRIPTS {
        let tapes = (0..seeds()).map(|seed| (seed, tape(seed)));
        for (seed, tape) in std::iter::once((u64::MAX, Tape::benign())).chain(tapes) {
            if let Err(broken) = world::play(script, None, &tape) {
                failed.push(format!(
                    "{} seed {seed}: {} {broken}",
                    script.name, broken.rule
                ));
                break;
            }
        }
    }
    for seed in 0..seeds() * 5 {
        if let Err(broken) = world::random(None, &tape(seed)) {
            failed.push(format!("random seed {seed}: {} {broken}", broken.rule));
            break;
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_row_is_found() {
    let mut missed = Vec::new();
    for row in rows() {
        let found = (0..FOUND_WITHIN).find_map(|seed| {
            let broken = row.run(Some(row.bug), &tape(seed)).err()?;
            Some((seed, broken))
        });
        match found {
            Some((seed, broken)) => println!("{} found at seed {seed}: {}", row.name, broken.rule),
            None => missed.push(row.name),
        }
    }
    println!("figure world_rows {}", rows().len());
    println!("figure world_caught {}", rows().len() - missed.len());
    assert!(missed.is_empty(), "not found: {missed:?}");
}
