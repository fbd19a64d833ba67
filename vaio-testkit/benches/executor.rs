//! What the simulator costs: one core, nothing under test.
//!
//! * `executor_polls_per_s`: 64 tasks that yield, `Schedule::Random` with a random tape: each wake
//!   draws from the tape and is written down. `executor_fifo_polls_per_s`: the same, in turn.
//! * `idle_hour_us`: an hour of virtual time with an open disk and nothing to do.
//! * `sim_create_drop_ns`: a world with one host, made and dropped.
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    reason = "a benchmark: it measures real time"
)]

use std::{
    future::poll_fn,
    hint::black_box,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use criterion::Criterion;
use vaio_core::{Disk, RamDisk};
use vaio_testkit::{Limits, Schedule, Sim, Tape};

const TASKS: u64 = 64;
const YIELDS: u64 = 10_000;
const HOUR: Duration = Duration::from_hours(1);

/// Polls in a world of tasks that yield; the time without the world's making.
fn polls(schedule: Schedule) -> Duration {
    let sim = Sim::new(Tape::random(1), schedule);
    sim.set_limits(Limits {
        drain_polls: 2 * TASKS * YIELDS,
        ..Limits::default()
    });
    let host = sim.host("a");
    for _ in 0..TASKS {
        let mut left = YIELDS;
        host.spawn(
            "yields",
            poll_fn(move |cx| {
                if left == 0 {
                    return Poll::Ready(());
                }
                left -= 1;
                cx.waker().wake_by_ref();
                Poll::Pending
            }),
        );
    }
    let begun = Instant::now();
    sim.run(sim.sleep(Duration::from_nanos(1))).unwrap();
    begun.elapsed()
}

fn idle_hour() -> Duration {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    sim.set_limits(Limits {
        time: 2 * HOUR,
        ..Limits::default()
    });
    let rt = sim.host("a").rt();
    let device = Arc::new(RamDisk::new(1 << 20));
    sim.run(async {
        let disk = Disk::builder(device, rt).open().await.unwrap();
        let begun = Instant::now();
        sim.sleep(HOUR).await;
        let passed = begun.elapsed();
        disk.close().await.unwrap();
        passed
    })
    .unwrap()
}

fn create_drop() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    black_box(sim.host("a"));
}

/// The least of several measurements: what the machine does when left alone.
fn least(times: u32, mut measure: impl FnMut() -> Duration) -> Duration {
    (0..times).map(|_| measure()).min().unwrap()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let all = (TASKS * YIELDS) as f64;
    for (name, schedule) in [
        ("executor_polls_per_s", Schedule::Random),
        ("executor_fifo_polls_per_s", Schedule::Fifo),
        ("executor_pct_polls_per_s", Schedule::Pct { depth: 3 }),
    ] {
        let time = least(9, || polls(schedule));
        println!("figure {name} {:.0} 1/s", all / time.as_secs_f64());
    }
    let idle = least(9, idle_hour);
    println!("figure idle_hour_us {:.1} us", idle.as_secs_f64() * 1e6);
    let rounds = 10_000;
    let worlds = least(9, || {
        let begun = Instant::now();
        (0..rounds).for_each(|_| create_drop());
        begun.elapsed() / rounds
    });
    println!("figure sim_create_drop_ns {} ns", worlds.as_nanos());

    criterion.bench_function("executor/random_64_tasks", |bencher| {
        bencher.iter(|| polls(Schedule::Random));
    });
    criterion.bench_function("executor/create_drop", |bencher| {
        bencher.iter(create_drop);
    });
    criterion.final_summary();
}
