//! The guest: sends a workload to a disk, keeps the oracle informed, and stops at the first answer
//! that nothing explains.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use vaio_core::{Disk, Extent, Io, Op, Reply};

use super::Broken;
use crate::{
    GuestOp,
    oracle::{OpId, Oracle, Outcome},
    sim::Sim,
    stamp::{Check, Stamp, Value},
};

/// How long an idle guest waits: long enough for any timer of a filter at test scale.
pub const IDLE: Duration = Duration::from_secs(1);

/// What the guest of a disk believes; outlives hosts.
#[derive(Clone, Debug)]
pub struct Belief(Arc<Mutex<Oracle>>);

impl Belief {
    /// What an oracle knows.
    pub fn new(oracle: Oracle) -> Self {
        Self(Arc::new(Mutex::new(oracle)))
    }

    /// The oracle. Not to be held across an await.
    pub fn oracle(&self) -> MutexGuard<'_, Oracle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the guest makes of an IO that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// Nothing fails below, so nothing may fail above.
    Broken,
    /// Something below may fail: an error is honest.
    Allowed,
}

/// A guest of one open disk.
pub struct Guest<'a> {
    /// The world.
    pub sim: &'a Sim,
    /// The disk, open.
    pub disk: &'a Disk,
    /// What must hold.
    pub belief: &'a Belief,
    /// IOs in flight at once.
    pub depth: usize,
    /// What an error means.
    pub on_error: OnError,
    /// Looks at the disk whenever nothing is in flight.
    pub when_quiet: Option<&'a Look<'a>>,
}

/// A look at the world that may find something broken.
pub type Look<'a> = dyn Fn() -> Result<(), Broken> + 'a;

impl std::fmt::Debug for Guest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("depth", &self.depth)
            .finish_non_exhaustive()
    }
}

impl<'a> Guest<'a> {
    /// A guest that does one IO at a time, and takes an error for a broken promise.
    pub const fn new(sim: &'a Sim, disk: &'a Disk, belief: &'a Belief) -> Self {
        Self {
            sim,
            disk,
            belief,
            depth: 1,
            on_error: OnError::Broken,
            when_quiet: None,
        }
    }

    /// Does all operations, at most `depth` at once, in order of submission.
    ///
    /// # Errors
    /// A promise was broken.
    pub async fn run(&self, ops: &[GuestOp]) -> Result<(), Broken> {
        let mut in_flight = FuturesUnordered::new();
        for op in ops {
            while in_flight.len() >= self.depth.max(1) {
                in_flight.next().await.transpose()?;
            }
            in_flight.push(self.one(*op));
        }
        while let Some(done) = in_flight.next().await {
            done?;
        }
        Ok(())
    }

    /// Reads the whole disk, one IO per stretch that fits a transfer.
    ///
    /// # Errors
    /// A promise was broken.
    pub async fn read_all(&self) -> Result<(), Broken> {
        let info = self.disk.info();
        let block = u64::from(info.logical_block);
        let blocks = self.belief.oracle().settings().blocks;
        let most = (u64::from(info.transfer_max) / block).max(1);
        for from in (0..blocks).step_by(usize::try_from(most).unwrap_or(usize::MAX)) {
            let count = most.min(blocks - from);
            self.submit(GuestOp::Read { block: from, count }).await?;
        }
        Ok(())
    }

    /// Writes zeroes everywhere and flushes: for a disk that shows garbage at first.
    ///
    /// # Errors
    /// A promise was broken.
    pub async fn format(&self) -> Result<(), Broken> {
        let count = self.belief.oracle().settings().blocks;
        self.submit(GuestOp::WriteZeroes {
            block: 0,
            count,
            may_unmap: false,
            fua: false,
        })
        .await?;
        self.submit(GuestOp::Flush).await
    }

    async fn one(&self, op: GuestOp) -> Result<(), Broken> {
        // When the guest comes is for the simulator to say: before, after or between whatever else
        // may happen.
        self.sim.event(None, "guest").await;
        self.submit(op).await
    }

