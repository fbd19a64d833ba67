//! The map: which part of the log holds the newest content of a block. Pure.
//!
//! Whole units are in an open-addressed table of 12-byte slots; parts of units are *fragments* in
//! a tree. A fragment remembers the piece that it is part of, because that is what was
//! checksummed.
//!
//! * M1: a block is named at most once: by its unit's slot or by one fragment.
//! * M2: content is put in the order of seqs; what is put last is what is found.
//! * M3: to forget a place removes what still names it and nothing newer.

use std::collections::BTreeMap;

use crate::geometry::{At, Geometry, Span};

/// Something in the log with a checksum of its own: part of a write, within one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) span: Span,
    pub(crate) source: Source,
}

/// Where a piece's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Payload at this place, with this sum.
    Data { at: At, crc: u32 },
    /// Zeroes, from the record whose header is here.
    Zeroes { record: At },
}

impl Source {
    fn at(self) -> At {
        match self {
            Self::Data { at, .. } | Self::Zeroes { record: at } => at,
        }
    }
}

/// A stretch of blocks with one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) span: Span,
    /// What holds it, and more; `None`: nothing in the log does.
    pub(crate) piece: Option<Piece>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    unit: u32,
    /// Highest bit: zeroes.
    at: u32,
    crc: u32,
}

#[derive(Clone, Copy, Debug)]
struct Fragment {
    count: u64,
    piece: Piece,
}

const EMPTY: u32 = u32::MAX;
const ZEROES: u32 = 1 << 31;
const SLOTS_MIN: usize = 64;
/// Units that a map can name.
pub(crate) const UNITS_MAX: u64 = EMPTY as u64;

#[derive(Clone, Debug)]
pub(crate) struct Map {
    geometry: Geometry,
    /// A power of two of them, at most four fifths used.
    slots: Vec<Slot>,
    used: usize,
    /// By first block; disjoint.
    fragments: BTreeMap<u64, Fragment>,
}

