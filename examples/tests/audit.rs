//! The audit trail: complete, bounded, and never in the way.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::Value;
use support::*;
use vaio_core::*;
use vaio_examples::audit::{AuditFactory, Ring};

fn audit_to(path: &str) -> FilterSpec {
    FilterSpec::new("audit").with("path", path)
}

fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn every_mutation_has_one_line_after_close() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let spec = audit_to(path.to_str().unwrap());
    let disk = builder(Arc::new(RamDisk::new(64 << 20)), &[spec])
        .vm("vm7")
        .name("vda")
        .open()
        .await
        .unwrap();
    verify_concurrently(&disk).await;
    let extent = Extent::new(0, 8192);
    let backup = Io::discard(extent).with_origin(Origin::Backup);
    disk.submit(backup).await.unwrap();
    disk.submit(Io::write_zeroes(extent)).await.unwrap();
    disk.submit(Io::flush()).await.unwrap();
    disk.close().await.unwrap();

    let lines = lines(&path);
    let mut ops = BTreeMap::new();
    for line in &lines {
        *ops.entry(line["op"].as_str().unwrap().to_owned())
            .or_insert(0) += 1;
        assert_eq!((&line["vm"], &line["disk"]), (&"vm7".into(), &"vda".into()));
        assert_eq!(line["result"], "ok");
    }
    assert_eq!(
        ops,
        BTreeMap::from([
            ("write".into(), 256),
            ("write_zeroes".into(), 1),
            ("discard".into(), 1)
        ])
    );
    assert_eq!(lines[256]["origin"], "backup");
    assert_eq!(
        (&lines[257]["offset"], &lines[257]["len"]),
        (&0.into(), &8192.into())
    );
    let mode = std::os::unix::fs::MetadataExt::mode(&path.metadata().unwrap());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn writer_that_falls_behind_drops_and_counts_and_leaves_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let spec = audit_to(path.to_str().unwrap()).with("queue_lines_max", "16");
    let disk = open_ram(&[spec]).await;
    // The RAM disk answers at once, so that the writer has no turn in between.
    for _ in 0..100 {
        write(&disk, 0, 1, 512).await.unwrap();
    }
    assert_eq!(detail(&disk, "audit", "dropped"), "84");
    disk.close().await.unwrap();
    let lines = lines(&path);
    assert_eq!(lines.len(), 17);
    assert_eq!(lines[16]["dropped"], 84);
}

#[tokio::test]
async fn file_that_cannot_be_written_is_a_problem_and_no_io_error() {
    let disk = open_ram(&[audit_to("/dev/full")]).await;
    for _ in 0..10 {
        write(&disk, 0, 1, 512).await.unwrap();
    }
    disk.prepare(Verb::Snapshot { name: "s".into() })
        .await
        .unwrap()
        .abort()
        .await;
    let layer = disk.state().layers.remove(0);
    assert!(layer.filter.problem.unwrap().contains("cannot be written"));
    assert_eq!(layer.health, Health::Active);
    assert_eq!(detail(&disk, "audit", "dropped"), "10");
    disk.close().await.unwrap();
}

#[tokio::test]
async fn snapshot_finds_every_line_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let disk = open_ram(&[audit_to(path.to_str().unwrap())]).await;
    write(&disk, 4096, 1, 512).await.unwrap();
    let prepared = disk
        .prepare(Verb::Snapshot { name: "s".into() })
        .await
        .unwrap();
    assert_eq!(lines(&path).len(), 1);
    prepared.abort().await;
}

#[tokio::test]
async fn lines_are_written_behind_without_a_life_cycle_call() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let disk = open_ram(&[audit_to(path.to_str().unwrap())]).await;
    write(&disk, 4096, 1, 512).await.unwrap();
    for _ in 0..1000 {
        if lines(&path).len() == 1 {
            return;
        }
        pause(Duration::from_millis(2)).await;
    }
    panic!("no line came");
}

#[tokio::test]
async fn detach_and_attach_on_a_live_disk_lose_no_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let spec = audit_to(path.to_str().unwrap());
    let disk = open_ram(std::slice::from_ref(&spec)).await;
    for round in 0..20 {
        write(&disk, round * 512, 1, 512).await.unwrap();
        disk.replace("audit", spec.clone()).await.unwrap();
        write(&disk, round * 512, 2, 512).await.unwrap();
        disk.detach("audit", DirtyDisposition::Refuse)
            .await
            .unwrap();
        disk.attach(spec.clone()).await.unwrap();
    }
    disk.close().await.unwrap();
    assert_eq!(lines(&path).len(), 40);
}

#[tokio::test]
async fn ring_keeps_the_newest_records() {
    let ring = Ring::new(3);
    let registry = FilterRegistry::default().with(AuditFactory::with_ring(Arc::clone(&ring)));
    let disk = Disk::builder(Arc::new(RamDisk::new(1 << 20)), TestRt::new())
        .policy(Policy::empty().with(FilterSpec::new("audit")), registry)
        .open()
        .await
        .unwrap();
    for block in 0..5 {
        write(&disk, block * 512, 1, 512).await.unwrap();
    }
    let offsets: Vec<_> = ring.records().iter().map(|record| record.offset).collect();
    assert_eq!(offsets, [1024, 1536, 2048]);
}

#[tokio::test]
async fn wrong_settings_are_refused_by_name() {
    for (spec, word) in [
        (audit_to("/no/such/folder/a"), "/no/such/folder/a"),
        (audit_to("/"), "path=/"),
        (
            FilterSpec::new("audit").with("queue_lines_max", "0"),
            "queue_lines_max",
        ),
        (FilterSpec::new("audit").with("file", "x"), "file"),
    ] {
        let error = refusal(&[spec]).await;
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_line().contains(word), "{}", error.to_line());
    }
}
