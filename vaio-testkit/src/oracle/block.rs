//! What one block may show: a short list of versions, and the two relations between them.
//!
//! Invariants: `versions` is in order of submission, and `versions[0]` is the base (what the block
//! held when the era began) until something guaranteed rules it out. Everything here is linear in
//! the length of the list; no search.

use super::history::{Moment, NEVER, OpId};
use crate::stamp::Value;

/// Reads whose version cannot be told apart from another with the same value: as many are kept per
/// block. To forget one is to accept more, never to refuse more.
const READS_KEPT_MAX: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The content at the beginning of the era: submitted, acknowledged and guaranteed there.
    Base,
    /// A write, write zeroes, or a discard on a device that promises zeroes.
    Write,
    /// Old content or zeroes: takes effect at any time until overwritten, or never.
    Discard,
    /// A read of a value that several versions have: it belongs to one of them, unknown which.
    Read,
}

/// Why a version is guaranteed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It was there before the first operation.
    Initial,
    /// It is what the crash before left.
    Settled,
    /// The promise is that an acknowledged write survives.
    Ack,
    Fua,
    Flush(OpId),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Version {
    pub value: Value,
    pub op: OpId,
    pub kind: Kind,
    pub submit: Moment,
    /// The answer, success or error.
    pub end: Moment,
    /// Answered with success.
    pub acked: bool,
    /// Earliest moment by which it had certainly taken effect: its ack, or the end of a read that
    /// returned it. `NEVER` for what may yet be undone: failed writes, discards not read as zero.
    pub proof: Moment,
    /// Latest moment after which it was certainly still there: its submission, or that of a read.
    pub seen: Moment,
    pub guaranteed: Option<Why>,
}

impl Version {
    pub(super) fn base(value: Value, since: Moment, why: Why) -> Self {
        Self {
            value,
            op: OpId(0),
            kind: Kind::Base,
            submit: since,
            end: since,
            acked: true,
            proof: since,
            seen: since,
            guaranteed: Some(why),
        }
    }

    pub(super) fn submitted(value: Value, op: OpId, kind: Kind, at: Moment) -> Self {
        Self {
            value,
            op,
            kind,
            submit: at,
            end: NEVER,
            acked: false,
            proof: NEVER,
            seen: at,
            guaranteed: None,
        }
    }

    pub(super) fn succeed(&mut self, at: Moment, fua: bool) {
        self.end = at;
        self.acked = true;
        self.guaranteed = fua.then_some(Why::Fua);
        if self.kind == Kind::Write {
            self.proof = self.proof.min(at);
        }
    }

    pub(super) fn is_failed(&self) -> bool {
        self.end != NEVER && !self.acked && self.kind != Kind::Read
    }

    /// Ack after which a read that returned something else proves that this is older. A discard
    /// must have been seen as zero: it may otherwise take effect after that read.
    pub(super) fn ack(&self) -> Moment {
        match (self.acked, self.kind) {
            (false, _) => NEVER,
            (true, Kind::Discard) => self.end.max(self.proof),
            (true, _) => self.end,
        }
    }

    /// Whether it removes what is before it from what a crash may leave.
    pub(super) fn removes_older(&self) -> bool {
        let shown = self.kind != Kind::Discard || self.proof != NEVER;
        self.guaranteed.is_some() && shown && self.kind != Kind::Read
    }
}

#[derive(Clone, Debug)]
pub(super) struct Block {
    pub versions: Vec<Version>,
    /// Other values that the base may have, until it was read; exactly one of all is true.
    pub alternatives: Vec<Value>,
    /// Writes so far: the version number of the last.
    pub writes: u32,
    /// What made the base what it is: the operation that rules out older content.
    pub floor: Option<(OpId, Why)>,
}

impl Block {
    pub(super) fn new(value: Value) -> Self {
        Self {
            versions: vec![Version::base(value, 0, Why::Initial)],
            alternatives: Vec::new(),
            writes: 0,
            floor: None,
        }
    }

    /// The version of an operation in flight: it is among the last.
    pub(super) fn of(&mut self, op: OpId) -> &mut Version {
        self.versions
            .iter_mut()
            .rev()
            .find(|version| version.op == op && version.kind != Kind::Base)
            .expect("the version of an operation in flight is never dropped")
    }

    /// Every value of a version: the base may have several.
    pub(super) fn values<'a>(&'a self, version: &'a Version) -> impl Iterator<Item = Value> + 'a {
        let others: &[Value] = if version.kind == Kind::Base {
            &self.alternatives
        } else {
            &[]
        };
        std::iter::once(version.value).chain(others.iter().copied())
    }

    /// The value that it shows whatever happens, where nothing else can be legal.
    pub(super) fn only_value(&self) -> Option<Value> {
        match &self.versions[..] {
            [only] if self.alternatives.is_empty() => Some(only.value),
            _ => None,
        }
    }

    pub(super) fn may_be(&self, version: &Version, value: Value) -> bool {
        self.values(version).any(|candidate| candidate == value)
    }

    /// The base shows `value`, once for all.
    pub(super) fn settle(&mut self, value: Value) {
        self.versions[0].value = value;
        self.alternatives.clear();
    }

    pub(super) fn keep_read(&mut self, read: Version) {
        let kept = self
            .versions
            .iter()
            .filter(|version| version.kind == Kind::Read)
            .count();
        if kept == READS_KEPT_MAX
            && let Some(oldest) = self
                .versions
                .iter()
                .position(|version| version.kind == Kind::Read)
        {
            self.versions.remove(oldest);
        }
        self.versions.push(read);
    }
}

#[cfg(test)]
mod tests {
    use vaio_core::Promise;

    use super::super::live::ReadSpan;
    use super::super::{Oracle, OracleSettings, Outcome};
    use super::*;
    use crate::workload::GuestOp;

    #[test]
    fn block_overwritten_durably_keeps_a_short_list() {
        let mut oracle = Oracle::new(OracleSettings::new(1, Promise::AtFlush));
        for _ in 0..100 {
            let id = oracle.submit(&GuestOp::Write {
                block: 0,
                count: 1,
                fua: true,
            });
            assert!(oracle.ack(id, Outcome::Ok).is_ok());
        }
        assert_eq!(oracle.block(0).map(|block| block.versions.len()), Some(1));
    }

    #[test]
    fn block_read_as_zero_again_and_again_keeps_few_reads() {
        let mut block = Block::new(Value::Fill(0));
        for (op, at) in [(1, 1), (2, 3)] {
            let op = OpId(op);
            block
                .versions
                .push(Version::submitted(Value::Zero, op, Kind::Discard, at));
            block.of(op).succeed(at + 1, false);
        }
        for at in 5..100 {
            let span = ReadSpan {
                submit: at * 2,
                end: at * 2 + 1,
            };
            assert!(block.read(Value::Zero, span).is_ok());
        }
        assert_eq!(block.versions.len(), 3 + READS_KEPT_MAX);
        let span = ReadSpan {
            submit: 500,
            end: 501,
        };
        assert!(block.read(Value::Fill(0), span).is_err());
    }
}
