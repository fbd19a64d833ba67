//! Encryption: content hidden, everything that would break it refused, holes never zero.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use support::*;
use vaio_core::*;
use vaio_examples::encrypt::{OFFLOAD_BYTES_MIN, key::Key};

const CAPACITY: u64 = 16 << 20;

/// A folder with a key file for each seed, a device and a sidecar: what outlives a disk.
struct World {
    folder: tempfile::TempDir,
    device: Arc<RamDisk>,
    sidecar: Arc<MemorySidecar>,
}

impl World {
    fn new() -> Self {
        Self::over(RamDisk::new(CAPACITY))
    }

    fn over(device: RamDisk) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            folder,
            device: Arc::new(device),
            sidecar: Arc::default(),
        }
    }

    fn key_file(&self, seed: u8) -> PathBuf {
        let key: Vec<u8> = (0..64).map(|at| at ^ seed).collect();
        self.file(&format!("key{seed}"), &key, 0o600)
    }

    fn file(&self, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn encrypt(&self, seed: u8) -> FilterSpec {
        with_key(&self.key_file(seed))
    }

    async fn open(&self, filters: &[FilterSpec]) -> Result<Disk> {
        let device = Arc::clone(&self.device) as Arc<dyn BlockDevice>;
        builder(device, filters)
            .sidecar(Arc::clone(&self.sidecar) as _)
            .open()
            .await
    }

    async fn raw(&self, offset: u64, len: u64) -> Vec<u8> {
        let read = self.device.submit(Io::read(Extent::new(offset, len))).await;
        read.unwrap().into_data().to_vec()
    }
}

fn with_key(path: &Path) -> FilterSpec {
    FilterSpec::new("encrypt").with("key_file", path.to_str().unwrap())
}

#[tokio::test]
async fn content_reads_back_concurrently_and_below_is_no_plaintext() {
    let world = World::new();
    let disk = world.open(&[world.encrypt(1)]).await.unwrap();
    verify_concurrently(&disk).await;
    let (above, below) = (
        read(&disk, 0, 1 << 20).await.unwrap(),
        world.raw(0, 1 << 20).await,
    );
    // No 16 bytes of any plaintext block stand anywhere below.
    let plain: std::collections::HashSet<&[u8]> = above.chunks(16).collect();
    assert!(below.windows(16).all(|window| !plain.contains(window)));
}

#[tokio::test]
async fn small_and_large_io_use_the_same_cipher() {
    let world = World::new();
    let disk = world.open(&[world.encrypt(1)]).await.unwrap();
    let plain: Vec<u8> = (0..2 * OFFLOAD_BYTES_MIN)
        .map(|at| u8::try_from(at / 7 % 253).unwrap())
        .collect();
    disk.submit(Io::write(4096, plain.clone().into()))
        .await
        .unwrap();
    assert_eq!(detail(&disk, "encrypt", "offloaded"), "1");
    for (block, wanted) in plain.chunks(512).enumerate() {
        let got = read(&disk, 4096 + block as u64 * 512, 512).await.unwrap();
        assert_eq!(got, wanted);
    }
    let mut below = world.raw(4096, plain.len() as u64).await;
    Key::read(&world.key_file(1))
        .unwrap()
        .decrypt(4096, &mut below);
    assert_eq!(
        below, plain,
        "another implementation's view of the raw disk"
    );
}

