//! The same behaviour over every device: memory, files by each engine, NBD exports of real
//! servers; then what is particular to files, locks and connections.
//!
//! Tests that need `nbdkit`, `qemu-nbd` or `qemu-io` say so and pass where those are missing, or
//! fail if `VAIO_TOOLS=require`.
#![expect(
    clippy::disallowed_methods,
    reason = "tests wait for processes and own their threads"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "small disks; a test that cannot go on fails"
)]

use std::{
    fs::File,
    future::Future,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tempfile::TempDir;
use vaio_core::{
    Allocation, BlockDevice, BlockDeviceExt, DiscardReads, ErrorKind, Extent, Io, Op, RamDisk,
    Retry, Rt, RuntimeExt, Support,
};
use vaio_host::{
    device::{
        Direct, Engine, FileDevice, FileOptions, ImageLock, ImageUse, NbdDevice, Spec, open_spec,
    },
    runtime::HostRuntime,
};

const SIZE: u64 = 12 << 20;

type Device = Arc<dyn BlockDevice>;

fn run<F: Future>(main: impl FnOnce(Rt) -> F) -> F::Output {
    HostRuntime::run(main).unwrap()
}

fn image(dir: &TempDir, size: u64) -> PathBuf {
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// `None`, with a note, where a tool is missing.
fn tool(name: &str) -> Option<Command> {
    let found = Command::new(name)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if found.is_ok() {
        return Some(Command::new(name));
    }
    let is_required = std::env::var("VAIO_TOOLS").is_ok_and(|value| value == "require");
    assert!(!is_required, "{name} is not installed");
    eprintln!("skipped: {name} is not installed");
    None
}

/// A server process that ends with the test.
struct Server {
    child: Child,
    uri: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(mut command: Command, socket: &Path) -> Server {
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let server = Server { child, uri };
    for _ in 0..500 {
        if std::os::unix::net::UnixStream::connect(socket).is_ok() {
            return server;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("server does not listen on {}", socket.display());
}

fn nbdkit(dir: &TempDir, arguments: &[&str]) -> Option<Server> {
    let mut command = tool("nbdkit")?;
    let socket = dir.path().join("kit.sock");
    command.args(["-f", "-U"]).arg(&socket).args(arguments);
    Some(serve(command, &socket))
}

fn qemu_nbd(dir: &TempDir, path: &Path) -> Option<Server> {
    let mut command = tool("qemu-nbd")?;
    let socket = dir.path().join("qemu.sock");
    command
        .args(["-f", "raw", "-t", "-e", "8", "--discard=unmap", "-k"])
        .arg(&socket)
        .arg(path);
    Some(serve(command, &socket))
}

async fn connect(server: &Server, rt: &Rt) -> Device {
    let spec: Spec = server.uri.parse().unwrap();
    open_spec(&spec, &FileOptions::default(), rt).await.unwrap()
}

/// Reproducible numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let seed = self.below(u64::MAX);
        (0..len)
            .map(|at| (seed.rotate_left(at as u32 % 64) as u8) ^ (at as u8) | 1)
            .collect()
    }
}

/// The body: what every device does the same.
async fn behaves(device: Device, _rt: Rt) {
    let info = device.info();
    info.validate().unwrap();
    assert_eq!(info.capacity, SIZE);
    let mut model = vec![0; SIZE as usize];
    whole_disk_reads_as(&device, &model).await;
    write_read_at_ends_and_any_memory(&device, &mut model).await;
    largest_transfer(&device, &mut model).await;
    random_operations(&device, &mut model).await;
    overlapping_writes_leave_whole_blocks(&device, &mut model).await;
    discard_leaves_old_or_zero(&device, &mut model).await;
    allocation_tiles_and_tells_no_lies(&device, &model).await;
    device.flush().await.unwrap();
    whole_disk_reads_as(&device, &model).await;
}

async fn whole_disk_reads_as(device: &Device, model: &[u8]) {
    let max = u64::from(device.info().transfer_max);
    for piece in Extent::new(0, SIZE).split(max) {
        let data = device.read(piece.offset(), piece.len()).await.unwrap();
        let from = piece.offset() as usize;
        assert!(
            data[..] == model[from..from + piece.len() as usize],
            "{piece}"
        );
    }
}

async fn write_read_at_ends_and_any_memory(device: &Device, model: &mut [u8]) {
    let block = u64::from(device.info().logical_block);
    let mut random = Random(7);
    for offset in [0, SIZE - block, block] {
        for shift in [0, 1, 3] {
            let memory = Bytes::from(random.bytes(block as usize + 8));
            let data = memory.slice(shift..shift + block as usize);
            device.write(offset, data.clone()).await.unwrap();
            assert_eq!(device.read(offset, block).await.unwrap(), data);
            model[offset as usize..][..block as usize].copy_from_slice(&data);
        }
    }
}

async fn largest_transfer(device: &Device, model: &mut [u8]) {
    let len = u64::from(device.info().transfer_max).min(SIZE / 2);
    let data = Random(3).bytes(len as usize);
    device.write(SIZE - len, data.clone()).await.unwrap();
    assert!(device.read(SIZE - len, len).await.unwrap() == data);
    model[(SIZE - len) as usize..].copy_from_slice(&data);
}

/// Waves of operations that do not overlap, many at once, against a model.
async fn random_operations(device: &Device, model: &mut [u8]) {
    let caps = device.info().caps;
    let block = u64::from(device.info().logical_block);
    let mut random = Random(11);
    for _ in 0..12 {
        let mut wave = Vec::new();
        let lane = SIZE / 48;
        for at in 0..48 {
            let len = (random.below(24) + 1) * block.max(1024);
            let from = random.below((lane - len) / block) * block;
            let extent = Extent::new(at * lane + from, len);
            let range = extent.offset() as usize..extent.end() as usize;
            let fua = random.below(4) == 0 && caps.fua != Support::None;
            let op = match random.below(5) {
                0 | 1 => {
                    let data = random.bytes(len as usize);
                    model[range].copy_from_slice(&data);
                    let offset = extent.offset();
                    let data = data.into();
                    Op::Write { offset, data, fua }
                }
                2 if caps.write_zeroes != Support::None => {
                    model[range].fill(0);
                    let may_unmap = random.below(2) == 0;
                    let fast_only = false;
                    Op::WriteZeroes {
                        extent,
                        may_unmap,
                        fast_only,
                        fua,
                    }
                }
                3 if caps.prefetch != Support::None => Op::Prefetch { extent },
                _ => Op::Read { extent },
            };
            wave.push((device.submit(Io::new(op.clone())), op));
        }
        let (ios, ops): (Vec<_>, Vec<_>) = wave.into_iter().unzip();
        for (reply, op) in futures::future::join_all(ios).await.into_iter().zip(ops) {
            let data = reply.unwrap_or_else(|e| panic!("{e:?}")).into_data();
            if let Op::Read { extent } = op {
                assert!(data[..] == model[extent.offset() as usize..extent.end() as usize]);
            }
        }
        device.flush().await.unwrap();
    }
    whole_disk_reads_as(device, model).await;
}

async fn overlapping_writes_leave_whole_blocks(device: &Device, model: &mut [u8]) {
    let block = device.info().logical_block as usize;
    let len = 16 * block;
    let writes = (1..=8u8).map(|stamp| {
        let from = usize::from(stamp % 4) * block;
        device.write(from as u64, vec![stamp; len])
    });
    for result in futures::future::join_all(writes).await {
        result.unwrap();
    }
    let data = device.read(0, (len + 4 * block) as u64).await.unwrap();
    for (at, content) in data.chunks(block).enumerate() {
        let is_one = content.iter().all(|byte| *byte == content[0]);
        assert!(is_one || at >= 19, "block {at} is mixed");
        assert!(
            at >= 19 || (1..=8).contains(&content[0]),
            "block {at} is lost"
        );
    }
    model[..data.len()].copy_from_slice(&data);
}

async fn discard_leaves_old_or_zero(device: &Device, model: &mut [u8]) {
    let caps = device.info().caps;
    if caps.discard == Support::None {
        return;
    }
    let block = device.info().logical_block as usize;
    let (from, len) = (1 << 20, 256 << 10);
    device.discard(from as u64, len as u64).await.unwrap();
    let data = device.read(from as u64, len as u64).await.unwrap();
    for (at, content) in data.chunks(block).enumerate() {
        let is_zero = content.iter().all(|byte| *byte == 0);
        let is_old = content == &model[from + at * block..][..block];
        assert!(is_zero || is_old && caps.discard_reads == DiscardReads::OldOrZero);
    }
    model[from..from + len].copy_from_slice(&data);
}

async fn allocation_tiles_and_tells_no_lies(device: &Device, model: &[u8]) {
    let block = u64::from(device.info().logical_block);
    for range in [
        Extent::new(0, SIZE),
        Extent::new(block, 3 << 20),
        Extent::new(SIZE - block, block),
    ] {
        let map = device.allocation(range).await.unwrap();
        assert_eq!(map.range(), range);
        for (extent, what) in map.pieces() {
            if matches!(what, Allocation::Hole | Allocation::Zero) {
                let content = &model[extent.offset() as usize..extent.end() as usize];
                assert!(content.iter().all(|byte| *byte == 0), "{extent} {what:?}");
            }
        }
    }
}

fn file_behaves(options: FileOptions, dir: &TempDir) {
    let path = image(dir, SIZE);
    run(|rt| async move {
        let device = FileDevice::open(&path, &options, &rt).unwrap();
        if options.engine == Engine::Threads {
            assert_eq!(device.engine(), "threads");
        }
        behaves(Arc::new(device), rt).await;
    });
}

#[test]
fn ram_disk_behaves() {
    run(|rt| behaves(Arc::new(RamDisk::new(SIZE)), rt));
}

#[test]
fn file_direct_behaves() {
    file_behaves(FileOptions::default(), &tempfile::tempdir().unwrap());
}

#[test]
fn file_buffered_behaves() {
    let options = FileOptions::default().with_direct(Direct::Off);
    file_behaves(options, &tempfile::tempdir().unwrap());
}

#[test]
fn file_in_4k_blocks_behaves() {
    let options = FileOptions::default().with_logical_block(4096);
    file_behaves(options, &tempfile::tempdir().unwrap());
}

#[test]
fn file_threads_behaves() {
    for direct in [Direct::Auto, Direct::Off] {
        let options = FileOptions::default().with_engine(Engine::Threads);
        file_behaves(options.with_direct(direct), &tempfile::tempdir().unwrap());
    }
}

/// tmpfs makes holes but does not zero ranges: zeroes that must stay allocated are written.
#[test]
fn file_on_tmpfs_behaves() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    file_behaves(FileOptions::default(), &dir);
}

#[test]
fn nbdkit_memory_behaves() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = nbdkit(&dir, &["memory", "12M"]) else {
        return;
    };
    run(|rt| async move { behaves(connect(&server, &rt).await, rt).await });
}

#[test]
fn nbdkit_file_behaves() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, SIZE);
    let Some(server) = nbdkit(&dir, &["file", path.to_str().unwrap()]) else {
        return;
    };
    run(|rt| async move { behaves(connect(&server, &rt).await, rt).await });
}

