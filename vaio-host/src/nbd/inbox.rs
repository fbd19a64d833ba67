//! [`Inbox`]: the receive buffer of a connection. One large receive, many requests.

/// Bytes received and not yet taken, in one buffer that is reused for the connection's life.
#[derive(Debug)]
pub(super) struct Inbox {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Inbox {
    /// An empty buffer of `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            bytes: vec![0; capacity].into_boxed_slice(),
            from: 0,
            to: 0,
        }
    }

    /// What was received and not yet taken.
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[self.from..self.to]
    }

    /// Takes `len` bytes off the front.
    pub(super) fn consume(&mut self, len: usize) {
        self.from += len;
        assert!(self.from <= self.to, "no more is taken than was received");
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
        }
    }

    /// Copies what there is into `target`, as far as it fits; returns how much.
    pub(super) fn take_into(&mut self, target: &mut [u8]) -> usize {
        let len = target.len().min(self.filled().len());
        target[..len].copy_from_slice(&self.filled()[..len]);
        self.consume(len);
        len
    }

    /// Room for the next receive, at most `window` bytes. Moves what is left to the front when
    /// less than half of the buffer is free behind it: that is the tail of one request.
    pub(super) fn spare(&mut self, window: usize) -> &mut [u8] {
        if self.bytes.len() - self.to < self.bytes.len() / 2 {
            self.bytes.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        let end = self.bytes.len().min(self.to + window);
        &mut self.bytes[self.to..end]
    }

    /// `len` bytes were received into the room that [`spare`](Self::spare) gave.
    pub(super) fn received(&mut self, len: usize) {
        self.to += len;
        assert!(
            self.to <= self.bytes.len(),
            "the kernel keeps to its buffer"
        );
    }

    /// The same content in a buffer of at least `capacity` bytes.
    pub(super) fn grow(&mut self, capacity: usize) {
        if capacity > self.bytes.len() {
            let mut larger = Self::new(capacity);
            larger.received(self.filled().len());
            larger.bytes[..larger.to].copy_from_slice(self.filled());
            *self = larger;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(inbox: &mut Inbox, data: &[u8]) {
        inbox.spare(data.len()).copy_from_slice(data);
        inbox.received(data.len());
    }

    #[test]
    fn content_survives_moving_and_growing() {
        let mut inbox = Inbox::new(8);
        receive(&mut inbox, b"abcdef");
        inbox.consume(4);
        receive(&mut inbox, b"ghij");
        assert_eq!(inbox.filled(), b"efghij");
        inbox.grow(16);
        assert_eq!(inbox.filled(), b"efghij");
        let mut target = [0; 4];
        assert_eq!(inbox.take_into(&mut target), 4);
        assert_eq!((&target, inbox.filled()), (b"efgh", &b"ij"[..]));
        assert_eq!(inbox.take_into(&mut target), 2);
        assert_eq!(inbox.spare(100).len(), 16);
    }

    #[test]
    fn spare_is_empty_only_when_full() {
        let mut inbox = Inbox::new(4);
        receive(&mut inbox, b"abcd");
        assert!(inbox.spare(9).is_empty());
        inbox.consume(1);
        assert_eq!(inbox.spare(9).len(), 1);
    }
}
