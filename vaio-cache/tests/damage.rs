//! Bit rot on the cache device: every block of it, one after the other.
//!
//! Whatever is damaged, the guest never reads what it should not: the open refuses, or the read
//! fails, or the data is right. What no log can tell is the loss of its very last records: nothing
//! behind them says that they were durable. Those are left out here.

use std::sync::Arc;

use vaio_cache::{CACHE_DEVICE, CacheFactory, Sizes};
use vaio_core::ErrorKind;
use vaio_testkit::{
    GuestOp, Oracle, OracleSettings, Scale, Schedule, Sim, Subject, Tape,
    disk::{Content, Fill, Image},
    explore::{Belief, Guest, OnError, Rig},
};

const BLOCKS: u64 = 16;
const DEVICE_BLOCKS: u64 = 2 + 10 * 8;

fn subject() -> Arc<Subject> {
    subject_with(&[])
}

fn subject_with(settings: &[(&str, &str)]) -> Arc<Subject> {
    let sizes = Sizes::new(1024, 512, 10 * 512, 512);
    let subject = Subject::scaled(move |_| Arc::new(CacheFactory::default().with_sizes(sizes)))
        .device(CACHE_DEVICE, |_| DEVICE_BLOCKS)
        .setting("dirty_age_max", "1h");
    let all = settings.iter();
    Arc::new(all.fold(subject, |subject, (key, value)| subject.setting(key, value)))
}

fn write(block: u64) -> GuestOp {
    GuestOp::Write {
        block,
        count: 2,
        fua: false,
    }
}

/// A disk with many durable records in its log and none on its backing, after a crash.
struct Left {
    belief: Belief,
    images: Vec<Image>,
    sidecar: Option<bytes::Bytes>,
}

fn leave() -> Left {
    let blocks = [0, 3, 6, 9, 12, 1, 4];
    let ops = blocks.map(|block| [write(block), GuestOp::Flush]);
    leave_after(&ops.concat())
}

fn leave_after(ops: &[GuestOp]) -> Left {
    let subject = subject();
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let rig = Rig::new(&sim, &subject, Scale::Tiny, BLOCKS, Fill::Zero);
    let belief = Belief::new(Oracle::new(OracleSettings::new(BLOCKS, subject.promise())));
    let host = sim.host("first");
    let ran = sim.run(async {
        let disk = rig.open(&host).await.expect("opens over empty media");
        let guest = Guest::new(&sim, &disk, &belief);
        for op in ops {
            guest.submit(*op).await.expect("is kept");
        }
    });
    assert!(ran.is_ok(), "the first era ends");
    host.kill();
    belief.oracle().crash();
    let snapshot = rig.snapshot();
    Left {
        belief,
        images: snapshot
            .disks
            .iter()
            .map(|disk| disk.durable().clone())
            .collect(),
        sidecar: snapshot.sidecar.images().pop().flatten(),
    }
}

/// What came of a damaged device.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    refused: u64,
    failed: u64,
    right: u64,
}

fn open_and_read(left: &Left, images: Vec<Image>, seen: &mut Seen, label: &str) {
    let subject = subject();
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let sidecar = left.sidecar.clone();
    let rig = Rig::of_images(&sim, &subject, Scale::Tiny, images, sidecar);
    let belief = Belief::new(left.belief.oracle().clone());
    let host = sim.host("second");
    let ran = sim.run(async {
        let disk = match rig.open(&host).await {
            Ok(disk) => disk,
            Err(error) => {
                assert_eq!(
                    error.kind(),
                    ErrorKind::Corrupt,
                    "{label}: {}",
                    error.to_line()
                );
                seen.refused += 1;
                return;
            }
        };
        let block_bytes = u64::from(disk.info().logical_block);
        for block in 0..BLOCKS {
            let guest = Guest {
                on_error: OnError::Allowed,
                ..Guest::new(&sim, &disk, &belief)
            };
            let extent = vaio_core::Extent::new(block * block_bytes, block_bytes);
            match disk.submit(vaio_core::Io::read(extent)).await {
                Ok(_) => seen.right += 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{label}");
                    assert_eq!(error.extent(), Some(extent), "{label}: it is named");
                    seen.failed += 1;
                }
            }
            let read = guest.submit(GuestOp::Read { block, count: 1 }).await;
            assert!(read.is_ok(), "{label}: {read:?}");
        }
    });
    assert!(ran.is_ok(), "{label}: it ends");
}

