//! Verbs in two phases, open and close, and the life of background tasks.
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

use async_trait::async_trait;
use support::*;
use vaio_core::*;

type Calls = Arc<Mutex<Vec<String>>>;

fn stack(names: &[&'static str], calls: &Calls) -> Vec<Custom> {
    names
        .iter()
        .map(|name| {
            let mut filter =
                passing(every_op(name, Class::Inspect).with_bypass(BypassSafety::Never));
            filter.calls = Arc::clone(calls);
            filter
        })
        .collect()
}

fn take(calls: &Calls) -> String {
    std::mem::take(&mut *calls.lock().unwrap()).join(" ")
}

fn snapshot() -> Verb {
    Verb::Snapshot { name: "s".into() }
}

fn in_secs(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

#[tokio::test]
async fn open_snapshot_and_close_tell_filters_top_down() {
    let calls = Calls::default();
    let disk = open(TestDevice::native(), stack(&["a", "b", "c"], &calls)).await;
    assert_eq!(take(&calls), "a:open:commit b:open:commit c:open:commit");
    let prepared = disk.prepare(snapshot()).await.unwrap();
    assert_eq!(
        take(&calls),
        "a:snapshot:prepare b:snapshot:prepare c:snapshot:prepare"
    );
    prepared.commit(in_secs(5), async { Ok(()) }).await.unwrap();
    assert_eq!(
        take(&calls),
        "a:snapshot:commit b:snapshot:commit c:snapshot:commit"
    );
    assert_eq!(events_of(&disk, EventKind::VerbDone).len(), 1);
    disk.close().await.unwrap();
    assert_eq!(
        take(&calls),
        "a:close:prepare a:close:commit b:close:prepare b:close:commit c:close:prepare c:close:commit"
    );
    assert_eq!(disk.state().phase, DiskPhase::Closed);
    assert_eq!(disk.close().await.unwrap_err().kind(), ErrorKind::Gone);
}

#[tokio::test]
async fn refusal_is_named_and_those_that_prepared_abort_in_reverse() {
    let calls = Calls::default();
    let mut filters = stack(&["a", "b", "c"], &calls);
    filters[2] = filters[2].clone().on_life(|_, phase| match phase {
        Phase::Prepare => Err(Error::refused("not now")),
        _ => Ok(Outcome::Done),
    });
    let disk = open(TestDevice::native(), filters).await;
    take(&calls);
    let error = disk.prepare(snapshot()).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.filter(), error.disk()),
        (ErrorKind::Refused, Some("c"), Some("disk"))
    );
    assert_eq!(
        take(&calls),
        "a:snapshot:prepare b:snapshot:prepare c:snapshot:prepare b:snapshot:abort a:snapshot:abort"
    );
    assert!(
        events_of(&disk, EventKind::VerbAborted)[0]
            .text
            .contains("not now")
    );
    disk.submit(Io::flush()).await.unwrap();
}

/// A filter whose life-cycle calls hang, or sleep.
#[derive(Debug, Clone)]
struct Sleepy {
    name: &'static str,
    on: (&'static str, Phase),
    seconds: u64,
    calls: Calls,
}

#[async_trait]
impl Filter for Sleepy {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        next.submit(io).await
    }
    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }
    async fn lifecycle(&self, event: Lifecycle<'_>) -> Result<Outcome> {
        let call = format!("{}:{}:{}", self.name, event.verb.name(), event.phase.name());
        self.calls.lock().unwrap().push(call.clone());
        if (event.verb.name(), event.phase) == self.on {
            sleep(secs(self.seconds)).await;
            self.calls.lock().unwrap().push(call + ":end");
        }
        Ok(Outcome::Done)
    }
    fn state(&self) -> FilterState {
        FilterState::default()
    }
}

#[async_trait]
impl FilterFactory for Sleepy {
    fn descriptor(&self) -> Descriptor {
        every_op(self.name, Class::Cache)
    }
    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }
    async fn open(&self, _cx: AttachContext) -> Result<Arc<dyn Filter>> {
        Ok(Arc::new(self.clone()))
    }
}

