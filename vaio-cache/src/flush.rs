//! Durability in the cache device: its flush, and what a failed one is worth.
//!
//! * D1: flushes and superblocks come one after another, so that "what was written before this
//!   flush began" is a fact.
//! * D2: after a failed flush nothing that it should have covered is believed. It is written again
//!   in place before the next flush counts (L3). That is what
//!   [`FlushRetry::Covers`](vaio_core::FlushRetry::Covers) says.

use std::{pin::pin, sync::atomic::Ordering::Relaxed};

use futures::future::{Either, join_all, select};
use vaio_core::{Reply, Result, Severity};

use crate::{
    cache::Cache,
    log::Log,
    settings::Durability,
    superblock::{OPEN, Superblock},
    write::GATHER_IDLE_TURNS,
};

/// Flushes and superblocks that may fail one after another before the device counts as failed.
const FLUSH_FAILURES_MAX: u32 = 8;

impl Cache {
    /// A flush of the guest. Never one of the backing, but for what went past the log.
    pub(crate) async fn flush(&self) -> Result<Reply> {
        if self.log().is_failed() && !self.is_bypassed() {
            self.degrade().await?;
        }
        if self.is_bypassed() {
            self.flush_below().await?;
            return Ok(Reply::Done);
        }
        // At ack, everything that was answered is durable already.
        if self.settings.durability == Durability::AtFlush {
            let published = self.log().published();
            self.make_durable(published).await?;
        }
        Ok(Reply::Done)
    }

    /// Makes durable what is before `seq`, which is published.
    pub(crate) async fn make_durable(&self, seq: u64) -> Result<()> {
        // D1. Whoever waits mostly finds that the one before has done it. They all find it at once, and
        // not one after another as the lock goes round: a guest's next writes then come together.
        let (turn, done) = (pin!(self.flushing.lock()), pin!(self.durable_to(seq)));
        let Either::Left((_alone, _)) = select(turn, done).await else {
            return Ok(());
        };
        if self.log().durable() >= seq {
            return Ok(());
        }
        if self.settings.durability == Durability::AtAck {
            self.gather_records().await;
        }
        // Only flushes make doubts, and they come one after another: it ends.
        let published = loop {
            self.write_again().await?;
            if let Some(published) = self.log().to_flush() {
                break published;
            }
        };
        assert!(published >= seq, "only what is published is made durable");
        self.flush_device().await?;
        self.log().made_durable(published);
        self.moved_on();
        Ok(())
    }

    /// Lets the records come that are on their way: at ack their writes wait for a flush too, and a
    /// flush that goes without them makes them wait for two. It waits for what is being written, and
    /// never for what may itself need a flush first.
    async fn gather_records(&self) {
        // Theirs begin with turns of their own.
        self.give_way(2 * GATHER_IDLE_TURNS, Log::had_company).await;
        let composed = self.log().composed();
        loop {
            let progress = self.progress.listen();
            {
                let log = self.log();
                if log.published() >= composed || log.is_failed() {
                    return;
                }
            }
            progress.await;
        }
    }

    /// Resolves when everything before `seq` is durable.
    async fn durable_to(&self, seq: u64) {
        loop {
            let progress = self.progress.listen();
            if self.log().durable() >= seq {
                return;
            }
            progress.await;
        }
    }

    /// D2.
    async fn write_again(&self) -> Result<()> {
        let records = self.log().rewrites();
        let writes = records.iter().map(|record| self.write_and_note(record));
        // Every write ends, also after one has failed.
        let written = join_all(writes).await;
        if !records.is_empty() {
            self.cx.rt().probe("cache.written_again");
        }
        written.into_iter().collect()
    }

    async fn flush_device(&self) -> Result<()> {
        let flushed = self.device.flush().await;
        if flushed.is_ok() {
            self.flush_failures.store(0, Relaxed);
            return Ok(());
        }
        self.log().distrust();
        self.count_failure();
        flushed
    }

    fn count_failure(&self) {
        let failures = self.flush_failures.fetch_add(1, Relaxed) + 1;
        if failures >= FLUSH_FAILURES_MAX {
            self.log().fail();
            self.moved_on();
        }
    }

    /// Makes it durable that everything before `destaged` is on the backing (S1).
    pub(crate) async fn persist(&self, destaged: u64) -> Result<()> {
        if !self.log().is_failed() {
            let persisted = self.persist_on_device(destaged).await;
            if persisted.is_ok() || !self.log().is_failed() {
                return persisted;
            }
        }
        let epoch = self.log().epoch();
        crate::recover::note_destaged(&self.cx, epoch, destaged).await
    }

    /// Writes the superblock: durable when this returns.
    pub(crate) async fn persist_on_device(&self, destaged: u64) -> Result<()> {
        let mut generation = self.flushing.lock().await;
        let superblock = {
            let log = self.log();
            let epochs = log.epochs(destaged);
            assert!(
                epochs.last().is_some_and(|one| one.end_seq == OPEN),
                "the epoch that is written is listed"
            );
            Superblock {
                generation: *generation + 1,
                identity: self.identity,
                owner: self.cx.epoch(),
                geometry: *log.geometry(),
                destaged_seq: destaged,
                epochs,
            }
        };
        let written = self.device.write_superblock(&superblock).await;
        let persisted = match written {
            Ok(()) => self.flush_device().await,
            Err(error) => {
                self.count_failure();
                Err(error)
            }
        };
        match &persisted {
            Ok(()) => {
                *generation += 1;
                self.log().persisted(&superblock.epochs);
            }
            Err(error) => self.event(
                Severity::Warning,
                format!("the superblock was not written: {}", error.to_line()),
                "look at the cache device",
            ),
        }
        persisted
    }
}
