//! Replies of the transmission phase: simple replies, structured and extended chunks.

use super::{
    Errno, PAYLOAD_MAX, Parsed, ProtoError, ReplyMode, STATUS_EXTENTS_MAX, STRING_MAX,
    wire::{Reader, be16, be32, be64, fixed, len32},
};

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_MAGIC: u32 = 0x6e8a_278c;
const SIMPLE_LEN: usize = 16;
const STRUCTURED_LEN: usize = 20;
const EXTENDED_LEN: usize = 32;
const DONE: u16 = 1;
const CHUNK_ERR: u16 = 1 << 15;
/// Longest text that we send with an error, in bytes.
const ERROR_TEXT_MAX: usize = 512;

/// Kind of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChunkKind {
    /// Nothing; ends a reply.
    None,
    /// Offset and data of a read.
    OffsetData,
    /// Offset and length of zeroes of a read.
    OffsetHole,
    /// Status extents with 32-bit lengths.
    BlockStatus,
    /// Status extents with 64-bit lengths.
    BlockStatusExt,
    /// An error with a text.
    Error,
    /// An error with a text and an offset.
    ErrorOffset,
    /// An error kind that we do not know: to be treated as an error.
    UnknownError(u16),
}

impl ChunkKind {
    /// The number on the wire.
    pub const fn to_wire(self) -> u16 {
        match self {
            Self::None => 0,
            Self::OffsetData => 1,
            Self::OffsetHole => 2,
            Self::BlockStatus => 5,
            Self::BlockStatusExt => 6,
            Self::Error => CHUNK_ERR | 1,
            Self::ErrorOffset => CHUNK_ERR | 2,
            Self::UnknownError(number) => number,
        }
    }

    /// The kind of a number; `None` for an unknown kind that is no error (close the connection).
    pub const fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::None,
            1 => Self::OffsetData,
            2 => Self::OffsetHole,
            5 => Self::BlockStatus,
            6 => Self::BlockStatusExt,
            n if n == CHUNK_ERR | 1 => Self::Error,
            n if n == CHUNK_ERR | 2 => Self::ErrorOffset,
            n if n & CHUNK_ERR != 0 => Self::UnknownError(n),
            _ => return None,
        })
    }

    /// Whether the request failed.
    pub const fn is_error(self) -> bool {
        self.to_wire() & CHUNK_ERR != 0
    }

    /// Longest content accepted, in bytes.
    pub const fn len_max(self) -> u64 {
        match self {
            Self::None => 0,
            Self::OffsetData => 8 + PAYLOAD_MAX as u64,
            Self::OffsetHole => 12,
            Self::BlockStatus => 4 + 8 * STATUS_EXTENTS_MAX as u64,
            Self::BlockStatusExt => 8 + 16 * STATUS_EXTENTS_MAX as u64,
            Self::Error => 6 + STRING_MAX as u64,
            Self::ErrorOffset | Self::UnknownError(_) => 14 + STRING_MAX as u64,
        }
    }
}

/// Header of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// The last chunk of its reply.
    pub done: bool,
    /// What follows.
    pub kind: ChunkKind,
    /// The request's.
    pub cookie: u64,
    /// The request's offset; 0 unless extended.
    pub offset: u64,
    /// Bytes of content that follow.
    pub len: u64,
}

impl ChunkHeader {
    /// Appends the header.
    ///
    /// # Panics
    /// If `len` exceeds 32 bits and the mode is not extended.
    pub fn encode(&self, mode: ReplyMode, out: &mut Vec<u8>) {
        let mut header = [0; EXTENDED_LEN];
        header[4..6].copy_from_slice(&(if self.done { DONE } else { 0 }).to_be_bytes());
        header[6..8].copy_from_slice(&self.kind.to_wire().to_be_bytes());
        header[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        if mode == ReplyMode::Extended {
            header[..4].copy_from_slice(&EXTENDED_MAGIC.to_be_bytes());
            header[16..24].copy_from_slice(&self.offset.to_be_bytes());
            header[24..].copy_from_slice(&self.len.to_be_bytes());
            out.extend_from_slice(&header);
        } else {
            let len = u32::try_from(self.len).expect("a chunk is far below 4 GiB");
            header[..4].copy_from_slice(&STRUCTURED_MAGIC.to_be_bytes());
            header[16..20].copy_from_slice(&len.to_be_bytes());
            out.extend_from_slice(&header[..STRUCTURED_LEN]);
        }
    }
}

/// Header of one reply, as the client reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    /// A simple reply; a successful read's data follows.
    Simple {
        /// 0 or an error number; see [`Errno::from_wire`].
        error: u32,
        /// The request's.
        cookie: u64,
    },
    /// A structured or extended chunk; [`ChunkHeader::len`] bytes follow.
    Chunk(ChunkHeader),
}

