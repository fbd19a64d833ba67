//! Says whether what a guest sees is what its disk promised: live, after any number of crashes, and
//! on an ordered target. The text of `docs/spec/io-semantics.md` as code.
//!
//! Fed with submissions, answers and crashes in the order in which they happen, it keeps for each
//! block a short list of versions and checks each value when it comes; there is no search. A read is
//! checked by `live.rs`, what a crash may leave by `legal.rs`, a target by [`OrderedCheck`].
//!
//! Where values are unique (stamps) it accepts exactly what the contract allows. Zeroes have many
//! origins: every one that fits is kept, so that it is never wrong to raise an alarm.
//!
//! A clone shares all that neither side touches afterwards.

mod block;
mod explain;
mod history;
mod legal;
mod live;
mod ordered;
mod spans;
mod violation;

use std::sync::Arc;

use vaio_core::{DiscardReads, FlushRetry, Promise};

use block::{Block, Kind, Version};
pub use history::{CrashRecord, Ended, History, Moment, NEVER, Observed, OpId, Record};
use legal::Durability;
pub use legal::LegalSet;
use live::ReadSpan;
pub use ordered::{Cut, OrderedCheck};
pub(crate) use violation::promise_name;
pub use violation::{Rule, Violation};

use crate::stamp::{Stamp, Value};
use crate::workload::GuestOp;

/// Blocks that are copied together when one of them is touched after a clone.
const PAGE: u64 = 8;

/// What the oracle holds a disk to.
#[derive(Clone, Copy, Debug)]
pub struct OracleSettings {
    /// Size of the disk in logical blocks.
    pub blocks: u64,
    /// What survives a crash. The ordered promises are about a target; to its guest such a disk is
    /// held to [`Promise::AtFlush`].
    pub promise: Promise,
    /// What a flush covers after one failed.
    pub flush_retry: FlushRetry,
    /// What a discarded block reads as.
    pub discard_reads: DiscardReads,
    /// What a block shows before the guest writes it.
    pub initial: Initial,
    /// The number in the stamps of this run.
    pub run: u32,
    /// Whether a target is looked at, with [`OrderedCheck`]: then it is kept what each crash left.
    pub has_target: bool,
}

impl OracleSettings {
    /// A zero-filled disk with the defaults of the contract, run 0.
    pub fn new(blocks: u64, promise: Promise) -> Self {
        Self {
            blocks,
            promise,
            flush_retry: FlushRetry::default(),
            discard_reads: DiscardReads::default(),
            initial: Initial::default(),
            run: 0,
            has_target: matches!(promise, Promise::Ordered | Promise::OrderedByFlush),
        }
    }
}

/// What never-written blocks show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Initial {
    /// Zeroes.
    #[default]
    Zero,
    /// Each [its own garbage](Value::fill).
    Fill,
}

/// How an operation was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Success of anything but a read.
    Ok,
    /// An error.
    Err,
    /// Success of a read: what each block showed.
    Read(Vec<Value>),
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Oracle {
    settings: OracleSettings,
    now: Moment,
    era: u32,
    /// `None`: no block of it was touched by a write.
    pages: Vec<Option<Arc<Vec<Block>>>>,
    in_flight: Vec<OpId>,
    history: Arc<History>,
    durability: Durability,
}

impl Oracle {
    /// A disk on which nothing has happened.
    ///
    /// # Panics
    /// If it has more blocks than memory has addresses.
    pub fn new(settings: OracleSettings) -> Self {
        let pages = usize::try_from(settings.blocks.div_ceil(PAGE)).expect("a disk fits memory");
        let filled = settings.initial == Initial::Fill;
        Self {
            settings,
            now: 0,
            era: 0,
            pages: vec![None; pages],
            in_flight: Vec::new(),
            history: Arc::new(History {
                filled,
                ..History::default()
            }),
            durability: Durability::new(
                settings.promise == Promise::AtAck,
                settings.flush_retry == FlushRetry::Covers,
            ),
        }
    }

    /// What it was made with.
    pub fn settings(&self) -> &OracleSettings {
        &self.settings
    }

    /// What has happened so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The moment of the last event.
    pub fn now(&self) -> Moment {
        self.now
    }

    /// The next event happens at `moment`, or right after the last one if that is later: for a
    /// caller that numbers its own events and wants to see those numbers in reports.
    pub fn advance(&mut self, moment: Moment) {
        self.now = self.now.max(moment.saturating_sub(1));
    }

