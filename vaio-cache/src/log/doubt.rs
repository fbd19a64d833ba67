//! What a flush covers, and what a failed one leaves in doubt (L3).

use bytes::Bytes;

use super::{Log, WriteRecord};

impl Log {
    /// Published records that a flush would not cover, each counted as being written again (L3, L4).
    /// What is not published may be given up yet, and no flush is to cover it.
    pub(crate) fn rewrites(&mut self) -> Vec<WriteRecord> {
        let (trust, durable, published) = (self.trust, self.durable, self.published);
        let from = self
            .recent
            .partition_point(|one| one.header.end() <= durable);
        self.recent
            .range_mut(from..)
            .take_while(|one| one.header.end() <= published)
            .filter(|one| one.written.is_some_and(|then| then != trust))
            .map(|record| {
                record.writers += 1;
                WriteRecord {
                    seq: record.header.seq,
                    at: record.at,
                    bytes: record.bytes.clone(),
                    trust,
                    footer: None,
                }
            })
            .collect()
    }

    /// What a flush covers that begins now; `None`: something of it is to be written again first.
    pub(crate) fn to_flush(&self) -> Option<u64> {
        let (durable, published) = (self.durable, self.published);
        let from = self
            .recent
            .partition_point(|one| one.header.end() <= durable);
        let mut records = self
            .recent
            .range(from..)
            .take_while(|one| one.header.end() <= published);
        let is_believed = records.all(|one| one.written == Some(self.trust));
        is_believed.then_some(published)
    }

    /// A flush ended well that was begun when `published` was this.
    pub(crate) fn made_durable(&mut self, published: u64) {
        assert!(published <= self.published, "L1");
        let from = self.durable;
        self.durable = self.durable.max(published);
        let durable = self.durable;
        let first = self
            .recent
            .partition_point(|record| record.header.end() <= from);
        for record in self.recent.range_mut(first..) {
            if record.header.end() > durable {
                break;
            }
            record.bytes = Bytes::new();
            if let Some(bytes) = self.unflushed.remove(&record.at) {
                self.unflushed_bytes -= bytes.len() as u64;
            }
        }
        self.fold();
    }

    /// A flush failed: what was written before it ended may be gone.
    pub(crate) fn distrust(&mut self) {
        self.trust += 1;
    }
}
