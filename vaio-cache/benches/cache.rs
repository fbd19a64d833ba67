//! What the cache costs: one thread, each figure the median of [`RUNS`] runs on devices in memory,
//! beside a control in the same run. `figure` lines; `cargo bench -p vaio-cache`.
//!
//! What is bound by the processor is measured in its time, so that a busy machine does not count.
//! No criterion: a run needs a log of its own, because a log that is full measures the backing.
//!
//! * `write_hit_4k_ns`, `first_dirty_4k_ns`: a random 4 KiB write at depth 1 over what is dirty, and
//!   over what is not; `ram_write_4k_ns`: the same write to the device in memory itself.
//! * `read_hit_log_4k_ns`, `read_hit_store_4k_ns`: a random 4 KiB read, verified, from the log and
//!   from the read store; `ram_read_4k_ns` likewise. `crc_4k_ns`: what verifying is of it.
//! * `durable_qd32_per_s`: 4 KiB writes at depth 32, `durability=at_ack`, log in a file;
//!   `raw_append_qd32_per_s`: 33 blocks appended and one fdatasync, in turn, in the same file system.
//! * `log_bytes_ratio_batch32`: bytes written to the cache device for each byte of the guest's, at
//!   depth 32.
//! * `device_ios_128k_hit_log`, `device_ios_128k_hit_store`: reads of the cache device for one read of
//!   128 KiB that was written, or read, in order in 4 KiB pieces.
//! * `recovery_qd1_s_per_gib`, `recovery_qd32_s_per_gib`: an open after a crash, for each GiB that is
//!   dirty, written at depth 1, the most headers that there can be, and at depth 32.
//! * `ram_per_gib_log_mib`, `ram_per_gib_store_mib`: memory for each GiB in the cache at random 4 KiB.
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::disallowed_methods,
    unreachable_pub,
    missing_debug_implementations,
    reason = "a benchmark owns the clock and its tasks; figures have three digits"
)]

mod rig;

use std::{fs::File, future::Future, hint::black_box, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use rig::{Counted, Counting, Flat, Forgetful, LIVE, Parts, Plain, cpu_s, drive, rt};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;
use vaio_core::{BlockDevice, Disk, Extent, Io, RamDisk};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const RUNS: usize = 7;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const BLOCK: u64 = 4 * KIB;
/// Units of the guest's disk: 512 MiB, as the figures of others.
const UNITS: u64 = 128 * KIB;
/// IOs of a run.
const COUNT: u64 = 30_000;
/// Nothing is destaged while it is measured.
const LATE: [(&str, &str); 2] = [("dirty_age_max", "24h"), ("dirty_bytes_max", "1T")];

fn figure(name: &str, value: f64, unit: &str) {
    println!("figure {name} {value:.3} {unit}");
}

/// Disjoint and spread: a random order without repetition.
fn spread(n: u64) -> u64 {
    n * 73_939_133 % UNITS
}

fn chance(n: u64) -> u64 {
    let mixed = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32
}

fn write(unit: u64, data: &Bytes) -> Io {
    Io::write(unit * BLOCK, data.clone())
}

fn read(unit: u64) -> Io {
    Io::read(Extent::new(unit * BLOCK, BLOCK))
}

fn ram(bytes: u64) -> Arc<dyn BlockDevice> {
    Arc::new(RamDisk::with_block(bytes, 4096))
}

fn block() -> Bytes {
    Bytes::from(vec![7; BLOCK as usize])
}

/// Runs each step [`RUNS`] times, one after another in turn, and prints the medians.
fn medians(names: &[&str], unit: &str, mut run: impl FnMut() -> Vec<f64>) -> Vec<f64> {
    let mut all = vec![Vec::new(); names.len()];
    for _ in 0..RUNS {
        for (values, value) in all.iter_mut().zip(run()) {
            values.push(value);
        }
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let medians: Vec<f64> = all.iter_mut().map(median).collect();
    for (name, value) in names.iter().zip(&medians) {
        figure(name, *value, unit);
    }
    medians
}

fn within<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let mut runtime = runtime;
    runtime.enable_time().build().unwrap().block_on(future)
}

async fn per_io(disk: &Disk, io: impl FnMut(u64) -> Io) -> f64 {
    let begun = cpu_s();
    drive(disk, 1, COUNT, io).await;
    (cpu_s() - begun) * 1e9 / COUNT as f64
}

async fn bare_per_io(device: &dyn BlockDevice, io: impl Fn(u64) -> Io) -> f64 {
    let begun = cpu_s();
    for n in 0..COUNT {
        black_box(device.submit(io(n)).await.unwrap());
    }
    (cpu_s() - begun) * 1e9 / COUNT as f64
}

fn latencies() {
    let names = [
        "first_dirty_4k_ns",
        "write_hit_4k_ns",
        "read_hit_log_4k_ns",
        "ram_write_4k_ns",
        "ram_read_4k_ns",
    ];
    let (backing, cache) = (Flat::new(UNITS * BLOCK), Flat::new(896 * MIB));
    medians(&names, "ns", || {
        within(async {
            let rt = rt();
            let mut settings = LATE.to_vec();
            settings.push(("unflushed_bytes_max", "8M"));
            // What the run before left in the log is not asked for.
            settings.extend([("read_percent", "0"), ("discard_dirty", "1T")]);
            let disk = Parts::new(
                Arc::clone(&backing) as _,
                Arc::clone(&cache) as _,
                &settings,
            );
            let disk = disk.open(&rt).await;
            let data = block();
            let first = per_io(&disk, |n| write(spread(n), &data)).await;
            let hit = per_io(&disk, |n| write(spread(chance(n) % COUNT), &data)).await;
            disk.submit(Io::flush()).await.unwrap();
            let read_hit = per_io(&disk, |n| read(spread(chance(n) % COUNT))).await;
            let plain: &dyn BlockDevice = &*backing;
            let ram_write = bare_per_io(plain, |n| write(spread(chance(n) % COUNT), &data)).await;
            let ram_read = bare_per_io(plain, |n| read(spread(chance(n) % COUNT))).await;
            std::mem::forget(disk);
            vec![first, hit, read_hit, ram_write, ram_read]
        })
    });
    medians(&["read_hit_store_4k_ns"], "ns", || {
        within(async {
            let rt = rt();
            let settings = [("read_percent", "90"), ("discard_dirty", "1T")];
            let disk = Parts::new(
                Arc::clone(&backing) as _,
                Arc::clone(&cache) as _,
                &settings,
            );
            let disk = disk.open(&rt).await;
            for n in 0..COUNT {
                disk.submit(read(spread(n))).await.unwrap();
                // The task that fills has its turn.
                tokio::task::yield_now().await;
            }
            vec![per_io(&disk, |n| read(spread(chance(n) % COUNT))).await]
        })
    });
    let data = block();
    medians(&["crc_4k_ns"], "ns", || {
        let begun = cpu_s();
        for _ in 0..COUNT {
            black_box(checksum(CrcAlgorithm::Crc32Iscsi, black_box(&data)));
        }
        vec![(cpu_s() - begun) * 1e9 / COUNT as f64]
    });
}

fn file(bytes: u64) -> File {
    let dir = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, Into::into);
    let file = tempfile::tempfile_in(dir).unwrap();
    // Written once, so that nothing is allocated while it is measured.
    let zeroes = vec![0; MIB as usize];
    for at in (0..bytes).step_by(MIB as usize) {
        file.write_all_at(&zeroes, at).unwrap();
    }
    file.sync_all().unwrap();
    file
}

