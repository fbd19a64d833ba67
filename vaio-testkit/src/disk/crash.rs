//! [`CrashPoint`]: what disks that lose power together may hold afterwards.
//!
//! A *unit* is one block of one pending mutation; a crash keeps a subset of the units. Where
//! several of one block are kept, the one that took effect last wins, and one in flight wins over
//! all of them; so every legal content of every block has a subset that shows it. A unit is
//! *beaten* where something durable, or what readers see, stands against it: no crash keeps it by
//! chance, but one that keeps nothing else of that block may.
//!
//! Cases are found and compared by hash before any image is made.

use super::{
    cache::Snapshot,
    image::{Content, Image, mix},
    mutation::Mutation,
    spec::{CrashSpec, Piece, Survivors},
};

/// Images that [`Tier::Exhaustive`] makes at most; where there would be more it makes none.
pub const EXHAUSTIVE_MAX: u64 = 1 << 14;
/// Mutations up to which [`Tier::Pairs`] makes images.
pub const PAIRS_MAX: usize = 64;

/// A family of crash images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// Nothing survives that need not.
    None,
    /// Everything survives, and what was in flight landed.
    All,
    /// What was acknowledged survives, and nothing that was in flight.
    Acked,
    /// All but one mutation.
    DropOne,
    /// One mutation only.
    KeepOne,
    /// The first few mutations in order of submission, over all disks.
    Prefix,
    /// One mutation of several blocks, cut at each boundary, head or tail kept, and all else kept
    /// or dropped.
    Torn,
    /// All but two mutations, and two only.
    Pairs,
    /// Every legal image, if they are at most [`EXHAUSTIVE_MAX`].
    Exhaustive,
    /// That many by chance.
    Random(u32),
}

impl Tier {
    /// What finds bugs at a low price: everything that is linear in the pending mutations.
    pub const USUAL: [Self; 7] = [
        Self::None,
        Self::All,
        Self::Acked,
        Self::DropOne,
        Self::KeepOne,
        Self::Prefix,
        Self::Torn,
    ];
}

/// One way a crash may end. Belongs to the point that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashCase {
    keep: Keep,
    /// Hash of the content of all disks together.
    pub hash: u64,
}

/// A set of units.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Keep(Vec<u64>);

impl Keep {
    fn none(units: usize) -> Self {
        Self(vec![0; units.div_ceil(64)])
    }

    fn has(&self, unit: usize) -> bool {
        self.0[unit / 64] >> (unit % 64) & 1 == 1
    }

    fn put(&mut self, unit: usize, is_kept: bool) {
        let bit = 1 << (unit % 64);
        if is_kept {
            self.0[unit / 64] |= bit;
        } else {
            self.0[unit / 64] &= !bit;
        }
    }

    fn set_to(&mut self, other: &Self) {
        self.0.copy_from_slice(&other.0);
    }
}

/// One block of a pending mutation.
#[derive(Clone, Debug)]
struct Unit {
    /// Position within its mutation.
    offset: u64,
    is_beaten: bool,
    is_acked: bool,
}

/// A pending mutation, with its units that a crash decides.
#[derive(Clone, Debug)]
struct Group {
    disk: usize,
    letter: char,
    number: u64,
    count: u64,
    first: usize,
    end: usize,
}

/// One block that may turn out in several ways.
#[derive(Clone, Debug)]
struct Slot {
    disk: usize,
    block: u64,
    /// Best first: kept, it hides the ones after it.
    choices: Vec<Choice>,
}

#[derive(Clone, Debug)]
struct Choice {
    unit: usize,
    /// What it adds to the sum of contributions.
    delta: u64,
    content: Content,
}

/// Disks at the moment at which they lose power together.
#[derive(Clone, Debug)]
pub struct CrashPoint {
    disks: Vec<(String, Image)>,
    units: Vec<Unit>,
    /// In order of submission over all disks.
    groups: Vec<Group>,
    slots: Vec<Slot>,
    all: Keep,
}

