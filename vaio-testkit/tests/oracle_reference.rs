//! The oracle against a second one that is slow and written straight from the contract: the
//! relation "before" as a closed matrix over all versions, what is legal by its definition, live
//! reads by trying every order. Every value that a read could return is put to both.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::cell::Cell;

use proptest::prelude::*;
use vaio_core::{DiscardReads, FlushRetry, Promise};
use vaio_testkit::oracle::{Initial, OpId, Oracle, OracleSettings, Outcome};
use vaio_testkit::{GuestOp, Value};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Write,
    Discard,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    InFlight,
    Ok,
    Failed,
    /// Unanswered when its era ended.
    Lost,
}

#[derive(Clone, Debug)]
struct Write {
    value: Value,
    kind: Kind,
    fua: bool,
    submit: u64,
    end: u64,
    state: State,
    era: usize,
}

#[derive(Clone, Debug)]
struct Read {
    value: Value,
    submit: u64,
    end: u64,
    era: usize,
}

#[derive(Clone, Debug)]
struct Flush {
    submit: u64,
    end: u64,
    ok: bool,
    era: usize,
}

/// One block's whole history.
#[derive(Clone, Debug)]
struct Reference {
    promise: Promise,
    covers: bool,
    initial: Value,
    writes: Vec<Write>,
    reads: Vec<Read>,
    flushes: Vec<Flush>,
    /// When what survived each crash counts as submitted.
    crashes: Vec<u64>,
}

/// For each read the write that it returned; `None`: what was there when its era began.
type Attribution = Vec<Option<usize>>;

impl Reference {
    fn attributions(&self) -> Vec<Attribution> {
        let mut all = vec![Vec::new()];
        for read in &self.reads {
            let mut choices = vec![None];
            for (index, write) in self.writes.iter().enumerate() {
                if write.era == read.era && write.value == read.value && write.submit < read.end {
                    choices.push(Some(index));
                }
            }
            all = all
                .into_iter()
                .flat_map(|prefix: Attribution| {
                    choices
                        .iter()
                        .map(move |choice| [prefix.clone(), vec![*choice]].concat())
                })
                .collect();
        }
        all
    }

    /// The attributions that explain all reads.
    fn explanations(&self) -> Vec<Attribution> {
        self.attributions()
            .into_iter()
            .filter(|attribution| self.explains(attribution))
            .collect()
    }

    fn explains(&self, attribution: &Attribution) -> bool {
        (0..=self.crashes.len()).all(|era| {
            let base: Vec<Value> = self.base_values(attribution, era);
            let settled = base.windows(2).all(|pair| pair[0] == pair[1]);
            let possible = base
                .first()
                .is_none_or(|value| self.base_legal(attribution, era).contains(value));
            settled && possible && self.linearizable(attribution, era)
        })
    }

    /// What reads saw of the content with which an era began.
    fn base_values(&self, attribution: &Attribution, era: usize) -> Vec<Value> {
        let of_base = |(read, of): (&Read, &Option<usize>)| {
            (read.era == era && of.is_none()).then_some(read.value)
        };
        self.reads
            .iter()
            .zip(attribution)
            .filter_map(of_base)
            .collect()
    }

    fn base_legal(&self, attribution: &Attribution, era: usize) -> Vec<Value> {
        if era == 0 {
            vec![self.initial]
        } else {
            self.legal(attribution, era - 1, self.crashes[era - 1])
        }
    }

    /// The contract's definition, for a crash at the end of `era`.
    fn legal(&self, attribution: &Attribution, era: usize, crash: u64) -> Vec<Value> {
        let versions: Vec<Version> = (0..=era)
            .flat_map(|past| self.versions(attribution, past, crash))
            .collect();
        let count = versions.len();
        let mut before: Vec<Vec<bool>> = versions
            .iter()
            .map(|v| versions.iter().map(|w| v.is_before(w)).collect())
            .collect();
        for k in 0..count {
            for i in 0..count {
                for j in 0..count {
                    before[i][j] |= before[i][k] && before[k][j];
                }
            }
        }
        let over = |i: usize, j: usize| j != i && versions[j].guaranteed && before[i][j];
        let legal = |i: &usize| !(0..count).any(|j| over(*i, j));
        (0..count)
            .filter(legal)
            .map(|i| versions[i].value)
            .collect()
    }

