//! Asks what a deduplicating store would save for a guest that writes the same things again.
//!
//! `cargo run -p vaio-examples --example dedupe_stats`

use std::sync::Arc;

use vaio_core::{Disk, FilterSpec, Io, Policy, RamDisk, Result, Rt};
use vaio_host::runtime::HostRuntime;

const BLOCK: usize = 4096;
const DIFFERENT: u64 = 400;
const COPIES: u64 = 4;

fn main() -> Result<()> {
    HostRuntime::run(show)?
}

async fn show(rt: Rt) -> Result<()> {
    let disk = Disk::builder(Arc::new(RamDisk::new(1 << 30)), rt)
        .policy(
            Policy::empty().with(FilterSpec::new("dedupe-stats")),
            vaio_examples::registry(),
        )
        .open()
        .await?;
    for number in 0..DIFFERENT * COPIES {
        let content = (number % DIFFERENT + 1).to_le_bytes().repeat(BLOCK / 8);
        disk.submit(Io::write(number * BLOCK as u64, content.into()))
            .await?;
    }
    let details = disk.state().layers.remove(0).filter.details;
    let mut saved_percent = 0;
    for (name, value) in details {
        println!("{name:18} {value}");
        if name == "saved_percent" {
            saved_percent = value.parse().unwrap_or(0);
        }
    }
    assert!(
        (72..=78).contains(&saved_percent),
        "three of four copies, give or take the estimate"
    );
    println!("ok: a deduplicating store would save about {saved_percent} %");
    disk.close().await
}
