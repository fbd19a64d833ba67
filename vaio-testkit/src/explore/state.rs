//! Checks one crash state: what a crash left is recovered by a fresh process, read, and put to a
//! second era, because a bug of recovery mostly shows in what the next crash finds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vaio_core::Disk;

use super::{
    Broken, Checks, Lab,
    guest::{Belief, Guest, OnError},
    hash::{hash_of, mix},
    recovered::{Recovered, Recoveries},
    rig::{Rig, RigSnapshot, limits},
    target,
};
use crate::{
    GuestOp, Scale, Tape,
    disk::{CrashPoint, Image, Media, Tier},
    oracle::Oracle,
    sim::{Host, Schedule, Sim},
};

/// What a crash left of all media.
#[derive(Clone, Debug)]
pub enum Left {
    /// Power failed: these images.
    Images(Vec<Image>),
    /// A process was killed: the media as they are, with what is volatile in them.
    Media(Vec<Media>),
}

/// One crash state.
#[derive(Clone, Debug)]
pub struct State {
    /// Content of the disks.
    pub left: Left,
    /// Content of the sidecar.
    pub sidecar: Option<bytes::Bytes>,
    /// What the guest believes; the crash was told.
    pub oracle: Oracle,
    /// Size of the filter.
    pub scale: Scale,
    /// Picks the second era: any number, equal for equal states.
    pub variant: u64,
}

impl State {
    /// Recovers and checks it.
    ///
    /// # Errors
    /// A promise was broken.
    pub fn check(self, lab: &Lab) -> Result<u64, Broken> {
        let sim = Sim::new(Tape::benign(), Schedule::Fifo);
        self.check_in(lab, &sim)
    }

    /// As [`check`](Self::check), with what was read, to be put to other oracles; and without
    /// recovering what is `known`.
    pub(super) fn check_knowing(
        self,
        lab: &Lab,
        known: &mut Recoveries,
    ) -> Result<(u64, Option<Recovered>), Broken> {
        let sim = Sim::new(Tape::benign(), Schedule::Fifo);
        known.carried_out += 1;
        if !is_all_in_what_is_read(lab) {
            known.carried_out += u64::from(lab.checks.second_era);
            return Ok((self.check_in(lab, &sim)?, None));
        }
        let (ops, crashes) = so_far(&self.oracle);
        let (checked, _, belief) = self.recorded_knowing(lab, &sim, Some(known));
        let states = checked?;
        let recovered = Recovered::of(belief.oracle().history(), ops, crashes, states);
        Ok((states, recovered))
    }

    /// As [`check`](Self::check), in a world that the caller looks at.
    ///
    /// # Errors
    /// A promise was broken.
    pub fn check_in(self, lab: &Lab, sim: &Sim) -> Result<u64, Broken> {
        self.recorded_in(lab, sim).0
    }

    /// As [`check_in`](Self::check_in), with what is left of the world.
    pub(crate) fn recorded_in(self, lab: &Lab, sim: &Sim) -> (Result<u64, Broken>, Rig, Belief) {
        self.recorded_knowing(lab, sim, None)
    }

    fn recorded_knowing(
        self,
        lab: &Lab,
        sim: &Sim,
        known: Option<&mut Recoveries>,
    ) -> (Result<u64, Broken>, Rig, Belief) {
        sim.set_limits(limits());
        let subject = &lab.subject;
        let rig = match self.left {
            Left::Images(images) => Rig::of_images(sim, subject, self.scale, images, self.sidecar),
            Left::Media(media) => Rig::of_media(sim, subject, self.scale, media, self.sidecar),
        };
        let belief = Belief::new(self.oracle);
        let world = World {
            sim,
            rig: &rig,
            belief: &belief,
        };
        let checked = recover(lab, &world, (self.scale, self.variant), known);
        (checked, rig, belief)
    }
}

/// Whether a check looks at nothing but what the guest reads.
fn is_all_in_what_is_read(lab: &Lab) -> bool {
    let checks = &lab.checks;
    let has_target = checks.ordered && lab.subject.ordered_target().is_some();
    let is_more = checks.dirty || checks.recovery_crash || has_target;
    checks.reuses_recoveries && !is_more && checks.recovery_faults.is_empty()
}

/// Operations and crashes so far.
fn so_far(oracle: &Oracle) -> (usize, usize) {
    let history = oracle.history();
    (history.ops().count(), history.crashes().len())
}

