//! `vaio cache recover`: opens the disk with its cache and nothing else, as `vaio serve` would,
//! and brings everything to the disk.
//!
//! So that there is one recovery: order, identity, damage and repetition after a crash are the
//! filter's and the framework's; locks are those of a running host. What is added here: nothing is
//! opened without the sidecar that names the cache device, because such an open would make a new
//! log. A dry run does the same over devices that discard what is written.

use std::{fs, io::IsTerminal as _, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use vaio_cache::{CACHE_DEVICE, CacheFactory, NAME, inspect::Depth};
use vaio_core::{
    Disk, Error, ErrorKind, FilterRegistry, FilterSpec, Level, MemorySidecar, Policy, Result, Rt,
    SIDECAR_BYTES_MAX, SidecarStore, sidecar_value,
};

use super::{
    RecoverArgs,
    discarding::{Discarding, DiscardingDevices},
    inspect,
};
use crate::{
    client,
    device::{FileOptions, Spec, open_spec},
    exit::{At, Failure, Outcome, Stage},
    filter_devices::FilterDevices,
    plan::{self, DiskPlan},
    runtime::HostRuntime,
    show::units::bytes,
    stack::{self, Host, Locks, Made},
};

/// Time between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Key of the cache device's identity in the sidecar.
const IDENTITY: &str = "cache.identity";

/// Recovers.
///
/// # Errors
/// What was refused or failed; the cache device then still holds what was not brought.
pub(super) fn run(args: &RecoverArgs) -> Outcome<()> {
    let cache: Spec = args.file.parse().at(Stage::Usage)?;
    let plan = plan_of(args)?;
    let content = sidecar_content(&plan)?;
    HostRuntime::run(|rt| async move {
        check_identity(args, &cache, &content, &rt).await?;
        if args.dry_run {
            dry_run(args, &plan, content, &rt).await
        } else {
            recover(args, &plan, &rt).await
        }
    })
    .at(Stage::Serve)?
}

fn plan_of(args: &RecoverArgs) -> Outcome<DiskPlan> {
    let spec = plan::parse_spec(&args.onto, None)?;
    let mut filter = FilterSpec::new(NAME).with(CACHE_DEVICE, args.file.as_str());
    if let Some(bytes) = args.discard_dirty {
        filter = filter.with("discard_dirty", bytes.to_string());
    }
    let mut plan = DiskPlan {
        name: plan::name_of(&spec),
        spec,
        text: args.onto.clone(),
        create: None,
        policy: Policy {
            filters: vec![filter],
        },
        sidecar: args.sidecar.clone(),
    };
    if plan.sidecar.is_none() {
        plan.sidecar = plan::beside(&plan, "vaio");
    }
    Ok(plan)
}

fn sidecar_content(plan: &DiskPlan) -> Outcome<Bytes> {
    let needed = |path: &PathBuf, cause: Option<std::io::Error>| {
        let text = format!(
            "the disk's sidecar is needed: it says which cache device is the disk's own; name it \
             with --sidecar, path={}",
            path.display()
        );
        let error = Error::config(text);
        let error = match cause {
            Some(cause) => error.with_source(cause),
            None => error,
        };
        Failure::new(Stage::Disk, error)
    };
    let Some(path) = &plan.sidecar else {
        return Err(needed(&PathBuf::from("none"), None));
    };
    let len = fs::metadata(path).map_err(|cause| needed(path, Some(cause)))?;
    if len.len() > SIDECAR_BYTES_MAX as u64 {
        return Err(needed(path, None));
    }
    let content = fs::read(path).map_err(|cause| needed(path, Some(cause)))?;
    Ok(content.into())
}

/// Refuses a cache device that is not the one that the sidecar names, unless the operator gives
/// its content up; and a disk that has no cache.
async fn check_identity(args: &RecoverArgs, cache: &Spec, content: &Bytes, rt: &Rt) -> Outcome<()> {
    let refused = |text: String| Failure::new(Stage::Disk, Error::new(ErrorKind::Refused, text));
    let wanted = sidecar_value(content, IDENTITY).at(Stage::Disk)?;
    let wanted = wanted.and_then(|id| Some(u64::from_le_bytes(id[..].try_into().ok()?)));
    let Some(wanted) = wanted else {
        return Err(refused(format!(
            "the sidecar names no cache device, so there is nothing to bring to this disk; find \
             the right disk, disk={}",
            args.onto
        )));
    };
    let found = inspect::read(cache, Depth::Headers, rt)
        .await
        .at(Stage::Disk)
        .map_err(|failure| failure.with_place("file", &args.file))?;
    if let Some(version) = found.other_version() {
        let text = inspect::of_other_version(version);
        return Err(refused(format!("{text}, file={}", args.file)));
    }
    let found = found.log.map(|log| log.identity);
    if found == Some(wanted) || args.discard_dirty.is_some() {
        return Ok(());
    }
    let found = found.map_or("none".into(), |id| format!("{id:016x}"));
    Err(refused(format!(
        "this is not the disk's cache device; find the right one, file={} identity={found} \
         wanted={wanted:016x}",
        args.file
    )))
}

async fn recover(args: &RecoverArgs, plan: &DiskPlan, rt: &Rt) -> Outcome<()> {
    let registry = registry();
    let options = FileOptions::default();
    let host = Host {
        rt,
        registry: &registry,
        options: &options,
        vm: "recover",
    };
    let mut made = Made::default();
    let disk = stack::open(plan, &host, &mut made).await?.disk;
    made.keep();
    let held = disk.dirty(Level::BackingDurable).bytes;
    let destaged = destage(&disk, rt).await;
    // Closed in order also where that failed: the log keeps what is left.
    let closed = disk.close().await;
    destaged.and(closed).at(Stage::Serve)?;
    client::print(&format!(
        "{} of {} are on {}; the disk can be opened without its cache\n",
        bytes(held),
        args.file,
        args.onto
    ))
}

async fn destage(disk: &Disk, rt: &Rt) -> Result<()> {
    let flushing = disk.flush_to(Level::BackingDurable)?;
    loop {
        match flushing.wait(rt.now() + PROGRESS_EVERY).await {
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                if std::io::stderr().is_terminal() {
                    eprintln!("{} left", bytes(flushing.progress().remaining_bytes));
                }
            }
            ended => return ended,
        }
    }
}

