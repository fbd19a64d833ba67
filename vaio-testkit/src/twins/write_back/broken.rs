//! The bugs of the cache that need more than a condition. Not for copying: each does nothing, or
//! what is right, while its [`Bug`] is off.

use std::sync::atomic::Ordering::Relaxed;

use vaio_core::{Extent, Io, Next, Reply, Result, sync::LockMode};

use super::{Cache, record::Content};
use crate::zoo::Bug;

impl Cache {
    /// W4 broken: takes the slots of all pieces before it writes the first.
    pub(super) async fn reserve_early(
        &self,
        extent: Extent,
        content: &Content,
    ) -> Result<Vec<u64>> {
        let mut reserved = Vec::new();
        if self.has(Bug::SlotsHeldTogether) {
            for piece in self.pieces(extent, content) {
                let part = content.part(extent, piece);
                reserved.push(self.reserve(piece, part).await?);
            }
        }
        Ok(reserved)
    }

    /// W2, W3 broken: a record that never gets to the device.
    pub(super) fn is_kept_in_memory(&self, seq: u64, extent: Extent, content: &Content) -> bool {
        match self.bug {
            Some(Bug::ZeroesNotLogged) => *content == Content::Zeroes,
            Some(Bug::SecondWriteNotLogged) => {
                let held = self.log().read(extent);
                *content != Content::Zeroes && seq > 0 && !held.is_empty()
            }
            _ => false,
        }
    }

    /// Discards in other ways than by a record of zeroes.
    pub(super) async fn discard(
        &self,
        extent: Extent,
        is_fua: bool,
        next: Next<'_>,
    ) -> Result<Reply> {
        match self.bug {
            Some(Bug::DiscardDropsRecord) => {
                let _order = self.ranges.lock(extent, LockMode::Exclusive).await;
                self.log().forget_touched(extent);
                next.write_zeroes(extent).await?;
                Ok(Reply::Done)
            }
            Some(Bug::DiscardUnordered) => {
                next.write_zeroes(extent).await?;
                self.log().forget_blocks(extent);
                Ok(Reply::Done)
            }
            Some(Bug::DiscardInMemory) => {
                let _order = self.ranges.lock(extent, LockMode::Exclusive).await;
                let seq = self.reserve(extent, Content::Zeroes).await?;
                self.log().written(seq, self.store.trust());
                self.log().publish(seq);
                self.wanted.notify_all();
                Ok(Reply::Done)
            }
            _ => self.write(extent, Content::Zeroes, is_fua).await,
        }
    }

    pub(super) fn is_past_log(&self) -> bool {
        self.has(Bug::WriteThroughPastLog) && self.is_write_through.load(Relaxed)
    }

    /// Write-through past the log: the log still holds older content of these blocks.
    pub(super) async fn write_past_log(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        let extent = io.op.extent();
        let _order = self.ranges.lock(extent, LockMode::Exclusive).await;
        let reply = next.submit(io).await?;
        self.log().forget_blocks(extent);
        Ok(reply)
    }
}
