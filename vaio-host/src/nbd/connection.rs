//! [`Connection`]: the transmission phase of one client, as one state machine in one task.
//!
//! Each turn does one receive, hands every whole request in it to the disk's port, takes every
//! completion that is ready, and does one send with all of their replies. Nothing is handed to
//! another task or thread.
//!
//! Cost of a 4 KiB IO, profiled over a Unix socket: three system calls per batch (`epoll_wait`,
//! `recv`, `send`; never one that says `EAGAIN`), and a batch is one request at depth 1, about
//! five at depth 32 with a client on another core. One copy of the payload in user space each way
//! (2 % of the CPU time). Allocations beside those of the port and the device: one for a write
//! (the shared handle of a recycled buffer), none for a read. 85 % of the CPU time is the
//! kernel's, most of it for waking and for the socket.
//!
//! Invariants:
//! * Every request that was accepted gets exactly one reply, also after the client stopped sending.
//! * At most `in_flight_max` requests and `buffered_bytes_max` bytes of payload and replies are
//!   held, and what the server's [`Share`] leaves; beyond that requests wait in the socket.
//! * A turn that returns `Pending` has left a waker with everything it waits for: the socket
//!   where there is room for more, the port and the queries while they hold anything, the share
//!   where it has no room, and the socket's other direction while the outbox holds anything.

use std::{
    io::{self, IoSliceMut},
    sync::Arc,
    task::{Context, Poll},
};

use futures::{StreamExt, stream::FuturesUnordered};
use vaio_core::{AlignedBuf, BufferPool, Disk, ErrorKind, Io, Op, PORT_DEPTH_MAX, Port, Result};

use super::{
    budget::Share,
    inbox::Inbox,
    outbox::Outbox,
    plan::{Plan, Refusal, plan},
    proto::{Errno, Parsed, ReplyMode, Request, StatusPayload},
    query::{Queries, Query},
    reply::Replies,
    server::ServerSettings,
    slots::{Slot, Slots},
    stall::Stall,
    stop::Stopped,
    wire::Wire,
};

/// Receive buffer of a connection, in bytes: a few dozen small writes.
const INBOX: usize = 144 << 10;
/// Payloads from this size on are received straight into their own buffer.
const LARGE: u32 = 32 << 10;
/// What is received beside a large payload, so that the next request's header comes with it.
const WINDOW_BESIDE_LARGE: usize = 4 << 10;

/// What a connection serves.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) disk: Disk,
    pub(super) mode: ReplyMode,
    pub(super) queries: Queries,
    pub(super) pool: BufferPool,
    pub(super) settings: Arc<ServerSettings>,
    pub(super) share: Share,
    pub(super) stopped: Stopped,
}

/// What the next bytes of the stream are.
#[derive(Debug)]
enum Receiving {
    Header,
    Payload {
        slot: Slot,
        target: Target,
        buffer: AlignedBuf,
        filled: usize,
    },
    Drain {
        left: u64,
        slot: Slot,
        refusal: Refusal,
    },
}

/// What a payload is for.
#[derive(Clone, Copy, Debug)]
enum Target {
    Write { fua: bool },
    Status { one: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requests are taken.
    Open,
    /// Nothing more is received; what was received ends and is answered.
    Draining,
    /// Everything is answered; the stream is being closed.
    Closing,
}

/// One client in the transmission phase.
pub(super) struct Connection<W> {
    wire: W,
    service: Service,
    port: Port,
    /// Depth of the port.
    in_flight_max: usize,
    /// Block status queries in flight.
    running: FuturesUnordered<Query>,
    inbox: Inbox,
    /// Most bytes that the next receive puts into the inbox.
    window: usize,
    receiving: Receiving,
    /// The inbox holds a request for which there is no room.
    stalled: bool,
    slots: Slots,
    /// Payload bytes of requests in flight, both ways.
    buffered: usize,
    replies: Replies,
    outbox: Outbox,
    /// The wire may hold back something that was sent.
    unflushed: bool,
    stall: Stall,
    phase: Phase,
    /// The server stops: requests not yet begun are refused.
    refusing: bool,
}

impl<W: Wire> Connection<W> {
    /// Takes over after the handshake; `inbox` may hold the first requests.
    pub(super) fn new(wire: W, mut inbox: Inbox, service: Service) -> Result<Self> {
        inbox.grow(INBOX);
        let port = open_port(&service.disk, service.settings.in_flight_max)?;
        Ok(Self {
            in_flight_max: port.1,
            port: port.0,
            running: FuturesUnordered::new(),
            inbox,
            window: INBOX,
            receiving: Receiving::Header,
            stalled: false,
            slots: Slots::default(),
            buffered: 0,
            replies: Replies::new(service.mode),
            outbox: Outbox::default(),
            unflushed: false,
            stall: Stall::new(service.settings.stall_timeout),
            phase: Phase::Open,
            refusing: false,
            wire,
            service,
        })
    }

