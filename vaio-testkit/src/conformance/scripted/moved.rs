//! Hand-over and fail-over on one site: another process opens the disk over the same media. What
//! takes several hosts is in [`world`](crate::world).

use super::{Bench, Broken, Script, seeds};
use crate::GuestOp;

pub(super) fn find(name: &str) -> Option<Script> {
    Some(match name {
        "handover::close_in_flight" => |subject, budget| seeds(subject, budget, 60, in_flight),
        "failover::process_kill" => {
            |subject, budget| seeds(subject, budget, 60, |bench| died(bench, false))
        }
        "failover::power_loss" => {
            |subject, budget| seeds(subject, budget, 60, |bench| died(bench, true))
        }
        _ => return None,
    })
}

/// Closed while IO is in flight: each is answered or was never done.
fn in_flight(bench: &Bench) -> Result<(), Broken> {
    for name in ["a", "b"] {
        let host = bench.host(name);
        let disk = bench.open(&host)?;
        let mut guest = bench.guest(&disk, 4);
        bench.run(guest.read_all())?;
        guest.on_error = crate::explore::OnError::Allowed;
        let work = bench.workload(10);
        bench.run(async {
            let (worked, closed) = futures::join!(guest.run(&work), disk.close());
            worked?;
            closed.map_err(|error| Broken::new("close-failed", error.to_line()))
        })?;
        host.kill();
    }
    let host = bench.host("c");
    let disk = bench.open(&host)?;
    bench.run(bench.guest(&disk, 1).read_all())
}

/// The host dies with work in flight and another takes the media over, three times.
fn died(bench: &Bench, power: bool) -> Result<(), Broken> {
    for name in ["a", "b", "c"] {
        let host = bench.host(name);
        let disk = bench.open(&host)?;
        let guest = bench.guest(&disk, 2);
        bench.run(guest.read_all())?;
        bench.run(guest.run(&bench.workload(7)))?;
        // One more that no one waits for.
        bench.belief.oracle().submit(&GuestOp::Flush);
        host.kill();
        drop(disk);
        if power {
            let tape = bench.sim.tape();
            bench.rig.lose_power(|point| {
                let mut choose = |n| tape.choose(n, crate::Family::Crash, "keep");
                let random = [crate::disk::Tier::Random(1)];
                point
                    .cases(&random, &mut choose, &mut |_| true)
                    .pop()
                    .expect("one random image")
            });
        } else {
            for disk in bench.rig.disks() {
                disk.settle();
            }
        }
        bench.belief.oracle().crash();
    }
    let host = bench.host("d");
    let disk = bench.open(&host)?;
    bench.run(bench.guest(&disk, 1).read_all())?;
    bench.must("close", disk.close())?;
    bench.backing_holds_all("close-lost")
}
