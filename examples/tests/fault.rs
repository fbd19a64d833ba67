//! Every way to misbehave is contained: the filter is named, what can go on goes on, what cannot
//! fails, and another disk does not notice.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{sync::Arc, time::Duration};

use support::*;
use vaio_core::*;

fn fault(name: &str, mode: &str) -> FilterSpec {
    FilterSpec::new(name).with("mode", mode)
}

/// A disk whose device takes a millisecond, with the filter hit by the third write.
async fn open_with(name: &str, mode: &str) -> Disk {
    let spec = fault(name, mode).with("op", "write").with("after", "2");
    open_slow(spec).await
}

async fn open_slow(spec: FilterSpec) -> Disk {
    let device = Slow {
        ram: Arc::new(RamDisk::new(64 << 20)),
        delay: Duration::from_millis(1),
    };
    open(Arc::new(device), &[spec]).await
}

async fn write_blocks(disk: &Disk, count: u64) -> Vec<Result<()>> {
    let mut results = Vec::new();
    for block in 0..count {
        results.push(write(disk, block * 4096, 7, 4096).await);
    }
    results
}

fn names_filter(disk: &Disk, kind: EventKind, filter: &str) {
    let events = events_of(disk, kind);
    assert!(
        events
            .iter()
            .any(|event| event.filter.as_deref() == Some(filter)),
        "{kind:?} {events:?}"
    );
}

async fn reads_back(disk: &Disk, blocks: u64) {
    for block in 0..blocks {
        assert_eq!(read(disk, block * 4096, 4096).await.unwrap(), vec![7; 4096]);
    }
    assert_eq!(disk.state().in_flight, 0);
}

