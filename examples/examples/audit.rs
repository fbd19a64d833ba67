//! Watches a disk: who changed what, as lines of JSON in a file.
//!
//! `cargo run -p vaio-examples --example audit`

use std::{fs, sync::Arc};

use vaio_core::{
    Disk, Error, Extent, FilterSpec, Io, OpKind, Origin, Policy, RamDisk, Result, Rt, zeroes,
};
use vaio_host::runtime::HostRuntime;

fn main() -> Result<()> {
    HostRuntime::run(show)?
}

async fn show(rt: Rt) -> Result<()> {
    let io_error = |cause| Error::io("the audit file is not there", cause);
    let folder = tempfile::tempdir().map_err(io_error)?;
    let path = folder.path().join("audit.jsonl");
    let audit = FilterSpec::new("audit").with("path", path.display().to_string());

    let disk = Disk::builder(Arc::new(RamDisk::new(1 << 30)), rt)
        .vm("web-3")
        .name("vda")
        .policy(Policy::empty().with(audit), vaio_examples::registry())
        .open()
        .await?;
    disk.submit(Io::write(0, zeroes(4096))).await?;
    disk.submit(Io::read(Extent::new(0, 4096))).await?;
    disk.submit(Io::discard(Extent::new(1 << 20, 65_536)).with_origin(Origin::Backup))
        .await?;
    let past_the_end = disk.submit(Io::write(1 << 30, zeroes(512))).await;
    assert!(
        past_the_end.is_err(),
        "refused at the port, so it never came to the filter"
    );
    let stats = disk.stats();
    disk.close().await?;

    let trail = fs::read_to_string(&path).map_err(io_error)?;
    print!("{trail}");
    assert_eq!(
        trail.lines().count(),
        2,
        "a write and a discard; a read changes nothing"
    );
    assert!(trail.contains("\"origin\":\"backup\""));
    let (kind, reads) = stats.layers[0].ios[0];
    assert_eq!(
        (kind, reads),
        (OpKind::Read, 0),
        "reads went past the filter"
    );
    println!("ok: 2 changes, 2 lines");
    Ok(())
}
