//! What a block shows: every block that a guest writes carries a stamp, so that a wrong value is
//! explained and not only noticed.
//!
//! A block is a row of 32-byte cells. Each cell repeats the identity (run, op, block, version), its
//! own number and a checksum of both, so a block torn anywhere at cell granularity names both of
//! its writers. Little-endian:
//!
//! ```text
//! 0      4        8    12   16      24     28            32
//! | magic| version| run| op | block | cell | crc ^ cell*K |
//! ```
//!
//! The first cell is the header: [`Check::Header`] compares nothing else.

use std::fmt;

use bytes::{Bytes, BytesMut};

const CELL: usize = 32;
const MAGIC_STAMP: u32 = 0x5641_494f;
const MAGIC_FILL: u32 = 0x4649_4c4c;
const CELL_SALT: u32 = 0x9e37_79b9;

/// Who wrote a block: unique within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp {
    /// The run: data of another run is a medium that was not wiped.
    pub run: u32,
    /// The guest's operation, from 1.
    pub op: u32,
    /// The logical block that it was meant for.
    pub block: u64,
    /// How many writes that block had seen, this one included.
    pub version: u32,
}

/// How much of a block [`Value::decode`] looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Check {
    /// The first 32 bytes: enough where the medium cannot tear a block.
    Header,
    /// Every byte.
    #[default]
    Full,
}

/// What a block shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// All zeroes: never written on a zero-filled medium, write zeroes, or a discard.
    Zero,
    /// Data that a guest wrote.
    Stamp(Stamp),
    /// The garbage that a never-written block was filled with; of which block.
    Fill(u64),
    /// Two writers inside one block. An op of 0 stands for zeroes or garbage.
    Torn {
        /// Writer of the block's beginning.
        head: u32,
        /// Writer of its end.
        tail: u32,
        /// Byte offset at which the second begins.
        at: u32,
    },
    /// Nothing that a guest or the kit wrote; a hash of its bytes.
    Other(u64),
}

/// Whether all bytes are zero; a run of them at a time.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let is_zero = |run: &[u8]| run.iter().fold(0, |sum, byte| sum | byte) == 0;
    bytes.chunks(64).all(is_zero)
}

impl Stamp {
    /// Fill a logical block.
    ///
    /// # Panics
    /// If `block` is not a multiple of 32 bytes.
    pub fn encode(&self, block: &mut [u8]) {
        write_cells(&identity(MAGIC_STAMP, self), block);
    }

    /// The payload of a write: one block of `block_size` bytes for each stamp.
    pub fn payload(stamps: impl IntoIterator<Item = Self>, block_size: usize) -> Bytes {
        let mut bytes = BytesMut::new();
        for stamp in stamps {
            let start = bytes.len();
            bytes.resize(start + block_size, 0);
            stamp.encode(&mut bytes[start..]);
        }
        bytes.freeze()
    }
}

impl Value {
    /// Fill a never-written block with garbage that is known as such.
    ///
    /// # Panics
    /// If `bytes` is not a multiple of 32 bytes.
    pub fn fill(run: u32, block: u64, bytes: &mut [u8]) {
        let stamp = Stamp {
            run,
            op: 0,
            block,
            version: 0,
        };
        write_cells(&identity(MAGIC_FILL, &stamp), bytes);
    }

    /// What one logical block shows.
    pub fn decode(block: &[u8], check: Check) -> Self {
        if is_zero(block) {
            return Self::Zero;
        }
        let Some(head) = read_cell(block, 0) else {
            return torn(block).unwrap_or_else(|| Self::Other(hash(block)));
        };
        if check == Check::Full && !is_whole(block) {
            return torn(block).unwrap_or_else(|| Self::Other(hash(block)));
        }
        match head {
            (MAGIC_FILL, stamp) => Self::Fill(stamp.block),
            (_, stamp) => Self::Stamp(stamp),
        }
    }

    /// What each logical block of `data` shows.
    pub fn decode_all(data: &[u8], block_size: usize, check: Check) -> Vec<Self> {
        data.chunks(block_size)
            .map(|block| Self::decode(block, check))
            .collect()
    }

    /// The operation that wrote it, where there is one.
    pub fn op(&self) -> Option<u32> {
        match self {
            Self::Stamp(stamp) => Some(stamp.op),
            _ => None,
        }
    }

    /// In as few letters as can be, for a reader at `block`: `#3`, or `#3@7` where it is op #3's
    /// data for block 7.
    pub fn label(&self, block: u64) -> String {
        match self {
            Self::Zero => "zeroes".to_owned(),
            Self::Stamp(stamp) if stamp.block == block => format!("#{}", stamp.op),
            Self::Stamp(stamp) => format!("#{}@{}", stamp.op, stamp.block),
            Self::Fill(_) => "initial".to_owned(),
            Self::Torn { head, tail, .. } => format!("torn(#{head}/#{tail})"),
            Self::Other(_) => "other bytes".to_owned(),
        }
    }