#[tokio::test]
async fn written_zeroes_are_encrypted_and_discard_leaves_content() {
    let world = World::new();
    let disk = world.open(&[world.encrypt(1)]).await.unwrap();
    let extent = Extent::new(0, 64 << 10);
    write(&disk, 0, 7, 64 << 10).await.unwrap();
    disk.submit(Io::discard(extent)).await.unwrap();
    assert_eq!(read(&disk, 0, 64 << 10).await.unwrap(), vec![7; 64 << 10]);
    disk.submit(Io::write_zeroes(extent)).await.unwrap();
    assert_eq!(read(&disk, 0, 64 << 10).await.unwrap(), vec![0; 64 << 10]);
    let below = world.raw(0, 64 << 10).await;
    assert!(
        below
            .chunks(512)
            .all(|sector| sector.iter().any(|byte| *byte != 0))
    );
    let caps = disk.info().caps;
    assert_eq!(
        (caps.write_zeroes, caps.discard),
        (Support::Emulated, Support::Emulated)
    );
    assert!(!caps.fast_zeroes);
    let fast = Op::WriteZeroes {
        extent,
        may_unmap: true,
        fast_only: true,
        fua: false,
    };
    assert_eq!(
        disk.submit(Io::new(fast)).await.unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

#[tokio::test]
async fn holes_are_unmapped_never_zero_and_unwritten_blocks_are_stable() {
    let world = World::new();
    let disk = world.open(&[world.encrypt(1)]).await.unwrap();
    write(&disk, 1 << 20, 7, 64 << 10).await.unwrap();
    let map = disk.allocation(Extent::new(0, CAPACITY)).await.unwrap();
    let data = Extent::new(1 << 20, 64 << 10);
    for (extent, what) in map.pieces() {
        let wanted = if *extent == data {
            Allocation::Data
        } else {
            Allocation::Unmapped
        };
        assert_eq!(*what, wanted, "{extent}");
    }
    let first = read(&disk, 8 << 20, 4096).await.unwrap();
    assert_ne!(first, vec![0; 4096]);
    disk.close().await.unwrap();
    let disk = world.open(&[world.encrypt(1)]).await.unwrap();
    assert_eq!(read(&disk, 8 << 20, 4096).await.unwrap(), first);
}

#[tokio::test]
async fn wrong_key_is_refused_before_any_io() {
    let world = World::new();
    let disk = world.open(&[world.encrypt(1)]).await.unwrap();
    write(&disk, 0, 7, 512).await.unwrap();
    disk.close().await.unwrap();
    let error = world.open(&[world.encrypt(2)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("not the key"), "{error}");
    let disk = world.open(&[world.encrypt(1)]).await.unwrap();
    assert_eq!(read(&disk, 0, 512).await.unwrap(), vec![7; 512]);
    let error = disk.replace("encrypt", world.encrypt(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(read(&disk, 0, 512).await.unwrap(), vec![7; 512]);
}

#[tokio::test]
async fn disk_with_data_takes_no_encryption_and_gives_none_up() {
    let world = World::new();
    let disk = world.open(&[]).await.unwrap();
    write(&disk, 0, 7, 512).await.unwrap();
    let error = disk.attach(world.encrypt(1)).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.filter()),
        (ErrorKind::Refused, Some("encrypt"))
    );
    assert_eq!(read(&disk, 0, 512).await.unwrap(), vec![7; 512]);
    disk.close().await.unwrap();
    assert_eq!(
        world.open(&[world.encrypt(1)]).await.unwrap_err().kind(),
        ErrorKind::Refused
    );

    let world = World::new();
    let disk = world.open(&[world.encrypt(1)]).await.unwrap();
    write(&disk, 0, 7, 512).await.unwrap();
    let error = disk
        .detach("encrypt", DirtyDisposition::Flush)
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.filter()),
        (ErrorKind::Refused, Some("encrypt"))
    );
    assert_eq!(read(&disk, 0, 512).await.unwrap(), vec![7; 512]);
}

#[tokio::test]
async fn empty_disk_takes_encryption_gives_it_up_and_takes_another_key() {
    let world = World::new();
    let disk = world.open(&[]).await.unwrap();
    disk.attach(world.encrypt(1)).await.unwrap();
    disk.detach("encrypt", DirtyDisposition::Refuse)
        .await
        .unwrap();
    disk.attach(world.encrypt(2)).await.unwrap();
    write(&disk, 0, 7, 512).await.unwrap();
    disk.close().await.unwrap();
    assert!(world.open(&[world.encrypt(1)]).await.is_err());
    let disk = world.open(&[world.encrypt(2)]).await.unwrap();
    assert_eq!(read(&disk, 0, 512).await.unwrap(), vec![7; 512]);
}

#[tokio::test]
async fn encrypted_disk_is_not_opened_without_its_filter() {
    let world = World::new();
    let disk = world.open(&[world.encrypt(1)]).await.unwrap();
    write(&disk, 0, 7, 512).await.unwrap();
    // Not closed: a killed process.
    drop(disk);
    let error = world.open(&[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("missing=encrypt"), "{error}");
    let disk = world.open(&[world.encrypt(1)]).await.unwrap();
    assert_eq!(read(&disk, 0, 512).await.unwrap(), vec![7; 512]);
}

#[tokio::test]
async fn device_with_large_blocks_is_encrypted_in_the_same_sectors() {
    let world = World::over(RamDisk::with_block(CAPACITY, 4096));
    let disk = world.open(&[world.encrypt(1)]).await.unwrap();
    write(&disk, 4096, 7, 4096).await.unwrap();
    let mut below = world.raw(4096, 4096).await;
    let key = Key::read(&world.key_file(1)).unwrap();
    key.decrypt(4096, &mut below[..512]);
    assert_eq!(below[..512], [7; 512]);
}

#[tokio::test]
async fn bad_key_files_are_refused_by_name_and_never_shown() {
    let world = World::new();
    let secret = [b'S'; 64];
    for (path, word) in [
        (world.folder.path().join("none"), "cannot be read"),
        (world.folder.path().to_path_buf(), "chmod 600"),
        (world.file("open", &secret, 0o644), "chmod 600"),
        (world.file("group", &secret, 0o640), "chmod 600"),
        (world.file("short", &secret[..40], 0o600), "64 bytes"),
        (world.file("long", &[b'S'; 4096], 0o600), "64 bytes"),
        (world.file("same", &secret, 0o600), "equal"),
    ] {
        let error = world.open(&[with_key(&path)]).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.filter()),
            (ErrorKind::Config, Some("encrypt"))
        );
        let line = error.to_line();
        assert!(line.contains(word) && !line.contains("SSSS"), "{line}");
    }
    assert!(
        world
            .open(&[FilterSpec::new("encrypt")])
            .await
            .unwrap_err()
            .to_string()
            .contains("key_file")
    );
    let key = Key::read(&world.key_file(1)).unwrap();
    assert_eq!(format!("{key:?}"), "Key(..)");
    assert_eq!(
        world.raw(0, 4096).await,
        vec![0; 4096],
        "nothing was changed"
    );
}
