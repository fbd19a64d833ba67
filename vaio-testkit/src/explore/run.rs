//! A run: a plan, carried out in a simulated world, era by era.

use futures::future::{Either, select};
use vaio_core::Disk;

use super::{
    BACKING, Belief, Broken, Crash, CrashKind, Guest, Lab, OnError, Plan, Rig,
    hash::mix,
    rig::limits,
    watch::{Found, Last, Seen, Watch, Work, values_of},
};
use crate::{
    Family, GuestOp, Tape,
    disk::{Fill, Tier},
    oracle::{Oracle, OracleSettings, Outcome},
    sim::{Host, Sim},
};

/// A plan that broke a promise.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What was broken.
    pub broken: Broken,
    /// The plan, with every choice that was taken and the crash state that failed.
    pub plan: Plan,
    /// The boundary of the last era at which the failing crash came; `None`: no crash was needed.
    pub boundary: Option<u32>,
    /// How the host died there.
    pub kind: CrashKind,
}

/// What came of a run.
#[derive(Debug)]
pub struct Ran {
    /// The broken promise, if any.
    pub failure: Option<Box<Failure>>,
    /// What it cost.
    pub work: Work,
    /// Steps of the simulator, those of crash states not included.
    pub steps: u64,
    /// Hash of everything that happened.
    pub hash: u64,
    /// Hash of what the guest saw happen, in order, and of what is on the disks in the end: the same
    /// for a run and a replay of its choices.
    pub outcome: u64,
    /// Reach marks.
    pub marks: std::collections::BTreeMap<&'static str, u64>,
}

/// Replays a plan: its own choices decide.
pub fn replay(lab: &Lab, plan: &Plan) -> Ran {
    let tape = Tape::replay(plan.choices.clone());
    run(lab, plan, &tape, &mut Seen::default())
}

/// Carries out a plan; the tape decides what the plan leaves open. `seen`: crash states that need
/// no further check.
pub fn run(lab: &Lab, plan: &Plan, tape: &Tape, seen: &mut Seen) -> Ran {
    let sim = Sim::new(tape.clone(), plan.schedule);
    run_in(lab, plan, &sim, seen)
}

/// As [`run`], in a world that the caller looks at.
pub fn run_in(lab: &Lab, plan: &Plan, sim: &Sim, seen: &mut Seen) -> Ran {
    recorded_in(lab, plan, sim, seen).ran
}

/// A run, and what is left of its world: what a report needs beside the trace.
pub(crate) struct Recorded {
    pub(crate) ran: Ran,
    pub(crate) rig: Rig,
    pub(crate) belief: Belief,
    /// The crash that showed the failure, if it needed one.
    pub(crate) last: Option<Last>,
}

/// As [`run_in`], with what is left of the world.
pub(crate) fn recorded_in(lab: &Lab, plan: &Plan, sim: &Sim, seen: &mut Seen) -> Recorded {
    sim.set_limits(limits());
    let rig = Rig::new(sim, &lab.subject, plan.scale, plan.blocks, Fill::Zero);
    let descriptor = lab.subject.descriptor();
    let settings = OracleSettings {
        has_target: lab.subject.ordered_target().is_some(),
        flush_retry: descriptor.flush_retry,
        ..OracleSettings::new(plan.blocks, lab.subject.promise())
    };
    let belief = Belief::new(Oracle::new(settings));
    let watch = Watch::new(lab, &rig, &belief, plan.scale, std::mem::take(seen));
    let observer = watch.clone();
    sim.on_event(move |boundary| {
        // The guest's own turns change nothing below.
        if boundary.name != "guest" {
            observer.boundary();
        }
    });
    let run = Run {
        lab,
        plan,
        sim,
        rig: &rig,
        belief: &belief,
        watch: &watch,
    };
    let result = run.eras();
    watch.end();
    let (found, mut work, known) = watch.take();
    *seen = known;
    work.runs = 1;
    let last = found.as_ref().map(|found| Last::clone(&found.last));
    let failure = failure_of(plan, sim, result, found);
    let ran = Ran {
        failure: failure.map(Box::new),
        work,
        steps: sim.trace().steps(),
        // And what is on the disks in the end: data that differs shows nowhere else.
        hash: mix(sim.trace().hash(), rig.snapshot().hash()),
        outcome: mix(belief.oracle().history().order_hash(), rig.hash()),
        marks: sim.marks(),
    };
    Recorded {
        ran,
        rig,
        belief,
        last,
    }
}

