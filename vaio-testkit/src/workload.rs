//! What a guest does: operations, their text, the alphabet of exhaustive runs, random workloads.
//!
//! The text of an operation is what plans and failure reports show; it reads back as the same
//! operation.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// One step of a guest. Extents are in logical blocks; a count of 0 is a legal, empty IO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GuestOp {
    /// `read 0 1`
    Read {
        /// First block.
        block: u64,
        /// Blocks.
        count: u64,
    },
    /// `write 0 1`, `write 0 1 fua`
    Write {
        /// First block.
        block: u64,
        /// Blocks.
        count: u64,
        /// Durable at its ack.
        fua: bool,
    },
    /// `write-zeroes 0 1`, `write-zeroes 0 1 may-unmap fua`
    WriteZeroes {
        /// First block.
        block: u64,
        /// Blocks.
        count: u64,
        /// May deallocate.
        may_unmap: bool,
        /// Durable at its ack.
        fua: bool,
    },
    /// `discard 0 1`, `discard 0 1 fua`
    Discard {
        /// First block.
        block: u64,
        /// Blocks.
        count: u64,
        /// Durable at its ack.
        fua: bool,
    },
    /// `flush`
    Flush,
    /// `idle`: the guest waits, background work runs.
    Idle,
}

impl GuestOp {
    /// The blocks that it touches; empty for a flush and for idling.
    pub fn blocks(&self) -> Range<u64> {
        match *self {
            Self::Read { block, count }
            | Self::Write { block, count, .. }
            | Self::WriteZeroes { block, count, .. }
            | Self::Discard { block, count, .. } => block..block.saturating_add(count),
            Self::Flush | Self::Idle => 0..0,
        }
    }

    /// Whether it lies on a disk of `blocks`.
    pub fn is_within(&self, blocks: u64) -> bool {
        let extent = self.blocks();
        extent.start <= blocks && extent.end <= blocks
    }

    /// Whether it may change what a block shows.
    pub fn is_change(&self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::WriteZeroes { .. } | Self::Discard { .. }
        )
    }

    /// Whether it asks to be durable at its ack.
    pub fn is_fua(&self) -> bool {
        matches!(
            self,
            Self::Write { fua: true, .. }
                | Self::WriteZeroes { fua: true, .. }
                | Self::Discard { fua: true, .. }
        )
    }

    /// Its name in the text form.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::WriteZeroes { .. } => "write-zeroes",
            Self::Discard { .. } => "discard",
            Self::Flush => "flush",
            Self::Idle => "idle",
        }
    }

    /// The alphabet of exhaustive runs over `blocks` (3 or 4), from simple to complex, so that the
    /// first workload that fails is the one that is easiest to understand.
    pub fn alphabet(blocks: u64) -> Vec<Self> {
        let all = blocks.min(3);
        let mut ops = vec![
            Self::Flush,
            Self::Write {
                block: 0,
                count: 1,
                fua: false,
            },
            Self::Idle,
            Self::Write {
                block: 1,
                count: 1,
                fua: false,
            },
            Self::Read { block: 0, count: 1 },
            Self::Write {
                block: 0,
                count: 1,
                fua: true,
            },
            Self::Write {
                block: 0,
                count: all,
                fua: false,
            },
            Self::WriteZeroes {
                block: 0,
                count: 1,
                may_unmap: false,
                fua: false,
            },
            Self::Discard {
                block: 0,
                count: 1,
                fua: false,
            },
            Self::Read {
                block: 0,
                count: all,
            },
        ];
        ops.retain(|op| op.is_within(blocks));
        // On a disk of one block the longest extent is the shortest.
        let mut distinct = Vec::with_capacity(ops.len());
        for op in ops {
            if !distinct.contains(&op) {
                distinct.push(op);
            }
        }
        distinct
    }
}

impl fmt::Display for GuestOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        if let Self::Flush | Self::Idle = self {
            return Ok(());
        }
        let extent = self.blocks();
        write!(f, " {} {}", extent.start, extent.end - extent.start)?;
        if let Self::WriteZeroes {
            may_unmap: true, ..
        } = self
        {
            f.write_str(" may-unmap")?;
        }
        if self.is_fua() {
            f.write_str(" fua")?;
        }
        Ok(())
    }
}

/// A line that is not a guest operation, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a guest operation: {reason} line={line:?}")]
pub struct ParseOpError {
    line: String,
    reason: String,
}

impl FromStr for GuestOp {
    type Err = ParseOpError;

    fn from_str(line: &str) -> Result<Self, ParseOpError> {
        parse(line).map_err(|reason| ParseOpError {
            line: line.to_owned(),
            reason,
        })
    }
}

