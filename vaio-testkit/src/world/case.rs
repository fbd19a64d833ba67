//! [`Case`]: a run on several hosts that any filter can be put through, and what cases share.
//!
//! The filter sits over shared storage; the devices that it needs are in its host's slots, or on a
//! shelf that can be carried. A host that dies takes nothing with it that its promise covers: the
//! disk opens elsewhere and holds it, or it refuses to open.

use std::{future::Future, pin::pin};

use futures::future::{Either, select};

use super::{
    failover,
    ha::{NotOpened, Opened, Rules, Stack, Vm},
    handover,
    host::Local,
};
use crate::{
    Family, GuestOp, Subject, Tape,
    explore::Broken,
    sim::{Schedule, Sim},
    workload::{WorkloadSettings, random_workload},
};

/// A run of a filter on several hosts, decided by a tape.
pub type Run = fn(&Subject, &Tape) -> Result<(), Broken>;

/// A named run.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// `group::name`.
    pub name: &'static str,
    /// Carries it out.
    ///
    /// # Errors
    /// A promise was broken.
    pub run: Run,
    /// What of the filter it needs to say anything.
    pub needs: Needs,
}

/// What a case is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Every filter.
    Nothing,
    /// One that has devices beside the disk.
    Devices,
    /// One whose target alone is promised to be a cut.
    Target,
}

impl Case {
    /// Whether the case says anything about the filter; else it passes without a look.
    pub fn covers(&self, subject: &Subject) -> bool {
        match self.needs {
            Needs::Nothing => true,
            Needs::Devices => !subject.beside().is_empty(),
            Needs::Target => subject.ordered_target().is_some(),
        }
    }
}

const fn case(name: &'static str, run: Run, needs: Needs) -> Case {
    Case { name, run, needs }
}

/// Every case, in a fixed order.
pub const CASES: &[Case] = &[
    case("handover::planned", handover::planned, Needs::Nothing),
    case(
        "handover::io_in_flight",
        handover::io_in_flight,
        Needs::Nothing,
    ),
    case(
        "handover::fresh_devices",
        handover::fresh_devices,
        Needs::Devices,
    ),
    case(
        "handover::stale_devices_return",
        handover::stale_devices_return,
        Needs::Devices,
    ),
    case(
        "failover::devices_survive",
        failover::devices_survive,
        Needs::Nothing,
    ),
    case(
        "failover::devices_lost",
        failover::devices_lost,
        Needs::Devices,
    ),
    case(
        "failover::devices_stale",
        failover::devices_stale,
        Needs::Devices,
    ),
    case(
        "failover::ghost_write",
        failover::ghost_write,
        Needs::Nothing,
    ),
    case("failover::two_owners", failover::two_owners, Needs::Nothing),
    case(
        "failover::old_host_returns",
        failover::old_host_returns,
        Needs::Nothing,
    ),
    case("failover::double", failover::double, Needs::Nothing),
    case("failover::failback", failover::failback, Needs::Nothing),
    case("failover::target_cut", failover::target_cut, Needs::Target),
];

/// Every case by name, as a suite wants it.
pub fn cases() -> Vec<(&'static str, Run)> {
    CASES.iter().map(|case| (case.name, case.run)).collect()
}

/// Operations of a guest between two events of a host's life.
const OPS: u32 = 5;
/// Boundaries of its life at which a host may die.
const FATES: u32 = 24;

/// A world with one guest, and what happens in it.
pub(super) fn play<F>(
    subject: &Subject,
    tape: &Tape,
    rules: Rules,
    what: impl FnOnce(Vm) -> F,
) -> Result<(), Broken>
where
    F: Future<Output = Result<(), Broken>>,
{
    let sim = Sim::new(tape.clone(), Schedule::Random);
    let vm = Vm::new(&sim, subject, rules);
    sim.run(what(vm.clone()))??;
    match vm.backing().findings().first() {
        Some(finding) => Err(Broken::new("contract-below", finding.clone())),
        None => Ok(()),
    }
}

/// What the guest does next: a few operations of the tape's choice, and a write and a flush, so
/// that a benign tape does something too.
pub(super) fn ops(vm: &Vm) -> Vec<GuestOp> {
    let blocks = vm.belief().oracle().settings().blocks;
    let tape = vm.sim().tape();
    let settings = WorkloadSettings {
        extent_max: 3,
        ..WorkloadSettings::new(blocks, OPS)
    };
    let mut ops = random_workload(&settings, |n, name| {
        tape.choose(n, Family::Op, &format!("world.{name}"))
    });
    if vm.refuses_discard() {
        ops.retain(|op| !matches!(op, GuestOp::Discard { .. }));
    }
    let at = tape.choose(OPS + 1, Family::Op, "world.flush at") as usize;
    ops.insert(at.min(ops.len()), GuestOp::Flush);
    let write = GuestOp::Write {
        block: u64::from(tape.choose(4, Family::Op, "world.block")) % blocks,
        count: 1,
        fua: false,
    };
    ops.insert(0, write);
    ops
}

/// IOs in flight at once, 1 to 4.
pub(super) fn depth(vm: &Vm) -> usize {
    1 + vm.sim().tape().choose(4, Family::Op, "world.depth") as usize
}

/// Waits for a moment of the tape's choice: between events, at most [`FATES`] of them away.
pub(super) async fn fate(vm: &Vm) {
    for _ in 0..vm.sim().tape().choose(FATES, Family::Crash, "fate") {
        vm.sim().event(None, "fate").await;
    }
}

/// The guest works until it has done everything, or its host's fate comes first.
pub(super) async fn work_until_fate(vm: &Vm, opened: &Opened) -> Result<(), Broken> {
    let (ops, depth) = (ops(vm), depth(vm));
    let work = vm.work(opened, &ops, depth);
    // A benign tape dies at the end, not at the beginning.
    if vm.sim().tape().choose(2, Family::Crash, "dies at work") == 0 {
        return work.await;
    }
    match select(pin!(work), pin!(fate(vm))).await {
        Either::Left((done, _)) => done,
        Either::Right(_) => Ok(()),
    }
}

/// The guest's host dies: its process alone, or with its power, and the disks in its slots keep
/// what the tape says.
pub(super) fn die(vm: &Vm, opened: Opened, local: &Local) {
    let power = vm.sim().tape().flip(Family::Crash, "power");
    opened.host.kill();
    if power && !local.is_empty() {
        local.lose_power(&opened.host);
    }
    drop(opened);
    vm.crash();
}

/// Opens on a host whose devices are not those that the filter had. `None`: refused, as it may be.
pub(super) async fn open_or_refuse(
    vm: &Vm,
    host: &crate::Host,
    local: &Local,
    stack: Stack,
) -> Result<Option<Opened>, Broken> {
    match vm.open_after_death(host, local, stack).await {
        Ok(opened) => Ok(Some(opened)),
        Err(NotOpened::Refused(_)) => Ok(None),
        Err(NotOpened::NotOwner(why)) => Err(Broken::new("no-owner", why.to_string())),
    }
}
