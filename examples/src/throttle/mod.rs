//! Limits what a guest may do to a disk: IOs and bytes per second, with a burst.
//!
//! The pure part is [`bucket`]; this file only waits. Invariants:
//! * Fair: guest IO passes in the order in which it came; one line for all, whatever its size, so
//!   that nothing starves.
//! * Cancellation costs nothing: an IO takes its units at the moment it passes. Dropped while it
//!   waits, it leaves the line and has taken nothing.
//! * It never delays an IO by more than [`WAIT_MAX`]: well before the stall ladder would take the
//!   filter for a hung one. A guest that queues more than that gets more than its rate, and an
//!   event says so.
//! * When the disk drains, for whatever verb, the line is let go: no drain waits for a throttle.

pub mod bucket;

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::future::select;
use vaio_core::{
    AllocationMap, AttachContext, Class, Descriptor, DeviceInfo, Error, Filter, FilterFactory,
    FilterState, Instant, Io, Lifecycle, Next, Notice, Op, OpKind, Origin, Outcome, Reply, Result,
    RuntimeExt, SettingKind, SettingSpec, Severity, sync::Semaphore,
};

use bucket::Bucket;

/// Longest time that one IO is held back: half of the 20 s after which a disk fails an IO by
/// default.
pub const WAIT_MAX: Duration = Duration::from_secs(10);
/// Largest IO that a disk takes, in bytes. Smaller rates than one such IO per [`WAIT_MAX`] are
/// refused: whoever comes after it would wait for too long.
const IO_BYTES_MAX: u64 = 32 << 20;
/// Depth of an ordinary guest queue. A queue of that many small IOs must pass within
/// [`WAIT_MAX`] too.
const QUEUE_DEPTH: u64 = 256;

const SETTINGS: &[SettingSpec] = &[
    SettingSpec::new(
        "iops",
        SettingKind::Number {
            min: 0,
            max: 10_000_000,
        },
        "0",
        "IOs per second; 0: no limit, else at least 26",
    ),
    SettingSpec::new(
        "bytes_per_s",
        SettingKind::Bytes {
            min: 0,
            max: 1 << 40,
        },
        "0",
        "Bytes read and written per second; 0: no limit, else at least 3355444",
    ),
    SettingSpec::new(
        "burst",
        // Not shorter: a timer that fires late by a few milliseconds must not cost throughput.
        SettingKind::Duration {
            min_ms: 10,
            max_ms: 10_000,
        },
        "100ms",
        "How much of a pause can be made up for",
    ),
];

/// What the settings allow.
#[derive(Clone, Debug)]
struct Limits {
    ios: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Limits {
    fn read(cx: &AttachContext) -> Result<Self> {
        let settings = cx.settings();
        let number = |name| settings.number(name).unwrap_or(0);
        let burst = settings.duration("burst").unwrap_or_default();
        for (name, least) in [
            ("iops", QUEUE_DEPTH.div_ceil(WAIT_MAX.as_secs())),
            ("bytes_per_s", IO_BYTES_MAX.div_ceil(WAIT_MAX.as_secs())),
        ] {
            if (1..least).contains(&number(name)) {
                return Err(Error::config(format!(
                    "limit is so low that IO would wait for more than {WAIT_MAX:?} and be taken \
                     for hung; raise it or set 0 for none, setting={name} value={} min={least}",
                    number(name)
                )));
            }
        }
        Ok(Self {
            ios: Bucket::new(number("iops"), burst),
            bytes: Bucket::new(number("bytes_per_s"), burst),
        })
    }

    fn is_none(&self) -> bool {
        self.ios.is_none() && self.bytes.is_none()
    }

    /// Takes one IO of `bytes`, or says when to ask again.
    fn take(&mut self, now: Instant, bytes: u64) -> Result<(), Instant> {
        let buckets = || self.ios.iter().chain(&self.bytes);
        let ready_at_ns = buckets().map(Bucket::ready_at_ns).max().unwrap_or(0);
        if ready_at_ns > now.as_nanos() {
            return Err(Instant::from_nanos(ready_at_ns));
        }
        for (bucket, units) in [(&mut self.ios, 1), (&mut self.bytes, bytes)] {
            if let Some(bucket) = bucket {
                bucket.take(now.as_nanos(), units);
            }
        }
        Ok(())
    }
}

/// The filter.
#[derive(Debug)]
pub struct Throttle {
    cx: AttachContext,
    is_unlimited: bool,
    limits: Mutex<Limits>,
    /// Whoever holds the permit is first in line.
    line: Semaphore,
    delayed: AtomicU64,
    overdue: AtomicU64,
}

#[async_trait]
impl Filter for Throttle {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        // Other origins are the host's own work: delaying a backup or a destage on behalf of the
        // guest's limit could make the guest wait for both.
        if io.origin == Origin::Guest {
            match &io.op {
                Op::Read { extent } => self.admit(extent.len()).await,
                Op::Write { data, .. } => self.admit(data.len() as u64).await,
                Op::WriteZeroes { .. } | Op::Discard { .. } => self.admit(0).await,
                // The descriptor lets nothing else come here.
                other => return Err(Error::unsupported(other.kind())),
            }
        }
        next.submit(io).await
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }

    fn state(&self) -> FilterState {
        FilterState::default()
            .with_detail("delayed", self.delayed.load(Relaxed).to_string())
            .with_detail("overdue", self.overdue.load(Relaxed).to_string())
    }

    fn allocation(&self, below: AllocationMap) -> AllocationMap {
        below
    }
}

impl Throttle {
    /// Returns when an IO of `bytes` may pass. Cancel-safe.
    async fn admit(&self, bytes: u64) {
        if self.is_unlimited {
            return;
        }
        // No one waits and there is room: the usual case costs no timer.
        if let Some(_first) = self.line.try_acquire()
            && self.take(bytes).is_ok()
        {
            return;
        }
        self.delayed.fetch_add(1, Relaxed);
        let rt = self.cx.rt();
        let (turn, drain) = (pin!(self.pass_in_turn(bytes)), pin!(self.cx.draining()));
        let passed = rt
            .timeout_at(rt.now() + WAIT_MAX, select(turn, drain))
            .await;
        if passed.is_none() {
            self.overdue.fetch_add(1, Relaxed);
            self.cx.event(
                Notice::new(
                    Severity::Warning,
                    format!("an IO waited for {WAIT_MAX:?} and was let go over its limit"),
                )
                .with_next_step("raise the limit, or let the guest queue less"),
            );
        }
    }

    async fn pass_in_turn(&self, bytes: u64) {
        let _first = self.line.acquire().await;
        while let Err(at) = self.take(bytes) {
            self.cx.rt().sleep_until(at).await;
        }
    }

    fn take(&self, bytes: u64) -> Result<(), Instant> {
        // Poison is ignored: a bucket is never left half changed.
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.take(self.cx.rt().now(), bytes)
    }
}

/// Makes [`Throttle`] instances.
#[derive(Debug)]
pub struct ThrottleFactory;

#[async_trait]
impl FilterFactory for ThrottleFactory {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new("throttle", env!("CARGO_PKG_VERSION"), Class::Qos)
            .with_summary("Limits a guest's IOs and bytes per second.")
            .intercept(&[
                OpKind::Read,
                OpKind::Write,
                OpKind::WriteZeroes,
                OpKind::Discard,
            ])
            // Flush moves no data, and holding it back would only hold back who waits for it.
            .pass(&[OpKind::Flush, OpKind::Prefetch])
            .accept_fua()
            .accept_zeroes_flags()
            .with_settings(SETTINGS)
    }

    async fn prepare(&self, cx: &AttachContext) -> Result<()> {
        Limits::read(cx).map(drop)
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let limits = Limits::read(&cx)?;
        Ok(Arc::new(Throttle {
            is_unlimited: limits.is_none(),
            limits: Mutex::new(limits),
            line: Semaphore::new(1),
            delayed: AtomicU64::new(0),
            overdue: AtomicU64::new(0),
            cx,
        }))
    }
}
