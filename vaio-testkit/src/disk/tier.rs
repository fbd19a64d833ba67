//! [`Tier`]: which of the legal images of a [`CrashPoint`] are looked at.
//!
//! A few images per pending mutation find what all subsets find; what is linear is therefore
//! always done, and more only where it is cheap or asked for. Every tier is a part of
//! [`Tier::Exhaustive`].

use super::crash::{Choice, CrashCase, CrashPoint, Group, Keep};

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

impl CrashPoint {
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

    fn acked(&self) -> Keep {
        let mut keep = self.all.clone();
        for (number, unit) in self.units.iter().enumerate() {
            keep.put(number, self.all.has(number) && unit.is_acked);
        }
        keep
    }

    fn one(&self, rest: &Keep, is_kept: bool, take: &mut impl FnMut(&Keep)) {
        let mut keep = rest.clone();
        for group in &self.groups {
            put(&mut keep, group, is_kept);
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
                    put(&mut keep, one, is_kept);
                    put(&mut keep, other, is_kept);
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

/// Keeps or drops the units of a group; kept, also those that are beaten.
fn put(keep: &mut Keep, group: &Group, is_kept: bool) {
    for unit in group.first..group.end {
        keep.put(unit, is_kept);
    }
}
