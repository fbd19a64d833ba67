//! [`Link`]: the task that moves bytes between [`Calls`] and the socket.
//!
//! One task owns the whole connection: it sends everything that waits in one vectored write, and
//! reads as much as there is into one buffer, or straight into the memory of a large read. It runs
//! after the tasks that were ready before it, so that what they submit goes out together.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use vaio_core::{BoxFuture, Rt, RuntimeExt};

use super::calls::{Answer, Call, Calls, Failure};
use crate::nbd::proto::{Command, ReplyMode, Request};

/// Bytes read at once beside large reads.
const INPUT: usize = 128 << 10;
/// A payload up to this many bytes is copied behind its header, so that one piece goes out.
const COPY_MAX: usize = 8 << 10;
/// Pieces of one vectored write.
const PIECES_MAX: usize = 32;
/// Bytes that wait in the outbox before more requests are encoded.
const OUTPUT_MAX: usize = 1 << 20;
/// Rounds of one poll before other tasks run.
const ROUNDS_MAX: usize = 8;
/// How long a closed device waits for its last answers.
const CLOSE_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// Any connection.
pub(super) struct Stream(Box<dyn Connection>);

pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Connection for T {}

impl Stream {
    pub(super) fn new(connection: impl Connection + 'static) -> Self {
        Self(Box::new(connection))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}

/// The device's end of a connection. Dropping it ends the connection when all is answered.
pub(super) struct Link(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
}

struct State {
    calls: Calls,
    task: Option<Waker>,
    is_kicked: bool,
    is_closing: bool,
}

impl Link {
    /// Starts the task on `rt`.
    pub(super) fn start(stream: Stream, mode: ReplyMode, context: Option<u32>, rt: &Rt) -> Self {
        let state = State {
            calls: Calls::new(mode, context),
            task: None,
            is_kicked: false,
            is_closing: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
        });
        let task = Task {
            shared: Arc::clone(&shared),
            stream,
            mode,
            input: vec![0; INPUT].into_boxed_slice(),
            input_from: 0,
            input_to: 0,
            output: Vec::new(),
            output_len: 0,
            is_flushed: true,
            woken: Vec::new(),
            close: None,
            is_goodbye_sent: false,
            rt: Arc::clone(rt),
        };
        rt.spawn("nbd link", Box::pin(task));
        Self(shared)
    }

    /// Does one call.
    pub(super) fn call(&self, call: Call) -> Pending<'_> {
        Pending {
            shared: &self.0,
            call: Some(call),
            slot: None,
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closing = true;
        let task = state.task.take();
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer to one call, later. Dropped, the call goes on.
pub(super) struct Pending<'a> {
    shared: &'a Shared,
    call: Option<Call>,
    slot: Option<usize>,
}

impl Future for Pending<'_> {
    type Output = Result<Answer, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut state = this.shared.lock();
        let mut kick = None;
        if let Some(call) = this.call.take() {
            match state.calls.insert(call) {
                Ok(slot) => this.slot = Some(slot),
                Err(failure) => return Poll::Ready(Err(failure)),
            }
            if !state.is_kicked {
                kick.clone_from(&state.task);
                state.is_kicked = kick.is_some();
            }
        }
        let slot = this.slot.expect("not polled after its end");
        let answer = state.calls.take(slot, cx.waker());
        drop(state);
        if let Some(task) = kick {
            task.wake();
        }
        match answer {
            Some(answer) => {
                this.slot = None;
                Poll::Ready(answer)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.shared.lock().calls.abandon(slot);
        }
    }
}

struct Task {
    shared: Arc<Shared>,
    stream: Stream,
    mode: ReplyMode,
    input: Box<[u8]>,
    input_from: usize,
    input_to: usize,
    /// Pieces to send, oldest last.
    output: Vec<Bytes>,
    output_len: usize,
    is_flushed: bool,
    woken: Vec<Waker>,
    close: Option<BoxFuture<'static, ()>>,
    is_goodbye_sent: bool,
    rt: Rt,
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let result = this.run(cx);
        if let Poll::Ready(Err(cause)) = &result {
            tracing::warn!(%cause, "the connection to an NBD server is gone");
        }
        if result.is_ready() {
            this.shared.lock().calls.fail_all();
        }
        this.wake();
        result.map(drop)
    }
}

impl Drop for Task {
    /// Also the way out where the runtime ends first.
    fn drop(&mut self) {
        self.shared.lock().calls.fail_all();
        self.wake();
    }
}

