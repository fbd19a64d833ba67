//! The shelf: which unit is at which place, which regions are full, and who may fill. Pure.
//!
//! ```text
//!  small: [region][region]..[open]    main: [region]........[open]    free: [region]..
//! ```
//! * B1: a place is found only after its content was written, and never after a change began where
//!   it belongs.
//! * B2: a region is used again only when none of its places is found and no reader holds a pin.
//! * B3: a permission is void as soon as a change begins where it fills, and none is given where a
//!   change is on its way.

use std::collections::VecDeque;

use super::{
    index::{Index, Owner},
    policy::{Policy, Queue},
};
use crate::geometry::{At, Geometry, Span, index};

/// Reads that may fill at the same time.
const TOKENS_MAX: usize = 64;
/// Of the units of a region that goes, three of four are kept at most: what goes makes room.
const KEPT_SHARE: (usize, usize) = (3, 4);
/// Regions that are left for the survivors of one that goes.
const SPARE_REGIONS: usize = 1;
/// Nearly full: fewer than one of so many regions is free.
const FREE_SHARE: usize = 5;

/// A unit on the shelf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) at: At,
    pub(crate) crc: u32,
    pub(crate) region: u32,
}

/// A permission to fill what is read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token(u64);

/// A write on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChangeId(u64);

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Number of the unit and one; 0: nothing was ever here.
    unit: u32,
    crc: u32,
}

#[derive(Debug)]
struct Places(Vec<Place>);

impl Owner for Places {
    fn unit_at(&self, place: u32) -> u32 {
        self.0[place as usize].unit.wrapping_sub(1)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Region {
    pins: u32,
    /// Places that are taken.
    used: u32,
    /// It goes: free when the last pin is gone.
    is_leaving: bool,
}

/// Neighbouring places to write to; their region is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) region: u32,
    pub(crate) place: u32,
    pub(crate) count: u32,
}

/// A region that goes, and which of its units are to be written once more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Leaving {
    pub(crate) region: u32,
    /// Unit, place and sum, in the order of places.
    pub(crate) kept: Vec<(u32, u32, u32)>,
}

#[derive(Debug)]
pub(crate) struct Shelf {
    geometry: Geometry,
    policy: Box<dyn Policy>,
    places: Places,
    index: Index,
    /// One bit a place: it was read since it was written.
    hits: Vec<u64>,
    units: u64,
    regions: Vec<Region>,
    free: Vec<u32>,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    open: [Option<u32>; 2],
    tokens: Vec<(u64, Span)>,
    changes: Vec<(u64, Span)>,
    next_id: u64,
}

