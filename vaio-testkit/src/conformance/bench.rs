//! [`Bench`]: a small world with one disk, for scripted cases.

use std::sync::Arc;

use vaio_core::{Content, Disk};

use super::{Budget, Found, Said};
use crate::{
    GuestOp, Scale, Subject, Swarm, Tape,
    disk::Fill,
    explore::{BACKING, Belief, Broken, Guest, Lab, Rig, Work, values_of},
    oracle::{Oracle, OracleSettings},
    report::record_script,
    sim::{Host, Schedule, Sim, TRACE_EVENTS_MAX},
    workload::{WorkloadSettings, random_workload},
};

pub(super) struct Bench {
    pub(super) sim: Sim,
    pub(super) rig: Rig,
    pub(super) belief: Belief,
    pub(super) subject: Arc<Subject>,
    pub(super) blocks: u64,
    pub(super) seed: u64,
}

/// Runs a script in a benign world and in random ones.
pub(super) fn seeds(
    subject: &Subject,
    budget: &Budget,
    quick: u64,
    script: impl Fn(&Bench) -> Result<(), Broken>,
) -> Said {
    let mut work = Work::default();
    let subject = Arc::new(subject.clone());
    for number in 0..budget.runs(quick) {
        let seed = budget.seed + number;
        let bench = Bench::new(&subject, seed);
        let done = script(&bench);
        work.runs += 1;
        if let Err(broken) = done {
            return Said::Failed(Box::new(found(&subject, seed, broken, &script)));
        }
    }
    Said::Passed(work)
}

/// What a script found, run once more with everything written down.
fn found(
    subject: &Arc<Subject>,
    seed: u64,
    broken: Broken,
    script: impl Fn(&Bench) -> Result<(), Broken>,
) -> Found {
    let bench = Bench::new(subject, seed);
    bench.sim.trace().start(TRACE_EVENTS_MAX);
    let recording = script(&bench).err().map(|broken| {
        Box::new(record_script(
            subject,
            "",
            broken,
            (&bench.rig, &bench.belief),
        ))
    });
    Found {
        broken,
        failure: None,
        was: (0, 0),
        lab: Lab {
            subject: Arc::clone(subject),
            checks: crate::explore::Checks::default(),
        },
        seed: Some(seed),
        recording,
    }
}

impl Bench {
    fn new(subject: &Arc<Subject>, seed: u64) -> Self {
        let (tape, schedule) = match seed {
            0 => (Tape::benign(), Schedule::Fifo),
            seed => {
                let tape = Tape::random(seed).with_swarm(Swarm::random(seed));
                (
                    tape,
                    if seed % 2 == 0 {
                        Schedule::Fifo
                    } else {
                        Schedule::Random
                    },
                )
            }
        };
        let sim = Sim::new(tape, schedule);
        sim.set_limits(crate::explore::limits());
        let blocks = subject.blocks(Scale::Tiny);
        let rig = Rig::new(&sim, subject, Scale::Tiny, blocks, Fill::Zero);
        let settings = OracleSettings {
            has_target: subject.ordered_target().is_some(),
            flush_retry: subject.descriptor().flush_retry,
            ..OracleSettings::new(blocks, subject.promise())
        };
        let belief = Belief::new(Oracle::new(settings));
        Self {
            sim,
            rig,
            belief,
            subject: Arc::clone(subject),
            blocks,
            seed,
        }
    }

    pub(super) fn host(&self, name: &str) -> Host {
        self.sim.host(name)
    }

    pub(super) fn open(&self, host: &Host) -> Result<Disk, Broken> {
        let disk = self.sim.run(self.rig.open(host))?.map_err(|error| {
            Broken::new(
                "open-failed",
                format!("the disk does not open\n  {}", error.to_line()),
            )
        })?;
        let is_new = self.belief.oracle().history().ops().next().is_none();
        if is_new && self.subject.shows_garbage_first() {
            self.run(self.guest(&disk, 1).format())?;
        }
        Ok(disk)
    }

    pub(super) fn guest<'a>(&'a self, disk: &'a Disk, depth: usize) -> Guest<'a> {
        Guest {
            depth,
            ..Guest::new(&self.sim, disk, &self.belief)
        }
    }

    pub(super) fn run<T>(
        &self,
        what: impl Future<Output = Result<T, Broken>>,
    ) -> Result<T, Broken> {
        self.sim.run(what)?
    }

    /// An answer that must be a success.
    pub(super) fn must<T>(
        &self,
        what: &str,
        call: impl Future<Output = vaio_core::Result<T>>,
    ) -> Result<T, Broken> {
        self.sim
            .run(call)?
            .map_err(|error| Broken::new("error", format!("{what} failed\n  {}", error.to_line())))
    }

    /// Some work for the guest, other for each seed.
    pub(super) fn workload(&self, ops: u32) -> Vec<GuestOp> {
        let tape = Tape::random(self.seed ^ 0x00c0_ffee);
        let settings = WorkloadSettings::new(self.blocks, ops);
        let mut work = random_workload(&settings, |n, name| {
            tape.choose(n.max(1), crate::Family::Op, name)
        });
        let refuses = vaio_core::Disposition::Refuse;
        if self.subject.descriptor().ops.of(vaio_core::OpKind::Discard) == refuses {
            work.retain(|op| !matches!(op, GuestOp::Discard { .. }));
        }
        work
    }

    /// The lower device alone, what is durable of it, shows what the guest wrote. Nothing is in
    /// flight.
    pub(super) fn backing_holds_all(&self, rule: &str) -> Result<(), Broken> {
        if self.subject.descriptor().content == Content::Transformed {
            return Ok(());
        }
        let backing = self
            .rig
            .disk(BACKING)
            .expect("there is a lower device")
            .snapshot();
        let mut oracle = self.belief.oracle().clone();
        for (block, value) in (0..).zip(values_of(backing.durable(), self.blocks)) {
            oracle.observe(block, value).map_err(|violation| {
                Broken::new(rule, format!("the lower device alone\n{violation}"))
            })?;
        }
        Ok(())
    }
}
