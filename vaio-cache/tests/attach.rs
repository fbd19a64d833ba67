//! The cache is attached to a disk that runs. What the disk was told before and did not flush, the
//! guest's next flush covers, though the cache answers flushes by its own device.

use std::sync::Arc;

use vaio_cache::{CACHE_DEVICE, CacheFactory, Sizes};
use vaio_core::{DirtyDisposition, FilterSpec};
use vaio_testkit::{
    GuestOp, Oracle, OracleSettings, Scale, Schedule, Sim, Subject, Tape,
    disk::{CrashPoint, Fill},
    explore::{Belief, Guest, Rig},
};

const fn write(block: u64) -> GuestOp {
    GuestOp::Write {
        block,
        count: 1,
        fua: false,
    }
}

#[test]
fn flush_covers_what_the_disk_was_told_before_the_cache_came() {
    let sizes = Sizes::new(1024, 512, 5 * 512, 512);
    let subject = Subject::scaled(move |_| Arc::new(CacheFactory::default().with_sizes(sizes)));
    let subject = Arc::new(subject.device(CACHE_DEVICE, |_| 2 + 4 * 5));
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let rig = Rig::new(&sim, &subject, Scale::Tiny, 4, Fill::Zero);
    let belief = Belief::new(Oracle::new(OracleSettings::new(4, subject.promise())));
    let first = sim.host("first");
    let ran = sim.run(async {
        let disk = rig.open(&first).await.expect("opens over empty media");
        let guest = Guest::new(&sim, &disk, &belief);
        let detached = disk.detach(subject.name(), DirtyDisposition::Flush).await;
        detached.expect("nothing is dirty");
        guest.run(&[write(0), write(1)]).await.expect("is kept");
        let spec = FilterSpec::new(subject.name()).with(CACHE_DEVICE, CACHE_DEVICE);
        let attached = disk.attach(spec).await;
        attached.expect("over a disk that runs");
        let after = [write(2), GuestOp::Flush];
        guest.run(&after).await.expect("is kept");
    });
    assert!(ran.is_ok(), "the first era ends");
    first.kill();
    rig.lose_power(CrashPoint::nothing_kept);
    belief.oracle().crash();
    let second = sim.host("second");
    let ran = sim.run(async {
        let disk = rig.open(&second).await.expect("opens again");
        let guest = Guest::new(&sim, &disk, &belief);
        guest.read_all().await
    });
    assert_eq!(ran.expect("it ends"), Ok(()));
}
