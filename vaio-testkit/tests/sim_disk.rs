<<<<<<< HEAD
//! What processes see of a simulated disk: life and death, faults, fences.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, future::join};
use vaio_core::{
    BlockDevice, BlockDeviceExt, DeviceInfo, DeviceProvider, ErrorKind, Extent, Io, OpKind,
    SidecarStore, Support,
};
use vaio_testkit::{
    Choices, Family, Schedule, Sim, Tape,
    disk::{
        CrashPoint, Fate, Fault, Fill, Media, Moments, Rule, SimDevices, SimDisk, SimSidecar, Tier,
    },
};

fn info() -> DeviceInfo {
    DeviceInfo::new(8 * 512, 512).with_caps(|caps| {
        caps.volatile_cache = true;
        caps.fua = Support::Native;
    })
}

fn disk_in(sim: &Sim) -> SimDisk {
    SimDisk::new(
        sim,
        &Moments::default(),
        "disk",
        Media::new(info(), Fill::Zero),
    )
}

fn first_byte(disk: &SimDisk) -> u8 {
    disk.media().live().block(0)[0]
}

fn block(byte: u8) -> Bytes {
    Bytes::from(vec![byte; 512])
}

/// Takes a write on, in a process that dies before it is answered.
fn leave_in_flight(sim: &Sim, disk: &SimDisk, byte: u8) -> u64 {
    let host = sim.host("first");
    let (device, epoch) = disk.open(&host);
    let main = async {
        let mut write = device.write(0, block(byte)).boxed();
        assert!(futures::poll!(&mut write).is_pending());
        host.kill();
        epoch
    };
    sim.run(main).unwrap()
}

/// The tape on which that choice is 1 and all else benign.
fn tape_with(choice: &str) -> Tape {
    let text = format!("choose {choice} = 1\n");
    Tape::replay(text.parse::<Choices>().unwrap())
}

#[test]
fn mutation_in_flight_of_a_dead_process_is_decided_before_the_next_one() {
    for (tape, expected) in [(Tape::benign(), 0), (tape_with("crash disk.orphan#0"), 7)] {
        let sim = Sim::new(tape, Schedule::Fifo);
        let disk = disk_in(&sim);
        leave_in_flight(&sim, &disk, 7);
        let second = sim.host("second");
        let device = disk.handle(&second);
        assert_eq!(disk.in_flight(), 0);
        let data = sim
            .run(async { device.read(0, 512).await })
            .unwrap()
            .unwrap();
        assert_eq!(data, block(expected));
    }
}

#[test]
fn orphan_on_a_shared_disk_lands_after_newer_data_unless_fenced() {
    let plan = "choose crash disk.orphan#0 = 1\nchoose event disk.write#0 = 1\n";
    for (is_fenced, expected) in [(false, 7), (true, 8)] {
        let sim = Sim::new(Tape::replay(plan.parse().unwrap()), Schedule::Fifo);
        let disk = disk_in(&sim).shared();
        let old = leave_in_flight(&sim, &disk, 7);
        let (device, epoch) = disk.open(&sim.host("second"));
        assert!(old < epoch);
        if is_fenced {
            disk.fence(epoch);
            assert_eq!(first_byte(&disk), 7, "it lands now or never");
        }
        let main = async {
            device.write(0, block(8)).await.unwrap();
            assert_eq!(first_byte(&disk), 8);
            sim.sleep(Duration::from_secs(1)).await;
        };
        sim.run(main).unwrap();
        assert_eq!(first_byte(&disk), expected);
    }
}

#[test]
fn dead_handle_neither_reads_nor_writes() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let (disk, host) = (disk_in(&sim), sim.host("host"));
    let device = disk.handle(&host);
    host.kill();
    let main = async {
        assert!(device.write(0, block(1)).now_or_never().is_none());
        assert!(device.read(0, 512).now_or_never().is_none());
        sim.sleep(Duration::from_secs(1)).await;
    };
    sim.run(main).unwrap();
    assert_eq!(first_byte(&disk), 0);
    assert_eq!(disk.journal().ios().count(), 0);
}

