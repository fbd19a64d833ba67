//! Each mode does what its name says, and a disk can go from one to another while it runs.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use vaio_cache::{CACHE_DEVICE, CacheFactory, Sizes};
use vaio_core::{Disk, Extent, FilterSpec, Io, OpKind};
use vaio_testkit::{
    Scale, Schedule, Sim, Subject, Tape,
    disk::{Fault, Fill, Rule},
    explore::Rig,
};

const BLOCK: u64 = 512;
/// A unit is two blocks.
const UNIT: u64 = 2 * BLOCK;
/// Superblocks, four segments of five blocks, eight regions of two units.
const LOG_BLOCKS: u64 = 2 + 4 * 5;
const DEVICE_BLOCKS: u64 = LOG_BLOCKS + 8 * 4;

fn subject(settings: &[(&str, &str)]) -> Arc<Subject> {
    let sizes = Sizes::new(1024, 512, 5 * 512, 512).with_region(2048);
    let subject = Subject::scaled(move |_| Arc::new(CacheFactory::default().with_sizes(sizes)))
        .device(CACHE_DEVICE, |_| DEVICE_BLOCKS)
        .setting("read_percent", "65");
    let all = settings.iter();
    Arc::new(all.fold(subject, |subject, (key, value)| subject.setting(key, value)))
}

/// A disk of 16 blocks with a cache, for one story.
struct Stage {
    sim: Sim,
    rig: Rig,
    disk: Disk,
}

fn play<F: Future<Output = ()>>(settings: &[(&str, &str)], story: impl FnOnce(Stage) -> F) {
    let subject = subject(settings);
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let rig = Rig::new(&sim, &subject, Scale::Tiny, 16, Fill::Zero);
    let host = sim.host("host");
    let ran = sim.run(async {
        let disk = rig.open(&host).await.expect("opens over empty media");
        let sim = sim.clone();
        story(Stage { sim, rig, disk }).await;
    });
    assert!(ran.is_ok(), "it ends");
}

impl Stage {
    async fn write(&self, unit: u64, byte: u8) {
        let data = Bytes::from(vec![byte; usize::try_from(UNIT).expect("small")]);
        let written = self.disk.submit(Io::write(unit * UNIT, data)).await;
        written.expect("nothing fails");
        self.settle().await;
    }

    /// The byte that a unit shows, and whether it came from the read store.
    async fn read(&self, unit: u64) -> (u8, bool) {
        let before = self.value("read_hits_total");
        let read = self
            .disk
            .submit(Io::read(Extent::new(unit * UNIT, UNIT)))
            .await;
        let data = read.expect("nothing fails").into_data();
        assert!(data.iter().all(|byte| *byte == data[0]), "one version");
        self.settle().await;
        (data[0], self.value("read_hits_total") > before)
    }

    /// Background work has its turn.
    async fn settle(&self) {
        self.sim.sleep(Duration::from_millis(1)).await;
    }

    fn value(&self, name: &str) -> u64 {
        let state = self.disk.state();
        let values = &state.layers[0].filter.values;
        let found = values.iter().find(|(key, _)| *key == name);
        found.expect("it is told").1
    }

    fn dirty_bytes(&self) -> u64 {
        self.disk.state().dirty_bytes
    }
}

#[test]
fn read_is_kept_in_write_back_and_dropped_by_a_write() {
    play(&[("dirty_age_max", "5ms")], |stage| async move {
        assert_eq!(stage.read(1).await, (0, false));
        assert_eq!(stage.read(1).await, (0, true));
        stage.write(1, 7).await;
        assert_eq!(stage.read(1).await, (7, false), "from the log");
        stage.sim.sleep(Duration::from_millis(50)).await;
        assert_eq!(stage.dirty_bytes(), 0, "destaged");
        assert_eq!(stage.read(1).await, (7, false), "from the backing");
        assert_eq!(stage.read(1).await, (7, true));
    });
}

#[test]
fn write_through_goes_to_the_backing_and_is_kept_for_reads() {
    play(&[("mode", "write_through")], |stage| async move {
        stage.write(1, 7).await;
        stage.disk.submit(Io::flush()).await.expect("nothing fails");
        assert_eq!(stage.dirty_bytes(), 0);
        assert_eq!(stage.read(1).await, (7, true));
        stage.write(1, 8).await;
        assert_eq!(stage.read(1).await, (8, true));
    });
}

#[test]
fn write_around_is_not_kept_and_takes_older_content_away() {
    play(&[("mode", "write_around")], |stage| async move {
        stage.write(1, 7).await;
        assert_eq!(stage.read(1).await, (7, false));
        assert_eq!(stage.read(1).await, (7, true));
        stage.write(1, 8).await;
        assert_eq!(stage.read(1).await, (8, false));
    });
}

#[test]
fn read_only_keeps_what_was_read_and_keeps_it_up_to_date() {
    play(&[("mode", "read_only")], |stage| async move {
        stage.write(1, 7).await;
        assert_eq!(stage.read(1).await, (7, false));
        stage.write(1, 8).await;
        assert_eq!(stage.read(1).await, (8, true));
        stage.write(2, 9).await;
        assert_eq!(stage.read(2).await, (9, false), "not brought in by a read");
    });
}

#[test]
fn mode_is_switched_while_the_disk_runs_and_takes_dirty_data_along() {
    play(&[("dirty_age_max", "1h")], |stage| async move {
        stage.write(1, 7).await;
        assert_eq!(stage.dirty_bytes(), UNIT);
        let spec = |mode| {
            FilterSpec::new("cache")
                .with(CACHE_DEVICE, CACHE_DEVICE)
                .with("read_percent", "65")
                .with("dirty_age_max", "1h")
                .with("mode", mode)
        };
        for mode in ["write_through", "read_only", "write_around", "write_back"] {
            stage
                .disk
                .replace("cache", spec(mode))
                .await
                .expect("is switched");
            stage.write(2, 8).await;
            assert_eq!(stage.read(1).await.0, 7, "{mode}");
            assert_eq!(stage.read(2).await.0, 8, "{mode}");
            let flushed = stage.disk.submit(Io::flush()).await;
            flushed.expect("nothing fails");
            let dirty = if mode == "write_back" { UNIT } else { 0 };
            assert_eq!(stage.dirty_bytes(), dirty, "{mode}");
        }
    });
}

#[test]
fn clean_data_that_cannot_be_read_comes_from_below() {
    play(&[("mode", "write_through")], |stage| async move {
        stage.write(1, 7).await;
        assert_eq!(stage.read(1).await, (7, true));
        let device = stage.rig.disk(CACHE_DEVICE).expect("it is needed").clone();
        let regions = Extent::from_range(LOG_BLOCKS * BLOCK, DEVICE_BLOCKS * BLOCK);
        let failing = Rule::always(Fault::Error).on(OpKind::Read).at(regions);
        device.faults(|faults| faults.add(failing));
        assert_eq!(stage.read(1).await.0, 7);
        device.quiet();
        assert_eq!(stage.read(1).await.0, 7);
    });
}

#[test]
fn full_read_store_makes_room() {
    play(&[("mode", "read_only")], |stage| async move {
        // Sixteen places, eight units, each written and read again and again.
        for turn in 1..8 {
            for unit in 0..8 {
                stage.write(unit, turn).await;
                assert_eq!(stage.read(unit).await.0, turn);
                assert_eq!(stage.read(unit).await.0, turn);
            }
        }
        assert!(
            stage.sim.marks().contains_key("cache.evict"),
            "regions went"
        );
        assert!(stage.value("clean_bytes") > 0);
    });
}
