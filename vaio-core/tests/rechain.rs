//! Attach, detach and replace on a running disk, and the manifest across opens.
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
    atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
};

use async_trait::async_trait;
use support::*;
use vaio_core::*;

/// Instances that count how many of them are alive. Content is XOR-ed with `key`, if any.
#[derive(Debug, Clone)]
struct Counted {
    descriptor: Descriptor,
    key: u8,
    alive: Arc<AtomicI64>,
    most: Arc<AtomicI64>,
    /// Opens that fail, shapes that refuse, from now on.
    fails: Arc<AtomicU64>,
    refuses_shape: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Instance {
    made_by: Counted,
    refuses_shape: bool,
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.made_by.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Counted {
    fn new(descriptor: Descriptor, key: u8) -> Self {
        Self {
            descriptor,
            key,
            alive: Arc::default(),
            most: Arc::default(),
            fails: Arc::default(),
            refuses_shape: Arc::default(),
        }
    }

    fn xor(&self, data: &[u8]) -> Vec<u8> {
        data.iter().map(|byte| byte ^ self.key).collect()
    }
}

#[async_trait]
impl Filter for Instance {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        let by = &self.made_by;
        match &io.op {
            Op::Write { offset, data, fua } => {
                let op = Op::Write {
                    offset: *offset,
                    data: by.xor(data).into(),
                    fua: *fua,
                };
                next.submit(io.with_op(op)).await
            }
            Op::Read { .. } => Ok(Reply::Data(
                by.xor(&next.submit(io).await?.into_data()).into(),
            )),
            _ => next.submit(io).await,
        }
    }
    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        if self.refuses_shape {
            return Err(Error::config("not over this"));
        }
        Ok(*below)
    }
    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }
    fn state(&self) -> FilterState {
        FilterState::default()
    }
}

#[async_trait]
impl FilterFactory for Counted {
    fn descriptor(&self) -> Descriptor {
        self.descriptor.clone()
    }
    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }
    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        // Reads below itself: the gate is closed and admits it.
        cx.lower().submit(Io::read(Extent::new(0, 512))).await?;
        if self.fails.load(Ordering::SeqCst) > 0 {
            self.fails.fetch_sub(1, Ordering::SeqCst);
            return Err(Error::new(ErrorKind::Io, "log does not open"));
        }
        let alive = self.alive.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(alive, Ordering::SeqCst);
        let refuses_shape = self.refuses_shape.swap(false, Ordering::SeqCst);
        Ok(Arc::new(Instance {
            made_by: self.clone(),
            refuses_shape,
        }))
    }
}

fn live_transform(key: u8) -> Counted {
    Counted::new(
        every_op("xor", Class::Transform).with_rechain(Rechain::Live),
        key,
    )
}

async fn open_one(
    device: Arc<TestDevice>,
    counted: &Counted,
    others: Vec<Custom>,
    attached: bool,
) -> Disk {
    let (mut policy, registry) = registry(others);
    if attached {
        policy = policy.with(FilterSpec::new(counted.descriptor.name));
    }
    Disk::builder(device, TokioRt::new())
        .policy(policy, registry.with(counted.clone()))
        .open()
        .await
        .unwrap()
}