async fn open_sleepy(on: (&'static str, Phase), seconds: u64, calls: &Calls) -> Disk {
    let (policy, registry) = registry(stack(&["top"], calls));
    let sleepy = Sleepy {
        name: "sleepy",
        on,
        seconds,
        calls: Arc::clone(calls),
    };
    let disk = Disk::builder(TestDevice::native(), TokioRt::new())
        .policy(
            policy.with(FilterSpec::new("sleepy")),
            registry.with(sleepy),
        )
        .open()
        .await
        .unwrap();
    take(calls);
    disk
}

#[tokio::test(start_paused = true)]
async fn prepare_that_times_out_is_aborted_too_and_is_not_cut() {
    let calls = Calls::default();
    let disk = open_sleepy(("snapshot", Phase::Prepare), 15, &calls).await;
    let start = tokio::time::Instant::now();
    let error = disk.prepare(snapshot()).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.filter()),
        (ErrorKind::TimedOut, Some("sleepy"))
    );
    assert_eq!(start.elapsed().as_secs(), 10);
    assert_eq!(
        take(&calls),
        "top:snapshot:prepare sleepy:snapshot:prepare sleepy:snapshot:abort top:snapshot:abort"
    );
    assert_eq!(
        disk.state().in_flight,
        1,
        "the call that goes on is counted"
    );
    sleep(secs(6)).await;
    assert_eq!(take(&calls), "sleepy:snapshot:prepare:end");
    assert_eq!(disk.state().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn guest_runs_during_prepare_and_not_during_commit() {
    let calls = Calls::default();
    let disk = open_sleepy(("snapshot", Phase::Prepare), 5, &calls).await;
    let mut prepare = Box::pin(disk.prepare(snapshot()));
    assert!(poll_once(&mut prepare).await.is_none());
    within(1, disk.submit(write_of(0, 1, 512))).await.unwrap();
    let prepared = prepare.await.unwrap();
    let (seen, inside) = (disk.clone(), Arc::new(AtomicBool::new(false)));
    let flag = Arc::clone(&inside);
    let action = async move {
        flag.store(seen.state().phase == DiskPhase::Quiesced, Ordering::Relaxed);
        sleep(secs(3)).await;
        Ok(())
    };
    let mut commit = Box::pin(prepared.commit(in_secs(100), action));
    assert!(poll_once(&mut commit).await.is_none());
    sleep(ms(1)).await;
    let start = tokio::time::Instant::now();
    let (write, result) = futures::future::join(disk.submit(write_of(0, 2, 512)), commit).await;
    write.unwrap();
    result.unwrap();
    assert!(inside.load(Ordering::Relaxed) && start.elapsed() >= ms(2900));
}

#[tokio::test(start_paused = true)]
async fn failed_action_and_dropped_prepare_abort_in_reverse() {
    let calls = Calls::default();
    let disk = open(TestDevice::native(), stack(&["a", "b"], &calls)).await;
    take(&calls);
    let prepared = disk.prepare(snapshot()).await.unwrap();
    let error = prepared
        .commit(in_secs(5), async { Err(Error::refused("array says no")) })
        .await
        .unwrap_err();
    assert_eq!(error.message(), "array says no");
    assert!(take(&calls).ends_with("b:snapshot:abort a:snapshot:abort"));
    drop(disk.prepare(snapshot()).await.unwrap());
    sleep(ms(1)).await;
    assert!(take(&calls).ends_with("b:snapshot:abort a:snapshot:abort"));
    assert_eq!(disk.state().phase, DiskPhase::Open);
}

/// The bug: when the action panicked, the filters stayed prepared for ever.
#[tokio::test]
async fn panicking_action_aborts() {
    let calls = Calls::default();
    let disk = open(TestDevice::native(), stack(&["a"], &calls)).await;
    let prepared = disk.prepare(snapshot()).await.unwrap();
    take(&calls);
    let action = async {
        if true {
            panic!("in the action")
        } else {
            Ok(())
        }
    };
    assert!(prepared.commit(in_secs(5), action).await.is_err());
    assert_eq!(take(&calls), "a:snapshot:abort");
    disk.submit(Io::flush()).await.unwrap();
}

/// Says when it is dropped.
struct OnDrop(Arc<AtomicBool>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn action_that_does_not_end_is_dropped_at_the_deadline_and_the_verb_aborts() {
    let calls = Calls::default();
    let disk = open(TestDevice::native(), stack(&["a", "b"], &calls)).await;
    let prepared = disk.prepare(snapshot()).await.unwrap();
    take(&calls);
    let dropped = Arc::new(AtomicBool::new(false));
    let on_drop = OnDrop(Arc::clone(&dropped));
    let action = async move {
        let _on_drop = on_drop;
        std::future::pending().await
    };
    let mut commit = Box::pin(prepared.commit(in_secs(2), action));
    assert!(poll_once(&mut commit).await.is_none());
    sleep(ms(1900)).await;
    let write = disk.submit(write_of(0, 1, 512));
    let (written, result) = within(1, futures::future::join(write, commit)).await;
    written.expect("the guest waits for the deadline, not longer");
    assert_eq!(result.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(dropped.load(Ordering::Relaxed));
    assert_eq!(take(&calls), "b:snapshot:abort a:snapshot:abort");
    assert_eq!(events_of(&disk, EventKind::VerbAborted).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn commit_that_cannot_drain_aborts_at_its_deadline() {
    let calls = Calls::default();
    let device = TestDevice::native();
    device.slow(secs(15), |op| op.kind() == OpKind::Write);
    let disk = open(device, stack(&["a"], &calls)).await;
    let prepared = disk.prepare(snapshot()).await.unwrap();
    let mut write = Box::pin(disk.submit(write_of(0, 1, 512)));
    assert!(poll_once(&mut write).await.is_none());
    take(&calls);
    let ran = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ran);
    let action = async move {
        flag.store(true, Ordering::Relaxed);
        Ok(())
    };
    assert_eq!(
        prepared
            .commit(in_secs(2), action)
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::TimedOut
    );
    assert!(!ran.load(Ordering::Relaxed));
    assert_eq!(take(&calls), "a:snapshot:abort");
    write.await.unwrap();
}

/// The bug: a filter that had left between prepare and commit was told to commit, after its close.
#[tokio::test]
async fn filter_detached_after_prepare_hears_nothing_more() {
    let calls = Calls::default();
    let disk = open(TestDevice::native(), stack(&["a", "b"], &calls)).await;
    let prepared = disk.prepare(snapshot()).await.unwrap();
    disk.detach("b", DirtyDisposition::Refuse).await.unwrap();
    take(&calls);
    prepared.commit(in_secs(5), async { Ok(()) }).await.unwrap();
    assert_eq!(take(&calls), "a:snapshot:commit");
}

#[tokio::test]
async fn verbs_with_calls_of_their_own_are_not_prepared() {
    let disk = open(TestDevice::native(), vec![]).await;
    for verb in [Verb::Attach, Verb::Detach, Verb::Open, Verb::Close] {
        assert_eq!(
            disk.prepare(verb).await.unwrap_err().kind(),
            ErrorKind::Invalid
        );
    }
}

#[tokio::test]
async fn resize_reshapes_the_disk_and_its_ports() {
    let device = TestDevice::native();
    let disk = open(
        Arc::clone(&device),
        vec![passing(every_op("a", Class::Cache))],
    )
    .await;
    let mut port = disk.port(1).unwrap();
    let prepared = disk
        .prepare(Verb::Resize {
            from: 1 << 20,
            to: 512 << 10,
        })
        .await
        .unwrap();
    let resized = Arc::clone(&device);
    let action = async move {
        let mut info = native_info();
        info.capacity = 512 << 10;
        resized.set_info(info);
        Ok(())
    };
    prepared.commit(in_secs(5), action).await.unwrap();
    assert_eq!(
        (disk.info().capacity, port.info().capacity),
        (512 << 10, 512 << 10)
    );
    assert_eq!(events_of(&disk, EventKind::Reshaped).len(), 1);
    port.push(1, Io::read(Extent::new(512 << 10, 512))).unwrap();
    assert_eq!(
        port.next().await.result.unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[tokio::test]
async fn failed_open_closes_what_was_opened_in_reverse_and_frees_everything() {
    let calls = Calls::default();
    let mut filters = stack(&["a", "b", "c"], &calls);
    filters[0] = filters[0]
        .clone()
        .on_open(|_| Err(Error::config("no such thing")));
    let device = TestDevice::native();
    let (policy, registry) = registry(filters);
    let sidecar = Arc::new(MemorySidecar::default());
    let opened = Disk::builder(Arc::<TestDevice>::clone(&device), TokioRt::new())
        .policy(policy, registry)
        .sidecar(Arc::<MemorySidecar>::clone(&sidecar))
        .open()
        .await;
    let error = opened.unwrap_err();
    assert_eq!(
        (error.kind(), error.filter(), error.disk()),
        (ErrorKind::Config, Some("a"), Some("disk"))
    );
    assert_eq!(
        take(&calls),
        "b:open:abort b:close:prepare b:close:commit c:open:abort c:close:prepare c:close:commit"
    );
    assert!(
        sidecar.load().await.unwrap().is_none(),
        "nothing was recorded"
    );
    tokio::task::yield_now().await;
    assert_eq!(
        Arc::strong_count(&device),
        1,
        "the device is free for the next open"
    );
}

/// The bug: when a filter failed to commit the open, `open` returned its error and left every
/// filter open, with its tasks and without a disk.
#[tokio::test]
async fn failed_commit_of_open_or_attach_is_reported_and_the_verb_stands() {
    for verb in ["open", "attach"] {
        let bad = passing(every_op("bad", Class::Cache)).on_life(|_, phase| match phase {
            Phase::Commit => Err(Error::refused("too late")),
            _ => Ok(Outcome::Done),
        });
        let (policy, registry) = registry(vec![bad]);
        let policy = if verb == "open" {
            policy
        } else {
            Policy::empty()
        };
        let disk = Disk::builder(TestDevice::native(), TokioRt::new())
            .policy(policy, registry)
            .open()
            .await
            .unwrap();
        if verb == "attach" {
            disk.attach(FilterSpec::new("bad")).await.unwrap();
        }
        assert_eq!(disk.state().layers.len(), 1);
        let event = &events_of(&disk, EventKind::Filter)[0];
        assert!(
            event.text.contains("too late") && event.filter.as_deref() == Some("bad"),
            "{event}"
        );
        disk.submit(write_of(0, 1, 512)).await.unwrap();
    }
}

/// The bug: what a filter said when it was closed was thrown away, and a disk whose cache could
/// not close was recorded as clean: the next open could leave the cache out, and its data.
#[tokio::test(start_paused = true)]
async fn filter_that_fails_to_close_leaves_the_disk_unclean() {
    for (phase, panics) in [
        (Phase::Prepare, false),
        (Phase::Commit, false),
        (Phase::Prepare, true),
    ] {
        let sidecar = Arc::new(MemorySidecar::default());
        let cache = passing(every_op("cache", Class::Cache)).on_life(move |verb, now| {
            if verb == "close" && now == phase {
                assert!(!panics, "in close");
                return Err(Error::new(ErrorKind::Io, "log is gone"));
            }
            Ok(Outcome::Done)
        });
        let (policy, registry) = registry(vec![cache]);
        let disk = Disk::builder(TestDevice::native(), TokioRt::new())
            .policy(policy, registry)
            .sidecar(Arc::<MemorySidecar>::clone(&sidecar))
            .open()
            .await
            .unwrap();
        assert!(disk.close().await.is_err());
        assert_eq!(
            disk.submit(Io::flush()).await.unwrap_err().kind(),
            ErrorKind::Gone
        );
        assert_eq!(
            events_of(&disk, EventKind::Closed)[0].severity,
            Severity::Error
        );
        let without = Disk::builder(TestDevice::native(), TokioRt::new())
            .sidecar(sidecar)
            .open()
            .await;
        assert_eq!(without.unwrap_err().kind(), ErrorKind::Refused, "{phase:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn background_tasks_are_told_to_stop_and_a_stuck_one_is_dropped() {
    let log = Calls::default();
    let own = Arc::clone(&log);
    struct Dropped(Calls);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.lock().unwrap().push("stuck dropped".into());
        }
    }
    let filter = passing(every_op("worker", Class::Inspect)).on_open(move |cx| {
        let (one, log) = (cx.clone(), Arc::clone(&own));
        cx.spawn("polite", async move {
            one.stopped().await;
            log.lock().unwrap().push("polite stopped".into());
        });
        let dropped = Dropped(Arc::clone(&own));
        cx.spawn("stuck", async move {
            let _dropped = dropped;
            futures::future::pending::<()>().await;
        });
        Ok(())
    });
    let disk = open(TestDevice::native(), vec![filter]).await;
    sleep(ms(1)).await;
    let start = tokio::time::Instant::now();
    disk.detach("worker", DirtyDisposition::Refuse)
        .await
        .unwrap();
    assert_eq!(take(&log), "polite stopped stuck dropped");
    assert_eq!(start.elapsed().as_secs(), 10);
    assert!(
        events_of(&disk, EventKind::Filter)[0]
            .text
            .contains("background tasks")
    );
}

#[tokio::test(start_paused = true)]
async fn control_call_runs_to_its_end_when_its_caller_goes_away() {
    let calls = Calls::default();
    let disk = open_sleepy(("detach", Phase::Prepare), 3, &calls).await;
    let mut detach = Box::pin(disk.detach("sleepy", DirtyDisposition::Refuse));
    assert!(poll_once(&mut detach).await.is_none());
    sleep(ms(1)).await;
    assert_eq!(disk.state().running, Some("detach"));
    drop(detach);
    sleep(secs(5)).await;
    assert_eq!(disk.state().layers.len(), 1);
    assert!(
        take(&calls).ends_with("sleepy:detach:commit sleepy:close:prepare sleepy:close:commit")
    );
}

#[tokio::test]
async fn sidecar_of_a_filter_is_its_own_and_survives() {
    let sidecar = Arc::new(MemorySidecar::default());
    let seen: Arc<Mutex<Vec<(OpenReason, u64)>>> = Arc::default();
    for _ in 0..2 {
        let log = Arc::clone(&seen);
        let filter = passing(every_op("x", Class::Inspect)).on_open(move |cx| {
            let value = futures::executor::block_on(async {
                let old = cx
                    .sidecar()
                    .get("n")
                    .await
                    .map_or(0, |bytes| u64::from(bytes[0]));
                cx.sidecar()
                    .commit(&[("n", Some(vec![old as u8 + 1].into()))])
                    .await
                    .unwrap();
                old
            });
            log.lock().unwrap().push((cx.reason(), value));
            Ok(())
        });
        let (policy, registry) = registry(vec![filter]);
        let disk = Disk::builder(TestDevice::native(), TokioRt::new())
            .policy(policy, registry)
            .sidecar(Arc::<MemorySidecar>::clone(&sidecar))
            .open()
            .await
            .unwrap();
        disk.close().await.unwrap();
    }
    assert_eq!(
        *seen.lock().unwrap(),
        [(OpenReason::Attach, 0), (OpenReason::Clean, 1)]
    );
}