#[test]
fn fenced_handle_is_refused() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let disk = disk_in(&sim).shared();
    let (one, other) = (sim.host("one"), sim.host("other"));
    let old = disk.handle(&one);
    let (new, epoch) = disk.open(&other);
    disk.fence(epoch);
    let (refused, done) = sim
        .run(join(old.write(0, block(1)), new.write(0, block(2))))
        .unwrap();
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Fenced);
    done.unwrap();
}

#[test]
fn flush_that_fails_once_loses_what_a_later_one_does_not_bring_back() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let (disk, host) = (disk_in(&sim), sim.host("host"));
    disk.faults(|faults| faults.add(Rule::once(Fault::Error).on(OpKind::Flush)));
    let device = disk.handle(&host);
    let main = async {
        device.write(0, block(1)).await.unwrap();
        assert_eq!(device.flush().await.unwrap_err().kind(), ErrorKind::Io);
        device.flush().await.unwrap();
    };
    sim.run(main).unwrap();
    host.kill();
    let point = CrashPoint::new([("disk", &disk.snapshot())]);
    let none = point
        .cases(&[Tier::None], &mut |_| 0, &mut |_| true)
        .remove(0);
    let spec = point.spec(&none);
    disk.lose_power(point.images(&none).remove(0), spec.of("disk"));
    assert_eq!(first_byte(&disk), 0);
    let fates: Vec<_> = disk.journal().ios().map(|io| io.fate).collect();
    assert_eq!(fates, [Fate::Lost, Fate::Failed, Fate::Acked]);
}

#[test]
fn io_that_hangs_goes_on_when_the_disk_is_quiet() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let (disk, host) = (disk_in(&sim), sim.host("host"));
    disk.faults(|faults| faults.add(Rule::once(Fault::Hang)));
    let device = disk.handle(&host);
    let until_quiet = async {
        sim.sleep(Duration::from_mins(30)).await;
        assert_eq!(first_byte(&disk), 0);
        disk.quiet();
    };
    let (written, ()) = sim
        .run(join(device.write(0, block(3)), until_quiet))
        .unwrap();
    written.unwrap();
    assert_eq!(first_byte(&disk), 3);
}

#[test]
fn each_fault_does_what_it_says() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let (disk, host) = (disk_in(&sim), sim.host("host"));
    let device = disk.handle(&host);
    let fault = |rule| disk.faults(|faults| faults.add(rule));
    let main = async {
        device.write(0, block(1)).await.unwrap();
        device.write(512, block(2)).await.unwrap();
        fault(Rule::once(Fault::NoSpace));
        assert_eq!(
            device.write(0, block(9)).await.unwrap_err().kind(),
            ErrorKind::NoSpace
        );
        fault(Rule::once(Fault::PhantomWrite));
        device.write(0, block(9)).await.unwrap();
        assert_eq!(device.read(0, 512).await.unwrap(), block(1));
        fault(Rule::once(Fault::MisdirectedRead));
        assert_eq!(device.read(0, 512).await.unwrap(), block(2));
        fault(Rule::once(Fault::MisdirectedWrite));
        device.write(0, block(3)).await.unwrap();
        assert_eq!(
            device.read(0, 1024).await.unwrap(),
            [block(1), block(3)].concat()
        );
        fault(Rule::once(Fault::BitRot));
        assert_eq!(device.read(0, 512).await.unwrap()[0], 0);
        fault(Rule::once(Fault::ShornWrite));
        device.write(0, block(5)).await.unwrap();
        let data = device.read(0, 512).await.unwrap();
        assert_eq!((data[255], data[256]), (5, 1));
        fault(Rule::always(Fault::Error).at(Extent::new(512, 512)));
        assert_eq!(
            device.read(512, 512).await.unwrap_err().kind(),
            ErrorKind::Io
        );
        device.read(1024, 512).await.unwrap();
        fault(Rule::once(Fault::Gone));
        assert_eq!(
            device.read(1024, 512).await.unwrap_err().kind(),
            ErrorKind::Gone
        );
        assert_eq!(device.flush().await.unwrap_err().kind(), ErrorKind::Gone);
        disk.restore();
        device.flush().await.unwrap();
    };
    sim.run(main).unwrap();
}

