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

/// A read that nothing explains.
pub(super) struct Unexplained;

impl Block {
    /// A read returned `value`: take note of which version it was.
    pub(super) fn read(&mut self, value: Value, span: ReadSpan) -> Result<(), Unexplained> {
        let fitting: Vec<usize> = (0..self.versions.len())
            .filter(|index| self.fits(*index, value, span))
            .collect();
        let first = *fitting.first().ok_or(Unexplained)?;
        if fitting.len() == 1 && !self.may_be_of_unanswered(first, value) {
            self.versions[first] = seen_by(self.versions[first], span);
            if self.versions[first].kind == Kind::Base {
                self.settle(value);
            }
            return Ok(());
        }
        if fitting
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

    /// Whether the value is also that of a write in flight other than the one at `index`, which does
    /// not explain the read: if it fails, what reads proved of it no longer holds, and then it may.
    fn may_be_of_unanswered(&self, index: usize, value: Value) -> bool {
        let unanswered = |version: &Version| {
            version.end == NEVER && version.kind != Kind::Read && version.value == value
        };
        let mut others = self.versions.iter().enumerate();
        others.any(|(other, version)| other != index && unanswered(version))
    }

    /// Whether a version explains the read.
    fn fits(&self, index: usize, value: Value, span: ReadSpan) -> bool {
        let version = &self.versions[index];
        if version.kind == Kind::Read || !self.may_be(version, value) {
            return false;
        }
        let seen = seen_by(*version, span);
        let after = self.after(index, &seen);
        (0..self.versions.len()).all(|other| {
            let version = &self.versions[other];
            // A read that may be of this very version contradicts nothing.
            let same = version.kind == Kind::Read && version.value == value;
            // What a read adds is that all that was proven before it began is before its version.
            let before = version.proof < seen.seen;
            other == index || same || !(after[other] && before)
        })
    }

    /// The versions that are after the one at `start`, which counts as `changed`.
    fn after(&self, start: usize, changed: &Version) -> Vec<bool> {
        let (mut proof, mut end) = (changed.proof, changed.end);
        let mut after = vec![false; self.versions.len()];
        loop {
            let mut grew = false;
            for (index, version) in self.versions.iter().enumerate() {
                let is_after = proof < version.seen || end < version.submit;
                if index == start || after[index] || !is_after {
                    continue;
                }
                (proof, end) = (proof.min(version.proof), end.min(version.end));
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
