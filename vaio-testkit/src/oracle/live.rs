//! Live reads: each block is a linearizable register.
//!
//! A version and the reads that returned it stand together in every explanation of the history, so
//! `a` is before `b` if something of `a` had ended when something of `b` began. The history has an
//! explanation iff that relation has no cycle, and a read adds relations of its own version only:
//! it is checked by what can be reached from there and back. What may be undone (a failed write, a
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
        if fitting.len() == 1 {
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

    /// Whether a version explains the read.
    fn fits(&self, index: usize, value: Value, span: ReadSpan) -> bool {
        let version = &self.versions[index];
        if version.kind == Kind::Read || !self.may_be(version, value) {
            return false;
        }
        let seen = seen_by(*version, span);
        let (after, before) = (self.after(index, &seen), self.before(index, &seen));
        (0..self.versions.len()).all(|other| {
            let version = &self.versions[other];
            // A read that may be of this very version contradicts nothing.
            let same = version.kind == Kind::Read && version.value == value;
            other == index || same || !(after[other] && before[other])
        })
    }

    /// The versions that are after the one at `start`, which counts as `changed`.
    fn after(&self, start: usize, changed: &Version) -> Vec<bool> {
        let (mut proof, mut end) = (changed.proof, changed.end);
        self.closure(start, |version| {
            let is_after = proof < version.seen || end < version.submit;
            if is_after {
                proof = proof.min(version.proof);
                end = end.min(version.end);
            }
            is_after
        })
    }

    /// The versions that are before the one at `start`, which counts as `changed`, by what was
    /// proven. Answers need not be looked at: a read adds relations from what was proven before it.
    fn before(&self, start: usize, changed: &Version) -> Vec<bool> {
        let mut seen = changed.seen;
        self.closure(start, |version| {
            let is_before = version.proof < seen;
            if is_before {
                seen = seen.max(version.seen);
            }
            is_before
        })
    }

    /// Ask for each version until none more joins.
    fn closure(&self, start: usize, mut joins: impl FnMut(&Version) -> bool) -> Vec<bool> {
        let mut joined = vec![false; self.versions.len()];
        loop {
            let mut grew = false;
            for (index, version) in self.versions.iter().enumerate() {
                if index != start && !joined[index] && joins(version) {
                    joined[index] = true;
                    grew = true;
                }
            }
            if !grew {
                return joined;
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