/// Simple replies only.
#[test]
fn nbdkit_without_structured_replies_behaves() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = nbdkit(&dir, &["--no-sr", "memory", "12M"]) else {
        return;
    };
    run(|rt| async move {
        let device = connect(&server, &rt).await;
        assert!(!device.info().caps.allocation);
        behaves(device, rt).await;
    });
}

/// A server with large blocks asks for read-modify-write above.
#[test]
fn nbdkit_with_4k_blocks_behaves() {
    let dir = tempfile::tempdir().unwrap();
    let filter = ["--filter=blocksize-policy", "memory", "12M"];
    let policy = [
        "blocksize-minimum=4096",
        "blocksize-maximum=1M",
        "blocksize-error-policy=error",
    ];
    let Some(server) = nbdkit(&dir, &[&filter[..], &policy[..]].concat()) else {
        return;
    };
    run(|rt| async move {
        let device = connect(&server, &rt).await;
        let info = device.info();
        assert_eq!((info.logical_block, info.sub_block), (4096, Some(512)));
        assert_eq!(info.transfer_max, 1 << 20);
        behaves(device, rt).await;
    });
}

#[test]
fn qemu_nbd_behaves() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, SIZE);
    let Some(server) = qemu_nbd(&dir, &path) else {
        return;
    };
    run(|rt| async move {
        let device = connect(&server, &rt).await;
        let caps = device.info().caps;
        assert!(caps.allocation && caps.volatile_cache && caps.fast_zeroes);
        assert_eq!(caps.fua, Support::Native);
        behaves(device, rt).await;
    });
}

