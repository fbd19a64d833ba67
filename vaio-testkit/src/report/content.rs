//! [`Labels`]: what blocks hold, in a few words: whose data, or whose write of the filter's own.

use std::{collections::BTreeMap, fmt::Write as _};

use bytes::Bytes;

use crate::stamp::{Check, Stamp, Value};

/// Remembers what was written where, so that a read can name the write that it returns.
#[derive(Debug, Default)]
pub(super) struct Labels {
    /// The lower device holds the guest's data in another form.
    is_coded: bool,
    /// By disk and block: what was written there, oldest first, and by which IO.
    writers: BTreeMap<(usize, u64), Vec<(Bytes, String)>>,
}

impl Labels {
    pub(super) fn new(is_coded: bool) -> Self {
        Self {
            is_coded,
            ..Self::default()
        }
    }

    /// What a write named `name` writes.
    pub(super) fn of_write(
        &mut self,
        disk: usize,
        first: u64,
        blocks: &[Bytes],
        name: &str,
    ) -> Vec<String> {
        for (block, bytes) in (first..).zip(blocks) {
            let writers = self.writers.entry((disk, block)).or_default();
            writers.push((bytes.clone(), name.to_owned()));
        }
        let own = self.own(disk);
        let label = |(block, bytes): (u64, &Bytes)| {
            let value = Value::decode(bytes, Check::Full);
            match value {
                Value::Other(_) => own.to_owned(),
                value => value.label(block),
            }
        };
        (first..).zip(blocks).map(label).collect()
    }

    /// What a read returned.
    pub(super) fn of_read(&self, disk: usize, first: u64, blocks: &[Bytes]) -> Vec<String> {
        let label = |(block, bytes): (u64, &Bytes)| {
            let value = Value::decode(bytes, Check::Full);
            match value {
                Value::Other(_) => match self.writer(disk, block, bytes) {
                    Some(name) => format!("{}({name})", self.own(disk)),
                    None => "other bytes".to_owned(),
                },
                value => value.label(block),
            }
        };
        (first..).zip(blocks).map(label).collect()
    }

    fn writer(&self, disk: usize, block: u64, bytes: &Bytes) -> Option<&str> {
        let writers = self.writers.get(&(disk, block))?;
        let found = writers.iter().rev().find(|(there, _)| there == bytes)?;
        Some(&found.1)
    }

    /// What bytes are called that carry no stamp.
    fn own(&self, disk: usize) -> &'static str {
        if self.is_coded && disk == 0 {
            "coded"
        } else {
            "meta"
        }
    }
}

/// The data, block by block.
pub(super) fn blocks_of(data: &Bytes, block: usize) -> Vec<Bytes> {
    (0..data.len() / block)
        .map(|at| data.slice(at * block..(at + 1) * block))
        .collect()
}

/// Stamps of the guest in these blocks.
pub(super) fn stamps_of(blocks: &[Bytes]) -> Vec<Stamp> {
    blocks
        .iter()
        .filter_map(|bytes| match Value::decode(bytes, Check::Header) {
            Value::Stamp(stamp) => Some(stamp),
            _ => None,
        })
        .collect()
}

/// Blocks of which a hover shows the beginning.
const OWN_MAX: usize = 4;
/// Bytes of that.
const OWN_BYTES: usize = 48;

/// How blocks begin that carry no stamp of a guest: a filter's vendor knows the bytes.
pub(super) fn own_of(first: u64, blocks: &[Bytes]) -> Vec<(u64, String)> {
    (first..)
        .zip(blocks)
        .filter(|(_, bytes)| matches!(Value::decode(bytes, Check::Full), Value::Other(_)))
        .take(OWN_MAX)
        .map(|(block, bytes)| {
            let begin = &bytes[..bytes.len().min(OWN_BYTES)];
            let mut text = String::new();
            for (at, byte) in begin.iter().enumerate() {
                let gap = if at > 0 && at % 8 == 0 { " " } else { "" };
                let _ = write!(text, "{gap}{byte:02x}");
            }
            (block, text)
        })
        .collect()
}

/// `meta #1 zeroes x3`.
pub(super) fn joined(labels: &[String]) -> String {
    let mut runs: Vec<(&str, usize)> = Vec::new();
    for label in labels {
        match runs.last_mut() {
            Some((last, count)) if *last == label => *count += 1,
            _ => runs.push((label, 1)),
        }
    }
    let words: Vec<_> = runs
        .into_iter()
        .map(|(label, count)| match count {
            1 => label.to_owned(),
            _ => format!("{label} x{count}"),
        })
        .collect();
    words.join(" ")
}
