//! A filter that is made to fail, and is then left out or not, as it declares.
//!
//! The failure is a panic in `io` or its hooks, which the framework contains. Whether it goes on
//! without the filter is what the filter declares and what its `state` says at that moment, nothing
//! else: so this is where a filter is found that holds data and says that it is clean.

use std::{
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use vaio_core::{
    AllocationMap, AttachContext, Descriptor, DeviceInfo, DirtySource, Disk, Filter, FilterFactory,
    FilterState, Health, Hooks, Io, Lifecycle, Next, Outcome, Passed, Reply, Result, Verdict,
};

use super::{Bench, Broken, Script, seeds};
use crate::{
    GuestOp,
    explore::{Guest, OnError},
};

pub(super) fn find(name: &str) -> Option<Script> {
    Some(match name {
        "bypass::filter_fails" => |subject, budget| {
            let fuse = Fuse::default();
            let own = Arc::clone(&fuse);
            let armed = subject.wrapped(move |factory| {
                let fuse = Arc::clone(&own);
                Arc::new(ArmedFactory { factory, fuse })
            });
            seeds(&armed, budget, 60, |bench| filter_fails(bench, &fuse))
        },
        _ => return None,
    })
}

/// While it burns, every IO of the filter panics.
type Fuse = Arc<AtomicBool>;

#[derive(Debug)]
struct ArmedFactory {
    factory: Arc<dyn FilterFactory>,
    fuse: Fuse,
}

#[derive(Debug)]
struct Armed {
    filter: Arc<dyn Filter>,
    fuse: Fuse,
}

#[derive(Debug)]
struct ArmedHooks {
    hooks: Arc<dyn Hooks>,
    fuse: Fuse,
}

fn burn(fuse: &Fuse) {
    if fuse.load(Relaxed) {
        // Not `panic!`: that would also print.
        resume_unwind(Box::new("the testkit makes the filter fail"));
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl FilterFactory for ArmedFactory {
    fn descriptor(&self) -> Descriptor {
        self.factory.descriptor()
    }

    async fn prepare(&self, cx: &AttachContext) -> Result<()> {
        self.factory.prepare(cx).await
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let filter = self.factory.open(cx).await?;
        let fuse = Arc::clone(&self.fuse);
        Ok(Arc::new(Armed { filter, fuse }))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Filter for Armed {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        burn(&self.fuse);
        self.filter.io(io, next).await
    }

    fn hooks(self: Arc<Self>) -> Option<Arc<dyn Hooks>> {
        let hooks = Arc::clone(&self.filter).hooks()?;
        let fuse = Arc::clone(&self.fuse);
        Some(Arc::new(ArmedHooks { hooks, fuse }))
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        self.filter.shape(below)
    }

    async fn lifecycle(&self, event: Lifecycle<'_>) -> Result<Outcome> {
        self.filter.lifecycle(event).await
    }

    fn state(&self) -> FilterState {
        self.filter.state()
    }

    fn dirty(&self) -> Option<Arc<dyn DirtySource>> {
        self.filter.dirty()
    }

    fn allocation(&self, below: AllocationMap) -> AllocationMap {
        self.filter.allocation(below)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Hooks for ArmedHooks {
    fn before(&self, io: &Io) -> Verdict {
        burn(&self.fuse);
        self.hooks.before(io)
    }

    fn after(&self, io: &Passed, answer: Option<&Result<Reply>>) {
        self.hooks.after(io, answer);
    }
}

/// The filter fails after some work. Left out, the guest notices nothing, then and after the next
/// open; not left out, IO fails, and the next open has everything.
fn filter_fails(bench: &Bench, fuse: &Fuse) -> std::result::Result<(), Broken> {
    fuse.store(false, Relaxed);
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    let work = bench.workload(12);
    bench.run(bench.guest(&disk, 2).run(&work[..6.min(work.len())]))?;

    fuse.store(true, Relaxed);
    let first = GuestOp::Read {
        block: 0,
        count: bench.blocks,
    };
    let failing = Guest {
        on_error: OnError::Allowed,
        ..bench.guest(&disk, 1)
    };
    bench.run(failing.submit(first)).map_err(bad_bypass)?;
    let is_left_out = disk
        .state()
        .layers
        .iter()
        .all(|layer| layer.health == Health::Bypassed);
    if is_left_out {
        bench.run(left_out(bench, &disk)).map_err(bad_bypass)?;
        bench.must("close", disk.close())?;
        host.kill();
    } else {
        host.kill();
        drop(disk);
        for disk in bench.rig.disks() {
            disk.settle();
        }
        bench.belief.oracle().crash();
    }

    fuse.store(false, Relaxed);
    let host = bench.host("again");
    let disk = bench.open(&host)?;
    let read = bench.run(bench.guest(&disk, 1).read_all());
    if is_left_out {
        read.map_err(bad_bypass)?;
    } else {
        read?;
    }
    bench.must("close", disk.close())
}

/// What the guest does without the filter.
async fn left_out(bench: &Bench, disk: &Disk) -> std::result::Result<(), Broken> {
    let guest = bench.guest(disk, 2);
    guest.read_all().await?;
    guest.run(&bench.workload(10)).await?;
    guest.read_all().await
}

fn bad_bypass(mut broken: Broken) -> Broken {
    broken.rule = "bad-bypass".into();
    broken.what = format!(
        "the filter panicked, and was left out as it declares it may be\n{}",
        broken.what
    );
    broken
}