impl Task {
    fn wake(&mut self) {
        self.shared.lock().calls.woken(&mut self.woken);
        for waker in self.woken.drain(..) {
            waker.wake();
        }
    }

    fn run(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for _ in 0..ROUNDS_MAX {
            let is_over = self.gather(cx);
            let sent = self.send(cx)?;
            if is_over && self.output.is_empty() && self.is_flushed {
                return Poll::Ready(Ok(()));
            }
            let received = self.receive(cx)?;
            if sent.is_pending() && received.is_pending() {
                return self.poll_close(cx);
            }
            if received.is_pending() && !self.shared.lock().calls.is_sendable() {
                return self.poll_close(cx);
            }
            self.wake();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// A closed device does not wait for its server for ever.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shared.lock().is_closing {
            return Poll::Pending;
        }
        let rt = &self.rt;
        let close = self.close.get_or_insert_with(|| rt.sleep(CLOSE_MAX));
        ready!(close.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Encodes what waits, as far as the outbox goes. Returns whether the goodbye was.
    fn gather(&mut self, cx: &Context<'_>) -> bool {
        let mut state = self.shared.lock();
        state.is_kicked = false;
        match &mut state.task {
            Some(known) => known.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        let (mut head, mut pieces) = (Vec::new(), Vec::new());
        while self.output_len < OUTPUT_MAX {
            let before = head.len();
            let Some(payload) = state.calls.next(&mut head) else {
                break;
            };
            self.output_len += head.len() - before + payload.len();
            if payload.len() <= COPY_MAX {
                head.extend_from_slice(&payload);
            } else {
                pieces.push(std::mem::take(&mut head).into());
                pieces.push(payload);
            }
        }
        if state.is_closing && state.calls.is_idle() && !self.is_goodbye_sent {
            self.is_goodbye_sent = true;
            let goodbye = Request {
                flags: 0,
                command: Command::Disconnect.to_wire(),
                cookie: 0,
                offset: 0,
                len: 0,
            };
            goodbye.encode(self.mode, &mut head);
            self.output_len += Request::header_len(self.mode);
        }
        drop(state);
        if !head.is_empty() {
            pieces.push(head.into());
        }
        if !pieces.is_empty() {
            pieces.reverse();
            pieces.append(&mut self.output);
            self.output = pieces;
        }
        self.is_goodbye_sent
    }

    fn send(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        while !self.output.is_empty() {
            let newest_last = self.output.iter().rev().take(PIECES_MAX);
            let slices: Vec<_> = newest_last.map(|piece| IoSlice::new(piece)).collect();
            let Poll::Ready(sent) = Pin::new(&mut self.stream).poll_write_vectored(cx, &slices)
            else {
                return Ok(Poll::Pending);
            };
            let mut sent = sent?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.is_flushed = false;
            self.output_len -= sent;
            while let Some(piece) = self.output.last_mut() {
                let count = sent.min(piece.len());
                piece.advance(count);
                sent -= count;
                if !piece.is_empty() {
                    break;
                }
                self.output.pop();
            }
        }
        if !self.is_flushed {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Ready(flushed) => flushed?,
                Poll::Pending => return Ok(Poll::Pending),
            }
            self.is_flushed = true;
        }
        Ok(Poll::Ready(()))
    }

    /// Reads once and hands on what came.
    fn receive(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        let broken = |cause| io::Error::new(io::ErrorKind::InvalidData, cause);
        let mut state = self.shared.lock();
        // Straight into a read's memory, where that is worth a call.
        if self.input_from == self.input_to
            && let Some(memory) = state.calls.direct()
            && memory.len() >= COPY_MAX
        {
            let mut buffer = ReadBuf::new(memory);
            let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, &mut buffer) else {
                return Ok(Poll::Pending);
            };
            read?;
            let count = buffer.filled().len();
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            state.calls.filled(count);
            return Ok(Poll::Ready(()));
        }
        if self.input_from > 0 {
            self.input.copy_within(self.input_from..self.input_to, 0);
            self.input_to -= self.input_from;
            self.input_from = 0;
        }
        let mut buffer = ReadBuf::new(&mut self.input[self.input_to..]);
        assert!(buffer.capacity() > 0, "a whole message fits");
        let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, &mut buffer) else {
            return Ok(Poll::Pending);
        };
        read?;
        let count = buffer.filled().len();
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.input_to += count;
        let input = &self.input[self.input_from..self.input_to];
        self.input_from += state.calls.consume(input).map_err(broken)?;
        Ok(Poll::Ready(()))
    }
}
