//! The disk's exclusive lock is lost: someone else owns it, so nothing more may reach it from here.
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
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use support::*;
use vaio_core::*;

#[derive(Clone, Debug)]
struct Lock(Arc<AtomicBool>);

impl Lock {
    fn lose(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl DiskLock for Lock {
    fn is_held(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

async fn open_locked(device: Arc<TestDevice>, filters: Vec<Custom>) -> (Disk, Lock) {
    let lock = Lock(Arc::new(AtomicBool::new(true)));
    let (policy, registry) = registry(filters);
    let disk = Disk::builder(device, TokioRt::new())
        .policy(policy, registry)
        .lock(Box::new(lock.clone()))
        .open()
        .await
        .unwrap();
    (disk, lock)
}

#[tokio::test(start_paused = true)]
async fn io_after_a_lost_lock_fails_and_an_event_says_why() {
    let device = TestDevice::native();
    let (disk, lock) = open_locked(Arc::clone(&device), vec![]).await;
    let mut port = disk.port(4).unwrap();
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    lock.lose();
    sleep(secs(1)).await;
    device.forget();
    let error = disk.submit(write_of(0, 2, 512)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone);
    assert_eq!(
        port.push(1, Io::flush()).unwrap_err().kind(),
        ErrorKind::Gone
    );
    assert!(device.started().is_empty());
    let events = events_of(&disk, EventKind::Closed);
    assert_eq!(events.len(), 1);
    assert!(
        events[0].text.contains("lock is lost"),
        "{}",
        events[0].text
    );
    assert_eq!(disk.state().phase, DiskPhase::Closed);
}

/// Found by writing this test: what filters had in hand still went down.
#[tokio::test(start_paused = true)]
async fn io_that_a_filter_holds_back_does_not_reach_the_device_any_more() {
    let device = TestDevice::native();
    let delays = custom(every_op("delays", Class::Qos), |io, next| {
        Box::pin(async move {
            sleep(secs(2)).await;
            next.submit(io).await
        })
    });
    let (disk, lock) = open_locked(Arc::clone(&device), vec![delays]).await;
    let mut write = Box::pin(disk.submit(write_of(0, 1, 512)));
    assert!(poll_once(&mut write).await.is_none());
    lock.lose();
    assert_eq!(within(3, write).await.unwrap_err().kind(), ErrorKind::Gone);
    assert!(device.started().is_empty());
}

/// Found by writing this test: a cache would have gone on destaging.
#[tokio::test(start_paused = true)]
async fn io_of_a_filters_own_does_not_reach_the_device_any_more() {
    let device = TestDevice::native();
    let lower = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&lower);
    let descriptor = every_op("cache", Class::Cache).with_reserved_slots(1);
    let cache = passing(descriptor).on_open(move |cx| {
        *kept.lock().unwrap() = Some(cx.lower());
        Ok(())
    });
    let (disk, lock) = open_locked(Arc::clone(&device), vec![cache]).await;
    let lower = lower.lock().unwrap().clone().unwrap();
    lower.submit(write_of(0, 1, 512)).await.unwrap();
    lock.lose();
    sleep(secs(1)).await;
    device.forget();
    let error = lower.submit(write_of(0, 2, 512)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone);
    assert!(device.started().is_empty());
    drop(disk);
}

/// Found by writing this test: the stall ladder ended with the lock.
#[tokio::test(start_paused = true)]
async fn io_in_the_device_that_hangs_is_still_answered_in_time() {
    let device = TestDevice::native();
    device.slow(secs(1000), |_| true);
    let (disk, lock) = open_locked(Arc::clone(&device), vec![]).await;
    let mut write = Box::pin(disk.submit(write_of(0, 1, 512)));
    assert!(poll_once(&mut write).await.is_none());
    lock.lose();
    let error = within(30, write).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(events_of(&disk, EventKind::Closed).len(), 1, "told once");
}
