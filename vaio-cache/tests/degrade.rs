//! The cache device fails writes.
//!
//! A record that failed may be whole on it all the same. Its write went to the backing instead, and
//! newer ones after it: the record must never come back over them. And whatever waits then for
//! something to be destaged, with a record that will never be there in its way, goes on.

use std::sync::Arc;

use vaio_cache::{CACHE_DEVICE, CacheFactory, Sizes};
use vaio_core::{DirtyPolicy, Extent, OpKind};
use vaio_testkit::{
    Family, GuestOp, Oracle, OracleSettings, Scale, Schedule, Sim, Subject, Swarm, Tape,
    disk::{Fault, Fill, Rule},
    explore::{Belief, Broken, Guest, Rig, limits},
};

const WRITE: GuestOp = GuestOp::Write {
    block: 0,
    count: 1,
    fua: false,
};

fn subject() -> Arc<Subject> {
    let sizes = Sizes::new(1024, 512, 5 * 512, 512);
    let subject = Subject::scaled(move |_| Arc::new(CacheFactory::default().with_sizes(sizes)));
    Arc::new(subject.device(CACHE_DEVICE, |_| 2 + 4 * 5))
}

#[test]
fn record_that_failed_and_landed_does_not_come_back() {
    for seed in 0..60 {
        let subject = subject();
        let swarm = Swarm::default()
            .with(Family::Kick, 0)
            .with(Family::Event, 0);
        let sim = Sim::new(Tape::random(seed).with_swarm(swarm), Schedule::Fifo);
        sim.set_limits(limits());
        let rig = Rig::new(&sim, &subject, Scale::Tiny, 4, Fill::Zero);
        let belief = Belief::new(Oracle::new(OracleSettings::new(4, subject.promise())));
        let device = rig.disk(CACHE_DEVICE).expect("it is needed").clone();
        // Every write behind the superblocks.
        let records = Extent::from_range(2 * 512, 22 * 512);
        device
            .faults(|faults| faults.add(Rule::always(Fault::Error).on(OpKind::Write).at(records)));
        let first = sim.host("first");
        let ran: Result<(), Broken> = sim
            .run(async {
                let disk = rig.open(&first).await.expect("opens over empty media");
                Guest::new(&sim, &disk, &belief)
                    .run(&[WRITE, WRITE, GuestOp::Flush])
                    .await
            })
            .unwrap_or_else(|stuck| Err(stuck.into()));
        assert_eq!(ran, Ok(()), "seed {seed}");
        first.kill();
        belief.oracle().crash();
        device.quiet();
        let second = sim.host("second");
        let ran: Result<(), Broken> = sim
            .run(async {
                let disk = rig.open(&second).await.expect("opens again");
                Guest::new(&sim, &disk, &belief).read_all().await
            })
            .unwrap_or_else(|stuck| Err(stuck.into()));
        assert_eq!(ran, Ok(()), "seed {seed}");
    }
}

#[test]
fn writes_that_wait_for_destaging_go_on_when_the_device_fails() {
    const MANY: u64 = 30;
    for (policy, good, seed) in failures(MANY) {
        let subject = subject();
        let sim = Sim::new(Tape::random(seed), Schedule::Random);
        sim.set_limits(limits());
        let rig = Rig::new(&sim, &subject, Scale::Tiny, 4, Fill::Zero);
        let belief = Belief::new(Oracle::new(OracleSettings::new(4, subject.promise())));
        let device = rig.disk(CACHE_DEVICE).expect("it is needed").clone();
        let records = Extent::from_range(2 * 512, 22 * 512);
        let fails = Rule::always(Fault::Error)
            .on(OpKind::Write)
            .at(records)
            .after(good);
        device.faults(|faults| faults.add(fails));
        let host = sim.host("first");
        let writes: Vec<GuestOp> = (0..MANY)
            .map(|n| GuestOp::Write {
                block: n % 4,
                count: 1,
                fua: false,
            })
            .collect();
        let ran: Result<(), Broken> = sim
            .run(async {
                let disk = rig.open(&host).await.expect("opens over empty media");
                disk.set_dirty_policy(policy).await.expect("is allowed");
                let mut guest = Guest::new(&sim, &disk, &belief);
                guest.depth = 8;
                guest.run(&writes).await?;
                guest.run(&[GuestOp::Flush]).await?;
                guest.read_all().await
            })
            .unwrap_or_else(|stuck| Err(stuck.into()));
        assert_eq!(ran, Ok(()), "{policy:?} good={good} seed={seed}");
    }
}

/// Policy of dirty data, records that are written before the device fails, seed.
fn failures(many: u64) -> impl Iterator<Item = (DirtyPolicy, u32, u64)> {
    let policies = [DirtyPolicy::Allow, DirtyPolicy::WriteThrough];
    policies.into_iter().flat_map(move |policy| {
        (0..many).flat_map(move |good| {
            let good = u32::try_from(good).expect("small");
            (0..8).map(move |seed| (policy, good, seed))
        })
    })
}
