//! [`CrashPoint`]: what disks that lose power together may hold afterwards.
//!
//! A *unit* is one block of one pending mutation; a crash keeps a subset of the units. Where
//! several of one block are kept, the one that took effect last wins, and one in flight wins over
//! all of them; so every legal content of every block has a subset that shows it. A unit is
//! *beaten* where something durable, or what readers see, stands against it: no crash keeps it by
//! chance, but one that keeps nothing else of that block may.
//!
//! Cases are found and compared by hash before any image is made; which ones, is in [`Tier`].

use std::sync::Arc;

use super::{
    cache::Snapshot,
    image::{Content, Image, mix},
    mutation::Mutation,
    spec::{CrashSpec, Piece, Survivors},
    tier::Tier,
};

/// One way a crash may end. Belongs to the point that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashCase {
    pub(super) keep: Keep,
    /// Hash of the content of all disks together.
    pub hash: u64,
}

/// A set of units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keep(Vec<u64>);

impl Keep {
    pub(super) fn none(units: usize) -> Self {
        Self(vec![0; units.div_ceil(64)])
    }

    pub(super) fn has(&self, unit: usize) -> bool {
        self.0[unit / 64] >> (unit % 64) & 1 == 1
    }

    pub(super) fn put(&mut self, unit: usize, is_kept: bool) {
        let bit = 1 << (unit % 64);
        if is_kept {
            self.0[unit / 64] |= bit;
        } else {
            self.0[unit / 64] &= !bit;
        }
    }

    pub(super) fn set_to(&mut self, other: &Self) {
        self.0.copy_from_slice(&other.0);
    }
}

/// One block of a pending mutation.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    /// Position within its mutation.
    pub(super) offset: u64,
    pub(super) is_beaten: bool,
    pub(super) is_acked: bool,
}

/// A pending mutation, with its units that a crash decides.
#[derive(Clone, Debug)]
pub(super) struct Group {
    disk: usize,
    letter: char,
    number: u64,
    count: u64,
    pub(super) first: usize,
    pub(super) end: usize,
}

/// One block that may turn out in several ways.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    disk: usize,
    block: u64,
    /// Best first: kept, it hides the ones after it.
    pub(super) choices: Vec<Choice>,
}

#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) unit: usize,
    /// What it adds to the sum of contributions.
    delta: u64,
    content: Content,
}

/// Disks at the moment at which they lose power together.
#[derive(Clone, Debug)]
pub struct CrashPoint {
    pub(super) disks: Vec<(Arc<str>, Image)>,
    pub(super) units: Vec<Unit>,
    /// In order of submission over all disks.
    pub(super) groups: Vec<Group>,
    pub(super) slots: Vec<Slot>,
    pub(super) all: Keep,
}