impl Map {
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            slots: vec![Slot::EMPTY; SLOTS_MIN],
            used: 0,
            fragments: BTreeMap::new(),
        }
    }

    /// Puts a piece; it lies within one unit (M2).
    pub(crate) fn put(&mut self, piece: Piece) {
        let unit = piece.span.start / u64::from(self.geometry.unit);
        debug_assert_eq!(unit, (piece.span.end() - 1) / u64::from(self.geometry.unit));
        if piece.span.count == u64::from(self.geometry.unit) {
            self.cut_fragments(piece.span);
            self.insert(unit, piece.source);
            return;
        }
        // M1: what the slot named becomes fragments around the new piece.
        if let Some(source) = self.remove(unit) {
            let whole = self.unit_piece(unit, source);
            self.put_fragment(whole.span, whole);
        }
        self.cut_fragments(piece.span);
        self.put_fragment(piece.span, piece);
    }

    /// What holds each block of `span`, in order.
    pub(crate) fn find(&self, span: Span) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        for part in self.geometry.pieces(span) {
            let unit = part.start / u64::from(self.geometry.unit);
            if let Some(source) = self.get(unit) {
                let piece = Some(self.unit_piece(unit, source));
                found.push(Found { span: part, piece });
                continue;
            }
            let mut at = part.start;
            for (start, fragment) in self.fragments_in(part) {
                let (from, to) = (start.max(at), (start + fragment.count).min(part.end()));
                push_gap(&mut found, at, from);
                found.push(Found {
                    span: Span::from_range(from, to),
                    piece: Some(fragment.piece),
                });
                at = to;
            }
            push_gap(&mut found, at, part.end());
        }
        found
    }

    /// Removes what names the place, if it is within the unit of `piece` (M3).
    pub(crate) fn forget(&mut self, piece: Span, place: At) {
        let unit = piece.start / u64::from(self.geometry.unit);
        if self.get(unit).is_some_and(|source| source.at() == place) {
            self.remove(unit);
            return;
        }
        let named: Vec<_> = self
            .fragments_in(piece)
            .filter(|(_, fragment)| fragment.piece.source.at() == place)
            .map(|(start, _)| start)
            .collect();
        for start in named {
            self.fragments.remove(&start);
        }
    }

    /// Everything in the map, in the order of blocks.
    pub(crate) fn all(&self) -> Vec<Found> {
        let units = self.slots.iter().filter(|slot| slot.unit != EMPTY);
        let mut all: Vec<_> = units
            .map(|slot| {
                let piece = self.unit_piece(slot.unit.into(), slot.source());
                Found {
                    span: piece.span,
                    piece: Some(piece),
                }
            })
            .collect();
        all.extend(self.fragments.iter().map(|(start, fragment)| Found {
            span: Span {
                start: *start,
                count: fragment.count,
            },
            piece: Some(fragment.piece),
        }));
        all.sort_unstable_by_key(|found| found.span.start);
        all
    }

    fn unit_piece(&self, unit: u64, source: Source) -> Piece {
        let count = u64::from(self.geometry.unit);
        let start = unit * count;
        Piece {
            span: Span { start, count },
            source,
        }
    }

    /// Fragments that overlap a span, by first block.
    fn fragments_in(&self, span: Span) -> impl Iterator<Item = (u64, Fragment)> + '_ {
        // A fragment lies within a unit: it begins at most a unit before what it overlaps.
        let from = span.start.saturating_sub(self.geometry.unit.into());
        self.fragments
            .range(from..span.end())
            .map(|(start, fragment)| (*start, *fragment))
            .filter(move |(start, fragment)| start + fragment.count > span.start)
    }

    /// Takes a span out of the fragments; what is around it stays.
    fn cut_fragments(&mut self, span: Span) {
        let overlapping: Vec<_> = self.fragments_in(span).collect();
        for (start, fragment) in overlapping {
            self.fragments.remove(&start);
            let end = start + fragment.count;
            if start < span.start {
                self.put_fragment(Span::from_range(start, span.start), fragment.piece);
            }
            if end > span.end() {
                self.put_fragment(Span::from_range(span.end(), end), fragment.piece);
            }
        }
    }

    fn put_fragment(&mut self, span: Span, piece: Piece) {
        let count = span.count;
        let before = self.fragments.insert(span.start, Fragment { count, piece });
        assert!(before.is_none(), "M1: fragments are disjoint");
    }

    fn get(&self, unit: u64) -> Option<Source> {
        let slot = self.slots[self.place(unit)];
        (slot.unit != EMPTY).then(|| slot.source())
    }

    fn insert(&mut self, unit: u64, source: Source) {
        if (self.used + 1) * 5 > self.slots.len() * 4 {
            self.grow();
        }
        let place = self.place(unit);
        if self.slots[place].unit == EMPTY {
            self.used += 1;
        }
        self.slots[place] = Slot::new(unit, source);
    }

    /// Takes a unit out, and closes the gap in the run of slots that it was in.
    fn remove(&mut self, unit: u64) -> Option<Source> {
        let mask = self.slots.len() - 1;
        let mut hole = self.place(unit);
        let source = (self.slots[hole].unit != EMPTY).then(|| self.slots[hole].source())?;
        let mut next = hole;
        loop {
            next = (next + 1) & mask;
            let slot = self.slots[next];
            if slot.unit == EMPTY {
                break;
            }
            // It may move back to the hole unless it belongs between hole and itself.
            let home = home(slot.unit, mask);
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(hole) & mask) {
                self.slots[hole] = slot;
                hole = next;
            }
        }
        self.slots[hole] = Slot::EMPTY;
        self.used -= 1;
        Some(source)
    }

    /// The slot of a unit, or the empty one where it would be.
    fn place(&self, unit: u64) -> usize {
        let mask = self.slots.len() - 1;
        let unit = number(unit);
        let mut place = home(unit, mask);
        while self.slots[place].unit != EMPTY && self.slots[place].unit != unit {
            place = (place + 1) & mask;
        }
        place
    }

    fn grow(&mut self) {
        let len = self.slots.len() * 2;
        let old = std::mem::replace(&mut self.slots, vec![Slot::EMPTY; len]);
        for slot in old.into_iter().filter(|slot| slot.unit != EMPTY) {
            let place = self.place(slot.unit.into());
            self.slots[place] = slot;
        }
    }
}

impl Slot {
    const EMPTY: Self = Self {
        unit: EMPTY,
        at: 0,
        crc: 0,
    };

    fn new(unit: u64, source: Source) -> Self {
        let (at, crc) = match source {
            Source::Data { at, crc } => (at.0, crc),
            Source::Zeroes { record } => (record.0 | ZEROES, 0),
        };
        let unit = number(unit);
        Self { unit, at, crc }
    }

