//! From a unit to its place on the shelf: four bytes a slot, because the place itself says which
//! unit it holds. Made once, for as many units as there are places. Pure.

use crate::table::{hash, home};

/// Which unit a place holds; what the index asks to compare.
pub(crate) trait Owner {
    fn unit_at(&self, place: u32) -> u32;
}

/// An open-addressed table of places.
#[derive(Debug)]
pub(crate) struct Index {
    /// Place and one; 0: empty. Memory that was never used is never touched.
    slots: Vec<u32>,
}

impl Index {
    /// For at most `units` units: five slots for four of them.
    pub(crate) fn new(units: usize) -> Self {
        Self {
            slots: vec![0; units + units / 4 + 1],
        }
    }

    /// The place of a unit.
    pub(crate) fn get(&self, unit: u32, owner: &impl Owner) -> Option<u32> {
        self.slots[self.slot(unit, owner)].checked_sub(1)
    }

    /// Puts a unit's place, in place of what was there.
    pub(crate) fn insert(&mut self, unit: u32, place: u32, owner: &impl Owner) {
        let slot = self.slot(unit, owner);
        self.slots[slot] = place + 1;
    }

    /// Takes a unit out, and closes the gap in the run of slots that it was in.
    pub(crate) fn remove(&mut self, unit: u32, owner: &impl Owner) -> Option<u32> {
        let len = self.slots.len();
        let mut hole = self.slot(unit, owner);
        let removed = self.slots[hole].checked_sub(1)?;
        let distance = |from: usize, to: usize| (to + len - from) % len;
        let mut next = hole;
        loop {
            next = (next + 1) % len;
            let Some(place) = self.slots[next].checked_sub(1) else {
                break;
            };
            let home = home(hash(owner.unit_at(place)), len);
            if distance(home, next) >= distance(hole, next) {
                self.slots[hole] = self.slots[next];
                hole = next;
            }
        }
        self.slots[hole] = 0;
        Some(removed)
    }

    /// The slot of a unit, or the empty one where it would be: there is always one.
    fn slot(&self, unit: u32, owner: &impl Owner) -> usize {
        let len = self.slots.len();
        let mut slot = home(hash(unit), len);
        while let Some(place) = self.slots[slot].checked_sub(1) {
            if owner.unit_at(place) == unit {
                break;
            }
            slot = (slot + 1) % len;
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    impl Owner for Vec<u32> {
        fn unit_at(&self, place: u32) -> u32 {
            self[place as usize]
        }
    }

    proptest! {
        #[test]
        fn index_equals_a_map(steps in prop::collection::vec((0u32..40, any::<bool>()), 0..200)) {
            // Place n holds unit n % 40: two places for each unit.
            let owner: Vec<u32> = (0..80).map(|place| place % 40).collect();
            let mut index = Index::new(40);
            let mut model = BTreeMap::new();
            for (turn, (unit, is_insert)) in steps.into_iter().enumerate() {
                if is_insert {
                    let place = if turn % 2 == 0 { unit } else { unit + 40 };
                    index.insert(unit, place, &owner);
                    model.insert(unit, place);
                } else {
                    prop_assert_eq!(index.remove(unit, &owner), model.remove(&unit));
                }
                for unit in 0..40 {
                    prop_assert_eq!(index.get(unit, &owner), model.get(&unit).copied());
                }
            }
        }
    }
}
