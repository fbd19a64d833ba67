//! Hand-over: the guest moves while both hosts live. Order: drain, release, activate.

use futures::join;

use super::{
    case::{depth, fate, open_or_refuse, ops, play},
    ha::{Rules, Stack, Vm},
};
use crate::{Subject, Tape, explore::Broken, explore::OnError};

/// Close on one host, open on another with the devices moved along.
///
/// # Errors
/// Something that was acknowledged is not there, or the disk does not open.
pub(super) fn planned(subject: &Subject, tape: &Tape) -> Result<(), Broken> {
    play(subject, tape, Rules::default(), |vm| async move {
        let shelf = vm.blank();
        for name in ["a", "b", "c"] {
            let opened = vm.must_open(&vm.sim().host(name), &shelf).await?;
            vm.read_twice(&opened).await?;
            vm.work(&opened, &ops(&vm), depth(&vm)).await?;
            vm.close(opened).await?;
            vm.check_target(&shelf)?;
        }
        Ok(())
    })
}

/// The close comes while the guest's IO is in flight: what was answered is there, and what was not
/// never lands later.
///
/// # Errors
/// A promise was broken.
pub(super) fn io_in_flight(subject: &Subject, tape: &Tape) -> Result<(), Broken> {
    play(subject, tape, Rules::default(), |vm| async move {
        let shelf = vm.blank();
        let opened = vm.must_open(&vm.sim().host("a"), &shelf).await?;
        let ops = ops(&vm);
        let guest = vm.guest(&opened, 4, OnError::Allowed);
        let close = async {
            fate(&vm).await;
            opened.disk.close().await
        };
        let (worked, closed) = join!(guest.run(&ops), close);
        worked?;
        closed.map_err(|error| Broken::new("close-failed", error.to_line()))?;
        vm.released(opened).await;
        let opened = vm.must_open(&vm.sim().host("b"), &shelf).await?;
        vm.read_twice(&opened).await
    })
}

/// The new host has devices of its own, blank: everything is there, or the disk does not open, and
/// then it still opens where its devices are.
///
/// # Errors
/// A promise was broken.
pub(super) fn fresh_devices(subject: &Subject, tape: &Tape) -> Result<(), Broken> {
    play(subject, tape, Rules::default(), |vm| async move {
        let at_a = vm.blank();
        let opened = vm.must_open(&vm.sim().host("a"), &at_a).await?;
        vm.work(&opened, &ops(&vm), depth(&vm)).await?;
        vm.close(opened).await?;
        let b = vm.sim().host("b");
        if let Some(opened) = open_or_refuse(&vm, &b, &vm.blank(), Stack::Filter).await? {
            return vm.read_twice(&opened).await;
        }
        let opened = vm.must_open(&vm.sim().host("a"), &at_a).await?;
        vm.read_twice(&opened).await
    })
}

/// Another host wrote the disk meanwhile, with devices of its own or without the filter. Then the
/// first host's devices come back: nothing of what they hold may be seen or written.
///
/// # Errors
/// A promise was broken.
pub(super) fn stale_devices_return(subject: &Subject, tape: &Tape) -> Result<(), Broken> {
    play(subject, tape, Rules::default(), |vm| async move {
        let (at_a, at_b) = (vm.blank(), vm.blank());
        let opened = vm.must_open(&vm.sim().host("a"), &at_a).await?;
        vm.work(&opened, &ops(&vm), depth(&vm)).await?;
        vm.close(opened).await?;
        if !meanwhile(&vm, &at_b).await? {
            return Ok(());
        }
        let a = vm.sim().host("a");
        if let Some(opened) = open_or_refuse(&vm, &a, &at_a, Stack::Filter).await? {
            vm.read_twice(&opened).await?;
        }
        Ok(())
    })
}

/// The guest works on another host, if that can open the disk at all.
async fn meanwhile(vm: &Vm, at_b: &super::Local) -> Result<bool, Broken> {
    let b = vm.sim().host("b");
    let opened = match open_or_refuse(vm, &b, at_b, Stack::Filter).await? {
        Some(opened) => opened,
        None => match open_or_refuse(vm, &b, at_b, Stack::Bare).await? {
            Some(opened) => opened,
            None => return Ok(false),
        },
    };
    vm.read_twice(&opened).await?;
    vm.work(&opened, &ops(vm), 1).await?;
    vm.close(opened).await?;
    Ok(true)
}