fn durable() {
    const WRITES: u64 = 32 * 550;
    let names = ["durable_qd32_per_s", "raw_append_qd32_per_s"];
    let per_s = medians(&names, "1/s", || {
        within(async {
            let rt = rt();
            let mut settings = LATE.to_vec();
            settings.extend([("read_percent", "0"), ("durability", "at_ack")]);
            let bytes = 128 * MIB;
            let log: Arc<dyn BlockDevice> = Arc::new(Plain(file(bytes), bytes));
            let disk = Parts::new(ram(UNITS * BLOCK), Counted::new(log), &settings);
            let disk = disk.open(&rt).await;
            let data = block();
            // A log that has just been opened has memory to get first.
            drive(&disk, 32, 32 * 50, |n| write(spread(n), &data)).await;
            let begun = Instant::now();
            drive(&disk, 32, WRITES, |n| write(spread(n), &data)).await;
            let ours = WRITES as f64 / begun.elapsed().as_secs_f64();
            let raw = file(bytes);
            let batch = vec![7; 33 * BLOCK as usize];
            let begun = Instant::now();
            for n in 0..WRITES / 32 {
                raw.write_all_at(&batch, n * 33 * BLOCK).unwrap();
                raw.sync_data().unwrap();
            }
            let theirs = WRITES as f64 / begun.elapsed().as_secs_f64();
            vec![ours, theirs]
        })
    });
    figure("durable_qd32_ratio", per_s[0] / per_s[1], "x");
}