    fn versions(&self, attribution: &Attribution, era: usize, crash: u64) -> Vec<Version> {
        let reads = |of: Option<usize>| {
            let mine = |(read, to): (&Read, &Option<usize>)| {
                (read.era == era && *to == of).then_some((read.submit, read.end))
            };
            self.reads
                .iter()
                .zip(attribution)
                .filter_map(mine)
                .collect::<Vec<_>>()
        };
        let since = if era == 0 { 0 } else { self.crashes[era - 1] };
        let settled = self.base_values(attribution, era).first().copied();
        let base = if era == 0 {
            Some(self.initial)
        } else {
            settled
        };
        let mut versions: Vec<Version> = Vec::new();
        versions.extend(base.map(|value| Version {
            value,
            submit: since,
            end: since,
            acked: true,
            guaranteed: true,
            discard: false,
            reads: reads(None),
        }));
        let of_era = self
            .writes
            .iter()
            .enumerate()
            .filter(|(_, write)| write.era == era);
        versions.extend(of_era.map(|(index, write)| {
            let reads = reads(Some(index));
            let discard = write.kind == Kind::Discard;
            let acked = write.state == State::Ok;
            Version {
                value: write.value,
                submit: write.submit,
                end: if write.end == u64::MAX {
                    crash
                } else {
                    write.end
                },
                acked,
                guaranteed: acked && self.covered(write) && (!discard || !reads.is_empty()),
                discard,
                reads,
            }
        }));
        versions
    }

    fn covered(&self, write: &Write) -> bool {
        let spoilt = |flush: &Flush| {
            !self.covers
                && self
                    .flushes
                    .iter()
                    .any(|failed| !failed.ok && write.end < failed.end && failed.end < flush.end)
        };
        let by = |flush: &Flush| {
            flush.ok && flush.era == write.era && write.end < flush.submit && !spoilt(flush)
        };
        self.promise == Promise::AtAck || write.fua || self.flushes.iter().any(by)
    }

    fn linearizable(&self, attribution: &Attribution, era: usize) -> bool {
        let reads_of = |index: usize| {
            self.reads
                .iter()
                .zip(attribution)
                .filter(move |(_, of)| **of == Some(index))
                .map(|(read, _)| read)
        };
        let mut items = Vec::new();
        for (index, write) in self
            .writes
            .iter()
            .enumerate()
            .filter(|(_, write)| write.era == era)
        {
            let certain = write.state == State::Ok && write.kind == Kind::Write;
            if certain || reads_of(index).next().is_some() {
                items.push(Item {
                    submit: write.submit,
                    end: write.end,
                    certain,
                    write: Some(index),
                    of: None,
                    failed: write.state == State::Failed,
                });
            }
        }
        for (read, of) in self
            .reads
            .iter()
            .zip(attribution)
            .filter(|(read, _)| read.era == era)
        {
            let failed = of.is_some_and(|of| self.writes[of].state == State::Failed);
            if !failed {
                items.push(Item {
                    submit: read.submit,
                    end: read.end,
                    certain: true,
                    write: None,
                    of: *of,
                    failed: false,
                });
            }
        }
        let mut must = vec![vec![false; items.len()]; items.len()];
        for (i, a) in items.iter().enumerate() {
            for (j, b) in items.iter().enumerate() {
                // What may yet be undone or take effect later is before later writes only.
                must[i][j] = a.end < b.submit && (a.certain || b.write.is_some());
                // A read of a failed write: what had taken effect before that read is older.
                if let (Some(failed), true) = (b.write, b.failed) {
                    let of = a.write.or(a.of);
                    let older = of != Some(failed)
                        && a.certain
                        && reads_of(failed).any(|read| a.end < read.submit);
                    must[i][j] |= older;
                }
            }
        }
        order(&items, &must, &mut Vec::new(), None)
    }
}

struct Version {
    value: Value,
    submit: u64,
    end: u64,
    acked: bool,
    guaranteed: bool,
    discard: bool,
    reads: Vec<(u64, u64)>,
}

impl Version {
    fn is_before(&self, later: &Self) -> bool {
        // A read that returned the later one proves that an acknowledged one is older; of a discard
        // only what was seen as zero before.
        let shown = |submit: u64| !self.discard || self.reads.iter().any(|read| read.1 < submit);
        let proves = |read: &(u64, u64)| self.end < read.0 && shown(read.0);
        let same = std::ptr::eq(self, later);
        !same && (self.end < later.submit || self.acked && later.reads.iter().any(proves))
    }
}

struct Item {
    submit: u64,
    end: u64,
    /// It takes effect between submission and end.
    certain: bool,
    /// The write that it is; a read otherwise.
    write: Option<usize>,
    /// What the read returned.
    of: Option<usize>,
    failed: bool,
}

