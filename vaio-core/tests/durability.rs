//! Durability verbs over filters that hold data.
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

use std::sync::{Arc, atomic::Ordering};

use support::*;
use vaio_core::*;

async fn open_toys(device: Arc<TestDevice>, toys: &[&Toy]) -> Disk {
    let mut registry = FilterRegistry::default();
    let mut policy = Policy::empty();
    for toy in toys {
        registry = registry.with((*toy).clone());
        policy = policy.with(FilterSpec::new(toy.descriptor.name));
    }
    Disk::builder(device, TokioRt::new())
        .policy(policy, registry)
        .open()
        .await
        .unwrap()
}

fn in_secs(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

#[tokio::test(start_paused = true)]
async fn flush_to_brings_down_what_was_acknowledged_before_it_and_nothing_newer() {
    let toy = Toy::new("toy", Class::Cache).slow(ms(100));
    let device = TestDevice::native();
    let disk = open_toys(Arc::clone(&device), &[&toy]).await;
    disk.submit(write_of(0, 1, 10 * 512)).await.unwrap();
    let flushing = disk.flush_to(Level::BackingDurable).unwrap();
    for n in 0..50u64 {
        disk.submit(write_of((100 + n) * 512, 2, 512))
            .await
            .unwrap();
        sleep(ms(10)).await;
    }
    let progress = flushing.progress();
    assert_eq!(progress.done_bytes + progress.remaining_bytes, 10 * 512);
    within(2, flushing.wait(in_secs(100))).await.unwrap();
    assert_eq!(flushing.progress().remaining_bytes, 0);
    assert_eq!(device.content(0, 10 * 512), vec![1; 10 * 512]);
    assert_eq!(toy.dirty_blocks(), 50, "newer writes are still up");
}

#[tokio::test(start_paused = true)]
async fn progress_never_grows_and_estimates_the_time_left() {
    let toy = Toy::new("toy", Class::Cache).slow(ms(100));
    let disk = open_toys(TestDevice::native(), &[&toy]).await;
    disk.submit(write_of(0, 1, 20 * 512)).await.unwrap();
    let flushing = disk.flush_to(Level::BackingDurable).unwrap();
    assert_eq!(flushing.progress().eta, None, "no rate yet");
    sleep(ms(1050)).await;
    let half = flushing.progress();
    assert_eq!(
        (half.done_bytes, half.remaining_bytes),
        (10 * 512, 10 * 512)
    );
    let eta = half.eta.unwrap();
    assert!((ms(900)..ms(1200)).contains(&eta), "{eta:?}");
    // Between two steps it is the time that passes, not the rate that falls.
    sleep(ms(40)).await;
    let later = flushing.progress();
    assert_eq!(later.done_bytes, half.done_bytes);
    assert_eq!(later.eta.unwrap() + ms(40), eta);
    disk.submit(write_of(100 * 512, 1, 40 * 512)).await.unwrap();
    assert!(flushing.progress().remaining_bytes <= half.remaining_bytes);
    let error = flushing.wait(in_secs(0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.message().contains("remaining_bytes="));
    flushing.wait(in_secs(100)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn flush_that_failed_estimates_no_time_left() {
    let toy = Toy::new("toy", Class::Cache).slow(ms(100));
    let device = TestDevice::native();
    let disk = open_toys(Arc::clone(&device), &[&toy]).await;
    disk.submit(write_of(0, 1, 20 * 512)).await.unwrap();
    let flushing = disk.flush_to(Level::BackingDurable).unwrap();
    sleep(ms(1050)).await;
    assert!(flushing.progress().eta.is_some());
    device.hook(|_| Box::pin(async { Err(Error::new(ErrorKind::Io, "gone")) }));
    flushing.wait(in_secs(100)).await.unwrap_err();
    assert_eq!(flushing.progress().eta, None);
}

// What it moved was not counted, so that with the gate closed it waited for the gate to open: for
// the end of the verb that waited for it.
#[tokio::test(start_paused = true)]
async fn flush_to_inside_a_commit_moves_what_is_dirty() {
    let toy = Toy::new("toy", Class::Cache).slow(ms(10));
    let device = TestDevice::native();
    let disk = open_toys(Arc::clone(&device), &[&toy]).await;
    disk.submit(write_of(0, 1, 4 * 512)).await.unwrap();
    let verb = Verb::Snapshot { name: "s".into() };
    let prepared = disk.prepare(verb).await.unwrap();
    let (inside, deadline) = (disk.clone(), in_secs(100));
    let action = async move {
        let flushing = inside.flush_to(Level::BackingDurable)?;
        flushing.wait(deadline).await
    };
    within(2, prepared.commit(deadline, action)).await.unwrap();
    assert_eq!(device.content(0, 4 * 512), vec![1; 4 * 512]);
    assert_eq!(disk.state().in_flight, 0, "and is counted no more");
}

#[tokio::test(start_paused = true)]
async fn dropped_flushing_goes_on() {
    let toy = Toy::new("toy", Class::Cache).slow(ms(10));
    let disk = open_toys(TestDevice::native(), &[&toy]).await;
    disk.submit(write_of(0, 1, 4 * 512)).await.unwrap();
    drop(disk.flush_to(Level::BackingDurable).unwrap());
    sleep(secs(1)).await;
    assert_eq!(toy.dirty_blocks(), 0);
}

#[tokio::test]
async fn flush_to_the_backing_flushes_a_volatile_device_last() {
    let toy = Toy::new("toy", Class::Cache);
    let device = TestDevice::volatile();
    let disk = open_toys(Arc::clone(&device), &[&toy]).await;
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    disk.flush_to(Level::CacheDurable)
        .unwrap()
        .wait(in_secs(9))
        .await
        .unwrap();
    assert_eq!(
        device.count(OpKind::Write),
        0,
        "cache durable touches no backing"
    );
    disk.flush_to(Level::BackingDurable)
        .unwrap()
        .wait(in_secs(9))
        .await
        .unwrap();
    let kinds: Vec<_> = device.ended().iter().map(Op::kind).collect();
    assert_eq!(kinds, [OpKind::Write, OpKind::Flush]);
}

#[tokio::test]
async fn dirty_data_is_counted_mapped_and_read_back() {
    let toy = Toy::new("toy", Class::Cache);
    let disk = open_toys(TestDevice::native(), &[&toy]).await;
    disk.submit(write_of(1024, 1, 1024)).await.unwrap();
    disk.submit(write_of(4096, 2, 512)).await.unwrap();
    assert_eq!(disk.dirty(Level::BackingDurable).bytes, 1536);
    assert_eq!(disk.dirty(Level::CacheDurable).bytes, 0);
    assert_eq!(disk.state().dirty_bytes, 1536);
    let map = disk.dirty_extents(Level::BackingDurable, Extent::new(0, 1 << 20));
    assert_eq!(
        map.extents(),
        [Extent::new(1024, 1024), Extent::new(4096, 512)]
    );
    let (name, source) = disk.dirty_sources().remove(0);
    assert_eq!(&*name, "toy");
    let first = source
        .read_dirty(Level::BackingDurable, DirtyMark(0), 1)
        .await
        .unwrap();
    assert_eq!(first.len(), 1, "one piece at least");
    let all = source
        .read_dirty(Level::BackingDurable, DirtyMark(0), 1 << 20)
        .await
        .unwrap();
    assert_eq!(
        all.iter()
            .map(|piece| piece.extent.offset())
            .collect::<Vec<_>>(),
        [1024, 1536, 4096]
    );
    assert_eq!(all[2].data, vec![2; 512]);
}

/// The bug: the lower source's mark was taken before the upper one had brought its data down into
/// it, so a flush to the backing ended with that data in the lower cache.
#[tokio::test]
async fn flush_to_over_two_sources_brings_the_upper_ones_data_to_the_backing() {
    let upper = Toy::new("upper", Class::Qos);
    let lower = Toy::new("lower", Class::Cache);
    let device = TestDevice::native();
    let disk = open_toys(Arc::clone(&device), &[&upper, &lower]).await;
    disk.submit(write_of(0, 7, 512)).await.unwrap();
    assert_eq!((upper.dirty_blocks(), lower.dirty_blocks()), (1, 0));
    disk.flush_to(Level::BackingDurable)
        .unwrap()
        .wait(in_secs(9))
        .await
        .unwrap();
    assert_eq!((upper.dirty_blocks(), lower.dirty_blocks()), (0, 0));
    assert_eq!(device.content(0, 512), vec![7; 512]);
}

#[tokio::test]
async fn replica_level_without_a_replica_is_unsupported() {
    let disk = open(TestDevice::native(), vec![]).await;
    let error = disk
        .flush_to(Level::ReplicaDurable)
        .unwrap()
        .wait(in_secs(9))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(
        disk.quiesce(Level::ReplicaDurable, in_secs(9))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Unsupported
    );
    disk.submit(Io::flush()).await.unwrap();
}

#[tokio::test]
async fn replicas_lag_does_not_keep_data_from_the_backing() {
    let replica = Toy::new("replica", Class::Replicate);
    let cache = Toy::new("cache", Class::Cache);
    let disk = open_toys(TestDevice::native(), &[&replica, &cache]).await;
    disk.submit(write_of(0, 7, 512)).await.unwrap();
    disk.flush_to(Level::BackingDurable)
        .unwrap()
        .wait(in_secs(9))
        .await
        .unwrap();
    assert_eq!(replica.dirty_blocks(), 1);
    disk.flush_to(Level::ReplicaDurable)
        .unwrap()
        .wait(in_secs(9))
        .await
        .unwrap();
    assert_eq!((replica.dirty_blocks(), cache.dirty_blocks()), (0, 0));
}

/// A replicator over a log of its own keeps data from the backing like a cache.
#[tokio::test(start_paused = true)]
async fn replicator_that_keeps_data_from_the_backing_is_asked_for_it() {
    let mut replica = Toy::new("replica", Class::Replicate);
    replica.keeps_from_backing = true;
    let disk = open_toys(TestDevice::native(), &[&replica]).await;
    disk.submit(write_of(0, 7, 512)).await.unwrap();
    let flushing = disk.flush_to(Level::BackingDurable).unwrap();
    flushing.wait(in_secs(9)).await.unwrap();
    assert_eq!(replica.dirty_blocks(), 0);
}

#[tokio::test(start_paused = true)]
async fn hold_at_point_holds_the_backing_while_the_guest_writes() {
    let toy = Toy::new("toy", Class::Cache);
    let device = TestDevice::native();
    let disk = open_toys(Arc::clone(&device), &[&toy]).await;
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    let point = disk.hold_at_point(secs(10)).await.unwrap();
    assert_eq!((point.filter(), point.mark()), ("toy", DirtyMark(1)));
    within(1, disk.submit(write_of(0, 2, 512))).await.unwrap();
    assert_eq!(device.content(0, 512), vec![1; 512], "exactly the point");
    assert_eq!(point.release(), Release::Held);
    let point = disk.hold_at_point(secs(10)).await.unwrap();
    let mut lost = Box::pin(point.lost());
    assert!(poll_once(&mut lost).await.is_none());
    assert!(events_of(&disk, EventKind::ThawedEarly).is_empty());
    toy.lose_hold();
    within(1, lost).await;
    sleep(ms(1)).await;
    let events = events_of(&disk, EventKind::ThawedEarly);
    assert_eq!(events.len(), 1, "told at once, not at the release");
    assert_eq!(events[0].filter.as_deref(), Some("toy"));
    assert_eq!(point.release(), Release::ThawedEarly);
}

#[tokio::test]
async fn hold_at_point_without_a_cache_is_unsupported() {
    let disk = open(
        TestDevice::native(),
        vec![passing(every_op("x", Class::Inspect))],
    )
    .await;
    assert_eq!(
        disk.hold_at_point(secs(1)).await.unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

#[tokio::test]
async fn dirty_policy_is_set_everywhere_or_nowhere() {
    let (upper, lower) = (
        Toy::new("upper", Class::Qos),
        Toy::new("lower", Class::Cache),
    );
    let disk = open_toys(TestDevice::native(), &[&upper, &lower]).await;
    lower.fails_policy.store(true, Ordering::Relaxed);
    let error = disk
        .set_dirty_policy(DirtyPolicy::WriteThrough)
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.filter()),
        (ErrorKind::Io, Some("lower"))
    );
    assert_eq!(
        (upper.policy(), disk.state().dirty_policy),
        (DirtyPolicy::Allow, DirtyPolicy::Allow)
    );
    lower.fails_policy.store(false, Ordering::Relaxed);
    disk.set_dirty_policy(DirtyPolicy::WriteThrough)
        .await
        .unwrap();
    assert_eq!(
        (upper.policy(), lower.policy()),
        (DirtyPolicy::WriteThrough, DirtyPolicy::WriteThrough)
    );
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    assert_eq!(disk.state().dirty_bytes, 0);
}

/// The bug: a filter that joined or was replaced after the policy was set made dirty data, while
/// the disk's state said that none was made.
#[tokio::test]
async fn dirty_policy_holds_for_filters_that_join_or_are_replaced_later() {
    let toy = Toy::new("toy", Class::Cache);
    let registry = FilterRegistry::default().with(toy.clone());
    let disk = Disk::builder(TestDevice::native(), TokioRt::new())
        .policy(Policy::empty(), registry)
        .open()
        .await
        .unwrap();
    disk.set_dirty_policy(DirtyPolicy::WriteThrough)
        .await
        .unwrap();
    disk.attach(FilterSpec::new("toy")).await.unwrap();
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    assert_eq!(toy.dirty_blocks(), 0);
    disk.replace("toy", FilterSpec::new("toy")).await.unwrap();
    disk.submit(write_of(0, 2, 512)).await.unwrap();
    assert_eq!(toy.dirty_blocks(), 0);
}