/// Where a crash state is recovered.
#[derive(Clone, Copy)]
struct World<'a> {
    sim: &'a Sim,
    rig: &'a Rig,
    belief: &'a Belief,
}

fn recover(
    lab: &Lab,
    world: &World<'_>,
    (scale, variant): (Scale, u64),
    known: Option<&mut Recoveries>,
) -> Result<u64, Broken> {
    let World { sim, rig, belief } = *world;
    let before = lab.checks.recovery_crash.then(|| belief.oracle().clone());
    let steps = lab.checks.ordered && lab.subject.ordered_target().is_some();
    let seen = (before.is_some() || steps).then(|| watch_recovery(lab, sim, rig, belief));
    let (host, disk) = reopened(lab, sim, rig)?;
    if let Some(seen) = &seen {
        let mut seen = seen.lock();
        seen.is_over = true;
        if let Some(broken) = seen.broken.take() {
            return Err(broken);
        }
    }
    let guest = Guest::new(sim, &disk, belief);
    run(sim, guest.read_all())?;
    look(lab, &disk, rig, belief)?;
    if !lab.checks.reread_faults.is_empty() {
        reread(lab, sim, rig, &guest)?;
    }
    let mut states = 1;
    if lab.checks.second_era {
        second_era(lab, world, (host, disk), variant, known)?;
        states += 1;
    } else {
        host.kill();
    }
    if let (Some(oracle), Some(seen)) = (before, seen) {
        states += crashes_in_recovery(lab, &oracle, scale, &seen)?;
    }
    Ok(states)
}

/// Reads everything again while something fails below, and once more when nothing does.
fn reread(lab: &Lab, sim: &Sim, rig: &Rig, guest: &Guest<'_>) -> Result<(), Broken> {
    super::set_faults(rig, &lab.checks.reread_faults);
    let on_error = OnError::Allowed;
    run(sim, Guest { on_error, ..*guest }.read_all())?;
    quiet(rig);
    run(
        sim,
        Guest {
            on_error: OnError::Broken,
            ..*guest
        }
        .read_all(),
    )
}

fn quiet(rig: &Rig) {
    for disk in rig.disks() {
        disk.quiet();
        disk.restore();
    }
}

/// One write somewhere, a flush, power loss of everything that was not durable, and a second
/// recovery.
fn second_era(
    lab: &Lab,
    world: &World<'_>,
    (host, disk): (Host, Disk),
    variant: u64,
    known: Option<&mut Recoveries>,
) -> Result<(), Broken> {
    let World { sim, rig, belief } = *world;
    let blocks = belief.oracle().settings().blocks;
    let guest = Guest::new(sim, &disk, belief);
    let write = GuestOp::Write {
        block: variant % blocks,
        count: 1,
        fua: false,
    };
    run(sim, async {
        // One state in four is cut off as it is: what was read must be durable by itself.
        if variant / blocks % 4 != 3 {
            guest.submit(write).await?;
            guest.submit(GuestOp::Flush).await?;
        }
        Ok(())
    })?;
    look_at_target(lab, rig, belief)?;
    host.kill();
    drop(disk);
    rig.lose_power(CrashPoint::nothing_kept);
    belief.oracle().crash();
    let Some(known) = known else {
        return end(lab, world);
    };
    let media = rig.hash();
    let before = belief.oracle().clone();
    let script = known.ends.get(media);
    if let Some(after) = script.and_then(|script| script.put_to(&before)) {
        *belief.oracle() = after;
        return Ok(());
    }
    end(lab, world)?;
    known.carried_out += 1;
    let (ops, crashes) = so_far(&before);
    if let Some(script) = Recovered::of(belief.oracle().history(), ops, crashes, 1) {
        known.ends.keep(media, script);
    }
    Ok(())
}

/// The second recovery.
fn end(lab: &Lab, world: &World<'_>) -> Result<(), Broken> {
    let World { sim, rig, belief } = *world;
    let host = sim.host("second-era");
    let disk = open(sim, rig, &host)?;
    run(sim, Guest::new(sim, &disk, belief).read_all())?;
    look(lab, &disk, rig, belief)?;
    host.kill();
    Ok(())
}

/// Looks at a disk that was just recovered and read.
fn look(lab: &Lab, disk: &Disk, rig: &Rig, belief: &Belief) -> Result<(), Broken> {
    lab.look(disk, rig, belief)?;
    look_at_target(lab, rig, belief)
}