/// Whether the items can be put in an order in which each read returns the write before it.
fn order(
    items: &[Item],
    must: &[Vec<bool>],
    placed: &mut Vec<usize>,
    current: Option<usize>,
) -> bool {
    if placed.len() == items.len() {
        return true;
    }
    for next in 0..items.len() {
        let ready = !placed.contains(&next)
            && (0..items.len()).all(|other| !must[other][next] || placed.contains(&other));
        if !ready || (items[next].write.is_none() && items[next].of != current) {
            continue;
        }
        placed.push(next);
        let now = if items[next].failed {
            current
        } else {
            items[next].write.or(current)
        };
        if order(items, must, placed, now) {
            return true;
        }
        placed.pop();
    }
    false
}

/// A run of both, driven by a list of random numbers.
struct Run {
    oracle: Oracle,
    blocks: Vec<Reference>,
    now: u64,
    in_flight: Vec<(OpId, GuestOp, u64)>,
    unique: bool,
    retired: Vec<bool>,
    asked: u32,
    refused: u32,
    /// Accepted by the oracle and not by the reference.
    lax: u32,
}

const BLOCKS: u64 = 2;
const READS_MAX: usize = 5;
const WRITES_MAX: usize = 7;

impl Run {
    fn new(settings: OracleSettings, unique: bool) -> Self {
        let block = |number: u64| Reference {
            promise: settings.promise,
            covers: settings.flush_retry == FlushRetry::Covers,
            initial: if settings.initial == Initial::Fill {
                Value::Fill(number)
            } else {
                Value::Zero
            },
            writes: Vec::new(),
            reads: Vec::new(),
            flushes: Vec::new(),
            crashes: Vec::new(),
        };
        Self {
            oracle: Oracle::new(settings),
            blocks: (0..BLOCKS).map(block).collect(),
            now: 0,
            in_flight: Vec::new(),
            unique,
            retired: vec![false; usize::try_from(BLOCKS).unwrap()],
            asked: 0,
            refused: 0,
            lax: 0,
        }
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn step(&mut self, words: [u8; 4]) {
        let [kind, place, how, value] = words;
        match kind % 16 {
            0..=6 => self.submit(place, how),
            7..=13 if !self.in_flight.is_empty() => self.answer(place, how, value),
            14 => self.observe(u64::from(place) % BLOCKS, value),
            15 if self.blocks[0].crashes.len() < 3 => self.crash(),
            _ => {}
        }
        for number in 0..BLOCKS {
            self.compare_legal(number);
        }
    }

    fn submit(&mut self, place: u8, how: u8) {
        let block = u64::from(place) % BLOCKS;
        let count = if place >= 192 { BLOCKS - block } else { 1 };
        let fua = place & 8 == 8 && place & 16 == 16;
        let op = match how % 16 {
            0..=4 => GuestOp::Read { block, count },
            5..=10 => GuestOp::Write { block, count, fua },
            11 => GuestOp::WriteZeroes {
                block,
                count,
                may_unmap: false,
                fua,
            },
            12 | 13 => GuestOp::Discard { block, count, fua },
            _ => GuestOp::Flush,
        };
        let of = |number: u64| &self.blocks[usize::try_from(number).unwrap()];
        let full = op.is_change()
            && op
                .blocks()
                .any(|number| of(number).writes.len() >= WRITES_MAX);
        let zeroes = op.is_change() && !matches!(op, GuestOp::Write { .. });
        let again = zeroes
            && self.unique
            && op.blocks().any(|number| {
                of(number)
                    .writes
                    .iter()
                    .any(|write| write.value == Value::Zero)
            });
        if full || again || self.in_flight.len() >= 5 {
            return;
        }
        let id = self.oracle.submit(&op);
        let submit = self.tick();
        self.in_flight.push((id, op, submit));
        if !op.is_change() {
            return;
        }
        let stamps = self.oracle.stamps(id);
        let keeps_old = self.oracle.settings().discard_reads == DiscardReads::OldOrZero;
        for (number, index) in op.blocks().zip(0..) {
            let value = stamps
                .get(index)
                .map_or(Value::Zero, |stamp| Value::Stamp(*stamp));
            let discard = matches!(op, GuestOp::Discard { .. }) && keeps_old;
            let kind = if discard { Kind::Discard } else { Kind::Write };
            let block = &mut self.blocks[usize::try_from(number).unwrap()];
            let era = block.crashes.len();
            block.writes.push(Write {
                value,
                kind,
                fua: op.is_fua(),
                submit,
                end: u64::MAX,
                state: State::InFlight,
                era,
            });
        }
    }

    fn answer(&mut self, place: u8, how: u8, value: u8) {
        let (id, op, submit) = self
            .in_flight
            .remove(usize::from(place) % self.in_flight.len());
        let ok = !how.is_multiple_of(8);
        let end = self.tick();
        if matches!(op, GuestOp::Read { .. }) && ok {
            return self.answer_read(id, op, submit, value);
        }
        self.oracle
            .ack(id, if ok { Outcome::Ok } else { Outcome::Err })
            .unwrap();
        let state = if ok { State::Ok } else { State::Failed };
        for (block, number) in self.blocks.iter_mut().zip(0..) {
            if op == GuestOp::Flush {
                block.flushes.push(Flush {
                    submit,
                    end,
                    ok,
                    era: block.crashes.len(),
                });
            } else if op.is_change() && op.blocks().contains(&number) {
                let write = block
                    .writes
                    .iter_mut()
                    .find(|write| write.submit == submit)
                    .unwrap();
                (write.end, write.state) = (end, state);
            }
        }
    }

    /// Each block of the read is asked alone, then the whole is answered with accepted values.
    fn answer_read(&mut self, id: OpId, op: GuestOp, submit: u64, choice: u8) {
        let end = self.now;
        let mut answer: Vec<Value> = Vec::new();
        let filler: Vec<Vec<Value>> = op
            .blocks()
            .map(|number| self.accepted(number, submit, end))
            .collect();
        for (number, index) in op.blocks().zip(0usize..) {
            for value in self.candidates(number) {
                let expected = filler[index].contains(&value);
                let mut values: Vec<Value> = filler.iter().map(|accepted| accepted[0]).collect();
                values[index] = value;
                let found = self.oracle.clone().ack(id, Outcome::Read(values));
                self.judge(
                    number,
                    value,
                    expected,
                    found.is_ok(),
                    &format!("read {submit}..{end}"),
                );
            }
            let accepted = &filler[index];
            answer.push(accepted[usize::from(choice) % accepted.len()]);
        }
        self.oracle.ack(id, Outcome::Read(answer.clone())).unwrap();
        for (number, value) in op.blocks().zip(answer) {
            self.note(number, value, submit, end);
        }
    }

    fn observe(&mut self, number: u64, choice: u8) {
        let (submit, end) = (self.tick(), self.tick());
        let accepted = self.accepted(number, submit, end);
        for value in self.candidates(number) {
            let found = self.oracle.clone().observe(number, value).is_ok();
            self.judge(
                number,
                value,
                accepted.contains(&value),
                found,
                &format!("observe {submit}"),
            );
        }
        let value = accepted[usize::from(choice) % accepted.len()];
        self.oracle.observe(number, value).unwrap();
        self.note(number, value, submit, end);
    }

    fn crash(&mut self) {
        let (at, settled) = (self.tick(), self.tick());
        self.in_flight.clear();
        self.oracle.crash();
        for block in &mut self.blocks {
            for write in block
                .writes
                .iter_mut()
                .filter(|write| write.state == State::InFlight)
            {
                (write.end, write.state) = (at, State::Lost);
            }
            block.crashes.push(settled);
        }
    }

    fn note(&mut self, number: u64, value: Value, submit: u64, end: u64) {
        let block = &mut self.blocks[usize::try_from(number).unwrap()];
        block.reads.push(Read {
            value,
            submit,
            end,
            era: block.crashes.len(),
        });
        // Trying every order gets slow: the block is no longer compared.
        let retired = block.reads.len() > READS_MAX;
        self.retired[usize::try_from(number).unwrap()] |= retired;
        assert!(
            !self.unique || retired || self.legal(number).is_some(),
            "what was accepted has an explanation"
        );
    }

    fn candidates(&self, number: u64) -> Vec<Value> {
        let block = &self.blocks[usize::try_from(number).unwrap()];
        let mut all = vec![
            Value::Zero,
            Value::Fill(number),
            Value::Fill(number + 1),
            Value::Other(1),
        ];
        all.extend(block.writes.iter().map(|write| write.value));
        all.dedup();
        all
    }

    fn accepted(&self, number: u64, submit: u64, end: u64) -> Vec<Value> {
        let mut block = self.blocks[usize::try_from(number).unwrap()].clone();
        if self.retired[usize::try_from(number).unwrap()] {
            let ok = |value: &Value| self.oracle.clone().observe(number, *value).is_ok();
            return self.candidates(number).into_iter().filter(ok).collect();
        }
        let era = block.crashes.len();
        let mut explained = |value: &Value| {
            block.reads.push(Read {
                value: *value,
                submit,
                end,
                era,
            });
            let ok = !block.explanations().is_empty();
            block.reads.pop();
            ok
        };
        self.candidates(number)
            .into_iter()
            .filter(|value| explained(value))
            .collect()
    }

    fn legal(&self, number: u64) -> Option<Vec<Value>> {
        let block = &self.blocks[usize::try_from(number).unwrap()];
        let explanations = block.explanations();
        let era = block.crashes.len();
        let of = |attribution: &Attribution| block.legal(attribution, era, self.now + 1);
        (!explanations.is_empty()).then(|| explanations.iter().flat_map(of).collect())
    }

    fn compare_legal(&mut self, number: u64) {
        let Some(expected) = self
            .legal(number)
            .filter(|_| !self.retired[usize::try_from(number).unwrap()])
        else {
            return;
        };
        let found = self.oracle.legal(number);
        for value in self.candidates(number) {
            self.judge(
                number,
                value,
                expected.contains(&value),
                found.allows(value),
                "after a crash",
            );
        }
    }

    fn judge(&mut self, number: u64, value: Value, expected: bool, found: bool, what: &str) {
        if self.retired[usize::try_from(number).unwrap()] {
            return;
        }
        self.asked += 1;
        self.refused += u32::from(!expected);
        if found && !expected && !self.unique {
            self.lax += 1;
            return;
        }
        assert_eq!(
            found,
            expected,
            "{what}: block {number} shows {value:?}: the oracle says {found}, the contract {expected}\n{}\n{:#?}",
            self.oracle.history(),
            self.blocks[usize::try_from(number).unwrap()]
        );
    }
}

fn settings() -> impl Strategy<Value = OracleSettings> {
    let promise = prop_oneof![
        Just(Promise::AtAck),
        Just(Promise::AtFlush),
        Just(Promise::AtFlush)
    ];
    (promise, any::<bool>(), any::<bool>()).prop_map(|(promise, covers, zero)| OracleSettings {
        flush_retry: if covers {
            FlushRetry::Covers
        } else {
            FlushRetry::Forgets
        },
        discard_reads: if zero {
            DiscardReads::Zero
        } else {
            DiscardReads::OldOrZero
        },
        initial: Initial::Fill,
        ..OracleSettings::new(BLOCKS, promise)
    })
}

fn steps() -> impl Strategy<Value = Vec<[u8; 4]>> {
    proptest::collection::vec(any::<[u8; 4]>(), 1..40)
}

fn config(few: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases(few))
    }
}

