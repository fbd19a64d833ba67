//! Who owns an IO in flight: dropping a handle drops the answer, never the IO.
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

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use support::*;
use vaio_core::*;

/// A filter that must not be cut in the middle: a write goes below, then into its own map.
struct TwoStep {
    filter: Custom,
    map: Arc<Mutex<Vec<u64>>>,
    steps: Arc<AtomicUsize>,
}

fn two_step(name: &'static str) -> TwoStep {
    let (map, steps) = (
        Arc::<Mutex<Vec<u64>>>::default(),
        Arc::<AtomicUsize>::default(),
    );
    let (own, count) = (Arc::clone(&map), Arc::clone(&steps));
    let filter = custom(
        every_op(name, Class::Cache).with_bypass(BypassSafety::Never),
        move |io, next| {
            let (own, count) = (Arc::clone(&own), Arc::clone(&count));
            Box::pin(async move {
                if io.op.kind() != OpKind::Write {
                    return next.submit(io).await;
                }
                let offset = io.op.extent().offset();
                count.fetch_add(1, Ordering::Relaxed);
                next.submit(io).await?;
                tokio::time::sleep(ms(10)).await;
                own.lock().unwrap().push(offset);
                Ok(Reply::Done)
            })
        },
    );
    TwoStep { filter, map, steps }
}

fn is_write(op: &Op) -> bool {
    op.kind() == OpKind::Write
}

