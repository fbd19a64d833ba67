//! A table of units: open addressing in shards, each of which grows by a little at a time, so that
//! it is always nearly full and there is never much of it twice. Pure.
//!
//! A slot is 12 bytes. Between 80 and 85 of 100 are in use, once there are many: a unit costs at most 16
//! bytes, also while a shard grows.

/// One unit and the two words that belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) unit: u32,
    pub(crate) at: u32,
    pub(crate) word: u32,
}

/// The unit that no table can hold: it marks an empty slot.
pub(crate) const EMPTY: u32 = u32::MAX;
const NOTHING: Slot = Slot {
    unit: EMPTY,
    at: 0,
    word: 0,
};

/// One of them is there twice while it grows.
const SHARDS: usize = 32;
const SLOTS_MIN: usize = 8;
/// At most 17 of 20 slots of a shard are used: more would make the runs long.
const LOAD_MAX: (usize, usize) = (17, 20);
/// A shard grows by one of so many slots.
const GROWTH: usize = 16;

#[derive(Clone, Debug, Default)]
struct Shard {
    slots: Vec<Slot>,
    used: usize,
}

/// Units, each with a slot.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    shards: Vec<Shard>,
    used: u64,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self {
            shards: Vec::new(),
            used: 0,
        }
    }

    /// Units in it.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    pub(crate) fn get(&self, unit: u32) -> Option<Slot> {
        let hash = hash(unit);
        let shard = self.shards.get(shard_of(hash))?;
        let slot = *shard.slots.get(shard.place(unit, hash)?)?;
        (slot.unit == unit).then_some(slot)
    }

    /// Puts a unit's slot, in place of what was there.
    pub(crate) fn insert(&mut self, slot: Slot) {
        assert_ne!(slot.unit, EMPTY, "the shape limits the disk");
        if self.shards.is_empty() {
            self.shards.resize_with(SHARDS, Shard::default);
        }
        let hash = hash(slot.unit);
        let shard = &mut self.shards[shard_of(hash)];
        if (shard.used + 1) * LOAD_MAX.1 > shard.slots.len() * LOAD_MAX.0 {
            shard.grow();
        }
        let place = shard.place(slot.unit, hash).expect("it has grown");
        if shard.slots[place].unit == EMPTY {
            shard.used += 1;
            self.used += 1;
        }
        shard.slots[place] = slot;
    }

    /// Takes a unit out.
    pub(crate) fn remove(&mut self, unit: u32) -> Option<Slot> {
        let hash = hash(unit);
        let shard = self.shards.get_mut(shard_of(hash))?;
        let removed = shard.remove(unit, hash)?;
        self.used -= 1;
        Some(removed)
    }

    /// Every slot, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        let slots = self.shards.iter().flat_map(|shard| &shard.slots);
        slots.filter(|slot| slot.unit != EMPTY)
    }
}

impl Shard {
    /// The slot of a unit, or the empty one where it would be; `None`: there are no slots.
    fn place(&self, unit: u32, hash: u64) -> Option<usize> {
        let len = self.slots.len();
        if len == 0 {
            return None;
        }
        let mut place = home(hash, len);
        while self.slots[place].unit != EMPTY && self.slots[place].unit != unit {
            place += 1;
            if place == len {
                place = 0;
            }
        }
        Some(place)
    }

    fn grow(&mut self) {
        let len = (self.slots.len() + self.slots.len() / GROWTH + 1).max(SLOTS_MIN);
        let mut slots = Vec::new();
        // Exactly: what a vector adds on its own is what this table saves.
        slots.reserve_exact(len);
        slots.resize(len, NOTHING);
        let old = std::mem::replace(&mut self.slots, slots);
        for slot in old.into_iter().filter(|slot| slot.unit != EMPTY) {
            let place = self.place(slot.unit, hash(slot.unit));
            self.slots[place.expect("it has slots")] = slot;
        }
    }

    /// Takes a unit out, and closes the gap in the run of slots that it was in.
    fn remove(&mut self, unit: u32, hash_of_unit: u64) -> Option<Slot> {
        let len = self.slots.len();
        let mut hole = self.place(unit, hash_of_unit)?;
        let removed = self.slots[hole];
        if removed.unit == EMPTY {
            return None;
        }
        let distance = |from: usize, to: usize| {
            if to >= from {
                to - from
            } else {
                to + len - from
            }
        };
        let mut next = hole;
        loop {
            next = (next + 1) % len;
            let slot = self.slots[next];
            if slot.unit == EMPTY {
                break;
            }
            // It may move back to the hole unless it belongs between hole and itself.
            let home = home(hash(slot.unit), len);
            if distance(home, next) >= distance(hole, next) {
                self.slots[hole] = slot;
                hole = next;
            }
        }
        self.slots[hole] = NOTHING;
        self.used -= 1;
        Some(removed)
    }
}

/// Fibonacci hashing: neighbours spread, and the high bits are the good ones.
pub(crate) fn hash(unit: u32) -> u64 {
    u64::from(unit).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn shard_of(hash: u64) -> usize {
    narrow(hash >> 32) % SHARDS
}

/// The first place to look at, of `len`: the hash as a fraction.
pub(crate) fn home(hash: u64, len: usize) -> usize {
    narrow(((hash >> 32) * len as u64) >> 32)
}

fn narrow(bits: u64) -> usize {
    usize::try_from(bits).expect("32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slot(unit: u32) -> Slot {
        Slot {
            unit,
            at: unit + 1,
            word: unit ^ 7,
        }
    }

    proptest! {
        #[test]
        fn table_keeps_every_unit_through_growth_and_removal(
            units in prop::collection::btree_set(0u32..100_000, 0..900),
        ) {
            let mut table = Table::new();
            for unit in &units {
                table.insert(slot(*unit));
                table.insert(slot(*unit));
            }
            prop_assert_eq!(table.used(), units.len() as u64);
            for unit in units.iter().filter(|unit| *unit % 2 == 0) {
                prop_assert_eq!(table.remove(*unit), Some(slot(*unit)));
                prop_assert_eq!(table.remove(*unit), None);
            }
            let odd: Vec<u32> = units.iter().copied().filter(|unit| unit % 2 == 1).collect();
            for unit in &units {
                prop_assert_eq!(table.get(*unit), (unit % 2 == 1).then(|| slot(*unit)));
            }
            let mut all: Vec<u32> = table.iter().map(|slot| slot.unit).collect();
            all.sort_unstable();
            prop_assert_eq!(all, odd);
        }
    }

    #[test]
    fn unit_takes_at_most_sixteen_bytes_at_any_time() {
        assert_eq!(size_of::<Slot>(), 12);
        let mut table = Table::new();
        for unit in 0..400_000 {
            table.insert(slot(unit * 3));
            if unit > 20_000 && unit % 1000 == 0 {
                let slots: usize = table.shards.iter().map(|one| one.slots.capacity()).sum();
                let largest = table.shards.iter().map(|one| one.slots.capacity()).max();
                let bytes = 12 * (slots + largest.expect("shards"));
                assert!(bytes <= 16 * (unit as usize + 1), "{unit}: {bytes}");
            }
        }
    }
}