    /// What a reader at `block` of run `run` would say about it.
    pub fn explain(&self, run: u32, block: u64) -> String {
        match self {
            Self::Stamp(stamp) if stamp.run != run => {
                format!("holds data of run {}: the medium was not wiped", stamp.run)
            }
            Self::Stamp(stamp) if stamp.block != block => {
                format!(
                    "holds op #{}'s data for block {}: misdirected",
                    stamp.op, stamp.block
                )
            }
            Self::Fill(of) if *of != block => {
                format!("holds block {of}'s initial content: misdirected")
            }
            Self::Torn { head, tail, at } => {
                format!(
                    "{} up to byte {at}, then {}: torn inside a block",
                    name(*head),
                    name(*tail)
                )
            }
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => write!(f, "zeroes"),
            Self::Stamp(stamp) => write!(f, "op #{} (version {})", stamp.op, stamp.version),
            Self::Fill(_) => write!(f, "the initial content"),
            Self::Torn { head, tail, .. } => {
                write!(f, "a mix of {} and {}", name(*head), name(*tail))
            }
            Self::Other(hash) => write!(f, "bytes that no one wrote (hash {hash:016x})"),
        }
    }
}

fn name(op: u32) -> String {
    if op == 0 {
        "what no op wrote".to_owned()
    } else {
        format!("op #{op}")
    }
}

/// The first 24 bytes of every cell.
fn identity(magic: u32, stamp: &Stamp) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[0..4].copy_from_slice(&magic.to_le_bytes());
    bytes[4..8].copy_from_slice(&stamp.version.to_le_bytes());
    bytes[8..12].copy_from_slice(&stamp.run.to_le_bytes());
    bytes[12..16].copy_from_slice(&stamp.op.to_le_bytes());
    bytes[16..24].copy_from_slice(&stamp.block.to_le_bytes());
    bytes
}

fn checksum(identity: &[u8]) -> u32 {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, identity);
    u32::try_from(crc).expect("a CRC-32 has 32 bits")
}

fn write_cells(identity: &[u8; 24], block: &mut [u8]) {
    assert!(
        block.len().is_multiple_of(CELL),
        "a block is whole cells len={}",
        block.len()
    );
    let crc = checksum(identity);
    for (cell, number) in block.chunks_exact_mut(CELL).zip(0u32..) {
        cell[..24].copy_from_slice(identity);
        cell[24..28].copy_from_slice(&number.to_le_bytes());
        cell[28..].copy_from_slice(&(crc ^ number.wrapping_mul(CELL_SALT)).to_le_bytes());
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Magic and stamp of a cell, if it is one and stands where it belongs.
fn read_cell(block: &[u8], number: u32) -> Option<(u32, Stamp)> {
    let start = number as usize * CELL;
    let cell = block.get(start..start + CELL)?;
    let magic = word(cell, 0);
    let known = magic == MAGIC_STAMP || magic == MAGIC_FILL;
    let sealed = word(cell, 28) == checksum(&cell[..24]) ^ number.wrapping_mul(CELL_SALT);
    if !known || !sealed || word(cell, 24) != number {
        return None;
    }
    let block = u64::from_le_bytes(cell[16..24].try_into().expect("eight bytes"));
    Some((
        magic,
        Stamp {
            run: word(cell, 8),
            op: word(cell, 12),
            block,
            version: word(cell, 4),
        },
    ))
}

/// Whether every cell repeats the header, whose checksum is known to be right.
fn is_whole(block: &[u8]) -> bool {
    let crc = word(block, 28);
    block.len().is_multiple_of(CELL)
        && block.chunks_exact(CELL).zip(0u32..).all(|(cell, number)| {
            cell[..24] == block[..24]
                && word(cell, 24) == number
                && word(cell, 28) == crc ^ number.wrapping_mul(CELL_SALT)
        })
}

/// Two writers in one block: every cell is one that a guest or the kit wrote, or zeroes.
fn torn(block: &[u8]) -> Option<Value> {
    let cells = u32::try_from(block.len() / CELL).ok()?;
    let writer = |number: u32| {
        if let Some((_, stamp)) = read_cell(block, number) {
            return Some(Some(stamp));
        }
        let start = number as usize * CELL;
        block[start..start + CELL]
            .iter()
            .all(|byte| *byte == 0)
            .then_some(None)
    };
    let head = writer(0)?;
    let mut second = None;
    for number in 1..cells {
        let writer = writer(number)?;
        if writer != head && second.is_none() {
            second = Some((number, writer));
        }
    }
    let (number, tail) = second?;
    let op = |stamp: Option<Stamp>| stamp.map_or(0, |stamp| stamp.op);
    let at = number * u32::try_from(CELL).expect("a cell is small");
    Some(Value::Torn {
        head: op(head),
        tail: op(tail),
        at,
    })
}

/// FNV-1a: stable over versions of Rust, so that saved output can be compared.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
