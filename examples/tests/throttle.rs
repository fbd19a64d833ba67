//! The throttle: exact rates in virtual time, fairness, cancellation, and its own limits.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use support::*;
use vaio_core::*;
use vaio_examples::throttle::WAIT_MAX;

fn throttle(settings: &[(&str, &str)]) -> FilterSpec {
    settings
        .iter()
        .fold(FilterSpec::new("throttle"), |spec, (key, value)| {
            spec.with(*key, *value)
        })
}

/// Runs a queue of 32 for `seconds` and returns how many IOs of `len` bytes ended.
async fn load(disk: &Disk, len: u64, seconds: u64) -> u64 {
    let until = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let mut port = disk.port(32).unwrap();
    let (mut tag, mut ended) = (0, 0);
    loop {
        while !port.is_full() {
            tag += 1;
            port.push(tag, Io::read(Extent::new(0, len))).unwrap();
        }
        let done = tokio::time::timeout_at(until, port.next()).await;
        let Ok(done) = done else { return ended };
        done.result.unwrap();
        ended += 1;
    }
}

fn assert_within_5_percent(value: u64, wanted: u64) {
    assert!(
        value.abs_diff(wanted) * 20 <= wanted,
        "value={value} wanted={wanted}"
    );
}

#[tokio::test]
async fn unlimited_throttle_reads_back_what_was_written() {
    let disk = open_ram(&[throttle(&[])]).await;
    verify_concurrently(&disk).await;
    assert_eq!(detail(&disk, "throttle", "delayed"), "0");
}

#[tokio::test(start_paused = true)]
async fn limited_throttle_reads_back_what_was_written() {
    let disk = open_ram(&[throttle(&[("iops", "500"), ("bytes_per_s", "4M")])]).await;
    verify_concurrently(&disk).await;
    assert_ne!(detail(&disk, "throttle", "delayed"), "0");
}

#[tokio::test(start_paused = true)]
async fn iops_are_exact_to_5_percent() {
    let disk = open_ram(&[throttle(&[("iops", "1000")])]).await;
    load(&disk, 512, 1).await;
    assert_within_5_percent(load(&disk, 512, 20).await, 20_000);
}

#[tokio::test(start_paused = true)]
async fn bytes_per_second_are_exact_to_5_percent() {
    let disk = open_ram(&[throttle(&[("bytes_per_s", "16M")])]).await;
    load(&disk, 64 << 10, 1).await;
    let ended = load(&disk, 64 << 10, 20).await;
    assert_within_5_percent(ended * (64 << 10), 20 * (16 << 20));
}