impl CrashPoint {
    /// The disks by name, each as it is now.
    pub fn new<'a>(disks: impl IntoIterator<Item = (impl Into<Arc<str>>, &'a Snapshot)>) -> Self {
        let disks = disks.into_iter().map(|(name, disk)| (name.into(), disk));
        let disks: Vec<(Arc<str>, &Snapshot)> = disks.collect();
        let mut order: Vec<(usize, &Mutation)> = Vec::new();
        for (disk, (_, snapshot)) in disks.iter().enumerate() {
            order.extend(snapshot.pending().map(|mutation| (disk, mutation)));
        }
        // Stable: one disk's mutations stay in their order.
        order.sort_by_key(|(_, mutation)| mutation.submit);
        let mut point = Self {
            disks: disks
                .iter()
                .map(|(name, s)| (Arc::clone(name), s.base.clone()))
                .collect(),
            units: Vec::new(),
            groups: Vec::new(),
            slots: Vec::new(),
            all: Keep(Vec::new()),
        };
        let mut ranked = Vec::new();
        for (disk, mutation) in order {
            point.add(disk, mutation, disks[disk].1, &mut ranked);
        }
        point.make_slots(ranked);
        let mut all = Keep::none(point.units.len());
        for (number, unit) in point.units.iter().enumerate() {
            all.put(number, !unit.is_beaten);
        }
        point.all = all;
        point
    }

    fn add(
        &mut self,
        disk: usize,
        mutation: &Mutation,
        snapshot: &Snapshot,
        ranked: &mut Vec<Ranked>,
    ) {
        let first = self.units.len();
        for (offset, unit) in (0..).zip(&mutation.units) {
            let block = mutation.block + offset;
            let durable = durable_rank(snapshot, block);
            if unit.is_gone() || durable == Some(mutation.rank) {
                continue;
            }
            let is_hidden = mutation.end.is_some() && !unit.is_shown;
            let is_beaten = is_hidden || durable.is_some_and(|rank| rank > mutation.rank);
            let content = unit.content.clone();
            let (number, rank) = (self.units.len(), mutation.rank);
            ranked.push(Ranked {
                disk,
                block,
                is_beaten,
                rank,
                unit: number,
                content,
            });
            self.units.push(Unit {
                offset,
                is_beaten,
                is_acked: mutation.end.is_some(),
            });
        }
        if self.units.len() > first {
            self.groups.push(Group {
                disk,
                letter: mutation.kind.letter(),
                number: mutation.id.0,
                count: mutation.count(),
                first,
                end: self.units.len(),
            });
        }
    }

    fn make_slots(&mut self, mut ranked: Vec<Ranked>) {
        ranked.sort_by_key(|r| (r.disk, r.block, r.is_beaten, std::cmp::Reverse(r.rank)));
        for Ranked {
            disk,
            block,
            unit,
            content,
            ..
        } in ranked
        {
            let base = &self.disks[disk].1;
            let contribution = |content: &Content| base.fill().contribution(block, content);
            let delta = contribution(&content).wrapping_sub(contribution(base.get(block)));
            let choice = Choice {
                unit,
                delta,
                content,
            };
            match self.slots.last_mut() {
                Some(slot) if (slot.disk, slot.block) == (disk, block) => slot.choices.push(choice),
                _ => self.slots.push(Slot {
                    disk,
                    block,
                    choices: vec![choice],
                }),
            }
        }
    }

    /// Number of pending mutations that a crash decides on.
    pub fn mutations(&self) -> usize {
        self.groups.len()
    }

    /// Number of blocks of them.
    pub fn units(&self) -> usize {
        self.units.len()
    }

    /// The case in which everything that was pending is lost.
    #[expect(
        clippy::missing_panics_doc,
        reason = "that tier always has its one case"
    )]
    pub fn nothing_kept(&self) -> CrashCase {
        let mut cases = self.cases(&[Tier::None], &mut |_| 0, &mut |_| true);
        cases.pop().expect("one case")
    }

    /// The images of a case, one per disk, in the order in which the disks were given.
    pub fn images(&self, case: &CrashCase) -> Vec<Image> {
        let mut images: Vec<_> = self.disks.iter().map(|(_, base)| base.clone()).collect();
        for slot in &self.slots {
            if let Some(choice) = slot
                .choices
                .iter()
                .find(|choice| case.keep.has(choice.unit))
            {
                images[slot.disk].set(slot.block, choice.content.clone());
            }
        }
        images
    }

    /// The case in words. Made again by [`case`](Self::case), it is the same.
    pub fn spec(&self, case: &CrashCase) -> CrashSpec {
        let named = |(disk, (name, _)): (usize, &(Arc<str>, Image))| {
            let kept = self.pieces(disk, |unit| case.keep.has(unit));
            let dropped = self.pieces(disk, |unit| !case.keep.has(unit) && self.all.has(unit));
            let has_beaten = (self.groups.iter().filter(|group| group.disk == disk))
                .any(|g| (g.first..g.end).any(|u| case.keep.has(u) && self.units[u].is_beaten));
            let survivors = if !has_beaten && (dropped.len() < kept.len() || dropped.is_empty()) {
                Survivors::Drop(dropped)
            } else {
                Survivors::Keep(kept)
            };
            (name.to_string(), survivors)
        };
        CrashSpec {
            disks: self.disks.iter().enumerate().map(named).collect(),
        }
    }

    /// The case that a specification names at this point.
    pub fn case(&self, spec: &CrashSpec) -> CrashCase {
        let mut keep = self.all.clone();
        for group in &self.groups {
            let Some(survivors) = spec.of(&self.disks[group.disk].0) else {
                continue;
            };
            for unit in group.first..group.end {
                let offset = self.units[unit].offset;
                let has = |pieces: &[Piece]| pieces.iter().any(|p| p.names(group.number, offset));
                let is_kept = match survivors {
                    Survivors::Keep(pieces) => has(pieces),
                    Survivors::Drop(pieces) => self.all.has(unit) && !has(pieces),
                };
                keep.put(unit, is_kept);
            }
        }
        let hash = self.hash(&keep, &mut vec![0; self.disks.len()]);
        CrashCase { keep, hash }
    }

    pub(super) fn hash(&self, keep: &Keep, sums: &mut [u64]) -> u64 {
        sums.fill(0);
        for slot in &self.slots {
            if let Some(choice) = slot.choices.iter().find(|choice| keep.has(choice.unit)) {
                sums[slot.disk] = sums[slot.disk].wrapping_add(choice.delta);
            }
        }
        let disks = self.disks.iter().zip(sums.iter());
        disks.fold(0, |hash, ((_, base), sum)| mix(hash ^ base.hash_with(*sum)))
    }

    /// The units of a disk that `has` names, as pieces.
    fn pieces(&self, disk: usize, has: impl Fn(usize) -> bool) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        for group in self.groups.iter().filter(|group| group.disk == disk) {
            let of_group = pieces.len();
            for unit in (group.first..group.end).filter(|unit| has(*unit)) {
                let at = self.units[unit].offset;
                match pieces[of_group..].last_mut() {
                    Some(Piece {
                        blocks: Some((_, to)),
                        ..
                    }) if *to == at => *to += 1,
                    _ => pieces.push(Piece {
                        letter: group.letter,
                        number: group.number,
                        blocks: Some((at, at + 1)),
                    }),
                }
            }
            if let [piece] = &mut pieces[of_group..]
                && piece.blocks == Some((0, group.count))
            {
                piece.blocks = None;
            }
        }
        pieces
    }
}

/// A unit with what decides its place among those of its block.
struct Ranked {
    disk: usize,
    block: u64,
    is_beaten: bool,
    rank: u64,
    unit: usize,
    content: Content,
}

/// Rank of the durable version that the base shows, if it is still in the log.
fn durable_rank(snapshot: &Snapshot, block: u64) -> Option<u64> {
    let durable = snapshot.log.iter().filter(|mutation| {
        mutation
            .unit_at(block)
            .is_some_and(|at| mutation.units[at].is_durable())
    });
    durable.map(|mutation| mutation.rank).max()
}