#[test]
fn what_no_device_is_asked_for_is_a_finding() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let (disk, host) = (disk_in(&sim), sim.host("host"));
    let device = disk.handle(&host);
    let ios = [
        Io::read(Extent::new(8 * 512, 512)),
        Io::read(Extent::new(1, 512)),
        Io::discard(Extent::new(0, 512)),
    ];
    for io in ios {
        let error = sim.run(device.submit(io)).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    let findings = disk.findings();
    assert_eq!(
        findings[0],
        "disk was asked for an extent past its end, op=read extent=4096+512"
    );
    assert!(findings[1].contains("misaligned") && findings[2].contains("op=discard"));
}

#[test]
fn completions_come_in_any_order() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let sim = Sim::new(Tape::random(seed), Schedule::Random);
        let (disk, host) = (disk_in(&sim), sim.host("host"));
        let device = disk.handle(&host);
        let (one, other) = (device.write(0, block(1)), device.write(0, block(2)));
        let (one, other) = sim.run(join(one, other)).unwrap();
        one.and(other).unwrap();
        seen.insert(first_byte(&disk));
    }
    assert_eq!(seen, [1, 2].into());
}

#[test]
fn sidecar_keeps_old_or_new_when_its_process_dies() {
    for (tape, expected) in [
        (Tape::benign(), "old"),
        (tape_with("crash side.replaced#0"), "new"),
    ] {
        let sim = Sim::new(tape, Schedule::Fifo);
        let side = SimSidecar::new(&sim, "side", Some(Bytes::from("old")));
        let host = sim.host("first");
        let store: Arc<dyn SidecarStore> = side.handle(&host);
        let main = async {
            let mut replace = store.replace(Bytes::from("new"));
            assert!(futures::poll!(&mut replace).is_pending());
            host.kill();
        };
        sim.run(main).unwrap();
        let both = [Some(Bytes::from("old")), Some(Bytes::from("new"))];
        assert_eq!(side.snapshot().images(), both);
        let second = sim.host("second");
        let store = side.handle(&second);
        assert_eq!(
            sim.run(store.load()).unwrap().unwrap(),
            Some(Bytes::from(expected))
        );
        sim.run(store.replace(Bytes::from("newer")))
            .unwrap()
            .unwrap();
        assert_eq!(side.snapshot().images(), [Some(Bytes::from("newer"))]);
    }
}

#[test]
fn devices_are_found_by_name() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let host = sim.host("host");
    let devices = SimDevices::new(&host, [disk_in(&sim)]);
    let main = async {
        let device = devices
            .open_device("cache", "device", "disk")
            .await
            .unwrap();
        assert_eq!(device.info().capacity, 4096);
        devices
            .open_device("cache", "device", "other")
            .await
            .unwrap_err()
            .kind()
    };
    assert_eq!(sim.run(main).unwrap(), ErrorKind::Config);
    assert_eq!(sim.tape().choose(1, Family::Op, "unused"), 0);
=======
//! The real `Disk` inside the simulated world: open, IO, quiesce, close, and the same again.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use vaio_core::*;
use vaio_testkit::{Choices, Schedule, Sim, Tape, first_difference};

/// Waits for an event of the environment around each IO, and ticks in the background.
#[derive(Clone, Debug)]
struct Slow(Sim);

#[async_trait]
impl Filter for Slow {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        self.0.event(None, io.op.kind().name()).await;
        next.submit(io).await
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }
}

#[async_trait]
impl FilterFactory for Slow {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new("slow", "1", Class::Inspect)
            .intercept(&OpKind::ALL)
            .accept_fua()
            .accept_zeroes_flags()
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let rt = Arc::clone(cx.rt());
        let stopped = cx.stopped();
        cx.spawn("ticker", async move {
            let mut stopped = std::pin::pin!(stopped);
            loop {
                let tick = rt.now() + Duration::from_micros(3);
                if rt.timeout_at(tick, &mut stopped).await.is_some() {
                    return;
                }
                rt.probe("tick");
            }
        });
        Ok(Arc::new(self.clone()))
    }
}