fn counts() {
    within(async {
        let rt = rt();
        let mut settings = LATE.to_vec();
        settings.push(("read_percent", "0"));
        let cache = Counted::new(ram(GIB));
        let below: Arc<dyn BlockDevice> = Arc::clone(&cache) as _;
        let disk = Parts::new(ram(UNITS * BLOCK), below, &settings)
            .open(&rt)
            .await;
        let data = block();
        drive(&disk, 32, 320, |n| write(spread(n), &data)).await;
        let before = cache.written_bytes.load(Relaxed);
        drive(&disk, 32, 32_000, |n| write(spread(n), &data)).await;
        let bytes = cache.written_bytes.load(Relaxed) - before;
        let ratio = bytes as f64 / (32_000 * BLOCK) as f64;
        figure("log_bytes_ratio_batch32", ratio, "x");
        let start = 3 * GIB / 8;
        for n in 0..512 {
            let at = start + n * BLOCK;
            disk.submit(Io::write(at, data.clone())).await.unwrap();
        }
        disk.submit(Io::flush()).await.unwrap();
        let ios = reads_of_128k(&disk, &cache, start).await;
        figure("device_ios_128k_hit_log", ios, "per_read");
    });
    within(async {
        let rt = rt();
        let cache = Counted::new(ram(GIB));
        let below: Arc<dyn BlockDevice> = Arc::clone(&cache) as _;
        let disk = Parts::new(ram(UNITS * BLOCK), below, &[]).open(&rt).await;
        // Two streams that are each too short to be passed by.
        for start in [0, GIB / 4] {
            for n in 0..256 {
                let at = Extent::new(start + n * BLOCK, BLOCK);
                disk.submit(Io::read(at)).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
        let first = reads_of_128k(&disk, &cache, 0).await;
        let second = reads_of_128k(&disk, &cache, GIB / 4).await;
        figure("device_ios_128k_hit_store", first.max(second), "per_read");
    });
}

/// Reads of the cache device for each of eight reads of 128 KiB.
async fn reads_of_128k(disk: &Disk, cache: &Counted, start: u64) -> f64 {
    let before = cache.reads.load(Relaxed);
    for n in 0..8 {
        let at = Extent::new(start + n * 128 * KIB, 128 * KIB);
        disk.submit(Io::read(at)).await.unwrap();
    }
    (cache.reads.load(Relaxed) - before) as f64 / 8.0
}

fn recovery(name: &str, depth: usize) {
    const DIRTY: u64 = GIB / 4;
    let cache = Flat::new(3 * DIRTY);
    medians(&[name], "s/GiB", || {
        within(async {
            let rt = rt();
            let mut settings = LATE.to_vec();
            settings.extend([("read_percent", "0"), ("discard_dirty", "1T")]);
            let parts = Parts::new(
                ram(UNITS * BLOCK),
                Counted::new(Arc::clone(&cache) as _),
                &settings,
            );
            let disk = parts.open(&rt).await;
            let data = block();
            drive(&disk, depth, DIRTY / BLOCK, |n| write(spread(n), &data)).await;
            disk.submit(Io::flush()).await.unwrap();
            // The process is gone: nothing was closed.
            std::mem::forget(disk);
            let begun = cpu_s();
            let again = parts.open(&rt).await;
            let took = cpu_s() - begun;
            let seen = again.submit(read(spread(5))).await.unwrap().into_data();
            assert_eq!(seen, data, "it is the log's");
            std::mem::forget(again);
            vec![took * GIB as f64 / DIRTY as f64]
        })
    });
}

fn memory() {
    const DIRTY: u64 = GIB;
    within(async {
        let rt = rt();
        let mut settings = LATE.to_vec();
        settings.extend([("read_percent", "0"), ("unflushed_bytes_max", "4M")]);
        settings.retain(|pair| *pair != ("unflushed_bytes_max", "1G"));
        let parts = Parts::new(Forgetful::new(4 * GIB), Forgetful::new(4 * GIB), &settings);
        let disk = parts.open(&rt).await;
        let data = block();
        disk.submit(write(0, &data)).await.unwrap();
        let before = LIVE.load(Relaxed);
        drive(&disk, 1, DIRTY / BLOCK, |n| {
            write(n * 73_939_133 % MIB, &data)
        })
        .await;
        disk.submit(Io::flush()).await.unwrap();
        let took = (LIVE.load(Relaxed) - before) as f64 / MIB as f64;
        figure(
            "ram_per_gib_log_mib",
            took * GIB as f64 / DIRTY as f64,
            "MiB",
        );
    });
    within(async {
        let rt = rt();
        let open = async |percent| {
            let before = LIVE.load(Relaxed);
            let settings = [("read_percent", percent)];
            let parts = Parts::new(Forgetful::new(8 * GIB), Forgetful::new(4 * GIB), &settings);
            let disk = parts.open(&rt).await;
            (LIVE.load(Relaxed) - before, disk)
        };
        let (without, _one) = open("0").await;
        let (with, _other) = open("50").await;
        // All of it is there from the start: two GiB of units.
        let took = (with - without) as f64 / MIB as f64 / 2.0;
        figure("ram_per_gib_store_mib", took, "MiB");
    });
}

fn main() {
    let groups: [(&str, fn()); 6] = [
        ("latencies", latencies),
        ("durable", durable),
        ("counts", counts),
        ("recovery_qd1", || recovery("recovery_qd1_s_per_gib", 1)),
        ("recovery_qd32", || recovery("recovery_qd32_s_per_gib", 32)),
        ("memory", memory),
    ];
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    for (name, run) in groups {
        if only.as_ref().is_none_or(|only| name.contains(only)) {
            run();
        }
    }
}
