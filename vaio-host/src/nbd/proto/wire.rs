//! [`Reader`]: a bounded cursor over bytes from the peer.

use super::{ProtoError, STRING_MAX};

/// Takes fields off the front of one message's bytes; `what` names the message in errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, what }
    }

    pub(super) fn malformed(&self) -> ProtoError {
        ProtoError::Malformed { what: self.what }
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], ProtoError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| self.malformed())?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtoError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| self.malformed())?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, ProtoError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ProtoError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ProtoError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string of `len` bytes, at most [`STRING_MAX`].
    pub(super) fn string(&mut self, what: &'static str, len: usize) -> Result<String, ProtoError> {
        if len > STRING_MAX {
            return Err(ProtoError::TooLong {
                what,
                len: len as u64,
                max: STRING_MAX as u64,
            });
        }
        let text = std::str::from_utf8(self.bytes(len)?).map_err(|_| ProtoError::Text { what })?;
        if text.contains('\0') {
            return Err(ProtoError::Text { what });
        }
        Ok(text.to_owned())
    }

    /// A string with its 32-bit length in front.
    pub(super) fn string32(&mut self, what: &'static str) -> Result<String, ProtoError> {
        let len = self.u32()? as usize;
        self.string(what, len)
    }

    /// Everything that is left, as a string.
    pub(super) fn rest_string(mut self, what: &'static str) -> Result<String, ProtoError> {
        let len = self.rest.len();
        self.string(what, len)
    }

    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Nothing may be left over.
    pub(super) fn end(self) -> Result<(), ProtoError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.malformed())
        }
    }
}

/// The first `N` bytes, or how many are missing.
pub(super) fn fixed<const N: usize>(input: &[u8]) -> Result<&[u8; N], usize> {
    input.first_chunk().ok_or(N - input.len().min(N))
}

/// Field at a constant place in a fixed header. The compiler removes the check.
pub(super) fn be16<const N: usize>(header: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([header[at], header[at + 1]])
}

/// As [`be16`].
pub(super) fn be32<const N: usize>(header: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

/// As [`be16`].
pub(super) fn be64<const N: usize>(header: &[u8; N], at: usize) -> u64 {
    u64::from(be32(header, at)) << 32 | u64::from(be32(header, at + 4))
}

pub(super) fn put_string32(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&len32(text.len()).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// A length that a limit above keeps far below 4 GiB.
pub(super) fn len32(len: usize) -> u32 {
    u32::try_from(len).expect("lengths we send are bounded by the limits of this module")
}
