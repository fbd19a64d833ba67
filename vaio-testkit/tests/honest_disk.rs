//! The simulated disk is honest: one set of behaviours, over it, over a RAM disk and over a real
//! file, each under the framework that is above every device in production.
#![expect(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "small disks; a test that cannot go on fails"
)]

use std::{fs::File, sync::Arc};

use bytes::Bytes;
use futures::future::join_all;
use vaio_core::{
    Allocation, BlockDevice, BlockDeviceExt, DeviceInfo, DiscardReads, Disk, ErrorKind, Extent, Io,
    Op, RamDisk, Rt, Support,
};
use vaio_host::{
    device::{Direct, FileDevice, FileOptions},
    runtime::HostRuntime,
};
use vaio_testkit::{
    Schedule, Sim, Tape,
    disk::{Fill, Media, Moments, SimDisk},
};

const SIZE: u64 = 12 << 20;

type Device = Arc<dyn BlockDevice>;

fn pattern(len: u64, seed: u8) -> Bytes {
    (0..len)
        .map(|at| (at as u8).wrapping_mul(31) ^ (at >> 9) as u8 ^ seed | 1)
        .collect()
}

/// Every behaviour, on a device of [`SIZE`] bytes that was never written.
async fn behaves(device: Device, rt: Rt) {
    device.info().validate().unwrap();
    assert_eq!(device.info().capacity, SIZE);
    let disk = Disk::builder(Arc::clone(&device), rt).open().await.unwrap();
    fresh_disk_reads_as_zeroes_and_says_so(&device).await;
    read_returns_what_was_written(&device).await;
    largest_transfer_is_whole(&device).await;
    zero_length_is_answered(&disk).await;
    bad_extents_are_refused_and_change_nothing(&disk).await;
    zeroes_are_written(&disk).await;
    fua_and_flush_succeed(&disk).await;
    overlapping_writes_leave_whole_blocks(&device).await;
    reads_beside_writes_see_whole_blocks(&device).await;
    discarded_blocks_are_old_or_zero(&disk).await;
    allocation_tiles_and_tells_no_lies(&device).await;
    disk.close().await.unwrap();
}

async fn fresh_disk_reads_as_zeroes_and_says_so(device: &Device) {
    let data = device.read(SIZE - 8192, 8192).await.unwrap();
    assert!(data.iter().all(|byte| *byte == 0));
    if device.info().caps.allocation {
        let map = device.allocation(Extent::new(0, SIZE)).await.unwrap();
        assert_eq!(map.pieces(), [(Extent::new(0, SIZE), Allocation::Hole)]);
    }
}

async fn read_returns_what_was_written(device: &Device) {
    let block = u64::from(device.info().logical_block);
    for (seed, offset) in [(1, 0), (2, SIZE - 2 * block), (3, 5 * block)] {
        let data = pattern(2 * block, seed);
        device.write(offset, data.clone()).await.unwrap();
        assert_eq!(device.read(offset, 2 * block).await.unwrap(), data);
        let half = data.slice(block as usize..);
        assert_eq!(device.read(offset + block, block).await.unwrap(), half);
    }
}

async fn largest_transfer_is_whole(device: &Device) {
    let len = u64::from(device.info().transfer_max).min(SIZE / 2);
    let data = pattern(len, 9);
    device.write(SIZE / 4, data.clone()).await.unwrap();
    assert!(device.read(SIZE / 4, len).await.unwrap() == data);
}

async fn zero_length_is_answered(disk: &Disk) {
    let empty = Extent::new(512 * 8, 0);
    let ios = [
        Io::read(empty),
        Io::write(empty.offset(), Bytes::new()),
        Io::write_zeroes(empty),
        Io::discard(empty),
    ];
    for io in ios {
        let reply = disk.submit(io).await.unwrap();
        assert!(reply.into_data().is_empty());
    }
}

