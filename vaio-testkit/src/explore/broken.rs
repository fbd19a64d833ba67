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
}

impl Broken {
    /// A broken rule of the kit's own.
    pub fn new(rule: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            rule: rule.into(),
            what: what.into(),
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl From<Violation> for Broken {
    fn from(violation: Violation) -> Self {
        Self::new(violation.rule().name(), violation.to_string())
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
