//! The two sheets in memory: who has which place, what the newest content of a block is, what may
//! be moved. Pure.
//!
//! * H1: the sheet that fills is always the younger one. They change roles only when the other is
//!   empty, so that they are emptied in the order of their generations (G2).
//! * H2: `newest` names, for each block that an answered write touched and that is not moved, its
//!   newest content and the number of the record it is from.
//! * H3: a move takes the content of the records of *its* sheet, not what is newest: what is newer
//!   may not be durable when this sheet is given up.

use std::collections::BTreeMap;

use vaio_core::{DirtyMap, Extent, Instant};

use crate::record::{Content, SHEETS};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its write is in flight.
    Pending,
    /// It is the content of its blocks.
    Shown,
    /// Its write failed; what of it is on the device is given up with the sheet.
    Failed,
}

#[derive(Debug)]
struct Record {
    extent: Extent,
    content: Content,
    state: State,
    since: Instant,
}

#[derive(Debug, Default)]
struct Sheet {
    generation: u64,
    /// Number of its first record.
    first: u64,
    /// In their places.
    records: Vec<Record>,
    /// A flush failed: what is in it may be lost (G4).
    is_doubtful: bool,
}

impl Sheet {
    fn end(&self) -> u64 {
        self.first + self.records.len() as u64
    }
}

/// A place in a sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) sheet: usize,
    pub(crate) generation: u64,
    pub(crate) index: usize,
    /// Number of the record; they count up over all sheets.
    pub(crate) number: u64,
}

/// What to write to the backing, and the sheet that is empty then.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) sheet: usize,
    /// The generation that it gets.
    pub(crate) generation: u64,
    /// Disjoint.
    pub(crate) pieces: Vec<(Extent, Content)>,
}

#[derive(Debug)]
pub(crate) struct Sheets {
    records_max: usize,
    block: u64,
    both: [Sheet; SHEETS],
    /// Which one fills.
    filling: usize,
    next_generation: u64,
    newest: BTreeMap<u64, (u64, Content)>,
    /// Records from this number on stay where they are.
    held: Option<u64>,
}

impl Sheets {
    /// Two empty sheets of these generations. The older one fills first, the younger one next.
    pub(crate) fn new(records_max: usize, block: u64, generations: [u64; SHEETS]) -> Self {
        let [one, two] = generations;
        assert_ne!(one, two, "one of them is younger");
        let sheets = generations.map(|generation| Sheet {
            generation,
            ..Sheet::default()
        });
        Self {
            records_max,
            block,
            both: sheets,
            filling: usize::from(two < one),
            next_generation: one.max(two) + 1,
            newest: BTreeMap::new(),
            held: None,
        }
    }

    fn other(&self) -> &Sheet {
        &self.both[1 - self.filling]
    }

    /// Number of the next record.
    pub(crate) fn head(&self) -> u64 {
        self.both[self.filling].end()
    }

    /// Number of the oldest record that is not moved.
    pub(crate) fn tail(&self) -> u64 {
        let other = self.other();
        if other.records.is_empty() {
            self.both[self.filling].first
        } else {
            other.first
        }
    }

    pub(crate) fn is_doubtful(&self) -> bool {
        self.both.iter().any(|sheet| sheet.is_doubtful)
    }

    /// A flush of the staging device failed.
    pub(crate) fn doubt(&mut self) {
        for sheet in &mut self.both {
            sheet.is_doubtful = !sheet.records.is_empty();
        }
    }

    /// A place for a record; `None`: both sheets are full.
    pub(crate) fn take(&mut self, extent: Extent, content: Content, now: Instant) -> Option<Place> {
        let filling = &self.both[self.filling];
        // What is doubtful is left alone, so that it can be moved.
        let is_closed = filling.records.len() >= self.records_max || filling.is_doubtful;
        if is_closed && !self.change_roles() {
            return None;
        }
        let sheet = &mut self.both[self.filling];
        let place = Place {
            sheet: self.filling,
            generation: sheet.generation,
            index: sheet.records.len(),
            number: sheet.end(),
        };
        sheet.records.push(Record {
            extent,
            content,
            state: State::Pending,
            since: now,
        });
        Some(place)
    }