impl ReplyHeader {
    /// Reads one header.
    ///
    /// # Errors
    /// Wrong magic for this mode, an unknown kind, or content above [`ChunkKind::len_max`].
    pub fn parse(mode: ReplyMode, input: &[u8]) -> Result<Parsed<Self>, ProtoError> {
        let magic = match fixed::<4>(input) {
            Ok(bytes) => u32::from_be_bytes(*bytes),
            Err(_) => return Ok(Parsed::NeedMore(SIMPLE_LEN - input.len())),
        };
        match (mode, magic) {
            (ReplyMode::Simple | ReplyMode::Structured, SIMPLE_MAGIC) => Ok(simple_header(input)),
            (ReplyMode::Structured, STRUCTURED_MAGIC) => match fixed::<STRUCTURED_LEN>(input) {
                Ok(header) => chunk_header(header, 0, be32(header, 16).into()),
                Err(missing) => Ok(Parsed::NeedMore(missing)),
            },
            (ReplyMode::Extended, EXTENDED_MAGIC) => match fixed::<EXTENDED_LEN>(input) {
                Ok(header) => chunk_header(header, be64(header, 16), be64(header, 24)),
                Err(missing) => Ok(Parsed::NeedMore(missing)),
            },
            _ => Err(ProtoError::Magic {
                what: "reply",
                got: magic.into(),
            }),
        }
    }
}

fn simple_header(input: &[u8]) -> Parsed<ReplyHeader> {
    match fixed::<SIMPLE_LEN>(input) {
        Ok(header) => Parsed::Item {
            item: ReplyHeader::Simple {
                error: be32(header, 4),
                cookie: be64(header, 8),
            },
            used: SIMPLE_LEN,
        },
        Err(missing) => Parsed::NeedMore(missing),
    }
}

fn chunk_header<const N: usize>(
    header: &[u8; N],
    offset: u64,
    len: u64,
) -> Result<Parsed<ReplyHeader>, ProtoError> {
    let what = "reply chunk";
    let kind = ChunkKind::from_wire(be16(header, 6)).ok_or(ProtoError::Malformed { what })?;
    if len > kind.len_max() {
        let max = kind.len_max();
        return Err(ProtoError::TooLong { what, len, max });
    }
    Ok(Parsed::Item {
        item: ReplyHeader::Chunk(ChunkHeader {
            done: be16(header, 4) & DONE != 0,
            kind,
            cookie: be64(header, 8),
            offset,
            len,
        }),
        used: N,
    })
}

/// Content of a hole chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoleChunk {
    /// First zero byte.
    pub offset: u64,
    /// Number of zero bytes.
    pub len: u32,
}

impl HoleChunk {
    /// Reads the content.
    ///
    /// # Errors
    /// Not 12 bytes.
    pub fn decode(content: &[u8]) -> Result<Self, ProtoError> {
        let mut reader = Reader::new("hole chunk", content);
        let (offset, len) = (reader.u64()?, reader.u32()?);
        reader.end()?;
        Ok(Self { offset, len })
    }

    /// Appends the content.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.to_be_bytes());
        out.extend_from_slice(&self.len.to_be_bytes());
    }
}

/// Content of an error chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorChunk {
    /// Error number; see [`Errno::from_wire`].
    pub error: u32,
    /// Text for people.
    pub text: String,
    /// Where it happened.
    pub offset: Option<u64>,
}

impl ErrorChunk {
    /// Reads the content.
    ///
    /// # Errors
    /// Malformed. A text that is no text is dropped, not an error.
    pub fn decode(kind: ChunkKind, content: &[u8]) -> Result<Self, ProtoError> {
        let mut reader = Reader::new("error chunk", content);
        let error = reader.u32()?;
        if let ChunkKind::UnknownError(_) = kind {
            let (text, offset) = (String::new(), None);
            return Ok(Self {
                error,
                text,
                offset,
            });
        }
        let len = reader.u16()?.into();
        let text = String::from_utf8_lossy(reader.bytes(len)?).into_owned();
        let offset = match kind {
            ChunkKind::ErrorOffset => Some(reader.u64()?),
            _ => None,
        };
        reader.end()?;
        Ok(Self {
            error,
            text,
            offset,
        })
    }
}

/// One extent of a block status reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Bytes.
    pub len: u64,
    /// The context's flags; for `base:allocation` see [`status_flag`](super::status_flag).
    pub flags: u64,
}

/// Content of a block status chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusChunk {
    /// Number of the context, as agreed in the handshake.
    pub context: u32,
    /// Extents that follow each other from the request's offset.
    pub extents: Vec<StatusExtent>,
}

impl StatusChunk {
    /// Reads the content of either kind.
    ///
    /// # Errors
    /// Malformed, no extent, an empty extent, or more than [`STATUS_EXTENTS_MAX`].
    pub fn decode(kind: ChunkKind, content: &[u8]) -> Result<Self, ProtoError> {
        let what = "block status chunk";
        let mut reader = Reader::new(what, content);
        let context = reader.u32()?;
        let wide = kind == ChunkKind::BlockStatusExt;
        // The count may be 0, "as many as there are".
        let claimed = if wide { reader.u32()? as usize } else { 0 };
        let count = reader.left() / if wide { 16 } else { 8 };
        if count == 0 || count > STATUS_EXTENTS_MAX || (claimed != 0 && claimed != count) {
            return Err(reader.malformed());
        }
        let mut extents = Vec::with_capacity(count);
        for _ in 0..count {
            let (len, flags) = if wide {
                (reader.u64()?, reader.u64()?)
            } else {
                (reader.u32()?.into(), reader.u32()?.into())
            };
            if len == 0 {
                return Err(reader.malformed());
            }
            extents.push(StatusExtent { len, flags });
        }
        reader.end()?;
        Ok(Self { context, extents })
    }
}

