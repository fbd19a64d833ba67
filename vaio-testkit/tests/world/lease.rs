//! Who owns a disk.

use std::time::Duration;

use vaio_testkit::{
    Schedule, Sim, Tape,
    world::{Lease, LeaseStore, NotOwner},
};

const LENGTH: Duration = Duration::from_secs(10);

#[test]
fn living_owner_keeps_the_disk_and_a_dead_one_loses_it() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let store = LeaseStore::new(&sim);
    let (a, b) = (sim.host("a"), sim.host("b"));
    sim.run(async {
        let first = Lease::acquire(&store, &a, LENGTH).await.expect("free");
        first.keep();
        let lock = first.lock();
        let taken = Lease::acquire(&store, &b, LENGTH)
            .await
            .expect_err("it beats");
        assert_eq!(taken, NotOwner::Taken(1));
        assert!(lock.is_held());
        a.kill();
        let second = Lease::acquire(&store, &b, LENGTH).await.expect("dead");
        assert_eq!(second.epoch(), 2);
        assert!(!lock.is_held(), "by the clock");
        assert!(second.release().await.is_ok());
        assert_eq!(store.peek().owner, None);
    })
    .expect("runs");
}

#[test]
fn stopped_owner_finds_out_that_it_was_replaced() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let store = LeaseStore::new(&sim);
    let (a, b) = (sim.host("a"), sim.host("b"));
    sim.run(async {
        let old = Lease::acquire(&store, &a, LENGTH).await.expect("free");
        old.keep();
        a.pause();
        let new = Lease::acquire(&store, &b, LENGTH).await.expect("stopped");
        a.resume();
        let refused = old.change(|record| record.in_sync = true).await;
        assert_eq!(refused, Err(NotOwner::Taken(2)));
        assert!(!old.is_held() && new.is_held());
        assert!(!store.peek().in_sync);
    })
    .expect("runs");
}

/// However answers are lost, there is one owner per epoch, and an owner that lives and reaches the
/// store gets its changes done.
#[test]
fn lost_answers_neither_split_nor_lose_ownership() {
    for seed in 0..300 {
        let tape = Tape::random(seed);
        let sim = Sim::new(tape, Schedule::Random);
        let store = LeaseStore::new(&sim);
        let hosts = [sim.host("a"), sim.host("b"), sim.host("c")];
        sim.run(async {
            let tries = hosts
                .iter()
                .map(|host| Lease::acquire(&store, host, LENGTH));
            let got: Vec<_> = futures::future::join_all(tries)
                .await
                .into_iter()
                .flatten()
                .collect();
            let mut epochs: Vec<_> = got.iter().map(Lease::epoch).collect();
            epochs.sort_unstable();
            epochs.dedup();
            assert_eq!(epochs.len(), got.len(), "seed {seed}: one owner per epoch");
            let last = got.iter().max_by_key(|lease| lease.epoch());
            let last = last.expect("someone gets a free disk");
            for _ in 0..4 {
                match last.change(|record| record.in_sync = !record.in_sync).await {
                    Ok(()) => assert_eq!(store.peek(), last.record(), "seed {seed}"),
                    Err(error) => assert_eq!(error, NotOwner::Unreachable, "seed {seed}"),
                }
            }
        })
        .expect("runs");
    }
}

#[test]
fn host_that_is_cut_off_loses_its_lock_by_its_own_clock() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let store = LeaseStore::new(&sim);
    let a = sim.host("a");
    sim.run(async {
        let lease = Lease::acquire(&store, &a, LENGTH).await.expect("free");
        lease.keep();
        sim.sleep(LENGTH * 3).await;
        assert!(lease.is_held());
        store.cut("a");
        sim.sleep(LENGTH * 2).await;
        assert!(!lease.is_held());
        store.heal("a");
        sim.sleep(LENGTH).await;
        assert!(lease.is_held(), "no one else came: it is the same epoch");
    })
    .expect("runs");
}
