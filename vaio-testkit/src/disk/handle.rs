//! [`Handle`]: a [`SimDisk`] as one process sees it.

use std::{
    fmt,
    future::pending,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::channel::oneshot;
use vaio_core::{
    AllocationMap, BlockDevice, DeviceInfo, DiscardReads, Error, ErrorKind, Extent, Io, Op, OpKind,
    Reply, Result, Support,
};

use super::{
    fault::Fault,
    journal::{Fate, LowerIo},
    mutation::{Change, Moment, MutationId},
    sim_disk::{Flying, HELD_UP, Shared, SimDisk, State},
};
use crate::{Family, Host, Sim};

/// Blocks that a device which ignores the ragged ends of a discard really gives up, in bytes.
const DISCARD_GRAIN: u32 = 4096;

pub(super) struct Handle {
    disk: SimDisk,
    host: Host,
    epoch: u64,
}

/// An IO that was taken on.
struct Started {
    ticket: u64,
    submitted: Moment,
    mutation: Option<MutationId>,
    fault: Option<Fault>,
}

impl Handle {
    pub(super) fn new(disk: SimDisk, host: Host, epoch: u64) -> Self {
        Self { disk, host, epoch }
    }

    fn is_dead(&self) -> bool {
        !self.host.is_alive()
    }

    /// Takes an IO on: from here a crash may keep what it writes.
    fn begin(&self, io: &Io) -> Result<Started> {
        let shared = &self.disk.0;
        let (op, extent) = (io.op.kind(), io.op.extent());
        let error = |kind, text: &str| {
            Error::new(kind, text)
                .with_op(op)
                .with_extent(extent)
                .with_disk(&*shared.name)
        };
        let mut guard = shared.lock();
        let state = &mut *guard;
        if let Some(what) = misfit(state.media.info(), &io.op) {
            let disk = &shared.name;
            state.find(format!(
                "{disk} was asked for {what}, op={op} extent={extent}"
            ));
            return Err(error(
                ErrorKind::Invalid,
                &format!("a device is not asked for {what}"),
            ));
        }
        if self.epoch < state.fence {
            return Err(error(ErrorKind::Fenced, "another owner has this disk"));
        }
        if state.is_gone {
            return Err(error(ErrorKind::Gone, "the device is gone"));
        }
        if let Op::WriteZeroes {
            fast_only: true, ..
        } = io.op
            && !state.media.info().caps.fast_zeroes
        {
            return Err(error(
                ErrorKind::Unsupported,
                "zeroes are no faster than data here",
            ));
        }
        let fault = state.decide(shared, op, extent);
        let submitted = shared.moments.next();
        let block = extent.offset() / u64::from(state.media.info().logical_block);
        let mutation = change_of(state, &io.op, fault)
            .map(|change| state.media.submit(block, change, io.op.is_fua(), submitted));
        let entry = self.note_begun(state, io, mutation, submitted);
        state.last_ticket += 1;
        let ticket = state.last_ticket;
        let (host, epoch) = (self.host.clone(), self.epoch);
        state.flying.insert(
            ticket,
            Flying {
                host,
                epoch,
                mutation,
                entry,
            },
        );
        Ok(Started {
            ticket,
            submitted,
            mutation,
            fault,
        })
    }

    /// The trace puts the IO into its place among all that happens; the journal knows the rest.
    fn note_begun(
        &self,
        state: &mut State,
        io: &Io,
        mutation: Option<MutationId>,
        submitted: Moment,
    ) -> u64 {
        let Shared { sim, name, .. } = &*self.disk.0;
        let entry = state.journal.begin(LowerIo {
            host: Arc::clone(self.host.shared_name()),
            op: io.op.kind(),
            extent: io.op.extent(),
            is_fua: io.op.is_fua(),
            mutation,
            submitted: (sim.now(), submitted),
            ended: None,
            fate: Fate::InFlight,
            data: written(&io.op).filter(|_| sim.trace().is_on()),
        });
        sim.note(Some(&self.host), "submit", entry, || name.to_string());
        // What is asked is a part of what happened: two runs that ask for other blocks are not equal.
        let extent = io.op.extent();
        let place = extent.offset() ^ extent.len().rotate_left(32);
        let asked = place ^ ((io.op.kind() as u64) << 56) ^ (u64::from(io.op.is_fua()) << 63);
        sim.note(Some(&self.host), "io", asked, || {
            format!("{} {extent}", io.op.kind())
        });
        entry
    }
}

/// The IO's event was picked: it takes effect. `None`: a crash or a fence came first, or its
/// process is gone.
fn finish(disk: &SimDisk, op: &Op, started: &Started) -> Option<Result<Reply>> {
    let shared = &disk.0;
    let mut guard = shared.lock();
    let state = &mut *guard;
    let flying = state.flying.remove(&started.ticket)?;
    if !flying.host.is_alive() {
        shared.decide_orphan(state, &flying);
        return None;
    }
    let at = shared.moments.next();
    let result = match started.mutation {
        Some(id) => mutate(disk, state, op, started, id, at),
        None => serve(disk, state, op, started, at),
    };
    let result = result.map_err(|kind| {
        let text = format!(
            "the device failed the io as the test said, fault={:?}",
            started.fault
        );
        let error = Error::new(kind, text)
            .with_op(op.kind())
            .with_extent(op.extent());
        error.with_disk(&*shared.name)
    });
    state
        .journal
        .end(flying.entry, (shared.sim.now(), at), result.is_ok());
    if let Ok(Reply::Data(data)) = &result
        && shared.sim.trace().is_on()
    {
        state.journal.returned(flying.entry, data);
    }
    let kind = if result.is_ok() { "done" } else { "failed" };
    let name = || shared.name.to_string();
    shared
        .sim
        .note(Some(&flying.host), kind, flying.entry, name);
    Some(result)
}

/// Read, flush and prefetch.
fn serve(
    disk: &SimDisk,
    state: &mut State,
    op: &Op,
    started: &Started,
    at: Moment,
) -> Result<Reply, ErrorKind> {
    let is_flush = op.kind() == OpKind::Flush;
    match started.fault {
        Some(Fault::Error | Fault::Latent) => {
            if is_flush {
                state.media.fail_flush(at);
            }
            return Err(ErrorKind::Io);
        }
        Some(Fault::Gone) => {
            state.is_gone = true;
            return Err(ErrorKind::Gone);
        }
        _ => {}
    }
    if is_flush {
        state.media.flush(started.submitted);
    }
    let Op::Read { extent } = *op else {
        return Ok(Reply::Done);
    };
    let len = u64::from(state.media.info().logical_block);
    let (mut block, count) = (extent.offset() / len, extent.len() / len);
    if started.fault == Some(Fault::MisdirectedRead) {
        block = neighbour(state, block, count);
    }
    let mut data = state.media.read(block, count, started.submitted);
    if started.fault == Some(Fault::BitRot) && !data.is_empty() {
        let bits = u32::try_from(data.len() * 8).unwrap_or(u32::MAX);
        let bit = disk
            .0
            .sim
            .tape()
            .choose(bits, Family::Fault, &format!("{}.bit", disk.0.name));
        let mut rotten = BytesMut::from(&data[..]);
        rotten[bit as usize / 8] ^= 1 << (bit % 8);
        data = rotten.freeze();
    }
    Ok(Reply::Data(data))
}

fn mutate(
    disk: &SimDisk,
    state: &mut State,
    op: &Op,
    started: &Started,
    id: MutationId,
    at: Moment,
) -> Result<Reply, ErrorKind> {
    let shared = &disk.0;
    let choose = |n, what: &str| {
        shared
            .sim
            .tape()
            .choose(n, Family::Fault, &format!("{}.{what}", shared.name))
    };
    let extent = op.extent();
    let len = u64::from(state.media.info().logical_block);
    let (block, count) = (extent.offset() / len, extent.len() / len);
    match started.fault {
        Some(Fault::Error) => {
            let landed = match choose(3, "landed") {
                0 => 0,
                1 => count,
                _ => count / 2,
            };
            state.media.fail(id, at, |b| b < block + landed);
            return Err(ErrorKind::Io);
        }
        Some(Fault::NoSpace) => {
            state.media.abandon(id);
            return Err(ErrorKind::NoSpace);
        }
        Some(Fault::Gone) => {
            state.is_gone = true;
            state.media.fail(id, at, |_| false);
            return Err(ErrorKind::Gone);
        }
        Some(Fault::PhantomWrite) => state.media.abandon(id),
        Some(Fault::MisdirectedWrite) => {
            state.media.abandon(id);
            if let Op::Write { data, fua, .. } = op {
                let place = neighbour(state, block, count);
                let change = Change::Write(data.clone());
                let id = state.media.submit(place, change, *fua, started.submitted);
                state.media.complete(id, at);
            }
        }
        _ if may_be_undone(state, op) => {
            let whole = Extent::new(extent.offset(), extent.len()).align_in(DISCARD_GRAIN);
            let name = format!("{}.discarded", shared.name);
            let kept = shared.sim.tape().choose(3, Family::Crash, &name);
            state.media.complete_with(id, at, |b| match kept {
                0 => true,
                1 => false,
                _ => whole.contains(Extent::new(b * len, len)),
            });
        }
        _ => state.media.complete(id, at),
    }
    if op.kind() != OpKind::Discard {
        state.faults.written(extent);
    }
    Ok(Reply::Done)
}

fn may_be_undone(state: &State, op: &Op) -> bool {
    op.kind() == OpKind::Discard && state.media.info().caps.discard_reads == DiscardReads::OldOrZero
}

/// The next place of that length, or the one before.
fn neighbour(state: &State, block: u64, count: u64) -> u64 {
    let after = block + count;
    if after + count <= state.media.live().blocks() {
        after
    } else {
        block.saturating_sub(count)
    }
}

fn change_of(state: &State, op: &Op, fault: Option<Fault>) -> Option<Change> {
    let len = u64::from(state.media.info().logical_block);
    match op {
        Op::Write { offset, data, .. } => {
            let is_shorn = fault == Some(Fault::ShornWrite) && !data.is_empty();
            let data = if is_shorn {
                shorn(state, offset / len, data)
            } else {
                data.clone()
            };
            Some(Change::Write(data))
        }
        Op::WriteZeroes {
            extent, may_unmap, ..
        } => {
            let (count, may_unmap) = (extent.len() / len, *may_unmap);
            Some(Change::WriteZeroes { count, may_unmap })
        }
        Op::Discard { extent, .. } => Some(Change::Discard {
            count: extent.len() / len,
        }),
        _ => None,
    }
}

fn written(op: &Op) -> Option<Bytes> {
    match op {
        Op::Write { data, .. } => Some(data.clone()),
        _ => None,
    }
}

/// The data, with the second half of its last block as it was.
fn shorn(state: &State, block: u64, data: &Bytes) -> Bytes {
    let len = state.media.info().logical_block as usize;
    let last = block + (data.len() / len) as u64 - 1;
    let old = state.media.live().block(last);
    let cut = data.len() - len / 2;
    let mut mixed = BytesMut::from(&data[..cut]);
    mixed.extend_from_slice(&old[len / 2..]);
    mixed.freeze()
}

/// What is wrong with an operation, if anything: what a device may take for granted.
fn misfit(info: &DeviceInfo, op: &Op) -> Option<&'static str> {
    let (kind, extent) = (op.kind(), op.extent());
    let len_max = match kind {
        OpKind::Read | OpKind::Write => info.transfer_max.into(),
        _ => info.zeroes_max,
    };
    if info.caps.support(kind) != Support::Native && kind != OpKind::Prefetch {
        Some("an operation that it does not do")
    } else if op.is_fua() && info.caps.fua != Support::Native {
        Some("fua, which it does not do")
    } else if extent.end() > info.capacity {
        Some("an extent past its end")
    } else if !extent.is_aligned(info.logical_block) {
        Some("a misaligned extent")
    } else if extent.len() > len_max {
        Some("more than its largest transfer")
    } else {
        None
    }
}