/// Writes stamps through a port until told, checks each on the way, and returns how many.
async fn load(disk: Disk, base: u64, stop: Arc<AtomicBool>) -> u64 {
    let mut port = disk.port(8).unwrap();
    let mut stamps = [0u8; 64];
    let mut busy = [false; 64];
    let (mut n, mut done) = (0u64, 0u64);
    loop {
        while !port.is_full() && !stop.load(Ordering::Relaxed) {
            let block = n % 64;
            if busy[block as usize] {
                break;
            }
            busy[block as usize] = true;
            let io = if n % 3 == 0 {
                Io::read(Extent::new(base + block * 512, 512))
            } else {
                stamps[block as usize] = n as u8;
                write_of(base + block * 512, n as u8, 512)
            };
            port.push(block, io).unwrap();
            n += 1;
        }
        if port.in_flight() == 0 {
            return done;
        }
        let completion = port.next().await;
        let reply = completion.result.expect("no error under load");
        if let Reply::Data(data) = reply {
            assert!(
                data.iter()
                    .all(|byte| *byte == stamps[completion.tag as usize]),
                "lost or torn write"
            );
        }
        busy[completion.tag as usize] = false;
        done += 1;
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn rechaining_under_load_from_two_ports_loses_nothing() {
    let device = TestDevice::native();
    device.slow(ms(1), |_| true);
    let counted = Counted::new(every_op("watch", Class::Inspect), 0);
    let disk = open_one(
        device,
        &counted,
        vec![passing(every_op("other", Class::Cache))],
        false,
    )
    .await;
    let stop = Arc::new(AtomicBool::new(false));
    let loads: Vec<_> = (0..2)
        .map(|n| tokio::spawn(load(disk.clone(), n * 65_536, Arc::clone(&stop))))
        .collect();
    for round in 0..60 {
        sleep(ms(3)).await;
        disk.attach(FilterSpec::new("watch")).await.unwrap();
        for _ in 0..2 {
            sleep(ms(2)).await;
            disk.replace("watch", FilterSpec::new("watch"))
                .await
                .unwrap();
        }
        assert_eq!(counted.alive.load(Ordering::SeqCst), 1, "round {round}");
        sleep(ms(3)).await;
        disk.detach("watch", DirtyDisposition::Refuse)
            .await
            .unwrap();
        assert_eq!(
            counted.alive.load(Ordering::SeqCst),
            0,
            "round {round}: gone with its devices"
        );
    }
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        assert!(load.await.unwrap() > 200);
    }
    assert_eq!(counted.most.load(Ordering::SeqCst), 1, "never two alive");
    let gate = disk.stats().gate_closed;
    assert_eq!(gate.count, 240);
    assert!(gate.max_ns < 100_000_000, "{gate:?}");
    assert_eq!(disk.state().in_flight, 0);
}

#[tokio::test]
async fn failed_attach_leaves_the_old_stack() {
    let counted = live_transform(0);
    let disk = open_one(TestDevice::native(), &counted, vec![], false).await;
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    counted.fails.store(1, Ordering::SeqCst);
    let error = disk.attach(FilterSpec::new("xor")).await.unwrap_err();
    assert_eq!((error.kind(), error.filter()), (ErrorKind::Io, Some("xor")));
    counted.refuses_shape.store(true, Ordering::SeqCst);
    assert_eq!(
        disk.attach(FilterSpec::new("xor"))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Config
    );
    assert!(disk.stack().await.is_empty());
    assert_eq!(counted.alive.load(Ordering::SeqCst), 0);
    assert_eq!(read_all(&disk, 0, 512).await, vec![1; 512]);
    let unknown = disk.attach(FilterSpec::new("nope")).await.unwrap_err();
    assert!(unknown.message().contains("known=xor"));
    let setting = disk
        .attach(FilterSpec::new("xor").with("x", "1"))
        .await
        .unwrap_err();
    assert_eq!(setting.kind(), ErrorKind::Config);
}

#[tokio::test]
async fn replacement_that_does_not_open_brings_the_old_one_back() {
    let counted = live_transform(0x55);
    let disk = open_one(TestDevice::native(), &counted, vec![], true).await;
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    counted.fails.store(1, Ordering::SeqCst);
    assert_eq!(
        disk.replace("xor", FilterSpec::new("xor"))
            .await
            .unwrap_err()
            .message(),
        "log does not open"
    );
    assert_eq!(read_all(&disk, 0, 512).await, vec![1; 512]);
    counted.fails.store(2, Ordering::SeqCst);
    let error = disk
        .replace("xor", FilterSpec::new("xor"))
        .await
        .unwrap_err();
    assert!(error.message().contains("nor the old one"), "{error}");
    assert!(
        disk.submit(Io::read(Extent::new(0, 512))).await.is_err(),
        "never served without it"
    );
}

/// The bug: a replacement that opened but did not fit its place was left out, and the gate opened
/// over a chain without it: the guest read and wrote the disk below a transform, in clear.
#[tokio::test]
async fn replacement_that_does_not_fit_brings_the_old_one_back() {
    let device = TestDevice::native();
    let counted = live_transform(0x55);
    let disk = open_one(Arc::clone(&device), &counted, vec![], true).await;
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    counted.refuses_shape.store(true, Ordering::SeqCst);
    assert_eq!(
        disk.replace("xor", FilterSpec::new("xor"))
            .await
            .unwrap_err()
            .message(),
        "not over this"
    );
    assert_eq!(disk.state().layers.len(), 1);
    assert_eq!(read_all(&disk, 0, 512).await, vec![1; 512]);
    disk.submit(write_of(512, 2, 512)).await.unwrap();
    assert_eq!(device.content(512, 512), vec![2 ^ 0x55; 512]);
    assert_eq!(
        (
            counted.alive.load(Ordering::SeqCst),
            counted.most.load(Ordering::SeqCst)
        ),
        (1, 1)
    );
}

/// The bug: detach closed the filter before it found that one above could not do without it, and
/// the disk went on through the closed instance.
#[tokio::test]
async fn filter_that_one_above_needs_stays_when_it_is_detached() {
    let mut below = passing(every_op("below", Class::Cache));
    below.shape = |info| Ok(info.with_caps(|caps| caps.volatile_cache = true));
    let calls = Arc::clone(&below.calls);
    let mut above = passing(every_op("above", Class::Inspect));
    above.shape = |info| {
        if info.caps.volatile_cache {
            Ok(*info)
        } else {
            Err(Error::config("needs a cache below"))
        }
    };
    let disk = open(TestDevice::native(), vec![above, below.clone()]).await;
    calls.lock().unwrap().clear();
    for _ in 0..2 {
        let error = disk
            .detach("below", DirtyDisposition::Refuse)
            .await
            .unwrap_err();
        assert_eq!(
            (error.kind(), error.filter()),
            (ErrorKind::Config, Some("above"))
        );
        assert_eq!(
            calls.lock().unwrap().drain(..).collect::<Vec<_>>(),
            ["below:detach:prepare", "below:detach:abort"]
        );
    }
    assert_eq!(disk.stack().await.len(), 2);
    disk.submit(write_of(0, 1, 512)).await.unwrap();
}

#[tokio::test]
async fn classes_are_ordered_unique_and_named_once() {
    let all = [
        ("t", Class::Transform),
        ("c", Class::Cache),
        ("r", Class::Replicate),
        ("q", Class::Qos),
        ("i", Class::Inspect),
        ("i2", Class::Inspect),
        ("c2", Class::Cache),
    ];
    let mut registry = FilterRegistry::default();
    for (name, class) in all {
        registry = registry.with(passing(
            every_op(name, class)
                .with_content(Content::Unchanged)
                .with_rechain(Rechain::Live),
        ));
    }
    let disk = Disk::builder(TestDevice::native(), TokioRt::new())
        .policy(Policy::empty(), registry)
        .open()
        .await
        .unwrap();
    for (name, _) in &all[..6] {
        disk.attach(FilterSpec::new(*name)).await.unwrap();
    }
    let names: Vec<_> = disk
        .stack()
        .await
        .into_iter()
        .map(|spec| spec.name)
        .collect();
    assert_eq!(names, ["i", "i2", "q", "r", "c", "t"]);
    for name in ["i", "c2"] {
        assert_eq!(
            disk.attach(FilterSpec::new(name)).await.unwrap_err().kind(),
            ErrorKind::Config,
            "{name}"
        );
    }
    assert_eq!(
        disk.replace("q", FilterSpec::new("c2"))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Config,
        "another class"
    );
    disk.replace("c", FilterSpec::new("c2")).await.unwrap();
    assert_eq!(
        disk.detach("nope", DirtyDisposition::Refuse)
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Config
    );
}

#[tokio::test]
async fn rechain_rules_hold() {
    let counted = Counted::new(every_op("xor", Class::Transform), 1);
    let offline = passing(every_op("offline", Class::Inspect).with_rechain(Rechain::Offline));
    let disk = open_one(TestDevice::native(), &counted, vec![offline], false).await;
    assert_eq!(
        disk.detach("offline", DirtyDisposition::Refuse)
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Refused
    );
    assert_eq!(
        disk.replace("offline", FilterSpec::new("offline"))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Refused
    );
    disk.attach(FilterSpec::new("xor")).await.unwrap();
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    assert_eq!(
        disk.detach("xor", DirtyDisposition::Refuse)
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Refused,
        "data"
    );
    disk.submit(Io::discard(Extent::new(0, 1 << 20)))
        .await
        .unwrap();
    disk.detach("xor", DirtyDisposition::Refuse).await.unwrap();
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    let error = disk.attach(FilterSpec::new("xor")).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.filter()),
        (ErrorKind::Refused, Some("xor"))
    );
}

