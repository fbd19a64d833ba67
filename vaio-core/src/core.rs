//! What every part of one open disk shares: gate, fence, keeper, slots, events, clock. It knows
//! neither the chain nor any filter, so that a chain can hold it without a cycle.

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    Error, ErrorKind, OpKind, Rt,
    event::EventBus,
    fence::Fence,
    gate::Gate,
    keeper::Keeper,
    slot::SlotTable,
    state::Latest,
    stats::{Histogram, OpCounters},
    sync::{Notify, lock},
};

/// What a disk does with guest IO that takes too long (the last step of the stall ladder).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum OnStall {
    /// Fails it to the guest with [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut). It stays
    /// in flight and its range stays fenced until it ends.
    #[default]
    Fail,
    /// Only reports it; the guest goes on waiting.
    Report,
}

/// Limits of one disk. Every field has a default.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DiskSettings {
    /// IOs in flight on the whole disk: the sum of all port depths and filters' reserves.
    /// Default 4096, at least 64.
    pub slots_max: usize,
    /// An IO in flight for longer is reported, and an observer that hangs on it is bypassed.
    /// Default 3 s.
    pub stall_report_after: Duration,
    /// A guest IO in flight for longer meets `on_stall`. Default 20 s, below the 30 s after which
    /// many guests reset the disk.
    pub stall_fail_after: Duration,
    /// What happens then.
    pub on_stall: OnStall,
    /// Longest wait for one life-cycle call, and for a drain inside a verb. Default 10 s.
    pub lifecycle_timeout: Duration,
    /// Longest time that a quiesce holds before it thaws by itself. Default 60 s.
    pub hold_max: Duration,
}

impl Default for DiskSettings {
    fn default() -> Self {
        Self {
            slots_max: 4096,
            stall_report_after: Duration::from_secs(3),
            stall_fail_after: Duration::from_secs(20),
            on_stall: OnStall::Fail,
            lifecycle_timeout: Duration::from_secs(10),
            hold_max: Duration::from_mins(1),
        }
    }
}

impl DiskSettings {
    pub(crate) fn validate(&self) -> crate::Result<()> {
        if self.slots_max < 64 {
            return Err(Error::config(format!(
                "slots_max is at least 64, value={}",
                self.slots_max
            )));
        }
        if self.stall_fail_after <= self.stall_report_after {
            return Err(Error::config(
                "stall_fail_after is longer than stall_report_after",
            ));
        }
        Ok(())
    }
}

/// Length of a tick: the resolution of the stall ladder.
pub(crate) const TICK: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) name: Arc<str>,
    pub(crate) vm: Arc<str>,
    pub(crate) rt: Rt,
    pub(crate) settings: DiskSettings,
    pub(crate) gate: Gate,
    pub(crate) fence: Arc<Fence>,
    pub(crate) keeper: Keeper,
    pub(crate) slots: SlotTable,
    pub(crate) events: Arc<EventBus>,
    /// Layer that is being polled now, plus one; 0: none. For the watchdog of the thread.
    pub(crate) polling: AtomicU8,
    /// Ticks since the disk was opened; advances only while there is IO.
    pub(crate) tick: AtomicU32,
    next_id: AtomicU64,
    slots_taken: Mutex<usize>,
    /// Flushes that failed anywhere in the chain. What a flush failed to make durable, a later one
    /// does not cover.
    pub(crate) failed_flushes: AtomicU64,
    pub(crate) latency: [Histogram; OpKind::COUNT],
    counters: Mutex<Counters>,
    closed: AtomicBool,
    /// Someone else owns the disk.
    fenced_off: AtomicBool,
    /// Whether the watcher sleeps for want of IO; whoever starts an IO wakes it.
    pub(crate) is_watch_idle: AtomicBool,
    pub(crate) watch: Notify,
    /// Tells those who watch the state that it has changed.
    pub(crate) published: Latest<()>,
    /// Ports to be looked at when the watcher changed a fate.
    kicks: Mutex<Vec<Weak<dyn Kick>>>,
}

/// Something that polls IOs and can be told to look at all of them again.
pub(crate) trait Kick: std::fmt::Debug + Send + Sync {
    fn kick(&self);
}

#[derive(Debug, Default)]
struct Counters {
    live: Vec<Arc<OpCounters>>,
    gone: OpCounters,
}

