//! Why a value that was read is illegal: which rule it breaks, what was legal, what guaranteed it.

use super::block::{Block, Kind, Version, Why};
use super::history::{Ended, OpId, Record};
use super::live::ReadSpan;
use super::violation::{Detail, Rule, Violation};
use super::{Oracle, Value};

impl Oracle {
    pub(super) fn unexplained(&self, number: u64, value: Value, span: ReadSpan) -> Violation {
        let block = self.as_guaranteed(number);
        let first = is_first_read(&block);
        let legal = readable(&block, span, first);
        let describe = |value: &Value| {
            self.history
                .describe_value(self.settings.run, number, value)
        };
        Violation::new(Detail {
            rule: self.rule(number, &block, value, first),
            promise: self.settings.promise,
            block: number,
            found: Some(value),
            reads: describe(&value),
            expected: legal.iter().map(describe).collect::<Vec<_>>().join(" or "),
            legal,
            why: self.why(&block, span, first),
        })
    }

    pub(super) fn wrong_answer(&self, block: u64, count: u64, found: usize) -> Violation {
        Violation::new(Detail {
            rule: Rule::WrongAnswer,
            promise: self.settings.promise,
            block,
            found: None,
            legal: Vec::new(),
            reads: format!("{found} blocks"),
            expected: format!("{count} blocks"),
            why: "a read returns as many blocks as it asked for".to_owned(),
        })
    }

    fn rule(&self, number: u64, block: &Block, value: Value, first: bool) -> Rule {
        match value {
            Value::Torn { .. } => Rule::TornBlock,
            Value::Stamp(stamp) if stamp.run != self.settings.run => Rule::Foreign,
            Value::Stamp(stamp) if stamp.block != number => Rule::Misdirected,
            Value::Fill(of) if of != number => Rule::Misdirected,
            _ if block.writes == 0 => Rule::UntouchedChanged,
            Value::Other(_) => Rule::Corrupt,
            Value::Stamp(stamp) => match self.history.get(OpId(stamp.op)) {
                None => Rule::Corrupt,
                Some(record) => self.past(record, first),
            },
            Value::Fill(_) | Value::Zero => self.past_content(value, block, number, first),
        }
    }

    /// Data of a known operation that is no longer legal.
    fn past(&self, record: &Record, first: bool) -> Rule {
        match record.ended {
            Ended::Crash if record.era + 1 < self.era || !first => Rule::GhostWrite,
            _ if first => Rule::LostWrite,
            _ if record.era < self.era => Rule::Resurrected,
            _ => Rule::StaleRead,
        }
    }

    fn past_content(&self, value: Value, block: &Block, number: u64, first: bool) -> Rule {
        let was_there = value == self.history.initial(number)
            || block
                .versions
                .iter()
                .any(|version| block.may_be(version, value));
        match () {
            () if !was_there && value != Value::Zero => Rule::Corrupt,
            () if first => Rule::LostWrite,
            () if self.era > 0 => Rule::Resurrected,
            () => Rule::StaleRead,
        }
    }

    fn why(&self, block: &Block, span: ReadSpan, first: bool) -> String {
        if block.writes == 0 {
            return "the guest never wrote this block".to_owned();
        }
        if !first && let Some(version) = block.in_place(span) {
            let what = match version.kind {
                Kind::Base => self.base(block),
                Kind::Read => "a read had returned zeroes".to_owned(),
                _ => self.history.describe(version.op),
            };
            return format!(
                "{what} was in place when the read was submitted at {}",
                span.submit
            );
        }
        match block.floor() {
            Some((op, why)) => self.guarantee(op, why),
            None => "nothing else was ever written to it".to_owned(),
        }
    }

    fn base(&self, block: &Block) -> String {
        match block.versions[0].guaranteed {
            Some(Why::Settled) => {
                let crash = self.history.crashes().last().map_or(0, |crash| crash.at);
                format!("what the crash at {crash} left, and a read settled,")
            }
            _ => "the initial content".to_owned(),
        }
    }

    /// "#2 `write 0 1` (submitted at 3, acked at 41) was covered by flush #3 submitted at 43".
    fn guarantee(&self, op: OpId, why: Why) -> String {
        let what = self.history.describe(op);
        match why {
            Why::Ack => format!("{what} is guaranteed by its ack"),
            Why::Fua => format!("{what} is guaranteed by fua"),
            Why::Flush(flush) => {
                let submit = self.history.get(flush).map_or(0, |record| record.submit);
                format!("{what} is covered by flush {flush} submitted at {submit}")
            }
            Why::Initial | Why::Settled => format!("{what} is what was there"),
        }
    }
}

/// Whether this is the read that settles the block after a crash.
fn is_first_read(block: &Block) -> bool {
    let unread = |base: &Version| base.guaranteed == Some(Why::Settled) && base.seen == base.submit;
    block
        .versions
        .first()
        .is_some_and(|base| base.kind == Kind::Base && unread(base))
}

/// What the read may have returned, as far as it can be told without trying.
fn readable(block: &Block, span: ReadSpan, first: bool) -> Vec<Value> {
    let mut values = Vec::new();
    for version in &block.versions {
        for value in block.values(version) {
            let mut trial = block.clone();
            if !values.contains(&value) && (first || trial.read(value, span).is_ok()) {
                values.push(value);
            }
        }
    }
    values
}