#[test]
fn allocation_tells_hole_from_data() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, SIZE);
    let expected = |map: vaio_core::AllocationMap| {
        let pieces: Vec<_> = map.pieces().to_vec();
        assert_eq!(
            pieces,
            [
                (Extent::new(0, 1 << 20), Allocation::Hole),
                (Extent::new(1 << 20, 64 << 10), Allocation::Data),
                (
                    Extent::new((1 << 20) + (64 << 10), SIZE - (1 << 20) - (64 << 10)),
                    Allocation::Hole
                ),
            ]
        );
    };
    run(|rt| async move {
        let device = FileDevice::open(&path, &FileOptions::default(), &rt).unwrap();
        device.write(1 << 20, vec![1; 64 << 10]).await.unwrap();
        device.flush().await.unwrap();
        expected(device.allocation(Extent::new(0, SIZE)).await.unwrap());
        drop(device);
        if let Some(server) = qemu_nbd(&dir, &path) {
            let device = connect(&server, &rt).await;
            expected(device.allocation(Extent::new(0, SIZE)).await.unwrap());
        }
    });
}

#[test]
fn fast_only_zeroes_where_not_fast_are_unsupported_and_change_nothing() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    let path = image(&dir, SIZE);
    run(|rt| async move {
        let device = FileDevice::open(&path, &FileOptions::default(), &rt).unwrap();
        device.write(0, vec![5; 4096]).await.unwrap();
        let zero = |may_unmap| {
            device.submit(Io::new(Op::WriteZeroes {
                extent: Extent::new(0, 4096),
                may_unmap,
                fast_only: true,
                fua: false,
            }))
        };
        assert_eq!(
            zero(false).await.unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        assert_eq!(device.read(0, 4096).await.unwrap(), vec![5; 4096]);
        zero(true).await.unwrap();
        assert_eq!(device.read(0, 4096).await.unwrap(), vec![0; 4096]);
    });
}

