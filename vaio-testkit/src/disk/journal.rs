//! [`Journal`]: what a disk was asked and what became of it, for timelines.

use std::{collections::VecDeque, fmt, sync::Arc};

use bytes::Bytes;
use vaio_core::{Extent, Instant, OpKind};

use super::{
    mutation::{Moment, MutationId},
    spec::Survivors,
};

/// IOs that one disk remembers; the oldest are forgotten first.
pub const JOURNAL_MAX: usize = 16 << 10;

/// What became of an IO below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Not answered.
    InFlight,
    /// Answered with success.
    Acked,
    /// Answered with an error.
    Failed,
    /// A crash came first, or after the acknowledgement, and all of it is there.
    Survived,
    /// A crash kept some of its blocks.
    Torn,
    /// A crash took it.
    Lost,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InFlight => "in flight",
            Self::Acked => "acked",
            Self::Failed => "failed",
            Self::Survived => "survived",
            Self::Torn => "torn",
            Self::Lost => "lost",
        })
    }
}

/// One IO below.
#[derive(Clone, Debug)]
pub struct LowerIo {
    /// Process that asked.
    pub host: Arc<str>,
    /// What.
    pub op: OpKind,
    /// Where; empty for a flush.
    pub extent: Extent,
    /// Durable at its acknowledgement.
    pub is_fua: bool,
    /// Name in crash specifications, if it is a mutation.
    pub mutation: Option<MutationId>,
    /// When it was submitted, in virtual time and in events of the run.
    pub submitted: (Instant, Moment),
    /// When it was answered.
    pub ended: Option<(Instant, Moment)>,
    /// What became of it.
    pub fate: Fate,
    /// What a write wrote and a read returned. Kept while the world's trace keeps a list; else
    /// `None`.
    pub data: Option<Bytes>,
}

/// The latest IOs of a disk, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    ios: VecDeque<LowerIo>,
    forgotten: u64,
}

impl Journal {
    /// The IOs, oldest first.
    pub fn ios(&self) -> impl Iterator<Item = &LowerIo> {
        self.ios.iter()
    }

    /// How many are no longer there.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Notes an IO; the number finds it again.
    pub(super) fn begin(&mut self, io: LowerIo) -> u64 {
        if self.ios.len() == JOURNAL_MAX {
            self.ios.pop_front();
            self.forgotten += 1;
        }
        self.ios.push_back(io);
        self.forgotten + self.ios.len() as u64 - 1
    }

    /// The IO of this number; `None` if it was forgotten.
    pub fn get(&self, number: u64) -> Option<&LowerIo> {
        let at = number.checked_sub(self.forgotten)?;
        self.ios.get(usize::try_from(at).ok()?)
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut LowerIo> {
        let at = number.checked_sub(self.forgotten)?;
        self.ios.get_mut(usize::try_from(at).ok()?)
    }

    pub(super) fn end(&mut self, number: u64, at: (Instant, Moment), is_ok: bool) {
        if let Some(io) = self.get_mut(number) {
            io.ended = Some(at);
            io.fate = if is_ok { Fate::Acked } else { Fate::Failed };
        }
    }

    /// What a read returned.
    pub(super) fn returned(&mut self, number: u64, data: &Bytes) {
        if let Some(io) = self.get_mut(number) {
            io.data = Some(data.clone());
        }
    }

    /// Power is lost: of these pending mutations, each with its number of blocks, `kept` survive.
    pub(crate) fn crash(&mut self, pending: &[(MutationId, u64)], kept: Option<&Survivors>) {
        for io in &mut self.ios {
            let Some(id) = io.mutation else { continue };
            let Ok(at) = pending.binary_search_by_key(&id, |(id, _)| *id) else {
                continue;
            };
            let blocks = pending[at].1;
            let survives = |block: &u64| match kept {
                None => true,
                Some(Survivors::Keep(pieces)) => pieces.iter().any(|p| p.names(id.0, *block)),
                Some(Survivors::Drop(pieces)) => !pieces.iter().any(|p| p.names(id.0, *block)),
            };
            let count = (0..blocks).filter(survives).count() as u64;
            io.fate = match count {
                0 => Fate::Lost,
                some if some == blocks => Fate::Survived,
                _ => Fate::Torn,
            };
        }
    }
}
