//! Requests of the transmission phase: 28-byte compact and 32-byte extended headers.

use super::{
    Command, Parsed, ProtoError, ReplyMode, STATUS_CONTEXTS_MAX, cmd_flag,
    wire::{Reader, be16, be32, be64, fixed},
};

const COMPACT_MAGIC: u32 = 0x2560_9513;
const EXTENDED_MAGIC: u32 = 0x21e4_1c71;

/// One request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// [`cmd_flag`]s.
    pub flags: u16,
    /// Number of the command; see [`Command::from_wire`].
    pub command: u16,
    /// Chosen by the client; every reply repeats it.
    pub cookie: u64,
    /// First byte on the export.
    pub offset: u64,
    /// Bytes of effect, or of payload (see [`payload_len`](Self::payload_len)).
    pub len: u64,
}

impl Request {
    /// Length of a compact header.
    pub const COMPACT_LEN: usize = 28;
    /// Length of an extended header.
    pub const EXTENDED_LEN: usize = 32;

    /// Length of a header in this mode.
    pub const fn header_len(mode: ReplyMode) -> usize {
        match mode {
            ReplyMode::Simple | ReplyMode::Structured => Self::COMPACT_LEN,
            ReplyMode::Extended => Self::EXTENDED_LEN,
        }
    }

    /// Appends the header.
    ///
    /// # Panics
    /// If `len` exceeds 32 bits and the mode is not extended.
    pub fn encode(&self, mode: ReplyMode, out: &mut Vec<u8>) {
        let magic = match mode {
            ReplyMode::Simple | ReplyMode::Structured => COMPACT_MAGIC,
            ReplyMode::Extended => EXTENDED_MAGIC,
        };
        let mut header = [0; Self::EXTENDED_LEN];
        header[..4].copy_from_slice(&magic.to_be_bytes());
        header[4..6].copy_from_slice(&self.flags.to_be_bytes());
        header[6..8].copy_from_slice(&self.command.to_be_bytes());
        header[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        header[16..24].copy_from_slice(&self.offset.to_be_bytes());
        if mode == ReplyMode::Extended {
            header[24..].copy_from_slice(&self.len.to_be_bytes());
        } else {
            let len = u32::try_from(self.len).expect("a compact request is below 4 GiB");
            header[24..28].copy_from_slice(&len.to_be_bytes());
        }
        out.extend_from_slice(&header[..Self::header_len(mode)]);
    }

    /// Reads one header. The payload, if [`payload_len`](Self::payload_len) says so, follows.
    ///
    /// # Errors
    /// [`ProtoError::Magic`]: out of sync.
    pub fn parse(mode: ReplyMode, input: &[u8]) -> Result<Parsed<Self>, ProtoError> {
        if mode == ReplyMode::Extended {
            let header: &[u8; Self::EXTENDED_LEN] = match fixed(input) {
                Ok(header) => header,
                Err(missing) => return Ok(Parsed::NeedMore(missing)),
            };
            return Self::from_fields(header, EXTENDED_MAGIC, be64(header, 24));
        }
        let header: &[u8; Self::COMPACT_LEN] = match fixed(input) {
            Ok(header) => header,
            Err(missing) => return Ok(Parsed::NeedMore(missing)),
        };
        Self::from_fields(header, COMPACT_MAGIC, be32(header, 24).into())
    }

    fn from_fields<const N: usize>(
        header: &[u8; N],
        magic: u32,
        len: u64,
    ) -> Result<Parsed<Self>, ProtoError> {
        let got = be32(header, 0);
        if got != magic {
            let (what, got) = ("request", got.into());
            return Err(ProtoError::Magic { what, got });
        }
        Ok(Parsed::Item {
            item: Self {
                flags: be16(header, 4),
                command: be16(header, 6),
                cookie: be64(header, 8),
                offset: be64(header, 16),
                len,
            },
            used: N,
        })
    }

    /// Bytes of payload that follow the header. A write always has one; with extended headers any
    /// command has one whose flag says so, which keeps the two sides in sync even where the
    /// command is not known.
    pub const fn payload_len(&self, mode: ReplyMode) -> u64 {
        let flagged =
            matches!(mode, ReplyMode::Extended) && self.flags & cmd_flag::PAYLOAD_LEN != 0;
        if self.command == Command::Write.to_wire() || flagged {
            self.len
        } else {
            0
        }
    }
}

/// Payload of a block status request which selects contexts (extended headers).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusPayload {
    /// Bytes of effect.
    pub len: u64,
    /// Numbers of the contexts wanted.
    pub contexts: Vec<u32>,
}

impl StatusPayload {
    /// Longest payload accepted, in bytes.
    pub const LEN_MAX: usize = 8 + 4 * STATUS_CONTEXTS_MAX;

    /// Appends the payload; a server takes at most [`STATUS_CONTEXTS_MAX`] contexts.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.len.to_be_bytes());
        for id in &self.contexts {
            out.extend_from_slice(&id.to_be_bytes());
        }
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// Not a length and whole numbers, or too many of them.
    pub fn decode(data: &[u8]) -> Result<Self, ProtoError> {
        let what = "block status payload";
        if data.len() > Self::LEN_MAX {
            let (len, max) = (data.len() as u64, Self::LEN_MAX as u64);
            return Err(ProtoError::TooLong { what, len, max });
        }
        let mut reader = Reader::new(what, data);
        let len = reader.u64()?;
        let contexts = (0..reader.left() / 4)
            .map(|_| reader.u32())
            .collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Self { len, contexts })
    }
}
