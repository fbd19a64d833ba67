//! The scripted cases: each does something particular with an open disk.

mod attach;
mod bypass;
mod cancel;
mod life;
mod live;
mod moved;

use std::time::Duration;

use bytes::Bytes;
use vaio_core::{DirtyPolicy, ErrorKind, Extent, Io, Level, Op, Release};

use super::{
    Budget, Said,
    bench::{Bench, seeds},
};
use crate::{GuestOp, Subject, explore::Broken};

type Script = fn(&Subject, &Budget) -> Said;

/// What a scripted case does; `None`: it is explored.
pub(super) fn find(name: &str) -> Option<Script> {
    Some(match name {
        "basic::zero_length" => |subject, budget| seeds(subject, budget, 20, zero_length),
        "basic::largest_transfer" => |subject, budget| seeds(subject, budget, 20, largest_transfer),
        "dirty::flush_to" => |subject, budget| seeds(subject, budget, 60, flush_to),
        "dirty::clean_after_close" => {
            |subject, budget| seeds(subject, budget, 60, clean_after_close)
        }
        "dirty::write_through" => |subject, budget| seeds(subject, budget, 60, write_through),
        "snapshot::quiesced" => |subject, budget| seeds(subject, budget, 60, quiesced),
        "snapshot::held" => |subject, budget| match cannot_hold(subject, budget) {
            Some(why) => Said::Skipped(why),
            None => seeds(subject, budget, 60, held),
        },
        _ => {
            return life::find(name)
                .or_else(|| live::find(name))
                .or_else(|| attach::find(name))
                .or_else(|| bypass::find(name))
                .or_else(|| cancel::find(name))
                .or_else(|| moved::find(name));
        }
    })
}

/// An IO of no length is answered, and changes nothing.
fn zero_length(bench: &Bench) -> Result<(), Broken> {
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    let guest = bench.guest(&disk, 1);
    let block = u64::from(disk.info().logical_block);
    let empty = Extent::new(block, 0);
    bench.run(guest.submit(GuestOp::Write {
        block: 0,
        count: 2,
        fua: false,
    }))?;
    let answer = bench.must("a read of no length", disk.submit(Io::read(empty)))?;
    if !answer.into_data().is_empty() {
        return Err(Broken::new(
            "wrong-answer",
            "a read of no length returned data",
        ));
    }
    let write = Io::new(Op::Write {
        offset: block,
        data: Bytes::new(),
        fua: false,
    });
    bench.must("a write of no length", disk.submit(write))?;
    bench.must(
        "write zeroes of no length",
        disk.submit(Io::write_zeroes(empty)),
    )?;
    bench.run(guest.read_all())
}

/// One IO of the whole disk or the largest transfer, whichever is smaller, and one past the end.
fn largest_transfer(bench: &Bench) -> Result<(), Broken> {
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    let guest = bench.guest(&disk, 1);
    let info = disk.info();
    let block = u64::from(info.logical_block);
    let most = (u64::from(info.transfer_max) / block).min(bench.blocks);
    for op in [
        GuestOp::Write {
            block: 0,
            count: most,
            fua: false,
        },
        GuestOp::Read {
            block: 0,
            count: most,
        },
        GuestOp::Flush,
    ] {
        bench.run(guest.submit(op))?;
    }
    let past = Io::read(Extent::new(info.capacity, block));
    match bench.sim.run(disk.submit(past))? {
        Err(_) => bench.run(guest.read_all()),
        Ok(_) => Err(Broken::new("wrong-answer", "a read past the end succeeded")),
    }
}

/// What was acknowledged before `flush_to(BackingDurable)` is durable on the lower device after
/// it, and no longer dirty.
fn flush_to(bench: &Bench) -> Result<(), Broken> {
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    for _ in 0..3 {
        let guest = bench.guest(&disk, 4);
        bench.run(guest.run(&bench.workload(8)))?;
        let deadline = host.rt().now() + Duration::from_mins(10);
        bench.must("flush_to", async {
            disk.flush_to(Level::BackingDurable)?.wait(deadline).await
        })?;
        bench.backing_holds_all("flush-to-early")?;
        let dirty = disk.dirty(Level::BackingDurable).bytes;
        if dirty > 0 {
            let what = format!("after flush_to nothing may be dirty, dirty_bytes={dirty}");
            return Err(Broken::new("dirty-over-reported", what));
        }
    }
    Ok(())
}