fn parse(line: &str) -> Result<GuestOp, String> {
    let mut words = line.split_whitespace();
    let name = words.next().ok_or("the line is empty")?;
    if let "flush" | "idle" = name {
        let op = if name == "flush" {
            GuestOp::Flush
        } else {
            GuestOp::Idle
        };
        return words.next().map_or(Ok(op), |word| {
            Err(format!("nothing may follow {name}, found {word:?}"))
        });
    }
    if !matches!(name, "read" | "write" | "write-zeroes" | "discard") {
        return Err(format!(
            "unknown name {name:?}; known: read, write, write-zeroes, discard, flush, idle"
        ));
    }
    let mut number = |what: &str| {
        let word = words
            .next()
            .ok_or(format!("{name} needs a first block and a count"))?;
        word.parse::<u64>()
            .map_err(|_| format!("the {what} is not a number: {word:?}"))
    };
    let (block, count) = (number("first block")?, number("count")?);
    block
        .checked_add(count)
        .ok_or("the extent passes the largest block number")?;
    let (mut may_unmap, mut fua) = (false, false);
    for word in words {
        match word {
            "fua" if name != "read" && !fua => fua = true,
            "may-unmap" if name == "write-zeroes" && !may_unmap => may_unmap = true,
            other => return Err(format!("{name} does not take {other:?} here")),
        }
    }
    Ok(match name {
        "read" => GuestOp::Read { block, count },
        "write" => GuestOp::Write { block, count, fua },
        "discard" => GuestOp::Discard { block, count, fua },
        _ => GuestOp::WriteZeroes {
            block,
            count,
            may_unmap,
            fua,
        },
    })
}

/// What a random workload may contain.
#[derive(Clone, Debug)]
pub struct WorkloadSettings {
    /// Blocks of the disk, at least 1.
    pub blocks: u64,
    /// Operations.
    pub ops: u32,
    /// Largest extent in blocks, at least 1; default 16.
    pub extent_max: u64,
    /// Places that most operations fall on, so that they overlap; default 3.
    pub hot_spots: u32,
    /// Discards and write zeroes too; default true.
    pub zeroes: bool,
}

impl WorkloadSettings {
    /// `ops` operations on a disk of `blocks`.
    pub fn new(blocks: u64, ops: u32) -> Self {
        Self {
            blocks,
            ops,
            extent_max: 16,
            hot_spots: 3,
            zeroes: true,
        }
    }
}

/// A random workload with hot spots and overlaps. `choose(n, name)` returns `0..n`, and 0 is the
/// most benign choice: a chooser that always says 0 gives flushes only.
///
/// # Panics
/// If the disk or the longest extent has no block.
pub fn random_workload(
    settings: &WorkloadSettings,
    mut choose: impl FnMut(u32, &str) -> u32,
) -> Vec<GuestOp> {
    assert!(
        settings.blocks > 0 && settings.extent_max > 0,
        "a disk has blocks, an extent too"
    );
    let span = u32::try_from(settings.blocks).unwrap_or(u32::MAX);
    let hot: Vec<u64> = (0..settings.hot_spots)
        .map(|_| u64::from(choose(span, "hot spot")))
        .collect();
    (0..settings.ops)
        .map(|_| random_op(settings, &hot, span, &mut choose))
        .collect()
}

fn random_op(
    settings: &WorkloadSettings,
    hot: &[u64],
    span: u32,
    choose: &mut impl FnMut(u32, &str) -> u32,
) -> GuestOp {
    // Of 16: 1 flush, 1 idle, 4 reads, 8 writes, 1 write zeroes, 1 discard.
    let kind = choose(if settings.zeroes { 16 } else { 14 }, "op");
    if kind < 2 {
        return if kind == 0 {
            GuestOp::Flush
        } else {
            GuestOp::Idle
        };
    }
    let near = choose(4, "place") < 3;
    let block = match u32::try_from(hot.len()) {
        // Three of four fall on a hot spot or just before it, so that extents overlap in part.
        Ok(spots) if spots > 0 && near => {
            let spot = hot[choose(spots, "spot") as usize];
            spot.saturating_sub(u64::from(choose(3, "shift")))
        }
        _ => u64::from(choose(span, "block")),
    };
    // Mostly short: the length is bounded by a random power of two first.
    let limit = settings.extent_max.min(settings.blocks - block);
    let limit = limit.min(1 << choose(6, "length class"));
    let count = 1 + u64::from(choose(u32::try_from(limit).unwrap_or(u32::MAX), "length"));
    match kind {
        2..=5 => GuestOp::Read { block, count },
        6..=13 => GuestOp::Write {
            block,
            count,
            fua: choose(8, "fua") == 7,
        },
        14 => {
            let may_unmap = choose(2, "may unmap") == 1;
            GuestOp::WriteZeroes {
                block,
                count,
                may_unmap,
                fua: choose(8, "fua") == 7,
            }
        }
        _ => GuestOp::Discard {
            block,
            count,
            fua: choose(8, "fua") == 7,
        },
    }
}
