//! The read store: clean data near the guest, for reads that the log has no answer to.
//!
//! Never needed for correctness: nothing in it is only there, what does not verify is read from
//! below, and it begins empty at every open. What it must never do is show what is no longer so:
//!
//! * X1: while a write, zeroes or discard is on its way, nothing is filled where it writes, and
//!   what was there is dropped before it begins. So a unit is shown only if nothing has been written
//!   to it since it was read.
//! * X2: a read's permission to fill is asked for in the same moment as it looks at the map and at
//!   the shelf, before it reads below, and is void when a write to the same place begins (`shelf`).
//! * X3: what is shown is verified, each time.
//! * X4: filling is never waited for: by no read and no write. One task does it.

mod fill;
mod index;
mod policy;
#[cfg(test)]
mod ratio;
mod shelf;
mod stream;

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use vaio_core::sync::Notify;

use crate::geometry::{Geometry, Span, index};
pub(crate) use fill::run;
use policy::S3Fifo;
use shelf::{ChangeId, Shelf};
pub(crate) use shelf::{Hit, Token};
use stream::Streams;

/// Bytes that wait to be filled; more are not kept.
const QUEUE_BYTES_MAX: u64 = 8 << 20;

/// What is to be kept, if its permission is still good then.
#[derive(Debug)]
struct Job {
    token: Token,
    /// Whole units, neighbours.
    parts: Vec<(Span, Bytes)>,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    bytes: u64,
}

/// The read store of one instance.
#[derive(Debug)]
pub(crate) struct Store {
    geometry: Geometry,
    shelf: Mutex<Shelf>,
    streams: Mutex<Streams>,
    queue: Mutex<Queue>,
    /// There is something to fill.
    wanted: Notify,
    /// The device took writes the last times.
    is_filling: AtomicBool,
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
}

/// A write on its way: nothing is filled where it writes until this is dropped (X1).
#[derive(Debug)]
pub(crate) struct Change<'a> {
    store: &'a Store,
    span: Span,
    id: Option<ChangeId>,
    /// Units that were on the shelf.
    kept: Vec<u32>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    pub(crate) fn new(geometry: Geometry) -> Self {
        let policy = S3Fifo::new(index(geometry.store_units()));
        Self {
            geometry,
            shelf: Mutex::new(Shelf::new(geometry, Box::new(policy))),
            streams: Mutex::default(),
            queue: Mutex::default(),
            wanted: Notify::default(),
            is_filling: AtomicBool::new(geometry.regions > 0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// Whether there is room for anything.
    pub(crate) fn is_there(&self) -> bool {
        self.geometry.regions > 0
    }

    /// Bytes on the shelf.
    pub(crate) fn bytes(&self) -> u64 {
        let units = lock(&self.shelf).units();
        self.geometry.bytes(units * u64::from(self.geometry.unit))
    }

    /// Where a unit is, kept there until [`unpin`](Self::unpin).
    pub(crate) fn find(&self, unit: u64) -> Option<Hit> {
        let mut shelf = lock(&self.shelf);
        let hit = shelf.find(u32::try_from(unit).ok()?)?;
        shelf.pin(hit.region);
        Some(hit)
    }

    pub(crate) fn unpin(&self, region: u32) {
        lock(&self.shelf).unpin(region);
    }

    /// Permission to fill what a read gets from below (X2). Ask while the log's state is locked.
    pub(crate) fn permit(&self, span: Span) -> Option<Token> {
        if !self.is_filling.load(Relaxed) {
            return None;
        }
        let bytes = self.geometry.bytes(span.count);
        if lock(&self.streams).is_sequential(span, bytes) {
            return None;
        }
        lock(&self.shelf).permit(span)
    }

    /// What was read below: kept if it may be (X2, X4).
    pub(crate) fn offer(&self, token: Token, parts: Vec<(Span, Bytes)>) {
        let mut units = Vec::new();
        for (span, data) in parts {
            self.cut(span, &data, &mut units);
        }
        let bytes = units.iter().map(|(_, data)| data.len() as u64).sum();
        let mut queue = lock(&self.queue);
        if units.is_empty() || queue.bytes + bytes > QUEUE_BYTES_MAX {
            drop(queue);
            lock(&self.shelf).give_back(token);
            return;
        }
        queue.bytes += bytes;
        queue.jobs.push_back(Job {
            token,
            parts: units,
            bytes,
        });
        drop(queue);
        self.wanted.notify_all();
    }

    /// The whole units of a stretch.
    fn cut(&self, span: Span, data: &Bytes, units: &mut Vec<(Span, Bytes)>) {
        let mut at = 0;
        for piece in self.geometry.pieces(span) {
            let end = at + index(self.geometry.bytes(piece.count));
            if piece.count == u64::from(self.geometry.unit) {
                units.push((piece, data.slice(at..end)));
            }
            at = end;
        }
    }

    fn take_job(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        let job = queue.jobs.pop_front()?;
        queue.bytes -= job.bytes;
        Some(job)
    }

    /// A write begins (X1).
    pub(crate) fn change(&self, span: Span) -> Change<'_> {
        let mut change = Change {
            store: self,
            span,
            id: None,
            kept: Vec::new(),
        };
        if self.is_there() {
            let (id, kept) = lock(&self.shelf).begin_change(span);
            change.id = Some(id);
            change.kept = kept;
        }
        change
    }

    /// Content does not verify, or cannot be read: it is not looked at again.
    pub(crate) fn drop_units(&self, span: Span) {
        lock(&self.shelf).drop_units(span);
    }

    /// The device failed: nothing more is filled.
    pub(crate) fn stop(&self) {
        self.is_filling.store(false, Relaxed);
    }
}

impl Change<'_> {
    /// The write is on the backing: its content is kept for reads; where `only_known`, of what was
    /// on the shelf before.
    pub(crate) fn keep(mut self, data: &Bytes, only_known: bool) {
        let Some(id) = self.id.take() else {
            return;
        };
        let token = lock(&self.store.shelf).end_change(id, Some(self.span));
        let Some(token) = token else {
            return;
        };
        let unit = u64::from(self.store.geometry.unit);
        let mut parts = Vec::new();
        self.store.cut(self.span, data, &mut parts);
        let is_known = |span: &Span| {
            self.kept
                .iter()
                .any(|one| u64::from(*one) == span.start / unit)
        };
        parts.retain(|(span, _)| !only_known || is_known(span));
        self.store.offer(token, parts);
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            let _ = lock(&self.store.shelf).end_change(id, None);
        }
    }
}
