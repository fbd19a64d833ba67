//! The mirror over plain memory, with a side that fails when told to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use vaio_core::*;
use vaio_testkit::twins::mirror::MirrorFactory;

use crate::support::*;

/// Memory whose writes fail while `fails` is set.
#[derive(Debug)]
struct Flaky {
    disk: RamDisk,
    fails: AtomicBool,
}

impl Flaky {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            disk: RamDisk::with_block(8 * 512, 512),
            fails: AtomicBool::new(false),
        })
    }
}

#[async_trait]
impl BlockDevice for Flaky {
    fn info(&self) -> DeviceInfo {
        self.disk.info()
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        if matches!(io.op, Op::Write { .. }) && self.fails.load(Relaxed) {
            return Err(Error::new(ErrorKind::Io, "told to fail"));
        }
        self.disk.submit(io).await
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        self.disk.allocation(range).await
    }
}

fn media() -> (Media, Arc<Flaky>, Arc<Flaky>) {
    let (primary, mirror) = (Flaky::new(), Flaky::new());
    let mut media = Media::new();
    media.backing = Arc::<Flaky>::clone(&primary);
    media.other = Arc::<Flaky>::clone(&mirror);
    (media, primary, mirror)
}

#[test]
fn both_sides_get_what_is_written_and_what_was_there() {
    run(|rt| async move {
        let (media, primary, mirror) = media();
        primary.submit(Io::write(512, blocks(&[4]))).await.unwrap();
        let disk = media.open(&rt, MirrorFactory::default()).await.unwrap();
        poke(&disk, 0, &[1]).await;
        assert_eq!(peek(&*mirror, 0, 1).await, [1]);
        rt.sleep(Duration::from_secs(1)).await;
        assert_eq!(peek(&*mirror, 0, 3).await, [1, 4, 0]);
        assert_eq!(disk.state().layers[0].filter.lag_bytes, 0);
        disk.close().await.unwrap();
    });
}

#[test]
fn primary_that_failed_a_write_is_not_read_after_a_kill_and_is_healed() {
    run(|rt| async move {
        let (media, primary, mirror) = media();
        let disk = media.open(&rt, MirrorFactory::default()).await.unwrap();
        poke(&disk, 0, &[1]).await;
        rt.sleep(Duration::from_secs(1)).await;
        primary.fails.store(true, Relaxed);
        poke(&disk, 0, &[2]).await;
        assert_eq!(peek_disk(&disk, 0, 1).await, [2]);
        assert_eq!(disk.dirty(Level::BackingDurable).bytes, 512);
        disk.submit(Io::flush()).await.unwrap();
        drop(disk);
        assert_eq!(peek(&*primary, 0, 1).await, [1]);
        let disk = media.open(&rt, MirrorFactory::default()).await.unwrap();
        assert_eq!(peek_disk(&disk, 0, 1).await, [2]);
        primary.fails.store(false, Relaxed);
        rt.sleep(Duration::from_secs(5)).await;
        assert_eq!(peek(&*primary, 0, 1).await, [2]);
        assert_eq!(peek(&*mirror, 0, 1).await, [2]);
    });
}

#[test]
fn write_that_both_sides_fail_is_failed() {
    run(|rt| async move {
        let (media, primary, mirror) = media();
        let disk = media.open(&rt, MirrorFactory::default()).await.unwrap();
        primary.fails.store(true, Relaxed);
        mirror.fails.store(true, Relaxed);
        let failed = disk.submit(Io::write(0, blocks(&[1]))).await;
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Io);
    });
}

#[test]
fn copies_of_both_sides_are_equal_after_a_kill() {
    run(|rt| async move {
        let (media, primary, mirror) = media();
        let disk = media.open(&rt, MirrorFactory::default()).await.unwrap();
        poke(&disk, 0, &[1, 2]).await;
        drop(disk);
        // A write that was under way: one side has it.
        primary.submit(Io::write(0, blocks(&[9]))).await.unwrap();
        let disk = media.open(&rt, MirrorFactory::default()).await.unwrap();
        assert_eq!(peek_disk(&disk, 0, 2).await, [9, 2]);
        let flushing = disk.flush_to(Level::ReplicaDurable).unwrap();
        flushing
            .wait(rt.now() + Duration::from_secs(5))
            .await
            .unwrap();
        assert_eq!(peek(&*mirror, 0, 2).await, [9, 2]);
    });
}