/// Appends a simple reply.
pub fn encode_simple(cookie: u64, error: Option<Errno>, out: &mut Vec<u8>) {
    let mut header = [0; SIMPLE_LEN];
    header[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    header[4..8].copy_from_slice(&error.map_or(0, Errno::to_wire).to_be_bytes());
    header[8..].copy_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&header);
}

/// Appends the reply to a request that succeeded without data.
pub fn encode_done(mode: ReplyMode, cookie: u64, offset: u64, out: &mut Vec<u8>) {
    if mode == ReplyMode::Extended {
        encode_end(mode, cookie, offset, out);
    } else {
        encode_simple(cookie, None, out);
    }
}

/// Appends the reply to a request that failed. `text` is cut to what a client should bear and is
/// left out of a simple reply.
#[expect(
    clippy::missing_panics_doc,
    reason = "the text is cut before its length is taken"
)]
pub fn encode_error(
    mode: ReplyMode,
    (cookie, offset): (u64, u64),
    error: Errno,
    text: &str,
    out: &mut Vec<u8>,
) {
    if mode == ReplyMode::Simple {
        return encode_simple(cookie, Some(error), out);
    }
    let text = &text[..text.floor_char_boundary(ERROR_TEXT_MAX)];
    let header = ChunkHeader {
        done: true,
        kind: ChunkKind::Error,
        cookie,
        offset,
        len: 6 + text.len() as u64,
    };
    header.encode(mode, out);
    out.extend_from_slice(&error.to_wire().to_be_bytes());
    let len = u16::try_from(text.len()).expect("the text was cut to a limit below 64 KiB");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends everything of a successful read's only reply that goes before its `len` bytes of data.
pub fn encode_read_header(mode: ReplyMode, cookie: u64, offset: u64, len: u32, out: &mut Vec<u8>) {
    if mode == ReplyMode::Simple {
        return encode_simple(cookie, None, out);
    }
    if len == 0 {
        return encode_end(mode, cookie, offset, out);
    }
    let header = ChunkHeader {
        done: true,
        kind: ChunkKind::OffsetData,
        cookie,
        offset,
        len: 8 + u64::from(len),
    };
    header.encode(mode, out);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// Appends a successful read's only reply where all `len` bytes are zero: the length instead of
/// the bytes.
///
/// # Panics
/// If the mode is simple: that has no chunks.
pub fn encode_read_hole(mode: ReplyMode, cookie: u64, offset: u64, len: u32, out: &mut Vec<u8>) {
    assert!(mode != ReplyMode::Simple, "a hole needs a chunk");
    let header = ChunkHeader {
        done: true,
        kind: ChunkKind::OffsetHole,
        cookie,
        offset,
        len: 12,
    };
    header.encode(mode, out);
    HoleChunk { offset, len }.encode(out);
}

fn encode_end(mode: ReplyMode, cookie: u64, offset: u64, out: &mut Vec<u8>) {
    let header = ChunkHeader {
        done: true,
        kind: ChunkKind::None,
        cookie,
        offset,
        len: 0,
    };
    header.encode(mode, out);
}

/// Appends one block status chunk; `done` ends the reply. In a mode with 32-bit lengths the
/// extents must fit (a compact request cannot ask for more).
///
/// # Panics
/// If the mode is simple, or an extent does not fit the mode.
pub fn encode_status(
    mode: ReplyMode,
    (cookie, offset): (u64, u64),
    done: bool,
    chunk: &StatusChunk,
    out: &mut Vec<u8>,
) {
    assert!(mode != ReplyMode::Simple, "block status needs chunks");
    let wide = mode == ReplyMode::Extended;
    let count = chunk.extents.len() as u64;
    let header = ChunkHeader {
        done,
        kind: if wide {
            ChunkKind::BlockStatusExt
        } else {
            ChunkKind::BlockStatus
        },
        cookie,
        offset,
        len: if wide { 8 + 16 * count } else { 4 + 8 * count },
    };
    header.encode(mode, out);
    out.extend_from_slice(&chunk.context.to_be_bytes());
    if wide {
        out.extend_from_slice(&len32(chunk.extents.len()).to_be_bytes());
    }
    for extent in &chunk.extents {
        if wide {
            out.extend_from_slice(&extent.len.to_be_bytes());
            out.extend_from_slice(&extent.flags.to_be_bytes());
        } else {
            let narrow = |value: u64| u32::try_from(value).expect("fits a 32-bit status");
            out.extend_from_slice(&narrow(extent.len).to_be_bytes());
            out.extend_from_slice(&narrow(extent.flags).to_be_bytes());
        }
    }
}