    /// H1: only when the other one is empty, and given up durably.
    fn change_roles(&mut self) -> bool {
        if !self.other().records.is_empty() {
            return false;
        }
        let head = self.head();
        self.filling = 1 - self.filling;
        self.both[self.filling].first = head;
        let [one, two] = [self.filling, 1 - self.filling].map(|at| self.both[at].generation);
        assert!(one > two, "the sheet that fills is the younger one");
        true
    }

    /// The write of a record ended well: it is the content of its blocks now.
    pub(crate) fn show(&mut self, at: Place) {
        let record = &mut self.both[at.sheet].records[at.index];
        assert_eq!(record.state, State::Pending, "shown once");
        record.state = State::Shown;
        let (extent, content) = (record.extent, record.content.clone());
        for (number, piece) in blocks(extent, self.block) {
            let old = self
                .newest
                .insert(number, (at.number, content.part(extent, piece)));
            debug_assert!(old.is_none_or(|(old, _)| old < at.number), "in order (G3)");
        }
    }

    /// The write of a record failed.
    pub(crate) fn fail(&mut self, at: Place) {
        self.both[at.sheet].records[at.index].state = State::Failed;
    }

    /// Content of `extent` that is here, in order; what is between is below.
    pub(crate) fn read(&self, extent: Extent) -> Vec<(Extent, Content)> {
        blocks(extent, self.block)
            .filter_map(|(number, piece)| Some((piece, self.newest.get(&number)?.1.clone())))
            .collect()
    }

    /// Whether the sheet that fills has to stop for what is before `number` to be moved.
    fn wants_change(&self, number: u64) -> bool {
        let filling = &self.both[self.filling];
        filling.first < number && !filling.records.is_empty()
    }

    /// Whether there is something to move, now or soon.
    pub(crate) fn has_work(&self) -> bool {
        self.tail() < self.head().min(self.held.unwrap_or(u64::MAX))
    }

    /// Whether nothing that is still being written is in the way of a move.
    pub(crate) fn is_movable(&self) -> bool {
        let of = if self.other().records.is_empty() {
            &self.both[self.filling]
        } else {
            self.other()
        };
        self.has_work() && of.records.iter().all(|one| one.state != State::Pending)
    }

    /// What to move next.
    pub(crate) fn next_move(&mut self) -> Option<Move> {
        if self.other().records.is_empty()
            && self.wants_change(self.held.unwrap_or(u64::MAX))
            && !self.change_roles()
        {
            return None;
        }
        let sheet = 1 - self.filling;
        let of = self.other();
        let is_held = self.held.is_some_and(|held| of.first >= held);
        let is_pending = of.records.iter().any(|one| one.state == State::Pending);
        if of.records.is_empty() || is_held || is_pending {
            return None;
        }
        let mut last = BTreeMap::new();
        for record in of.records.iter().filter(|one| one.state == State::Shown) {
            for (number, piece) in blocks(record.extent, self.block) {
                last.insert(number, (piece, record));
            }
        }
        let pieces = runs(last.into_values());
        let generation = self.next_generation;
        self.next_generation += 1;
        Some(Move {
            sheet,
            generation,
            pieces,
        })
    }

    /// The backing has it durably, and the sheet its new generation.
    pub(crate) fn moved(&mut self, of: &Move) {
        assert_eq!(of.sheet, 1 - self.filling, "the older sheet was moved");
        let sheet = &mut self.both[of.sheet];
        for (number, record) in (sheet.first..).zip(&sheet.records) {
            for (block, _) in blocks(record.extent, self.block) {
                // Newer content of the block stays.
                if self.newest.get(&block).is_some_and(|(of, _)| *of == number) {
                    self.newest.remove(&block);
                }
            }
        }
        *sheet = Sheet {
            generation: of.generation,
            ..Sheet::default()
        };
    }

    /// Holds the backing at what is recorded now; `None`: the sheets cannot be told apart yet.
    pub(crate) fn hold(&mut self) -> Option<u64> {
        if self.wants_change(u64::MAX) && !self.change_roles() {
            return None;
        }
        self.held = Some(self.head());
        self.held
    }

    pub(crate) fn held(&self) -> Option<u64> {
        self.held
    }

    pub(crate) fn let_go(&mut self) {
        self.held = None;
    }

    fn records(&self) -> impl Iterator<Item = (u64, &Record)> {
        [1 - self.filling, self.filling]
            .into_iter()
            .flat_map(|at| (self.both[at].first..).zip(&self.both[at].records))
    }

