//! What the guest did: each operation is an interval on one clock of events.
//!
//! Every submission, answer and crash has a moment of its own, so that no two are equal. What the
//! ordered cut is computed from, and what a failure shows.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::stamp::Value;
use crate::workload::GuestOp;

/// A moment on the clock of events. Later is larger; no two events share one.
pub type Moment = u64;

/// The moment of what has not happened.
pub const NEVER: Moment = Moment::MAX;

/// A guest operation of a run, from 1. Its number is the `op` of its stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u32);

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is in flight.
    NotYet,
    /// Success; what a read returned, shared so that a clone of a long history is cheap.
    Ok(Arc<[Value]>),
    /// An error.
    Err,
    /// The crash came first.
    Crash,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Record {
    /// What was asked.
    pub op: GuestOp,
    /// When.
    pub submit: Moment,
    /// When it was answered, or the crash that came first; [`NEVER`] in flight.
    pub end: Moment,
    /// How it was answered.
    pub ended: Ended,
    /// Crashes before it.
    pub era: u32,
}

impl Record {
    /// Whether it was answered with success.
    pub fn is_ok(&self) -> bool {
        matches!(self.ended, Ended::Ok(_))
    }
}

/// A crash, and what it left open.
#[derive(Clone, Debug)]
pub struct CrashRecord {
    /// When it happened: what was in flight ended here.
    pub at: Moment,
    /// When what survived counts as submitted and guaranteed: just after.
    pub settled: Moment,
    /// For each block that had been touched: what it may show. Kept for ordered promises only.
    pub left: Vec<(u64, Vec<Value>)>,
}

/// Content that was read back without a guest operation.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    /// The block.
    pub block: u64,
    /// What it showed.
    pub value: Value,
    /// When.
    pub submit: Moment,
}

/// All operations and crashes of a run, in order.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub(super) ops: Vec<Record>,
    pub(super) crashes: Vec<CrashRecord>,
    pub(super) observed: Vec<Observed>,
    /// What each block holds before the first operation: `None` is zeroes.
    pub(super) filled: bool,
}

impl History {
    /// An operation; `None` if no such one was submitted.
    pub fn get(&self, id: OpId) -> Option<&Record> {
        self.ops.get(usize::try_from(id.0).ok()?.checked_sub(1)?)
    }

    /// Every operation with its number, in order of submission.
    pub fn ops(&self) -> impl Iterator<Item = (OpId, &Record)> {
        (1..).map(OpId).zip(&self.ops)
    }

    /// A hash of the operations and of the order in which they were sent and answered, without what
    /// they wrote and returned.
    pub fn order_hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for record in &self.ops {
            let ended = std::mem::discriminant(&record.ended);
            (record.op, record.submit, record.end, ended).hash(&mut hasher);
        }
        for crash in &self.crashes {
            crash.at.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Every crash, in order.
    pub fn crashes(&self) -> &[CrashRecord] {
        &self.crashes
    }

    /// "#2 `write 0 1` (submitted 5, acked 41)".
    pub fn describe(&self, id: OpId) -> String {
        let Some(record) = self.get(id) else {
            return format!("{id} (not an operation of this run)");
        };
        let end = match &record.ended {
            Ended::NotYet => "in flight".to_owned(),
            Ended::Ok(_) => format!("acked at {}", record.end),
            Ended::Err => format!("failed at {}", record.end),
            Ended::Crash => format!("unanswered at the crash at {}", record.end),
        };
        format!(
            "{id} `{}` (submitted at {}, {end})",
            record.op, record.submit
        )
    }

    /// A value as a reader at `block` sees it.
    pub fn describe_value(&self, run: u32, block: u64, value: &Value) -> String {
        match value {
            Value::Stamp(stamp) if stamp.run == run && stamp.block == block => {
                self.describe(OpId(stamp.op))
            }
            other => other.explain(run, block),
        }
    }

    pub(super) fn initial(&self, block: u64) -> Value {
        if self.filled {
            Value::Fill(block)
        } else {
            Value::Zero
        }
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut crashes = self.crashes.iter().peekable();
        for (id, record) in self.ops() {
            while let Some(crash) = crashes.next_if(|crash| crash.at < record.submit) {
                writeln!(f, "crash at {}", crash.at)?;
            }
            writeln!(f, "{}", self.describe(id))?;
        }
        crashes.try_for_each(|crash| writeln!(f, "crash at {}", crash.at))
    }
}
