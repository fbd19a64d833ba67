//! A write: queued, composed into a record with whoever else waits, published, answered.
//!
//! There is no writer task. A write that finds room for a record in flight composes the next one
//! from all that waits, its own write among them or behind them, and writes it; the others wait
//! for their seq. Where the last record had several writes, a write first lets others come: one
//! record for what the guest has sent together. The framework never drops an IO inside a filter that holds data, so the writer
//! of a record always comes back.
//!
//! * W1: a write is answered when it is published (L2), and durable where that was asked for.
//! * W2: a write that is given up does not change anything after its answer.

use std::{future::poll_fn, sync::atomic::Ordering::Relaxed, task::Poll};

use bytes::Bytes;
use vaio_core::{Error, Extent, Io, Next, Reply, Result, RuntimeExt, Severity};

use crate::{
    cache::Cache,
    geometry::{Span, index},
    log::{Log, Step, Waiting, WriteRecord, ZEROES_BLOCKS_MAX, entry_blocks_max},
    pace::slow_down,
    record::{self, Entry, Kind},
    report::Counters,
    settings::{Durability, Mode},
};

/// How often a record is written, in place, before the device counts as failed.
const WRITE_TRIES_MAX: u32 = 3;

/// Turns that a write gives to others at most before it composes a record.
const GATHER_TURNS_MAX: u32 = 128;
/// Turns in which no one came, after which it goes on.
pub(crate) const GATHER_IDLE_TURNS: u32 = 3;

/// What a write changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Data(Bytes),
    Zeroes,
    Discard,
}

