//! [`Port`]: one queue into a disk. It validates once and owns every IO in flight until it ends.
//!
//! Costs per IO at steady state: one box for the way down, no lock, no clock (one IO in 64 is
//! timed), two atomic steps at the gate. Wakers and slots are made once per place in the queue.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::task::AtomicWaker;

use crate::{
    BoxFuture, DeviceInfo, Error, ErrorKind, Extent, Instant, Io, OpKind, Reply, Result,
    admit::{Admission, check},
    chain::{Chain, IoCx},
    core::{Core, Kick},
    disk::DiskInner,
    keeper::{Keeper, Orphan},
    root::{expired, launch},
    slot::Slot,
    stats::{OpCounters, SAMPLE_EVERY, nanos},
};

/// Deepest port.
pub const PORT_DEPTH_MAX: usize = 1024;
/// IO numbers that a port takes at a time.
const ID_BLOCK: u64 = 1 << 20;

/// The end of one IO.
#[derive(Debug)]
#[non_exhaustive]
pub struct Completion {
    /// As given to [`Port::push`].
    pub tag: u64,
    /// The answer.
    pub result: Result<Reply>,
}

/// One queue into a disk, for one task to own: a connection, a virtqueue, a worker.
///
/// # Contract
/// Every [`push`](Self::push) that succeeds gives exactly one [`Completion`]. IO moves only while
/// the port is polled. Completions come in any order.
///
/// # Cancellation
/// Dropping a port drops the answers, never the IO: what is in flight runs to its end, counted by
/// the gate and fenced. IO that was never polled is dropped with it.
pub struct Port {
    core: Arc<Core>,
    disk: Arc<DiskInner>,
    chain: Weak<Chain>,
    epoch: u64,
    info: DeviceInfo,
    depth: usize,
    places: Vec<Place>,
    free: Vec<usize>,
    ready: Arc<Ready>,
    /// Places to be polled, one bit each, taken from `ready`.
    batch: Vec<u64>,
    batch_left: bool,
    done: VecDeque<Completion>,
    /// Admitted by no one yet: the gate is closed.
    waiting: VecDeque<(u64, Io)>,
    opened: Option<BoxFuture<'static, ()>>,
    counters: Arc<OpCounters>,
    next_id: u64,
    ids_end: u64,
}

/// A place in the queue; made once, used by one IO after the other.
struct Place {
    flight: Option<Flight>,
    slot: Arc<Slot>,
    waker: Waker,
}

struct Flight {
    future: BoxFuture<'static, Result<Reply>>,
    tag: u64,
    kind: OpKind,
    extent: Extent,
    since: Option<Instant>,
    is_polled: bool,
}

/// Which places were woken.
#[derive(Debug)]
struct Ready {
    words: Box<[AtomicU64]>,
    is_kicked: AtomicBool,
    parent: AtomicWaker,
}

impl Ready {
    fn is_any(&self) -> bool {
        self.words
            .iter()
            .any(|word| word.load(Ordering::Acquire) != 0)
            || self.is_kicked.load(Ordering::Acquire)
    }
}

impl Kick for Ready {
    fn kick(&self) {
        self.is_kicked.store(true, Ordering::Release);
        self.parent.wake();
    }
}

struct PlaceWaker {
    ready: Arc<Ready>,
    word: usize,
    bit: u64,
}

impl Wake for PlaceWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.ready.words[self.word].fetch_or(self.bit, Ordering::AcqRel) & self.bit == 0 {
            self.ready.parent.wake();
        }
    }
}

impl Port {
    pub(crate) fn new(disk: Arc<DiskInner>, depth: usize) -> Result<Self> {
        if !(1..=PORT_DEPTH_MAX).contains(&depth) {
            return Err(Error::invalid(format!(
                "port depth is 1 to {PORT_DEPTH_MAX}, depth={depth}"
            )));
        }
        let core = Arc::clone(&disk.core);
        if core.is_closed() {
            return Err(core.gone());
        }
        core.take_slots(depth)?;
        let words = depth.div_ceil(64);
        let ready = Arc::new(Ready {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            is_kicked: AtomicBool::new(false),
            parent: AtomicWaker::new(),
        });
        let kick: Weak<Ready> = Arc::downgrade(&ready);
        core.add_kick(kick);
        let (chain, epoch) = disk.chain();
        Ok(Self {
            info: *chain.info(0),
            chain: Arc::downgrade(&chain),
            epoch,
            depth,
            places: Vec::new(),
            free: Vec::new(),
            ready,
            batch: vec![0; words],
            batch_left: false,
            done: VecDeque::new(),
            waiting: VecDeque::new(),
            opened: None,
            counters: core.new_counters(),
            next_id: 0,
            ids_end: 0,
            core,
            disk,
        })
    }