/// After a clean close the lower device has everything.
fn clean_after_close(bench: &Bench) -> Result<(), Broken> {
    for round in 0..3 {
        let host = bench.host("host");
        let disk = bench.open(&host)?;
        let guest = bench.guest(&disk, 4);
        bench.run(guest.read_all())?;
        bench.run(guest.run(&bench.workload(6 + round)))?;
        bench.must("close", disk.close())?;
        host.kill();
        bench.backing_holds_all("close-lost")?;
    }
    Ok(())
}

/// With `WriteThrough` no write leaves anything dirty.
fn write_through(bench: &Bench) -> Result<(), Broken> {
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    let guest = bench.guest(&disk, 4);
    bench.run(guest.run(&bench.workload(6)))?;
    bench.must(
        "set_dirty_policy",
        disk.set_dirty_policy(DirtyPolicy::WriteThrough),
    )?;
    let deadline = host.rt().now() + Duration::from_mins(10);
    bench.must("flush_to", async {
        disk.flush_to(Level::BackingDurable)?.wait(deadline).await
    })?;
    for op in bench.workload(8) {
        bench.run(guest.submit(op))?;
        if op == GuestOp::Flush {
            bench.backing_holds_all("write-through-holds")?;
        }
    }
    bench.run(guest.submit(GuestOp::Flush))?;
    bench.backing_holds_all("write-through-holds")?;
    bench.must(
        "set_dirty_policy",
        disk.set_dirty_policy(DirtyPolicy::Allow),
    )?;
    bench.run(guest.read_all())
}

/// A disk quiesced to `BackingDurable` has everything on the lower device, and stays so.
fn quiesced(bench: &Bench) -> Result<(), Broken> {
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    let guest = bench.guest(&disk, 4);
    for _ in 0..2 {
        bench.run(guest.run(&bench.workload(8)))?;
        let deadline = host.rt().now() + Duration::from_mins(10);
        let held = bench.must("quiesce", disk.quiesce(Level::BackingDurable, deadline))?;
        bench.backing_holds_all("quiesce-early")?;
        bench.run(async {
            bench.sim.sleep(Duration::from_secs(5)).await;
            Ok(())
        })?;
        bench.backing_holds_all("quiesce-moved")?;
        if held.release() != Release::Held {
            return Err(Broken::new(
                "quiesce-lost",
                "the quiesced disk thawed within five seconds",
            ));
        }
    }
    bench.run(guest.read_all())
}

/// Why the filter cannot hold a point, if it says so.
fn cannot_hold(subject: &Subject, budget: &Budget) -> Option<String> {
    let one = Budget {
        factor: 0.0,
        ..*budget
    };
    let probe = seeds(subject, &one, 1, |bench| {
        let host = bench.host("host");
        let disk = bench.open(&host)?;
        match bench.sim.run(disk.hold_at_point(Duration::from_secs(30)))? {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                Err(Broken::new("cannot-hold", error.to_line()))
            }
            _ => Ok(()),
        }
    });
    match probe {
        Said::Failed(found) if found.broken.rule == "cannot-hold" => {
            Some("the filter cannot hold a point in time".into())
        }
        _ => None,
    }
}

/// While a point in time is held, the lower device keeps what it was at that point, or the release
/// says that it was lost; the guest goes on.
fn held(bench: &Bench) -> Result<(), Broken> {
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    let guest = bench.guest(&disk, 4);
    bench.run(guest.run(&bench.workload(6)))?;
    let point = bench.must("hold_at_point", disk.hold_at_point(Duration::from_secs(30)))?;
    let backing = bench.rig.disks()[0].snapshot();
    bench.backing_holds_all("hold-early")?;
    // Less than any log holds: the guest must not need the lower device.
    bench.run(guest.submit(GuestOp::Write {
        block: 0,
        count: 1,
        fua: false,
    }))?;
    bench.run(async {
        bench.sim.sleep(Duration::from_secs(2)).await;
        Ok(())
    })?;
    let now = bench.rig.disks()[0].snapshot();
    let moved = now.durable().hash() != backing.durable().hash();
    match point.release() {
        Release::Held if moved => Err(Broken::new(
            "hold-moved",
            "the lower device changed while a point in time was held, and the release says `Held`",
        )),
        _ => bench.run(guest.read_all()),
    }
}
