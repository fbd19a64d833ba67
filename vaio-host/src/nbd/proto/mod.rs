//! The NBD wire format, both sides: values in, bytes out, and back.
//!
//! Pure: no IO, no async, no clock. Newstyle-fixed handshake, simple, structured and extended
//! transmission. All integers are big-endian.
//!
//! Invariants:
//! * Nothing is read before its length is known and checked against a limit named here, and no
//!   decoder allocates more than its input's length plus a constant.
//! * A parser that returns [`Parsed::NeedMore`] has consumed nothing: call it again with the same
//!   bytes and at least that many more.
//! * A [`ProtoError`] from a header means that the peer is out of sync: close the connection. One
//!   from the data of an option or chunk does not: its length was known.

mod code;
mod handshake;
mod option;
mod reply;
mod request;
mod wire;

pub use code::{
    Command, Errno, InfoType, OptionCode, OptionReplyType, ReplyMode, cmd_flag, handshake_flag,
    status_flag, transmission_flag,
};
pub use handshake::{ExportNameReply, Greeting, client_flags_decode, client_flags_encode};
pub use option::{
    BlockSizes, ClientOption, FramedOption, Info, InfoRequest, MetaQuery, OptionParser,
    OptionReply, option_reply_parse,
};
pub use reply::{
    ChunkHeader, ChunkKind, ErrorChunk, HoleChunk, ReplyHeader, StatusChunk, StatusExtent,
    encode_done, encode_error, encode_read_header, encode_read_hole, encode_simple, encode_status,
};
pub use request::{Request, StatusPayload};

/// Longest data of one handshake option, in bytes; a longer one is drained and refused.
pub const OPTION_DATA_MAX: usize = 64 << 10;
/// Longest option data that is drained so that the connection stays in sync; beyond it the
/// connection is closed.
pub const OPTION_DRAIN_MAX: usize = 1 << 20;
/// Longest string: export name, description, meta context, error text. The protocol's own limit.
pub const STRING_MAX: usize = 4096;
/// Most information requests in one option.
pub const INFO_REQUESTS_MAX: usize = 256;
/// Most meta context queries in one option.
pub const META_QUERIES_MAX: usize = 256;
/// Longest payload of one read or write, in bytes: the protocol's customary 32 MiB.
pub const PAYLOAD_MAX: u32 = 32 << 20;
/// Most extents in one block status reply.
pub const STATUS_EXTENTS_MAX: usize = 8192;
/// Most contexts named in the payload of a block status request.
pub const STATUS_CONTEXTS_MAX: usize = 64;

/// One step of an incremental parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// At least this many more bytes are needed. Nothing was consumed.
    NeedMore(usize),
    /// A whole item.
    Item {
        /// What was read.
        item: T,
        /// How many bytes of the input it took.
        used: usize,
    },
}

/// What is wrong with bytes from the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtoError {
    /// Not the magic number that belongs here: the peer is out of sync or speaks something else.
    #[error("wrong magic number in {what}, got={got:#x}")]
    Magic {
        /// Which message.
        what: &'static str,
        /// What stood there.
        got: u64,
    },
    /// A length above its limit.
    #[error("{what} is too long, len={len} max={max}")]
    TooLong {
        /// Which length.
        what: &'static str,
        /// What the peer claims.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// Lengths or values that contradict each other.
    #[error("malformed {what}")]
    Malformed {
        /// Which message.
        what: &'static str,
    },
    /// A string that is not UTF-8 or holds a zero byte.
    #[error("{what} is not text")]
    Text {
        /// Which string.
        what: &'static str,
    },
}

#[cfg(test)]
mod tests;