    fn source(self) -> Source {
        if self.at & ZEROES == 0 {
            let at = At(self.at);
            Source::Data { at, crc: self.crc }
        } else {
            let record = At(self.at & !ZEROES);
            Source::Zeroes { record }
        }
    }
}

fn push_gap(found: &mut Vec<Found>, from: u64, to: u64) {
    if from == to {
        return;
    }
    match found.last_mut() {
        Some(last) if last.piece.is_none() && last.span.end() == from => {
            last.span = Span::from_range(last.span.start, to);
        }
        _ => found.push(Found {
            span: Span::from_range(from, to),
            piece: None,
        }),
    }
}

fn number(unit: u64) -> u32 {
    let number = u32::try_from(unit).expect("the shape limits the disk");
    assert_ne!(number, EMPTY, "the shape limits the disk");
    number
}

fn home(unit: u32, mask: usize) -> usize {
    // Fibonacci hashing: neighbours spread, and the high bits are the good ones.
    let hash = u64::from(unit).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    usize::try_from(hash >> 32).expect("32 bits") & mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{geometry::index, record::tests::geometry};
    use proptest::prelude::*;

    const BLOCKS: u64 = 24;

    #[derive(Clone, Debug)]
    enum Do {
        Put(u64, u64, bool),
        Forget(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Do>> {
        let put = (0..BLOCKS, 1u64..7, any::<bool>()).prop_map(|(a, b, c)| Do::Put(a, b, c));
        let forget = any::<usize>().prop_map(Do::Forget);
        prop::collection::vec(prop_oneof![3 => put, 1 => forget], 0..60)
    }

    proptest! {
        #[test]
        fn map_equals_an_array(steps in steps(), spread in prop::sample::select(vec![0u64, 1 << 20])) {
            let geometry = geometry();
            let mut map = Map::new(geometry);
            let mut model: Vec<Option<Piece>> = vec![None; index(BLOCKS) + 8];
            let mut done: Vec<Piece> = Vec::new();
            let mut at = 1;
            for step in steps {
                match step {
                    Do::Put(start, count, is_zero) => {
                        for span in geometry.pieces(Span { start: start + spread, count }) {
                            let source = if is_zero {
                                Source::Zeroes { record: At(at) }
                            } else {
                                Source::Data { at: At(at), crc: at }
                            };
                            let piece = Piece { span, source };
                            at += 3;
                            map.put(piece);
                            done.push(piece);
                            for block in span.start..span.end() {
                                model[index(block - spread)] = Some(piece);
                            }
                        }
                    }
                    Do::Forget(which) if !done.is_empty() => {
                        let piece = done[which % done.len()];
                        map.forget(piece.span, piece.source.at());
                        for slot in &mut model {
                            if *slot == Some(piece) {
                                *slot = None;
                            }
                        }
                    }
                    Do::Forget(_) => {}
                }
            }
            let whole = Span { start: spread, count: model.len() as u64 };
            let mut next = spread;
            for found in map.find(whole) {
                prop_assert_eq!(found.span.start, next);
                next = found.span.end();
                for block in found.span.start..found.span.end() {
                    prop_assert_eq!(model[index(block - spread)], found.piece);
                }
            }
            prop_assert_eq!(next, whole.end());
            let named: u64 = map.all().iter().map(|found| found.span.count).sum();
            prop_assert_eq!(index(named), model.iter().flatten().count());
        }

        #[test]
        fn table_keeps_every_unit_through_growth(units in prop::collection::btree_set(0u64..100_000, 0..600)) {
            let mut map = Map::new(geometry());
            let piece = |unit: u64| Piece {
                span: Span { start: unit * 2, count: 2 },
                source: Source::Data { at: At(number(unit) + 1), crc: 0 },
            };
            for unit in &units {
                map.put(piece(*unit));
            }
            for unit in units.iter().filter(|unit| *unit % 2 == 0) {
                map.forget(piece(*unit).span, At(number(*unit) + 1));
            }
            for unit in &units {
                let found = map.find(piece(*unit).span);
                prop_assert_eq!(found[0].piece, (unit % 2 == 1).then(|| piece(*unit)));
            }
        }
    }

    #[test]
    fn slot_is_twelve_bytes() {
        assert_eq!(size_of::<Slot>(), 12);
    }
}