fn damaged(left: &Left, block: u64, at: usize) -> Option<Vec<Image>> {
    let mut images = left.images.clone();
    let device = &mut images[1];
    let mut bytes = device.block(block).to_vec();
    if bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    bytes[at] ^= 0x40;
    device.set(block, Content::of(bytes.into()));
    Some(images)
}

#[test]
fn undamaged_log_is_read_back() {
    let left = leave();
    let mut seen = Seen::default();
    open_and_read(&left, left.images.clone(), &mut seen, "undamaged");
    assert_eq!((seen.refused, seen.failed), (0, 0));
}

#[test]
fn damaged_block_is_refused_or_named_and_never_wrong_data() {
    let left = leave();
    let mut seen = Seen::default();
    let used = (0..DEVICE_BLOCKS).filter(|block| damaged(&left, *block, 0).is_some());
    let used: Vec<u64> = used.collect();
    // Superblocks, and seven records of three blocks: the last record is left out.
    let last = *used.last().expect("something was written");
    for block in used.into_iter().filter(|block| *block + 3 <= last) {
        for at in [0, 9, 17, 60, 70, 300] {
            if let Some(images) = damaged(&left, block, at) {
                open_and_read(
                    &left,
                    images,
                    &mut seen,
                    &format!("block {block} byte {at}"),
                );
            }
        }
    }
    assert!(seen.refused > 0, "damaged headers are refused: {seen:?}");
    assert!(seen.failed > 10, "damaged payload is named: {seen:?}");
}

#[test]
fn empty_device_is_refused_while_it_should_hold_data() {
    let left = leave();
    let mut seen = Seen::default();
    let mut images = left.images.clone();
    for block in 0..DEVICE_BLOCKS {
        images[1].set(block, Content::Zero);
    }
    open_and_read(&left, images, &mut seen, "empty");
    assert_eq!(seen.refused, 1);
}

/// What an open of these images with `discard_dirty` says: the error, or what each block shows.
fn open_discarding(left: &Left, images: Vec<Image>, bytes: &str) -> Result<Vec<u64>, String> {
    let subject = subject_with(&[("discard_dirty", bytes)]);
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let rig = Rig::of_images(&sim, &subject, Scale::Tiny, images, left.sidecar.clone());
    let host = sim.host("second");
    let ran = sim.run(async {
        let disk = rig.open(&host).await.map_err(|error| error.to_line())?;
        let block_bytes = u64::from(disk.info().logical_block);
        let mut shown = Vec::new();
        for block in 0..BLOCKS {
            let extent = vaio_core::Extent::new(block * block_bytes, block_bytes);
            let read = disk.submit(vaio_core::Io::read(extent)).await;
            let data = read.map(vaio_core::Reply::into_data);
            let data = data.map_err(|error| error.to_line())?;
            shown.push(data.iter().map(|byte| u64::from(*byte)).sum());
        }
        Ok(shown)
    });
    ran.unwrap_or_else(|stuck| Err(format!("{stuck:?}")))
}

/// The number that a refusal names.
fn lost_bytes(refusal: &str) -> u64 {
    let number = refusal.split("discard_dirty=").nth(1).expect(refusal);
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect(refusal)
}

#[test]
fn discard_dirty_gives_up_what_was_refused_and_no_more_than_allowed() {
    let left = leave();
    let mut empty = left.images.clone();
    for block in 0..DEVICE_BLOCKS {
        empty[1].set(block, Content::Zero);
    }
    let refusal = open_discarding(&left, empty.clone(), "0").expect_err("it held data");
    let lost = lost_bytes(&refusal);
    assert_eq!(lost, BLOCKS * 512, "{refusal}");
    let less = (lost - 1).to_string();
    let refused = open_discarding(&left, empty.clone(), &less).expect_err("too little");
    assert_eq!(lost_bytes(&refused), lost);
    let shown = open_discarding(&left, empty, &lost.to_string()).expect("it was allowed");
    assert_eq!(shown, vec![0; 16], "the backing alone");
}

