//! Life cycle, bypass and ordered targets.

use vaio_core::{BypassSafety, Content, DirtyDisposition, DiskPhase, Level};

use super::{Bench, Broken, Script, seeds};
use crate::{
    GuestOp,
    explore::{BACKING, values_of},
    subject::Target,
};

pub(super) fn find(name: &str) -> Option<Script> {
    Some(match name {
        "lifecycle::close_and_open" => |subject, budget| seeds(subject, budget, 60, close_and_open),
        "lifecycle::detach" => |subject, budget| seeds(subject, budget, 60, detach),
        "lifecycle::replace" => |subject, budget| seeds(subject, budget, 60, replace),
        "lifecycle::reopen_often" => |subject, budget| seeds(subject, budget, 20, reopen_often),
        "lifecycle::shape" => |subject, budget| seeds(subject, budget, 4, shape),
        "bypass::transparent_when_allowed" => {
            |subject, budget| seeds(subject, budget, 60, transparent)
        }
        "ordered::quiet_target_equals" => {
            |subject, budget| seeds(subject, budget, 40, quiet_target)
        }
        _ => return None,
    })
}

/// What was written is there after a clean close, and after a close with work in between.
fn close_and_open(bench: &Bench) -> Result<(), Broken> {
    for _ in 0..3 {
        let host = bench.host("host");
        let disk = bench.open(&host)?;
        let guest = bench.guest(&disk, 2);
        bench.run(guest.read_all())?;
        bench.run(guest.run(&bench.workload(8)))?;
        bench.must("close", disk.close())?;
        if disk.state().phase != DiskPhase::Closed {
            return Err(Broken::new(
                "close-failed",
                "the disk is not closed after a close",
            ));
        }
        host.kill();
    }
    Ok(())
}

/// The filter detached, everything is on the lower device and the guest goes on; attached again,
/// it goes on as well. A filter that changes content refuses on a disk with data.
fn detach(bench: &Bench) -> Result<(), Broken> {
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    let name = bench.subject.name();
    bench.run(bench.guest(&disk, 2).run(&bench.workload(8)))?;
    bench.run(bench.guest(&disk, 1).submit(GuestOp::Write {
        block: 0,
        count: 1,
        fua: true,
    }))?;
    let detached = bench.sim.run(disk.detach(name, DirtyDisposition::Flush))?;
    if bench.subject.descriptor().rechain != vaio_core::Rechain::Live {
        return match detached {
            Err(_) => bench.run(bench.guest(&disk, 1).read_all()),
            Ok(()) => Err(Broken::new(
                "detach-allowed",
                "a filter that may not leave a disk with data was detached from one",
            )),
        };
    }
    detached
        .map_err(|error| Broken::new("error", format!("detach failed\n  {}", error.to_line())))?;
    bench.run(bench.guest(&disk, 1).submit(GuestOp::Flush))?;
    bench.backing_holds_all("detach-lost")?;
    bench.run(bench.guest(&disk, 2).read_all())?;
    bench.run(bench.guest(&disk, 2).run(&bench.workload(5)))?;
    bench.must("attach", disk.attach(bench.subject.spec().clone()))?;
    bench.run(bench.guest(&disk, 2).read_all())?;
    bench.run(bench.guest(&disk, 2).run(&bench.workload(6)))?;
    bench.run(bench.guest(&disk, 2).read_all())?;
    bench.must("close", disk.close())
}

/// Replaced by itself under data, nothing changes.
fn replace(bench: &Bench) -> Result<(), Broken> {
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    let name = bench.subject.name();
    for _ in 0..2 {
        bench.run(bench.guest(&disk, 2).run(&bench.workload(8)))?;
        if bench.subject.descriptor().rechain != vaio_core::Rechain::Live {
            let replaced = bench
                .sim
                .run(disk.replace(name, bench.subject.spec().clone()))?;
            if replaced.is_ok() {
                let what = "a filter that may not leave a disk with data was replaced on one";
                return Err(Broken::new("replace-allowed", what));
            }
            bench.run(bench.guest(&disk, 2).read_all())?;
            continue;
        }
        bench.must("replace", disk.replace(name, bench.subject.spec().clone()))?;
        bench.run(bench.guest(&disk, 2).read_all())?;
    }
    bench.must("close", disk.close())
}

