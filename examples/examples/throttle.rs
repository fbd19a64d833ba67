//! Limits a disk to 2,000 IOs a second, measures what a queue of 16 gets, and lifts the limit
//! while the disk runs.
//!
//! `cargo run -p vaio-examples --example throttle`

use std::{sync::Arc, time::Duration};

use vaio_core::{Disk, Extent, FilterSpec, Io, Policy, RamDisk, Result, Rt};
use vaio_host::runtime::HostRuntime;

const RATE: u64 = 2_000;

fn main() -> Result<()> {
    HostRuntime::run(show)?
}

async fn show(rt: Rt) -> Result<()> {
    let limited = FilterSpec::new("throttle")
        .with("iops", RATE.to_string())
        .with("burst", "10ms");
    let disk = Disk::builder(Arc::new(RamDisk::new(1 << 30)), Arc::clone(&rt))
        .policy(Policy::empty().with(limited), vaio_examples::registry())
        .open()
        .await?;
    load(&disk, &rt, 100).await?;

    let took = load(&disk, &rt, RATE / 2).await?;
    println!("limited to {RATE} IOPS: {} IOs in {took:.2?}", RATE / 2);
    // Half a second's worth. A machine that is busy makes it longer, never shorter.
    assert!(took > Duration::from_millis(450), "{took:?}");

    disk.replace("throttle", FilterSpec::new("throttle"))
        .await?;
    let took = load(&disk, &rt, RATE / 2).await?;
    println!("no limit:            {} IOs in {took:.2?}", RATE / 2);
    assert!(took < Duration::from_millis(450), "{took:?}");
    disk.close().await
}

/// Reads `count` blocks with 16 in flight, and says how long that took.
async fn load(disk: &Disk, rt: &Rt, count: u64) -> Result<Duration> {
    let start = rt.now();
    let mut port = disk.port(16)?;
    for tag in 0..count {
        if port.is_full() {
            port.next().await.result?;
        }
        port.push(tag, Io::read(Extent::new(tag * 4096, 4096)))?;
    }
    while port.in_flight() > 0 {
        port.next().await.result?;
    }
    Ok(rt.now().since(start))
}
