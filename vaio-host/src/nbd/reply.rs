//! [`Replies`]: the answers of the disk as the client's mode wants them.

use vaio_core::{Error, ErrorKind, Reply, Result};

use super::{
    outbox::Outbox,
    plan::errno,
    proto::{
        Errno, ReplyMode, StatusChunk, encode_done, encode_error, encode_read_header,
        encode_read_hole, encode_status,
    },
    slots::Slot,
};

/// Encodes replies into an outbox.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replies {
    mode: ReplyMode,
}

impl Replies {
    pub(super) fn new(mode: ReplyMode) -> Self {
        Self { mode }
    }

    /// The answer to an IO.
    pub(super) fn io(self, slot: &Slot, result: Result<Reply>, out: &mut Outbox) {
        match result {
            Ok(Reply::Data(data)) if data.len() == slot.held => {
                let len = u32::try_from(data.len()).expect("a read is at most the largest block");
                if self.mode != ReplyMode::Simple && is_zero(&data) {
                    encode_read_hole(self.mode, slot.cookie, slot.offset, len, out.head());
                } else {
                    encode_read_header(self.mode, slot.cookie, slot.offset, len, out.head());
                    out.data(data);
                }
            }
            Ok(Reply::Done) => encode_done(self.mode, slot.cookie, slot.offset, out.head()),
            // The port checks replies; a short one on the wire would put the client out of sync.
            Ok(_) => {
                let error = Error::new(ErrorKind::Internal, "reply of the wrong kind or length");
                self.error(slot, &error, out);
            }
            Err(error) => self.error(slot, &error, out),
        }
    }

    /// The answer to a block status query: one chunk per context.
    pub(super) fn status(self, slot: &Slot, result: Result<Vec<StatusChunk>>, out: &mut Outbox) {
        match result {
            Ok(chunks) => {
                let name = (slot.cookie, slot.offset);
                for (index, chunk) in chunks.iter().enumerate() {
                    let done = index + 1 == chunks.len();
                    encode_status(self.mode, name, done, chunk, out.head());
                }
            }
            Err(error) => self.error(slot, &error, out),
        }
    }

    /// An error of the disk.
    pub(super) fn error(self, slot: &Slot, error: &Error, out: &mut Outbox) {
        self.refusal(slot, errno(error), &error.to_string(), out);
    }

    /// An error of the request.
    pub(super) fn refusal(self, slot: &Slot, errno: Errno, text: &str, out: &mut Outbox) {
        encode_error(
            self.mode,
            (slot.cookie, slot.offset),
            errno,
            text,
            out.head(),
        );
    }
}

/// Whether there is data and all of it is zero. Ends at the first byte that is not.
fn is_zero(data: &[u8]) -> bool {
    data.first() == Some(&0) && data[1..] == data[..data.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zero_at_any_place_of_another_byte_is_false() {
        let mut data = [0; 97];
        assert!(is_zero(&data) && is_zero(&data[..1]) && !is_zero(&[]));
        for at in 0..data.len() {
            data[at] = 1;
            assert!(!is_zero(&data), "{at}");
            data[at] = 0;
        }
    }
}
