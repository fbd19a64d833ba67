//! Fail-over: a host is dead, or only thought to be, and the guest goes on elsewhere.

use std::pin::pin;

use bytes::Bytes;
use futures::future::{Either, select};
use vaio_core::{Io, Op};

use super::{
    case::{depth, die, fate, open_or_refuse, ops, play, work_until_fate},
    ha::{NotOpened, Opened, Rules, Stack, Vm},
    host::Local,
};
use crate::{
    Family, GuestOp, Subject, Tape,
    disk::HELD_UP,
    explore::{Broken, OnError},
};

/// Events within which the host dies under a write.
const SOON: u32 = 4;

/// The guest starts on host `a`, works, and its host dies.
async fn one_era(vm: &Vm, shelf: &Local) -> Result<(), Broken> {
    let opened = vm.must_open(&vm.sim().host("a"), shelf).await?;
    work_until_fate(vm, &opened).await?;
    die(vm, opened, shelf);
    Ok(())
}

/// The guest reads, works on, and reads again.
async fn go_on(vm: &Vm, opened: &Opened) -> Result<(), Broken> {
    vm.read_twice(opened).await?;
    vm.work(opened, &ops(vm), depth(vm)).await?;
    vm.read_twice(opened).await
}

/// The devices outlive the host and are carried to the next one.
///
/// # Errors
/// A promise was broken.
pub(super) fn devices_survive(subject: &Subject, tape: &Tape) -> Result<(), Broken> {
    play(subject, tape, Rules::default(), |vm| async move {
        let shelf = vm.blank();
        one_era(&vm, &shelf).await?;
        let opened = vm.must_open(&vm.sim().host("b"), &shelf).await?;
        go_on(&vm, &opened).await
    })
}

/// The devices die with the host: what the promise covers is there without them, or the disk does
/// not open, and then opens once they are found.
///
/// # Errors
/// A promise was broken.
pub(super) fn devices_lost(subject: &Subject, tape: &Tape) -> Result<(), Broken> {
    play(subject, tape, Rules::default(), |vm| async move {
        let at_a = vm.blank();
        one_era(&vm, &at_a).await?;
        for stack in [Stack::Filter, Stack::Bare] {
            let b = vm.sim().host("b");
            if let Some(opened) = open_or_refuse(&vm, &b, &vm.blank(), stack).await? {
                return vm.read_twice(&opened).await;
            }
            b.kill();
        }
        let opened = vm.must_open(&vm.sim().host("c"), &at_a).await?;
        go_on(&vm, &opened).await
    })
}

/// The next host finds the devices as they were at an earlier ownership: a leg of a mirror that
/// fell behind, a restored disk. What the promise covers is there, or the disk does not open.
///
/// # Errors
/// A promise was broken.
pub(super) fn devices_stale(subject: &Subject, tape: &Tape) -> Result<(), Broken> {
    play(subject, tape, Rules::default(), |vm| async move {
        let at_a = vm.blank();
        let opened = vm.must_open(&vm.sim().host("a"), &at_a).await?;
        work_until_fate(&vm, &opened).await?;
        let kept = at_a.keep();
        die(&vm, opened, &at_a);
        let opened = vm.must_open(&vm.sim().host("b"), &at_a).await?;
        go_on(&vm, &opened).await?;
        die(&vm, opened, &at_a);
        let stale = Local::stale(vm.sim(), &kept);
        let c = vm.sim().host("c");
        if let Some(opened) = open_or_refuse(&vm, &c, &stale, Stack::Filter).await? {
            vm.read_twice(&opened).await?;
        }
        Ok(())
    })
}

/// A write of the dead host is on its way to shared storage. Once the next host has answered the
/// guest it must not land, not even under a newer write.
///
/// # Errors
/// A promise was broken.
pub(super) fn ghost_write(subject: &Subject, tape: &Tape) -> Result<(), Broken> {
    ghost_write_by(subject, tape, Rules::default())
}

/// As [`ghost_write`], by an HA manager with these rules.
pub(super) fn ghost_write_by(subject: &Subject, tape: &Tape, rules: Rules) -> Result<(), Broken> {
    play(subject, tape, rules, |vm| async move {
        let shelf = vm.blank();
        let opened = vm.must_open(&vm.sim().host("a"), &shelf).await?;
        vm.work(&opened, &ops(&vm), depth(&vm)).await?;
        // Nothing waits for it: it is under way when the host dies.
        let write = GuestOp::Write {
            block: 0,
            count: 1,
            fua: false,
        };
        let guest = vm.guest(&opened, 1, OnError::Broken);
        let soon = async {
            for _ in 0..vm.sim().tape().choose(SOON, Family::Crash, "soon") {
                vm.sim().event(None, "fate").await;
            }
        };
        match select(pin!(guest.submit(write)), pin!(soon)).await {
            Either::Left((done, _)) => done?,
            Either::Right(_) => {}
        }
        die(&vm, opened, &shelf);
        let opened = vm.must_open(&vm.sim().host("b"), &shelf).await?;
        go_on(&vm, &opened).await?;
        vm.sim().sleep(HELD_UP + HELD_UP).await;
        vm.read_twice(&opened).await
    })
}

/// The host was not dead, only stopped or cut off: it wakes up when the guest runs elsewhere, and
/// goes on with what it was doing.
///
/// # Errors
/// A promise was broken.
pub(super) fn two_owners(subject: &Subject, tape: &Tape) -> Result<(), Broken> {
    two_owners_by(subject, tape, Rules::default())
}