impl CrashPoint {
    /// The disks by name, each as it is now.
    pub fn new<'a>(disks: impl IntoIterator<Item = (&'a str, &'a Snapshot)>) -> Self {
        let disks: Vec<_> = disks.into_iter().collect();
        let mut order: Vec<(usize, &Mutation)> = Vec::new();
        for (disk, (_, snapshot)) in disks.iter().enumerate() {
            order.extend(snapshot.pending().map(|mutation| (disk, mutation)));
        }
        // Stable: one disk's mutations stay in their order.
        order.sort_by_key(|(_, mutation)| mutation.submit);
        let mut point = Self {
            disks: disks
                .iter()
                .map(|(name, s)| ((*name).to_owned(), s.base.clone()))
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

    /// The cases of these tiers, in their order, without those whose hash `is_new` turns away.
    ///
    /// `is_new` is asked once per generated case: it is where equal images are recognised.
    /// `choose(n)` gives a number below `n`, 0 for the most benign; only [`Tier::Random`] asks.
    pub fn cases(
        &self,
        tiers: &[Tier],
        choose: &mut dyn FnMut(u32) -> u32,
        is_new: &mut dyn FnMut(u64) -> bool,
    ) -> Vec<CrashCase> {
        let mut found = Vec::new();
        let mut sums = vec![0; self.disks.len()];
        let mut take = |keep: &Keep| {
            let hash = self.hash(keep, &mut sums);
            if is_new(hash) {
                found.push(CrashCase {
                    keep: keep.clone(),
                    hash,
                });
            }
        };
        for tier in tiers {
            match tier {
                Tier::None => take(&Keep::none(self.units.len())),
                Tier::All => take(&self.all),
                Tier::Acked => take(&self.acked()),
                Tier::DropOne => self.one(&self.all, false, &mut take),
                Tier::KeepOne => self.one(&Keep::none(self.units.len()), true, &mut take),
                Tier::Prefix => self.prefixes(&mut take),
                Tier::Torn => self.torn(&mut take),
                Tier::Pairs => self.pairs(&mut take),
                Tier::Exhaustive => self.exhaustive(&mut take),
                Tier::Random(count) => (0..*count).for_each(|_| take(&self.random(choose))),
            }
        }
        found
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
        let named = |(disk, (name, _)): (usize, &(String, Image))| {
            let kept = self.pieces(disk, |unit| case.keep.has(unit));
            let dropped = self.pieces(disk, |unit| !case.keep.has(unit) && self.all.has(unit));
            let has_beaten = (self.groups.iter().filter(|group| group.disk == disk))
                .any(|g| (g.first..g.end).any(|u| case.keep.has(u) && self.units[u].is_beaten));
            let survivors = if !has_beaten && (dropped.len() < kept.len() || dropped.is_empty()) {
                Survivors::Drop(dropped)
            } else {
                Survivors::Keep(kept)
            };
            (name.clone(), survivors)
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

    fn hash(&self, keep: &Keep, sums: &mut [u64]) -> u64 {
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

    fn acked(&self) -> Keep {
        let mut keep = self.all.clone();
        for (number, unit) in self.units.iter().enumerate() {
            keep.put(number, self.all.has(number) && unit.is_acked);
        }
        keep
    }

    /// Keeps or drops the units of a group; kept, also those that are beaten.
    fn put(keep: &mut Keep, group: &Group, is_kept: bool) {
        for unit in group.first..group.end {
            keep.put(unit, is_kept);
        }
    }

    fn one(&self, rest: &Keep, is_kept: bool, take: &mut impl FnMut(&Keep)) {
        let mut keep = rest.clone();
        for group in &self.groups {
            Self::put(&mut keep, group, is_kept);
            take(&keep);
            keep.set_to(rest);
        }
    }

    fn prefixes(&self, take: &mut impl FnMut(&Keep)) {
        let mut keep = Keep::none(self.units.len());
        for group in &self.groups {
            for unit in group.first..group.end {
                keep.put(unit, self.all.has(unit));
            }
            take(&keep);
        }
    }

    fn torn(&self, take: &mut impl FnMut(&Keep)) {
        let none = Keep::none(self.units.len());
        let mut keep = none.clone();
        for group in &self.groups {
            for cut in group.first + 1..group.end {
                for rest in [&self.all, &none] {
                    for is_head in [true, false] {
                        keep.set_to(rest);
                        for unit in group.first..group.end {
                            keep.put(unit, (unit < cut) == is_head);
                        }
                        take(&keep);
                    }
                }
            }
        }
    }

    fn pairs(&self, take: &mut impl FnMut(&Keep)) {
        if self.groups.len() > PAIRS_MAX {
            return;
        }
        let none = Keep::none(self.units.len());
        for (number, one) in self.groups.iter().enumerate() {
            for other in &self.groups[number + 1..] {
                for (rest, is_kept) in [(&self.all, false), (&none, true)] {
                    let mut keep = rest.clone();
                    Self::put(&mut keep, one, is_kept);
                    Self::put(&mut keep, other, is_kept);
                    take(&keep);
                }
            }
        }
    }

    /// Counts through the outcomes of each block rather than the subsets: subsets that show the
    /// same are made once.
    fn exhaustive(&self, take: &mut impl FnMut(&Keep)) {
        let outcomes = self.slots.iter().map(|slot| slot.choices.len() as u64 + 1);
        let images = outcomes.fold(1, u64::saturating_mul);
        if images > EXHAUSTIVE_MAX {
            return;
        }
        let mut keep = Keep::none(self.units.len());
        let mut digits = vec![0usize; self.slots.len()];
        loop {
            take(&keep);
            let mut at = 0;
            loop {
                let Some(slot) = self.slots.get(at) else {
                    return;
                };
                if let Some(choice) = digits[at].checked_sub(1) {
                    let choice: &Choice = &slot.choices[choice];
                    keep.put(choice.unit, false);
                }
                if let Some(choice) = slot.choices.get(digits[at]) {
                    keep.put(choice.unit, true);
                    digits[at] += 1;
                    break;
                }
                digits[at] = 0;
                at += 1;
            }
        }
    }

    /// By chance: whole mutations, single blocks, or a prefix with holes.
    fn random(&self, choose: &mut dyn FnMut(u32) -> u32) -> Keep {
        let mut keep = self.all.clone();
        let style = choose(3);
        let end = if style == 2 {
            let groups = u32::try_from(self.groups.len()).unwrap_or(u32::MAX - 1);
            groups - choose(groups + 1)
        } else {
            u32::MAX
        };
        for (number, group) in (0..).zip(&self.groups) {
            let is_dropped = style != 1 && (number >= end || choose(2) == 1);
            for unit in group.first..group.end {
                let is_dropped = if style == 1 {
                    choose(2) == 1
                } else {
                    is_dropped
                };
                let is_kept = if self.units[unit].is_beaten {
                    !is_dropped && choose(4) == 3
                } else {
                    !is_dropped
                };
                keep.put(unit, is_kept);
            }
        }
        keep
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
