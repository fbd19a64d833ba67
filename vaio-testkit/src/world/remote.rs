//! Requests and replies over a [`Link`], and [`RemoteDisk`]: another host's disk as a
//! [`BlockDevice`], which is what a mirror or a replica's sender sees.
//!
//! Invariant: a request is done at most once; one that was given up may still be done, later.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use vaio_core::{
    Allocation, AllocationMap, BlockDevice, DeviceInfo, Error, ErrorKind, Extent, Io, Op, OpKind,
    Reply, Result, RuntimeExt, sync::Notify,
};

use super::link::{End, Link, Lost};
use crate::Host;

/// What goes over a link of requests.
#[derive(Clone, Debug)]
pub enum Frame<Q, A> {
    /// A request and its number.
    Ask(u64, Q),
    /// The reply to the request of that number.
    Answer(u64, A),
}

/// Sends requests and waits for their replies.
pub struct Caller<Q, A> {
    end: End<Frame<Q, A>>,
    shared: Arc<Waiting<A>>,
}

struct Waiting<A> {
    state: Mutex<Replies<A>>,
    changed: Notify,
}

struct Replies<A> {
    last: u64,
    /// `None`: not there yet.
    slots: BTreeMap<u64, Option<A>>,
    is_lost: bool,
}

impl<A> Waiting<A> {
    fn lock(&self) -> MutexGuard<'_, Replies<A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Q, A> Caller<Q, A>
where
    Q: Clone + Send + 'static,
    A: Clone + Send + 'static,
{
    /// A caller at an end of which no one else receives.
    pub fn new(end: End<Frame<Q, A>>) -> Self {
        let shared = Arc::new(Waiting {
            state: Mutex::new(Replies {
                last: 0,
                slots: BTreeMap::new(),
                is_lost: false,
            }),
            changed: Notify::default(),
        });
        let (waiting, receiver) = (Arc::clone(&shared), end.clone());
        end.host().spawn("link.replies", async move {
            while let Ok(frame) = receiver.recv().await {
                if let Frame::Answer(id, answer) = frame
                    && let Some(slot) = waiting.lock().slots.get_mut(&id)
                {
                    *slot = Some(answer);
                }
                waiting.changed.notify_all();
            }
            waiting.lock().is_lost = true;
            waiting.changed.notify_all();
        });
        Self { end, shared }
    }

    /// Sends a request and waits for its reply, however long: on a link that is cut, or loses
    /// datagrams, put a time-out around it.
    ///
    /// # Errors
    /// The connection broke: the request was done, or not, or will be.
    pub async fn ask(&self, request: Q) -> Result<A, Lost> {
        let id = {
            let mut state = self.shared.lock();
            state.last += 1;
            let id = state.last;
            state.slots.insert(id, None);
            id
        };
        let _slot = Slot {
            shared: &self.shared,
            id,
        };
        self.end.send(Frame::Ask(id, request))?;
        loop {
            let changed = self.shared.changed.listen();
            {
                let mut state = self.shared.lock();
                if let Some(answer) = state.slots.get_mut(&id).and_then(Option::take) {
                    return Ok(answer);
                }
                if state.is_lost {
                    return Err(Lost);
                }
            }
            changed.await;
        }
    }
}

impl<Q, A> fmt::Debug for Caller<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller")
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// Frees the place of a request, answered or given up.
struct Slot<'a, A> {
    shared: &'a Waiting<A>,
    id: u64,
}

impl<A> Drop for Slot<'_, A> {
    fn drop(&mut self) {
        self.shared.lock().slots.remove(&self.id);
    }
}

/// Answers requests until the connection breaks, each in a task of its own; one that comes twice
/// is done once.
pub async fn serve<Q, A, F>(end: End<Frame<Q, A>>, answer: impl Fn(Q) -> F)
where
    Q: Clone + Send + 'static,
    A: Clone + Send + 'static,
    F: Future<Output = A> + Send + 'static,
{
    let mut newest = 0;
    let mut missing = std::collections::BTreeSet::new();
    while let Ok(frame) = end.recv().await {
        let Frame::Ask(id, request) = frame else {
            continue;
        };
        if id > newest {
            missing.extend(newest + 1..id);
            newest = id;
        } else if !missing.remove(&id) {
            continue;
        }
        let (reply, end) = (answer(request), end.clone());
        end.host().clone().spawn("link.answer", async move {
            let answer = reply.await;
            // A broken connection: whoever asked knows.
            let _ = end.send(Frame::Answer(id, answer));
        });
    }
}

/// Messages of a disk on another host.
pub type DiskFrame = Frame<Op, Result<Reply>>;

/// A disk on another host. A connection that breaks, or is silent for too long, is given up; the
/// next IO dials again.
///
/// An IO that failed so may still happen, but never after one of a later connection: the
/// [server](serve_disk) sees to it. What was acknowledged and not flushed may be lost with the
/// other host, so the next flush after a broken connection fails, once.
pub struct RemoteDisk {
    link: Link<DiskFrame>,
    info: DeviceInfo,
    host: Host,
    timeout: Duration,
    state: Mutex<Connection>,
}