#[test]
fn read_only_file_refuses_mutations_and_answers_flush() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, SIZE);
    run(|rt| async move {
        let options = FileOptions::default().with_read_only(true);
        let device = FileDevice::open(&path, &options, &rt).unwrap();
        let error = device.write(0, vec![1; 512]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnly);
        assert_eq!(
            device.discard(0, 512).await.unwrap_err().kind(),
            ErrorKind::ReadOnly
        );
        device.flush().await.unwrap();
        assert_eq!(device.read(0, 512).await.unwrap(), vec![0; 512]);
    });
}

#[test]
fn truncated_file_fails_reads_with_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, SIZE);
    run(|rt| async move {
        for direct in [Direct::Auto, Direct::Off] {
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(SIZE)
                .unwrap();
            let options = FileOptions::default().with_direct(direct);
            let device = FileDevice::open(&path, &options, &rt).unwrap();
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(4096)
                .unwrap();
            let error = device.read(4096, 8192).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            let line = error.to_line();
            assert!(
                line.contains("shorter") && line.contains("disk.img"),
                "{line}"
            );
            let error = device.read(0, 8192).await.unwrap_err();
            assert_eq!(error.extent(), Some(Extent::new(0, 8192)));
        }
    });
}

/// A write whose future is dropped still lands, and its memory stays as it was.
#[test]
fn dropped_write_still_lands() {
    for engine in [Engine::IoUring, Engine::Threads] {
        let dir = tempfile::tempdir().unwrap();
        let path = image(&dir, SIZE);
        run(|rt| async move {
            let options = FileOptions::default().with_engine(engine);
            let device = FileDevice::open(&path, &options, &rt).unwrap();
            for at in 0..64u64 {
                let mut io = Box::pin(device.write(at * 4096, vec![at as u8 + 1; 4096]));
                let _ = futures::poll!(&mut io);
            }
            drop(device);
            for _ in 0..200 {
                let content = std::fs::read(&path).unwrap();
                if (0..64).all(|at| content[at * 4096 + 4095] == at as u8 + 1) {
                    return;
                }
                rt.sleep(Duration::from_millis(10)).await;
            }
            panic!("writes were lost with their futures");
        });
    }
}

