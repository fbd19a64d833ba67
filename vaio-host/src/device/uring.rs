//! [`Ring`]: `io_uring` driven on the runtime's own thread.
//!
//! A request goes into a [`Table`]. Where the device has little to do it is submitted there and
//! then, else together with others: when enough wait, or when the driver task runs, which is after
//! the tasks that were ready before it. What completes at once (page cache) is answered at once;
//! the driver waits for the ring's event for the rest. No thread but the runtime's is woken.
//!
//! The ring takes no short cuts that tie it to one thread (`SINGLE_ISSUER`, `DEFER_TASKRUN`):
//! measured here, they gain nothing over `COOP_TASKRUN`, and a runtime may move. Nor does it look
//! for completions at the edges of the runtime's sleep instead of having an event: one that comes
//! on the way into `epoll_wait` would not be seen, and nothing would wake the thread.
//!
//! Invariants, beside those of the table: the completion queue has twice the places that can be in
//! flight, so it never overflows; the last owner waits for what is in flight, and where it cannot,
//! leaks its memory rather than let the kernel write into memory that is used again.

use std::{
    fs::File,
    future::poll_fn,
    io,
    os::fd::AsRawFd,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use io_uring::{
    IoUring, opcode, squeue,
    types::{Fixed, FsyncFlags, SubmitArgs, Timespec},
};
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::Advice,
    io::{Errno, ReadWriteFlags},
};
use tokio::{io::Interest, runtime::Handle, task::coop};
use vaio_core::Rt;

use crate::watched::{Watched, watch};

use super::{
    engine::{Answer, Failure, Request},
    table::{IN_FLIGHT_MAX, Spoils, Table},
};

/// How often the driver looks for more in one poll before it lets other tasks run.
const TURNS_MAX: usize = 4;

/// How long the last owner waits for the kernel without any progress, in seconds, before it leaks
/// the memory of what is still in flight. Longer than a block device's own time-out.
const DRAIN_SECONDS_MAX: u64 = 180;

/// The file's place in the ring's table of files.
const FILE: Fixed = Fixed(0);

/// One device's ring. Dropping it lets what is in flight end in the background.
pub(super) struct Ring(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Open for as long as the ring may use it.
    _file: File,
}

struct State {
    ring: IoUring,
    table: Table,
    driver: Option<Waker>,
    /// The driver was woken and has not run yet.
    is_kicked: bool,
    /// The device was dropped: the driver ends when all is done.
    is_closing: bool,
    /// The driver or the ring is gone: nothing more is accepted.
    is_stopped: bool,
}

impl Ring {
    /// Makes a ring over `file` and starts its driver on `rt`.
    ///
    /// # Errors
    /// The system's, where `io_uring` is missing or forbidden, and "unsupported" outside a tokio
    /// runtime.
    pub(super) fn new(file: File, rt: &Rt) -> io::Result<Self> {
        Handle::try_current().map_err(|e| io::Error::new(io::ErrorKind::Unsupported, e))?;
        let ring = build()?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let event = watch(event, Interest::READABLE)?;
        let state = State {
            ring,
            table: Table::new(),
            driver: None,
            is_kicked: false,
            is_closing: false,
            is_stopped: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            _file: file,
        });
        let driver = Driver {
            shared: Arc::clone(&shared),
            event,
            spoils: Spoils::default(),
        };
        rt.spawn("io_uring driver", Box::pin(driver.run()));
        Ok(Self(shared))
    }

    /// Does one request.
    pub(super) fn run(&self, request: Request) -> Pending<'_> {
        Pending {
            shared: &self.0,
            request: Some(request),
            slot: None,
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closing = true;
        if let Some(driver) = state.driver.take() {
            drop(state);
            driver.wake();
        }
    }
}

/// A ring with the cheapest way of completion that the kernel knows.
fn build() -> io::Result<IoUring> {
    let entries = u32::try_from(IN_FLIGHT_MAX).expect("a small constant");
    let cheap = IoUring::builder()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    match cheap {
        Err(cause) if cause.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            IoUring::new(entries) // before Linux 5.19
        }
        built => built,
    }
}