    /// The guest submits an operation: its number, from 1.
    ///
    /// # Panics
    /// If it is not within the disk.
    pub fn submit(&mut self, op: &GuestOp) -> OpId {
        assert!(
            op.is_within(self.settings.blocks),
            "an operation is within the disk op={op}"
        );
        let at = self.tick();
        let history = Arc::make_mut(&mut self.history);
        let submitted = Record {
            op: *op,
            submit: at,
            end: NEVER,
            ended: Ended::NotYet,
            era: self.era,
        };
        history.ops.push(submitted);
        let id = OpId(u32::try_from(history.ops.len()).expect("a run has fewer operations"));
        self.in_flight.push(id);
        if op.is_change() {
            for number in op.blocks() {
                self.new_version(id, op, number, at);
            }
        }
        id
    }

    fn new_version(&mut self, id: OpId, op: &GuestOp, number: u64, at: Moment) {
        let run = self.settings.run;
        let zero_discards = self.settings.discard_reads == DiscardReads::Zero;
        let block = self.block_mut(number);
        block.writes += 1;
        let (value, kind) = match op {
            GuestOp::Discard { .. } if !zero_discards => (Value::Zero, Kind::Discard),
            GuestOp::Write { .. } => {
                let version = block.writes;
                (
                    Value::Stamp(Stamp {
                        run,
                        op: id.0,
                        block: number,
                        version,
                    }),
                    Kind::Write,
                )
            }
            _ => (Value::Zero, Kind::Write),
        };
        block.versions.push(Version::submitted(value, id, kind, at));
    }

    /// The stamps that a write in flight carries, one for each block.
    ///
    /// # Panics
    /// If the operation is not in flight.
    pub fn stamps(&self, id: OpId) -> Vec<Stamp> {
        assert!(
            self.in_flight.contains(&id),
            "the operation is in flight op={id}"
        );
        let op = self.history.get(id).expect("it was submitted").op;
        let stamp = |number: u64| {
            let block = self.block(number)?;
            let of = |version: &&Version| version.op == id && version.kind == Kind::Write;
            match block.versions.iter().rev().find(of)?.value {
                Value::Stamp(stamp) => Some(stamp),
                _ => None,
            }
        };
        op.blocks().filter_map(stamp).collect()
    }

    /// An operation was answered.
    ///
    /// # Errors
    /// A read returned what nothing explains. The oracle should not be used afterwards.
    ///
    /// # Panics
    /// If the operation is not in flight, or the kind of answer is not that of the operation.
    pub fn ack(&mut self, id: OpId, outcome: Outcome) -> Result<(), Violation> {
        let place = self.in_flight.iter().position(|other| *other == id);
        self.in_flight
            .remove(place.expect("the operation is in flight"));
        let at = self.tick();
        let ok = outcome != Outcome::Err;
        let values = if let Outcome::Read(values) = outcome {
            values
        } else {
            Vec::new()
        };
        let history = Arc::make_mut(&mut self.history);
        let record = &mut history.ops[id.0 as usize - 1];
        let (op, submit) = (record.op, record.submit);
        record.end = at;
        record.ended = if ok {
            Ended::Ok(values.as_slice().into())
        } else {
            Ended::Err
        };
        match op {
            GuestOp::Idle => Ok(()),
            GuestOp::Flush if ok => {
                self.durability.flush_succeeded(id, submit);
                Ok(())
            }
            GuestOp::Flush => {
                self.durability.flush_failed(at);
                Ok(())
            }
            GuestOp::Read { .. } if !ok => Ok(()),
            GuestOp::Read { block, count } => {
                if u64::try_from(values.len()).ok() != Some(count) {
                    return Err(self.wrong_answer(block, count, values.len()));
                }
                let span = ReadSpan { submit, end: at };
                op.blocks()
                    .zip(values)
                    .try_for_each(|(number, value)| self.check(number, value, span))
            }
            _ => {
                op.blocks()
                    .for_each(|number| self.answer(number, id, op.is_fua(), ok));
                Ok(())
            }
        }
    }

    /// A write, write zeroes or discard of one block was answered.
    fn answer(&mut self, number: u64, id: OpId, fua: bool, ok: bool) {
        let at = self.now;
        let read_in_flight = self.is_read_in_flight(number);
        let (block, durability) = self.block_and_durability(number);
        if ok {
            block.of(id).succeed(at, fua);
        } else {
            block.fail(id, at);
        }
        block.guarantee(durability);
        if !read_in_flight {
            block.prune();
        }
    }

    /// A block was read back without the guest.
    ///
    /// # Errors
    /// It shows what nothing explains.
    pub fn observe(&mut self, block: u64, value: Value) -> Result<(), Violation> {
        let submit = self.tick();
        let end = self.tick();
        if self.settings.has_target {
            Arc::make_mut(&mut self.history).observed.push(Observed {
                block,
                value,
                submit,
            });
        }
        self.check(block, value, ReadSpan { submit, end })
    }

