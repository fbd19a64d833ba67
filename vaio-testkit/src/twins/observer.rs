//! An observer: counts what passes and keeps a digest of what was written. It holds nothing and
//! changes nothing, so the disk goes on without it if it fails ([`BypassSafety::Always`]).
//!
//! * V1: every IO is forwarded exactly once and unchanged, before anything else is done.
//! * V2: what is counted is what succeeded; nothing is answered by the observer itself.
//! * V3: its future may be dropped at any await: it changes its counts in one go after the IO.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use async_trait::async_trait;
use vaio_core::{
    AllocationMap, AttachContext, BypassSafety, Class, Descriptor, DeviceInfo, Filter,
    FilterFactory, FilterState, Io, Lifecycle, Next, Op, OpKind, Outcome, Promise, Reply, Result,
};

use crate::{twins::checksum, zoo::Bug};

/// Name of the filter.
pub const NAME: &str = "twin-observer";

/// The filter.
#[derive(Debug)]
pub struct Observer {
    counts: [AtomicU64; OpKind::COUNT],
    /// Sum of the checksums of everything written: the order does not matter.
    digest: AtomicU64,
    /// For the bug: a write that was answered and not yet forwarded.
    kept: Mutex<Option<Io>>,
    bug: Option<Bug>,
}

#[async_trait]
impl Filter for Observer {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        if self.bug == Some(Bug::ObserverKeepsWrite) {
            return self.keep_one(io, next).await;
        }
        let kind = io.op.kind();
        let sum = match &io.op {
            Op::Write { data, .. } => checksum(&[data]),
            _ => 0,
        };
        let reply = next.submit(io).await?;
        self.counts[kind as usize].fetch_add(1, Relaxed);
        self.digest.fetch_add(sum.into(), Relaxed);
        Ok(reply)
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }

    fn state(&self) -> FilterState {
        let writes = self.count(OpKind::Write).to_string();
        let digest = format!("{:016x}", self.digest.load(Relaxed));
        FilterState::default()
            .with_detail("writes", writes)
            .with_detail("digest", digest)
    }

    fn allocation(&self, below: AllocationMap) -> AllocationMap {
        below
    }
}

impl Observer {
    /// IOs of a kind that succeeded.
    pub fn count(&self, kind: OpKind) -> u64 {
        self.counts[kind as usize].load(Relaxed)
    }

    /// The bug: answers a write at once and forwards it with the next IO, although it claims to be
    /// safe to leave out at any time.
    async fn keep_one(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        let is_kept = matches!(io.op, Op::Write { fua: false, .. });
        let before = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *kept, is_kept.then(|| io.clone()))
        };
        if let Some(before) = before {
            next.submit(before).await?;
        }
        if is_kept {
            return Ok(Reply::Done);
        }
        next.submit(io).await
    }
}

/// Makes [`Observer`] instances.
#[derive(Clone, Debug, Default)]
pub struct ObserverFactory {
    bug: Option<Bug>,
}

impl ObserverFactory {
    /// The same with a bug of the zoo in it.
    #[must_use]
    pub const fn with_bug(mut self, bug: Bug) -> Self {
        self.bug = Some(bug);
        self
    }
}

#[async_trait]
impl FilterFactory for ObserverFactory {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new(NAME, env!("CARGO_PKG_VERSION"), Class::Inspect)
            .with_summary("Counts and digests what passes; a model of the testkit.")
            .intercept(&OpKind::ALL)
            .accept_fua()
            .accept_zeroes_flags()
            .with_bypass(BypassSafety::Always)
            .with_promise(Promise::AtFlush)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, _cx: AttachContext) -> Result<Arc<dyn Filter>> {
        Ok(Arc::new(Observer {
            counts: Default::default(),
            digest: AtomicU64::new(0),
            kept: Mutex::new(None),
            bug: self.bug,
        }))
    }
}
