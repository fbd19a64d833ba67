//! What a block may show after a crash: every version that nothing guaranteed is after.
//!
//! `v` is before `w` if `v` had ended when `w` was submitted, or if `v` was acknowledged before the
//! submission of a read that returned `w`; closed transitively. A flush covers what was
//! acknowledged before it was submitted, unless a flush failed in between or before.

use std::fmt;

use super::block::{Block, Kind, Version, Why};
use super::history::{Moment, OpId};
use crate::stamp::Value;

/// What makes versions guaranteed: the promise and the flushes of this era.
#[derive(Clone, Debug)]
pub(super) struct Durability {
    /// Every acknowledged write survives.
    pub at_ack: bool,
    /// A flush covers what was acknowledged before an earlier flush failed.
    pub retry_covers: bool,
    flushes: Vec<Flush>,
    /// The last answer of a flush that failed.
    failure: Moment,
}

#[derive(Clone, Copy, Debug)]
struct Flush {
    op: OpId,
    submit: Moment,
    /// It covers nothing that was acknowledged until then.
    floor: Moment,
}

impl Durability {
    pub(super) fn new(at_ack: bool, retry_covers: bool) -> Self {
        Self {
            at_ack,
            retry_covers,
            flushes: Vec::new(),
            failure: 0,
        }
    }

    pub(super) fn flush_succeeded(&mut self, op: OpId, submit: Moment) {
        let floor = if self.retry_covers { 0 } else { self.failure };
        // What the flush before covers too is not asked for again: keep the first that covers.
        self.flushes.push(Flush { op, submit, floor });
    }

    pub(super) fn flush_failed(&mut self, at: Moment) {
        self.failure = at;
    }

    /// After a crash, nothing that was acknowledged before it can be covered any more.
    pub(super) fn forget(&mut self) {
        self.flushes.clear();
    }

    /// Why an acknowledged version is guaranteed now, if it is.
    fn guarantee(&self, version: &Version) -> Option<Why> {
        if version.guaranteed.is_some() || !version.acked || version.kind == Kind::Read {
            return version.guaranteed;
        }
        if self.at_ack {
            return Some(Why::Ack);
        }
        let covers = |flush: &&Flush| flush.floor < version.end && version.end < flush.submit;
        self.flushes
            .iter()
            .find(covers)
            .map(|flush| Why::Flush(flush.op))
    }
}

/// What a block may show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegalSet {
    values: Vec<Value>,
}

impl LegalSet {
    /// Whether the block may show it.
    pub fn allows(&self, value: Value) -> bool {
        self.values.contains(&value)
    }

    /// Every value that it may show, without duplicates, in no order that means something.
    pub fn values(&self) -> &[Value] {
        &self.values
    }
}

impl fmt::Display for LegalSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, value) in self.values.iter().enumerate() {
            write!(f, "{}{value}", if index == 0 { "" } else { " or " })?;
        }
        Ok(())
    }
}

/// The largest of some moments, and the largest of all but one of them.
#[derive(Clone, Copy, Default)]
struct Largest {
    first: Option<(Moment, usize)>,
    second: Option<Moment>,
}

impl Largest {
    fn add(&mut self, moment: Moment, of: usize) {
        match self.first {
            Some((largest, _)) if moment <= largest => self.second = self.second.max(Some(moment)),
            previous => {
                self.second = previous.map(|(largest, _)| largest);
                self.first = Some((moment, of));
            }
        }
    }

    fn except(&self, of: usize) -> Option<Moment> {
        self.first
            .filter(|first| first.1 != of)
            .map_or(self.second, |first| Some(first.0))
    }
}

impl Block {
    /// Note what has become guaranteed.
    pub(super) fn guarantee(&mut self, durability: &Durability) {
        for version in &mut self.versions {
            version.guaranteed = durability.guarantee(version);
        }
    }