#[tokio::test(start_paused = true)]
async fn time_out_above_two_step_filter_lets_the_second_step_happen() {
    let device = TestDevice::native();
    device.slow(ms(500), is_write);
    let cache = two_step("cache");
    let disk = open(
        Arc::clone(&device),
        vec![timing_out("impatient", ms(100), false), cache.filter],
    )
    .await;
    let error = disk.submit(write_of(0, 7, 512)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(
        cache.map.lock().unwrap().is_empty(),
        "the write is still below"
    );
    assert_eq!(disk.state().orphans, 1);
    assert_eq!(disk.state().in_flight, 1, "the gate counts it");
    let orphaned = events_of(&disk, EventKind::IoOrphaned);
    assert_eq!(orphaned[0].filter.as_deref(), Some("impatient"));
    assert_eq!(
        (orphaned[0].op, orphaned[0].extent),
        (Some(OpKind::Write), Some(Extent::new(0, 512)))
    );
    sleep(ms(600)).await;
    assert_eq!(*cache.map.lock().unwrap(), [0], "step two happened");
    assert_eq!(disk.state().orphans, 0);
    assert_eq!(events_of(&disk, EventKind::OrphanEnded).len(), 1);
    assert_eq!(disk.stats().orphans, 1);
}

#[tokio::test(start_paused = true)]
async fn quiesce_waits_for_an_orphan() {
    let device = TestDevice::native();
    device.slow(ms(500), is_write);
    let cache = two_step("cache");
    let disk = open(
        device,
        vec![timing_out("impatient", ms(100), false), cache.filter],
    )
    .await;
    disk.submit(write_of(0, 7, 512)).await.unwrap_err();
    let guard = disk
        .quiesce(Level::Drained, TokioRt::new().now() + secs(1_000))
        .await
        .unwrap();
    assert_eq!(
        cache.map.lock().unwrap().len(),
        1,
        "quiesced only after step two"
    );
    assert_eq!(guard.release(), Release::Held);
}

#[tokio::test(start_paused = true)]
async fn overlapping_io_waits_for_an_orphan_and_other_io_does_not() {
    let device = TestDevice::native();
    device.slow(ms(500), |op| is_write(op) && op.extent().offset() == 0);
    let cache = two_step("cache");
    let disk = open(
        Arc::clone(&device),
        vec![timing_out("impatient", ms(100), false), cache.filter],
    )
    .await;
    disk.submit(write_of(0, 1, 1024)).await.unwrap_err();
    let mut newer = Box::pin(disk.submit(write_of(512, 2, 512)));
    let mut read = Box::pin(disk.submit(Io::read(Extent::new(0, 512))));
    assert!(poll_once(&mut newer).await.is_none());
    assert!(poll_once(&mut read).await.is_none());
    // Non-overlapping IO goes on while both wait.
    within(1, async {
        disk.submit(write_of(1024, 3, 512)).await.unwrap();
        assert_eq!(read_all(&disk, 1024, 512).await, vec![3; 512]);
    })
    .await;
    assert_eq!(
        read.await.unwrap().into_data(),
        vec![1; 512],
        "the read saw the orphan's end"
    );
    newer.await.unwrap();
    assert_eq!(
        device.content(512, 512),
        vec![2; 512],
        "the newer write landed last"
    );
    let order: Vec<_> = device
        .ended()
        .iter()
        .filter(|op| is_write(op))
        .map(|op| op.extent().offset())
        .collect();
    assert_eq!(order, [1024, 0, 512]);
}

#[tokio::test(start_paused = true)]
async fn retry_by_the_same_filter_is_not_overtaken_by_the_late_original() {
    let device = TestDevice::native();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    device.hook(move |io| {
        let slow = is_write(&io.op) && count.fetch_add(1, Ordering::Relaxed) == 0;
        Box::pin(async move {
            if slow {
                tokio::time::sleep(ms(700)).await;
            }
            Ok(())
        })
    });
    // Retries with newer data, so that the order shows.
    let retrying = custom(every_op("retry", Class::Inspect), |io, next| {
        Box::pin(async move {
            if io.op.kind() != OpKind::Write {
                return next.submit(io).await;
            }
            let first = next.submit(io.with_op(Op::Write {
                offset: 0,
                data: vec![1; 512].into(),
                fua: false,
            }));
            if let Ok(result) = tokio::time::timeout(ms(100), first).await {
                return result;
            }
            next.submit(io.with_op(Op::Write {
                offset: 0,
                data: vec![2; 512].into(),
                fua: false,
            }))
            .await
        })
    });
    let disk = open(Arc::clone(&device), vec![retrying]).await;
    within(2, disk.submit(write_of(0, 9, 512))).await.unwrap();
    sleep(secs(2)).await;
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    assert_eq!(device.content(0, 512), vec![2; 512]);
}

#[tokio::test(start_paused = true)]
async fn race_in_a_filter_keeps_the_loser_running() {
    let device = TestDevice::native();
    device.slow(ms(100), is_write);
    let cache = two_step("cache");
    let racing = custom(every_op("racing", Class::Inspect), |io, next| {
        Box::pin(async move {
            if io.op.kind() != OpKind::Write {
                return next.submit(io).await;
            }
            let (a, b) = (next.submit(io.clone()), next.submit(io.with_op(Op::Flush)));
            futures::future::select(a, b).await.factor_first().0
        })
    });
    let disk = open(device, vec![racing, cache.filter]).await;
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    assert_eq!(disk.state().orphans, 1);
    sleep(secs(1)).await;
    assert_eq!(cache.map.lock().unwrap().len(), 1);
    assert_eq!(disk.state().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn panic_above_a_two_step_filter_does_not_cut_it() {
    let device = TestDevice::native();
    device.slow(ms(100), is_write);
    let cache = two_step("cache");
    let panicking = custom(every_op("boom", Class::Replicate), |io, next| {
        Box::pin(async move {
            if io.op.kind() == OpKind::Write {
                let _ = tokio::time::timeout(ms(10), next.submit(io).map(|_| ())).await;
                panic!("while below is pending");
            }
            next.submit(io).await
        })
    });
    let disk = open(device, vec![panicking, cache.filter]).await;
    assert_eq!(
        disk.submit(write_of(0, 1, 512)).await.unwrap_err().kind(),
        ErrorKind::FilterFault
    );
    sleep(secs(1)).await;
    assert_eq!(cache.map.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn submission_dropped_before_its_first_poll_does_nothing() {
    let device = TestDevice::native();
    let lazy = custom(every_op("lazy", Class::Inspect), |io, next| {
        Box::pin(async move {
            drop(next.submit(io.with_op(Op::Flush)));
            drop(next.write(0, vec![1; 512].into()));
            next.submit(io).await
        })
    });
    let disk = open(Arc::clone(&device), vec![lazy]).await;
    drop(disk.submit(write_of(0, 5, 512)));
    read_all(&disk, 0, 512).await;
    let mut port = disk.port(1).unwrap();
    port.push(0, write_of(0, 5, 512)).unwrap();
    drop(port);
    assert_eq!(device.started().len(), 1, "{:?}", device.started());
    assert_eq!((disk.stats().orphans, disk.state().in_flight), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn dropped_submit_of_a_disk_runs_to_its_end() {
    let device = TestDevice::native();
    device.slow(ms(100), is_write);
    let disk = open(Arc::clone(&device), vec![]).await;
    let mut write = Box::pin(disk.submit(write_of(0, 5, 512)));
    assert!(poll_once(&mut write).await.is_none());
    drop(write);
    assert_eq!(disk.state().orphans, 1);
    assert_eq!(read_all(&disk, 0, 512).await, vec![5; 512]);
    assert_eq!(
        events_of(&disk, EventKind::IoOrphaned)[0].filter.as_deref(),
        Some("caller")
    );
}

#[tokio::test(start_paused = true)]
async fn dropped_lower_submit_runs_to_its_end_and_names_its_filter() {
    let device = TestDevice::native();
    device.slow(ms(100), is_write);
    let lower: Arc<OnceLock<Lower>> = Arc::default();
    let keep = Arc::clone(&lower);
    let filter = passing(every_op("owner", Class::Cache)).on_open(move |cx| {
        keep.set(cx.lower()).unwrap();
        Ok(())
    });
    let disk = open(Arc::clone(&device), vec![filter]).await;
    let mut write = lower.get().unwrap().submit(write_of(0, 6, 512));
    assert!(poll_once(&mut write).await.is_none());
    drop(write);
    assert_eq!((disk.state().orphans, disk.state().in_flight), (1, 1));
    assert_eq!(
        events_of(&disk, EventKind::IoOrphaned)[0].filter.as_deref(),
        Some("owner")
    );
    assert_eq!(read_all(&disk, 0, 512).await, vec![6; 512]);
}

#[tokio::test(start_paused = true)]
async fn detach_waits_for_an_orphan_of_the_filter() {
    let device = TestDevice::native();
    device.slow(secs(2), is_write);
    let cache = two_step("cache");
    let disk = open(
        device,
        vec![timing_out("impatient", ms(100), false), cache.filter],
    )
    .await;
    disk.submit(write_of(0, 7, 512)).await.unwrap_err();
    disk.detach("cache", DirtyDisposition::Refuse)
        .await
        .unwrap();
    assert_eq!(
        cache.map.lock().unwrap().len(),
        1,
        "the second step came before the detach"
    );
    assert_eq!(disk.state().orphans, 0);
}

#[tokio::test(start_paused = true)]
async fn nested_never_filters_below_an_observer_all_finish() {
    let device = TestDevice::native();
    device.slow(ms(300), is_write);
    let (upper, lower) = (two_step("upper"), two_step("lower"));
    let mut upper_filter = upper.filter;
    upper_filter.descriptor.class = Class::Replicate;
    let mut below = passing(every_op("below", Class::Transform).with_content(Content::Unchanged));
    below.descriptor.bypass = BypassSafety::Always;
    let stack = vec![
        timing_out("top", ms(50), false),
        upper_filter,
        lower.filter,
        below,
    ];
    let disk = open(device, stack).await;
    disk.submit(write_of(0, 7, 512)).await.unwrap_err();
    assert_eq!(
        disk.stats().orphans,
        1,
        "one owner keeps the whole way down"
    );
    sleep(secs(1)).await;
    assert_eq!(
        (
            upper.steps.load(Ordering::Relaxed),
            lower.steps.load(Ordering::Relaxed)
        ),
        (1, 1)
    );
    assert_eq!(
        (
            upper.map.lock().unwrap().len(),
            lower.map.lock().unwrap().len()
        ),
        (1, 1)
    );
}

/// The bug: an orphan raised a fence over its own range, and what it submitted after that at the
/// same level (the next pieces of a split IO) waited for that fence: for itself, for ever.
#[tokio::test(start_paused = true)]
async fn split_io_orphaned_half_way_still_ends() {
    let mut info = native_info();
    info.transfer_max = 512;
    let device = TestDevice::new(info);
    device.slow(ms(10), is_write);
    let disk = open(Arc::clone(&device), vec![]).await;
    let mut port = disk.port(1).unwrap();
    port.push(0, write_of(0, 3, 64 << 10)).unwrap();
    assert!(poll_once(&mut Box::pin(port.next())).await.is_none());
    drop(port);
    sleep(secs(5)).await;
    assert_eq!(disk.state().orphans, 0, "the orphan ended");
    assert_eq!(device.content(0, 64 << 10), vec![3; 64 << 10]);
    within(1, disk.submit(write_of(0, 4, 512))).await.unwrap();
}

/// The bug: an IO that waited at the fence of an orphan and was let go there became an orphan
/// itself; when the first one ended it found its own fence and waited for itself, for ever. Any
/// guest that retries a timed-out write made one.
#[tokio::test(start_paused = true)]
async fn io_let_go_at_a_fence_does_not_fence_itself_out() {
    let device = TestDevice::native();
    device.slow(secs(1), |op| is_write(op) && op.extent().len() == 1024);
    let disk = open(Arc::clone(&device), vec![]).await;
    for (byte, len) in [(1, 1024), (2, 512), (3, 512)] {
        let mut write = Box::pin(disk.submit(write_of(0, byte, len)));
        assert!(poll_once(&mut write).await.is_none());
    }
    assert_eq!(disk.state().orphans, 3);
    sleep(secs(5)).await;
    assert_eq!(disk.state().orphans, 0);
    assert_eq!(
        device.content(0, 512),
        vec![3; 512],
        "in the order of their submission"
    );
    within(1, disk.submit(write_of(0, 4, 512))).await.unwrap();
}

/// The bug: the fence could be passed by a filter that lets go of an IO in pieces: later pieces
/// of what it dropped never happened, although "it runs to its end without you".
#[tokio::test(start_paused = true)]
async fn split_io_dropped_by_a_filter_runs_to_its_end_as_a_whole() {
    let mut info = native_info();
    info.transfer_max = 512;
    let device = TestDevice::new(info);
    device.slow(ms(30), is_write);
    let disk = open(
        Arc::clone(&device),
        vec![timing_out("impatient", ms(10), false)],
    )
    .await;
    disk.submit(write_of(0, 3, 64 << 10)).await.unwrap_err();
    assert_eq!(disk.state().orphans, 1);
    sleep(secs(5)).await;
    assert_eq!(device.count(OpKind::Write), 128);
    assert_eq!(disk.state().orphans, 0);
}

/// The bug: an orphan that an observer holds was not looked at again when the watcher bypassed
/// that observer, so it never ended and its range stayed fenced.
#[tokio::test(start_paused = true)]
async fn orphan_inside_a_hung_observer_ends_when_the_observer_is_bypassed() {
    let device = TestDevice::native();
    let hang = custom(every_op("hang", Class::Inspect), |io, next| {
        Box::pin(async move {
            if io.op.kind() == OpKind::Write {
                futures::future::pending::<()>().await;
            }
            next.submit(io).await
        })
    });
    let disk = open(Arc::clone(&device), vec![hang]).await;
    let mut port = disk.port(1).unwrap();
    port.push(0, write_of(0, 3, 512)).unwrap();
    assert!(poll_once(&mut Box::pin(port.next())).await.is_none());
    drop(port);
    sleep(secs(10)).await;
    assert_eq!(disk.state().layers[0].health, Health::Bypassed);
    assert_eq!(disk.state().orphans, 0);
    assert_eq!(device.content(0, 512), vec![3; 512]);
}

/// The bug: background tasks of a disk that was dropped without a close (a crash of the embedder's
/// code, not of its process) ran on for ever, with the filter's devices in their hands.
#[tokio::test(start_paused = true)]
async fn disk_dropped_without_close_ends_its_background_tasks() {
    let token = Arc::new(());
    let held = Arc::clone(&token);
    let filter = passing(every_op("worker", Class::Inspect)).on_open(move |cx| {
        let (own, held) = (cx.clone(), Arc::clone(&held));
        cx.spawn("loop", async move {
            while let Some(step) = own.step().await {
                drop(step);
                own.rt().sleep(Duration::from_secs(1)).await;
            }
            drop(held);
        });
        Ok(())
    });
    let disk = open(RamDisk::new(1 << 20), vec![filter]).await;
    sleep(secs(3)).await;
    // One in the test, one in the factory's closure, one in the task.
    assert_eq!(Arc::strong_count(&token), 3);
    drop(disk);
    sleep(secs(30)).await;
    assert_eq!(Arc::strong_count(&token), 1);
}