async fn bad_extents_are_refused_and_change_nothing(disk: &Disk) {
    let before = read(disk, 0, 8192).await;
    let block = u64::from(disk.info().logical_block);
    for extent in [
        Extent::new(SIZE, block),
        Extent::new(SIZE - block, 2 * block),
        Extent::new(1, block),
        Extent::new(0, block + 1),
        Extent::new(u64::MAX - block, block),
    ] {
        let data = pattern(extent.len(), 5);
        let ios = [
            Io::read(extent),
            Io::write(extent.offset(), data),
            Io::write_zeroes(extent),
            Io::discard(extent),
        ];
        for io in ios {
            let error = disk.submit(io.clone()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{io:?}");
        }
    }
    assert_eq!(read(disk, 0, 8192).await, before);
}

async fn zeroes_are_written(disk: &Disk) {
    for may_unmap in [true, false] {
        disk.submit(Io::write(65_536, pattern(32_768, 4)))
            .await
            .unwrap();
        let extent = Extent::new(65_536 + 4096, 8192);
        let op = Op::WriteZeroes {
            extent,
            may_unmap,
            fast_only: false,
            fua: false,
        };
        disk.submit(Io::new(op)).await.unwrap();
        let data = read(disk, 65_536, 32_768).await;
        let expected = pattern(32_768, 4);
        assert_eq!(data[..4096], expected[..4096]);
        assert!(data[4096..12_288].iter().all(|byte| *byte == 0));
        assert_eq!(data[12_288..], expected[12_288..]);
    }
}

async fn fua_and_flush_succeed(disk: &Disk) {
    disk.submit(Io::write(4096, pattern(4096, 6)).with_fua())
        .await
        .unwrap();
    disk.submit(Io::flush()).await.unwrap();
    assert_eq!(read(disk, 4096, 4096).await, pattern(4096, 6));
}

async fn overlapping_writes_leave_whole_blocks(device: &Device) {
    let block = u64::from(device.info().logical_block);
    let writes = (1..=8u8).map(|stamp| {
        let offset = u64::from(stamp % 4) * block;
        device.write(offset, vec![stamp; 16 * block as usize])
    });
    for result in join_all(writes).await {
        result.unwrap();
    }
    let data = device.read(0, 19 * block).await.unwrap();
    for content in data.chunks(block as usize) {
        assert!(
            content.iter().all(|byte| *byte == content[0]),
            "a block is mixed"
        );
        assert!((1..=8).contains(&content[0]), "a block is lost");
    }
    assert_eq!(
        device.read(0, 19 * block).await.unwrap(),
        data,
        "and stays so"
    );
}

async fn reads_beside_writes_see_whole_blocks(device: &Device) {
    let block = u64::from(device.info().logical_block);
    device.write(0, vec![1; 4 * block as usize]).await.unwrap();
    let write = device.write(0, vec![2; 4 * block as usize]);
    let (written, data) = futures::join!(write, device.read(0, 4 * block));
    written.unwrap();
    for content in data.unwrap().chunks(block as usize) {
        assert!(content.iter().all(|byte| *byte == content[0]) && [1, 2].contains(&content[0]));
    }
}

async fn discarded_blocks_are_old_or_zero(disk: &Disk) {
    let (offset, len) = (1 << 20, 64 << 10);
    disk.submit(Io::write(offset, pattern(len, 7)))
        .await
        .unwrap();
    disk.submit(Io::discard(Extent::new(offset, len)))
        .await
        .unwrap();
    let data = read(disk, offset, len).await;
    let is_zero_promised = disk.info().caps.discard_reads == DiscardReads::Zero;
    for (content, old) in data.chunks(512).zip(pattern(len, 7).chunks(512)) {
        let is_zero = content.iter().all(|byte| *byte == 0);
        assert!(is_zero || (content == old && !is_zero_promised));
    }
    disk.submit(Io::write(offset, pattern(len, 8)))
        .await
        .unwrap();
    assert_eq!(read(disk, offset, len).await, pattern(len, 8));
}

async fn allocation_tiles_and_tells_no_lies(device: &Device) {
    let block = u64::from(device.info().logical_block);
    for range in [
        Extent::new(0, SIZE),
        Extent::new(block, 3 << 20),
        Extent::new(SIZE - block, block),
    ] {
        let map = device.allocation(range).await.unwrap();
        assert_eq!(map.range(), range);
        for (extent, what) in map.pieces() {
            if !matches!(what, Allocation::Hole | Allocation::Zero) {
                continue;
            }
            for piece in extent.split(1 << 20) {
                let data = device.read(piece.offset(), piece.len()).await.unwrap();
                assert!(data.iter().all(|byte| *byte == 0), "{extent} {what:?}");
            }
        }
    }
}

async fn read(disk: &Disk, offset: u64, len: u64) -> Bytes {
    disk.submit(Io::read(Extent::new(offset, len)))
        .await
        .unwrap()
        .into_data()
}

fn sim_info(block: u32) -> DeviceInfo {
    let mut info = DeviceInfo::new(SIZE, block).with_caps(|caps| {
        caps.volatile_cache = true;
        caps.fua = Support::Native;
        caps.write_zeroes = Support::Native;
        caps.discard = Support::Native;
        caps.discard_reads = DiscardReads::Zero;
        caps.allocation = true;
    });
    info.transfer_max = 1 << 20;
    info
}

fn sim_disk_behaves(info: DeviceInfo, tape: Tape, schedule: Schedule) {
    let sim = Sim::new(tape, schedule);
    let host = sim.host("host");
    let disk = SimDisk::new(
        &sim,
        &Moments::default(),
        "disk",
        Media::new(info, Fill::Zero),
    );
    sim.run(behaves(disk.handle(&host), host.rt())).unwrap();
    assert_eq!(
        disk.findings(),
        [""; 0],
        "the framework asks for nothing that a device refuses"
    );
    assert_eq!(disk.in_flight(), 0);
    assert!(
        disk.snapshot().pending().next().is_none(),
        "a close flushes"
    );
}

fn file_behaves(options: &FileOptions) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    HostRuntime::run(|rt| async move {
        let device = FileDevice::open(&path, options, &rt).unwrap();
        behaves(Arc::new(device), rt).await;
    })
    .unwrap();
}