/// As [`two_owners`], by an HA manager with these rules.
pub(super) fn two_owners_by(subject: &Subject, tape: &Tape, rules: Rules) -> Result<(), Broken> {
    play(subject, tape, rules, |vm| async move {
        let shelf = vm.blank();
        let a = vm.sim().host("a");
        let old = vm.must_open(&a, &shelf).await?;
        work_until_fate(&vm, &old).await?;
        a.pause();
        vm.leases().cut(a.name());
        vm.crash();
        let opened = vm.must_open(&vm.sim().host("b"), &shelf).await?;
        vm.read_twice(&opened).await?;
        vm.work(&opened, &[WRITE_ALL, GuestOp::Flush], 1).await?;
        a.resume();
        let zombie = zombie_writes(&vm, &old);
        match select(pin!(zombie), pin!(go_on(&vm, &opened))).await {
            Either::Left(((), rest)) => rest.await,
            Either::Right((done, _)) => done,
        }?;
        vm.leases().heal(a.name());
        a.kill();
        drop(old);
        vm.read_twice(&opened).await
    })
}

/// The dead host comes back while the guest runs elsewhere, and starts its VM again: it does not
/// get the disk, or the other one has lost it.
///
/// # Errors
/// A promise was broken.
pub(super) fn old_host_returns(subject: &Subject, tape: &Tape) -> Result<(), Broken> {
    old_host_returns_by(subject, tape, Rules::default())
}

/// As [`old_host_returns`], by an HA manager with these rules.
pub(super) fn old_host_returns_by(
    subject: &Subject,
    tape: &Tape,
    rules: Rules,
) -> Result<(), Broken> {
    play(subject, tape, rules, |vm| async move {
        let shelf = vm.blank();
        one_era(&vm, &shelf).await?;
        let opened = vm.must_open(&vm.sim().host("b"), &shelf).await?;
        go_on(&vm, &opened).await?;
        let a = vm.sim().host("a");
        match vm.open(&a, &shelf, Stack::Filter).await {
            Ok(again) if vm.rules().lease => {
                // The lease of `b` expired early: it is the one that is too late.
                vm.crash();
                match select(pin!(zombie_writes(&vm, &opened)), pin!(go_on(&vm, &again))).await {
                    Either::Left(((), rest)) => rest.await?,
                    Either::Right((done, _)) => done?,
                }
                vm.read_twice(&again).await
            }
            Ok(again) => {
                zombie_writes(&vm, &again).await;
                vm.read_twice(&opened).await
            }
            Err(NotOpened::NotOwner(_)) => go_on(&vm, &opened).await,
            Err(error) => Err(Broken::new("recovery-failed", error.text())),
        }
    })
}

const WRITE_ALL: GuestOp = GuestOp::Write {
    block: 0,
    count: 4,
    fua: false,
};

/// What the guest's old self sends: no one may ever see it. The answers do not matter.
async fn zombie_writes(vm: &Vm, old: &Opened) {
    let info = old.disk.info();
    let len = usize::try_from(info.logical_block).expect("a block is small");
    for block in 0..2 {
        let data = Bytes::from(vec![0xdb; len]);
        let write = Op::Write {
            offset: block * u64::from(info.logical_block),
            data,
            fua: false,
        };
        let _ = old.disk.submit(Io::new(write)).await;
        vm.sim().event(None, "zombie").await;
    }
    let _ = old.disk.submit(Io::flush()).await;
}

/// The second host dies in its recovery, wherever that may be, and a third one takes over.
///
/// # Errors
/// A promise was broken.
pub(super) fn double(subject: &Subject, tape: &Tape) -> Result<(), Broken> {
    play(subject, tape, Rules::default(), |vm| async move {
        let shelf = vm.blank();
        one_era(&vm, &shelf).await?;
        let b = vm.sim().host("b");
        let open = vm.must_open(&b, &shelf);
        let opened = match select(pin!(open), pin!(fate(&vm))).await {
            Either::Left((opened, _)) => Some(opened?),
            Either::Right(_) => None,
        };
        if let Some(opened) = opened {
            vm.read_twice(&opened).await?;
            die(&vm, opened, &shelf);
        } else {
            shelf.lose_power(&b);
            vm.crash();
        }
        let opened = vm.must_open(&vm.sim().host("c"), &shelf).await?;
        go_on(&vm, &opened).await
    })
}

/// The guest fails over and comes back to the host that it left, more than once.
///
/// # Errors
/// A promise was broken.
pub(super) fn failback(subject: &Subject, tape: &Tape) -> Result<(), Broken> {
    play(subject, tape, Rules::default(), |vm| async move {
        let shelf = vm.blank();
        one_era(&vm, &shelf).await?;
        for name in ["b", "a", "b"] {
            let opened = vm.must_open(&vm.sim().host(name), &shelf).await?;
            vm.read_twice(&opened).await?;
            if name == "a" {
                work_until_fate(&vm, &opened).await?;
                die(&vm, opened, &shelf);
            } else {
                vm.work(&opened, &ops(&vm), depth(&vm)).await?;
                vm.close(opened).await?;
            }
        }
        Ok(())
    })
}

/// Whenever the host dies, the target alone is the guest's disk at some moment.
///
/// # Errors
/// It is not.
pub(super) fn target_cut(subject: &Subject, tape: &Tape) -> Result<(), Broken> {
    play(subject, tape, Rules::default(), |vm| async move {
        let shelf = vm.blank();
        for name in ["a", "b", "c"] {
            let opened = vm.must_open(&vm.sim().host(name), &shelf).await?;
            vm.read_twice(&opened).await?;
            work_until_fate(&vm, &opened).await?;
            // Before the crash is told: the target may be behind, but never elsewhere.
            opened.host.kill();
            if !shelf.is_empty() {
                shelf.lose_power(&opened.host);
            }
            vm.check_target(&shelf)?;
            drop(opened);
            vm.crash();
        }
        Ok(())
    })
}
