//! A stack of eight filters that do nothing changes nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::*;
use vaio_core::*;

#[tokio::test]
async fn eight_noops_read_back_and_keep_every_capability() {
    for by in ["hooks", "io"] {
        eight_noops(by).await;
    }
}

async fn eight_noops(by: &str) {
    let bare = open_ram(&[]).await.info();
    let names: Vec<_> = (1..=8)
        .map(|n| FilterSpec::new(format!("noop{n}")).with("by", by))
        .collect();
    let disk = open_ram(&names).await;
    assert_eq!(disk.info(), bare);
    verify_concurrently(&disk).await;
    disk.submit(Io::discard(Extent::new(0, 1 << 20)))
        .await
        .unwrap();
    disk.submit(Io::write_zeroes(Extent::new(0, 1 << 20)))
        .await
        .unwrap();
    disk.submit(Io::flush()).await.unwrap();
    let stats = disk.stats();
    for layer in &stats.layers[..8] {
        let ios: u64 = layer.ios.iter().map(|(_, ios)| ios).sum();
        assert_eq!(ios, 256 + 256 + 3, "{}", layer.name);
    }
    let map = disk.allocation(Extent::new(0, 64 << 20)).await.unwrap();
    assert_eq!(map.pieces().len(), 1);
    assert_eq!(map.pieces()[0].1, Allocation::Hole);
}

#[tokio::test]
async fn a_filter_named_twice_is_refused() {
    let twice = [FilterSpec::new("noop1"), FilterSpec::new("noop1")];
    assert_eq!(refusal(&twice).await.kind(), ErrorKind::Config);
}
