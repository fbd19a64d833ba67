//! Encrypts a disk, and shows what is refused so that nothing is ever stored in clear or read as
//! garbage.
//!
//! `cargo run -p vaio-examples --example encrypt`

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path, sync::Arc};

use vaio_core::{
    Allocation, BlockDevice, BlockDeviceExt, DirtyDisposition, Disk, DiskBuilder, Error, Extent,
    FilterSpec, Io, MemorySidecar, Policy, RamDisk, Result, Rt,
};
use vaio_host::runtime::HostRuntime;

const SECRET: &[u8; 512] = &[b'S'; 512];

fn main() -> Result<()> {
    HostRuntime::run(show)?
}

async fn show(rt: Rt) -> Result<()> {
    let folder = tempfile::tempdir().map_err(|cause| Error::io("no folder for keys", cause))?;
    let (right, wrong) = (
        folder.path().join("right.key"),
        folder.path().join("wrong.key"),
    );
    make_key(&right, &rt)?;
    make_key(&wrong, &rt)?;
    // What outlives a process: the device, and the sidecar beside it.
    let device = Arc::new(RamDisk::new(64 << 20));
    let sidecar = Arc::new(MemorySidecar::default());
    let describe = |policy: Policy| -> DiskBuilder {
        Disk::builder(Arc::clone(&device) as Arc<dyn BlockDevice>, Arc::clone(&rt))
            .policy(policy, vaio_examples::registry())
            .sidecar(Arc::clone(&sidecar) as _)
    };
    let encrypted_with = |key: &Path| {
        let spec = FilterSpec::new("encrypt").with("key_file", key.display().to_string());
        describe(Policy::empty().with(spec))
    };

    let disk = encrypted_with(&right).open().await?;
    disk.submit(Io::write(0, SECRET.as_slice().into())).await?;
    let above = disk
        .submit(Io::read(Extent::new(0, 512)))
        .await?
        .into_data();
    let below = device.read(0, 512).await?;
    println!(
        "guest reads {:?}..., the device holds {:02x?}...",
        &above[..4],
        &below[..4]
    );
    assert_eq!(above, &SECRET[..]);
    assert!(below.windows(4).all(|window| window != b"SSSS"));

    let map = disk.allocation(Extent::new(0, 64 << 20)).await?;
    assert!(
        map.pieces()
            .iter()
            .all(|(_, what)| !matches!(what, Allocation::Hole | Allocation::Zero))
    );
    println!("holes of the device are not reported as zeroes");

    let refused = disk.detach("encrypt", DirtyDisposition::Refuse).await;
    println!(
        "detach:    {}",
        refused.expect_err("there is data").to_line()
    );
    disk.close().await?;

    let refused = describe(Policy::empty()).open().await;
    println!(
        "left out:  {}",
        refused.expect_err("content needs the filter").to_line()
    );
    let refused = encrypted_with(&wrong).open().await;
    println!("wrong key: {}", refused.expect_err("another key").to_line());

    let disk = encrypted_with(&right).open().await?;
    assert_eq!(
        disk.submit(Io::read(Extent::new(0, 512)))
            .await?
            .into_data(),
        &SECRET[..]
    );
    println!("ok: opened again with the right key, content is there");
    disk.close().await
}

/// 64 bytes that only their owner may read. A real key comes from a key store, or from
/// `head -c 64 /dev/random`.
fn make_key(path: &Path, rt: &Rt) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|cause| Error::io("cannot make the key file", cause))?;
    for _ in 0..8 {
        file.write_all(&rt.entropy().to_le_bytes())
            .map_err(|cause| Error::io("cannot write the key", cause))?;
    }
    Ok(())
}
