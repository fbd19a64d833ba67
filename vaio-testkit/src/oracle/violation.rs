//! A broken promise, explained: the rule, the block, what it read, what was legal and why.

use std::fmt;

use vaio_core::Promise;

use crate::stamp::Value;

/// The rule that was broken. Its name is stable: tests and plans refer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// After a crash a block shows older content than what was guaranteed.
    LostWrite,
    /// A write that was never acknowledged appears after recovery had decided against it.
    GhostWrite,
    /// A read returned content that had been overwritten before the read began.
    StaleRead,
    /// A logical block mixes two writers.
    TornBlock,
    /// Content that an earlier recovery, or a read of zeroes after a discard, had ruled out is back.
    Resurrected,
    /// A block that the guest never wrote shows something new.
    UntouchedChanged,
    /// The data was meant for another block.
    Misdirected,
    /// Data of another run.
    Foreign,
    /// Nothing that anyone wrote.
    Corrupt,
    /// The answer of a read does not have one value for each block.
    WrongAnswer,
    /// An ordered target is the source at no moment.
    OutOfOrderCut,
    /// An ordered target went back behind an earlier target.
    CutWentBack,
}

impl Rule {
    /// `lost-write`, `stale-read` and so on.
    pub fn name(self) -> &'static str {
        match self {
            Self::LostWrite => "lost-write",
            Self::GhostWrite => "ghost-write",
            Self::StaleRead => "stale-read",
            Self::TornBlock => "torn-block",
            Self::Resurrected => "resurrected",
            Self::UntouchedChanged => "untouched-changed",
            Self::Misdirected => "misdirected",
            Self::Foreign => "foreign-data",
            Self::Corrupt => "corrupt-data",
            Self::WrongAnswer => "wrong-answer",
            Self::OutOfOrderCut => "out-of-order-cut",
            Self::CutWentBack => "cut-went-back",
        }
    }
}

/// A broken promise. `Display` is several lines, for a person.
#[derive(Clone, Debug)]
pub struct Violation {
    detail: Box<Detail>,
}

#[derive(Clone, Debug)]
pub(super) struct Detail {
    pub rule: Rule,
    pub promise: Promise,
    pub block: u64,
    pub found: Option<Value>,
    pub legal: Vec<Value>,
    /// What the block reads, as text.
    pub reads: String,
    /// What was legal, as text.
    pub expected: String,
    pub why: String,
}

impl Violation {
    pub(super) fn new(detail: Detail) -> Self {
        Self {
            detail: Box::new(detail),
        }
    }

    pub(super) fn set_found(&mut self, value: Value, reads: String) {
        self.detail.found = Some(value);
        self.detail.reads = reads;
    }

    /// The rule broken.
    pub fn rule(&self) -> Rule {
        self.detail.rule
    }

    /// The promise that it belongs to.
    pub fn promise(&self) -> Promise {
        self.detail.promise
    }

    /// The first block concerned.
    pub fn block(&self) -> u64 {
        self.detail.block
    }

    /// What it showed; `None` for an answer without a value.
    pub fn found(&self) -> Option<Value> {
        self.detail.found
    }

    /// What it may have shown, as far as that is a list.
    pub fn legal(&self) -> &[Value] {
        &self.detail.legal
    }

    /// Why something else was expected.
    pub fn why(&self) -> &str {
        &self.detail.why
    }
}

/// The promise as a reader of a report knows it.
pub(crate) fn promise_name(promise: Promise) -> &'static str {
    match promise {
        Promise::AtFlush => "durable at flush",
        Promise::AtAck => "durable at ack",
        Promise::OrderedByFlush => "ordered by flush",
        Promise::Ordered => "ordered",
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = &self.detail;
        writeln!(
            f,
            "VIOLATION  {}  (promise: {})",
            detail.rule.name(),
            promise_name(detail.promise)
        )?;
        writeln!(f, "  block {} reads {}", detail.block, detail.reads)?;
        writeln!(f, "  legal: {}", detail.expected)?;
        write!(f, "  why: {}", detail.why)
    }
}

impl std::error::Error for Violation {}
