//! Several hosts: links, leases, hand-over and fail-over; the correct twins raise no alarm, and the
//! kit finds what is put into them.
//!
//! `VAIO_WORLD_SEEDS` says how many random runs each case and script gets: 12 by default,
//! 2000 in `.ci/nightly`.

mod cases;
mod lease;
mod link;
mod mirror;
mod pair;
mod subjects;

use vaio_testkit::{Swarm, Tape};

fn seeds() -> u64 {
    std::env::var("VAIO_WORLD_SEEDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(12)
}

fn tape(seed: u64) -> Tape {
    Tape::random(seed).with_swarm(Swarm::random(seed))
}