/// A target that got what the disk has lost shows it here at the latest: nothing that is written
/// from now on makes a cut with it.
fn look_at_target(lab: &Lab, rig: &Rig, belief: &Belief) -> Result<(), Broken> {
    if !lab.checks.ordered {
        return Ok(());
    }
    let oracle = belief.oracle().clone();
    match target::check(&lab.subject, rig, &oracle, &mut |_| true) {
        Ok(_) => Ok(()),
        Err((broken, _)) => Err(broken),
    }
}

/// Opens what a crash left. Where something fails below it may take a second attempt, without.
fn reopened(lab: &Lab, sim: &Sim, rig: &Rig) -> Result<(Host, Disk), Broken> {
    let host = sim.host("recovery");
    if lab.checks.recovery_faults.is_empty() {
        let disk = open(sim, rig, &host)?;
        return Ok((host, disk));
    }
    super::set_faults(rig, &lab.checks.recovery_faults);
    let first = open(sim, rig, &host);
    quiet(rig);
    if let Ok(disk) = first {
        return Ok((host, disk));
    }
    host.kill();
    let host = sim.host("recovery-again");
    let disk = open(sim, rig, &host)?;
    Ok((host, disk))
}

fn open(sim: &Sim, rig: &Rig, host: &Host) -> Result<Disk, Broken> {
    sim.run(rig.open(host))?.map_err(|error| {
        Broken::new(
            "recovery-failed",
            format!(
                "the disk does not open after the crash\n  {}",
                error.to_line()
            ),
        )
    })
}

fn run(sim: &Sim, what: impl Future<Output = Result<(), Broken>>) -> Result<(), Broken> {
    sim.run(what)?
}

/// What the media held at each boundary of a recovery.
#[derive(Clone, Debug, Default)]
struct Watched(Arc<Mutex<Recovery>>);

#[derive(Debug, Default)]
struct Recovery {
    is_over: bool,
    /// Where power is to fail too.
    snapshots: Vec<RigSnapshot>,
    names: Vec<Arc<str>>,
    /// Of the target of an ordered promise, which is a cut at every step.
    broken: Option<Broken>,
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, Recovery> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Most boundaries of one recovery that are looked at.
const RECOVERY_POINTS_MAX: usize = 256;

fn watch_recovery(lab: &Lab, sim: &Sim, rig: &Rig, belief: &Belief) -> Watched {
    let watched = Watched::default();
    watched.lock().names = rig.names();
    let (shared, rig, lab) = (watched.clone(), rig.clone(), lab.clone());
    let oracle = belief.oracle().clone();
    let mut known = std::collections::BTreeSet::new();
    sim.on_event(move |_| {
        let mut seen = shared.lock();
        if seen.is_over {
            return;
        }
        if lab.checks.recovery_crash && seen.snapshots.len() < RECOVERY_POINTS_MAX {
            let snapshot = rig.snapshot();
            seen.snapshots.push(snapshot);
        }
        if lab.checks.ordered && seen.broken.is_none() {
            let mut is_new = |hash| known.insert(hash);
            let checked = target::check(&lab.subject, &rig, &oracle, &mut is_new);
            seen.broken = checked.err().map(|(broken, _)| broken);
        }
    });
    watched
}

/// Power fails at every boundary of the recovery: the same must be legal as before it.
fn crashes_in_recovery(
    lab: &Lab,
    oracle: &Oracle,
    scale: Scale,
    watched: &Watched,
) -> Result<u64, Broken> {
    let inner = Lab {
        subject: Arc::clone(&lab.subject),
        checks: Checks {
            recovery_crash: false,
            ..lab.checks.clone()
        },
    };
    let Recovery {
        snapshots, names, ..
    } = std::mem::take(&mut *watched.lock());
    let mut known = std::collections::BTreeSet::new();
    let mut states = 0;
    for snapshot in snapshots {
        let point = snapshot.crash_point(&names);
        let tiers = [Tier::None, Tier::All, Tier::DropOne, Tier::KeepOne];
        for sidecar in snapshot.sidecar.images() {
            let salt = hash_of(sidecar.as_deref());
            let mut is_new = |hash| known.insert(mix(salt, hash));
            for case in point.cases(&tiers, &mut |_| 0, &mut is_new) {
                let state = State {
                    left: Left::Images(point.images(&case)),
                    sidecar: sidecar.clone(),
                    oracle: oracle.clone(),
                    scale,
                    variant: case.hash,
                };
                states += state.check(&inner)?;
            }
        }
    }
    Ok(states)
}