    /// What the disk looks like now. Changes only inside a quiesced resize or re-chain.
    pub fn info(&mut self) -> DeviceInfo {
        if self.epoch != self.disk.epoch() {
            self.refresh();
        }
        self.info
    }

    /// IOs pushed and not yet taken as completions.
    pub fn in_flight(&self) -> usize {
        self.places.len() - self.free.len() + self.done.len() + self.waiting.len()
    }

    /// Whether [`push`](Self::push) would refuse.
    pub fn is_full(&self) -> bool {
        self.in_flight() >= self.depth
    }

    /// Queues an IO; it starts when the port is polled next. Its completion carries `tag`.
    ///
    /// An IO that the disk cannot do (out of range, misaligned, unsupported) completes with its
    /// error; an empty one completes at once. While the disk is quiesced IO waits in the port.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when [`is_full`](Self::is_full), [`ErrorKind::Gone`] when the disk is
    /// closed; the IO was not taken.
    pub fn push(&mut self, tag: u64, io: Io) -> Result<()> {
        if self.is_full() {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("port is full, depth={}", self.depth),
            ));
        }
        if self.core.is_closed() {
            return Err(self.core.gone());
        }
        if !self.waiting.is_empty() || !self.core.gate.try_enter() {
            self.waiting.push_back((tag, io));
            return Ok(());
        }
        self.start(tag, io);
        Ok(())
    }

    /// Starts an IO that the gate has admitted.
    fn start(&mut self, tag: u64, mut io: Io) {
        let chain = self.current_chain();
        let extent = match check(&self.info, &io.op) {
            Ok(Admission::Go(extent)) => extent,
            Ok(Admission::Answer(reply)) => return self.answer(tag, io.op.kind(), Ok(reply)),
            Err(error) => {
                let error = error.with_disk(Arc::clone(&self.core.name));
                return self.answer(tag, io.op.kind(), Err(error));
            }
        };
        if self.next_id == self.ids_end {
            self.next_id = self.core.take_ids(ID_BLOCK);
            self.ids_end = self.next_id + ID_BLOCK;
        }
        io.id = self.next_id;
        self.next_id += 1;
        let index = self.free.pop().unwrap_or_else(|| self.add_place());
        let kind = io.op.kind();
        let is_sampled = io.id.is_multiple_of(SAMPLE_EVERY);
        let since = is_sampled.then(|| self.core.rt.now());
        let place = &mut self.places[index];
        if Arc::strong_count(&place.slot) > 1 {
            // An orphan of an earlier IO still writes to it.
            place.slot = self.core.slots.new_slot();
        }
        let tick = self.core.tick.load(Ordering::Relaxed);
        place.slot.start(io.id, kind, extent, tick, is_sampled);
        self.core.wake_watch();
        let cx = IoCx {
            chain,
            slot: Arc::clone(&place.slot),
        };
        let future = launch(cx, 0, io);
        place.flight = Some(Flight {
            future,
            tag,
            kind,
            extent,
            since,
            is_polled: false,
        });
        self.batch[index / 64] |= 1 << (index % 64);
        self.batch_left = true;
    }

    /// Answers an IO that never went down.
    fn answer(&mut self, tag: u64, kind: OpKind, result: Result<Reply>) {
        self.core.gate.exit();
        self.counters.count(kind, 0, result.is_err());
        self.done.push_back(Completion { tag, result });
    }

    fn current_chain(&mut self) -> Arc<Chain> {
        if self.epoch == self.disk.epoch()
            && let Some(chain) = self.chain.upgrade()
        {
            return chain;
        }
        self.refresh()
    }

    fn refresh(&mut self) -> Arc<Chain> {
        let (chain, epoch) = self.disk.chain();
        self.info = *chain.info(0);
        self.chain = Arc::downgrade(&chain);
        self.epoch = epoch;
        chain
    }

    fn add_place(&mut self) -> usize {
        let index = self.places.len();
        let waker = Waker::from(Arc::new(PlaceWaker {
            ready: Arc::clone(&self.ready),
            word: index / 64,
            bit: 1 << (index % 64),
        }));
        self.places.push(Place {
            flight: None,
            slot: self.core.slots.new_slot(),
            waker,
        });
        index
    }

    /// Polls the IO in flight; ready with the first that ended. Pending while none has, also when
    /// nothing is in flight. Call it again until it is pending: completions are not announced
    /// twice.
    pub fn poll_complete(&mut self, cx: &mut Context<'_>) -> Poll<Completion> {
        loop {
            if let Some(done) = self.done.pop_front() {
                return Poll::Ready(done);
            }
            if !self.waiting.is_empty() {
                self.admit_waiting(cx);
                if !self.done.is_empty() {
                    continue;
                }
            }
            if let Some(done) = self.poll_batch() {
                return Poll::Ready(done);
            }
            if self.take_ready() {
                continue;
            }
            self.ready.parent.register(cx.waker());
            if !self.ready.is_any() {
                return Poll::Pending;
            }
        }
    }

    /// Waits for the next completion; never resolves while nothing is in flight. Cancel-safe.
    pub async fn next(&mut self) -> Completion {
        poll_fn(|cx| self.poll_complete(cx)).await
    }

    /// Polls the places of the batch until one ends.
    fn poll_batch(&mut self) -> Option<Completion> {
        if !self.batch_left {
            return None;
        }
        for word in 0..self.batch.len() {
            while self.batch[word] != 0 {
                let bit = self.batch[word].trailing_zeros();
                self.batch[word] &= self.batch[word] - 1;
                if let Some(done) = self.poll_place(word * 64 + bit as usize) {
                    return Some(done);
                }
            }
        }
        self.batch_left = false;
        None
    }

    fn poll_place(&mut self, index: usize) -> Option<Completion> {
        let place = &mut self.places[index];
        let flight = place.flight.as_mut()?;
        if place.slot.is_expired() {
            return self.expire(index);
        }
        flight.is_polled = true;
        let poll = flight
            .future
            .as_mut()
            .poll(&mut Context::from_waker(&place.waker));
        let Poll::Ready(result) = poll else {
            return None;
        };
        let flight = place.flight.take().expect("just polled");
        place.slot.end();
        // Before the gate is left: whoever waits for a drain must find nothing of this IO.
        drop(flight.future);
        self.free.push(index);
        if let Some(since) = flight.since {
            let took = self.core.rt.now().since(since);
            self.core.latency[flight.kind as usize].record(nanos(took));
        }
        self.counters
            .count(flight.kind, flight.extent.len(), result.is_err());
        self.core.gate.exit();
        let result = match result {
            Ok(reply) => Ok(reply),
            Err(error) => Err(error.with_disk(Arc::clone(&self.core.name))),
        };
        Some(Completion {
            tag: flight.tag,
            result,
        })
    }

    /// Fails an IO to its asker and leaves it to the keeper.
    fn expire(&mut self, index: usize) -> Option<Completion> {
        let flight = self.places[index].flight.take()?;
        let (tag, kind, extent) = (flight.tag, flight.kind, flight.extent);
        self.orphan(index, flight);
        self.free.push(index);
        self.counters.count(kind, extent.len(), true);
        self.core.gate.exit();
        let error = expired(kind, extent).with_disk(Arc::clone(&self.core.name));
        Some(Completion {
            tag,
            result: Err(error),
        })
    }

    fn orphan(&self, index: usize, flight: Flight) {
        let slot = &self.places[index].slot;
        if !flight.is_polled {
            slot.end();
            return;
        }
        let orphan = Orphan {
            future: flight.future,
            kind: flight.kind,
            extent: flight.extent,
            level: 0,
            dropped_by: Arc::from("port"),
            slot: Arc::clone(slot),
            ends_slot: true,
            stands_for_slot: true,
        };
        Keeper::adopt(&self.core, orphan);
    }

    /// Takes what was woken into the batch.
    fn take_ready(&mut self) -> bool {
        let mut any = false;
        for (word, ready) in self.batch.iter_mut().zip(&self.ready.words) {
            if ready.load(Ordering::Relaxed) != 0 {
                *word |= ready.swap(0, Ordering::AcqRel);
                any = true;
            }
        }
        if self.ready.is_kicked.load(Ordering::Relaxed)
            && self.ready.is_kicked.swap(false, Ordering::AcqRel)
        {
            for (index, place) in self.places.iter().enumerate() {
                if place.flight.is_some() {
                    self.batch[index / 64] |= 1 << (index % 64);
                }
            }
            any = true;
        }
        self.batch_left |= any;
        any
    }

    /// Starts what waited for the gate, in order, as far as the gate lets it.
    fn admit_waiting(&mut self, cx: &mut Context<'_>) {
        while let Some((tag, io)) = self.waiting.pop_front() {
            if self.core.is_closed() {
                let result = Err(self.core.gone());
                self.done.push_back(Completion { tag, result });
                continue;
            }
            if self.core.gate.try_enter() {
                self.opened = None;
                self.start(tag, io);
                continue;
            }
            self.waiting.push_front((tag, io));
            let core = &self.core;
            let opened = self.opened.get_or_insert_with(|| {
                let core = Arc::clone(core);
                Box::pin(async move { core.gate.wait_open().await })
            });
            if opened.as_mut().poll(cx).is_pending() {
                return;
            }
            self.opened = None;
        }
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("disk", &self.core.name)
            .field("depth", &self.depth)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        for index in 0..self.places.len() {
            if let Some(flight) = self.places[index].flight.take() {
                self.orphan(index, flight);
                self.core.gate.exit();
            }
        }
        self.core.retire_counters(&self.counters);
        self.core.give_slots(self.depth);
    }
}
