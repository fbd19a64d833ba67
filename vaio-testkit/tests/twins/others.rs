//! Ordered replicator, observer, transform and read cache over plain memory.

use std::{sync::Arc, time::Duration};

use vaio_core::*;
use vaio_testkit::twins::{
    observer::ObserverFactory, ordered::OrderedFactory, read_cache::ReadCacheFactory,
    transform::TransformFactory,
};

use crate::support::*;

#[test]
fn replica_joins_as_a_copy_follows_and_survives_a_kill() {
    run(|rt| async move {
        let mut media = Media::new();
        let replica: Arc<dyn BlockDevice> = Arc::new(RamDisk::with_block(8 * 512, 512));
        media.named.push(("replica", Arc::clone(&replica)));
        media
            .backing
            .submit(Io::write(3 * 512, blocks(&[7])))
            .await
            .unwrap();
        for round in 1..=5u8 {
            let disk = media.open(&rt, OrderedFactory::tiny()).await.unwrap();
            assert_eq!(peek(&replica, 3, 1).await, [7]);
            if round > 1 {
                assert_eq!(peek(&replica, 0, 3).await, [round - 1, round - 1, 9]);
            }
            poke(&disk, 0, &[round, round, 9]).await;
            assert_eq!(peek_disk(&disk, 0, 4).await, [round, round, 9, 7]);
            if round == 3 {
                disk.flush_to(Level::ReplicaDurable)
                    .unwrap()
                    .wait(rt.now() + Duration::from_secs(1))
                    .await
                    .unwrap();
                assert_eq!(peek(&replica, 0, 3).await, [round, round, 9]);
                assert_eq!(disk.dirty(Level::ReplicaDurable).bytes, 0);
            }
            drop(disk);
        }
    });
}

#[test]
fn observer_counts_what_succeeded() {
    run(|rt| async move {
        let media = Media::new();
        let disk = media.open(&rt, ObserverFactory::default()).await.unwrap();
        poke(&disk, 0, &[1]).await;
        disk.submit(Io::read(Extent::new(0, 1 << 40)))
            .await
            .unwrap_err();
        poke(&disk, 1, &[1]).await;
        assert_eq!(
            disk.state().layers[0].filter.details[0],
            ("writes", "2".into())
        );
    });
}

#[test]
fn transform_masks_by_place_on_the_disk() {
    run(|rt| async move {
        let media = Media::new();
        let disk = media.open(&rt, TransformFactory::new(5)).await.unwrap();
        poke(&disk, 1, &[1, 1, 1]).await;
        disk.submit(Io::write_zeroes(Extent::new(1024, 512)))
            .await
            .unwrap();
        assert_eq!(peek_disk(&disk, 1, 1).await, [1]);
        assert_eq!(peek_disk(&disk, 2, 2).await, [0, 1]);
        let raw = media.backing.submit(Io::read(Extent::new(512, 1536)));
        let raw = raw.await.unwrap().into_data();
        assert_ne!(raw[..512], raw[1024..], "equal content, other place");
        assert!(raw[512..1024].iter().any(|byte| *byte != 0));
    });
}

#[test]
fn read_cache_answers_again_and_forgets_what_changes() {
    run(|rt| async move {
        let media = Media::new();
        let disk = media.open(&rt, ReadCacheFactory::tiny()).await.unwrap();
        poke(&disk, 0, &[1, 2, 3, 4]).await;
        assert_eq!(peek_disk(&disk, 0, 3).await, [1, 2, 3]);
        media
            .backing
            .submit(Io::write(0, blocks(&[9, 9, 9])))
            .await
            .unwrap();
        assert_eq!(peek_disk(&disk, 0, 3).await, [1, 2, 3], "from the cache");
        poke(&disk, 0, &[5, 6]).await;
        assert_eq!(peek_disk(&disk, 0, 2).await, [5, 6]);
        disk.submit(Io::discard(Extent::new(512, 512)))
            .await
            .unwrap();
        assert_eq!(peek_disk(&disk, 1, 1).await, [0]);
        assert_eq!(peek_disk(&disk, 0, 4).await, [5, 0, 9, 4]);
    });
}
