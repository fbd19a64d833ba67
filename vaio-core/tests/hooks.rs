//! Filters that are passed by their hooks: told in order, exactly once, counted and contained like
//! any other.
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

use std::sync::{Arc, Mutex, OnceLock};

use proptest::prelude::*;
use support::*;
use vaio_core::*;

type Log = Arc<Mutex<Vec<String>>>;
type Before = Box<dyn Fn(&Io) -> Verdict + Send + Sync>;
type After = Box<dyn Fn(&Passed) + Send + Sync>;

/// Hooks that write down what they hear.
struct Told {
    name: &'static str,
    log: Log,
    before: Before,
    after: After,
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Hooks for Told {
    fn before(&self, io: &Io) -> Verdict {
        let line = format!("{} before {} {}", self.name, io.op.kind(), io.op.extent());
        self.log.lock().unwrap().push(line);
        (self.before)(io)
    }

    fn after(&self, io: &Passed, answer: Option<&Result<Reply>>) {
        let what = match answer {
            Some(Ok(_)) => "ok".to_owned(),
            Some(Err(error)) => format!("{:?}", error.kind()),
            None => "let go".to_owned(),
        };
        let line = format!("{} after {} {} {what}", self.name, io.kind, io.extent);
        self.log.lock().unwrap().push(line);
        (self.after)(io);
    }
}

/// A filter whose hooks decide by `before`; its `io` writes that it was called.
fn hooked_by(
    name: &'static str,
    bypass: BypassSafety,
    log: &Log,
    before: impl Fn(&Io) -> Verdict + Send + Sync + 'static,
    after: impl Fn(&Passed) + Send + Sync + 'static,
) -> Custom {
    let own = Arc::clone(log);
    let descriptor = every_op(name, Class::Inspect)
        .with_content(Content::Unchanged)
        .with_bypass(bypass);
    let mut filter = custom(descriptor, move |io, next| {
        own.lock().unwrap().push(format!("{name} io"));
        Box::pin(next.submit(io))
    });
    filter.hooks = Some(Arc::new(Told {
        name,
        log: Arc::clone(log),
        before: Box::new(before),
        after: Box::new(after),
    }));
    filter
}

fn hooked(name: &'static str, log: &Log) -> Custom {
    hooked_by(name, BypassSafety::Always, log, |_| Verdict::Pass, |_| ())
}

fn taken(log: &Log) -> Vec<String> {
    std::mem::take(&mut *log.lock().unwrap())
}

#[tokio::test(start_paused = true)]
async fn hooks_are_called_down_and_up_in_order_and_io_only_where_they_say_so() {
    for is_slow in [false, true] {
        let log = Log::default();
        let device = TestDevice::native();
        if is_slow {
            device.slow(ms(1), |_| true);
        }
        let choosy = hooked_by(
            "choosy",
            BypassSafety::Always,
            &log,
            |io| match io.op.kind() {
                OpKind::Read => Verdict::Pass,
                _ => Verdict::Call,
            },
            |_| (),
        );
        let filters = vec![hooked("top", &log), choosy, hooked("low", &log)];
        let disk = open(Arc::clone(&device), filters).await;
        disk.submit(Io::read(Extent::new(512, 512))).await.unwrap();
        let extent = Extent::new(512, 512);
        assert_eq!(
            taken(&log),
            [
                format!("top before read {extent}"),
                format!("choosy before read {extent}"),
                format!("low before read {extent}"),
                format!("low after read {extent} ok"),
                format!("choosy after read {extent} ok"),
                format!("top after read {extent} ok"),
            ]
        );
        disk.submit(write_of(512, 7, 512)).await.unwrap();
        assert_eq!(
            taken(&log),
            [
                format!("top before write {extent}"),
                format!("choosy before write {extent}"),
                "choosy io".to_owned(),
                format!("low before write {extent}"),
                format!("low after write {extent} ok"),
                format!("top after write {extent} ok"),
            ]
        );
        assert_eq!(device.content(512, 512), vec![7; 512]);
        for layer in &disk.stats().layers[..3] {
            assert_eq!((layer.ios[0].1, layer.ios[1].1), (1, 1), "{}", layer.name);
        }
        assert_eq!(device.violations(), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn hooks_hear_of_an_error_and_it_is_counted() {
    let log = Log::default();
    let device = TestDevice::native();
    device.hook(|_| Box::pin(async { Err(Error::new(ErrorKind::NoSpace, "full")) }));
    let disk = open(device, vec![hooked("top", &log)]).await;
    let error = disk.submit(write_of(0, 7, 512)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(taken(&log)[1].ends_with("NoSpace"));
    assert_eq!(disk.stats().layers[0].errors, 1);
}

#[tokio::test(start_paused = true)]
async fn own_time_of_a_passed_filter_is_told_from_the_time_below() {
    let log = Log::default();
    let device = TestDevice::native();
    device.slow(ms(3), |_| true);
    let disk = open(device, vec![hooked("top", &log), hooked("low", &log)]).await;
    timed(&disk, Io::read(Extent::new(0, 512))).await;
    let stats = disk.stats();
    for layer in &stats.layers[..2] {
        assert_eq!(layer.total.count, 1, "{}", layer.name);
        assert_eq!(layer.own.max_ns, 0, "virtual time stands still in a hook");
        assert!(layer.total.p50_ns >= 3_000_000);
    }
    assert!(stats.layers[2].own.p50_ns >= 3_000_000, "the device");
}

/// One IO in [`SAMPLE_EVERY`] is timed: the first of a port is.
async fn timed(disk: &Disk, io: Io) {
    let mut port = disk.port(1).unwrap();
    for n in 0..SAMPLE_EVERY {
        port.push(n, io.clone()).unwrap();
        assert_eq!(disk.polling(), None);
        let done = std::future::poll_fn(|cx| {
            let poll = port.poll_complete(cx);
            assert_eq!(disk.polling(), None, "nothing runs between polls");
            poll
        });
        done.await.result.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn time_of_what_is_emulated_below_is_not_the_hooked_filters_own() {
    let log = Log::default();
    let device = TestDevice::volatile();
    device.slow(ms(3), |_| true);
    let disk = open(device, vec![hooked("top", &log), hooked("low", &log)]).await;
    timed(&disk, write_of(0, 7, 512).with_fua()).await;
    for layer in &disk.stats().layers[..2] {
        assert_eq!(
            (layer.total.count, layer.own.max_ns),
            (1, 0),
            "{}",
            layer.name
        );
        assert!(layer.total.max_ns >= 6_000_000, "a write and a flush");
    }
}

#[tokio::test(start_paused = true)]
async fn time_below_a_bypassed_filter_is_not_the_hooked_filters_own() {
    let log = Log::default();
    let device = TestDevice::native();
    device.slow(ms(3), |_| true);
    let boom = hooked_by(
        "boom",
        BypassSafety::Always,
        &log,
        |_| panic!("once"),
        |_| (),
    );
    let disk = open(device, vec![hooked("top", &log), boom, hooked("low", &log)]).await;
    disk.submit(write_of(0, 7, 512)).await.unwrap();
    timed(&disk, write_of(0, 7, 512)).await;
    let stats = disk.stats();
    for at in [0, 2] {
        let layer = &stats.layers[at];
        assert_eq!(
            (layer.total.count, layer.own.max_ns),
            (1, 0),
            "{}",
            layer.name
        );
    }
}

#[tokio::test(start_paused = true)]
async fn before_and_after_tell_the_same_number() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (befores, afters) = (Arc::clone(&seen), Arc::clone(&seen));
    let low = hooked_by(
        "low",
        BypassSafety::Always,
        &Log::default(),
        move |io| {
            befores.lock().unwrap().push(io.id);
            Verdict::Pass
        },
        move |io| afters.lock().unwrap().push(io.id),
    );
    // Sends reads of its own beside the guest's IO.
    let reader = custom(every_op("reader", Class::Inspect), |io, next| {
        Box::pin(async move {
            next.read(Extent::new(0, 512)).await?;
            next.submit(io).await
        })
    });
    for reader_first in [false, true] {
        let mut filters = vec![low.clone()];
        if reader_first {
            filters.insert(0, reader.clone());
        }
        let disk = open(TestDevice::native(), filters).await;
        disk.submit(write_of(0, 7, 512)).await.unwrap();
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(seen.len(), if reader_first { 4 } else { 2 });
        assert!(seen.chunks(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
        assert_ne!(seen[seen.len() - 1], 0, "the guest's");
    }
}

#[tokio::test(start_paused = true)]
async fn let_go_of_across_a_filter_in_between_the_order_is_bottom_to_top() {
    let log = Log::default();
    let device = TestDevice::native();
    device.slow(ms(500), |_| true);
    let filters = vec![
        timing_out("impatient", ms(100), false),
        hooked("high", &log),
        passing(every_op("plain", Class::Inspect)),
        hooked("low", &log),
    ];
    let disk = open(Arc::clone(&device), filters).await;
    disk.submit(write_of(0, 7, 512)).await.unwrap_err();
    let extent = Extent::new(0, 512);
    assert_eq!(
        taken(&log)[2..],
        [
            format!("low after write {extent} let go"),
            format!("high after write {extent} let go"),
        ]
    );
}

/// Found by reading: the fence stood at the level of who let go, above the hooked filter, so that
/// filter's own read passed the write in flight.
#[tokio::test(start_paused = true)]
async fn io_of_a_hooked_filter_waits_for_what_was_let_go_of_below_it() {
    let log = Log::default();
    let device = TestDevice::native();
    device.slow(ms(500), |op| op.kind() == OpKind::Write);
    let own = Arc::new(OnceLock::<AttachContext>::new());
    let keep = Arc::clone(&own);
    let low = hooked("low", &log).on_open(move |cx| {
        keep.set(cx.clone()).unwrap();
        Ok(())
    });
    let filters = vec![timing_out("impatient", ms(100), false), low];
    let disk = open(Arc::clone(&device), filters).await;
    disk.submit(write_of(0, 7, 512)).await.unwrap_err();
    let read = own.get().unwrap().lower().read(0, 512).await;
    assert_eq!(read.unwrap(), vec![7; 512], "after the write");
}

#[tokio::test(start_paused = true)]
async fn hook_that_runs_is_the_one_that_is_named_as_running() {
    let log = Log::default();
    let disk = Arc::new(OnceLock::<Disk>::new());
    let seen = Arc::new(Mutex::new(Vec::<Option<Arc<str>>>::new()));
    let named = |name| {
        let look = || {
            let (disk, seen) = (Arc::clone(&disk), Arc::clone(&seen));
            move || {
                let polling = disk.get().and_then(Disk::polling);
                seen.lock().unwrap().push(polling);
            }
        };
        let (before, after) = (look(), look());
        let pass = move |_: &Io| {
            before();
            Verdict::Pass
        };
        hooked_by(name, BypassSafety::Always, &log, pass, move |_| after())
    };
    let mut called = {
        let (disk, seen) = (Arc::clone(&disk), Arc::clone(&seen));
        custom(every_op("called", Class::Inspect), move |io, next| {
            seen.lock()
                .unwrap()
                .push(disk.get().and_then(Disk::polling));
            Box::pin(next.submit(io))
        })
    };
    let call = hooked_by("", BypassSafety::Always, &log, |_| Verdict::Call, |_| ());
    called.hooks = call.hooks;
    let filters = vec![named("top"), called, named("low")];
    let opened = open(TestDevice::native(), filters).await;
    disk.set(opened).unwrap();
    let disk = disk.get().unwrap();
    disk.submit(write_of(0, 7, 512)).await.unwrap();
    let seen: Vec<_> = seen.lock().unwrap().drain(..).flatten().collect();
    assert_eq!(
        seen.iter().map(AsRef::as_ref).collect::<Vec<&str>>(),
        ["top", "called", "low", "low", "top"]
    );
    assert_eq!(disk.polling(), None);
}

#[tokio::test(start_paused = true)]
async fn hook_that_panics_before_is_blamed_and_nothing_is_lost() {
    for bypass in [
        BypassSafety::Always,
        BypassSafety::WhenClean,
        BypassSafety::Never,
    ] {
        let log = Log::default();
        let device = TestDevice::native();
        device.slow(ms(1), |_| true);
        let boom = hooked_by("boom", bypass, &log, |_| panic!("in before"), |_| ());
        let filters = vec![hooked("top", &log), boom, hooked("low", &log)];
        let disk = open(Arc::clone(&device), filters).await;
        let result = disk.submit(write_of(0, 7, 512)).await;
        let told = taken(&log);
        let panicked = events_of(&disk, EventKind::FilterPanicked);
        assert_eq!(panicked[0].filter.as_deref(), Some("boom"));
        assert!(panicked[0].text.contains("in before"), "{panicked:?}");
        if bypass == BypassSafety::Never {
            let error = result.unwrap_err();
            assert_eq!(
                (error.kind(), error.filter()),
                (ErrorKind::FilterFault, Some("boom"))
            );
            assert_eq!(device.count(OpKind::Write), 0);
            assert_eq!(told.len(), 3, "{told:?}");
            assert_eq!(disk.state().layers[1].health, Health::Faulted);
        } else {
            result.unwrap();
            assert_eq!(device.content(0, 512), vec![7; 512]);
            assert_eq!(device.count(OpKind::Write), 1, "once");
            assert_eq!(told.len(), 5, "{told:?}");
            assert_eq!(disk.state().layers[1].health, Health::Bypassed);
            disk.submit(write_of(512, 7, 512)).await.unwrap();
            assert_eq!(taken(&log).len(), 4, "later IO goes past it");
        }
        assert!(told.last().unwrap().starts_with("top after"), "{told:?}");
        assert_eq!(disk.state().in_flight, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn hook_that_panics_after_is_blamed_and_those_above_are_told() {
    for bypass in [BypassSafety::Always, BypassSafety::Never] {
        let log = Log::default();
        let device = TestDevice::native();
        let boom = hooked_by("boom", bypass, &log, |_| Verdict::Pass, |_| panic!("after"));
        let disk = open(device, vec![hooked("top", &log), boom]).await;
        let result = disk.submit(write_of(0, 7, 512)).await;
        let told = taken(&log);
        let panicked = events_of(&disk, EventKind::FilterPanicked);
        assert_eq!(panicked[0].filter.as_deref(), Some("boom"));
        if bypass == BypassSafety::Never {
            assert_eq!(result.unwrap_err().filter(), Some("boom"));
            assert!(told[3].ends_with("FilterFault"), "{told:?}");
            disk.submit(write_of(0, 7, 512)).await.unwrap_err();
        } else {
            result.unwrap();
            assert!(told[3].ends_with("ok"), "{told:?}");
            disk.submit(write_of(0, 7, 512)).await.unwrap();
        }
        assert_eq!(disk.state().in_flight, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn filter_that_panics_as_it_gives_its_hooks_is_not_opened() {
    #[derive(Clone, Debug)]
    struct Bad;
    #[async_trait::async_trait]
    impl Filter for Bad {
        async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
            next.submit(io).await
        }
        fn hooks(self: Arc<Self>) -> Option<Arc<dyn Hooks>> {
            panic!("no hooks")
        }
        fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
            Ok(*below)
        }
        async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
            Ok(Outcome::Done)
        }
    }
    #[async_trait::async_trait]
    impl FilterFactory for Bad {
        fn descriptor(&self) -> Descriptor {
            every_op("bad", Class::Inspect)
        }
        async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
            Ok(())
        }
        async fn open(&self, _cx: AttachContext) -> Result<Arc<dyn Filter>> {
            Ok(Arc::new(Self))
        }
    }
    let policy = Policy::empty().with(FilterSpec::new("bad"));
    let error = Disk::builder(Arc::new(RamDisk::new(1 << 20)), TokioRt::new())
        .policy(policy, FilterRegistry::default().with(Bad))
        .open()
        .await
        .unwrap_err();
    assert_eq!(error.filter(), Some("bad"), "{}", error.to_line());
}

#[tokio::test(start_paused = true)]
async fn let_go_of_by_a_filter_above_the_hooks_are_told_once_and_the_io_ends() {
    let log = Log::default();
    let device = TestDevice::native();
    device.slow(ms(500), |op| op.kind() == OpKind::Write);
    let filters = vec![
        hooked("top", &log),
        timing_out("impatient", ms(100), false),
        hooked("low", &log),
        hooked("lowest", &log),
    ];
    let disk = open(Arc::clone(&device), filters).await;
    let error = disk.submit(write_of(0, 7, 512)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let extent = Extent::new(0, 512);
    assert_eq!(
        taken(&log)[3..],
        [
            format!("lowest after write {extent} let go"),
            format!("low after write {extent} let go"),
            format!("top after write {extent} TimedOut"),
        ]
    );
    let orphaned = events_of(&disk, EventKind::IoOrphaned);
    assert_eq!(orphaned[0].filter.as_deref(), Some("impatient"));
    // Whoever overlaps it waits for its end, before any hook hears of it.
    let mut read = Box::pin(disk.submit(Io::read(extent)));
    assert!(poll_once(&mut read).await.is_none());
    assert_eq!(taken(&log), [""; 0], "waits for the fence");
    sleep(ms(500)).await;
    assert_eq!(device.content(0, 512), vec![7; 512]);
    assert_eq!(read.await.unwrap().into_data(), vec![7; 512]);
    assert_eq!(taken(&log).len(), 6);
    assert_eq!((disk.state().orphans, disk.state().in_flight), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_emulated_below_hooks_is_one_io_to_them() {
    let log = Log::default();
    let device = TestDevice::volatile();
    device.slow(ms(1), |_| true);
    let disk = open(Arc::clone(&device), vec![hooked("top", &log)]).await;
    disk.submit(write_of(0, 7, 512).with_fua()).await.unwrap();
    assert_eq!(device.count(OpKind::Flush), 1);
    let extent = Extent::new(0, 8192);
    disk.submit(Io::write_zeroes(extent)).await.unwrap();
    let told = taken(&log);
    assert_eq!(told.len(), 4, "{told:?}");
    assert_eq!(told[3], format!("top after write_zeroes {extent} ok"));
    assert_eq!(disk.stats().layers[0].ios[2].1, 1);
    assert_eq!(device.content(0, 8192), vec![0; 8192]);
    assert_eq!(device.violations(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn hooked_filter_that_passes_what_is_out_of_range_below_is_named() {
    let log = Log::default();
    let mut wide = hooked_by("wide", BypassSafety::Never, &log, |_| Verdict::Pass, |_| ());
    wide.shape = |below| {
        let mut info = *below;
        info.capacity *= 2;
        Ok(info)
    };
    let disk = open(TestDevice::native(), vec![hooked("top", &log), wide]).await;
    let error = disk.submit(write_of(1 << 20, 7, 512)).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.filter()),
        (ErrorKind::FilterFault, Some("wide"))
    );
    let told = taken(&log);
    assert_eq!(told.len(), 4, "each was told: {told:?}");
    assert!(
        told.iter()
            .skip(2)
            .all(|line| line.ends_with("FilterFault"))
    );
}

/// What stands at a place of a random chain.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Passed by hooks.
    Hooked(BypassSafety),
    /// Has hooks that call `io` for odd offsets.
    Choosy,
    /// Has no hooks.
    Plain(BypassSafety),
    /// Lets go after 2 ms.
    Impatient,
    /// Panics in a hook, for one IO in eight.
    Boom { in_after: bool },
}

fn place() -> impl Strategy<Value = Place> {
    let bypass = prop_oneof![Just(BypassSafety::Always), Just(BypassSafety::Never)];
    prop_oneof![
        4 => bypass.clone().prop_map(Place::Hooked),
        2 => Just(Place::Choosy),
        2 => bypass.prop_map(Place::Plain),
        1 => Just(Place::Impatient),
        1 => any::<bool>().prop_map(|in_after| Place::Boom { in_after }),
    ]
}

const NAMES: [&str; 6] = ["f0", "f1", "f2", "f3", "f4", "f5"];

fn filter_at(place: Place, name: &'static str, log: &Log) -> Custom {
    let pass = |_: &Io| Verdict::Pass;
    match place {
        Place::Hooked(bypass) => hooked_by(name, bypass, log, pass, |_| ()),
        Place::Choosy => hooked_by(
            name,
            BypassSafety::Always,
            log,
            |io| match io.op.extent().offset() / 512 % 2 {
                0 => Verdict::Pass,
                _ => Verdict::Call,
            },
            |_| (),
        ),
        Place::Plain(bypass) => {
            let descriptor = every_op(name, Class::Inspect)
                .with_content(Content::Unchanged)
                .with_bypass(bypass);
            passing(descriptor)
        }
        Place::Impatient => timing_out(name, ms(2), false),
        Place::Boom { in_after } => hooked_by(
            name,
            BypassSafety::Always,
            log,
            move |io| {
                assert!(in_after || io.id % 8 != 3, "in before");
                Verdict::Pass
            },
            move |io| assert!(!in_after || io.id % 8 != 3, "in after"),
        ),
    }
}

/// Every `before` that passed has its one `after`, unless its filter was bypassed meanwhile; no
/// IO is lost, done twice or in flight for ever; and the content is what was acknowledged.
async fn run(places: Vec<Place>, ios: Vec<(u8, u8, bool)>) {
    let device = TestDevice::native();
    device.hook(|io| {
        let time = ms(io.op.extent().offset() / 512 % 4);
        Box::pin(async move {
            if !time.is_zero() {
                tokio::time::sleep(time).await;
            }
            Ok(())
        })
    });
    let log = Log::default();
    let filters = places
        .iter()
        .zip(NAMES)
        .map(|(place, name)| filter_at(*place, name, &log))
        .collect();
    let disk = open(Arc::clone(&device), filters).await;
    let jobs = ios.iter().map(|&(at, byte, is_write)| {
        let offset = u64::from(at % 8) * 512;
        let io = if is_write {
            write_of(offset, byte, 512)
        } else {
            Io::read(Extent::new(offset, 512))
        };
        disk.submit(io)
    });
    let answers = within(60, futures::future::join_all(jobs)).await;
    within(60, async {
        while disk.state().in_flight > 0 {
            sleep(ms(1)).await;
        }
    })
    .await;
    let is_impatient = places.iter().any(|place| matches!(place, Place::Impatient));
    for answer in &answers {
        if let Err(error) = answer {
            assert!(
                is_impatient && error.kind() == ErrorKind::TimedOut,
                "{}",
                error.to_line()
            );
        }
    }
    let writes = ios.iter().filter(|(.., is_write)| *is_write).count();
    let below = device.count(OpKind::Write);
    assert_eq!(below, writes, "each write once below");
    let told = log.lock().unwrap();
    for (index, name) in NAMES[..places.len()].iter().enumerate() {
        let count = |what: &str| {
            let start = format!("{name} {what}");
            told.iter().filter(|line| line.starts_with(&start)).count()
        };
        let (before, after) = (count("before"), count("after"));
        match places[index] {
            Place::Hooked(_) => assert_eq!(before, after, "{name}: {told:?}"),
            Place::Choosy => assert_eq!(before, after + count("io"), "{name}: {told:?}"),
            Place::Boom { .. } => assert!(after <= before, "{name}: {told:?}"),
            Place::Plain(_) | Place::Impatient => {}
        }
    }
    assert_eq!(device.violations(), [""; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn every_io_that_passed_is_told_of_exactly_once(
        places in prop::collection::vec(place(), 1..=6),
        ios in prop::collection::vec((any::<u8>(), 1..=255u8, any::<bool>()), 1..24),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(places, ios));
    }
}
