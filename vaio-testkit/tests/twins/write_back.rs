//! The write-back twin over plain memory: what needs no crash of a device.

use std::time::Duration;

use vaio_core::*;
use vaio_testkit::twins::write_back::WriteBackFactory;

use crate::support::*;

fn cache() -> WriteBackFactory {
    WriteBackFactory::tiny(Promise::AtFlush)
}

#[test]
fn written_data_is_read_before_and_after_destaging() {
    run(|rt| async move {
        let media = Media::new();
        let disk = media.open(&rt, cache()).await.unwrap();
        poke(&disk, 1, &[1, 2, 3, 4, 5]).await;
        poke(&disk, 2, &[9]).await;
        assert_eq!(peek_disk(&disk, 0, 8).await, [0, 1, 9, 3, 4, 5, 0, 0]);
        rt.sleep(Duration::from_secs(1)).await;
        assert_eq!(peek(&media.backing, 0, 8).await, [0, 1, 9, 3, 4, 5, 0, 0]);
        assert_eq!(disk.dirty(Level::BackingDurable).bytes, 0);
        assert_eq!(peek_disk(&disk, 0, 8).await, [0, 1, 9, 3, 4, 5, 0, 0]);
        disk.close().await.unwrap();
    });
}

#[test]
fn zeroes_and_discard_hide_what_is_below_and_reach_it() {
    run(|rt| async move {
        let media = Media::new();
        let disk = media.open(&rt, cache()).await.unwrap();
        poke(&disk, 0, &[1, 2, 3, 4]).await;
        disk.flush_to(Level::BackingDurable)
            .unwrap()
            .wait(rt.now() + Duration::from_secs(1))
            .await
            .unwrap();
        disk.submit(Io::write_zeroes(Extent::new(512, 512)))
            .await
            .unwrap();
        disk.submit(Io::discard(Extent::new(1024, 512)))
            .await
            .unwrap();
        assert_eq!(peek_disk(&disk, 0, 4).await, [1, 0, 0, 4]);
        assert_eq!(peek(&media.backing, 0, 4).await, [1, 2, 3, 4]);
        disk.close().await.unwrap();
        assert_eq!(peek(&media.backing, 0, 4).await, [1, 0, 0, 4]);
    });
}

#[test]
fn disk_that_was_dropped_recovers_from_the_log() {
    run(|rt| async move {
        let media = Media::new();
        for round in 1..=10u8 {
            let disk = media.open(&rt, cache()).await.unwrap();
            if round > 1 {
                assert_eq!(peek_disk(&disk, 0, 4).await, [round - 1, round, round, 9]);
            }
            poke(&disk, 0, &[round, round, round, 9]).await;
            poke(&disk, 1, &[round + 1, round + 1]).await;
            let backing = peek(&media.backing, 0, 4).await;
            assert_ne!(
                backing,
                [round, round + 1, round + 1, 9],
                "not destaged yet"
            );
            drop(disk); // a process kill: nothing is closed
        }
    });
}

#[test]
fn full_log_makes_room_also_while_the_disk_quiesces() {
    run(|rt| async move {
        let media = Media::new();
        let disk = media.open(&rt, cache()).await.unwrap();
        let writes = (0..8u64).map(|block| disk.submit(Io::write(block * 512, blocks(&[7]))));
        let quiesce = disk.quiesce(Level::BackingDurable, rt.now() + Duration::from_secs(5));
        let (written, quiesced) = futures::join!(futures::future::join_all(writes), quiesce);
        assert!(written.iter().all(Result::is_ok));
        assert_eq!(quiesced.unwrap().release(), Release::Held);
        assert_eq!(peek(&media.backing, 0, 8).await, [7; 8]);
    });
}

#[test]
fn hold_keeps_the_backing_at_the_point_until_released() {
    run(|rt| async move {
        let media = Media::new();
        let disk = media.open(&rt, cache()).await.unwrap();
        poke(&disk, 0, &[1]).await;
        let held = disk.hold_at_point(Duration::from_mins(1)).await.unwrap();
        poke(&disk, 0, &[2]).await;
        rt.sleep(Duration::from_secs(1)).await;
        assert_eq!(peek(&media.backing, 0, 1).await, [1]);
        assert_eq!(held.release(), Release::Held);
        rt.sleep(Duration::from_secs(1)).await;
        assert_eq!(peek(&media.backing, 0, 1).await, [2]);
    });
}

#[test]
fn hold_is_lost_when_the_log_needs_the_space() {
    run(|rt| async move {
        let media = Media::new();
        let disk = media.open(&rt, cache()).await.unwrap();
        let held = disk.hold_at_point(Duration::from_mins(1)).await.unwrap();
        for byte in 1..9 {
            poke(&disk, 0, &[byte]).await;
        }
        held.lost().await;
        assert_eq!(held.release(), Release::ThawedEarly);
    });
}

#[test]
fn write_through_leaves_nothing_dirty_at_the_ack() {
    run(|rt| async move {
        let media = Media::new();
        let disk = media.open(&rt, cache()).await.unwrap();
        poke(&disk, 0, &[1]).await;
        disk.set_dirty_policy(DirtyPolicy::WriteThrough)
            .await
            .unwrap();
        poke(&disk, 1, &[2]).await;
        assert_eq!(peek(&media.backing, 0, 2).await, [1, 2]);
        assert_eq!(disk.dirty(Level::BackingDurable).bytes, 0);
    });
}

#[test]
fn dirty_data_is_reported_and_read_back_in_order() {
    run(|rt| async move {
        let media = Media::new();
        let disk = media.open(&rt, cache()).await.unwrap();
        poke(&disk, 0, &[1]).await;
        poke(&disk, 0, &[2]).await;
        assert_eq!(disk.dirty(Level::BackingDurable).bytes, 512);
        let (_, source) = disk.dirty_sources().remove(0);
        let pieces = source
            .read_dirty(Level::BackingDurable, DirtyMark(0), 4096)
            .await
            .unwrap();
        let bytes: Vec<_> = pieces.iter().map(|piece| piece.data[0]).collect();
        assert_eq!(bytes, [1, 2]);
        disk.detach("twin-write-back", DirtyDisposition::Flush)
            .await
            .unwrap();
        assert_eq!(peek_disk(&disk, 0, 1).await, [2]);
        disk.attach(FilterSpec::new("twin-write-back"))
            .await
            .unwrap();
        assert_eq!(peek_disk(&disk, 0, 1).await, [2]);
    });
}