async fn open(sim: &Sim, rt: Rt) -> Disk {
    let spec = FilterSpec {
        name: "slow".into(),
        settings: BTreeMap::new(),
    };
    let registry = FilterRegistry::default().with(Slow(sim.clone()));
    Disk::builder(Arc::new(RamDisk::new(1 << 20)), rt)
        .policy(Policy::empty().with(spec), registry)
        .open()
        .await
        .unwrap()
}

/// One run; its world, so that traces can be compared.
fn run(tape: Tape, schedule: Schedule) -> Sim {
    let sim = Sim::new(tape, schedule);
    sim.trace().start(1 << 16);
    let rt = sim.host("vm1").rt();
    sim.run(async {
        let disk = open(&sim, Arc::clone(&rt)).await;
        let writes = (0..8u64).map(|block| {
            let data = vec![u8::try_from(block).unwrap() + 1; 512];
            disk.submit(Io::write(block * 512, data.into()))
        });
        for result in futures::future::join_all(writes).await {
            result.unwrap();
        }
        disk.submit(Io::flush()).await.unwrap();
        let read = disk.submit(Io::read(Extent::new(7 * 512, 512)));
        assert_eq!(read.await.unwrap().into_data(), vec![8; 512]);
        let deadline = rt.now() + Duration::from_secs(9);
        let quiesced = disk.quiesce(Level::CacheDurable, deadline).await.unwrap();
        drop(quiesced);
        disk.submit(Io::write(0, vec![9; 512].into()))
            .await
            .unwrap();
        disk.close().await.unwrap();
    })
    .unwrap();
    sim
}

#[test]
fn disk_with_a_filter_lives_and_repeats_under_every_schedule() {
    let mut hashes = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let schedule = match seed % 3 {
            0 => Schedule::Fifo,
            1 => Schedule::Random,
            _ => Schedule::Pct { depth: 3 },
        };
        let first = run(Tape::random(seed), schedule);
        let second = run(Tape::random(seed), schedule);
        if let Some(difference) = first_difference(first.trace(), second.trace()) {
            panic!("seed {seed}: {difference}");
        }
        let plan: Choices = first.tape().taken().to_string().parse().unwrap();
        let third = run(Tape::replay(plan), schedule);
        assert_eq!(first_difference(first.trace(), third.trace()), None);
        hashes.insert(first.trace().hash());
    }
    assert!(hashes.len() > 50, "{}", hashes.len());
    let benign = run(Tape::benign(), Schedule::Fifo);
    assert!(benign.marks()["tick"] > 0);
}

#[test]
fn idle_disk_lets_an_hour_pass_in_few_steps() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let rt = sim.host("vm1").rt();
    sim.run(async {
        let disk = Disk::builder(Arc::new(RamDisk::new(1 << 20)), Arc::clone(&rt))
            .open()
            .await
            .unwrap();
        disk.submit(Io::write(0, vec![1; 512].into()))
            .await
            .unwrap();
        sim.sleep(Duration::from_mins(59)).await;
        assert!(sim.trace().steps() < 1000, "{}", sim.trace().steps());
        disk.close().await.unwrap();
    })
    .unwrap();
}

#[test]
fn killed_host_takes_its_disk_with_it() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let host = sim.host("vm1");
    let device = Arc::new(RamDisk::new(1 << 20));
    let lower: Arc<dyn BlockDevice> = Arc::<RamDisk>::clone(&device);
    let rt = host.rt();
    host.spawn("guest", async move {
        let disk = Disk::builder(lower, Arc::clone(&rt)).open().await.unwrap();
        loop {
            disk.submit(Io::write(0, vec![1; 512].into()))
                .await
                .unwrap();
            rt.sleep(Duration::from_millis(1)).await;
        }
    });
    sim.run(sim.sleep(Duration::from_millis(9))).unwrap();
    host.kill();
    sim.run(sim.sleep(Duration::from_millis(9))).unwrap();
    assert_eq!(Arc::strong_count(&device), 1, "the disk is gone");
>>>>>>> sim
}
