//! For each version of each block the span of moments at which the source may show it.
//!
//! Made from the history alone, in one go: what the checks of [`super::ordered`] look up. The spans
//! of a block stand together, the initial content first, then one per write in order of submission,
//! then what crashes left.

use vaio_core::{DiscardReads, Promise};

use super::OracleSettings;
use super::history::{Ended, History, Moment, NEVER, Record};
use crate::stamp::Value;
use crate::workload::GuestOp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Zero,
    Fill,
    Op(u32),
}

/// Moments, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub low: Moment,
    pub high: Moment,
    content: Content,
}

/// A version while the table is made.
#[derive(Clone, Copy)]
struct Version {
    content: Content,
    era: u32,
    base: bool,
    submit: Moment,
    end: Moment,
    acked: bool,
    /// Latest submission of a read that returned it.
    seen: Moment,
    /// When older versions stop being shown; `NEVER` for what removes nothing.
    removes: Moment,
}

#[derive(Clone, Debug)]
pub(super) struct SpanTable {
    /// Where each block's spans begin; one more than there are blocks.
    starts: Vec<u32>,
    spans: Vec<Span>,
}

impl SpanTable {
    pub(super) fn new(history: &History, settings: &OracleSettings) -> Self {
        let blocks = usize::try_from(settings.blocks).expect("a disk fits memory");
        let initial = if history.filled {
            Content::Fill
        } else {
            Content::Zero
        };
        let first = Version {
            content: initial,
            era: 0,
            base: true,
            submit: 0,
            end: 0,
            acked: true,
            seen: 0,
            removes: 0,
        };
        let mut versions: Vec<Vec<Version>> = (0..blocks).map(|_| vec![first]).collect();
        add_writes(&mut versions, history, settings);
        add_crashes(&mut versions, history, settings.run);
        add_reads(&mut versions, history, settings.run);
        let mut table = Self {
            starts: Vec::with_capacity(blocks + 1),
            spans: Vec::new(),
        };
        for of_block in &versions {
            table.starts.push(table.len());
            table.spans.extend(spans(of_block));
        }
        table.starts.push(table.len());
        table
    }

    fn len(&self) -> u32 {
        u32::try_from(self.spans.len()).expect("a run has fewer versions")
    }

    pub(super) fn blocks(&self) -> usize {
        self.starts.len() - 1
    }

    fn of(&self, block: u64) -> &[Span] {
        let index = usize::try_from(block).expect("the block is in the table");
        &self.spans[self.starts[index] as usize..self.starts[index + 1] as usize]
    }

    pub(super) fn is_untouched(&self, block: u64) -> bool {
        let spans = self.of(block);
        spans.iter().all(|span| span.content == spans[0].content)
    }

    /// The span of a value that has one.
    pub(super) fn only(&self, block: u64, value: &Value, run: u32) -> Option<Span> {
        let content = Content::of(value, block, run)?;
        let mut found = self.of(block).iter().filter(|span| span.content == content);
        let span = found.next()?;
        found.next().is_none().then_some(*span)
    }

    /// The spans of a value, merged where they touch, in order.
    pub(super) fn union(&self, block: u64, value: &Value, run: u32) -> Vec<Span> {
        let Some(content) = Content::of(value, block, run) else {
            return Vec::new();
        };
        let mut found: Vec<Span> = self
            .of(block)
            .iter()
            .filter(|span| span.content == content)
            .copied()
            .collect();
        found.sort_unstable_by_key(|span| (span.low, span.high));
        let mut merged: Vec<Span> = Vec::new();
        for span in found {
            match merged.last_mut() {
                Some(last) if span.low <= last.high.saturating_add(1) => {
                    last.high = last.high.max(span.high);
                }
                _ => merged.push(span),
            }
        }
        merged
    }
}

fn at(versions: &mut [Vec<Version>], block: u64) -> &mut Vec<Version> {
    &mut versions[usize::try_from(block).expect("the block is in the table")]
}

