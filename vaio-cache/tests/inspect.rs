//! Damaged cache devices, many of them: the inspector reports, an open refuses, fails by name or
//! reads what is right, and destaging what is left ends. Nothing panics, nothing hangs.

use std::sync::{Arc, Mutex};

use futures::FutureExt;
use vaio_cache::{
    CACHE_DEVICE, CacheFactory, Sizes,
    inspect::{Depth, Inspection, inspect},
};
use vaio_core::{BlockDeviceExt, Extent, Io, Level, RamDisk};
use vaio_testkit::{
    GuestOp, Oracle, OracleSettings, Scale, Schedule, Sim, Subject, Tape,
    disk::{Content, Fill, Image},
    explore::{Belief, Guest, Rig},
};

const BLOCKS: u64 = 16;
const BLOCK: usize = 512;
const DEVICE_BLOCKS: u64 = 2 + 5 * 8;
const CASES: u64 = 10_000;

fn subject() -> Arc<Subject> {
    let sizes = Sizes::new(1024, 512, 8 * 512, 512);
    let subject = Subject::scaled(move |_| Arc::new(CacheFactory::default().with_sizes(sizes)))
        .device(CACHE_DEVICE, |_| DEVICE_BLOCKS)
        .setting("dirty_age_max", "1h");
    Arc::new(subject)
}

struct Left {
    images: Vec<Image>,
    sidecar: Option<bytes::Bytes>,
}

/// A disk whose log has records of two opens, a sealed segment and a dirty tail, after a crash.
fn leave() -> Left {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let subject = subject();
    let rig = Rig::new(&sim, &subject, Scale::Tiny, BLOCKS, Fill::Zero);
    let belief = Belief::new(Oracle::new(OracleSettings::new(BLOCKS, subject.promise())));
    for (name, blocks) in [("first", &[0, 3, 6][..]), ("second", &[9, 12, 1, 4])] {
        let host = sim.host(name);
        let ran = sim.run(async {
            let disk = rig.open(&host).await.expect("opens");
            let guest = Guest::new(&sim, &disk, &belief);
            for &block in blocks {
                let write = GuestOp::Write {
                    block,
                    count: 2,
                    fua: false,
                };
                guest.submit(write).await.expect("is kept");
                guest.submit(GuestOp::Flush).await.expect("is kept");
            }
        });
        assert!(ran.is_ok(), "the era ends");
        host.kill();
        belief.oracle().crash();
    }
    let snapshot = rig.snapshot();
    Left {
        images: snapshot
            .disks
            .iter()
            .map(|disk| disk.durable().clone())
            .collect(),
        sidecar: snapshot.sidecar.images().pop().flatten(),
    }
}

fn bytes_of(image: &Image) -> Vec<u8> {
    let blocks = (0..DEVICE_BLOCKS).map(|block| image.block(block).to_vec());
    blocks.flatten().collect()
}

fn inspected(bytes: &[u8]) -> Inspection {
    let disk = Arc::new(RamDisk::new(bytes.len() as u64));
    let written = disk.write(0, bytes.to_vec()).now_or_never();
    written.expect("a RAM disk never waits").expect("it fits");
    let report = inspect(disk, Depth::Payloads).now_or_never();
    report
        .expect("a RAM disk never waits")
        .expect("it can be read")
}

#[test]
fn report_of_a_real_log_is_what_was_written() {
    let left = leave();
    let report = inspected(&bytes_of(&left.images[1]));
    let log = report.log.expect("there is a log");
    let dirty: Vec<(u64, u64)> = log
        .dirty
        .iter()
        .map(|one| (one.offset(), one.len()))
        .collect();
    let blocks = [(0, 8), (9, 2), (12, 2)];
    assert_eq!(dirty, blocks.map(|(at, count)| (at * 512, count * 512)));
    assert_eq!((log.record_count, log.end_seq, log.epochs.len()), (7, 7, 2));
    assert_eq!((log.damage, log.bad_payloads), (None, 0));
}

/// Steps of a small generator: the cases are the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(self.0 >> 33).expect("31 bits") % limit
    }
}

/// Some bytes changed, blocks copied elsewhere or zeroed; sometimes the superblocks' sums are made
/// right again.
fn mutate(bytes: &mut [u8], chance: &mut Chance) {
    let is_front = chance.below(3) == 0;
    for _ in 0..=chance.below(6) {
        let len = if is_front { 2 * BLOCK } else { bytes.len() };
        let at = chance.below(len);
        let block = at / BLOCK * BLOCK;
        match chance.below(8) {
            0 => bytes[block..block + BLOCK].fill(0),
            1 => {
                let from = chance.below(bytes.len()) / BLOCK * BLOCK;
                bytes.copy_within(from..from + BLOCK, block);
            }
            2 => bytes[at] = 0xff,
            _ => bytes[at] ^= 1 << chance.below(8),
        }
    }
    if is_front && chance.below(4) > 0 {
        for place in [0, BLOCK] {
            const SUM: usize = 96;
            bytes[place + SUM..place + SUM + 4].fill(0);
            let used = &bytes[place..place + 104 + 8 * 40];
            let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, used);
            bytes[place + SUM..place + SUM + 4].copy_from_slice(&sum.to_le_bytes()[..4]);
        }
    }
}

/// Whether the disk opened.
fn open_and_empty(left: &Left, bytes: &[u8]) -> bool {
    let mut images = left.images.clone();
    for (block, content) in (0..).zip(bytes.chunks_exact(BLOCK)) {
        images[1].set(block, Content::of(content.to_vec().into()));
    }
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let rig = Rig::of_images(&sim, &subject(), Scale::Tiny, images, left.sidecar.clone());
    let host = sim.host("third");
    let ran = sim.run(async {
        let Ok(disk) = rig.open(&host).await else {
            return false;
        };
        let extent = Extent::new(0, disk.info().capacity);
        let _ = disk.submit(Io::read(extent)).await;
        if let Ok(flushing) = disk.flush_to(Level::BackingDurable) {
            let deadline = host.rt().now() + std::time::Duration::from_secs(5);
            let _ = flushing.wait(deadline).await;
        }
        true
    });
    ran.expect("it ends")
}

#[test]
fn mutated_devices_are_reported_and_opened_or_refused() {
    let left = leave();
    let original = bytes_of(&left.images[1]);
    let mut chance = Chance(20_261_122);
    let (mut opened, mut damaged) = (0, 0);
    // The framework contains a filter's panic and makes it an error, which would pass for a refusal.
    let panics = Arc::new(Mutex::new(Vec::new()));
    let (noted, hook) = (Arc::clone(&panics), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        noted.lock().expect("not held here").push(panic.to_string());
        hook(panic);
    }));
    for case in 0..CASES {
        let mut bytes = original.clone();
        mutate(&mut bytes, &mut chance);
        let report = inspected(&bytes);
        let is_damaged = report.log.is_none_or(|log| log.damage.is_some());
        let is_open = open_and_empty(&left, &bytes);
        // What an open refuses for the log's sake, the report shows. Not the other way round: an
        // open also looks at whose log it is.
        assert!(
            !(is_damaged && is_open),
            "case {case}: opened although damaged"
        );
        let panics = panics.lock().expect("not held across a panic");
        assert!(panics.is_empty(), "case {case}: {panics:?}");
        opened += u64::from(is_open);
        damaged += u64::from(is_damaged);
    }
    assert!(
        opened > CASES / 10 && damaged > CASES / 10,
        "{opened} {damaged}"
    );
}