/// Lets whoever else is ready go first.
async fn yield_once() {
    let mut is_second = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut is_second, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Why a write is not in the log.
#[derive(Debug)]
enum NotLogged {
    /// The cache device failed: it goes another way.
    Failed,
    Error(Error),
}

impl Cache {
    /// A write, zeroes or discard of the guest.
    pub(crate) async fn mutate(
        &self,
        io: &Io,
        extent: Extent,
        content: Content,
        next: Next<'_>,
    ) -> Result<Reply> {
        // X1.
        let change = self.store.change(self.device.geometry().span(extent));
        loop {
            let pass = self.passage.enter().await;
            if self.is_bypassed() {
                Counters::add(&self.counters.waited, 1);
                let reply = self.write_below(io, extent, &content, next).await?;
                if let Content::Data(data) = &content {
                    match self.settings.mode {
                        Mode::WriteThrough => change.keep(data, false),
                        Mode::ReadOnly => change.keep(data, true),
                        Mode::WriteBack | Mode::WriteAround => {}
                    }
                }
                return Ok(reply);
            }
            self.slow_down().await;
            let begun = self.cx.rt().now();
            match self.log_write(extent, &content, io.op.is_fua()).await {
                Ok(()) => {
                    let took = self.cx.rt().now().since(begun);
                    self.guest().add(took, self.is_destaging.load(Relaxed));
                    return Ok(Reply::Done);
                }
                Err(NotLogged::Error(error)) => return Err(error),
                Err(NotLogged::Failed) => {}
            }
            drop(pass);
            self.degrade().await?;
        }
    }

    /// Waits a little where the log fills up (T3).
    async fn slow_down(&self) {
        let (segments, is_held) = {
            let log = self.log();
            (log.segments_used(), log.held().is_some())
        };
        let pause = slow_down(segments);
        // What a hold fills up is not made room for before it is full, and then it is let go.
        if !pause.is_zero() && !is_held {
            self.cx.rt().probe("cache.slow_down");
            Counters::add(&self.counters.waited, 1);
            self.cx.rt().sleep(pause).await;
        }
    }

    /// Says once that writes wait for room.
    fn say_full(&self) {
        if !self.is_full.swap(true, Relaxed) {
            let text = "the log is full: writes go at the pace of the backing";
            let next_step = "look at the backing, or give the disk a larger cache device";
            self.event(Severity::Warning, text, next_step);
        }
    }

    async fn log_write(
        &self,
        extent: Extent,
        content: &Content,
        is_fua: bool,
    ) -> Result<(), NotLogged> {
        let parts = self.parts(extent, content);
        let (first, end) = {
            let mut log = self.log();
            let mut ends = parts.into_iter().map(|part| log.enqueue(part));
            let first = ends.next().expect("an IO is not empty");
            (first - 1, ends.last().unwrap_or(first))
        };
        self.gather().await;
        self.drive(first, end).await?;
        if self.cx.rt().buggify("cache.destage") {
            self.kick();
        }
        // W1.
        if is_fua || self.settings.durability == Durability::AtAck {
            self.make_durable(end).await.map_err(NotLogged::Error)?;
        }
        // The last look before the answer: a policy that was set is in force for it.
        if self.is_write_through.load(Relaxed) {
            // H2.
            self.let_go();
            Counters::add(&self.counters.waited, 1);
            self.destage_to(end).await.map_err(NotLogged::Error)?;
        }
        Ok(())
    }

    /// Lets those come that the guest sends together with this write: its answers to the record
    /// before come one by one.
    async fn gather(&self) {
        self.give_way(GATHER_IDLE_TURNS, Log::has_company).await;
    }

    /// Gives turns to others as long as they bring writes or records, and it `is_worth` it.
    pub(crate) async fn give_way(&self, idle_max: u32, is_worth: impl Fn(&Log) -> bool) {
        let mut idle = 0;
        let mut seen = (0, 0);
        for _ in 0..GATHER_TURNS_MAX {
            {
                let log = self.log();
                let now = (log.next(), log.composed());
                idle = if now == seen { idle + 1 } else { 0 };
                seen = now;
                if idle == idle_max || !is_worth(&log) {
                    return;
                }
            }
            yield_once().await;
        }
    }

    /// Cuts a write into entries, each with its sums: outside of the log's lock.
    fn parts(&self, extent: Extent, content: &Content) -> Vec<Waiting> {
        let geometry = self.device.geometry();
        let whole = geometry.span(extent);
        let (kind, blocks_max) = match content {
            Content::Data(_) => (Kind::Data, entry_blocks_max(geometry)),
            Content::Zeroes => (Kind::Zeroes, ZEROES_BLOCKS_MAX),
            Content::Discard => (Kind::Discard, ZEROES_BLOCKS_MAX),
        };
        let mut parts = Vec::new();
        let mut start = whole.start;
        while start < whole.end() {
            let span = Span::from_range(start, whole.end().min(start + blocks_max));
            let mut sums = Vec::new();
            let data = match content {
                Content::Data(data) => {
                    let from = index(geometry.bytes(span.start - whole.start));
                    let part = data.slice(from..from + index(geometry.bytes(span.count)));
                    record::sum(span, &part, geometry, &mut sums);
                    part
                }
                Content::Zeroes | Content::Discard => Bytes::new(),
            };
            let entry = Entry { span, kind };
            parts.push(Waiting { entry, data, sums });
            start = span.end();
        }
        parts
    }

    /// Works until everything before `end` is published.
    async fn drive(&self, first: u64, end: u64) -> Result<(), NotLogged> {
        loop {
            let progress = self.progress.listen();
            let now = self.cx.rt().now();
            let step = self.log().step(end, now);
            let done = match step {
                Step::Published => return Ok(()),
                Step::Failed => return Err(NotLogged::Failed),
                Step::Write(record) => {
                    self.write_record(record).await;
                    Ok(())
                }
                Step::Full(seq) if self.log().destaged() < seq => {
                    self.cx.rt().probe("cache.full");
                    self.say_full();
                    // A backing that is held at a point cannot take what would make room.
                    self.let_go_for_room();
                    Counters::add(&self.counters.waited, 1);
                    self.destage_to(seq).await
                }
                // A reader still holds the segment.
                Step::Full(_) | Step::Wait => {
                    progress.await;
                    Ok(())
                }
                Step::Unflushed(seq) => {
                    self.cx.rt().probe("cache.unflushed");
                    self.make_durable(seq).await
                }
            };
            if let Err(error) = done {
                return self.give_up(first, end, error).await;
            }
        }
    }

    /// Ends a write that cannot go on (W2): what waits is cancelled, what is in a record is
    /// waited for.
    async fn give_up(&self, first: u64, end: u64, error: Error) -> Result<(), NotLogged> {
        let composed = {
            let mut log = self.log();
            log.cancel(first, end);
            // Others may have composed it meanwhile.
            log.composed().min(end)
        };
        self.moved_on();
        loop {
            let progress = self.progress.listen();
            {
                let log = self.log();
                if log.is_failed() {
                    return Err(NotLogged::Failed);
                }
                if log.published() >= composed {
                    return Err(NotLogged::Error(error));
                }
            }
            progress.await;
        }
    }

    async fn write_record(&self, record: WriteRecord) {
        let footer = async {
            if let Some((at, bytes)) = record.footer.clone() {
                // F1: without it, recovery reads the records.
                let _ = self.device.write(at, bytes).await;
            }
        };
        // How it ended is in the log.
        let _ = futures::join!(self.write_and_note(&record), footer);
    }

    /// Writes a record, and notes its end in the same moment: a flush that fails later may have
    /// lost it (D2).
    pub(crate) async fn write_and_note(&self, record: &WriteRecord) -> Result<()> {
        let written = self.write_in_place(record).await;
        let mut log = self.log();
        match written {
            Ok(()) => log.written(record.seq, record.trust),
            Err(_) => log.not_written(record.seq),
        }
        drop(log);
        self.moved_on();
        written
    }

    /// Writes a record, a few times if need be: the same bytes at the same place.
    async fn write_in_place(&self, record: &WriteRecord) -> Result<()> {
        let mut tries = 1;
        loop {
            let written = self.device.write(record.at, record.bytes.clone()).await;
            if written.is_ok() || tries == WRITE_TRIES_MAX {
                return written;
            }
            self.cx.rt().probe("cache.write_again");
            tries += 1;
        }
    }
}