/// Opens everything, changes nothing, and says what there is.
async fn dry_run(args: &RecoverArgs, plan: &DiskPlan, content: Bytes, rt: &Rt) -> Outcome<()> {
    let options = FileOptions::default().with_read_only(true);
    let mut made = Made::default();
    let locks = Locks::take(plan, &FileOptions::default(), &mut made).at(Stage::Disk)?;
    let below = open_spec(&plan.spec, &options, rt).await.at(Stage::Disk)?;
    let sidecar = Arc::new(MemorySidecar::default());
    sidecar.replace(content).await.at(Stage::Disk)?;
    let devices = Arc::new(FilterDevices::new(Arc::clone(rt), options));
    let disk = Disk::builder(Arc::new(Discarding(below)), Arc::clone(rt))
        .name(plan.name.as_str())
        .policy(plan.policy.clone(), registry())
        .sidecar(sidecar)
        .devices(Arc::new(DiscardingDevices(devices)))
        .lock(Box::new(locks))
        .open()
        .await
        .at(Stage::Disk)
        .map_err(|failure| failure.with_place("path", &plan.text))?;
    let dirty = disk.dirty(Level::BackingDurable);
    client::print(&format!(
        "would bring {} of {} to {}\n",
        bytes(dirty.bytes),
        args.file,
        args.onto
    ))
}

fn registry() -> FilterRegistry {
    FilterRegistry::default().with(CacheFactory::default())
}
