//! What the suite cannot know: a workload of our own customers, and a promise of our own.

use std::sync::Arc;

use vaio_core::Level;
use vaio_testkit::{
    Family, GuestOp, Oracle, OracleSettings, Scale, Schedule, Sim, Subject, Swarm, Tape,
    disk::Fill,
    explore::{Belief, Broken, Guest, Lab, OnError, Plan, Rig, Seen, limits, run},
};
use vendor_filter::{STAGING_DEVICE, StagingFactory};

const RECORDS: usize = 2;
const RECORD_BLOCKS: u64 = 2;

fn staging() -> Subject {
    let factory = StagingFactory::new(RECORDS, RECORD_BLOCKS);
    let blocks = factory.device_blocks();
    Subject::new(factory).device(STAGING_DEVICE, move |_| blocks)
}

fn write(block: u64, fua: bool) -> GuestOp {
    GuestOp::Write {
        block,
        count: 1,
        fua,
    }
}

/// A database's commit: two pages, a flush, the commit record with fua.
fn commits(number: usize) -> Vec<GuestOp> {
    let commit = [
        write(1, false),
        write(2, false),
        GuestOp::Flush,
        write(0, true),
    ];
    commit.repeat(number)
}

#[test]
fn commits_survive_a_crash_at_every_boundary() {
    // The default checks: the usual crash images at every boundary, a second era after each.
    let lab = Lab::new(staging());
    let plan = Plan::new("own::commits", Scale::Tiny, 4, 2, commits(3));
    let mut seen = Seen::default();
    for seed in 0..12 {
        let tape = Tape::random(seed).with_swarm(Swarm::random(seed));
        let ran = run(&lab, &plan, &tape, &mut seen);
        if let Some(failure) = ran.failure {
            panic!("{}\n{}", failure.broken, failure.plan);
        }
    }
}

#[test]
fn staged_data_is_bounded_and_is_moved_when_the_guest_rests() {
    let subject = Arc::new(staging());
    for seed in 0..40 {
        // Time is the simulator's to bend, and a promise in seconds is about time that is not bent:
        // timers fire when they are due, and IO below ends at once.
        let swarm = Swarm::default()
            .with(Family::Kick, 0)
            .with(Family::Event, 0);
        let sim = Sim::new(Tape::random(seed).with_swarm(swarm), Schedule::Random);
        sim.set_limits(limits());
        let rig = Rig::new(&sim, &subject, Scale::Tiny, 4, Fill::Zero);
        let belief = Belief::new(Oracle::new(OracleSettings::new(4, subject.promise())));
        let host = sim.host("host");
        let found: Result<(), Broken> = sim
            .run(async {
                let disk = rig.open(&host).await.expect("opens over empty media");
                let dirty = || disk.dirty(Level::BackingDurable).bytes;
                // Asked whenever nothing of the guest is in flight.
                let is_bounded = || {
                    let most = 2 * RECORDS as u64 * RECORD_BLOCKS * 512;
                    match dirty() {
                        bytes if bytes > most => Err(Broken::new(
                            "staged-too-much",
                            format!("dirty_bytes={bytes} most={most}"),
                        )),
                        _ => Ok(()),
                    }
                };
                let guest = Guest {
                    sim: &sim,
                    disk: &disk,
                    belief: &belief,
                    depth: 2,
                    on_error: OnError::Broken,
                    when_quiet: Some(&is_bounded),
                };
                guest.run(&commits(4)).await?;
                guest.submit(GuestOp::Idle).await?;
                match dirty() {
                    0 => guest.read_all().await,
                    bytes => Err(Broken::new(
                        "staged-too-long",
                        format!("a second after the last write, dirty_bytes={bytes}"),
                    )),
                }
            })
            .unwrap_or_else(|stuck| Err(stuck.into()));
        assert_eq!(found, Ok(()), "seed {seed}");
    }
}