impl Shelf {
    pub(crate) fn new(geometry: Geometry, policy: Box<dyn Policy>) -> Self {
        let units = index(geometry.store_units());
        let regions = geometry.regions as usize;
        Self {
            geometry,
            policy,
            places: Places(vec![Place::default(); units]),
            index: Index::new(units),
            hits: vec![0; units.div_ceil(64)],
            units: 0,
            regions: vec![Region::default(); regions],
            free: (0..geometry.regions).rev().collect(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            open: [None; 2],
            tokens: Vec::new(),
            changes: Vec::new(),
            next_id: 0,
        }
    }

    /// Units that can be found.
    pub(crate) fn units(&self) -> u64 {
        self.units
    }

    /// Where a unit is; it counts as read.
    pub(crate) fn find(&mut self, unit: u32) -> Option<Hit> {
        let place = self.index.get(unit, &self.places)?;
        self.hits[place as usize / 64] |= 1 << (place % 64);
        Some(Hit {
            at: self.at(place),
            crc: self.places.0[place as usize].crc,
            region: place / self.geometry.region_units(),
        })
    }

    /// Where a place is on the device.
    pub(crate) fn at(&self, place: u32) -> At {
        let units = self.geometry.region_units();
        let region = self.geometry.region_at(place / units);
        region.plus(u64::from(place % units) * u64::from(self.geometry.unit))
    }

    pub(crate) fn pin(&mut self, region: u32) {
        self.regions[region as usize].pins += 1;
    }

    pub(crate) fn unpin(&mut self, region: u32) {
        let one = &mut self.regions[region as usize];
        assert!(one.pins > 0, "unpinned as often as pinned");
        one.pins -= 1;
        if one.pins == 0 && one.is_leaving {
            *one = Region::default();
            self.free.push(region);
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Permission to fill a stretch (B3).
    pub(crate) fn permit(&mut self, span: Span) -> Option<Token> {
        let is_changing = self.changes.iter().any(|(_, one)| overlap(*one, span));
        if is_changing || self.tokens.len() >= TOKENS_MAX {
            return None;
        }
        let id = self.id();
        self.tokens.push((id, span));
        Some(Token(id))
    }

    /// Ends a permission; whether it was still good.
    pub(crate) fn give_back(&mut self, token: Token) -> bool {
        let place = self.tokens.iter().position(|(id, _)| *id == token.0);
        place.map(|place| self.tokens.swap_remove(place)).is_some()
    }

    /// A write begins: what is there goes, permissions are void (B1, B3). Gives the units that were
    /// there.
    pub(crate) fn begin_change(&mut self, span: Span) -> (ChangeId, Vec<u32>) {
        let id = self.id();
        self.changes.push((id, span));
        self.tokens.retain(|(_, one)| !overlap(*one, span));
        (ChangeId(id), self.drop_units(span))
    }

    /// A write has ended. With a stretch, permission to fill it with what was written.
    pub(crate) fn end_change(&mut self, id: ChangeId, fill: Option<Span>) -> Option<Token> {
        let place = self.changes.iter().position(|(one, _)| *one == id.0);
        self.changes
            .swap_remove(place.expect("a change that ends has begun"));
        self.permit(fill?)
    }

    /// Takes the units that a stretch touches off the shelf; gives those that were there.
    pub(crate) fn drop_units(&mut self, span: Span) -> Vec<u32> {
        if self.units == 0 || span.count == 0 {
            return Vec::new();
        }
        let unit = u64::from(self.geometry.unit);
        let units = span.start / unit..=(span.end() - 1) / unit;
        let units = units.filter_map(|unit| u32::try_from(unit).ok());
        units
            .filter(|unit| self.drop_unit(*unit).is_some())
            .collect()
    }

    fn drop_unit(&mut self, unit: u32) -> Option<u32> {
        let place = self.index.remove(unit, &self.places)?;
        self.units -= 1;
        Some(place)
    }

    /// Where a unit that was missed is to go.
    pub(crate) fn admit(&mut self, unit: u32) -> Option<Queue> {
        let is_nearly_full = self.free.len() * FREE_SHARE < self.regions.len();
        self.policy.admit(unit, is_nearly_full)
    }

    /// Whether something has to go before more is written.
    pub(crate) fn is_full(&self) -> bool {
        self.free.len() <= SPARE_REGIONS
    }

    /// Places for up to `count` units, neighbours; the region is pinned. `None`: there is no room.
    pub(crate) fn take(&mut self, queue: Queue, count: usize) -> Option<Room> {
        let units = self.geometry.region_units();
        let open = &mut self.open[queue as usize];
        let region = match *open {
            Some(region) => region,
            None => *open.insert(self.free.pop()?),
        };
        let one = &mut self.regions[region as usize];
        let place = region * units + one.used;
        let count = u32::try_from(count).unwrap_or(units).min(units - one.used);
        one.used += count;
        if one.used == units {
            self.open[queue as usize] = None;
            match queue {
                Queue::Small => self.small.push_back(region),
                Queue::Main => self.main.push_back(region),
            }
        }
        self.pin(region);
        Some(Room {
            region,
            place,
            count,
        })
    }

    /// Content was written to places: found from now on, if the permission is still good (B1).
    pub(crate) fn publish(&mut self, token: Token, written: &[(u32, u32, u32)]) {
        if !self.give_back(token) {
            return;
        }
        for (unit, place, crc) in written {
            self.put(*unit, *place, *crc);
        }
    }

    /// A survivor was written again; found there, unless it was dropped meanwhile (B1).
    pub(crate) fn moved(&mut self, from: u32, to: (u32, u32, u32)) {
        let (unit, place, crc) = to;
        if self.index.get(unit, &self.places) == Some(from) {
            self.put(unit, place, crc);
        }
    }

    fn put(&mut self, unit: u32, place: u32, crc: u32) {
        if self.drop_unit(unit).is_some() {
            debug_assert!(self.index.get(unit, &self.places).is_none(), "found once");
        }
        self.places.0[place as usize] = Place {
            unit: unit + 1,
            crc,
        };
        self.hits[place as usize / 64] &= !(1 << (place % 64));
        self.index.insert(unit, place, &self.places);
        self.units += 1;
    }

    /// Takes the oldest region of the queue that has to give; `None`: there is none.
    pub(crate) fn leave(&mut self) -> Option<Leaving> {
        let queue = self.policy.victim(self.small.len(), self.main.len());
        let region = match queue {
            Queue::Small => self.small.pop_front(),
            Queue::Main => self.main.pop_front(),
        }?;
        let units = self.geometry.region_units();
        let kept_max = units as usize * KEPT_SHARE.0 / KEPT_SHARE.1;
        let mut kept = Vec::new();
        for place in region * units..(region + 1) * units {
            let Place { unit, crc } = self.places.0[place as usize];
            let Some(unit) = unit.checked_sub(1) else {
                continue;
            };
            if self.index.get(unit, &self.places) != Some(place) {
                continue;
            }
            let is_hit = self.hits[place as usize / 64] & (1 << (place % 64)) != 0;
            if self.policy.is_kept(unit, queue, is_hit) && kept.len() < kept_max {
                kept.push((unit, place, crc));
            } else {
                self.drop_unit(unit);
            }
        }
        Some(Leaving { region, kept })
    }

    /// A region that went is free when no reader is there any more (B2).
    pub(crate) fn left(&mut self, leaving: &Leaving) {
        for (unit, place, _) in &leaving.kept {
            if self.index.get(*unit, &self.places) == Some(*place) {
                // It could not be written again.
                self.drop_unit(*unit);
            }
        }
        self.regions[leaving.region as usize].is_leaving = true;
        self.pin(leaving.region);
        self.unpin(leaving.region);
    }
}

fn overlap(one: Span, other: Span) -> bool {
    one.start < other.end() && other.start < one.end()
}

#[cfg(test)]
mod tests;