impl Core {
    pub(crate) fn new(name: Arc<str>, vm: Arc<str>, rt: Rt, settings: DiskSettings) -> Arc<Self> {
        Arc::new(Self {
            events: EventBus::new(Arc::clone(&name), Arc::clone(&rt)),
            name,
            vm,
            rt,
            settings,
            gate: Gate::default(),
            fence: Arc::default(),
            keeper: Keeper::default(),
            slots: SlotTable::default(),
            polling: AtomicU8::new(0),
            tick: AtomicU32::new(0),
            next_id: AtomicU64::new(0),
            slots_taken: Mutex::new(0),
            failed_flushes: AtomicU64::new(0),
            latency: std::array::from_fn(|_| Histogram::default()),
            counters: Mutex::default(),
            closed: AtomicBool::new(false),
            fenced_off: AtomicBool::new(false),
            is_watch_idle: AtomicBool::new(false),
            watch: Notify::default(),
            published: Latest::new(()),
            kicks: Mutex::default(),
        })
    }

    /// A block of `count` IO numbers; the first is returned.
    pub(crate) fn take_ids(&self, count: u64) -> u64 {
        self.next_id.fetch_add(count, Relaxed) + 1
    }

    /// Reserves room for `count` IOs in flight.
    pub(crate) fn take_slots(&self, count: usize) -> crate::Result<()> {
        let mut taken = lock(&self.slots_taken);
        if *taken + count > self.settings.slots_max {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "the disk has no slots left; raise slots_max or open fewer ports, \
                     slots_max={} taken={} wanted={count}",
                    self.settings.slots_max, *taken
                ),
            )
            .with_disk(Arc::clone(&self.name)));
        }
        *taken += count;
        Ok(())
    }

    pub(crate) fn give_slots(&self, count: usize) {
        let mut taken = lock(&self.slots_taken);
        assert!(*taken >= count, "slots given back were taken");
        *taken -= count;
    }

    pub(crate) fn new_counters(&self) -> Arc<OpCounters> {
        let counters = Arc::<OpCounters>::default();
        lock(&self.counters).live.push(Arc::clone(&counters));
        counters
    }

    pub(crate) fn retire_counters(&self, counters: &Arc<OpCounters>) {
        let mut all = lock(&self.counters);
        all.live.retain(|live| !Arc::ptr_eq(live, counters));
        all.gone.absorb(counters);
    }

    pub(crate) fn op_stats(&self) -> Vec<crate::OpStats> {
        let mut ops: Vec<_> = OpKind::ALL
            .iter()
            .map(|kind| crate::OpStats {
                op: *kind,
                ios: 0,
                bytes: 0,
                errors: 0,
                latency: self.latency[*kind as usize].snapshot(),
            })
            .collect();
        let counters = lock(&self.counters);
        counters.gone.add_to(&mut ops);
        for live in &counters.live {
            live.add_to(&mut ops);
        }
        ops
    }

    /// Tells the watcher that there is IO.
    pub(crate) fn wake_watch(&self) {
        if self.is_watch_idle.load(Relaxed) && self.is_watch_idle.swap(false, Relaxed) {
            self.watch.notify_all();
        }
    }

    pub(crate) fn add_kick(&self, kick: Weak<dyn Kick>) {
        let mut kicks = lock(&self.kicks);
        kicks.retain(|kick| kick.strong_count() > 0);
        kicks.push(kick);
    }

    pub(crate) fn kick_all(&self) {
        let kicks: Vec<_> = lock(&self.kicks).iter().filter_map(Weak::upgrade).collect();
        for kick in kicks {
            kick.kick();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    pub(crate) fn set_closed(&self) {
        self.closed.store(true, Relaxed);
        self.keeper.wake();
        self.watch.notify_all();
        self.kick_all();
    }

    /// Closes, and lets nothing reach the device any more.
    pub(crate) fn fence_off(&self) {
        self.fenced_off.store(true, Relaxed);
        self.set_closed();
    }

    #[inline]
    pub(crate) fn is_fenced_off(&self) -> bool {
        self.fenced_off.load(Relaxed)
    }

    pub(crate) fn gone(&self) -> Error {
        Error::new(ErrorKind::Gone, "the disk is closed").with_disk(Arc::clone(&self.name))
    }
}