#[test]
fn discard_dirty_of_a_damaged_log_keeps_what_comes_before_the_damage() {
    let left = leave();
    let whole = open_discarding(&left, left.images.clone(), "0").expect("undamaged");
    // Three records of three blocks and a footer fill a segment: the header of the fourth record,
    // and the footer that says the same.
    let mut images = damaged(&left, 12, 9).expect("in use");
    images[1].set(21, Content::Zero);
    let refusal = open_discarding(&left, images.clone(), "0").expect_err("a record is gone");
    let lost = lost_bytes(&refusal);
    // The fourth write and those after it: blocks 9 and 10, 12 and 13, 1 and 2, 4 and 5.
    let shown = open_discarding(&left, images, &lost.to_string()).expect("it was allowed");
    for (block, (shown, whole)) in shown.iter().zip(&whole).enumerate() {
        match block {
            0 | 3 | 6 | 7 => assert_eq!(shown, whole, "{block}"),
            1 | 4 => assert!(*shown != 0 && shown != whole, "the version before, {block}"),
            _ => assert_eq!(*shown, 0, "given up, {block}"),
        }
    }
}

#[test]
fn device_of_another_disk_is_refused_also_where_it_is_new_here() {
    let left = leave();
    let subject = subject();
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let mut images = left.images.clone();
    let fresh = Rig::new(&sim, &subject, Scale::Tiny, BLOCKS, Fill::Zero).snapshot();
    images[0] = fresh.disks[0].durable().clone();
    let refusal = |bytes| {
        let other = Left {
            belief: Belief::new(Oracle::new(OracleSettings::new(BLOCKS, subject.promise()))),
            images: images.clone(),
            sidecar: None,
        };
        open_discarding(&other, images.clone(), bytes)
    };
    let lost = lost_bytes(&refusal("0").expect_err("it holds another disk's writes"));
    assert!(lost >= 14 * 512, "{lost}");
    assert!(refusal(&lost.to_string()).is_ok());
}

/// The device as another version would leave it: both superblocks say so, and verify.
fn of_other_version(image: &Image) -> Image {
    let mut other = image.clone();
    for place in 0..2 {
        let mut bytes = image.block(place).to_vec();
        if bytes.iter().all(|byte| *byte == 0) {
            continue;
        }
        bytes[8] += 1;
        bytes[96..100].fill(0);
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[..424]);
        bytes[96..100].copy_from_slice(&sum.to_le_bytes()[..4]);
        other.set(place, Content::of(bytes.into()));
    }
    other
}

#[test]
fn log_of_another_version_is_refused_and_left_alone_whatever_is_given_up() {
    let left = leave();
    let mut images = left.images.clone();
    images[1] = of_other_version(&left.images[1]);
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let fresh = Rig::new(&sim, &subject(), Scale::Tiny, BLOCKS, Fill::Zero).snapshot();
    let attached = vec![fresh.disks[0].durable().clone(), images[1].clone()];
    for (what, images, sidecar) in [
        ("opened again", images, left.sidecar.clone()),
        ("attached to another disk", attached, None),
    ] {
        let subject = subject_with(&[("discard_dirty", "1T")]);
        let sim = Sim::new(Tape::benign(), Schedule::Fifo);
        let device = images[1].clone();
        let rig = Rig::of_images(&sim, &subject, Scale::Tiny, images, sidecar);
        let host = sim.host("older");
        let refusal = sim.run(async { rig.open(&host).await.map(|_| ()) });
        let refusal = refusal.expect("it ends").expect_err(what).to_line();
        assert!(refusal.contains("version=2 known=1"), "{what}: {refusal}");
        let after = rig.snapshot().disks[1].durable().clone();
        for block in 0..DEVICE_BLOCKS {
            let same = after.block(block).to_vec() == device.block(block).to_vec();
            assert!(same, "{what}: block {block} is as it was");
        }
    }
}

#[test]
fn durable_records_are_missed_also_where_what_says_so_is_segments_away() {
    // Three records a segment, in six segments, before the first flush; then one that knows of it.
    let mut ops: Vec<GuestOp> = (0..18).map(|n| write(n % 7 * 2)).collect();
    ops.extend([GuestOp::Flush, write(0), GuestOp::Flush]);
    let left = leave_after(&ops);
    let mut seen = Seen::default();
    open_and_read(&left, left.images.clone(), &mut seen, "undamaged");
    assert_eq!((seen.refused, seen.failed), (0, 0));
    let mut images = left.images.clone();
    for block in 2..12 {
        images[1].set(block, Content::Zero);
    }
    open_and_read(&left, images, &mut seen, "the first segment");
    assert_eq!(seen.refused, 1);
}