/// Observers: whatever they do, every IO succeeds and the filter is out of the path.
async fn observer_is_bypassed(mode: &str, kind: EventKind) {
    let disk = open_with("fault-observer", mode).await;
    for result in write_blocks(&disk, 6).await {
        result.unwrap();
    }
    assert_eq!(health(&disk, "fault-observer"), Health::Bypassed, "{mode}");
    names_filter(&disk, kind, "fault-observer");
    names_filter(&disk, EventKind::FilterBypassed, "fault-observer");
    reads_back(&disk, 6).await;
    disk.replace("fault-observer", fault("fault-observer", "none"))
        .await
        .unwrap();
    assert_eq!(health(&disk, "fault-observer"), Health::Active);
    disk.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn observer_that_panics_is_bypassed() {
    observer_is_bypassed("panic", EventKind::FilterPanicked).await;
}

#[tokio::test(start_paused = true)]
async fn observer_that_panics_after_the_answer_is_bypassed() {
    observer_is_bypassed("late_panic", EventKind::FilterPanicked).await;
}

#[tokio::test(start_paused = true)]
async fn observer_that_panics_in_the_background_is_bypassed() {
    observer_is_bypassed("background_panic", EventKind::FilterPanicked).await;
}

#[tokio::test(start_paused = true)]
async fn observer_that_hangs_is_bypassed() {
    observer_is_bypassed("hang", EventKind::IoStalled).await;
}

#[tokio::test(start_paused = true)]
async fn observer_with_a_wrong_reply_is_bypassed() {
    observer_is_bypassed("wrong_reply", EventKind::FilterLied).await;
}

#[tokio::test(start_paused = true)]
async fn observer_with_a_short_read_is_bypassed() {
    let disk = open_slow(fault("fault-observer", "short_read")).await;
    write(&disk, 0, 7, 4096).await.unwrap();
    reads_back(&disk, 1).await;
    assert_eq!(health(&disk, "fault-observer"), Health::Bypassed);
    names_filter(&disk, EventKind::FilterLied, "fault-observer");
}

#[tokio::test(start_paused = true)]
async fn observer_that_sends_what_it_refuses_is_bypassed() {
    observer_is_bypassed("forbidden_op", EventKind::FilterLied).await;
}

/// Filters that hold something: the disk fails rather than going on without them.
async fn holder_faults(mode: &str) {
    let disk = open_with("fault", mode).await;
    let results = write_blocks(&disk, 4).await;
    assert!(results[..2].iter().all(Result::is_ok), "{mode} {results:?}");
    for result in &results[3..] {
        let error = result.as_ref().unwrap_err();
        assert_eq!(
            (error.kind(), error.filter()),
            (ErrorKind::FilterFault, Some("fault"))
        );
    }
    assert_eq!(health(&disk, "fault"), Health::Faulted, "{mode}");
    names_filter(&disk, EventKind::FilterPanicked, "fault");
    names_filter(&disk, EventKind::FilterFaulted, "fault");
    disk.replace("fault", fault("fault", "none")).await.unwrap();
    write(&disk, 0, 7, 4096)
        .await
        .expect("a good instance serves");
}

#[tokio::test(start_paused = true)]
async fn holder_that_panics_fails_the_disk_until_it_is_replaced() {
    for mode in ["panic", "late_panic", "background_panic"] {
        holder_faults(mode).await;
    }
}

#[tokio::test(start_paused = true)]
async fn holder_that_lies_fails_that_io_alone() {
    for (mode, op) in [
        ("wrong_reply", "write"),
        ("short_read", "read"),
        ("forbidden_op", "write"),
    ] {
        let disk = open_slow(fault("fault", mode).with("op", op).with("after", "1")).await;
        let mut errors = Vec::new();
        for _ in 0..4 {
            errors.extend(write(&disk, 0, 7, 4096).await.err());
            errors.extend(read(&disk, 0, 4096).await.err());
        }
        assert_eq!(errors.len(), 1, "{mode} {errors:?}");
        let error = &errors[0];
        assert_eq!(
            (error.kind(), error.filter()),
            (ErrorKind::FilterFault, Some("fault"))
        );
        names_filter(&disk, EventKind::FilterLied, "fault");
        assert_eq!(health(&disk, "fault"), Health::Active);
    }
}

#[tokio::test(start_paused = true)]
async fn holder_that_hangs_is_named_and_its_io_fails_in_time() {
    let disk = open_with("fault", "hang").await;
    let mut port = disk.port(8).unwrap();
    let start = tokio::time::Instant::now();
    for tag in 0..6 {
        port.push(tag, Io::write(tag * 4096, vec![7; 4096].into()))
            .unwrap();
    }
    let mut failed = 0;
    while port.in_flight() > 0 {
        failed += u64::from(port.next().await.result.is_err());
    }
    assert_eq!(failed, 1, "the others went on");
    assert!(
        start.elapsed() < Duration::from_secs(25),
        "{:?}",
        start.elapsed()
    );
    names_filter(&disk, EventKind::IoStalled, "fault");
    names_filter(&disk, EventKind::IoExpired, "fault");
}

#[tokio::test(start_paused = true)]
async fn dropped_next_runs_to_its_end_and_names_who_let_go() {
    for name in ["fault", "fault-observer"] {
        let disk = open_with(name, "drop_next").await;
        for result in write_blocks(&disk, 6).await {
            result.unwrap();
        }
        names_filter(&disk, EventKind::IoOrphaned, name);
        assert_eq!(events_of(&disk, EventKind::OrphanEnded).len(), 1);
        assert_eq!(disk.state().orphans, 0);
        reads_back(&disk, 6).await;
    }
}

#[tokio::test]
async fn spinning_filter_blocks_its_thread_and_the_watchdog_sees_its_name() {
    let spec = fault("fault-observer", "spin").with("spin", "300ms");
    let disk = open_ram(&[spec]).await;
    let watched = disk.clone();
    let watchdog = tokio::task::spawn_blocking(move || {
        for _ in 0..2_000 {
            if watched.polling().as_deref() == Some("fault-observer") {
                watched.report_blocked(Duration::from_millis(1));
                return true;
            }
            std::hint::spin_loop();
            #[allow(clippy::disallowed_methods, reason = "a thread of its own")]
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    });
    write(&disk, 0, 7, 4096).await.unwrap();
    assert!(watchdog.await.unwrap());
    names_filter(&disk, EventKind::ThreadBlocked, "fault-observer");
    reads_back(&disk, 1).await;
}

#[tokio::test(start_paused = true)]
async fn panic_in_detach_lets_an_observer_go_and_keeps_a_holder() {
    let disk = open_slow(fault("fault-observer", "lifecycle_panic")).await;
    write(&disk, 0, 7, 4096).await.unwrap();
    disk.detach("fault-observer", DirtyDisposition::Refuse)
        .await
        .unwrap();
    names_filter(&disk, EventKind::FilterPanicked, "fault-observer");
    reads_back(&disk, 1).await;

    let disk = open_slow(fault("fault", "lifecycle_panic")).await;
    write(&disk, 0, 7, 4096).await.unwrap();
    let error = disk
        .detach("fault", DirtyDisposition::Refuse)
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.filter()),
        (ErrorKind::FilterFault, Some("fault"))
    );
    assert_eq!(health(&disk, "fault"), Health::Faulted);
}

#[tokio::test(start_paused = true)]
async fn panic_in_snapshot_is_contained() {
    let snapshot = || Verb::Snapshot { name: "s".into() };
    let spec = |name| fault(name, "lifecycle_panic").with("verb", "snapshot");
    let disk = open_slow(spec("fault-observer")).await;
    disk.prepare(snapshot())
        .await
        .expect("goes on without the observer")
        .abort()
        .await;
    write(&disk, 0, 7, 4096).await.unwrap();
    reads_back(&disk, 1).await;

    let disk = open_slow(spec("fault")).await;
    assert_eq!(
        disk.prepare(snapshot()).await.unwrap_err().filter(),
        Some("fault")
    );
    names_filter(&disk, EventKind::FilterPanicked, "fault");
}

#[tokio::test(start_paused = true)]
async fn another_disk_of_the_process_is_unaffected() {
    let bad = open_with("fault", "panic").await;
    let good = open_ram(&[]).await;
    write_blocks(&bad, 4).await;
    for result in write_blocks(&good, 4).await {
        result.unwrap();
    }
    reads_back(&good, 4).await;
    assert!(events_of(&good, EventKind::FilterPanicked).is_empty());
}

#[tokio::test]
async fn unknown_mode_is_refused() {
    let error = refusal(&[fault("fault", "explode")]).await;
    assert!(error.to_string().contains("explode"), "{error}");
}
