//! A filter is attached again to a disk that went on without it, and IO below fails meanwhile.

use vaio_core::{DirtyDisposition, Disk, OpKind};

use super::{Bench, Broken, Script, seeds};
use crate::{
    GuestOp,
    disk::{CrashPoint, Fault, Rule},
    explore::{Guest, OnError, target},
};

/// IOs that pass before one fails, at most.
const PASS_MAX: u64 = 4;

pub(super) fn find(name: &str) -> Option<Script> {
    Some(match name {
        "faults::attach_again" => |subject, budget| seeds(subject, budget, 60, attach_again),
        _ => return None,
    })
}

const fn over(block: u64) -> GuestOp {
    GuestOp::Write {
        block,
        count: 1,
        fua: true,
    }
}

/// Nothing of the earlier attachment comes back, after a power loss neither: the attach fails, or
/// it is whole. So it is on the target of an ordered promise.
fn attach_again(bench: &Bench) -> Result<(), Broken> {
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    let name = bench.subject.name();
    bench.run(bench.guest(&disk, 1).run(&[over(0), over(1), over(0)]))?;
    bench.must("detach", disk.detach(name, DirtyDisposition::Flush))?;
    bench.run(bench.guest(&disk, 1).run(&[over(0), over(1)]))?;

    let kinds = [OpKind::Read, OpKind::Write, OpKind::Flush];
    let (kind, after) = (bench.seed % 3, bench.seed / 3 % (PASS_MAX + 1));
    let after = u32::try_from(after).expect("at most PASS_MAX");
    let kind = kinds[usize::try_from(kind).expect("below three")];
    for below in bench.rig.disks() {
        let rule = Rule::once(Fault::Error).on(kind).after(after);
        below.faults(|faults| faults.add(rule));
    }
    attach(bench, &disk)?;
    let guest = Guest {
        on_error: OnError::Allowed,
        ..bench.guest(&disk, 1)
    };
    bench.run(guest.run(&[GuestOp::Read { block: 0, count: 2 }, over(2)]))?;
    for below in bench.rig.disks() {
        below.quiet();
    }
    host.kill();
    drop(disk);
    bench.rig.lose_power(CrashPoint::nothing_kept);
    bench.belief.oracle().crash();

    let host = bench.host("again");
    let disk = bench.open(&host)?;
    bench.run(bench.guest(&disk, 1).read_all())?;
    let oracle = bench.belief.oracle().clone();
    target::check(&bench.subject, &bench.rig, &oracle, &mut |_| true)
        .map_err(|(broken, _)| broken)?;
    bench.must("close", disk.close())
}

/// Attaches; what fails below may refuse it, once for each device.
fn attach(bench: &Bench, disk: &Disk) -> Result<(), Broken> {
    for _ in bench.rig.disks() {
        let spec = bench.subject.spec().clone();
        if bench.sim.run(disk.attach(spec))?.is_ok() {
            return Ok(());
        }
        let guest = Guest {
            on_error: OnError::Allowed,
            ..bench.guest(disk, 1)
        };
        bench.run(guest.read_all())?;
    }
    for below in bench.rig.disks() {
        below.quiet();
    }
    bench.must("attach", disk.attach(bench.subject.spec().clone()))
}
