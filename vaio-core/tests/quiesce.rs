//! Quiesce: what it waits for, what waits for it, and that it never lies about having held.
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

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use support::*;
use vaio_core::*;

fn in_secs(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

fn owner(lower: &Arc<OnceLock<AttachContext>>) -> Custom {
    let keep = Arc::clone(lower);
    passing(every_op("owner", Class::Cache)).on_open(move |cx| {
        keep.set(cx.clone()).unwrap();
        Ok(())
    })
}

async fn open_toy(device: Arc<TestDevice>, toy: &Toy) -> Disk {
    let registry = FilterRegistry::default().with(toy.clone());
    let policy = Policy::empty().with(FilterSpec::new(toy.descriptor.name));
    Disk::builder(device, TokioRt::new())
        .policy(policy, registry)
        .open()
        .await
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn released_in_time_says_held_and_resumes() {
    let disk = open(TestDevice::native(), vec![]).await;
    let guard = disk.quiesce(Level::Drained, in_secs(5)).await.unwrap();
    assert!(guard.is_held());
    assert_eq!(disk.state().phase, DiskPhase::Quiesced);
    sleep(ms(100)).await;
    assert_eq!(guard.release(), Release::Held);
    assert_eq!(disk.state().phase, DiskPhase::Open);
    assert_eq!(events_of(&disk, EventKind::Quiesced).len(), 1);
    assert!(events_of(&disk, EventKind::ThawedEarly).is_empty());
    let closed = disk.stats().gate_closed;
    assert_eq!((closed.count, closed.max_ns / 1_000_000), (1, 100));
}

/// The bug: a release by hand sent no `Resumed` event and the stream of states did not move, so a
/// watcher saw the disk as quiesced for ever.
#[tokio::test(start_paused = true)]
async fn thaw_of_any_kind_is_told_to_watchers() {
    let disk = open_with(TestDevice::native(), vec![], |limits| {
        limits.hold_max = secs(1);
    })
    .await;
    for how in ["release", "drop", "thaw"] {
        let mut states = disk.watch_state();
        states.next().await;
        let guard = disk.quiesce(Level::Drained, in_secs(50)).await.unwrap();
        assert_eq!(states.next().await.phase, DiskPhase::Quiesced, "{how}");
        match how {
            "release" => drop(guard.release()),
            "drop" => drop(guard),
            _ => sleep(secs(2)).await,
        }
        assert_eq!(
            within(1, states.next()).await.phase,
            DiskPhase::Open,
            "{how}"
        );
    }
    assert_eq!(events_of(&disk, EventKind::Resumed).len(), 2);
    assert_eq!(events_of(&disk, EventKind::ThawedEarly).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn guard_held_too_long_thaws_by_itself_and_says_so() {
    let disk = open_with(TestDevice::native(), vec![], |limits| {
        limits.hold_max = secs(7);
    })
    .await;
    let guard = disk.quiesce(Level::Drained, in_secs(5)).await.unwrap();
    let start = tokio::time::Instant::now();
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    assert_eq!(
        start.elapsed().as_secs(),
        7,
        "the guest waited for the thaw and no longer"
    );
    assert!(!guard.is_held());
    let event = &events_of(&disk, EventKind::ThawedEarly)[0];
    assert_eq!(event.severity, Severity::Error);
    assert_eq!(guard.release(), Release::ThawedEarly);
}

#[tokio::test(start_paused = true)]
async fn nested_quiesces_all_have_to_be_released() {
    let disk = open(TestDevice::native(), vec![]).await;
    let one = disk.quiesce(Level::Drained, in_secs(5)).await.unwrap();
    let two = disk.quiesce(Level::Drained, in_secs(5)).await.unwrap();
    let mut write = Box::pin(disk.submit(write_of(0, 1, 512)));
    assert!(poll_once(&mut write).await.is_none());
    assert_eq!(one.release(), Release::Held);
    sleep(ms(10)).await;
    assert!(poll_once(&mut write).await.is_none());
    assert_eq!(two.release(), Release::Held);
    write.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn new_guest_io_waits_in_order_and_is_served_after() {
    let device = TestDevice::native();
    let disk = open(Arc::clone(&device), vec![]).await;
    let mut port = disk.port(8).unwrap();
    let guard = disk.quiesce(Level::Drained, in_secs(5)).await.unwrap();
    for tag in 0..8 {
        port.push(tag, write_of(0, tag as u8, 512)).unwrap();
    }
    assert!(port.is_full() && port.push(9, Io::flush()).is_err());
    let mut single = Box::pin(disk.submit(Io::flush()));
    assert!(poll_once(&mut single).await.is_none());
    assert!(poll_once(&mut Box::pin(port.next())).await.is_none());
    assert!(device.started().is_empty());
    assert_eq!(guard.release(), Release::Held);
    for _ in 0..8 {
        port.next().await.result.unwrap();
    }
    single.await.unwrap();
    let bytes: Vec<u8> = device
        .started()
        .iter()
        .filter_map(|op| {
            if let Op::Write { data, .. } = op {
                Some(data[0])
            } else {
                None
            }
        })
        .collect();
    assert_eq!(bytes, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[tokio::test(start_paused = true)]
async fn drain_waits_for_guest_io_lower_io_and_background_steps() {
    let device = TestDevice::native();
    device.slow(secs(1), |op| op.kind() == OpKind::Write);
    let cx: Arc<OnceLock<AttachContext>> = Arc::default();
    let disk = open(Arc::clone(&device), vec![owner(&cx)]).await;
    let cx = cx.get().unwrap();
    let mut guest = Box::pin(disk.submit(write_of(0, 1, 512)));
    assert!(poll_once(&mut guest).await.is_none());
    let mut quiesce = Box::pin(disk.quiesce(Level::Drained, in_secs(100)));
    assert!(poll_once(&mut quiesce).await.is_none());
    guest.await.unwrap();
    let _ = quiesce.await.unwrap().release();

    let lower = cx.lower();
    let mut own = lower.submit(write_of(512, 1, 512));
    assert!(poll_once(&mut own).await.is_none());
    let mut quiesce = Box::pin(disk.quiesce(Level::Drained, in_secs(100)));
    sleep(ms(10)).await;
    assert!(poll_once(&mut quiesce).await.is_none());
    own.await.unwrap();
    let _ = quiesce.await.unwrap().release();

    let step = cx.step().await.unwrap();
    let mut quiesce = Box::pin(disk.quiesce(Level::Drained, in_secs(100)));
    assert!(poll_once(&mut quiesce).await.is_none());
    sleep(ms(10)).await;
    assert_eq!(disk.state().in_flight, 1);
    // Work that was counted is never locked out: else the drain would wait for itself.
    within(5, lower.submit(write_of(0, 2, 512))).await.unwrap();
    let mut second = Box::pin(cx.step());
    assert!(poll_once(&mut second).await.is_none(), "no new step");
    drop(step);
    let guard = quiesce.await.unwrap();
    assert!(poll_once(&mut second).await.is_none());
    assert!(
        poll_once(&mut lower.submit(Io::flush())).await.is_none(),
        "uncounted lower IO waits"
    );
    let _ = guard.release();
    assert!(second.await.is_some());
}

#[tokio::test(start_paused = true)]
async fn guest_io_that_awaits_lower_io_does_not_deadlock_the_drain() {
    let cx: Arc<OnceLock<AttachContext>> = Arc::default();
    let keep = Arc::clone(&cx);
    let own = Arc::clone(&cx);
    let filter = custom(every_op("owner", Class::Cache), move |io, next| {
        let cx = own.get().cloned();
        Box::pin(async move {
            tokio::time::sleep(secs(1)).await;
            cx.expect("opened").lower().write(0, vec![1; 512]).await?;
            next.submit(io).await
        })
    })
    .on_open(move |cx| {
        keep.set(cx.clone()).unwrap();
        Ok(())
    });
    let disk = open(TestDevice::native(), vec![filter]).await;
    let mut guest = Box::pin(disk.submit(write_of(0, 1, 512)));
    assert!(poll_once(&mut guest).await.is_none());
    let (result, guard) = within(
        5,
        futures::future::join(guest, disk.quiesce(Level::Drained, in_secs(100))),
    )
    .await;
    result.unwrap();
    assert_eq!(guard.unwrap().release(), Release::Held);
}

#[tokio::test(start_paused = true)]
async fn drain_that_times_out_names_what_is_in_flight_and_serves_on() {
    let device = TestDevice::native();
    device.slow(secs(10), |op| op.kind() == OpKind::Write);
    let disk = open(device, vec![]).await;
    let mut port = disk.port(2).unwrap();
    port.push(1, write_of(512, 1, 512)).unwrap();
    assert!(poll_once(&mut Box::pin(port.next())).await.is_none());
    let error = disk.quiesce(Level::Drained, in_secs(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    for word in ["write", "at=device", "extent=512+512", "in_flight=1"] {
        assert!(error.message().contains(word), "{error}");
    }
    assert_eq!(disk.state().phase, DiskPhase::Open);
    within(1, disk.submit(Io::flush())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn quiesce_from_within_a_filters_io_times_out() {
    let own: Arc<OnceLock<Disk>> = Arc::default();
    let disk_of = Arc::clone(&own);
    let filter = custom(every_op("self-stop", Class::Cache), move |io, next| {
        let disk = disk_of.get().cloned();
        Box::pin(async move {
            let result = disk
                .expect("opened")
                .quiesce(Level::BackingDurable, in_secs(2))
                .await;
            assert_eq!(result.unwrap_err().kind(), ErrorKind::TimedOut);
            next.submit(io).await
        })
    });
    let disk = open(TestDevice::native(), vec![filter]).await;
    own.set(disk.clone()).unwrap();
    within(10, disk.submit(write_of(0, 1, 512))).await.unwrap();
    assert_eq!(disk.state().layers[0].health, Health::Active);
}

/// The bug: what became dirty between the first flush and the closing of the gate was brought down
/// by the second flush, whose IO was new work to the closed gate: it waited until the deadline.
#[tokio::test(start_paused = true)]
async fn quiesce_to_the_backing_under_load_brings_the_last_dirty_data_down() {
    let toy = Toy::new("toy", Class::Cache).slow(ms(10));
    let device = TestDevice::native();
    let disk = open_toy(Arc::clone(&device), &toy).await;
    let written = Arc::new(AtomicU64::new(0));
    let (writer, count) = (disk.clone(), Arc::clone(&written));
    let load = tokio::spawn(async move {
        for n in 0..u64::MAX {
            let block = n % 64;
            writer
                .submit(write_of(block * 512, n as u8, 512))
                .await
                .unwrap();
            count.store(n + 1, Ordering::Relaxed);
            tokio::time::sleep(ms(3)).await;
        }
    });
    sleep(ms(200)).await;
    let guard = within(20, disk.quiesce(Level::BackingDurable, in_secs(15)))
        .await
        .unwrap();
    assert_eq!(toy.dirty_blocks(), 0);
    let n = written.load(Ordering::Relaxed) - 1;
    assert_eq!(device.content(n % 64 * 512, 512), vec![n as u8; 512]);
    device.forget();
    sleep(secs(3)).await;
    assert!(device.started().is_empty(), "nothing moves while it holds");
    assert_eq!(guard.release(), Release::Held);
    load.abort();
}

#[tokio::test(start_paused = true)]
async fn quiesce_whose_caller_went_away_thaws() {
    let device = TestDevice::native();
    device.slow(secs(1), |op| op.kind() == OpKind::Write);
    let disk = open(device, vec![]).await;
    let mut write = Box::pin(disk.submit(write_of(0, 1, 512)));
    assert!(poll_once(&mut write).await.is_none());
    let mut quiesce = Box::pin(disk.quiesce(Level::Drained, in_secs(100)));
    assert!(poll_once(&mut quiesce).await.is_none());
    sleep(ms(10)).await;
    drop(quiesce);
    write.await.unwrap();
    within(2, disk.submit(Io::flush())).await.unwrap();
    assert_eq!(disk.state().phase, DiskPhase::Open);
}
