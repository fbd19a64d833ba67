//! [`Source`]: the filter, and the task that keeps a connection.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{Either, select};
use vaio_core::{
    AttachContext, BlockDeviceExt, DeviceInfo, Error, ErrorKind, Extent, Filter, FilterState, Io,
    Lifecycle, Next, Op, Outcome, Reply, Result, RuntimeExt,
    sync::{self, LockMode, Notify, RangeLock},
};

use super::{Message, RETRY_INTERVAL, Session, TIMEOUT, dirty::Dirty};
use crate::{
    sim::Host,
    world::{End, Lease, Link},
    zoo::Bug,
};

#[derive(Debug)]
pub(super) struct Source {
    cx: AttachContext,
    link: Link<Message>,
    host: Host,
    lease: Lease,
    bug: Option<Bug>,
    block: u64,
    ranges: RangeLock,
    /// Held while a flush is answered, and while the record becomes "in sync" (N6).
    flushing: sync::Mutex<()>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    seq: u64,
    dirty: Dirty,
    sessions: u64,
    peer: Option<Peer>,
}

/// A connection that the target welcomed.
#[derive(Debug)]
struct Peer {
    end: End<Message>,
    session: Session,
    /// Its copy is done (N4).
    is_streaming: bool,
    /// What the target made durable on it.
    flushed: u64,
    /// The last flush that was asked for on it.
    asked: u64,
}

/// How a connection ended.
enum Ended {
    Again,
    /// Another owner has the disk.
    Fenced,
}

