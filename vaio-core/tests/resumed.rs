//! A quiesce that ends is told of, however it ends.
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

use support::*;
use vaio_core::*;

/// Found by the `embed` example: `release` opened the gate without an event, so that a reader of
/// events saw the disk quiesced for ever.
#[tokio::test]
async fn released_and_dropped_quiesces_are_both_told_of_once() {
    let disk = open(RamDisk::new(1 << 20), vec![]).await;
    let rt = TokioRt::new();
    let quiesced = disk.quiesce(Level::Drained, soon(&rt)).await.unwrap();
    assert_eq!(quiesced.release(), Release::Held);
    assert_eq!(events_of(&disk, EventKind::Resumed).len(), 1);
    drop(disk.quiesce(Level::Drained, soon(&rt)).await.unwrap());
    assert_eq!(events_of(&disk, EventKind::Resumed).len(), 2);
}