fn add_writes(versions: &mut [Vec<Version>], history: &History, settings: &OracleSettings) {
    for (id, record) in history.ops().filter(|(_, record)| record.op.is_change()) {
        let optional = matches!(record.op, GuestOp::Discard { .. })
            && settings.discard_reads == DiscardReads::OldOrZero;
        let content = if let GuestOp::Write { .. } = record.op {
            Content::Op(id.0)
        } else {
            Content::Zero
        };
        let removes = match settings.promise {
            _ if optional || !record.is_ok() => NEVER,
            Promise::OrderedByFlush if !record.op.is_fua() => covered(history, record, settings),
            _ => record.end,
        };
        let version = Version {
            content,
            era: record.era,
            base: false,
            submit: record.submit,
            end: record.end,
            // A discard is not known to have taken effect, so no read proves that it is older.
            acked: record.is_ok() && !optional,
            seen: record.submit,
            removes,
        };
        record
            .op
            .blocks()
            .for_each(|block| at(versions, block).push(version));
    }
}

/// When a flush first made an acknowledged write guaranteed.
fn covered(history: &History, write: &Record, settings: &OracleSettings) -> Moment {
    let flushes = || {
        history
            .ops()
            .map(|(_, record)| record)
            .filter(|record| record.op == GuestOp::Flush && record.era == write.era)
    };
    let retry_covers = settings.flush_retry == vaio_core::FlushRetry::Covers;
    let spoilt = |flush: &Record| {
        let between = |failed: &Record| {
            failed.ended == Ended::Err && write.end < failed.end && failed.end < flush.end
        };
        !retry_covers && flushes().any(between)
    };
    flushes()
        .filter(|flush| flush.is_ok() && write.end < flush.submit && !spoilt(flush))
        .map(|flush| flush.end)
        .min()
        .unwrap_or(NEVER)
}

/// What a crash left is new, submitted and guaranteed there; older content was shown until then.
fn add_crashes(versions: &mut [Vec<Version>], history: &History, run: u32) {
    for (crash, era) in history.crashes().iter().zip(1u32..) {
        for (block, values) in &crash.left {
            for value in values {
                let Some(content) = Content::of(value, *block, run) else {
                    continue;
                };
                at(versions, *block).push(Version {
                    content,
                    era,
                    base: true,
                    submit: crash.settled,
                    end: crash.settled,
                    acked: true,
                    seen: crash.settled,
                    removes: crash.at,
                });
            }
        }
    }
}

/// A read tells which version was there, where one alone has that value, and settles what a crash
/// left.
fn add_reads(versions: &mut [Vec<Version>], history: &History, run: u32) {
    let mut reads: Vec<(u64, Value, Moment, Moment)> = Vec::new();
    for (_, record) in history.ops() {
        if let (GuestOp::Read { .. }, Ended::Ok(values)) = (&record.op, &record.ended) {
            let seen = record.op.blocks().zip(values.iter());
            reads.extend(seen.map(|(block, value)| (block, *value, record.submit, record.end)));
        }
    }
    let observed = history.observed.iter();
    reads.extend(observed.map(|seen| (seen.block, seen.value, seen.submit, seen.submit + 1)));
    for (block, value, submit, end) in reads {
        let crashes = history
            .crashes()
            .iter()
            .take_while(|crash| crash.at < submit)
            .count();
        let era = u32::try_from(crashes).expect("few crashes");
        let Some(content) = Content::of(&value, block, run) else {
            continue;
        };
        let of_block = at(versions, block);
        let mut same = (0..of_block.len()).filter(|index| {
            let version = &of_block[*index];
            version.era == era && version.content == content && version.submit < end
        });
        let (Some(found), None) = (same.next(), same.next()) else {
            continue;
        };
        of_block[found].seen = of_block[found].seen.max(submit);
        if of_block[found].base {
            of_block.retain(|version| {
                !(version.base && version.era == era && version.content != content)
            });
        }
    }
}

/// Each version is shown until the first removal by something after it.
fn spans(versions: &[Version]) -> Vec<Span> {
    let mut high: Vec<Moment> = vec![NEVER; versions.len()];
    loop {
        let mut grew = false;
        for (index, version) in versions.iter().enumerate() {
            let is_after = |other: &Version| {
                version.end < other.submit || (version.acked && version.end < other.seen)
            };
            // What removes the later one removes this one.
            let least = (0..versions.len())
                .filter(|other| *other != index && is_after(&versions[*other]))
                .map(|other| versions[other].removes.min(high[other]))
                .fold(high[index], Moment::min);
            grew |= least < high[index];
            high[index] = least;
        }
        if !grew {
            break;
        }
    }
    let span = |(version, high): (&Version, Moment)| Span {
        low: version.submit,
        high,
        content: version.content,
    };
    versions.iter().zip(high).map(span).collect()
}
