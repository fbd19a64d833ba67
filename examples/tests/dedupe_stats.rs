//! The estimate through a disk, and that looking changes nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use support::*;
use vaio_core::*;

fn stats() -> FilterSpec {
    FilterSpec::new("dedupe-stats")
}

fn count(disk: &Disk, name: &str) -> u64 {
    detail(disk, "dedupe-stats", name).parse().unwrap()
}

#[tokio::test]
async fn blocks_are_counted_by_content_and_read_back() {
    let disk = open_ram(&[stats()]).await;
    verify_concurrently(&disk).await;
    // 256 blocks of 251 contents.
    assert_eq!(
        (count(&disk, "blocks"), count(&disk, "zero_blocks")),
        (256, 0)
    );
    assert!(count(&disk, "distinct_estimate").abs_diff(251) <= 5);
    write(&disk, 0, 0, 8192).await.unwrap();
    assert_eq!(count(&disk, "zero_blocks"), 2);
    // The parts of a write that are no whole block are not looked at.
    write(&disk, 512, 9, 8192).await.unwrap();
    assert_eq!(count(&disk, "blocks"), 257);
}

#[tokio::test]
async fn large_writes_are_looked_at_beside_the_io() {
    let disk = open_ram(&[stats()]).await;
    write(&disk, 0, 5, 4 << 20).await.unwrap();
    for _ in 0..1000 {
        if count(&disk, "blocks") == 1024 {
            assert_eq!(count(&disk, "saved_percent"), 99);
            assert_eq!(count(&disk, "skipped_bytes"), 0);
            return;
        }
        pause(Duration::from_millis(2)).await;
    }
    panic!("blocks={}", count(&disk, "blocks"));
}

#[tokio::test]
async fn unknown_setting_is_refused() {
    let error = refusal(&[stats().with("depth", "1")]).await;
    assert_eq!(error.kind(), ErrorKind::Config);
}
