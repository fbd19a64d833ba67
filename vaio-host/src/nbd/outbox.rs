//! [`Outbox`]: replies on their way out, gathered into as few sends as possible.
//!
//! Headers and small data are copied into one buffer, so that a batch of small replies is one
//! plain `send`. Large data is referenced and goes out by gather, without a copy.

use std::{collections::VecDeque, io::IoSlice};

use bytes::Bytes;

/// Data up to this many bytes is copied behind its header; above it a gather is cheaper.
pub(super) const COPY_MAX: usize = 16 << 10;
/// Most pieces of one send.
const PIECES_MAX: usize = 64;
/// Sent bytes in front of the buffer that are worth moving the rest for.
const COMPACT_MIN: usize = 256 << 10;
/// Memory that an empty outbox keeps, in bytes.
const KEPT_MAX: usize = 256 << 10;

/// Bytes to send, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    copied: Vec<u8>,
    /// How much of `copied` is sent.
    sent: usize,
    /// Referenced data, each to be sent before `copied[at]`; ascending.
    shared: VecDeque<(usize, Bytes)>,
    shared_bytes: usize,
}

impl Outbox {
    /// Where headers are appended.
    pub(super) fn head(&mut self) -> &mut Vec<u8> {
        &mut self.copied
    }

    /// Appends data.
    pub(super) fn data(&mut self, data: Bytes) {
        if data.len() <= COPY_MAX {
            self.copied.extend_from_slice(&data);
        } else {
            self.shared_bytes += data.len();
            self.shared.push_back((self.copied.len(), data));
        }
    }

    /// Bytes not yet sent.
    pub(super) fn backlog(&self) -> usize {
        self.copied.len() - self.sent + self.shared_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.backlog() == 0
    }

    /// Calls `send` with the next pieces.
    pub(super) fn gather<R>(&self, send: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
        if self.shared.is_empty() {
            return send(&[IoSlice::new(&self.copied[self.sent..])]);
        }
        let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
        let (mut count, mut from) = (0, self.sent);
        let mut add = |piece| {
            pieces[count] = IoSlice::new(piece);
            count += 1;
        };
        for (at, data) in self.shared.iter().take(PIECES_MAX / 2 - 1) {
            if from < *at {
                add(&self.copied[from..*at]);
            }
            from = *at;
            add(data);
        }
        if self.shared.len() < PIECES_MAX / 2 && from < self.copied.len() {
            add(&self.copied[from..]);
        }
        send(&pieces[..count])
    }

    /// `len` bytes were sent.
    pub(super) fn advance(&mut self, mut len: usize) {
        while len > 0 {
            let until = self.shared.front().map_or(self.copied.len(), |(at, _)| *at);
            let copied = len.min(until - self.sent);
            self.sent += copied;
            len -= copied;
            if len == 0 {
                break;
            }
            let (_, data) = self
                .shared
                .front_mut()
                .expect("no more is sent than there was");
            let part = len.min(data.len());
            bytes::Buf::advance(data, part);
            self.shared_bytes -= part;
            len -= part;
            if data.is_empty() {
                self.shared.pop_front();
            }
        }
        if self.is_empty() {
            self.copied.clear();
            // What one slow reader piled up is not held for good.
            self.copied.shrink_to(KEPT_MAX);
            self.sent = 0;
        } else if self.sent >= COMPACT_MIN {
            self.copied.drain(..self.sent);
            for (at, _) in &mut self.shared {
                *at -= self.sent;
            }
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_go_out_in_order_however_they_are_cut(
            pieces in prop::collection::vec((1usize..40, 0usize..2 * COPY_MAX), 1..90),
            cuts in prop::collection::vec(1usize..600_000, 1..9),
            batch in 1usize..50,
        ) {
            let (mut outbox, mut want, mut got) = (Outbox::default(), Vec::new(), Vec::new());
            let mut cuts = cuts.iter().cycle();
            let mut send = |outbox: &mut Outbox, got: &mut Vec<u8>| {
                let before = got.len();
                outbox.gather(|slices| {
                    assert!(!slices.is_empty() && slices.len() <= PIECES_MAX);
                    for slice in slices {
                        got.extend_from_slice(slice);
                    }
                });
                let sent = (got.len() - before).min(*cuts.next().unwrap());
                got.truncate(before + sent);
                outbox.advance(sent);
            };
            for (index, (head, data)) in pieces.into_iter().enumerate() {
                let fill = u8::try_from(index).unwrap();
                let len = outbox.copied.len() + head;
                outbox.head().resize(len, fill);
                outbox.data(Bytes::from(vec![fill ^ 0x80; data]));
                want.resize(want.len() + head, fill);
                want.resize(want.len() + data, fill ^ 0x80);
                prop_assert_eq!(outbox.backlog(), want.len() - got.len());
                if index % batch == 0 {
                    send(&mut outbox, &mut got);
                }
            }
            while !outbox.is_empty() {
                send(&mut outbox, &mut got);
            }
            prop_assert_eq!(got, want);
            prop_assert!(outbox.copied.is_empty() && outbox.shared.is_empty());
        }
    }
}
