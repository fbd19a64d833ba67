//! The map: which part of the log holds the newest content of a block. Pure.
//!
//! Whole units are in a [`Table`] of 12-byte slots; parts of units are *fragments* in
//! a tree. A fragment remembers the piece that it is part of, because that is what was
//! checksummed.
//!
//! * M1: a block is named at most once: by its unit's slot or by one fragment.
//! * M2: content is put in the order of seqs; what is put last is what is found.
//! * M3: to forget a place removes what still names it and nothing newer.

use std::collections::BTreeMap;

use crate::{
    geometry::{At, Geometry, Span},
    table::{self, Slot, Table},
};

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
struct Fragment {
    count: u64,
    piece: Piece,
}

/// In a slot's place: zeroes.
const ZEROES: u32 = 1 << 31;
/// Units that a map can name.
pub(crate) const UNITS_MAX: u64 = table::EMPTY as u64;

#[derive(Clone, Debug)]
pub(crate) struct Map {
    geometry: Geometry,
    units: Table,
    /// By first block; disjoint.
    fragments: BTreeMap<u64, Fragment>,
    /// Blocks of all fragments.
    fragment_blocks: u64,
}

impl Map {
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            units: Table::new(),
            fragments: BTreeMap::new(),
            fragment_blocks: 0,
        }
    }

    /// Puts a piece; it lies within one unit (M2).
    pub(crate) fn put(&mut self, piece: Piece) {
        let unit = piece.span.start / u64::from(self.geometry.unit);
        debug_assert_eq!(unit, (piece.span.end() - 1) / u64::from(self.geometry.unit));
        if piece.span.count == u64::from(self.geometry.unit) {
            self.cut_fragments(piece.span);
            self.units.insert(slot_of(unit, piece.source));
            return;
        }
        // M1: what the slot named becomes fragments around the new piece.
        if let Some(slot) = self.units.remove(number(unit)) {
            let source = source_of(slot);
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
            self.units.remove(number(unit));
            return;
        }
        let named: Vec<_> = self
            .fragments_in(piece)
            .filter(|(_, fragment)| fragment.piece.source.at() == place)
            .map(|(start, _)| start)
            .collect();
        for start in named {
            self.take_fragment(start);
        }
    }

    /// Everything in the map, in the order of blocks.
    pub(crate) fn all(&self) -> Vec<Found> {
        let units = self.units.iter();
        let mut all: Vec<_> = units
            .map(|slot| {
                let piece = self.unit_piece(slot.unit.into(), source_of(*slot));
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

    /// The blocks that are named, each once, in no order.
    pub(crate) fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        let count = u64::from(self.geometry.unit);
        let units = self.units.iter().map(move |slot| Span {
            start: u64::from(slot.unit) * count,
            count,
        });
        let fragments = self.fragments.iter().map(|(start, fragment)| Span {
            start: *start,
            count: fragment.count,
        });
        units.chain(fragments)
    }

    /// How many blocks are named.
    pub(crate) fn blocks(&self) -> u64 {
        self.units.used() * u64::from(self.geometry.unit) + self.fragment_blocks
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
            self.take_fragment(start);
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
        self.fragment_blocks += count;
    }

    fn take_fragment(&mut self, start: u64) {
        let taken = self.fragments.remove(&start).expect("it was found");
        self.fragment_blocks -= taken.count;
    }

    fn get(&self, unit: u64) -> Option<Source> {
        self.units.get(number(unit)).map(source_of)
    }
}

fn slot_of(unit: u64, source: Source) -> Slot {
    let (at, word) = match source {
        Source::Data { at, crc } => (at.0, crc),
        Source::Zeroes { record } => (record.0 | ZEROES, 0),
    };
    let unit = number(unit);
    Slot { unit, at, word }
}

fn source_of(slot: Slot) -> Source {
    if slot.at & ZEROES == 0 {
        let (at, crc) = (At(slot.at), slot.word);
        Source::Data { at, crc }
    } else {
        let record = At(slot.at & !ZEROES);
        Source::Zeroes { record }
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
    assert_ne!(number, table::EMPTY, "the shape limits the disk");
    number
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
            prop_assert_eq!(map.blocks(), named);
            prop_assert_eq!(map.spans().map(|span| span.count).sum::<u64>(), named);
        }
    }
}
