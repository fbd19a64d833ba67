//! [`Recovered`]: what was read of media that a crash left, to be put to other oracles.
//!
//! What a recovery does depends on the media and the sidecar, and on nothing else; whether it is
//! legal depends on what the guest was told. Along a run the same media meet many such histories,
//! so they are recovered once, and what was read is replayed to each oracle.
//!
//! Invariant: a script holds every operation and crash of the check, in order, and what each read
//! returned; data that the check itself wrote is named by its write, because another oracle gives
//! it other stamps.

use std::collections::BTreeMap;

use crate::{
    GuestOp,
    oracle::{Ended, History, OpId, Oracle, Outcome, Violation},
    stamp::{Stamp, Value},
};

/// Values that are kept at most, over all scripts; then all are forgotten.
const VALUES_MAX: usize = 1 << 20;

/// What is known of a campaign's media.
#[derive(Clone, Debug, Default)]
pub(super) struct Recoveries {
    /// Checks of crash states, second eras included.
    pub(super) checks: Scripts,
    /// The ends of second eras alone.
    pub(super) ends: Scripts,
    /// Recoveries that were carried out.
    pub(super) carried_out: u64,
}

/// Scripts by hash of the media and the sidecar.
#[derive(Clone, Debug, Default)]
pub(super) struct Scripts {
    scripts: BTreeMap<u64, Recovered>,
    values: usize,
}

impl Scripts {
    pub(super) fn get(&self, hash: u64) -> Option<&Recovered> {
        self.scripts.get(&hash)
    }

    pub(super) fn keep(&mut self, hash: u64, recovered: Recovered) {
        if self.values > VALUES_MAX {
            self.scripts.clear();
            self.values = 0;
        }
        self.values += recovered.values();
        self.scripts.insert(hash, recovered);
    }
}

/// The check of one crash state, as its guest saw it.
#[derive(Clone, Debug)]
pub(super) struct Recovered {
    steps: Vec<Step>,
    /// Crash states that it counts for.
    pub(super) states: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Op(GuestOp, Answer),
    Crash,
}

#[derive(Clone, Debug)]
enum Answer {
    Ok,
    Err,
    Read(Vec<Shown>),
}

#[derive(Clone, Copy, Debug)]
enum Shown {
    Value(Value),
    /// What this operation of the script wrote there.
    Written(usize),
}

impl Recovered {
    /// What happened in `history` after its first `ops` operations and `crashes` crashes. `None`
    /// where something did not end, or shows a block that is torn: that is not to be replayed.
    pub(super) fn of(history: &History, ops: usize, crashes: usize, states: u64) -> Option<Self> {
        let mut crashes = history.crashes()[crashes..].iter().peekable();
        let mut steps = Vec::new();
        let mut written: Vec<(OpId, usize)> = Vec::new();
        for (id, record) in history.ops().skip(ops) {
            while crashes.next_if(|crash| crash.at < record.submit).is_some() {
                steps.push(Step::Crash);
            }
            let answer = match &record.ended {
                Ended::Ok(values) if matches!(record.op, GuestOp::Read { .. }) => {
                    let shown = values.iter().map(|value| shown(*value, &written));
                    Answer::Read(shown.collect::<Option<_>>()?)
                }
                Ended::Ok(_) => Answer::Ok,
                Ended::Err => Answer::Err,
                Ended::NotYet | Ended::Crash => return None,
            };
            written.push((id, steps.len()));
            steps.push(Step::Op(record.op, answer));
        }
        steps.extend(crashes.map(|_| Step::Crash));
        Some(Self { steps, states })
    }

    fn values(&self) -> usize {
        let of = |step: &Step| match step {
            Step::Op(_, Answer::Read(values)) => values.len(),
            _ => 1,
        };
        self.steps.iter().map(of).sum()
    }

    /// Puts it to the oracle of another guest whose disk is in the same state: the oracle afterwards,
    /// if it is legal. If not, the state is to be recovered, for the report.
    pub(super) fn put_to(&self, crashed: &Oracle) -> Option<Oracle> {
        let mut oracle = crashed.clone();
        self.replay(&mut oracle).ok().map(|()| oracle)
    }

    fn replay(&self, oracle: &mut Oracle) -> Result<(), Violation> {
        let mut stamps: Vec<Vec<Stamp>> = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let Step::Op(op, answer) = step else {
                oracle.crash();
                stamps.push(Vec::new());
                continue;
            };
            let id = oracle.submit(op);
            stamps.push(oracle.stamps(id));
            let outcome = match answer {
                Answer::Ok => Outcome::Ok,
                Answer::Err => Outcome::Err,
                Answer::Read(values) => {
                    let value = |(block, shown): (u64, &Shown)| match *shown {
                        Shown::Value(value) => value,
                        Shown::Written(by) => {
                            let mut of_block = stamps[by].iter();
                            let stamp = of_block.find(|stamp| stamp.block == block);
                            // Data of another block: as illegal as it was.
                            let stamp = stamp.or(stamps[by].first());
                            Value::Stamp(*stamp.expect("a write of blocks has stamps"))
                        }
                    };
                    Outcome::Read(op.blocks().zip(values).map(value).collect())
                }
            };
            oracle.ack(id, outcome)?;
        }
        Ok(())
    }
}

fn shown(value: Value, written: &[(OpId, usize)]) -> Option<Shown> {
    match value {
        Value::Torn { .. } => None,
        Value::Stamp(stamp) => {
            let by = written.iter().find(|(id, _)| id.0 == stamp.op);
            Some(by.map_or(Shown::Value(value), |(_, step)| Shown::Written(*step)))
        }
        _ => Some(Shown::Value(value)),
    }
}