fn cases(few: u32) -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(few)
}

#[test]
fn oracle_with_unique_values_accepts_exactly_what_the_contract_allows() {
    let (asked, refused) = (Cell::new(0), Cell::new(0));
    proptest!(config(3000), |(settings in settings(), steps in steps())| {
        let mut run = Run::new(settings, true);
        for step in steps {
            run.step(step);
        }
        asked.set(asked.get() + u64::from(run.asked));
        refused.set(refused.get() + u64::from(run.refused));
    });
    println!("figure oracle_answers_compared {}", asked.get());
    assert!(
        refused.get() * 10 > asked.get(),
        "both accept and refuse: {} of {}",
        refused.get(),
        asked.get()
    );
}

/// Zeroes of several origins cannot be told apart, so the oracle may accept a little more than the
/// reference, which tries every assignment of reads to origins. It must never accept less, and the
/// difference is bounded.
#[test]
fn oracle_with_many_zeroes_never_refuses_what_the_contract_allows() {
    let (asked, lax) = (Cell::new(0), Cell::new(0));
    proptest!(config(1500), |(settings in settings(), steps in steps(), fill in any::<bool>())| {
        let initial = if fill { Initial::Fill } else { Initial::Zero };
        let mut run = Run::new(OracleSettings { initial, ..settings }, false);
        for step in steps {
            run.step(step);
        }
        asked.set(asked.get() + run.asked);
        lax.set(lax.get() + run.lax);
    });
    let (asked, lax) = (asked.get(), lax.get());
    println!("figure oracle_zero_answers {asked}\nfigure oracle_zero_lax {lax}");
    assert!(u64::from(lax) * 500 <= u64::from(asked), "{lax} of {asked}");
}
