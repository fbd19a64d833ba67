//! Cuts: which writes the backing may show together.
//!
//! The guest may rely on the order of two writes only if it was told that the first is guaranteed
//! before it sent the second. So the log is divided into *cuts*, such that no write shares a cut
//! with an earlier one that the guest was told of; and the backing gets cut after cut, each whole
//! and flushed before the next. Then whatever part of one cut it holds is a legal crash image.
//!
//! * O1: a record has the number of the cut that is open when it is composed. Cuts never fall.
//! * O2: a cut ends as soon as anything in it is durable in the log: nothing is told before that
//!   (flush, fua and at-ack replies all wait for it). Later than necessary would be wrong, earlier
//!   is safe.
//! * O3: a cut ends when its destaging begins, when the backing is to be held at a point, when an
//!   epoch begins, and at a size.

/// What decides about cuts. Pure.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    cut: u64,
    /// First seq of the open cut; `None`: nothing is in it.
    first_seq: Option<u64>,
    bytes: u64,
    bytes_max: u64,
}

impl Order {
    /// The first cut of an epoch (O3), above all of the epochs before. `bytes_max` bounds what
    /// one destaging has to do again after an error.
    pub(crate) fn new(cut: u64, bytes_max: u64) -> Self {
        Self {
            cut,
            first_seq: None,
            bytes: 0,
            bytes_max,
        }
    }

    /// The cut of a record that is composed now (O1). `durable_seq` is that of the log.
    pub(crate) fn place(&mut self, seq: u64, bytes: u64, durable_seq: u64) -> u64 {
        let is_told = self.first_seq.is_some_and(|first| durable_seq > first);
        if is_told || self.bytes >= self.bytes_max {
            self.close();
        }
        self.first_seq.get_or_insert(seq);
        self.bytes += bytes;
        self.cut
    }

    /// Ends the open cut, if anything is in it (O3).
    pub(crate) fn close(&mut self) {
        if self.first_seq.take().is_some() {
            self.cut += 1;
        }
        self.bytes = 0;
    }

    /// The cut that is open.
    pub(crate) fn cut(&self) -> u64 {
        self.cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_share_a_cut_until_one_is_durable() {
        let mut order = Order::new(5, 1000);
        assert_eq!(order.place(10, 1, 10), 5);
        assert_eq!(order.place(11, 1, 10), 5);
        // Seq 10 is durable: the guest may know.
        assert_eq!(order.place(12, 1, 11), 6);
        assert_eq!(order.place(13, 1, 12), 6, "nothing of cut 6 is durable");
        assert_eq!(order.place(14, 1, 13), 7);
    }

    #[test]
    fn cut_ends_when_closed_and_at_its_size() {
        let mut order = Order::new(0, 10);
        order.close();
        assert_eq!(order.cut(), 0, "an empty cut does not end");
        assert_eq!(order.place(0, 9, 0), 0);
        order.close();
        assert_eq!(order.place(1, 10, 0), 1);
        assert_eq!(order.place(2, 1, 0), 2);
    }
}