fn failure_of(
    plan: &Plan,
    sim: &Sim,
    result: Result<(), Broken>,
    found: Option<Found>,
) -> Option<Failure> {
    let mut plan = plan.clone();
    plan.choices = sim.tape().taken();
    if let Some(found) = found {
        plan.end = found.spec;
        return Some(Failure {
            broken: found.broken,
            plan,
            boundary: Some(found.boundary),
            kind: found.kind,
        });
    }
    let broken = result.err()?;
    Some(Failure {
        broken,
        plan,
        boundary: None,
        kind: CrashKind::Power,
    })
}

/// Attempts to open a disk where something fails while it opens; at the last one nothing does.
const OPENS_MAX: u32 = 4;

struct Run<'a> {
    lab: &'a Lab,
    plan: &'a Plan,
    sim: &'a Sim,
    rig: &'a Rig,
    belief: &'a Belief,
    watch: &'a Watch,
}

/// How an era ended.
enum Ended {
    Whole(Disk),
    BrokenOff,
}

impl Run<'_> {
    fn eras(&self) -> Result<(), Broken> {
        let last = self.plan.eras.len() - 1;
        for (number, era) in self.plan.eras.iter().enumerate() {
            let host = self.sim.host("host");
            let explores = number == last;
            let after = era.crash.as_ref().map(|crash| crash.after);
            let broken_off = self.watch.era(&host, after, explores);
            let work = self.era(&host, &era.ops, number == 0, explores);
            let ended = self.sim.run(async {
                // First whether it was broken off: what a dead host's calls answer means nothing.
                match select(broken_off, std::pin::pin!(work)).await {
                    Either::Left(_) => Ok(Ended::BrokenOff),
                    Either::Right((done, _)) => done.map(Ended::Whole),
                }
            })??;
            self.findings()?;
            match (&era.crash, ended) {
                (Some(crash), ended) => {
                    host.kill();
                    drop(ended);
                    self.crash(crash);
                }
                (None, Ended::Whole(disk)) => self.finish(&host, disk)?,
                // A crash state failed: the watch has it.
                (None, Ended::BrokenOff) => host.kill(),
            }
        }
        Ok(())
    }

    /// Opens, reads what a crash left, works, lets background work run.
    async fn era(
        &self,
        host: &Host,
        ops: &[GuestOp],
        is_first: bool,
        is_last: bool,
    ) -> Result<Disk, Broken> {
        let after_crash = !is_first;
        // Until it is formatted nothing is known of what the disk shows.
        let formats = is_first && self.lab.subject.shows_garbage_first();
        self.watch.look_away(formats);
        let opened = self.open(host, formats).await;
        let disk = opened.map_err(|error| {
            let rule = if after_crash {
                "recovery-failed"
            } else {
                "open-failed"
            };
            Broken::new(
                rule,
                format!("the disk does not open\n  {}", error.to_line()),
            )
        })?;
        let guest = self.guest(&disk);
        if formats {
            guest.format().await?;
            super::set_faults(self.rig, &self.lab.checks.open_faults);
            self.watch.look_away(false);
        }
        if !after_crash {
            super::set_faults(self.rig, &self.lab.checks.faults);
        }
        if after_crash {
            guest.read_all().await?;
            self.lab.look(&disk, self.rig, self.belief)?;
        }
        let look = || self.lab.look(&disk, self.rig, self.belief);
        let guest = Guest {
            when_quiet: Some(&look),
            ..guest
        };
        guest.run(ops).await?;
        if is_last {
            guest.submit(GuestOp::Idle).await?;
        }
        Ok(disk)
    }

    /// Opens the disk. What fails below may keep it from opening, but not for longer than it lasts.
    async fn open(&self, host: &Host, formats: bool) -> vaio_core::Result<Disk> {
        let checks = &self.lab.checks;
        if !formats {
            super::set_faults(self.rig, &checks.open_faults);
        }
        let mut tries = match (checks.may_fail(), checks.open_faults.is_empty()) {
            (false, _) => 1,
            (true, true) => 2,
            (true, false) => OPENS_MAX,
        };
        loop {
            match self.rig.open(host).await {
                Err(_) if tries > 1 => tries -= 1,
                opened => return opened,
            }
            // A program that cannot open its disk ends; the next attempt is another one's.
            for disk in self.rig.disks() {
                disk.hand_over();
            }
            if tries == 1 {
                self.quiet();
            }
        }
    }

    fn guest<'a>(&'a self, disk: &'a Disk) -> Guest<'a> {
        Guest {
            depth: self.plan.depth,
            on_error: self.lab.on_error(),
            ..Guest::new(self.sim, disk, self.belief)
        }
    }

    /// What a device was asked that no device may be asked.
    fn findings(&self) -> Result<(), Broken> {
        match self
            .rig
            .disks()
            .iter()
            .find_map(|disk| disk.findings().first().cloned())
        {
            Some(finding) => Err(Broken::new("contract-below", finding)),
            None => Ok(()),
        }
    }

    fn crash(&self, crash: &Crash) {
        match crash.kind {
            CrashKind::Power => self.rig.lose_power(|point| {
                if let Some(spec) = &crash.spec {
                    return point.case(spec);
                }
                let tape = self.sim.tape();
                let mut choose = |n| tape.choose(n, Family::Crash, "keep");
                let mut cases = point.cases(&[Tier::Random(1)], &mut choose, &mut |_| true);
                cases.pop().expect("one random image")
            }),
            CrashKind::Kill => {
                self.sim
                    .note(None, "killed", 0, || "the process is killed".to_owned());
                for disk in self.rig.disks() {
                    disk.settle();
                }
            }
        }
        self.belief.oracle().crash();
    }

    /// A clean end: read back, close, and look at the lower device without the filter.
    fn finish(&self, host: &Host, disk: Disk) -> Result<(), Broken> {
        self.quiet();
        let guest = self.guest(&disk);
        self.sim.run(guest.read_all())??;
        self.lab.look(&disk, self.rig, self.belief)?;
        if !self.lab.checks.close {
            self.watch.end();
            host.kill();
            return Ok(());
        }
        // A filter that says that the lower device is behind (a mirror that lost a side) is believed
        // after faults; without any, nothing may be behind.
        let is_behind = self.lab.checks.may_fail()
            && disk
                .state()
                .layers
                .iter()
                .any(|layer| layer.filter.problem.is_some());
        self.sim.note(None, "step", 3, || "close".to_owned());
        let closed = self.sim.run(disk.close())?;
        self.watch.end();
        drop(disk);
        host.kill();
        match closed {
            Ok(()) if is_behind => {}
            Ok(()) => self.closed_clean()?,
            // What a fault did to the filter may keep it from closing clean; nothing is lost.
            Err(_) if self.lab.checks.may_fail() => self.belief.oracle().crash(),
            Err(error) => return Err(Broken::new("close-failed", error.to_line())),
        }
        self.reopen()
    }

    fn closed_clean(&self) -> Result<(), Broken> {
        if self.lab.subject.descriptor().content != vaio_core::Content::Transformed {
            self.backing_equals_model()?;
        }
        Ok(())
    }

    /// Opens once more, with nothing failing below, and reads.
    fn reopen(&self) -> Result<(), Broken> {
        // An IO that was in flight when the faults ended may have brought one along.
        self.quiet();
        let host = self.sim.host("again");
        let disk = self.sim.run(self.rig.open(&host))?.map_err(|error| {
            Broken::new(
                "open-failed",
                format!(
                    "the disk does not open after a clean close\n  {}",
                    error.to_line()
                ),
            )
        })?;
        let guest = Guest {
            on_error: OnError::Broken,
            ..self.guest(&disk)
        };
        self.sim.run(guest.read_all())??;
        host.kill();
        Ok(())
    }

    fn quiet(&self) {
        for disk in self.rig.disks() {
            disk.quiet();
            disk.restore();
        }
    }

    /// After a clean close the lower device, read without the filter, is what the guest wrote; all
    /// of it durable.
    fn backing_equals_model(&self) -> Result<(), Broken> {
        let backing = self
            .rig
            .disk(BACKING)
            .expect("there is a lower device")
            .snapshot();
        let values = values_of(backing.durable(), self.plan.blocks);
        let mut oracle = self.belief.oracle().clone();
        if self.lab.checks.may_fail() {
            // What a failed flush lost is lost; the last one, of the close, covers the rest.
            let flush = oracle.submit(&GuestOp::Flush);
            oracle.ack(flush, Outcome::Ok)?;
            oracle.crash();
        }
        for (block, value) in (0..).zip(values) {
            oracle.observe(block, value).map_err(|violation| {
                Broken::new(
                    "close-lost",
                    format!("after a clean close the lower device alone\n{violation}"),
                )
                .about(block)
            })?;
        }
        Ok(())
    }
}
