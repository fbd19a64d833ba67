//! Where the lines go: a ring in memory, or a bounded queue in front of a file.
//!
//! Invariants: `push` never waits; the queue is bounded; a line that is not in the file is
//! counted, and the file has a gap line where it is missing.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vaio_core::{
    BoxFuture, Error, Result, Rt, RuntimeExt,
    sync::{self, Notify},
};

use super::record::{Gap, Record, line};

/// Lines written in one piece.
const BATCH_MAX: usize = 1024;

/// The newest records, in memory.
#[derive(Debug)]
pub struct Ring {
    records_max: usize,
    records: Mutex<VecDeque<Record>>,
}

impl Ring {
    /// A ring that keeps the newest `records_max`.
    pub fn new(records_max: usize) -> Arc<Self> {
        Arc::new(Self {
            records_max,
            records: Mutex::default(),
        })
    }

    /// What it holds now, oldest first.
    pub fn records(&self) -> Vec<Record> {
        locked(&self.records).iter().cloned().collect()
    }

    pub(super) fn push(&self, record: Record) {
        let mut records = locked(&self.records);
        if records.len() == self.records_max {
            records.pop_front();
        }
        records.push_back(record);
    }
}

/// A file that is written behind.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Mutex<Queue>,
    queue_max: usize,
    pushed: Notify,
    /// Held by whoever writes, so that lines keep their order.
    turn: sync::Mutex<()>,
    /// Locked only where blocking is allowed.
    file: Arc<Mutex<File>>,
}

#[derive(Debug, Default)]
struct Queue {
    records: VecDeque<Record>,
    /// Lines lost since the last gap line.
    gap: u64,
    lines: u64,
    dropped: u64,
    problem: Option<String>,
}

/// What a writer has done since it was opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) lines: u64,
    pub(super) dropped: u64,
    pub(super) problem: Option<String>,
}

impl Writer {
    /// Opens `path` to append to, made for its owner alone if it is missing.
    pub(super) async fn open(path: PathBuf, queue_max: usize, rt: &Rt) -> Result<Self> {
        let name = path.display().to_string();
        let opened = rt
            .offload_with(move || {
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .open(path)
            })
            .await;
        let file = opened
            .unwrap_or_else(|| Err(io::Error::other("no answer")))
            .map_err(|cause| {
                let text =
                    format!("cannot open the audit file; check folder and rights, path={name}");
                Error::config(text).with_source(cause)
            })?;
        Ok(Self {
            queue: Mutex::default(),
            queue_max,
            pushed: Notify::default(),
            turn: sync::Mutex::new(()),
            file: Arc::new(Mutex::new(file)),
        })
    }

    /// Takes a record in, or drops and counts it where the writer is too far behind.
    pub(super) fn push(&self, record: Record) {
        {
            let mut queue = locked(&self.queue);
            if queue.records.len() >= self.queue_max {
                queue.gap += 1;
                queue.dropped += 1;
                return;
            }
            queue.records.push_back(record);
        }
        self.pushed.notify_all();
    }

    pub(super) fn progress(&self) -> Progress {
        let queue = locked(&self.queue);
        Progress {
            lines: queue.lines,
            dropped: queue.dropped,
            problem: queue.problem.clone(),
        }
    }

    /// Resolves when there is something to write. Cancel-safe.
    pub(super) async fn wait(&self) {
        loop {
            let pushed = self.pushed.listen();
            if !locked(&self.queue).records.is_empty() {
                return;
            }
            pushed.await;
        }
    }

    /// Writes what is in the queue now, and returns how many lines were lost before or in it.
    /// The file may still be in the operating system's cache then.
    pub(super) async fn drain(&self, rt: &Rt) -> u64 {
        let mut lost = 0;
        loop {
            let _turn = self.turn.lock().await;
            let (batch, gap) = {
                let mut queue = locked(&self.queue);
                let count = queue.records.len().min(BATCH_MAX);
                let batch: Vec<_> = queue.records.drain(..count).collect();
                (batch, std::mem::take(&mut queue.gap))
            };
            if batch.is_empty() && gap == 0 {
                return lost;
            }
            let lines = batch.len() as u64;
            let file = Arc::clone(&self.file);
            let written = rt.offload_with(move || write(&file, &batch, gap)).await;
            let mut queue = locked(&self.queue);
            match written.unwrap_or_else(|| Err(io::Error::other("the writer broke off"))) {
                Ok(()) => {
                    lost += gap;
                    queue.lines += lines;
                    queue.problem = None;
                }
                Err(cause) => {
                    lost += lines;
                    queue.dropped += lines;
                    queue.gap += lines + gap;
                    queue.problem = Some(format!("the audit file cannot be written: {cause}"));
                    return lost;
                }
            }
        }
    }

    /// Makes the file durable; runs on by itself if the caller does not wait.
    pub(super) fn sync(&self, rt: &Rt) -> BoxFuture<'static, ()> {
        let file = Arc::clone(&self.file);
        rt.offload(Box::new(move || {
            // What cannot be made durable cannot be helped here; writing on will say so.
            let _ = locked(&file).sync_data();
        }))
    }
}

fn write(file: &Mutex<File>, batch: &[Record], gap: u64) -> io::Result<()> {
    let mut text = String::with_capacity(batch.len() * 192);
    for record in batch {
        text.push_str(&line(record));
    }
    // Lines are dropped when the queue is full, so after those that are in it.
    if gap > 0 {
        text.push_str(&line(&Gap { dropped: gap }));
    }
    locked(file).write_all(text.as_bytes())
}

/// Poison is ignored: nothing here is left half changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