/// The answer to one request, later.
pub(super) struct Pending<'a> {
    shared: &'a Shared,
    request: Option<Request>,
    slot: Option<u32>,
}

impl Future for Pending<'_> {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        // Answers from the page cache are always ready: without a budget, a task that waits for
        // nothing else would keep the thread to itself.
        let budget = ready!(coop::poll_proceed(cx));
        let this = &mut *self;
        let mut spoils = Spoils::default();
        let mut state = this.shared.lock();
        if let Some(request) = this.request.take() {
            match state.insert(request, &mut spoils) {
                Ok(slot) => this.slot = Some(slot),
                Err(failure) => return Poll::Ready(Err(failure)),
            }
        }
        let slot = this.slot.expect("not polled after its end");
        let answer = state.table.take(slot, cx.waker());
        let driver = state.driver_to_wake();
        drop(state);
        spoils.share();
        if let Some(driver) = driver {
            driver.wake();
        }
        match answer {
            Some(answer) => {
                this.slot = None;
                budget.made_progress();
                Poll::Ready(answer)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            let request = self.shared.lock().table.abandon(slot);
            drop(request); // outside the lock: memory may go back to its owner's code
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Accepts a request, and submits if enough wait.
    fn insert(&mut self, request: Request, spoils: &mut Spoils) -> Result<u32, Failure> {
        if self.is_stopped {
            return Err(Failure::Stopped);
        }
        let slot = self.table.insert(request)?;
        if self.table.is_batch() {
            self.submit(spoils);
            self.reap(spoils);
        }
        Ok(slot)
    }

    /// The driver's waker, if there is work for it that it was not told of.
    fn driver_to_wake(&mut self) -> Option<Waker> {
        if self.is_kicked || !(self.table.is_sendable() || self.has_unsent()) {
            return None;
        }
        let driver = self.driver.clone();
        self.is_kicked = driver.is_some();
        driver
    }

    /// Gives the kernel what waits. What it does not take now stays queued for the next call.
    fn submit(&mut self, spoils: &mut Spoils) {
        while let Some((slot, request, progress)) = self.table.next() {
            let sqe = sqe(request, progress).user_data(slot.into());
            #[expect(
                unsafe_code,
                reason = "the memory that the entry points into stays in the table until its completion"
            )]
            // SAFETY: `sqe` points into a heap buffer owned by the request in `slot`. By R1 and R3
            // the request stays there, unmoved and untouched, until this entry's completion was
            // taken, or it is leaked. The file is registered with the ring.
            let pushed = unsafe { self.ring.submission().push(&sqe) };
            if pushed.is_err() {
                break; // the queue is full until the kernel takes some
            }
            self.table.sent();
        }
        let Err(cause) = self.ring.submit() else {
            return;
        };
        let transient = [Errno::INTR, Errno::AGAIN, Errno::BUSY];
        let errno = cause.raw_os_error();
        if !transient.iter().any(|e| errno == Some(e.raw_os_error())) {
            tracing::error!(%cause, "io_uring refuses to submit: the device is stopped");
            self.is_stopped = true;
            self.table.fail_waiting(Failure::Stopped, spoils);
        }
    }

    /// Takes the completions that are there.
    fn reap(&mut self, spoils: &mut Spoils) {
        for cqe in self.ring.completion() {
            let slot = u32::try_from(cqe.user_data()).expect("user data is a place");
            self.table.complete(slot, cqe.result(), spoils);
        }
    }

    /// Whether the kernel left entries in the submission queue.
    fn has_unsent(&mut self) -> bool {
        !self.is_stopped && !self.ring.submission().is_empty()
    }

    /// Whether the kernel has completions to hand out at the next call.
    fn has_task_work(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Waits on this thread until everything that was accepted is done, or gives its memory up.
    fn drain(&mut self, spoils: &mut Spoils) {
        let timeout = Timespec::new().sec(DRAIN_SECONDS_MAX);
        let wait = SubmitArgs::new().timespec(&timeout);
        loop {
            self.submit(spoils);
            let before = self.table.in_flight();
            if before == 0 {
                return;
            }
            let waited = self.ring.submitter().submit_with_args(1, &wait);
            self.reap(spoils);
            let is_stuck = self.table.in_flight() == before;
            if is_stuck
                && let Err(cause) = waited
                && cause.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%cause, in_flight = before, "io does not end: its memory is leaked");
                self.table.leak(spoils);
                return;
            }
        }
    }
}

