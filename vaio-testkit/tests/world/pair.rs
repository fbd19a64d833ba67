//! Two sites and the replicator between them, and the rows of the zoo that take several hosts.

use vaio_testkit::{
    Tape,
    world::{self, SCRIPTS, rows},
    zoo::Bug,
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

/// Each row is found, again from the text of its choices, and the same choices break nothing
/// without the bug.
#[test]
fn every_row_is_found_and_found_again() {
    let mut missed = Vec::new();
    for row in rows() {
        let found = (0..FOUND_WITHIN).find_map(|seed| {
            let tape = tape(seed);
            let broken = row.run(Some(row.bug), &tape).err()?;
            Some((seed, broken, tape.taken()))
        });
        let Some((seed, broken, choices)) = found else {
            missed.push(row.name);
            continue;
        };
        println!("{} found at seed {seed}: {}", row.name, broken.rule);
        let text = choices.to_string();
        let tape = Tape::replay(text.parse().expect("the text of choices reads back"));
        let again = row.run(Some(row.bug), &tape).expect_err(row.name);
        assert_eq!(again, broken, "{}", row.name);
        let tape = Tape::replay(choices);
        assert_eq!(row.run(None, &tape), Ok(()), "{}", row.name);
    }
    println!("figure world_rows {}", rows().len());
    println!("figure world_caught {}", rows().len() - missed.len());
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn partition_at_every_message_loses_nothing() {
    let mut runs = 0;
    for script in SCRIPTS {
        for messages in 1..400 {
            // The benign run, and one in which everything else goes wrong too.
            let tapes = [Tape::benign(), tape(messages)];
            let reached = tapes.map(|tape| {
                runs += 1;
                world::play_cut(script, None, &tape, messages)
                    .unwrap_or_else(|broken| panic!("{} {messages}: {broken}", script.name))
            });
            if !reached.contains(&true) {
                break;
            }
        }
    }
    println!("figure world_partitions {runs}");
    assert!(runs > 500, "scripts send messages, runs={runs}");
}

#[test]
fn partition_at_every_message_finds_who_degrades_silently() {
    let script = SCRIPTS
        .iter()
        .find(|script| script.name == "target-loses-power");
    let script = script.expect("there is such a script");
    let found = (1..400).any(|messages| {
        world::play_cut(
            script,
            Some(Bug::DegradesSilently),
            &Tape::benign(),
            messages,
        )
        .is_err()
    });
    assert!(found);
}

#[test]
fn equal_tapes_give_equal_runs() {
    for seed in 0..10 {
        for script in SCRIPTS {
            let tapes = [tape(seed), tape(seed)];
            let results = tapes.each_ref().map(|tape| world::play(script, None, tape));
            assert_eq!(results[0], results[1], "{} {seed}", script.name);
            assert_eq!(tapes[0].hash(), tapes[1].hash(), "{} {seed}", script.name);
        }
    }
}
