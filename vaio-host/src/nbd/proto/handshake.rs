//! The fixed messages around the options: greeting, client flags, and the reply to an export name.

use super::{
    Parsed, ProtoError, handshake_flag,
    wire::{be16, be32, be64, fixed},
};

const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const EXPORT_NAME_ZEROES: usize = 124;

/// First bytes of a connection, from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// [`handshake_flag`]s that the server offers.
    pub flags: u16,
}

impl Greeting {
    /// Length on the wire.
    pub const LEN: usize = 18;

    /// Fixed newstyle without padding: what our server sends.
    pub const OURS: Self = Self {
        flags: handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES,
    };

    /// The bytes.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&GREETING_MAGIC.to_be_bytes());
        out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        out[16..].copy_from_slice(&self.flags.to_be_bytes());
        out
    }

    /// Reads a greeting.
    ///
    /// # Errors
    /// [`ProtoError::Magic`]: not NBD, or the oldstyle handshake.
    pub fn parse(input: &[u8]) -> Result<Parsed<Self>, ProtoError> {
        let header: &[u8; Self::LEN] = match fixed(input) {
            Ok(header) => header,
            Err(missing) => return Ok(Parsed::NeedMore(missing)),
        };
        for (at, magic) in [(0, GREETING_MAGIC), (8, OPTION_MAGIC)] {
            let got = be64(header, at);
            if got != magic {
                let what = "greeting";
                return Err(ProtoError::Magic { what, got });
            }
        }
        Ok(Parsed::Item {
            item: Self {
                flags: be16(header, 16),
            },
            used: Self::LEN,
        })
    }
}

/// The client's answer to the greeting.
pub fn client_flags_encode(flags: u16) -> [u8; 4] {
    u32::from(flags).to_be_bytes()
}

/// Reads the client's answer to the greeting.
///
/// # Errors
/// [`ProtoError::Malformed`] on a flag that we did not offer: the server must close.
pub fn client_flags_decode(bytes: [u8; 4]) -> Result<u16, ProtoError> {
    let flags = u32::from_be_bytes(bytes);
    u16::try_from(flags)
        .ok()
        .filter(|flags| flags & !Greeting::OURS.flags == 0)
        .ok_or(ProtoError::Malformed {
            what: "client flags",
        })
}

/// The reply to [`OptionCode::ExportName`](super::OptionCode::ExportName), which has no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportNameReply {
    /// Size of the export in bytes.
    pub size: u64,
    /// [`transmission_flag`](super::transmission_flag)s.
    pub flags: u16,
}

impl ExportNameReply {
    /// Appends the bytes; `no_zeroes` as agreed in the flags.
    pub fn encode(self, no_zeroes: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.size.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        if !no_zeroes {
            out.resize(out.len() + EXPORT_NAME_ZEROES, 0);
        }
    }

    /// Reads the reply; `no_zeroes` as agreed in the flags.
    pub fn parse(input: &[u8], no_zeroes: bool) -> Parsed<Self> {
        let used = 10 + if no_zeroes { 0 } else { EXPORT_NAME_ZEROES };
        if input.len() < used {
            return Parsed::NeedMore(used - input.len());
        }
        let Ok(header) = fixed::<10>(input) else {
            return Parsed::NeedMore(used);
        };
        let size = u64::from(be32(header, 0)) << 32 | u64::from(be32(header, 4));
        let flags = be16(header, 8);
        Parsed::Item {
            item: Self { size, flags },
            used,
        }
    }
}
