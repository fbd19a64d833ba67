//! [`Calls`]: the requests of one connection, from the queue to their answers. Pure: bytes in and
//! out, no sockets.
//!
//! Invariants: a cookie names one call until its answer is whole, and never another one later (a
//! generation is part of it); bytes of a read go nowhere but into that read's memory, at the place
//! that the request asked for; a peer that breaks the protocol breaks the connection, not us.

use std::{collections::VecDeque, task::Waker};

use bytes::Bytes;
use vaio_core::AlignedBuf;

use crate::nbd::proto::{
    ChunkHeader, ChunkKind, ErrorChunk, HoleChunk, Parsed, ProtoError, ReplyHeader, ReplyMode,
    Request, StatusChunk, StatusExtent,
};

/// Calls that the server has at once; more wait here.
pub const IN_FLIGHT_MAX: usize = 128;
/// Calls that wait; one more is refused.
pub(super) const WAITING_MAX: usize = 4096;

/// What one call asks, with the memory for its answer.
#[derive(Debug)]
pub(super) struct Call {
    /// The request's header; its cookie is filled in here.
    pub(super) request: Request,
    /// Payload of a write.
    pub(super) payload: Bytes,
    /// Memory of a read.
    pub(super) buffer: Option<AlignedBuf>,
    /// Whether it is answered with the status of the export's allocation.
    pub(super) wants_status: bool,
}

/// A call's success.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// A read's data.
    pub(super) buffer: Option<AlignedBuf>,
    /// A block status.
    pub(super) extents: Vec<StatusExtent>,
}

/// A call's failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server refused, with its number and text.
    Server { error: u32, text: String },
    /// The connection is gone. What was in flight may have happened or not.
    Gone,
    /// Too many wait.
    QueueFull,
}

#[derive(Debug)]
enum Phase {
    Free,
    Waiting,
    InFlight,
    Done(Result<(), Failure>),
}

#[derive(Debug)]
struct Entry {
    call: Option<Call>,
    phase: Phase,
    generation: u32,
    /// Bytes of a read that came.
    received: u64,
    extents: Vec<StatusExtent>,
    error: Option<Failure>,
    is_abandoned: bool,
    waker: Option<Waker>,
}

/// What the next bytes from the server are.
#[derive(Debug)]
enum Reading {
    Head,
    /// Data for the memory of a read.
    Data {
        slot: usize,
        at: usize,
        left: usize,
        is_last: bool,
    },
    /// The first 8 bytes of a data chunk: where its data belongs.
    DataOffset {
        slot: usize,
        header: ChunkHeader,
    },
    /// Content that is read whole.
    Content {
        slot: usize,
        header: ChunkHeader,
    },
}

/// See the file's first lines.
#[derive(Debug)]
pub(super) struct Calls {
    mode: ReplyMode,
    /// Number of `base:allocation` on this connection.
    context: Option<u32>,
    entries: Vec<Entry>,
    free: Vec<usize>,
    waiting: VecDeque<usize>,
    in_flight: usize,
    reading: Reading,
    woken: Vec<Waker>,
    is_gone: bool,
}

/// The server broke the protocol.
pub(super) type Broken = ProtoError;

const OFFSET_LEN: usize = 8;

impl Calls {
    pub(super) fn new(mode: ReplyMode, context: Option<u32>) -> Self {
        Self {
            mode,
            context,
            entries: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            in_flight: 0,
            reading: Reading::Head,
            woken: Vec::new(),
            is_gone: false,
        }
    }