    /// One operation, at once.
    ///
    /// # Errors
    /// A promise was broken.
    pub async fn submit(&self, op: GuestOp) -> Result<(), Broken> {
        if op == GuestOp::Idle {
            self.sim.note(None, "step", 0, || "idle".to_owned());
            self.sim.sleep(IDLE).await;
            return Ok(());
        }
        let block = u64::from(self.disk.info().logical_block);
        let (id, io) = {
            let mut oracle = self.belief.oracle();
            let id = oracle.submit(&op);
            let stamps = oracle.stamps(id);
            (id, io_of(&op, &stamps, block))
        };
        self.sim
            .note(None, "guest", u64::from(id.0), || format!("{id} {op}"));
        let result = self.disk.submit(io).await;
        self.answered(id, &op, result)
    }

    /// Tells the oracle what came of an operation.
    ///
    /// # Errors
    /// A promise was broken.
    pub fn answered(
        &self,
        id: OpId,
        op: &GuestOp,
        result: vaio_core::Result<Reply>,
    ) -> Result<(), Broken> {
        let block = u64::from(self.disk.info().logical_block);
        let said = match &result {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.to_line(),
        };
        let outcome = match result {
            Ok(Reply::Data(data)) => {
                let size = usize::try_from(block).unwrap_or(usize::MAX);
                Outcome::Read(Value::decode_all(&data, size, Check::Header))
            }
            Ok(_) => Outcome::Ok,
            Err(error) if self.on_error == OnError::Broken => {
                self.sim.note(None, "ack", u64::from(id.0), || {
                    format!("{id} {op}: {said}")
                });
                self.sim.note(None, "illegal", u64::from(id.0), String::new);
                return Err(Broken::new("error", unexpected(id, op, &error)));
            }
            Err(_) => Outcome::Err,
        };
        self.sim.note(None, "ack", u64::from(id.0), || {
            let read = match &outcome {
                Outcome::Read(values) => labels(op.blocks().start, values),
                _ => String::new(),
            };
            format!("{id} {op}: {said}{read}")
        });
        let legal = self.belief.oracle().ack(id, outcome);
        if let Err(violation) = legal {
            self.sim.note(None, "illegal", u64::from(id.0), String::new);
            return Err(violation.into());
        }
        self.sim.boundary("ack");
        let is_quiet = self.belief.oracle().in_flight().is_empty();
        match self.when_quiet {
            Some(look) if is_quiet => look(),
            _ => Ok(()),
        }
    }
}

fn labels(block: u64, values: &[Value]) -> String {
    let labels: Vec<_> = (block..)
        .zip(values)
        .map(|(block, value)| value.label(block))
        .collect();
    format!(" = {}", labels.join(", "))
}

fn unexpected(id: OpId, op: &GuestOp, error: &vaio_core::Error) -> String {
    format!(
        "{id} `{op}` failed although nothing below it did\n  {}",
        error.to_line()
    )
}

/// The IO of an operation; `stamps`: what a write carries, one per block.
#[expect(clippy::missing_panics_doc, reason = "a block is a few kilobytes")]
pub fn io_of(op: &GuestOp, stamps: &[Stamp], block: u64) -> Io {
    let blocks = op.blocks();
    let extent = Extent::new(blocks.start * block, (blocks.end - blocks.start) * block);
    match *op {
        GuestOp::Read { .. } => Io::read(extent),
        GuestOp::Write { fua, .. } => {
            let size = usize::try_from(block).expect("a block is small");
            let data: Bytes = Stamp::payload(stamps.iter().copied(), size);
            let offset = extent.offset();
            Io::new(Op::Write { offset, data, fua })
        }
        GuestOp::WriteZeroes { may_unmap, fua, .. } => Io::new(Op::WriteZeroes {
            extent,
            may_unmap,
            fast_only: false,
            fua,
        }),
        GuestOp::Discard { fua, .. } => Io::new(Op::Discard { extent, fua }),
        GuestOp::Flush | GuestOp::Idle => Io::flush(),
    }
}
