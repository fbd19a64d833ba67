//! What the explorer does beyond crashes at random, and what is no longer found without it: the
//! second era, kicks, the torn tier. A row for each, found with it and lost without it, so that no
//! one takes it out later.

use vaio_core::Promise;
use vaio_testkit::{
    Family, GuestOp,
    disk::Tier,
    explore::{Checks, Lab, Seen, enumerate::Space, run},
    zoo::{Bug, Twin},
};

const fn w(block: u64, count: u64, fua: bool) -> GuestOp {
    GuestOp::Write { block, count, fua }
}

struct Search {
    bug: Bug,
    ops: Vec<GuestOp>,
    len: usize,
    depths: Vec<usize>,
    schedules: u64,
    checks: Checks,
    kicks: bool,
}

/// Whether any small run shows the bug.
fn is_found(search: &Search) -> bool {
    let mut lab = Lab::new(Twin::WriteBack.subject(Promise::AtFlush, Some(search.bug)));
    lab.checks = search.checks.clone();
    let space = Space {
        alphabet: search.ops.clone(),
        ops_max: search.len,
        depths: search.depths.clone(),
        schedules: search.schedules,
        ..Space::new("needed::search", 4)
    };
    let mut seen = Seen::default();
    space.runs().any(|small| {
        let tape = small.tape();
        if !search.kicks {
            tape.set_mask(Family::Kick, true);
        }
        run(&lab, &small.plan, &tape, &mut seen).failure.is_some()
    })
}

#[test]
fn without_the_second_era_a_sequence_that_starts_again_is_lost() {
    let mut search = Search {
        bug: Bug::SequenceReset,
        ops: vec![w(0, 1, false), GuestOp::Flush, GuestOp::Idle],
        len: 2,
        depths: vec![1],
        schedules: 2,
        checks: Checks {
            close: false,
            ..Checks::default()
        },
        kicks: true,
    };
    assert!(is_found(&search));
    search.checks.second_era = false;
    assert!(!is_found(&search));
}

#[test]
fn without_torn_images_a_record_without_a_data_checksum_is_lost() {
    let mut search = Search {
        bug: Bug::NoDataChecksum,
        ops: vec![w(0, 1, false), w(0, 3, false), GuestOp::Flush],
        len: 2,
        depths: vec![1],
        schedules: 2,
        checks: Checks::default(),
        kicks: true,
    };
    assert!(is_found(&search));
    search.checks.tiers.retain(|tier| *tier != Tier::Torn);
    assert!(!is_found(&search));
}

#[test]
fn without_kicks_a_tail_that_passes_a_superseded_record_is_lost() {
    let mut search = Search {
        bug: Bug::TailPassesSuperseded,
        ops: vec![w(0, 1, true), w(1, 1, false), w(0, 1, false)],
        len: 3,
        depths: vec![2, 3],
        schedules: 64,
        checks: Checks {
            second_era: false,
            ..Checks::default()
        },
        kicks: true,
    };
    assert!(is_found(&search));
    search.kicks = false;
    assert!(!is_found(&search));
}
