//! Live reads: each block is a linearizable register.
//!
//! A version and the reads that returned it stand together in every explanation of the history, so
//! `a` is before `b` if something of `a` had ended when something of `b` began. The history has an
//! explanation iff that relation has no cycle, and a read adds relations of its own version only:
//! it is checked by what can be reached from there. What may be undone (a failed write, a
//! discard not yet read as zero) is before what was submitted after its end, and nothing else.

use super::block::{Block, Kind, Version};
use super::history::{Moment, NEVER, OpId};
use crate::stamp::Value;

/// A read that has just been answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadSpan {
    pub submit: Moment,
    pub end: Moment,
}

/// What counts as proven.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// All that reads have shown so far.
    All,
    /// Only what no failure of a write in flight takes back.
    Answered,
}

/// A read that nothing explains.
pub(super) struct Unexplained;

impl Block {
    /// A read returned `value`: take note of which version it was.
    pub(super) fn read(&mut self, value: Value, span: ReadSpan) -> Result<(), Unexplained> {
        let of_value: Vec<usize> = (0..self.versions.len())
            .filter(|index| self.may_be_read(*index, value))
            .collect();
        let fits = |index: &&usize, trust| self.fits(**index, value, span, trust);
        let all = |index: &&usize| fits(index, Trust::All);
        let first = *of_value.iter().find(all).ok_or(Unexplained)?;
        if of_value.len() == 1 {
            self.attribute(first, value, span);
            return Ok(());
        }
        // What a write in flight rules out now comes back if that write fails.
        let possible: Vec<usize> = of_value
            .iter()
            .filter(|index| fits(index, Trust::Answered))
            .copied()
            .collect();
        if possible.len() == 1 {
            self.attribute(first, value, span);
            return Ok(());
        }
        if possible
            .iter()
            .any(|index| self.versions[*index].is_failed())
        {
            // It may be of a write that is undone later, and then proves nothing.
            return Ok(());
        }
        // Zeroes of several origins: keep what holds for each of them. Its submission is that of no
        // write: a failed write is before later writes only.
        let mut read = Version::submitted(value, OpId(0), Kind::Read, 0);
        read.seen = span.submit;
        read.end = span.end;
        read.proof = span.end;
        self.keep_read(read);
        Ok(())
    }

    fn may_be_read(&self, index: usize, value: Value) -> bool {
        let version = &self.versions[index];
        version.kind != Kind::Read && self.may_be(version, value)
    }

    /// The read was certainly of the version at `index`.
    fn attribute(&mut self, index: usize, value: Value, span: ReadSpan) {
        self.versions[index] = seen_by(self.versions[index], span);
        if self.versions[index].kind == Kind::Base {
            self.settle(value);
        }
    }

    /// Whether a version of this value explains the read.
    fn fits(&self, index: usize, value: Value, span: ReadSpan, trust: Trust) -> bool {
        let mut seen = seen_by(self.versions[index], span);
        seen.proof = self.proof(&seen, trust);
        let after = self.after(index, &seen, trust);
        (0..self.versions.len()).all(|other| {
            let version = &self.versions[other];
            // A read that may be of this very version contradicts nothing.
            let same = version.kind == Kind::Read && version.value == value;
            // What a read adds is that all that was proven before it began is before its version.
            let before = self.proof(version, trust) < seen.seen;
            other == index || same || !(after[other] && before)
        })
    }

    /// When the version had certainly taken effect, as far as that is trusted.
    fn proof(&self, version: &Version, trust: Trust) -> Moment {
        let in_flight = |of: &Version| of.end == NEVER && of.kind != Kind::Read;
        let may_be_undone = || match version.kind {
            Kind::Read => {
                let of = |other: &Version| in_flight(other) && other.value == version.value;
                self.versions.iter().any(of)
            }
            _ => in_flight(version),
        };
        if trust == Trust::Answered && may_be_undone() {
            return NEVER;
        }
        version.proof
    }

    /// The versions that are after the one at `start`, which counts as `changed`.
    fn after(&self, start: usize, changed: &Version, trust: Trust) -> Vec<bool> {
        let (mut proof, mut end) = (changed.proof, changed.end);
        let mut after = vec![false; self.versions.len()];
        loop {
            let mut grew = false;
            for (index, version) in self.versions.iter().enumerate() {
                let is_after = proof < version.seen || end < version.submit;
                if index == start || after[index] || !is_after {
                    continue;
                }
                (proof, end) = (proof.min(self.proof(version, trust)), end.min(version.end));
                after[index] = true;
                grew = true;
            }
            if !grew {
                return after;
            }
        }
    }

    /// A write failed, so it may be undone: what reads proved while it was in flight no longer holds.
    pub(super) fn fail(&mut self, op: OpId, at: Moment) {
        let version = self.of(op);
        version.end = at;
        version.proof = NEVER;
        let value = version.value;
        self.versions
            .retain(|version| version.kind != Kind::Read || version.value != value);
    }

    /// The newest version that was certainly in place when a read began: why an older one is stale.
    pub(super) fn in_place(&self, span: ReadSpan) -> Option<&Version> {
        self.versions
            .iter()
            .rev()
            .find(|version| version.proof < span.submit)
    }
}

/// The version after a read returned it.
fn seen_by(mut version: Version, span: ReadSpan) -> Version {
    version.seen = version.seen.max(span.submit);
    if !version.is_failed() {
        version.proof = version.proof.min(span.end);
    }
    version
}
