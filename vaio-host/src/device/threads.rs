//! [`Threads`]: the engine where `io_uring` is missing. A few threads do blocking calls.
//!
//! Each request costs two hand-offs between threads (tens of microseconds where cores sleep), so
//! this is the fall-back, not the fast way. Accepted requests are done even if no one waits.

use std::{
    collections::VecDeque,
    fs::File,
    io::IoSlice,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use futures::channel::oneshot;
use rustix::{
    fs::{Advice, fadvise, fallocate, fdatasync},
    io::{Errno, ReadWriteFlags, pread, pwritev2},
};

use super::engine::{Answer, Failure, Request, Step, WAITING_MAX, step};

/// Threads of one device, and so the requests it has in the kernel at once.
pub const THREADS: usize = 8;

/// A bounded pool of threads that does [`Request`]s on one file.
pub(super) struct Threads(Arc<Shared>);

struct Shared {
    file: File,
    queue: Mutex<Queue>,
    /// Told of each new job, and of the end.
    news: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    is_closed: bool,
}

struct Job {
    request: Request,
    answer: oneshot::Sender<Answer>,
}

impl Threads {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system's, where it starts no more threads.
    pub(super) fn new(file: File) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            file,
            queue: Mutex::default(),
            news: Condvar::new(),
        });
        // Made first: should a thread fail to start, its drop ends those that did.
        let threads = Self(Arc::clone(&shared));
        for _ in 0..THREADS {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("vaio-file".into())
                .spawn(move || shared.work())?;
        }
        Ok(threads)
    }

    /// Does one request on a thread of the pool.
    pub(super) async fn run(&self, request: Request) -> Answer {
        let (answer, receive) = oneshot::channel();
        {
            let mut queue = self.0.lock();
            if queue.jobs.len() >= WAITING_MAX {
                return Err(Failure::QueueFull);
            }
            queue.jobs.push_back(Job { request, answer });
        }
        self.0.news.notify_one();
        receive.await.unwrap_or(Err(Failure::Stopped))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.news.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One thread's life: jobs until the pool is closed and its queue empty.
    fn work(&self) {
        loop {
            let job = {
                let mut queue = self.lock();
                loop {
                    if let Some(job) = queue.jobs.pop_front() {
                        break job;
                    }
                    if queue.is_closed {
                        return;
                    }
                    queue = self
                        .news
                        .wait(queue)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            };
            // No one may be waiting any more; the work counts all the same.
            let _ = job.answer.send(do_all(&self.file, job.request));
        }
    }
}

/// Does a request to its end, in as many calls as the kernel needs.
fn do_all(file: &File, mut request: Request) -> Answer {
    let (len, mut progress, mut retries) = (request.len(), 0, 0);
    loop {
        let result = match do_some(file, &mut request, progress) {
            Ok(moved) => i32::try_from(moved).expect("a transfer is below 2 GiB"),
            Err(errno) => -errno.raw_os_error(),
        };
        match step(len, progress, result, &mut retries) {
            Step::Again(done) => progress = done,
            Step::Done(result) => {
                return result.map(|()| match request {
                    Request::Read { buffer, .. } => Some(buffer),
                    _ => None,
                });
            }
        }
    }
}

/// One system call.
fn do_some(file: &File, request: &mut Request, progress: usize) -> Result<usize, Errno> {
    match request {
        Request::Read { offset, buffer } => pread(
            file,
            &mut buffer.as_mut()[progress..],
            *offset + progress as u64,
        ),
        Request::Write {
            offset,
            data,
            durable,
        } => {
            let flags = if *durable {
                ReadWriteFlags::DSYNC
            } else {
                ReadWriteFlags::empty()
            };
            let rest = [IoSlice::new(&data.as_ref()[progress..])];
            pwritev2(file, &rest, *offset + progress as u64, flags)
        }
        Request::Flush => fdatasync(file).map(|()| 0),
        Request::Allocate { mode, extent } => {
            fallocate(file, *mode, extent.offset(), extent.len()).map(|()| 0)
        }
        Request::WillNeed { extent } => {
            let len = std::num::NonZeroU64::new(extent.len());
            fadvise(file, extent.offset(), len, Advice::WillNeed).map(|()| 0)
        }
    }
}