impl Spoils {
    /// Wakes and frees, outside the lock.
    fn share(&mut self) {
        for waker in self.woken.drain(..) {
            waker.wake();
        }
        self.dropped.clear();
    }
}

/// The submission of one request's next step.
fn sqe(request: &mut Request, progress: usize) -> squeue::Entry {
    let length = |rest: &[u8]| u32::try_from(rest.len()).expect("a transfer is below 2 GiB");
    match request {
        Request::Read { offset, buffer } => {
            let rest = &mut buffer.as_mut()[progress..];
            opcode::Read::new(FILE, rest.as_mut_ptr(), length(rest))
                .offset(*offset + progress as u64)
                .build()
        }
        Request::Write {
            offset,
            data,
            durable,
        } => {
            let rest = &data.as_ref()[progress..];
            let flags = if *durable {
                ReadWriteFlags::DSYNC
            } else {
                ReadWriteFlags::empty()
            };
            opcode::Write::new(FILE, rest.as_ptr(), length(rest))
                .offset(*offset + progress as u64)
                .rw_flags(flags.bits().cast_signed())
                .build()
        }
        Request::Flush => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
        Request::Allocate { mode, extent } => opcode::Fallocate::new(FILE, extent.len())
            .offset(extent.offset())
            .mode(mode.bits().cast_signed())
            .build(),
        Request::WillNeed { extent } => {
            // Advice may cover less than was asked; the field is 32 bits wide.
            let len = extent.len().min(1 << 30).cast_signed();
            opcode::Fadvise::new(FILE, len, (Advice::WillNeed as u32).cast_signed())
                .offset(extent.offset())
                .build()
        }
    }
}

/// The task that waits for the kernel.
struct Driver {
    shared: Arc<Shared>,
    event: Watched,
    spoils: Spoils,
}

impl Driver {
    async fn run(mut self) {
        poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..TURNS_MAX {
            let is_news = self.poll_event(cx);
            let (is_more, is_over) = self.turn(cx.waker());
            self.spoils.share();
            if is_over {
                return Poll::Ready(());
            }
            if !is_more && !is_news {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether the ring told of news. If not, this task is woken when it does.
    fn poll_event(&self, cx: &mut Context<'_>) -> bool {
        match self.event.poll_read_ready(cx) {
            Poll::Ready(Ok(mut guard)) => {
                // The reactor is edge-triggered, so the eventfd's count need not be read. Cleared
                // before completions are taken: what comes in between makes a new edge.
                guard.clear_ready();
                true
            }
            // An error only at the runtime's end: the drop of this task does the rest.
            Poll::Ready(Err(_)) | Poll::Pending => false,
        }
    }

    /// Submits and takes completions once. Returns whether there may be more to do now, and
    /// whether all is over.
    fn turn(&mut self, waker: &Waker) -> (bool, bool) {
        let mut state = self.shared.lock();
        state.is_kicked = false;
        match &mut state.driver {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        state.reap(&mut self.spoils);
        if state.table.is_sendable() || state.has_unsent() || state.has_task_work() {
            state.submit(&mut self.spoils);
            state.reap(&mut self.spoils);
        }
        let is_more = !state.is_stopped && state.table.is_sendable() || state.has_unsent();
        (is_more, state.is_closing && state.table.is_idle())
    }
}

impl Drop for Driver {
    /// Also the way out where the runtime ends before the device.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_stopped = true;
        state.drain(&mut self.spoils);
        state.table.fail_waiting(Failure::Stopped, &mut self.spoils);
        // The kernel lets go of the file now, not when it gets round to freeing the ring.
        let _ = state.ring.submitter().unregister_files();
        drop(state);
        self.spoils.share();
    }
}
