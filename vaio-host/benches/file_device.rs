//! Measures a [`FileDevice`] alone: random reads or writes at a depth for some seconds, on one
//! current-thread runtime, the way a disk's IO thread does it.
//!
//! `file_device PATH [--rw randread|randwrite] [--depth N] [--seconds S] [--block BYTES]
//! [--direct on|off] [--engine auto|io_uring|threads]` prints
//! `figure file_device_randread_qd32_iops VALUE iops`. `scripts/file-device` runs it beside fio.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark owns the clock and its tasks"
)]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "figures have three digits; blocks are small"
)]

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use vaio_core::{BlockDevice, BufferPool, Extent, Io};
use vaio_host::{
    device::{Direct, Engine, FileDevice, FileOptions},
    runtime::HostRuntime,
};

struct Plan {
    path: String,
    is_write: bool,
    depth: usize,
    seconds: f64,
    block: u64,
    options: FileOptions,
}

fn main() -> ExitCode {
    let Some(plan) = parse(std::env::args().skip(1)) else {
        // `cargo bench` and `cargo test --benches` run this without a path: nothing to measure.
        eprintln!(
            "file_device PATH [--rw R] [--depth N] [--seconds S] [--block B] [--direct D] [--engine E]"
        );
        return ExitCode::SUCCESS;
    };
    match HostRuntime::run(|rt| measure(plan, rt)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) | Err(error) => {
            eprintln!("{}", error.to_line());
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Option<Plan> {
    let mut plan = Plan {
        path: String::new(),
        is_write: false,
        depth: 32,
        seconds: 2.0,
        block: 4096,
        options: FileOptions::default(),
    };
    while let Some(arg) = args.next() {
        let mut options = plan.options.clone();
        match arg.as_str() {
            "--bench" => {}
            "--rw" => plan.is_write = args.next()? == "randwrite",
            "--depth" => plan.depth = args.next()?.parse().ok()?,
            "--seconds" => plan.seconds = args.next()?.parse().ok()?,
            "--block" => plan.block = args.next()?.parse().ok()?,
            "--direct" if args.next()? == "off" => options = options.with_direct(Direct::Off),
            "--direct" => options = options.with_direct(Direct::On),
            "--engine" => {
                options = options.with_engine(match args.next()?.as_str() {
                    "threads" => Engine::Threads,
                    "io_uring" => Engine::IoUring,
                    _ => Engine::Auto,
                });
            }
            _ => plan.path = arg,
        }
        plan.options = options;
    }
    (!plan.path.is_empty()).then_some(plan)
}

async fn measure(plan: Plan, rt: vaio_core::Rt) -> vaio_core::Result<()> {
    let device = Arc::new(FileDevice::open(&plan.path, &plan.options, &rt)?);
    let blocks = device.info().capacity / plan.block;
    let pool = BufferPool::new(4096, 64 << 20);
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(plan.seconds);
    let plan = Arc::new(plan);
    let workers: Vec<_> = (0..plan.depth)
        .map(|_| {
            let (device, plan, pool) = (Arc::clone(&device), Arc::clone(&plan), pool.clone());
            let mut random = rt.entropy() | 1;
            tokio::task::spawn(async move {
                let mut done = 0u64;
                let payload = pool.copy_of(&vec![0x5a; plan.block as usize]).freeze();
                while Instant::now() < end {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let offset = random % blocks * plan.block;
                    let io = if plan.is_write {
                        Io::write(offset, payload.clone())
                    } else {
                        Io::read(Extent::new(offset, plan.block))
                    };
                    device.submit(io).await?;
                    done += 1;
                }
                Ok::<_, vaio_core::Error>(done)
            })
        })
        .collect();
    let mut done = 0;
    for worker in workers {
        done += worker.await.expect("a worker does not panic")?;
    }
    let iops = done as f64 / start.elapsed().as_secs_f64();
    let rw = if plan.is_write {
        "randwrite"
    } else {
        "randread"
    };
    println!(
        "figure file_device_{rw}_qd{}_iops {iops:.0} iops",
        plan.depth
    );
    if let Some(cpu) = cpu_micros() {
        println!(
            "figure file_device_{rw}_qd{}_cpu {:.2} us/io",
            plan.depth,
            cpu / done as f64
        );
    }
    Ok(())
}

/// User and system time of this process so far, in microseconds.
fn cpu_micros() -> Option<f64> {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let time = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 * 1e6 + t.tv_usec() as f64;
    Some(time(usage.user_time()) + time(usage.system_time()))
}