/// Ten opens, half of them after a process kill.
fn reopen_often(bench: &Bench) -> Result<(), Broken> {
    for round in 0..10 {
        let host = bench.host("host");
        let disk = bench.open(&host)?;
        let guest = bench.guest(&disk, 2);
        bench.run(guest.read_all())?;
        bench.run(guest.run(&bench.workload(3)))?;
        if round % 2 == 0 {
            bench.must("close", disk.close())?;
            host.kill();
        } else {
            host.kill();
            for disk in bench.rig.disks() {
                disk.settle();
            }
            bench.belief.oracle().crash();
        }
    }
    Ok(())
}

/// The shape above is one that a guest can live with, and the same at every open.
fn shape(bench: &Bench) -> Result<(), Broken> {
    let mut before = None;
    for _ in 0..3 {
        let host = bench.host("host");
        let disk = bench.open(&host)?;
        let info = disk.info();
        info.validate()
            .map_err(|error| Broken::new("shape", error.to_line()))?;
        let blocks = info.capacity / u64::from(info.logical_block);
        if blocks < bench.blocks {
            let what = format!(
                "the guest's disk is smaller than the kit expects: blocks={blocks} expected={}; \
                say so with Subject::guest_blocks",
                bench.blocks
            );
            return Err(Broken::new("shape", what));
        }
        if before.is_some_and(|before| before != info) {
            return Err(Broken::new(
                "shape",
                "the shape is another one at the next open",
            ));
        }
        before = Some(info);
        bench.must("close", disk.close())?;
        host.kill();
    }
    Ok(())
}

/// A filter that says that it may be bypassed leaves nothing behind: `Always`, at any moment;
/// `WhenClean`, whenever it says that nothing is dirty.
fn transparent(bench: &Bench) -> Result<(), Broken> {
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    let guest = bench.guest(&disk, 1);
    let always = bench.subject.descriptor().bypass == BypassSafety::Always;
    for op in bench.workload(20) {
        bench.run(guest.submit(op))?;
        let is_dirty = disk.dirty(Level::BackingDurable).bytes > 0 || disk.state().dirty_bytes > 0;
        if is_dirty && !always {
            continue;
        }
        let backing = bench
            .rig
            .disk(BACKING)
            .expect("there is a lower device")
            .snapshot();
        let mut oracle = bench.belief.oracle().clone();
        for (block, value) in (0..).zip(values_of(backing.live(), bench.blocks)) {
            oracle.observe(block, value).map_err(|violation| {
                Broken::new(
                    "bad-bypass",
                    format!("without the filter the guest would read\n{violation}"),
                )
            })?;
        }
    }
    Ok(())
}

/// When all is quiet, the target of an ordered promise has every byte that the guest sees.
fn quiet_target(bench: &Bench) -> Result<(), Broken> {
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    let guest = bench.guest(&disk, 4);
    bench.run(guest.run(&bench.workload(12)))?;
    bench.run(guest.submit(GuestOp::Flush))?;
    for _ in 0..5 {
        bench.run(guest.submit(GuestOp::Idle))?;
    }
    let name = match bench.subject.ordered_target() {
        Some(Target::Device(name)) => name,
        _ => BACKING.to_owned(),
    };
    if bench.subject.descriptor().content == Content::Transformed {
        return Ok(());
    }
    let target = bench
        .rig
        .disk(&name)
        .expect("the target is one of the disks")
        .snapshot();
    let mut oracle = bench.belief.oracle().clone();
    for (block, value) in (0..).zip(values_of(target.live(), bench.blocks)) {
        oracle.observe(block, value).map_err(|violation| {
            Broken::new(
                "target-differs",
                format!("the quiet target `{name}` alone\n{violation}"),
            )
        })?;
    }
    Ok(())
}
