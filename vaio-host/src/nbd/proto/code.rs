//! The protocol's numbers.

/// Flags of the server's greeting and of the client's answer.
pub mod handshake_flag {
    /// Fixed newstyle: options after a refused one are answered.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// The 124 zero bytes after an export name are left out.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Flags of an export.
pub mod transmission_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// Flush is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The fua flag is understood.
    pub const SEND_FUA: u16 = 1 << 3;
    /// A rotating disk.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// Trim is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// Write zeroes is understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// "Don't fragment" of a read is understood.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see one disk: a flush on one covers writes acknowledged on any.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// Cache (prefetch) is understood.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// Write zeroes understands "only if fast".
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// Block status may carry a payload that selects contexts.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Flags of a request.
pub mod cmd_flag {
    /// Durable at its reply.
    pub const FUA: u16 = 1 << 0;
    /// Write zeroes must not deallocate.
    pub const NO_HOLE: u16 = 1 << 1;
    /// A read is answered in one data chunk.
    pub const DF: u16 = 1 << 2;
    /// Block status wants one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Write zeroes fails rather than being slow.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The header's length is that of a payload which follows (extended headers only).
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Flags of the meta context `base:allocation`.
pub mod status_flag {
    /// Not allocated.
    pub const HOLE: u64 = 1 << 0;
    /// Reads as zeroes.
    pub const ZERO: u64 = 1 << 1;
}

/// What replies look like, and with `Extended` also requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub enum ReplyMode {
    /// Simple replies only.
    #[default]
    Simple,
    /// Chunks for reads and block status, and for errors with a text.
    Structured,
    /// 32-byte headers both ways and 64-bit lengths.
    Extended,
}

macro_rules! wire_enum {
    ($(#[$meta:meta])* $name:ident: $int:ty { $($(#[$doc:meta])* $variant:ident = $value:expr,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The number on the wire.
            pub const fn to_wire(self) -> $int {
                match self { $(Self::$variant => $value,)* }
            }

            /// The value of a number on the wire, if it is known.
            pub const fn from_wire(number: $int) -> Option<Self> {
                $(if number == $value { return Some(Self::$variant); })*
                None
            }
        }
    };
}

wire_enum! {
    /// Options of the handshake.
    OptionCode: u32 {
        /// Old way to choose an export and end the handshake.
        ExportName = 1,
        /// End of the session.
        Abort = 2,
        /// Names of the exports.
        List = 3,
        /// TLS from here on.
        StartTls = 5,
        /// Facts on an export.
        Info = 6,
        /// Facts on an export, then transmission.
        Go = 7,
        /// Structured replies.
        StructuredReply = 8,
        /// Names of meta contexts.
        ListMetaContext = 9,
        /// Choice of meta contexts.
        SetMetaContext = 10,
        /// Extended headers, which include structured replies.
        ExtendedHeaders = 11,
    }
}

wire_enum! {
    /// Replies to options.
    OptionReplyType: u32 {
        /// Done.
        Ack = 1,
        /// One export.
        Server = 2,
        /// One fact on an export.
        Info = 3,
        /// One meta context.
        MetaContext = 4,
        /// Unknown option.
        ErrUnsup = ERR | 1,
        /// Forbidden here.
        ErrPolicy = ERR | 2,
        /// Malformed, or at the wrong moment.
        ErrInvalid = ERR | 3,
        /// Not on this platform.
        ErrPlatform = ERR | 4,
        /// Only after TLS.
        ErrTlsReqd = ERR | 5,
        /// No such export.
        ErrUnknown = ERR | 6,
        /// The server is shutting down.
        ErrShutdown = ERR | 7,
        /// Only for a client that asks for block sizes.
        ErrBlockSizeReqd = ERR | 8,
        /// Too long.
        ErrTooBig = ERR | 9,
        /// Only with extended headers.
        ErrExtHeaderReqd = ERR | 0xa,
    }
}

const ERR: u32 = 1 << 31;

impl OptionReplyType {
    /// Whether it refuses the option.
    pub const fn is_error(self) -> bool {
        self.to_wire() & ERR != 0
    }
}

wire_enum! {
    /// Facts on an export.
    InfoType: u16 {
        /// Size and flags.
        Export = 0,
        /// Canonical name.
        Name = 1,
        /// Text for people.
        Description = 2,
        /// Smallest, preferred and largest block.
        BlockSize = 3,
    }
}

wire_enum! {
    /// Commands of the transmission phase.
    Command: u16 {
        /// Read.
        Read = 0,
        /// Write.
        Write = 1,
        /// End of the session; has no reply.
        Disconnect = 2,
        /// Flush.
        Flush = 3,
        /// Discard.
        Trim = 4,
        /// Prefetch.
        Cache = 5,
        /// Write zeroes.
        WriteZeroes = 6,
        /// Meta context status.
        BlockStatus = 7,
    }
}

wire_enum! {
    /// Error numbers of the protocol.
    Errno: u32 {
        /// Not permitted: the export is read-only.
        Perm = 1,
        /// The device failed.
        Io = 5,
        /// Out of memory.
        NoMem = 12,
        /// The request is wrong.
        Inval = 22,
        /// No space left.
        NoSpace = 28,
        /// The reply would be too large for one chunk.
        Overflow = 75,
        /// Not supported.
        NotSup = 95,
        /// The server is shutting down.
        Shutdown = 108,
    }
}