    /// Queues a call; returns its place.
    pub(super) fn insert(&mut self, call: Call) -> Result<usize, Failure> {
        if self.is_gone {
            return Err(Failure::Gone);
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(Failure::QueueFull);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry {
                call: None,
                phase: Phase::Free,
                generation: 0,
                received: 0,
                extents: Vec::new(),
                error: None,
                is_abandoned: false,
                waker: None,
            });
            self.entries.len() - 1
        });
        let entry = &mut self.entries[slot];
        debug_assert!(matches!(entry.phase, Phase::Free));
        entry.generation = entry.generation.wrapping_add(1);
        entry.call = Some(call);
        entry.phase = Phase::Waiting;
        entry.received = 0;
        entry.error = None;
        entry.is_abandoned = false;
        self.waiting.push_back(slot);
        Ok(slot)
    }

    /// The next request for the server, encoded at the end of `head`, and its payload.
    pub(super) fn next(&mut self, head: &mut Vec<u8>) -> Option<Bytes> {
        if self.in_flight >= IN_FLIGHT_MAX {
            return None;
        }
        let slot = self.waiting.pop_front()?;
        let entry = &mut self.entries[slot];
        let call = entry.call.as_mut().expect("a waiting entry has its call");
        call.request.cookie = u64::from(entry.generation) << 32 | slot as u64;
        call.request.encode(self.mode, head);
        entry.phase = Phase::InFlight;
        self.in_flight += 1;
        Some(std::mem::take(&mut call.payload))
    }

    /// Takes the answer of `slot`; `None` if it is not there yet, and `waker` is woken when it is.
    pub(super) fn take(&mut self, slot: usize, waker: &Waker) -> Option<Result<Answer, Failure>> {
        let entry = &mut self.entries[slot];
        let Phase::Done(result) = &mut entry.phase else {
            match &mut entry.waker {
                Some(known) => known.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
            return None;
        };
        let result = std::mem::replace(result, Ok(()));
        let answer = Answer {
            buffer: entry.call.take().and_then(|call| call.buffer),
            extents: std::mem::take(&mut entry.extents),
        };
        self.release(slot);
        Some(result.map(|()| answer))
    }

    /// No one waits for `slot` any more; the call goes on.
    pub(super) fn abandon(&mut self, slot: usize) {
        self.entries[slot].is_abandoned = true;
        self.entries[slot].waker = None;
        if matches!(self.entries[slot].phase, Phase::Done(_)) {
            self.release(slot);
        }
    }

    fn release(&mut self, slot: usize) {
        let entry = &mut self.entries[slot];
        entry.call = None;
        entry.extents = Vec::new();
        entry.phase = Phase::Free;
        self.free.push(slot);
    }

    fn finish(&mut self, slot: usize, result: Result<(), Failure>) {
        let entry = &mut self.entries[slot];
        if entry.is_abandoned {
            self.release(slot);
        } else {
            entry.phase = Phase::Done(result);
            self.woken.extend(entry.waker.take());
        }
    }

    /// Those whose answers came since the last call.
    pub(super) fn woken(&mut self, into: &mut Vec<Waker>) {
        into.append(&mut self.woken);
    }

    /// The connection is gone: everything fails, now and from now on.
    pub(super) fn fail_all(&mut self) {
        self.is_gone = true;
        self.waiting.clear();
        self.in_flight = 0;
        self.reading = Reading::Head;
        for slot in 0..self.entries.len() {
            if matches!(self.entries[slot].phase, Phase::Waiting | Phase::InFlight) {
                self.finish(slot, Err(Failure::Gone));
            }
        }
    }

    /// Whether a call could be sent now.
    pub(super) fn is_sendable(&self) -> bool {
        !self.waiting.is_empty() && self.in_flight < IN_FLIGHT_MAX
    }

    /// Nothing waits and nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.in_flight == 0
    }

    /// Memory of a read that the next bytes from the server belong in.
    pub(super) fn direct(&mut self) -> Option<&mut [u8]> {
        let Reading::Data { slot, at, left, .. } = self.reading else {
            return None;
        };
        let call = self.entries[slot].call.as_mut()?;
        Some(&mut call.buffer.as_mut()?.as_mut()[at..at + left])
    }

    /// `count` bytes were put where [`direct`](Self::direct) said.
    pub(super) fn filled(&mut self, count: usize) {
        let Reading::Data {
            slot,
            at,
            left,
            is_last,
        } = &mut self.reading
        else {
            return;
        };
        let (slot, is_last) = (*slot, *is_last);
        *at += count;
        *left -= count;
        self.entries[slot].received += count as u64;
        if *left == 0 {
            self.reading = Reading::Head;
            if is_last {
                self.complete(slot);
            }
        }
    }

    /// Takes what it can of `input`; returns how many bytes. The rest is to be given again, with
    /// more after it.
    pub(super) fn consume(&mut self, input: &[u8]) -> Result<usize, Broken> {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            let step = match self.reading {
                Reading::Head => self.head(rest)?,
                Reading::DataOffset { slot, header } => self.data_offset(slot, header, rest)?,
                Reading::Content { slot, header } => self.content(slot, header, rest)?,
                Reading::Data { .. } => {
                    let memory = self.direct().expect("a data chunk has its memory");
                    let count = memory.len().min(rest.len());
                    memory[..count].copy_from_slice(&rest[..count]);
                    self.filled(count);
                    (count > 0).then_some(count)
                }
            };
            match step {
                Some(count) => used += count,
                None => return Ok(used),
            }
            if used == input.len() && !matches!(self.reading, Reading::Content { .. }) {
                return Ok(used);
            }
        }
    }

    fn find(&self, cookie: u64) -> Result<usize, Broken> {
        let slot = usize::try_from(cookie & u64::from(u32::MAX)).unwrap_or(usize::MAX);
        let is_known = self.entries.get(slot).is_some_and(|entry| {
            matches!(entry.phase, Phase::InFlight) && u64::from(entry.generation) == cookie >> 32
        });
        let what = "reply cookie";
        is_known.then_some(slot).ok_or(Broken::Malformed { what })
    }

    fn head(&mut self, input: &[u8]) -> Result<Option<usize>, Broken> {
        if input.is_empty() {
            return Ok(None);
        }
        let Parsed::Item { item, used } = ReplyHeader::parse(self.mode, input)? else {
            return Ok(None);
        };
        match item {
            ReplyHeader::Simple { error, cookie } => self.simple(error, cookie)?,
            ReplyHeader::Chunk(header) => self.chunk(header)?,
        }
        Ok(Some(used))
    }

    fn simple(&mut self, error: u32, cookie: u64) -> Result<(), Broken> {
        let slot = self.find(cookie)?;
        let entry = &mut self.entries[slot];
        let call = entry.call.as_ref().expect("in flight");
        if error != 0 {
            let text = String::new();
            entry.error = Some(Failure::Server { error, text });
        } else if let Some(buffer) = &call.buffer {
            if self.mode != ReplyMode::Simple {
                let what = "simple reply to a read";
                return Err(Broken::Malformed { what });
            }
            self.reading = Reading::Data {
                slot,
                at: 0,
                left: buffer.len(),
                is_last: true,
            };
            return Ok(());
        }
        self.complete(slot);
        Ok(())
    }

    fn chunk(&mut self, header: ChunkHeader) -> Result<(), Broken> {
        let slot = self.find(header.cookie)?;
        self.reading = match header.kind {
            ChunkKind::OffsetData => Reading::DataOffset { slot, header },
            _ => Reading::Content { slot, header },
        };
        Ok(())
    }

    /// Where `[offset, offset + len)` of the export lies in the memory of the read in `slot`.
    fn place(&self, slot: usize, offset: u64, len: u64) -> Result<(usize, usize), Broken> {
        let what = "data chunk";
        let call = self.entries[slot].call.as_ref().expect("in flight");
        let at = offset.checked_sub(call.request.offset);
        let is_read = call.buffer.is_some();
        at.filter(|at| {
            is_read
                && at
                    .checked_add(len)
                    .is_some_and(|end| end <= call.request.len)
        })
        .and_then(|at| Some((usize::try_from(at).ok()?, usize::try_from(len).ok()?)))
        .ok_or(Broken::Malformed { what })
    }

    fn data_offset(
        &mut self,
        slot: usize,
        header: ChunkHeader,
        input: &[u8],
    ) -> Result<Option<usize>, Broken> {
        let Some(bytes) = input.first_chunk::<OFFSET_LEN>() else {
            return Ok(None);
        };
        let what = "data chunk";
        let len = header
            .len
            .checked_sub(OFFSET_LEN as u64)
            .filter(|len| *len > 0);
        let len = len.ok_or(Broken::Malformed { what })?;
        let (at, left) = self.place(slot, u64::from_be_bytes(*bytes), len)?;
        self.reading = Reading::Data {
            slot,
            at,
            left,
            is_last: header.done,
        };
        Ok(Some(OFFSET_LEN))
    }

    fn content(
        &mut self,
        slot: usize,
        header: ChunkHeader,
        input: &[u8],
    ) -> Result<Option<usize>, Broken> {
        let len = usize::try_from(header.len).expect("below its kind's limit");
        let Some(content) = input.get(..len) else {
            return Ok(None);
        };
        match header.kind {
            ChunkKind::OffsetHole => {
                let hole = HoleChunk::decode(content)?;
                let (at, len) = self.place(slot, hole.offset, hole.len.into())?;
                let entry = &mut self.entries[slot];
                let buffer = entry.call.as_mut().and_then(|call| call.buffer.as_mut());
                buffer.expect("place checked").as_mut()[at..at + len].fill(0);
                entry.received += len as u64;
            }
            ChunkKind::BlockStatus | ChunkKind::BlockStatusExt => {
                let status = StatusChunk::decode(header.kind, content)?;
                let entry = &mut self.entries[slot];
                let wants = entry.call.as_ref().is_some_and(|call| call.wants_status);
                if !wants || Some(status.context) != self.context {
                    let what = "block status chunk";
                    return Err(Broken::Malformed { what });
                }
                entry.extents = status.extents;
            }
            kind if kind.is_error() => {
                let ErrorChunk { error, text, .. } = ErrorChunk::decode(kind, content)?;
                // The first error says the most.
                let error = Failure::Server { error, text };
                self.entries[slot].error.get_or_insert(error);
            }
            _ => {}
        }
        self.reading = Reading::Head;
        if header.done {
            self.complete(slot);
        }
        Ok(Some(len))
    }

    /// The server said all that it has to say on a call.
    fn complete(&mut self, slot: usize) {
        self.in_flight -= 1;
        let entry = &mut self.entries[slot];
        let call = entry.call.as_ref().expect("in flight");
        let short = |text: &str| {
            Err(Failure::Server {
                error: crate::nbd::proto::Errno::Io.to_wire(),
                text: text.into(),
            })
        };
        let result = match entry.error.take() {
            Some(error) => Err(error),
            None if call.buffer.is_some() && entry.received != call.request.len => {
                short("the server answered a read in part")
            }
            None if call.wants_status && entry.extents.is_empty() => {
                short("the server gave no block status")
            }
            None => Ok(()),
        };
        self.finish(slot, result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::proto::{
        Command, Errno, encode_done, encode_error, encode_read_header, encode_simple,
    };
    use proptest::prelude::*;
    use vaio_core::BufferPool;

    fn read(offset: u64, len: usize) -> Call {
        let mut buffer = BufferPool::new(4096, 0).take(len);
        buffer.as_mut().fill(0xee);
        let request = Request {
            flags: 0,
            command: Command::Read.to_wire(),
            cookie: 0,
            offset,
            len: len as u64,
        };
        Call {
            request,
            payload: Bytes::new(),
            buffer: Some(buffer),
            wants_status: false,
        }
    }

    /// A conversation with one read in flight, and the read's cookie.
    fn one_read(mode: ReplyMode, offset: u64, len: usize) -> (Calls, usize, u64) {
        let mut calls = Calls::new(mode, Some(0));
        let slot = calls.insert(read(offset, len)).unwrap();
        let mut head = Vec::new();
        calls.next(&mut head).unwrap();
        let cookie = u64::from_be_bytes(head[8..16].try_into().unwrap());
        (calls, slot, cookie)
    }

    fn feed(calls: &mut Calls, bytes: &[u8], piece: usize) -> Result<(), Broken> {
        let mut held = Vec::new();
        for part in bytes.chunks(piece.max(1)) {
            held.extend_from_slice(part);
            let used = calls.consume(&held)?;
            held.drain(..used);
        }
        Ok(())
    }

    #[test]
    fn reply_in_any_pieces_is_the_same_answer() {
        for mode in [ReplyMode::Simple, ReplyMode::Structured] {
            for piece in [1, 3, 16, 21, 600] {
                let (mut calls, slot, cookie) = one_read(mode, 4096, 512);
                let mut bytes = Vec::new();
                encode_read_header(mode, cookie, 4096, 512, &mut bytes);
                bytes.extend_from_slice(&[7; 512]);
                feed(&mut calls, &bytes, piece).unwrap();
                let answer = calls.take(slot, Waker::noop()).unwrap().unwrap();
                assert_eq!(answer.buffer.unwrap().as_ref(), [7; 512]);
                assert!(calls.is_idle());
            }
        }
    }

    #[test]
    fn data_outside_of_the_read_breaks_the_connection() {
        for (offset, len) in [(4095, 512), (4096, 513), (4608, 1), (u64::MAX, 2)] {
            let (mut calls, _, cookie) = one_read(ReplyMode::Structured, 4096, 512);
            let mut bytes = Vec::new();
            encode_read_header(ReplyMode::Structured, cookie, offset, len, &mut bytes);
            assert!(feed(&mut calls, &bytes, 100).is_err(), "{offset}+{len}");
        }
    }

    #[test]
    fn read_answered_in_part_fails_alone() {
        let (mut calls, slot, cookie) = one_read(ReplyMode::Structured, 0, 512);
        let mut bytes = Vec::new();
        encode_read_header(ReplyMode::Structured, cookie, 0, 256, &mut bytes);
        bytes.extend_from_slice(&[7; 256]);
        feed(&mut calls, &bytes, 64).unwrap();
        let failure = calls.take(slot, Waker::noop()).unwrap().unwrap_err();
        assert!(matches!(failure, Failure::Server { .. }), "{failure:?}");
    }

    #[test]
    fn unknown_twice_answered_and_old_cookies_break_the_connection() {
        let mode = ReplyMode::Structured;
        let (mut calls, slot, cookie) = one_read(mode, 0, 512);
        let mut bytes = Vec::new();
        encode_error(mode, (cookie, 0), Errno::Io, "no", &mut bytes);
        feed(&mut calls, &bytes, 7).unwrap();
        assert!(feed(&mut calls, &bytes, 7).is_err(), "answered twice");
        let failure = calls.take(slot, Waker::noop()).unwrap().unwrap_err();
        let text = "no".to_owned();
        assert_eq!(failure, Failure::Server { error: 5, text });
        let (mut calls, _, _) = one_read(mode, 0, 512);
        bytes.clear();
        encode_done(mode, cookie + 1, 0, &mut bytes);
        assert!(feed(&mut calls, &bytes, 7).is_err(), "never asked");
        bytes.clear();
        encode_simple(cookie, None, &mut bytes);
        assert!(
            feed(&mut calls, &bytes, 7).is_err(),
            "simple success of a structured read"
        );
    }

    #[test]
    fn abandoned_call_frees_its_place_when_answered() {
        let (mut calls, slot, cookie) = one_read(ReplyMode::Simple, 0, 512);
        calls.abandon(slot);
        let mut bytes = Vec::new();
        encode_simple(cookie, None, &mut bytes);
        bytes.extend_from_slice(&[7; 512]);
        feed(&mut calls, &bytes, 50).unwrap();
        assert!(calls.is_idle() && calls.free == [slot]);
    }

    #[test]
    fn limits_hold_in_flight_and_waiting() {
        let mut calls = Calls::new(ReplyMode::Simple, None);
        for _ in 0..WAITING_MAX {
            calls.insert(read(0, 512)).unwrap();
        }
        assert_eq!(calls.insert(read(0, 512)), Err(Failure::QueueFull));
        let mut head = Vec::new();
        let sent = std::iter::from_fn(|| calls.next(&mut head)).count();
        assert_eq!(sent, IN_FLIGHT_MAX);
        calls.fail_all();
        assert_eq!(calls.insert(read(0, 512)), Err(Failure::Gone));
    }

    proptest! {
        /// Whatever a server sends: an answer, a broken connection, or a wait; no panic.
        #[test]
        fn any_bytes_are_answered_or_refused(
            garbage in prop::collection::vec(any::<u8>(), 0..200), piece in 1usize..64, kind in 0u16..8,
            is_error in any::<bool>(), is_done in any::<bool>(), len in 0u64..600,
        ) {
            let mode = ReplyMode::Structured;
            let (mut calls, slot, cookie) = one_read(mode, 0, 512);
            prop_assert!(feed(&mut calls, &garbage, piece).is_err() || garbage.len() < 20);
            let (mut calls, _, _) = one_read(mode, 0, 512);
            let number = kind | if is_error { 1 << 15 } else { 0 };
            if let Some(kind) = ChunkKind::from_wire(number) {
                let header = ChunkHeader { done: is_done, kind, cookie, offset: 0, len };
                let mut bytes = Vec::new();
                header.encode(mode, &mut bytes);
                bytes.extend_from_slice(&garbage);
                let _ = feed(&mut calls, &bytes, piece);
            }
            calls.fail_all();
            prop_assert!(calls.take(slot, Waker::noop()).is_some());
        }
    }
}
