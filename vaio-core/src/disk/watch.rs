//! The stall ladder: IO that takes too long is reported with the name of the filter that has it;
//! an observer that hangs is taken out of the path; at the end the disk's error policy decides.
//! Sleeps while there is no IO.

use std::{
    sync::{
        Arc, Weak,
        atomic::Ordering::{AcqRel, Relaxed},
    },
    time::Duration,
};

use super::DiskInner;
use crate::{
    BypassSafety, Class, Health, OnStall, RuntimeExt,
    chain::{Chain, Layer},
    core::{Core, TICK},
    event::{EventKind, Notice, Severity},
    slot::{Fate, Slot},
};

/// Ticks without IO after which the watcher sleeps until there is some.
const IDLE_TICKS: u32 = 4;

/// Runs until the disk is closed and nothing is in flight, or dropped.
pub(super) async fn run(disk: Weak<DiskInner>, core: Arc<Core>) {
    let mut idle = 0;
    loop {
        core.rt.sleep(TICK).await;
        core.tick.fetch_add(1, Relaxed);
        let busy = core.slots.busy();
        if core.is_closed() && busy.is_empty() {
            return;
        }
        if !core.is_closed() && disk.upgrade().is_some_and(|disk| disk.is_lock_lost()) {
            // What is in flight is watched on: it has to be answered.
            fence_off(&core);
        }
        let Some(chain) = disk.upgrade().map(|disk| disk.chain().0) else {
            return;
        };
        for slot in &busy {
            look(&core, &chain, slot);
        }
        idle = if busy.is_empty() { idle + 1 } else { 0 };
        drop((chain, busy));
        if idle >= IDLE_TICKS {
            let woken = core.watch.listen();
            core.is_watch_idle.store(true, Relaxed);
            if core.slots.busy().is_empty() && !core.is_closed() {
                woken.await;
            }
            core.is_watch_idle.store(false, Relaxed);
            idle = 0;
        }
    }
}

/// Someone else owns the disk now: no more IO from here.
fn fence_off(core: &Core) {
    core.events.send(
        Notice::of(
            Severity::Error,
            EventKind::Closed,
            "the disk's exclusive lock is lost; this process does no more IO on it",
        )
        .with_next_step("another owner has the disk; end this process"),
    );
    core.fence_off();
}

fn look(core: &Core, chain: &Chain, slot: &Arc<Slot>) {
    let Some(started) = slot.started() else {
        return;
    };
    let age = TICK * core.tick.load(Relaxed).saturating_sub(started);
    if age < core.settings.stall_report_after {
        return;
    }
    let at = slot.deepest().checked_sub(1);
    let (layer, name) = if slot.is_part.load(Relaxed) {
        (None, Arc::from("below"))
    } else {
        let layer = at.and_then(|at| chain.layers.get(usize::from(at)));
        let name = at.map_or_else(|| Arc::from("port"), |at| chain.name_of(at));
        (layer, name)
    };
    if !slot.is_reported.swap(true, AcqRel) {
        core.events.send(
            Notice::of(
                Severity::Warning,
                EventKind::IoStalled,
                format!("an IO has been in flight for {age:?}, id={}", slot.id()),
            )
            .with_filter(&name)
            .with_io(slot.kind(), slot.extent())
            .with_next_step("the filter or device named has it; look at its state and its storage"),
        );
    }
    let is_late = age >= core.settings.stall_fail_after;
    if let Some(layer) = layer
        && layer.descriptor.bypass == BypassSafety::Always
        && layer.health.get() == Health::Active
        // A QoS filter delays by trade: it gets as long as the guest does.
        && (is_late || layer.descriptor.class != Class::Qos)
    {
        layer.blame(
            core,
            EventKind::IoStalled,
            &format!("the filter did not answer for {age:?}"),
        );
    }
    if layer.is_some_and(|layer| layer.health.get() == Health::Bypassed) {
        slot.set_fate(Fate::Kicked);
        core.kick_all();
    } else if is_late && core.settings.on_stall == OnStall::Fail && !slot.is_own.load(Relaxed) {
        fail(core, slot, layer, &name, age);
    }
}

fn fail(core: &Core, slot: &Slot, layer: Option<&Arc<Layer>>, name: &Arc<str>, age: Duration) {
    if slot.is_expired() {
        return;
    }
    if let Some(layer) = layer {
        // Whoever looks at the state later must find the culprit, not only who reads events.
        layer.counters.faults.fetch_add(1, Relaxed);
    }
    core.events.send(
        Notice::of(
            Severity::Error,
            EventKind::IoExpired,
            format!("an IO was failed after {age:?}; it is still in flight and fenced"),
        )
        .with_filter(name)
        .with_io(slot.kind(), slot.extent())
        .with_next_step("the guest sees an IO error; replace the filter or repair the device"),
    );
    slot.set_fate(Fate::Expired);
    core.kick_all();
}