#[tokio::test]
async fn reserved_slots_are_checked_and_given_back() {
    let greedy = passing(every_op("greedy", Class::Inspect).with_reserved_slots(200));
    let (_, registry) = registry(vec![greedy]);
    let mut limits = DiskSettings::default();
    limits.slots_max = 300;
    let disk = Disk::builder(TestDevice::native(), TokioRt::new())
        .policy(Policy::empty(), registry)
        .settings(limits)
        .open()
        .await
        .unwrap();
    let port = disk.port(100).unwrap();
    assert_eq!(
        disk.attach(FilterSpec::new("greedy"))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Busy
    );
    drop(port);
    for _ in 0..3 {
        disk.attach(FilterSpec::new("greedy")).await.unwrap();
        assert!(disk.port(100).is_err());
        disk.detach("greedy", DirtyDisposition::Refuse)
            .await
            .unwrap();
    }
    assert!(disk.port(236).is_ok());
}

#[tokio::test(start_paused = true)]
async fn dirty_disposition_decides_what_becomes_of_dirty_data() {
    for (disposition, ok, content) in [
        (DirtyDisposition::Refuse, false, 0),
        (DirtyDisposition::Flush, true, 7),
        (DirtyDisposition::Discard { bytes_max: 511 }, false, 0),
        (DirtyDisposition::Discard { bytes_max: 512 }, true, 0),
    ] {
        let toy = Toy::new("toy", Class::Cache);
        let device = TestDevice::native();
        let registry = FilterRegistry::default().with(toy.clone());
        let policy = Policy::empty().with(FilterSpec::new("toy"));
        let disk = Disk::builder(Arc::<TestDevice>::clone(&device), TokioRt::new())
            .policy(policy, registry)
            .open()
            .await
            .unwrap();
        disk.submit(write_of(0, 7, 512)).await.unwrap();
        let result = disk.detach("toy", disposition).await;
        assert_eq!(result.is_ok(), ok, "{disposition:?}");
        if let Err(error) = result {
            assert_eq!(
                (error.kind(), error.filter()),
                (ErrorKind::Refused, Some("toy"))
            );
            assert!(error.message().contains("dirty_bytes=512"));
            assert_eq!(read_all(&disk, 0, 512).await, vec![7; 512]);
        }
        assert_eq!(
            device.content(0, 512),
            vec![content; 512],
            "{disposition:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn detach_with_flush_under_load_leaves_nothing_behind() {
    let toy = Toy::new("toy", Class::Cache).slow(ms(5));
    let device = TestDevice::native();
    let registry = FilterRegistry::default().with(toy.clone());
    let policy = Policy::empty().with(FilterSpec::new("toy"));
    let disk = Disk::builder(device, TokioRt::new())
        .policy(policy, registry)
        .open()
        .await
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let running = tokio::spawn({
        let (disk, stop) = (disk.clone(), Arc::clone(&stop));
        async move {
            let mut last = [0u8; 16];
            for n in 0..u64::MAX {
                if stop.load(Ordering::Relaxed) {
                    return (disk, last);
                }
                last[(n % 16) as usize] = n as u8;
                disk.submit(write_of(n % 16 * 512, n as u8, 512))
                    .await
                    .unwrap();
                tokio::time::sleep(ms(2)).await;
            }
            unreachable!()
        }
    });
    sleep(ms(100)).await;
    within(60, disk.detach("toy", DirtyDisposition::Flush))
        .await
        .unwrap();
    assert_eq!(toy.dirty_blocks(), 0);
    sleep(ms(50)).await;
    stop.store(true, Ordering::Relaxed);
    let (disk, last) = running.await.unwrap();
    for (n, byte) in last.iter().enumerate() {
        assert_eq!(read_all(&disk, n as u64 * 512, 512).await, vec![*byte; 512]);
    }
}

async fn open_over(
    device: &Arc<TestDevice>,
    sidecar: &Arc<MemorySidecar>,
    filters: Vec<Custom>,
) -> Result<Disk> {
    let (policy, registry) = registry(filters);
    Disk::builder(Arc::<TestDevice>::clone(device), TokioRt::new())
        .policy(policy, registry)
        .sidecar(Arc::<MemorySidecar>::clone(sidecar))
        .open()
        .await
}

fn transform(name: &'static str) -> Custom {
    passing(every_op(name, Class::Transform))
}

#[tokio::test]
async fn disk_is_never_opened_without_what_its_content_needs() {
    let (device, sidecar) = (TestDevice::native(), Arc::<MemorySidecar>::default());
    let cache = || passing(every_op("cache", Class::Cache));
    let disk = open_over(
        &device,
        &sidecar,
        vec![cache(), transform("a"), transform("b")],
    )
    .await
    .unwrap();
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    drop(disk);
    let refused = async |filters: Vec<Custom>| {
        let error = open_over(&device, &sidecar, filters).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        error.message().to_owned()
    };
    assert!(
        refused(vec![transform("a"), transform("b")])
            .await
            .contains("missing=cache"),
        "it may be dirty"
    );
    assert!(
        refused(vec![cache(), transform("a")])
            .await
            .contains("missing=b")
    );
    assert!(
        refused(vec![cache(), transform("b"), transform("a")])
            .await
            .contains("wanted="),
        "wrong order"
    );
    assert!(refused(vec![]).await.contains("missing=cache"));
    let disk = open_over(
        &device,
        &sidecar,
        vec![cache(), transform("a"), transform("b")],
    )
    .await
    .unwrap();
    disk.close().await.unwrap();
    let disk = open_over(&device, &sidecar, vec![transform("a"), transform("b")])
        .await
        .unwrap();
    disk.close().await.unwrap();
    let plain = TestDevice::native();
    let disk = open_over(&plain, &Arc::default(), vec![]).await.unwrap();
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    disk.close().await.unwrap();
    let error = open_over(&plain, &Arc::default(), vec![transform("a")])
        .await
        .unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Refused,
        "data in clear under a transform"
    );
}

#[tokio::test]
async fn unclean_open_flushes_every_lower_device_before_its_first_reply() {
    #[derive(Debug)]
    struct Devices(Arc<TestDevice>);
    #[async_trait]
    impl DeviceProvider for Devices {
        async fn open_device(
            &self,
            _filter: &str,
            _name: &str,
            _spec: &str,
        ) -> Result<Arc<dyn BlockDevice>> {
            Ok(Arc::<TestDevice>::clone(&self.0))
        }
    }
    const LOG: &[DeviceNeed] = &[DeviceNeed {
        name: "log",
        capacity_min: 4096,
    }];
    const SETTINGS: &[SettingSpec] = &[SettingSpec {
        name: "log",
        kind: SettingKind::Path,
        default: None,
        summary: "the log",
    }];
    let (device, log) = (TestDevice::volatile(), TestDevice::volatile());
    let sidecar = Arc::<MemorySidecar>::default();
    let reasons: Arc<Mutex<Vec<OpenReason>>> = Arc::default();
    let open_it = async || {
        let seen = Arc::clone(&reasons);
        let cache = passing(
            every_op("cache", Class::Cache)
                .with_devices(LOG)
                .with_settings(SETTINGS),
        )
        .on_open(move |cx| {
            seen.lock().unwrap().push(cx.reason());
            assert!(cx.device("log").is_ok() && cx.device("other").is_err());
            Ok(())
        });
        let registry = FilterRegistry::default().with(cache);
        let policy = Policy::empty().with(FilterSpec::new("cache").with("log", "x"));
        Disk::builder(Arc::<TestDevice>::clone(&device), TokioRt::new())
            .policy(policy, registry)
            .devices(Arc::new(Devices(Arc::clone(&log))))
            .sidecar(Arc::<MemorySidecar>::clone(&sidecar))
            .open()
            .await
            .unwrap()
    };
    let disk = open_it().await;
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    drop(disk);
    device.forget();
    let disk = open_it().await;
    read_all(&disk, 0, 512).await;
    assert_eq!(
        device.started()[0],
        Op::Flush,
        "before anything is answered"
    );
    assert_eq!(log.started(), [Op::Flush]);
    disk.close().await.unwrap();
    drop(disk);
    device.forget();
    let _disk = open_it().await;
    assert!(
        device.started().is_empty() && log.count(OpKind::Flush) == 1,
        "a clean open needs none"
    );
    assert_eq!(
        *reasons.lock().unwrap(),
        [OpenReason::Attach, OpenReason::Unclean, OpenReason::Clean]
    );
}

/// Found by the barrier audit of vaio-cache: its own flush at an attach was needed, and any filter
/// that answers flushes from what it holds would need one.
#[tokio::test(start_paused = true)]
async fn what_was_told_before_is_durable_below_a_filter_that_joins_and_holds_data() {
    // Whether a flush came after the last write, when the filter opens.
    async fn flushed_at_open(content: Content, replaced: bool) -> bool {
        let device = TestDevice::volatile();
        let seen = Arc::new(Mutex::new(None));
        let (looked, at) = (Arc::clone(&seen), Arc::clone(&device));
        let descriptor = |name| {
            every_op(name, Class::Cache)
                .with_bypass(BypassSafety::Never)
                .with_content(content)
        };
        let new = passing(descriptor("new")).on_open(move |cx| {
            let is_flushed = at.started().last() == Some(&Op::Flush);
            *looked.lock().unwrap() = Some((cx.reason(), is_flushed));
            Ok(())
        });
        let registry = FilterRegistry::default()
            .with(passing(descriptor("old")))
            .with(new);
        let policy = if replaced {
            Policy::empty().with(FilterSpec::new("old"))
        } else {
            Policy::empty()
        };
        let disk = Disk::builder(Arc::<TestDevice>::clone(&device), TokioRt::new())
            .policy(policy, registry)
            .open()
            .await
            .unwrap();
        disk.submit(write_of(0, 1, 512)).await.unwrap();
        if replaced {
            disk.replace("old", FilterSpec::new("new")).await.unwrap();
        } else {
            disk.attach(FilterSpec::new("new")).await.unwrap();
        }
        let (reason, is_flushed) = seen.lock().unwrap().take().unwrap();
        assert_eq!(reason, OpenReason::Attach);
        is_flushed
    }
    for replaced in [false, true] {
        assert!(flushed_at_open(Content::Held, replaced).await);
    }
    assert!(!flushed_at_open(Content::Unchanged, false).await);
}

/// A filter above that answers flushes by itself does not hide the device from one that joins; nor
/// does the one that is replaced, nor one that failed.
#[tokio::test(start_paused = true)]
async fn flush_for_a_filter_that_joins_enters_below_it() {
    let answering = |name, class| {
        let descriptor = every_op(name, class)
            .with_bypass(BypassSafety::Never)
            .with_content(Content::Held);
        custom(descriptor, |io, next| {
            assert!(io.op.kind() != OpKind::Discard, "made to fail");
            match io.op {
                Op::Flush => Box::pin(async { Ok(Reply::Done) }),
                _ => Box::pin(next.submit(io)),
            }
        })
    };
    for (joins, is_replaced, has_failed) in [
        ("cache", false, false),
        ("cache2", true, false),
        ("cache2", true, true),
    ] {
        let first = if is_replaced { "cache" } else { "replicator" };
        let device = TestDevice::volatile();
        let registry = FilterRegistry::default()
            .with(answering("cache", Class::Cache))
            .with(answering("cache2", Class::Cache))
            .with(answering("replicator", Class::Replicate));
        let disk = Disk::builder(Arc::<TestDevice>::clone(&device), TokioRt::new())
            .policy(Policy::empty().with(FilterSpec::new(first)), registry)
            .open()
            .await
            .unwrap();
        disk.submit(write_of(0, 1, 512)).await.unwrap();
        if has_failed {
            disk.submit(Io::discard(Extent::new(0, 512)))
                .await
                .unwrap_err();
        }
        assert_eq!(device.count(OpKind::Flush), 0);
        if is_replaced {
            disk.replace("cache", FilterSpec::new(joins)).await.unwrap();
        } else {
            disk.attach(FilterSpec::new(joins)).await.unwrap();
        }
        assert!(device.count(OpKind::Flush) > 0, "{joins} {is_replaced}");
    }
}

#[tokio::test(start_paused = true)]
async fn attach_over_a_device_whose_flush_hangs_is_given_up_and_the_guest_goes_on() {
    let device = TestDevice::volatile();
    device.slow(secs(3600), |op| *op == Op::Flush);
    let holds = passing(
        every_op("holds", Class::Cache)
            .with_bypass(BypassSafety::Never)
            .with_content(Content::Held),
    );
    let disk = Disk::builder(Arc::<TestDevice>::clone(&device), TokioRt::new())
        .policy(Policy::empty(), FilterRegistry::default().with(holds))
        .open()
        .await
        .unwrap();
    disk.submit(write_of(0, 1, 512)).await.unwrap();
    let attach = disk.attach(FilterSpec::new("holds"));
    let error = within(120, attach).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{}", error.to_line());
    within(1, disk.submit(write_of(0, 2, 512))).await.unwrap();
    assert!(disk.state().layers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn attach_over_a_device_that_cannot_flush_fails_and_the_disk_goes_on() {
    let device = TestDevice::volatile();
    let holds = passing(
        every_op("holds", Class::Cache)
            .with_bypass(BypassSafety::Never)
            .with_content(Content::Held),
    );
    let (policy, registry) = (Policy::empty(), FilterRegistry::default().with(holds));
    let disk = Disk::builder(Arc::<TestDevice>::clone(&device), TokioRt::new())
        .policy(policy, registry)
        .open()
        .await
        .unwrap();
    device.hook(|io| {
        let result = if io.op == Op::Flush {
            Err(Error::new(ErrorKind::Io, "no flush"))
        } else {
            Ok(())
        };
        Box::pin(async move { result })
    });
    let error = disk.attach(FilterSpec::new("holds")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(disk.state().layers.is_empty());
    disk.submit(write_of(0, 1, 512)).await.unwrap();
}

/// A quiesced disk is held for a snapshot below it, and nothing may write there. A verb that
/// flushed and swapped went on meanwhile, and `release` still said that it held.
#[tokio::test(start_paused = true)]
async fn verb_on_a_quiesced_disk_does_not_write_below_it() {
    let toy = Toy::new("toy", Class::Cache);
    let device = TestDevice::native();
    let registry = FilterRegistry::default().with(toy.clone());
    let policy = Policy::empty().with(FilterSpec::new("toy"));
    let disk = Disk::builder(Arc::<TestDevice>::clone(&device), TokioRt::new())
        .policy(policy, registry)
        .open()
        .await
        .unwrap();
    disk.submit(write_of(0, 7, 512)).await.unwrap();
    let guard = disk
        .quiesce(Level::CacheDurable, Instant::from_nanos(5_000_000_000))
        .await
        .unwrap();
    device.forget();
    let detached = disk.detach("toy", DirtyDisposition::Flush).await;
    let wrote = device.count(OpKind::Write) > 0;
    let release = guard.release();
    assert!(
        !wrote || release == Release::ThawedEarly,
        "torn and not told: {detached:?}"
    );
    assert_eq!(detached.unwrap_err().kind(), ErrorKind::Busy);
}

#[tokio::test]
async fn close_of_a_quiesced_disk_tells_the_guard() {
    let disk = open(RamDisk::new(1 << 20), vec![]).await;
    let guard = disk
        .quiesce(Level::Drained, Instant::from_nanos(5_000_000_000))
        .await
        .unwrap();
    disk.close().await.unwrap();
    assert_eq!(guard.release(), Release::ThawedEarly);
}