#[tokio::test(start_paused = true)]
async fn the_stricter_of_two_limits_holds() {
    let disk = open_ram(&[throttle(&[("iops", "100"), ("bytes_per_s", "1G")])]).await;
    load(&disk, 4096, 1).await;
    assert_within_5_percent(load(&disk, 4096, 20).await, 2_000);
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_made_up_for_by_the_burst_and_no_more() {
    let disk = open_ram(&[throttle(&[("iops", "100"), ("burst", "2s")])]).await;
    load(&disk, 512, 5).await;
    pause(Duration::from_mins(1)).await;
    assert_within_5_percent(load(&disk, 512, 10).await, 1_200);
}

#[tokio::test(start_paused = true)]
async fn large_io_does_not_starve_and_small_io_does_not_pass_it() {
    let disk = open_ram(&[throttle(&[("bytes_per_s", "8M")])]).await;
    let mut port = disk.port(8).unwrap();
    for tag in 0..8 {
        let len = if tag % 2 == 0 { 16 << 20 } else { 512 };
        port.push(tag, Io::read(Extent::new(0, len))).unwrap();
    }
    let mut order = Vec::new();
    while port.in_flight() > 0 {
        order.push(port.next().await.tag);
    }
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[tokio::test(start_paused = true)]
async fn io_over_the_longest_wait_is_let_go_and_the_filter_is_not_taken_for_hung() {
    let disk = open_ram(&[throttle(&[("iops", "26")])]).await;
    let mut port = disk.port(512).unwrap();
    let start = tokio::time::Instant::now();
    for tag in 0..512 {
        port.push(tag, Io::read(Extent::new(0, 512))).unwrap();
    }
    while port.in_flight() > 0 {
        port.next().await.result.unwrap();
    }
    assert!(
        start.elapsed() <= WAIT_MAX + Duration::from_millis(10),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(health(&disk, "throttle"), Health::Active);
    let overdue: u64 = detail(&disk, "throttle", "overdue").parse().unwrap();
    assert!((200..256).contains(&overdue), "overdue={overdue}");
    assert!(!events_of(&disk, EventKind::Filter).is_empty());
}

/// Runs a verb while a queue of 256 waits for a throttle, and returns how long it took.
async fn time_over_a_line<F: Future<Output = Result<()>>>(
    disk: &Disk,
    verb: impl FnOnce() -> F,
) -> Duration {
    let mut port = disk.port(256).unwrap();
    for tag in 0..256 {
        port.push(tag, Io::read(Extent::new(0, 512))).unwrap();
    }
    let start = tokio::time::Instant::now();
    let waiting = async {
        while port.in_flight() > 0 {
            port.next().await.result.unwrap();
        }
    };
    let verb = async {
        // The line has formed.
        pause(Duration::from_millis(50)).await;
        verb().await.unwrap();
        start.elapsed()
    };
    futures::join!(verb, waiting).0
}

#[tokio::test(start_paused = true)]
async fn detach_lets_the_line_go_at_once() {
    let disk = open_ram(&[throttle(&[("iops", "30")])]).await;
    let verb = || disk.detach("throttle", DirtyDisposition::Refuse);
    let took = time_over_a_line(&disk, verb).await;
    assert!(took < Duration::from_millis(100), "{took:?}");
    assert!(disk.state().layers.is_empty());
}

/// Found end to end: a throttle heard of its own detach only, and held up everyone else's drain.
#[tokio::test(start_paused = true)]
async fn verbs_about_others_let_the_line_go_at_once() {
    let disk = open_ram(&[throttle(&[("iops", "30")]), FilterSpec::new("noop1")]).await;
    let detach = || disk.detach("noop1", DirtyDisposition::Refuse);
    let took = time_over_a_line(&disk, detach).await;
    assert!(took < Duration::from_millis(100), "detach: {took:?}");
    let attach = || disk.attach(FilterSpec::new("noop1"));
    let took = time_over_a_line(&disk, attach).await;
    assert!(took < Duration::from_millis(100), "attach: {took:?}");
    let deadline = TestRt::new().now() + Duration::from_secs(5);
    let quiesce = || async { disk.quiesce(Level::Drained, deadline).await.map(drop) };
    let took = time_over_a_line(&disk, quiesce).await;
    assert!(took < Duration::from_millis(100), "quiesce: {took:?}");
    // The limit holds as before.
    assert_within_5_percent(load(&disk, 512, 20).await, 600);
}

#[tokio::test]
async fn settings_that_would_stall_a_guest_are_refused() {
    for (key, value) in [
        ("iops", "25"),
        ("bytes_per_s", "3M"),
        ("burst", "1ms"),
        ("iops", "-1"),
    ] {
        let error = refusal(&[throttle(&[(key, value)])]).await;
        assert_eq!(error.kind(), ErrorKind::Config);
        let line = error.to_string();
        assert!(
            line.contains(key) && line.contains("filter=throttle"),
            "{line}"
        );
    }
}

/// Lets go of whatever takes longer than it likes.
#[derive(Debug)]
struct Impatient(Rt);

#[async_trait]
impl Filter for Impatient {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        let at = self.0.now() + Duration::from_millis(1);
        let late = || Error::new(ErrorKind::TimedOut, "took too long");
        self.0
            .timeout_at(at, next.submit(io))
            .await
            .unwrap_or_else(|| Err(late()))
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }
}

#[async_trait]
impl FilterFactory for Impatient {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new("impatient", "1", Class::Inspect)
            .intercept(&[OpKind::Read])
            .pass(&[OpKind::Write, OpKind::Flush])
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, _cx: AttachContext) -> Result<Arc<dyn Filter>> {
        Ok(Arc::new(Self(Arc::clone(&self.0))))
    }
}

#[tokio::test(start_paused = true)]
async fn io_dropped_while_it_waits_has_taken_nothing() {
    let policy = Policy::empty()
        .with(FilterSpec::new("impatient"))
        .with(throttle(&[("bytes_per_s", "32M"), ("burst", "10ms")]));
    let rt = TestRt::new();
    let disk = Disk::builder(Arc::new(RamDisk::new(64 << 20)), Arc::clone(&rt))
        .policy(policy, vaio_examples::registry().with(Impatient(rt)))
        .open()
        .await
        .unwrap();
    // One that passes at once and owes a second, and a hundred that give up waiting.
    read(&disk, 0, 32 << 20).await.unwrap();
    for _ in 0..100 {
        assert_eq!(
            read(&disk, 0, 32 << 20).await.unwrap_err().kind(),
            ErrorKind::TimedOut
        );
    }
    pause(Duration::from_secs(1)).await;
    read(&disk, 0, 512)
        .await
        .expect("only the first IO's second was owed");
}
