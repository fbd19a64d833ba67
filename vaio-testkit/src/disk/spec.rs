//! [`CrashSpec`]: what survives a crash, in words that a plan can hold and a timeline can print.
//!
//! `cache: keep w3,w5[0..2]; backing: drop z7` names mutations by kind and number on their disk,
//! and parts of them by block within the mutation. A name that means nothing at the moment of the
//! crash is ignored, and a disk that is not named keeps everything: so a specification outlives
//! small edits of what it was made for.

use std::{fmt, str::FromStr};

use vaio_core::Error;

/// Disks and pieces that one specification names at most.
const NAMES_MAX: usize = 65_536;

/// What survives on each disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct CrashSpec {
    /// Name of the disk, and what it keeps. A disk that is absent keeps everything.
    pub disks: Vec<(String, Survivors)>,
}

/// What survives on one disk, of what was not durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Survivors {
    /// These only.
    Keep(Vec<Piece>),
    /// All but these.
    Drop(Vec<Piece>),
}

/// A mutation, or some of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    /// `w`, `z` or `d`, for the reader only: the number says which.
    pub letter: char,
    /// Number of the mutation on its disk.
    pub number: u64,
    /// First block within the mutation and the one past the last; `None`: all.
    pub blocks: Option<(u64, u64)>,
}

impl Piece {
    /// Whether it names that block of that mutation.
    pub fn names(&self, number: u64, block: u64) -> bool {
        self.number == number
            && self
                .blocks
                .is_none_or(|(from, to)| (from..to).contains(&block))
    }
}

impl CrashSpec {
    /// What survives on a disk, if it is named.
    pub fn of(&self, disk: &str) -> Option<&Survivors> {
        self.disks
            .iter()
            .find(|(name, _)| name == disk)
            .map(|(_, survivors)| survivors)
    }
}

impl fmt::Display for CrashSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (disk, survivors)) in self.disks.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            write!(f, "{separator}{disk}: {survivors}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Survivors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, pieces) = match self {
            Self::Keep(pieces) if pieces.is_empty() => return f.write_str("keep none"),
            Self::Drop(pieces) if pieces.is_empty() => return f.write_str("keep all"),
            Self::Keep(pieces) => ("keep", pieces),
            Self::Drop(pieces) => ("drop", pieces),
        };
        f.write_str(word)?;
        for (number, piece) in pieces.iter().enumerate() {
            write!(f, "{}{piece}", if number == 0 { " " } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.letter, self.number)?;
        match self.blocks {
            Some((from, to)) => write!(f, "[{from}..{to}]"),
            None => Ok(()),
        }
    }
}

impl FromStr for CrashSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts = text
            .split(';')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        let mut disks = Vec::new();
        for part in parts.take(NAMES_MAX) {
            let (name, survivors) = part.split_once(": ").ok_or_else(|| bad(part))?;
            disks.push((name.trim().to_owned(), survivors.parse()?));
        }
        Ok(Self { disks })
    }
}

impl FromStr for Survivors {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (word, rest) = text.trim().split_once(' ').ok_or_else(|| bad(text))?;
        let pieces = || -> Result<Vec<Piece>, Error> {
            rest.split(',')
                .take(NAMES_MAX)
                .map(|piece| piece.trim().parse())
                .collect()
        };
        match (word, rest.trim()) {
            ("keep", "none") | ("drop", "all") => Ok(Self::Keep(Vec::new())),
            ("keep", "all") | ("drop", "none") => Ok(Self::Drop(Vec::new())),
            ("keep", _) => Ok(Self::Keep(pieces()?)),
            ("drop", _) => Ok(Self::Drop(pieces()?)),
            _ => Err(bad(text)),
        }
    }
}

impl FromStr for Piece {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || bad(text);
        let (name, blocks) = match text.split_once('[') {
            None => (text, None),
            Some((name, range)) => {
                let range = range.strip_suffix(']').ok_or_else(wrong)?;
                let (from, to) = range.split_once("..").ok_or_else(wrong)?;
                let number = |text: &str| text.parse().map_err(|_| wrong());
                (name, Some((number(from)?, number(to)?)))
            }
        };
        let letter = name
            .chars()
            .next()
            .filter(|c| "wzd".contains(*c))
            .ok_or_else(wrong)?;
        let number = name[1..].parse().map_err(|_| wrong())?;
        Ok(Self {
            letter,
            number,
            blocks,
        })
    }
}

fn bad(text: &str) -> Error {
    Error::config(format!(
        "a crash is written like \"disk: keep w3,w5[0..2]; other: drop z7\", text={text:?}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_spec_parses_to_itself() {
        for text in [
            "cache: keep w3,w5[0..2]; backing: drop z7",
            "cache: keep none; backing: keep all",
            "a: drop d1[3..4],w2",
            "",
        ] {
            assert_eq!(text.parse::<CrashSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn garbage_is_refused_with_an_example() {
        for text in [
            "cache",
            "cache: keep",
            "cache: lose w1",
            "c: keep x1",
            "c: keep w",
            "c: keep w1[0-2]",
            "c: keep w1[0..2",
            "c: keep é1",
        ] {
            let error = text.parse::<CrashSpec>().unwrap_err().to_string();
            assert!(error.contains("keep w3,w5[0..2]"), "{text}: {error}");
        }
    }
}