    /// Serves until the client leaves, breaks the protocol or the server stops.
    ///
    /// # Errors
    /// The socket failed. IO in flight is left to the port, which ends it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.service.stopped.poll(cx) && self.phase == Phase::Open {
            self.refusing = true;
            self.phase = Phase::Draining;
        }
        self.service.share.register(cx);
        while self.phase != Phase::Closing {
            let mut progress = self.receive(cx)?;
            self.parse();
            progress |= self.complete(cx);
            progress |= self.send(cx)?;
            self.service.share.set(self.held());
            if self.phase == Phase::Draining && self.is_idle() {
                self.phase = Phase::Closing;
            } else if !progress {
                let sending = !self.outbox.is_empty() || self.unflushed;
                let stalled = self.stall.poll(cx, self.is_mid_message(), sending);
                return stalled.map(Err);
            }
        }
        match self.wire.poll_close(cx) {
            Poll::Pending => self.stall.poll(cx, false, true).map(Err),
            closed @ Poll::Ready(_) => closed,
        }
    }

    /// Whether the client owes the rest of a message.
    fn is_mid_message(&self) -> bool {
        let has_part = match self.receiving {
            Receiving::Header => !self.inbox.filled().is_empty(),
            Receiving::Payload { .. } | Receiving::Drain { .. } => true,
        };
        has_part && !self.stalled && self.phase == Phase::Open
    }

    fn in_flight(&self) -> usize {
        self.port.in_flight() + self.running.len()
    }

    fn is_idle(&self) -> bool {
        let sent = self.outbox.is_empty() && !self.unflushed;
        sent && self.in_flight() == 0 && !self.stalled
    }

    /// Whether one more request with `payload` bytes may begin. Alone, any request may.
    fn has_room(&mut self, payload: usize) -> bool {
        let held = self.held();
        let is_within = held == 0 || held + payload <= self.service.settings.buffered_bytes_max;
        let has_own = self.in_flight() < self.in_flight_max && is_within;
        if has_own && held > 0 && payload > 0 {
            return self.service.share.fits(held + payload);
        }
        // What is waited for now, if anything, is our own.
        self.service.share.leave();
        has_own
    }

    /// Bytes of payload and replies that are held.
    fn held(&self) -> usize {
        self.buffered + self.outbox.backlog()
    }

    /// One receive: into the payload that is being received, and behind it into the inbox.
    fn receive(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.phase != Phase::Open || self.stalled {
            return Ok(false);
        }
        let spare = self.inbox.spare(self.window);
        let received = match &mut self.receiving {
            Receiving::Payload { buffer, filled, .. } => {
                let rest = &mut buffer.as_mut()[*filled..];
                let direct = rest.len();
                let mut buffers = [IoSliceMut::new(rest), IoSliceMut::new(spare)];
                self.wire.poll_recv(cx, &mut buffers)?.map(|received| {
                    let payload = received.min(direct);
                    *filled += payload;
                    self.inbox.received(received - payload);
                    received
                })
            }
            Receiving::Header | Receiving::Drain { .. } => {
                let received = self.wire.poll_recv(cx, &mut [IoSliceMut::new(spare)])?;
                received.map(|received| {
                    self.inbox.received(received);
                    received
                })
            }
        };
        if received == Poll::Ready(0) {
            self.phase = Phase::Draining;
        }
        if received.is_ready() {
            self.stall.received();
        }
        Ok(received.is_ready())
    }

    /// Begins every whole request in the inbox, as far as there is room.
    fn parse(&mut self) {
        self.stalled = false;
        while self.parse_one() {}
    }

    /// One step of the stream; `false` where more bytes or more room are needed.
    fn parse_one(&mut self) -> bool {
        match &mut self.receiving {
            Receiving::Header => self.parse_header(),
            Receiving::Payload { buffer, filled, .. } => {
                *filled += self.inbox.take_into(&mut buffer.as_mut()[*filled..]);
                let whole = *filled == buffer.len();
                if whole {
                    self.payload_received();
                }
                whole
            }
            Receiving::Drain {
                left,
                slot,
                refusal,
            } => {
                let filled = self.inbox.filled().len();
                let dropped = usize::try_from(*left).map_or(filled, |left| left.min(filled));
                *left -= dropped as u64;
                let (done, slot, refusal) = (*left == 0, *slot, *refusal);
                self.inbox.consume(dropped);
                if done {
                    self.receiving = Receiving::Header;
                    self.refuse(slot, refusal.errno, refusal.text);
                }
                done
            }
        }
    }

    fn parse_header(&mut self) -> bool {
        let mode = self.service.mode;
        let (request, used) = match Request::parse(mode, self.inbox.filled()) {
            Ok(Parsed::Item { item, used }) => (item, used),
            Ok(Parsed::NeedMore(_)) => return false,
            Err(error) => {
                tracing::info!(%error, "nbd client is out of sync, closing its connection");
                self.end_requests();
                return false;
            }
        };
        let mut plan = plan(&request, mode);
        if !self.has_room(plan.payload_len()) {
            self.stalled = true;
            return false;
        }
        self.inbox.consume(used);
        if self.refusing {
            plan = plan.refused_by_stop(request.payload_len(mode));
        }
        self.begin(&request, plan);
        true
    }

    fn begin(&mut self, request: &Request, plan: Plan) {
        let mut slot = Slot {
            cookie: request.cookie,
            offset: request.offset,
            held: plan.payload_len(),
        };
        self.window = INBOX;
        match plan {
            Plan::Io(op) => self.push(slot, op),
            Plan::Write { len, fua, .. } => {
                if len >= LARGE {
                    self.window = WINDOW_BESIDE_LARGE;
                }
                self.begin_payload(slot, Target::Write { fua });
            }
            Plan::Status {
                len,
                one,
                payload: 0,
            } => self.query(slot, len, one, None),
            Plan::Status { one, .. } => self.begin_payload(slot, Target::Status { one }),
            Plan::Refuse(refusal) if refusal.drain == 0 => {
                self.refuse(slot, refusal.errno, refusal.text);
            }
            Plan::Refuse(refusal) => {
                slot.held = 0;
                let left = refusal.drain;
                self.receiving = Receiving::Drain {
                    left,
                    slot,
                    refusal,
                };
            }
            Plan::Disconnect => self.end_requests(),
            Plan::Close => {
                tracing::info!(
                    len = request.len,
                    "nbd client claims an absurd payload, closing its connection"
                );
                self.end_requests();
            }
        }
    }

    fn begin_payload(&mut self, slot: Slot, target: Target) {
        self.buffered += slot.held;
        self.receiving = Receiving::Payload {
            slot,
            target,
            buffer: self.service.pool.take(slot.held),
            filled: 0,
        };
    }

    fn payload_received(&mut self) {
        let received = std::mem::replace(&mut self.receiving, Receiving::Header);
        let Receiving::Payload {
            slot,
            target,
            buffer,
            ..
        } = received
        else {
            return;
        };
        self.buffered -= slot.held;
        match target {
            Target::Write { fua } => {
                let (offset, data) = (slot.offset, buffer.freeze());
                self.push(slot, Op::Write { offset, data, fua });
            }
            Target::Status { one } => match StatusPayload::decode(buffer.as_ref()) {
                Ok(payload) => self.query(slot, payload.len, one, Some(&payload.contexts)),
                Err(_) => self.refuse(slot, Errno::Inval, "malformed block status payload"),
            },
        }
    }

    fn push(&mut self, slot: Slot, op: Op) {
        self.buffered += slot.held;
        let tag = self.slots.insert(slot);
        if let Err(error) = self.port.push(tag, Io::new(op)) {
            self.finish(tag, |replies, slot, out| replies.error(slot, &error, out));
        }
    }

    fn query(&mut self, slot: Slot, len: u64, one: bool, only: Option<&[u32]>) {
        let started = self
            .service
            .queries
            .start(&self.service.disk, (slot.offset, len), one, only);
        let slot = Slot { held: 0, ..slot };
        match started {
            Ok(query) => self
                .running
                .push(Query::new(self.slots.insert(slot), query)),
            Err(error) => self.replies.error(&slot, &error, &mut self.outbox),
        }
    }

    fn refuse(&mut self, slot: Slot, errno: Errno, text: &str) {
        self.replies.refusal(&slot, errno, text, &mut self.outbox);
    }

    /// Nothing that follows in the stream is a request.
    fn end_requests(&mut self) {
        self.phase = Phase::Draining;
        self.receiving = Receiving::Header;
        let left = self.inbox.filled().len();
        self.inbox.consume(left);
    }

    /// Takes every completion that is ready.
    fn complete(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        while self.port.in_flight() > 0 {
            let Poll::Ready(completion) = self.port.poll_complete(cx) else {
                break;
            };
            any = true;
            self.finish(completion.tag, |replies, slot, out| {
                replies.io(slot, completion.result, out);
            });
        }
        while let Poll::Ready(Some((tag, result))) = self.running.poll_next_unpin(cx) {
            any = true;
            self.finish(tag, |replies, slot, out| replies.status(slot, result, out));
        }
        any
    }

    fn finish(&mut self, tag: u64, answer: impl FnOnce(&Replies, &Slot, &mut Outbox)) {
        let slot = self.slots.remove(tag);
        self.buffered -= slot.held;
        answer(&self.replies, &slot, &mut self.outbox);
    }

    /// One send with all replies that are ready.
    fn send(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut sent = false;
        if !self.outbox.is_empty() {
            let wire = &mut self.wire;
            if let Poll::Ready(len) = self.outbox.gather(|pieces| wire.poll_send(cx, pieces))? {
                self.outbox.advance(len);
                self.unflushed = true;
                self.stall.sent();
                sent = true;
            }
        }
        if self.unflushed && self.outbox.is_empty() && self.wire.poll_flush(cx)?.is_ready() {
            self.unflushed = false;
        }
        Ok(sent)
    }
}

/// A port as deep as wanted, or as deep as the disk has slots left: a late connection is slower,
/// not refused.
fn open_port(disk: &Disk, wanted: usize) -> Result<(Port, usize)> {
    let mut depth = wanted.min(PORT_DEPTH_MAX);
    loop {
        match disk.port(depth) {
            Err(error) if error.kind() == ErrorKind::Busy && depth > 1 => depth /= 2,
            port => return port.map(|port| (port, depth)),
        }
    }
}