#[test]
fn runtime_that_ends_first_waits_for_the_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, SIZE);
    let path_of_device = path.clone();
    let device = run(|rt| async move {
        let device = FileDevice::open(&path_of_device, &FileOptions::default(), &rt).unwrap();
        let ios = (0..32u64).map(|at| device.write(at * 4096, vec![9; 4096]));
        let mut all = Box::pin(futures::future::join_all(ios));
        let _ = futures::poll!(&mut all);
        drop(all);
        Arc::new(device)
    });
    let content = std::fs::read(&path).unwrap();
    assert!(content[..32 * 4096].iter().all(|byte| *byte == 9));
    let error = run(|_| async move { device.read(0, 4096).await.unwrap_err() });
    assert_eq!(error.kind(), ErrorKind::Gone);
}

/// Io comes from several threads at once, driven by one.
#[test]
fn submit_from_other_threads_works() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, SIZE);
    run(|rt| async move {
        let device = Arc::new(FileDevice::open(&path, &FileOptions::default(), &rt).unwrap());
        let threads: Vec<_> = (0..4u64)
            .map(|lane| {
                let device = Arc::clone(&device);
                rt.offload_with(move || {
                    let other = tokio::runtime::Builder::new_current_thread()
                        .build()
                        .unwrap();
                    other.block_on(async {
                        for at in 0..100 {
                            let offset = (lane * 100 + at) * 4096;
                            device
                                .write(offset, vec![lane as u8 + 1; 4096])
                                .await
                                .unwrap();
                            let data = device.read(offset, 4096).await.unwrap();
                            assert_eq!(data, vec![lane as u8 + 1; 4096]);
                        }
                    });
                })
            })
            .collect();
        for done in futures::future::join_all(threads).await {
            done.unwrap();
        }
    });
}

#[test]
fn more_io_than_the_ring_holds_is_queued() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, SIZE);
    run(|rt| async move {
        let device = FileDevice::open(&path, &FileOptions::default(), &rt).unwrap();
        let ios = (0..2000u64).map(|at| device.write(at * 4096, vec![at as u8; 4096]));
        for result in futures::future::join_all(ios).await {
            result.unwrap();
        }
        let data = device.read(1999 * 4096, 4096).await.unwrap();
        assert_eq!(data, vec![1999u64 as u8; 4096]);
        let ios = (0..6000u64).map(|at| device.read(at % 2000 * 4096, 4096));
        let results = futures::future::join_all(ios).await;
        let refused = results.iter().filter_map(|result| result.as_ref().err());
        assert!(refused.clone().count() > 0, "the queue has a limit");
        assert!(refused.clone().all(|error| error.kind() == ErrorKind::Busy));
    });
}

#[test]
fn our_lock_keeps_qemu_out() {
    let Some(mut qemu_io) = tool("qemu-io") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, SIZE);
    let lock = ImageLock::take(&path, ImageUse::Write).unwrap();
    qemu_io.args(["-f", "raw", "-c", "write 0 512"]).arg(&path);
    let refused = qemu_io.output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("lock"), "{said}");
    drop(lock);
    assert!(qemu_io.output().unwrap().status.success());
}

#[test]
fn qemus_lock_keeps_us_out_until_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, SIZE);
    let Some(server) = qemu_nbd(&dir, &path) else {
        return;
    };
    let error = ImageLock::take(&path, ImageUse::Write).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let line = error.to_line();
    assert!(
        line.contains("disk.img") && line.contains("stop that first"),
        "{line}"
    );
    drop(server);
    ImageLock::take(&path, ImageUse::Write).unwrap();
}

