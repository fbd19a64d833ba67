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
}

#[test]
fn io_of_a_dead_process_lands_by_itself_only_if_the_tape_says_so() {
    for (tape, expected) in [(Tape::benign(), 0), (tape_with("crash disk.orphan#0"), 7)] {
        let sim = Sim::new(tape, Schedule::Fifo);
        let disk = disk_in(&sim);
        leave_in_flight(&sim, &disk, 7);
        sim.run(sim.sleep(Duration::from_secs(1))).unwrap();
        assert_eq!(disk.in_flight(), 0);
        assert_eq!(first_byte(&disk), expected);
    }
}

#[test]
fn flush_covers_nothing_that_was_in_flight_with_it() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let disk = disk_in(&sim);
    let device = disk.handle(&sim.host("host"));
    let (written, flushed) = sim
        .run(join(device.write(0, block(1)), device.flush()))
        .unwrap();
    written.and(flushed).unwrap();
    let durable = || disk.snapshot().durable().block(0)[0];
    assert_eq!((first_byte(&disk), durable()), (1, 0));
    sim.run(device.flush()).unwrap().unwrap();
    assert_eq!(durable(), 1);
}

#[test]
fn read_decides_which_of_two_writes_was_first() {
    for reads in [false, true] {
        let sim = Sim::new(Tape::benign(), Schedule::Fifo);
        let disk = disk_in(&sim);
        let device = disk.handle(&sim.host("host"));
        let durable = Io::write(0, block(2)).with_fua();
        let main = async {
            let (one, other) = join(device.write(0, block(1)), device.submit(durable)).await;
            one.unwrap();
            other.unwrap();
            if reads {
                assert_eq!(device.read(0, 512).await.unwrap(), block(2));
            }
        };
        sim.run(main).unwrap();
        let point = CrashPoint::new([("disk", &disk.snapshot())]);
        let mut seen = std::collections::BTreeSet::new();
        let cases = point.cases(&[Tier::Exhaustive], &mut |_| 0, &mut |hash| {
            seen.insert(hash)
        });
        assert_eq!(cases.len(), if reads { 1 } else { 2 });
    }
}

#[test]
fn failed_write_lands_not_at_all_whole_or_by_half() {
    for (landed, expected) in [(0, [0, 0]), (1, [5, 5]), (2, [5, 0])] {
        let text = format!("choose fault disk.landed#0 = {landed}\n");
        let sim = Sim::new(Tape::replay(text.parse().unwrap()), Schedule::Fifo);
        let disk = disk_in(&sim);
        let device = disk.handle(&sim.host("host"));
        disk.faults(|faults| faults.add(Rule::once(Fault::Error)));
        let data = Bytes::from(vec![5; 1024]);
        let failed = sim.run(device.write(0, data)).unwrap().unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Io);
        let live = disk.media().live().read(0, 2);
        assert_eq!([live[0], live[512]], expected);
    }
}

#[test]
fn io_of_a_dead_process_is_never_answered() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let (disk, host) = (disk_in(&sim), sim.host("host"));
    let device = disk.handle(&host);
    let main = async {
        let mut write = device.write(0, block(1)).boxed();
        assert!(futures::poll!(&mut write).is_pending());
        host.kill();
        sim.sleep(Duration::from_secs(1)).await;
        assert_eq!(disk.in_flight(), 0);
        assert!(futures::poll!(&mut write).is_pending());
    };
    sim.run(main).unwrap();
}

#[test]
fn io_in_flight_when_power_fails_does_not_succeed() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let disk = disk_in(&sim);
    let device = disk.handle(&sim.host("host"));
    let main = async {
        let mut write = device.write(0, block(1)).boxed();
        assert!(futures::poll!(&mut write).is_pending());
        disk.lose_power(disk.snapshot().durable().clone(), None);
        assert_eq!(disk.in_flight(), 0);
        write.await.unwrap_err().kind()
    };
    assert_eq!(sim.run(main).unwrap(), ErrorKind::Gone);
    assert_eq!(first_byte(&disk), 0);
}

#[test]
fn write_that_failed_is_decided_when_the_next_process_opens_the_disk() {
    for landed in [0, 1] {
        let text = format!("choose fault disk.landed#0 = {landed}\n");
        let sim = Sim::new(Tape::replay(text.parse().unwrap()), Schedule::Fifo);
        let (disk, first) = (disk_in(&sim), sim.host("first"));
        disk.faults(|faults| faults.add(Rule::once(Fault::Error)));
        let failed = disk.handle(&first);
        sim.run(failed.write(0, block(7))).unwrap().unwrap_err();
        first.kill();
        let shown = first_byte(&disk);
        let second = disk.handle(&sim.host("second"));
        sim.run(second.flush()).unwrap().unwrap();
        assert_eq!(disk.snapshot().durable().block(0)[0], shown);
        assert_eq!(disk.snapshot().pending().count(), 0, "nothing is open");
    }
}

#[test]
fn sidecar_that_was_restored_forgets_what_was_under_way() {
    let sim = Sim::new(tape_with("crash side.replaced#0"), Schedule::Fifo);
    let side = SimSidecar::new(&sim, "side", None);
    let host = sim.host("host");
    let store = side.handle(&host);
    let main = async {
        let mut replace = store.replace(Bytes::from("new"));
        assert!(futures::poll!(&mut replace).is_pending());
        host.kill();
    };
    sim.run(main).unwrap();
    side.restore(Some(Bytes::from("old")));
    assert_eq!(side.snapshot().images(), [Some(Bytes::from("old"))]);
}
