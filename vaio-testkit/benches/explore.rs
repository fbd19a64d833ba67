//! How fast runs are explored, on one core, with the write-back twin: a small correct cache.
//!
//! * `small_runs_per_s`: runs of up to three guest operations, opened, worked, closed and read back,
//!   with no crash states.
//! * `crash_states_per_s`: unique crash states that were recovered and read, second eras included,
//!   by all time spent, the runs that lead to them included (without their clean ends).
//! * `crash_recoveries_per_s`: those of them that were recovered; the others had the media of one
//!   that was, and were put to the oracle.
//! * `crash_images_per_s`: images that were enumerated in the same time, equal ones included.

#![allow(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a benchmark"
)]

use std::time::{Duration, Instant};

use criterion::Criterion;
use vaio_core::Promise;
use vaio_testkit::{
    explore::{CrashKind, Lab, Seen, Work, enumerate::Space, run},
    zoo::Twin,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs the space again and again for `time`.
fn explore(lab: &Lab, time: Duration) -> (Work, Duration) {
    let space = Space {
        schedules: 1,
        ..Space::new("bench::explore", 4)
    };
    let from = Instant::now();
    let mut work = Work::default();
    while from.elapsed() < time {
        let mut seen = Seen::default();
        for small in space.runs() {
            let ran = run(lab, &small.plan, &small.tape(), &mut seen);
            assert!(ran.failure.is_none(), "the twin is correct");
            work += ran.work;
            if from.elapsed() >= time {
                break;
            }
        }
    }
    (work, from.elapsed())
}

fn main() {
    let mut plain = Lab::new(Twin::WriteBack.subject(Promise::AtFlush, None));
    plain.checks.tiers.clear();
    plain.checks.kinds.clear();
    let mut crashing = Lab::new(Twin::WriteBack.subject(Promise::AtFlush, None));
    crashing.checks.kinds = vec![CrashKind::Power];
    // What a clean close leaves is measured by the small runs.
    crashing.checks.close = false;

    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for (name, lab) in [("small_runs", &plain), ("crash_states", &crashing)] {
        criterion.bench_function(name, |b| {
            b.iter_custom(|n| {
                let (work, took) = explore(lab, Duration::from_millis(20 * n.min(20)));
                let each = if name == "small_runs" {
                    work.runs
                } else {
                    work.states
                };
                took.mul_f64(n as f64 / each.max(1) as f64)
            });
        });
    }
    criterion.final_summary();
    let per_s = |count: u64, took: Duration| count as f64 / took.as_secs_f64();
    if is_asked("small_runs") {
        let (work, took) = explore(&plain, Duration::from_secs(2));
        let rate = per_s(work.runs, took);
        println!("figure small_runs_per_s {rate:.0} runs/s");
    }
    if is_asked("crash_states") {
        let (work, took) = explore(&crashing, Duration::from_secs(4));
        let rate = per_s(work.states, took);
        println!("figure crash_states_per_s {rate:.0} states/s");
        let rate = per_s(work.recoveries, took);
        println!("figure crash_recoveries_per_s {rate:.0} recoveries/s");
        let rate = per_s(work.images, took);
        println!("figure crash_images_per_s {rate:.0} images/s");
    }
}

/// Whether the command line asks for it: by name, or for all.
fn is_asked(name: &str) -> bool {
    let names = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let names: Vec<String> = names.collect();
    names.is_empty() || names.iter().any(|asked| name.contains(asked))
}