/// Something on the way to shared storage holds an IO up: it happens all the same, long after.
async fn held_up(sim: &Sim, name: String, land: impl FnOnce() + Send + 'static) {
    let (done, landed) = oneshot::channel();
    let world = sim.clone();
    sim.spawn("disk.held-up", async move {
        world.sleep(HELD_UP).await;
        world.event_with(None, &name, land).detach().await;
        // Whoever waited may be dead.
        let _ = done.send(());
    });
    // It is only dropped with the world.
    let _ = landed.await;
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlockDevice for Handle {
    fn info(&self) -> DeviceInfo {
        *self.disk.0.lock().media.info()
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        if self.is_dead() {
            return pending().await;
        }
        let started = self.begin(&io).inspect_err(|error| {
            let sim = &self.disk.0.sim;
            sim.note(Some(&self.host), "refused", 0, || error.to_line());
        })?;
        let shared = Arc::clone(&self.disk.0);
        match started.fault {
            Some(Fault::Stall(time)) => shared.sim.sleep(time).await,
            Some(Fault::Hang) => loop {
                let listener = shared.quiet.listen();
                if shared.lock().faults.is_quiet() {
                    break;
                }
                listener.await;
            },
            _ => {}
        }
        let answer = Arc::new(Mutex::new(None));
        let name = shared.fault_name(io.op.kind());
        let (disk, slot) = (self.disk.clone(), Arc::clone(&answer));
        let land = move || {
            let result = finish(&disk, &io.op, &started);
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = result;
        };
        if shared.holds_up() {
            held_up(&shared.sim, name.to_owned(), land).await;
        } else {
            // Of no host, and detached: it happens whether or not the process lives to see it.
            shared.sim.event_with(None, name, land).detach().await;
        }
        let result = answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        match result {
            _ if self.is_dead() => pending().await,
            Some(result) => result,
            None => Err(
                Error::new(ErrorKind::Gone, "the disk lost power or was fenced")
                    .with_disk(&*shared.name),
            ),
        }
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        if self.is_dead() {
            return pending().await;
        }
        let shared = &self.disk.0;
        shared
            .sim
            .event(Some(&self.host), &format!("{}.allocation", shared.name))
            .await;
        let state = shared.lock();
        if state.is_gone {
            return Err(Error::new(ErrorKind::Gone, "the device is gone").with_disk(&*shared.name));
        }
        if range.end() > state.media.info().capacity
            || !range.is_aligned(state.media.info().logical_block)
        {
            return Err(Error::invalid("range is misaligned or past the end").with_extent(range));
        }
        Ok(state.media.allocation(range))
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("disk", &self.disk.name())
            .field("host", &self.host.name())
            .field("epoch", &self.epoch)
            .finish()
    }
}