    /// The host crashes: what is in flight ends, and of what is not guaranteed anything may be lost.
    pub fn crash(&mut self) {
        let at = self.tick();
        let settled = self.tick();
        let history = Arc::make_mut(&mut self.history);
        for id in self.in_flight.drain(..) {
            let record = &mut history.ops[id.0 as usize - 1];
            record.end = at;
            record.ended = Ended::Crash;
        }
        let mut left = Vec::new();
        let keep = self.settings.has_target;
        for (page, number) in self.pages.iter_mut().zip(0u64..) {
            let Some(page) = page else { continue };
            for (block, index) in Arc::make_mut(page).iter_mut().zip(0u64..) {
                block.guarantee(&self.durability);
                block.crash(settled);
                if keep {
                    left.push((
                        number * PAGE + index,
                        block.values(&block.versions[0]).collect(),
                    ));
                }
            }
        }
        history.crashes.push(CrashRecord { at, settled, left });
        self.durability.forget();
        self.era += 1;
    }

    /// What a block may show if the host crashes now; after a crash and before the first read of it:
    /// what that read may return.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn legal(&self, block: u64) -> LegalSet {
        self.as_guaranteed(block).legal()
    }

    /// A hash of [`legal`](Self::legal) over all blocks: two crash points with equal images and equal
    /// hashes need one check of what each block shows. What blocks show together, which an ordered
    /// promise is about, hangs on [`History::order_hash`] too.
    pub fn legal_hash(&self) -> u64 {
        let mut hash = 0;
        for (page, number) in self.pages.iter().zip(0u64..) {
            let Some(page) = page else { continue };
            for (block, index) in page.iter().zip(0u64..) {
                let number = number * PAGE + index;
                let initial = self.history.initial(number);
                // An untouched block counts as one that may show its initial content.
                if block.only_value() == Some(initial) {
                    continue;
                }
                let mut block = block.clone();
                block.guarantee(&self.durability);
                let legal = block.legal();
                if legal.values() != [initial] {
                    hash ^= legal.hash(number);
                }
            }
        }
        hash
    }

    /// The operations that are in flight, oldest first.
    pub fn in_flight(&self) -> &[OpId] {
        &self.in_flight
    }

    fn check(&mut self, number: u64, value: Value, span: ReadSpan) -> Result<(), Violation> {
        // Most blocks that are read were never written: they need no list.
        if self.block(number).is_none() {
            let initial = self.history.initial(number);
            return if value == initial {
                Ok(())
            } else {
                Err(self.unexplained(number, value, span))
            };
        }
        match self.block_mut(number).read(value, span) {
            Ok(()) => Ok(()),
            Err(live::Unexplained) => Err(self.unexplained(number, value, span)),
        }
    }

    fn as_guaranteed(&self, number: u64) -> Block {
        assert!(
            number < self.settings.blocks,
            "there is such a block block={number}"
        );
        let initial = || Block::new(self.history.initial(number));
        let mut block = self.block(number).map_or_else(initial, Block::clone);
        block.guarantee(&self.durability);
        block
    }

    fn is_read_in_flight(&self, number: u64) -> bool {
        self.in_flight.iter().any(|id| {
            let op = self.history.get(*id).expect("it was submitted").op;
            matches!(op, GuestOp::Read { .. }) && op.blocks().contains(&number)
        })
    }

    fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    fn block(&self, number: u64) -> Option<&Block> {
        let page = self
            .pages
            .get(usize::try_from(number / PAGE).ok()?)?
            .as_ref()?;
        page.get(usize::try_from(number % PAGE).ok()?)
    }

    fn block_mut(&mut self, number: u64) -> &mut Block {
        self.block_and_durability(number).0
    }

    fn block_and_durability(&mut self, number: u64) -> (&mut Block, &Durability) {
        let (page, index) = (number / PAGE, number % PAGE);
        let (blocks, history) = (self.settings.blocks, &self.history);
        let slot = usize::try_from(page).expect("a page is in memory");
        let page = self.pages[slot].get_or_insert_with(|| {
            let numbers = page * PAGE..((page + 1) * PAGE).min(blocks);
            Arc::new(
                numbers
                    .map(|number| Block::new(history.initial(number)))
                    .collect(),
            )
        });
        let index = usize::try_from(index).expect("a page is small");
        (&mut Arc::make_mut(page)[index], &self.durability)
    }
}
