//! What the oracle costs: a clone at a crash point, a checked crash state, an ordered cut.
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark measures with the clock of the machine"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use vaio_core::Promise;
use vaio_testkit::oracle::{Initial, NEVER, Oracle, OracleSettings, OrderedCheck, Outcome};
use vaio_testkit::{GuestOp, Value};

const SMALL: u64 = 4;
const LARGE: u64 = 1 << 20;
const WRITES_PER_BLOCK: u64 = 4;

/// The fastest of several rounds, each of at least 100 ms, per turn.
fn best(mut turn: impl FnMut()) -> Duration {
    let round = || {
        let start = Instant::now();
        let mut turns = 0u32;
        while start.elapsed() < Duration::from_millis(100) {
            (0..16).for_each(|_| turn());
            turns += 16;
        }
        start.elapsed() / turns
    };
    std::iter::repeat_with(round)
        .take(5)
        .min()
        .expect("there are rounds")
}

/// A small run as the exhaustive exploration has it: three writes, a flush, one more in flight.
fn small() -> Oracle {
    let initial = Initial::Fill;
    let mut oracle = Oracle::new(OracleSettings {
        initial,
        ..OracleSettings::new(SMALL, Promise::AtFlush)
    });
    for op in ["write 0 1", "write 0 3", "flush", "write 1 1"] {
        let id = oracle.submit(&op.parse().expect("an operation"));
        oracle.ack(id, Outcome::Ok).expect("no read");
    }
    oracle.submit(&GuestOp::Write {
        block: 0,
        count: 1,
        fua: false,
    });
    oracle
}

fn clone_cost() {
    let oracle = small();
    let took = best(|| drop(black_box(oracle.clone())));
    println!("figure oracle_clone_ns {}", took.as_nanos());
    let large = Oracle::new(OracleSettings::new(1024, Promise::AtFlush));
    let took = best(|| drop(black_box(large.clone())));
    println!("figure oracle_clone_1024_blocks_ns {}", took.as_nanos());
}

/// Clone, crash, hash, read all blocks back, second era: write, flush, crash, read again.
fn state_cost() {
    let oracle = small();
    let took = best(|| {
        let mut state = oracle.clone();
        state.crash();
        black_box(state.legal_hash());
        for block in 0..SMALL {
            let value = state.legal(block).values()[0];
            state.observe(block, value).expect("a legal value");
        }
        let op = GuestOp::Write {
            block: 0,
            count: 1,
            fua: false,
        };
        let id = state.submit(&op);
        let value = Value::Stamp(state.stamps(id)[0]);
        state.ack(id, Outcome::Ok).expect("no read");
        let flush = state.submit(&GuestOp::Flush);
        state.ack(flush, Outcome::Ok).expect("no read");
        state.crash();
        state.observe(0, value).expect("a legal value");
    });
    println!(
        "figure oracle_check_states_per_s {:.0}",
        1.0 / took.as_secs_f64()
    );
}

fn cut_cost() {
    let initial = Initial::Fill;
    let mut oracle = Oracle::new(OracleSettings {
        initial,
        ..OracleSettings::new(LARGE, Promise::Ordered)
    });
    let mut image: Vec<Value> = (0..LARGE).map(Value::Fill).collect();
    let extent = 64;
    for round in 0..WRITES_PER_BLOCK {
        for block in (0..LARGE).step_by(extent) {
            let op = GuestOp::Write {
                block,
                count: extent as u64,
                fua: false,
            };
            let id = oracle.submit(&op);
            if round < WRITES_PER_BLOCK / 2 {
                for (stamp, slot) in oracle.stamps(id).into_iter().zip(block..) {
                    image[usize::try_from(slot).expect("in memory")] = Value::Stamp(stamp);
                }
            }
            oracle.ack(id, Outcome::Ok).expect("no read");
        }
    }
    let start = Instant::now();
    let mut check = OrderedCheck::new(&oracle);
    println!(
        "figure ordered_index_1mi_ms {:.1}",
        start.elapsed().as_secs_f64() * 1e3
    );
    let cut = |check: &mut OrderedCheck| {
        let start = Instant::now();
        let cut = check.check(black_box(&image)).expect("a cut");
        assert!(cut.latest < NEVER);
        start.elapsed()
    };
    let took = (0..10)
        .map(|_| cut(&mut check))
        .min()
        .expect("there are rounds");
    println!("figure ordered_cut_1mi_ms {:.1}", took.as_secs_f64() * 1e3);
}

fn main() {
    clone_cost();
    state_cost();
    cut_cost();
}
