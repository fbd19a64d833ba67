//! A disk in a program of one's own: open it with a stack of filters, do IO through a port, look
//! at state, events and statistics, make data durable, and hold the disk still for a snapshot.
//!
//! `cargo run -p vaio-examples --example embed`

use std::{sync::Arc, time::Duration};

use vaio_core::{
    DirtyDisposition, Disk, DiskPhase, EventKind, Extent, FilterSpec, Io, Level, OpKind, Policy,
    RamDisk, Release, Result, Rt,
};
use vaio_host::runtime::HostRuntime;

fn main() -> Result<()> {
    // One disk has one thread. A program with a tokio runtime of its own uses
    // `HostRuntime::current`; one with another executor implements `vaio_core::Runtime`.
    HostRuntime::run(show)?
}

async fn show(rt: Rt) -> Result<()> {
    let policy = Policy::empty()
        .with(FilterSpec::new("audit"))
        .with(FilterSpec::new("throttle"));
    let disk = Disk::builder(Arc::new(RamDisk::new(1 << 30)), Arc::clone(&rt))
        .vm("web-3")
        .name("vda")
        .policy(policy, vaio_examples::registry())
        .open()
        .await?;
    let mut events = disk.events();

    queue(&disk).await?;
    let soon = rt.now() + Duration::from_secs(5);
    disk.flush_to(Level::BackingDurable)?.wait(soon).await?;
    println!("durable on the backing");
    hold_still(&disk, &rt).await?;

    // The stack changes while the guest runs.
    disk.attach(FilterSpec::new("dedupe-stats")).await?;
    disk.detach("audit", DirtyDisposition::Refuse).await?;
    let state = disk.state();
    let stack: Vec<_> = state.layers.iter().map(|layer| &*layer.name).collect();
    println!("stack now: {stack:?}");
    assert_eq!(stack, ["dedupe-stats", "throttle"]);

    disk.close().await?;
    let mut seen = Vec::new();
    while let Some(event) = events.try_next() {
        println!("event {:2}: {event}", event.seq);
        seen.push(event.kind);
    }
    for kind in [
        EventKind::Opened,
        EventKind::Quiesced,
        EventKind::Resumed,
        EventKind::Attached,
        EventKind::Closed,
    ] {
        assert!(seen.contains(&kind), "{kind:?}");
    }
    Ok(())
}

/// A front end has one port per queue: it pushes IO with a tag of its own and polls for what has
/// ended, in any order.
async fn queue(disk: &Disk) -> Result<()> {
    let mut port = disk.port(32)?;
    for tag in 0..256 {
        if port.is_full() {
            // A push would be refused now: that is the back-pressure.
            port.next().await.result?;
        }
        port.push(tag, Io::write(tag * 4096, vec![7; 4096].into()))?;
    }
    while port.in_flight() > 0 {
        port.next().await.result?;
    }
    let stats = disk.stats();
    let writes = &stats.ops[OpKind::Write as usize];
    println!("{} writes, p99 {} ns", writes.ios, writes.latency.p99_ns);
    assert_eq!((writes.ios, writes.errors), (256, 0));
    Ok(())
}

/// For an array's snapshot: no IO is in flight below while the guard lives.
async fn hold_still(disk: &Disk, rt: &Rt) -> Result<()> {
    let deadline = rt.now() + Duration::from_secs(5);
    let quiesced = disk.quiesce(Level::BackingDurable, deadline).await?;
    assert_eq!(disk.state().phase, DiskPhase::Quiesced);
    let waiting = disk.clone();
    let mut read = Box::pin(async move { waiting.submit(Io::read(Extent::new(0, 512))).await });
    let moment = rt.now() + Duration::from_millis(20);
    assert!(
        vaio_core::RuntimeExt::timeout_at(&**rt, moment, read.as_mut())
            .await
            .is_none()
    );
    match quiesced.release() {
        Release::Held => println!("snapshot taken of a disk that held still"),
        Release::ThawedEarly => println!("the snapshot took too long: throw it away"),
    }
    read.await?;
    assert_eq!(disk.state().phase, DiskPhase::Open);
    Ok(())
}