#[test]
fn ram_disk_behaves() {
    HostRuntime::run(|rt| behaves(Arc::new(RamDisk::new(SIZE)), rt)).unwrap();
}

#[test]
fn file_around_the_page_cache_behaves() {
    file_behaves(&FileOptions::default());
}

#[test]
fn file_in_the_page_cache_behaves() {
    file_behaves(&FileOptions::default().with_direct(Direct::Off));
}

#[test]
fn sim_disk_in_order_behaves() {
    sim_disk_behaves(sim_info(512), Tape::benign(), Schedule::Fifo);
}

#[test]
fn sim_disk_in_any_order_behaves() {
    for seed in 0..4 {
        sim_disk_behaves(sim_info(512), Tape::random(seed), Schedule::Random);
    }
}

#[test]
fn sim_disk_in_4k_blocks_behaves() {
    sim_disk_behaves(sim_info(4096), Tape::random(5), Schedule::Random);
}

#[test]
fn sim_disk_that_can_little_behaves() {
    let info = DeviceInfo::new(SIZE, 512).with_caps(|caps| caps.volatile_cache = true);
    sim_disk_behaves(info, Tape::random(6), Schedule::Random);
    let info = sim_info(512).with_caps(|caps| {
        caps.volatile_cache = false;
        caps.discard_reads = DiscardReads::OldOrZero;
    });
    for seed in 7..10 {
        let sim = Sim::new(Tape::random(seed), Schedule::Random);
        let host = sim.host("host");
        let disk = SimDisk::new(
            &sim,
            &Moments::default(),
            "disk",
            Media::new(info, Fill::Zero),
        );
        sim.run(behaves(disk.handle(&host), host.rt())).unwrap();
    }
}