#[test]
fn lost_connection_fails_all_io_as_gone_for_later() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut server) = nbdkit(&dir, &["--filter=delay", "memory", "12M", "rdelay=30"]) else {
        return;
    };
    run(|rt| async move {
        let device = connect(&server, &rt).await;
        let ios = (0..16u64).map(|at| device.read(at * 4096, 4096));
        let ios = futures::future::join_all(ios);
        let kill = async {
            rt.sleep(Duration::from_millis(100)).await;
            server.child.kill().unwrap();
        };
        let (results, ()) = futures::join!(ios, kill);
        let later = device.write(0, vec![1; 512]).await;
        for error in results
            .into_iter()
            .map(Result::unwrap_err)
            .chain(later.err())
        {
            assert_eq!(
                (error.kind(), error.retry()),
                (ErrorKind::Gone, Retry::Later)
            );
        }
        assert_eq!(device.flush().await.unwrap_err().kind(), ErrorKind::Gone);
    });
}

#[test]
fn nbd_mistakes_are_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let missing = format!("nbd+unix:///?socket={}/none", dir.path().display());
    let open = |text: String| {
        run(|rt| async move {
            let spec: Spec = text.parse().unwrap();
            open_spec(&spec, &FileOptions::default(), &rt)
                .await
                .unwrap_err()
        })
    };
    let error = open(missing);
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(
        error.to_line().contains("is the NBD server running"),
        "{}",
        error.to_line()
    );
    let path = image(&dir, SIZE);
    let Some(server) = qemu_nbd(&dir, &path) else {
        return;
    };
    let error = open(server.uri.replace("/?", "/other?"));
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(
        error.to_line().contains("no such export"),
        "{}",
        error.to_line()
    );
}

#[test]
fn nbd_server_error_keeps_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let filter = ["--filter=error", "memory", "12M"];
    let faults = ["error-pwrite=ENOSPC", "error-pwrite-rate=100%"];
    let Some(server) = nbdkit(&dir, &[&filter[..], &faults[..]].concat()) else {
        return;
    };
    run(|rt| async move {
        let spec: Spec = server.uri.parse().unwrap();
        let Spec::Nbd(uri) = spec else { unreachable!() };
        let device = NbdDevice::connect(&uri, false, &rt).await.unwrap();
        let error = device.write(0, vec![1; 512]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(error.extent(), Some(Extent::new(0, 512)));
        assert_eq!(device.read(0, 512).await.unwrap(), vec![0; 512]);
    });
}

/// Certificates as NBD tools lay them out.
fn certificates(dir: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let root = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["localhost".into()]).unwrap();
    let server = server.signed_by(&key, &issuer).unwrap();
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    write("ca-cert.pem", root.pem());
    write("server-cert.pem", server.pem());
    write("server-key.pem", key.serialize_pem());
}

#[test]
fn nbd_over_tls_behaves_and_plain_is_told_to_use_it() {
    let (dir, wrong) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(dir.path());
    certificates(wrong.path());
    let option = format!("--tls-certificates={}", dir.path().display());
    let Some(server) = nbdkit(&dir, &["--tls=require", &option, "memory", "12M"]) else {
        return;
    };
    run(|rt| async move {
        let options = FileOptions::default();
        let plain: Spec = server.uri.parse().unwrap();
        let error = open_spec(&plain, &options, &rt).await.unwrap_err();
        assert!(error.to_line().contains("use nbds"), "{}", error.to_line());
        let uri = server.uri.replace("nbd+", "nbds+");
        let with = |dir: &TempDir| -> Spec {
            let text = format!("{uri}&tls-certificates={}", dir.path().display());
            text.parse().unwrap()
        };
        let error = open_spec(&with(&wrong), &options, &rt).await.unwrap_err();
        assert!(error.to_line().contains("TLS"), "{}", error.to_line());
        let bare: Spec = uri.parse().unwrap();
        let error = open_spec(&bare, &options, &rt).await.unwrap_err();
        assert!(
            error.to_line().contains("tls-certificates=DIR"),
            "{}",
            error.to_line()
        );
        behaves(open_spec(&with(&dir), &options, &rt).await.unwrap(), rt).await;
    });
}