    /// Everything that is not on the backing, rather too much (G6).
    pub(crate) fn dirty(&self) -> DirtyMap {
        self.records().map(|(_, record)| record.extent).collect()
    }

    /// Since when the oldest of it waits.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.records().next().map(|(_, record)| record.since)
    }

    /// Shown records from a number on.
    pub(crate) fn shown_from(&self, from: u64) -> Vec<(u64, Extent, Content)> {
        self.records()
            .filter(|(number, record)| *number >= from && record.state == State::Shown)
            .map(|(number, record)| (number, record.extent, record.content.clone()))
            .collect()
    }
}

/// The blocks of an extent and where they lie.
fn blocks(extent: Extent, block: u64) -> impl Iterator<Item = (u64, Extent)> {
    (extent.offset() / block..extent.end().div_ceil(block))
        .map(move |number| (number, Extent::new(number * block, block)))
}

/// Neighbouring blocks of one record, together.
fn runs<'a>(blocks: impl Iterator<Item = (Extent, &'a Record)>) -> Vec<(Extent, Content)> {
    let mut runs: Vec<(Extent, &Record)> = Vec::new();
    for (piece, record) in blocks {
        match runs.last_mut() {
            Some((run, of)) if std::ptr::eq(*of, record) && run.end() == piece.offset() => {
                *run = Extent::from_range(run.offset(), piece.end());
            }
            _ => runs.push((piece, record)),
        }
    }
    runs.into_iter()
        .map(|(run, record)| (run, record.content.part(record.extent, run)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn sheets() -> Sheets {
        Sheets::new(2, 512, [1, 2])
    }

    fn content(byte: u8) -> Content {
        Content::Data(Bytes::from(vec![byte; 512]))
    }

    fn write(sheets: &mut Sheets, block: u64, byte: u8) -> Option<Place> {
        let extent = Extent::new(block * 512, 512);
        let at = sheets.take(extent, content(byte), Instant::default())?;
        sheets.show(at);
        Some(at)
    }

    #[test]
    fn full_sheets_take_again_only_after_a_move() {
        let mut sheets = sheets();
        for block in 0..4 {
            assert!(write(&mut sheets, block, 1).is_some());
        }
        assert_eq!(write(&mut sheets, 4, 1), None);
        let first = sheets.next_move().expect("a full sheet");
        assert_eq!((first.sheet, sheets.tail()), (0, 0));
        sheets.moved(&first);
        assert_eq!(sheets.tail(), 2);
        assert_eq!(write(&mut sheets, 4, 1).map(|at| at.number), Some(4));
    }

    #[test]
    fn move_writes_its_own_version_and_keeps_a_newer_one() {
        let mut sheets = sheets();
        write(&mut sheets, 0, 1);
        write(&mut sheets, 1, 1);
        write(&mut sheets, 0, 2);
        let of = sheets.next_move().expect("a full sheet");
        assert_eq!(of.pieces[0], (Extent::new(0, 512), content(1)));
        sheets.moved(&of);
        let held = sheets.read(Extent::new(0, 1024));
        assert_eq!(held, [(Extent::new(0, 512), content(2))]);
    }

    #[test]
    fn pending_record_is_not_moved() {
        let mut sheets = sheets();
        let at = sheets
            .take(Extent::new(0, 512), content(1), Instant::default())
            .expect("a place");
        assert_eq!(sheets.next_move(), None);
        sheets.fail(at);
        let of = sheets.next_move().expect("nothing pending");
        assert_eq!(of.pieces, []);
    }

    #[test]
    fn doubtful_sheet_takes_no_more() {
        let mut sheets = sheets();
        let first = write(&mut sheets, 0, 1).expect("a place");
        sheets.doubt();
        let second = write(&mut sheets, 1, 1).expect("in the other one");
        assert_ne!(first.sheet, second.sheet);
    }

    #[test]
    fn held_sheets_move_nothing_newer() {
        let mut sheets = sheets();
        write(&mut sheets, 0, 1);
        assert_eq!(sheets.hold(), Some(1));
        write(&mut sheets, 0, 2);
        let of = sheets.next_move().expect("what is before the point");
        sheets.moved(&of);
        assert_eq!((sheets.next_move(), sheets.has_work()), (None, false));
        sheets.let_go();
        assert!(sheets.has_work());
    }
}
