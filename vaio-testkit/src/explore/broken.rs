//! [`Broken`]: a promise that was not kept, found in a run.

use std::fmt;

use crate::{
    oracle::Violation,
    sim::{Cause, Stuck},
};

/// Which promise was broken, and how one can see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Short name of the rule; what the shrinker holds on to.
    pub rule: String,
    /// What was seen, what was legal, and why; several lines.
    pub what: String,
    /// The block that it is about, where it is about one.
    pub block: Option<u64>,
}

impl Broken {
    /// A broken rule of the kit's own.
    pub fn new(rule: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            rule: rule.into(),
            what: what.into(),
            block: None,
        }
    }

    /// The same, about this block.
    #[must_use]
    pub fn about(mut self, block: u64) -> Self {
        self.block = Some(block);
        self
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl From<Violation> for Broken {
    fn from(violation: Violation) -> Self {
        Self::new(violation.rule().name(), violation.to_string()).about(violation.block())
    }
}

impl From<Stuck> for Broken {
    fn from(stuck: Stuck) -> Self {
        let rule = match stuck.cause {
            Cause::Deadlock => "deadlock",
            Cause::Spin { .. } => "spin",
            Cause::ForeignThread { .. } => "foreign-thread",
            Cause::Panic { .. } => "panic",
            Cause::TimeLimit | Cause::StepLimit => "no-progress",
        };
        Self::new(rule, stuck.to_string())
    }
}
