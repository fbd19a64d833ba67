//! The port: one completion per push, limits, ownership of what is in flight.
#![allow(
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::items_after_statements,
    clippy::too_many_lines,
    clippy::unwrap_used,
    clippy::wildcard_imports,
    reason = "tests own their runtime, and may fail"
)]
mod support;

use std::{sync::Arc, time::Duration};

use support::*;
use vaio_core::*;

#[tokio::test]
async fn every_push_completes_once_with_its_own_answer() {
    let disk = open(
        RamDisk::new(1 << 20),
        vec![passing(every_op("observe", Class::Inspect))],
    )
    .await;
    let mut port = disk.port(32).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for tag in 0..200u64 {
        while port.is_full() {
            let done = port.next().await;
            assert!(done.result.is_ok() && seen.insert(done.tag));
        }
        port.push(tag, write_of((tag % 64) * 512, tag as u8, 512))
            .unwrap();
    }
    while port.in_flight() > 0 {
        assert!(seen.insert(port.next().await.tag));
    }
    assert_eq!(seen.len(), 200);
    assert_eq!(read_all(&disk, 0, 512).await, vec![192u8; 512]);
    let stats = disk.stats();
    assert_eq!(stats.ops[OpKind::Write as usize].ios, 200);
    assert_eq!(
        stats.layers[0].ios[OpKind::Write as usize],
        (OpKind::Write, 200)
    );
    assert_eq!(disk.state().in_flight, 0);
}

#[tokio::test]
async fn full_port_refuses_and_bad_io_completes_with_its_error() {
    let disk = open(RamDisk::new(1 << 20), vec![]).await;
    let mut port = disk.port(1).unwrap();
    port.push(7, Io::read(Extent::new(1 << 20, 512))).unwrap();
    assert_eq!(
        port.push(8, Io::flush()).unwrap_err().kind(),
        ErrorKind::Busy
    );
    let done = port.next().await;
    assert_eq!(
        (done.tag, done.result.unwrap_err().kind()),
        (7, ErrorKind::Invalid)
    );
    assert!(disk.port(PORT_DEPTH_MAX + 1).is_err());
    assert!(disk.port(0).is_err());
}

#[tokio::test]
async fn slots_of_a_disk_are_limited_and_given_back() {
    let settings = {
        let mut settings = DiskSettings::default();
        settings.slots_max = 128;
        settings
    };
    let disk = Disk::builder(Arc::new(RamDisk::new(1 << 20)), TokioRt::new())
        .settings(settings)
        .open()
        .await
        .unwrap();
    let port = disk.port(64).unwrap();
    assert_eq!(disk.port(1).unwrap_err().kind(), ErrorKind::Busy);
    drop(port);
    assert!(disk.port(64).is_ok());
}

#[tokio::test(start_paused = true)]
async fn dropped_port_loses_answers_and_no_io() {
    let slow = custom(every_op("slow", Class::Inspect), |io, next| {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            next.submit(io).await
        })
    });
    let disk = open(RamDisk::new(1 << 20), vec![slow]).await;
    let mut port = disk.port(4).unwrap();
    port.push(1, write_of(0, 9, 512)).unwrap();
    assert!(futures::future::poll_immediate(port.next()).await.is_none());
    drop(port);
    assert_eq!(disk.state().orphans, 1);
    assert_eq!(disk.state().in_flight, 1, "the gate counts it");
    // The read overlaps the orphan: it waits for it instead of passing it.
    assert_eq!(read_all(&disk, 0, 512).await, vec![9; 512]);
    assert_eq!(disk.state().orphans, 0);
    assert_eq!(events_of(&disk, EventKind::IoOrphaned).len(), 1);
}

#[tokio::test]
async fn closed_disk_refuses_push_and_submit() {
    let disk = open(RamDisk::new(1 << 20), vec![]).await;
    let mut port = disk.port(4).unwrap();
    disk.close().await.unwrap();
    assert_eq!(
        port.push(0, Io::flush()).unwrap_err().kind(),
        ErrorKind::Gone
    );
    assert_eq!(
        disk.submit(Io::flush()).await.unwrap_err().kind(),
        ErrorKind::Gone
    );
}