    /// For each version whether something guaranteed is after it. Linear but for the rare chain.
    fn ruled_out(&self) -> Vec<bool> {
        let mut out = vec![false; self.versions.len()];
        let (mut submit, mut seen) = (Largest::default(), Largest::default());
        for (index, version) in self.versions.iter().enumerate() {
            if version.removes_older() {
                submit.add(version.submit, index);
                seen.add(version.seen, index);
            }
        }
        loop {
            let mut grew = false;
            for (index, version) in self.versions.iter().enumerate() {
                let is_before = submit
                    .except(index)
                    .is_some_and(|submit| version.end < submit)
                    || seen.except(index).is_some_and(|seen| version.ack() < seen);
                if out[index] || !is_before {
                    continue;
                }
                out[index] = true;
                grew = true;
                // What is before this is before what rules this out. A read is no version.
                if version.kind != Kind::Read && !version.removes_older() {
                    submit.add(version.submit, index);
                    seen.add(version.seen, index);
                }
            }
            if !grew {
                return out;
            }
        }
    }

    /// What a crash now may leave.
    pub(super) fn legal(&self) -> LegalSet {
        let out = self.ruled_out();
        let mut values: Vec<Value> =
            Vec::with_capacity(self.versions.len() + self.alternatives.len());
        for (index, version) in self.versions.iter().enumerate() {
            if out[index] || version.kind == Kind::Read {
                continue;
            }
            for value in self.values(version) {
                if !values.contains(&value) {
                    values.push(value);
                }
            }
        }
        assert!(!values.is_empty(), "a block always shows something");
        LegalSet { values }
    }

    /// Drop what can no longer be read, neither live nor after a crash. Only while no read of this
    /// block is in flight: it may have begun before what rules an older version out.
    pub(super) fn prune(&mut self) {
        if self.versions.len() == 1 {
            return;
        }
        let out = self.ruled_out();
        if let Some(floor) = self.newest_guaranteed() {
            self.floor = Some(floor);
        }
        self.inherit(&out);
        let mut index = 0;
        self.versions.retain(|_| {
            index += 1;
            !out[index - 1]
        });
    }

    /// What is before a version that is dropped stays before all that is after it.
    fn inherit(&mut self, dropped: &[bool]) {
        let mut grew = true;
        while std::mem::take(&mut grew) {
            for index in (0..self.versions.len()).filter(|index| dropped[*index]) {
                let old = self.versions[index];
                let is_after = |new: &Version| old.end < new.submit || old.ack() < new.seen;
                for (other, new) in self.versions.iter_mut().enumerate() {
                    if other != index && is_after(new) && new.seen < old.seen {
                        new.seen = old.seen;
                        grew = true;
                    }
                }
            }
        }
    }

    fn newest_guaranteed(&self) -> Option<(OpId, Why)> {
        let newest = self
            .versions
            .iter()
            .rev()
            .find(|version| version.removes_older())?;
        (newest.kind != Kind::Base).then_some((newest.op, newest.guaranteed?))
    }

    /// What is guaranteed now, and by what.
    pub(super) fn floor(&self) -> Option<(OpId, Why)> {
        self.newest_guaranteed().or(self.floor)
    }

    /// The crash: the era begins with one of the legal values, unknown which.
    pub(super) fn crash(&mut self, settled: Moment) {
        let floor = self.floor();
        let mut values = self.legal().values;
        let alternatives = values.split_off(1);
        self.versions.clear();
        self.versions
            .push(Version::base(values[0], settled, Why::Settled));
        self.alternatives = alternatives;
        self.floor = floor;
    }
}

impl LegalSet {
    /// A hash that does not depend on the order of the values.
    pub(super) fn hash(&self, block: u64) -> u64 {
        let one = |value: &Value| {
            let words = match *value {
                Value::Zero => [0, 0, 0],
                Value::Fill(of) => [1, of, 0],
                Value::Stamp(stamp) => {
                    let of = u64::from(stamp.run) << 32 | u64::from(stamp.op);
                    [2 | u64::from(stamp.version) << 8, of, stamp.block]
                }
                Value::Torn { head, tail, at } => [
                    3 | u64::from(at) << 8,
                    u64::from(head) << 32 | u64::from(tail),
                    0,
                ],
                Value::Other(hash) => [4, hash, 0],
            };
            words
                .into_iter()
                .fold(mix(block + 1), |hash, word| mix(hash ^ word))
        };
        // A sum, so that equal values of two blocks do not cancel out.
        mix(self.values.iter().map(one).fold(0, u64::wrapping_add))
    }
}

/// The finalizer of splitmix64.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