impl Source {
    pub(super) fn new(
        cx: AttachContext,
        link: Link<Message>,
        host: Host,
        lease: Lease,
        bug: Option<Bug>,
    ) -> Arc<Self> {
        let info = *cx.below();
        let block = u64::from(info.logical_block);
        let mut state = State::default();
        // N9: what the target has of each block is not known.
        for offset in blocks(info.extent(), block) {
            state.dirty.mark(offset, 0);
        }
        Arc::new(Self {
            cx,
            link,
            host,
            lease,
            bug,
            block,
            ranges: RangeLock::default(),
            flushing: sync::Mutex::new(()),
            state: Mutex::new(state),
            changed: Notify::default(),
        })
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers, marks and sends one block (N1, N2). Whoever calls it holds the block.
    fn capture(&self, offset: u64, data: Bytes) {
        let mut state = self.state();
        state.seq += 1;
        let seq = state.seq;
        let is_copying = state.peer.as_ref().is_some_and(|peer| !peer.is_streaming);
        if self.has(Bug::WriteInResyncLost) && is_copying {
            return;
        }
        state.dirty.mark(offset, seq);
        if let Some(peer) = &state.peer {
            let session = peer.session;
            // A broken connection: the mark is enough.
            let _ = peer.end.send(Message::Write {
                session,
                seq,
                offset,
                data,
            });
        }
    }

    async fn write(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        let extent = io.op.extent();
        let Op::Write { data, .. } = &io.op else {
            return Err(Error::unsupported(io.op.kind()));
        };
        let data = data.clone();
        let _order = self.ranges.lock(extent, LockMode::Exclusive).await;
        for offset in blocks(extent, self.block) {
            let at = index(offset - extent.offset());
            self.capture(offset, data.slice(at..at + index(self.block)));
        }
        next.submit(io).await
    }

    /// N3.
    async fn flush(&self) -> Result<()> {
        let _alone = self.flushing.lock().await;
        let seq = self.state().seq;
        self.cx.lower().flush().await?;
        // A record that is not known counts as "in sync".
        let is_behind = self.lease.is_sure() && !self.lease.record().in_sync;
        if is_behind || self.state().dirty.is_empty() {
            return Ok(());
        }
        let rt = self.cx.rt();
        let deadline = rt.now() + TIMEOUT;
        let reached = rt.timeout_at(deadline, self.target_has(seq, None)).await;
        let number = self.state().peer.as_ref().map(|peer| peer.session.number);
        if let (None, Some(number)) = (reached, number) {
            self.give_up(number);
        }
        if reached.is_some() || self.has(Bug::DegradesSilently) {
            return Ok(());
        }
        let behind = self.lease.change(|record| record.in_sync = false).await;
        behind.map_err(|why| Error::new(ErrorKind::Fenced, why.to_string()))
    }

    /// Waits until the target has everything up to `seq`, durably, on one connection whose copy is
    /// done: the one of this number, if one is named. False: that one is gone.
    async fn target_has(&self, seq: u64, only: Option<u64>) -> bool {
        loop {
            let changed = self.changed.listen();
            {
                let mut state = self.state();
                let newest = state.seq;
                let peer = state.peer.as_mut();
                let number = peer.as_ref().map(|peer| peer.session.number);
                if only.is_some() && number != only {
                    return false;
                }
                if let Some(peer) = peer.filter(|peer| peer.is_streaming) {
                    if peer.flushed >= seq && peer.asked > 0 {
                        return true;
                    }
                    if peer.asked < seq.max(1) {
                        peer.asked = newest.max(1);
                        let _ = peer.end.send(Message::Flush { seq: newest });
                    }
                }
            }
            changed.await;
        }
    }

    /// Keeps a connection until another owner has the disk.
    async fn run(self: Arc<Self>) {
        loop {
            let ended = {
                let (stopped, connection) = (pin!(self.cx.stopped()), pin!(self.connection()));
                match select(stopped, connection).await {
                    Either::Left(_) => Ended::Fenced,
                    Either::Right((ended, _)) => ended,
                }
            };
            let peer = self.state().peer.take();
            if let Some(peer) = peer {
                peer.end.break_off();
            }
            self.changed.notify_all();
            if let Ended::Fenced = ended {
                return;
            }
            let pause = self.cx.rt().sleep(RETRY_INTERVAL);
            if let Either::Left(_) = select(pin!(self.cx.stopped()), pause).await {
                return;
            }
        }
    }

    async fn connection(self: &Arc<Self>) -> Ended {
        let session = {
            let mut state = self.state();
            state.sessions += 1;
            Session {
                epoch: self.lease.epoch(),
                number: state.sessions,
            }
        };
        let end = self.link.dial(&self.host);
        let _ = end.send(Message::Hello(session));
        let deadline = self.cx.rt().now() + TIMEOUT;
        match self.cx.rt().timeout_at(deadline, end.recv()).await {
            Some(Ok(Message::Welcome)) => {}
            Some(Ok(Message::Refused)) => return Ended::Fenced,
            _ => {
                end.break_off();
                return Ended::Again;
            }
        }
        self.state().peer = Some(Peer {
            end: end.clone(),
            session,
            is_streaming: false,
            flushed: 0,
            asked: 0,
        });
        let copy = async {
            self.copy().await;
            std::future::pending::<()>().await;
        };
        match select(pin!(self.receive(&end)), pin!(copy)).await {
            Either::Left((ended, _)) => ended,
            Either::Right(_) => Ended::Again,
        }
    }

    /// What the target says.
    async fn receive(&self, end: &End<Message>) -> Ended {
        while let Ok(message) = end.recv().await {
            let mut state = self.state();
            match message {
                Message::Flushed { seq } => {
                    if self.has(Bug::NoticeClearsNewer) {
                        state.dirty.clear();
                    }
                    state.dirty.flushed(seq);
                    if let Some(peer) = &mut state.peer {
                        peer.flushed = peer.flushed.max(seq);
                    }
                }
                Message::Written { seq } if self.has(Bug::ClearedOnReceipt) => {
                    state.dirty.flushed(seq);
                }
                Message::Nack if !self.has(Bug::NackIgnored) => return Ended::Again,
                Message::Refused => return Ended::Fenced,
                _ => {}
            }
            drop(state);
            self.changed.notify_all();
        }
        Ended::Again
    }

    /// N4: every marked block, then the record.
    async fn copy(self: &Arc<Self>) {
        if self.has(Bug::InSyncEarly) {
            let _ = self.lease.change(|record| record.in_sync = true).await;
        }
        let offsets = self.state().dirty.offsets();
        for offset in offsets {
            if self.has(Bug::ReconnectForgets) && self.lease.record().in_sync {
                break;
            }
            let Some(_step) = self.cx.step().await else {
                return;
            };
            let extent = Extent::new(offset, self.block);
            let _order = match self.bug {
                Some(Bug::ResyncPassesWrite) => None,
                _ => Some(self.ranges.lock(extent, LockMode::Exclusive).await),
            };
            let Ok(data) = self.cx.lower().read(offset, self.block).await else {
                return;
            };
            self.send_copy(offset, data);
        }
        let number = {
            let mut state = self.state();
            let Some(peer) = &mut state.peer else { return };
            peer.is_streaming = true;
            peer.session.number
        };
        self.changed.notify_all();
        if !self.lease.record().in_sync {
            // Its own task: a change of the record is not to be dropped half done.
            let source = Arc::clone(self);
            let join = async move { source.join(number).await };
            self.cx.spawn("replicator.join", join);
        }
    }

    fn send_copy(&self, offset: u64, data: Bytes) {
        let mut state = self.state();
        state.seq += 1;
        let seq = state.seq;
        state.dirty.mark(offset, seq);
        if let Some(peer) = &state.peer {
            let session = peer.session;
            let _ = peer.end.send(Message::Write {
                session,
                seq,
                offset,
                data,
            });
        }
    }

    /// A connection that is silent is a broken one.
    fn give_up(&self, number: u64) {
        let state = self.state();
        let peer = state.peer.as_ref();
        if let Some(peer) = peer.filter(|peer| peer.session.number == number) {
            peer.end.break_off();
        }
    }

    /// N6: on this connection, or not at all.
    async fn join(&self, number: u64) {
        let _alone = self.flushing.lock().await;
        let seq = self.state().seq;
        let deadline = self.cx.rt().now() + TIMEOUT;
        let reached = self.target_has(seq, Some(number));
        let reached = self.cx.rt().timeout_at(deadline, reached).await;
        if reached.is_none() {
            self.give_up(number);
        }
        if reached == Some(true) {
            // Where the answer is lost, flushes take it as done.
            let _ = self.lease.change(|record| record.in_sync = true).await;
        }
    }
}

fn blocks(extent: Extent, block: u64) -> impl Iterator<Item = u64> {
    let step = index(block);
    (extent.offset()..extent.end()).step_by(step)
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("an extent is in memory")
}

/// The filter.
#[derive(Debug)]
struct Replicator(Arc<Source>);

/// Starts the connection.
pub(super) fn start(source: Arc<Source>) -> Arc<dyn Filter> {
    let task = Arc::clone(&source).run();
    source.cx.spawn("replicator.run", task);
    Arc::new(Replicator(source))
}

#[async_trait]
impl Filter for Replicator {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        match io.op {
            Op::Write { .. } => self.0.write(io, next).await,
            Op::Flush => self.0.flush().await.map(|()| Reply::Done),
            _ => Err(Error::unsupported(io.op.kind())),
        }
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }

    fn state(&self) -> FilterState {
        let mut state = FilterState::default();
        let marked = self.0.state().dirty.offsets().len();
        state.lag_bytes = u64::try_from(marked).unwrap_or(u64::MAX) * self.0.block;
        state
    }
}