#[derive(Default)]
struct Connection {
    caller: Option<Arc<Caller<Op, Result<Reply>>>>,
    /// Something was acknowledged since the last flush.
    is_volatile: bool,
    /// It may be lost.
    is_suspect: bool,
}

impl RemoteDisk {
    /// A disk of this kind, that is served at the link's other end. An IO that takes longer than
    /// `timeout` fails.
    pub fn new(link: &Link<DiskFrame>, host: &Host, info: DeviceInfo, timeout: Duration) -> Self {
        Self {
            link: link.clone(),
            info,
            host: host.clone(),
            timeout,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, Connection> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn caller(&self) -> Arc<Caller<Op, Result<Reply>>> {
        let mut state = self.state();
        let caller = state
            .caller
            .get_or_insert_with(|| Arc::new(Caller::new(self.link.dial(&self.host))));
        Arc::clone(caller)
    }

    /// Something was acknowledged that no flush covers.
    fn acknowledged(&self, caller: &Arc<Caller<Op, Result<Reply>>>) {
        let mut state = self.state();
        state.is_volatile = true;
        let is_current = state
            .caller
            .as_ref()
            .is_some_and(|now| Arc::ptr_eq(now, caller));
        // Its connection was given up meanwhile.
        state.is_suspect |= !is_current;
    }

    /// Gives a connection up.
    fn lost(&self, caller: &Arc<Caller<Op, Result<Reply>>>) {
        caller.end.break_off();
        let mut state = self.state();
        let is_current = |now: &Arc<_>| Arc::ptr_eq(now, caller);
        if state.caller.take_if(|now| is_current(now)).is_some() {
            state.is_suspect |= state.is_volatile;
        }
    }
}

/// What one served disk knows of its connections.
#[derive(Debug, Default)]
struct Served {
    state: Mutex<(u64, usize)>,
    ended: Notify,
}

impl Served {
    /// Newest connection, and IOs in flight.
    fn lock(&self) -> MutexGuard<'_, (u64, usize)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This connection is the newest: none of an older one starts an IO any more, and none has one
    /// in flight. False: it is an older one itself.
    async fn becomes_newest(&self, number: u64) -> bool {
        if number < self.lock().0 {
            return false;
        }
        self.lock().0 = number;
        loop {
            let ended = self.ended.listen();
            if self.lock().1 == 0 {
                return true;
            }
            ended.await;
        }
    }
}

/// Serves a disk to whoever dials last, until the host dies.
pub async fn serve_disk(link: Link<DiskFrame>, host: Host, disk: Arc<dyn BlockDevice>) {
    let served = Arc::new(Served::default());
    loop {
        let end = link.accept(&host).await;
        let (served, disk) = (Arc::clone(&served), Arc::clone(&disk));
        host.spawn("link.serve", async move {
            let number = end.number();
            if !served.becomes_newest(number).await {
                end.break_off();
                return;
            }
            serve(end, move |op: Op| {
                let (served, disk) = (Arc::clone(&served), Arc::clone(&disk));
                async move {
                    {
                        let mut state = served.lock();
                        if state.0 != number {
                            return Err(Error::new(ErrorKind::Gone, "an old connection"));
                        }
                        state.1 += 1;
                    }
                    let result = disk.submit(Io::new(op)).await;
                    served.lock().1 -= 1;
                    served.ended.notify_all();
                    result
                }
            })
            .await;
        });
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlockDevice for RemoteDisk {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        let rt = self.host.rt();
        let deadline = rt.now() + self.timeout;
        let (op, extent) = (io.op.kind(), io.op.extent());
        let failed = |kind, text: &str| {
            let error = Error::new(kind, text).with_op(op).with_extent(extent);
            Err(error.with_disk("remote"))
        };
        let is_flush = op == OpKind::Flush;
        let caller = self.caller();
        {
            let mut state = self.state();
            if is_flush && std::mem::take(&mut state.is_suspect) {
                return failed(ErrorKind::Io, "the connection broke before this flush");
            }
            // What is acknowledged from here on is not covered by this flush.
            state.is_volatile &= !is_flush;
        }
        let result = rt.timeout_at(deadline, caller.ask(io.op)).await;
        if !matches!(result, Some(Ok(_))) {
            self.state().is_volatile |= is_flush;
            self.lost(&caller);
        } else if op.is_mutation() {
            self.acknowledged(&caller);
        }
        match result {
            Some(Ok(result)) => result,
            Some(Err(Lost)) => failed(ErrorKind::Io, "the connection to the disk broke"),
            None => failed(ErrorKind::Io, "the remote disk does not answer"),
        }
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        Ok(AllocationMap::uniform(range, Allocation::Data))
    }
}

impl fmt::Debug for RemoteDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteDisk")
            .field("host", &self.host.name())
            .finish_non_exhaustive()
    }
}
