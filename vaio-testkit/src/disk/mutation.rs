//! [`Mutation`]: one write, write-zeroes or discard that a crash may still change the outcome of.
//!
//! Its blocks are decided one by one, so each has a state of its own, a [`Unit`]. What stands here
//! is the order between two versions of a block and what makes one durable: the words of
//! `docs/spec/io-semantics.md`, without the lists that [`Media`](super::Media) keeps.

use std::fmt;

use bytes::Bytes;

use super::image::Content;

/// A moment: the number of an event of the whole run, so that moments of several disks compare.
pub type Moment = u64;

/// Number of a mutation on its disk, in order of submission, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MutationId(pub u64);

/// What a mutation does to its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Puts these bytes there; whole blocks.
    Write(Bytes),
    /// Zeroes that many blocks, and may deallocate them.
    WriteZeroes {
        /// Blocks.
        count: u64,
        /// The blocks are not allocated afterwards.
        may_unmap: bool,
    },
    /// Gives that many blocks up.
    Discard {
        /// Blocks.
        count: u64,
    },
}

/// The kinds of [`Change`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// [`Change::Write`].
    Write,
    /// [`Change::WriteZeroes`].
    WriteZeroes,
    /// [`Change::Discard`].
    Discard,
}

impl ChangeKind {
    /// The letter by which crash specifications and timelines call it: `w`, `z`, `d`.
    pub const fn letter(self) -> char {
        match self {
            Self::Write => 'w',
            Self::WriteZeroes => 'z',
            Self::Discard => 'd',
        }
    }
}

/// How and when a mutation was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// When.
    pub at: Moment,
    /// Whether with success.
    pub is_ok: bool,
}

/// Whether a unit is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cover {
    /// A flush will cover it.
    Open,
    /// Guaranteed.
    Covered,
    /// A flush failed that should have covered it: no later one does.
    Doomed,
    /// Nothing depends on it any more: it is in the base, or no crash can show it.
    Gone,
}

/// One block of a mutation.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) content: Content,
    pub(super) cover: Cover,
    /// It took effect for readers when the mutation ended.
    pub(super) is_shown: bool,
    /// False for a discard that may still be undone: "old content or zeroes".
    pub(super) is_decided: bool,
    /// When the latest read was submitted that returned it.
    pub(super) seen: Moment,
}

impl Unit {
    pub(super) fn is_gone(&self) -> bool {
        self.cover == Cover::Gone
    }

    /// Whether a crash keeps it, or something that is not before it.
    pub(super) fn is_durable(&self) -> bool {
        self.cover == Cover::Covered && self.is_decided && self.is_shown
    }
}

/// A mutation in flight, or acknowledged and not yet durable.
#[derive(Clone, Debug)]
pub struct Mutation {
    pub(super) id: MutationId,
    pub(super) kind: ChangeKind,
    pub(super) block: u64,
    pub(super) is_fua: bool,
    pub(super) submit: Moment,
    pub(super) end: Option<End>,
    /// Position in the order in which mutations ended; in flight: after all of them.
    pub(super) rank: u64,
    pub(super) units: Vec<Unit>,
}

/// Rank of the first mutation in flight.
const RANK_IN_FLIGHT: u64 = 1 << 63;

impl Mutation {
    pub(super) fn new(
        id: MutationId,
        block: u64,
        change: Change,
        is_fua: bool,
        submit: Moment,
        block_bytes: usize,
    ) -> Self {
        let (kind, contents) = match change {
            Change::Write(data) => {
                let contents = (0..data.len() / block_bytes)
                    .map(|at| Content::of(data.slice(at * block_bytes..(at + 1) * block_bytes)));
                (ChangeKind::Write, contents.collect())
            }
            Change::WriteZeroes { count, may_unmap } => {
                let content = if may_unmap {
                    Content::Hole
                } else {
                    Content::Zero
                };
                (ChangeKind::WriteZeroes, repeat(&content, count))
            }
            Change::Discard { count } => (ChangeKind::Discard, repeat(&Content::Hole, count)),
        };
        let unit = |content| Unit {
            content,
            cover: Cover::Open,
            is_shown: false,
            is_decided: kind != ChangeKind::Discard,
            seen: 0,
        };
        Self {
            id,
            kind,
            block,
            is_fua,
            submit,
            end: None,
            rank: RANK_IN_FLIGHT + id.0,
            units: contents.into_iter().map(unit).collect(),
        }
    }

    /// Its number.
    pub fn id(&self) -> MutationId {
        self.id
    }

    /// What it does.
    pub fn kind(&self) -> ChangeKind {
        self.kind
    }

    /// Its first block.
    pub fn block(&self) -> u64 {
        self.block
    }

    /// Its number of blocks.
    pub fn count(&self) -> u64 {
        self.units.len() as u64
    }

    /// Whether it is durable at its acknowledgement.
    pub fn is_fua(&self) -> bool {
        self.is_fua
    }

    /// When it was submitted.
    pub fn submitted(&self) -> Moment {
        self.submit
    }

    /// How it ended; `None` in flight.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    pub(super) fn unit_at(&self, block: u64) -> Option<usize> {
        let at = usize::try_from(block.checked_sub(self.block)?).ok()?;
        (at < self.units.len() && !self.units[at].is_gone()).then_some(at)
    }

    /// Whether `later`'s unit at `at` is of a version that comes after this one's `unit`.
    ///
    /// Either it was submitted after this one had ended, or a read that returned it was submitted
    /// after this one's success. A discard that may still be undone is not ordered by reads.
    pub(super) fn is_before(&self, unit: &Unit, later: &Self, at: usize) -> bool {
        self.end.is_some_and(|end| {
            end.at < later.submit || (end.is_ok && unit.is_decided && end.at < later.units[at].seen)
        })
    }
}

/// The name that crash specifications use: `w3`.
impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.kind.letter(), self.id.0)
    }
}

fn repeat(content: &Content, count: u64) -> Vec<Content> {
    let count = usize::try_from(count).expect("a mutation's blocks fit in memory");
    vec![content.clone(); count]
}
