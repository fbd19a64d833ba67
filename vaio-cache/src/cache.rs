//! [`Cache`]: what one instance is, shared by its IO, its destager and its source of dirty data.
//!
//! The log's state is pure and behind one lock that is never held across an await. Each of the
//! other files does one thing with it: `write`, `read`, `flush`, `destage`, `bypass`, `hold`,
//! `dirty`.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
};

use vaio_core::{AttachContext, Notice, Severity, sync, sync::Notify};

use crate::{
    bypass::Below, destage::Demand, device::CacheDevice, hold::Hold, log::Log, pace::Guest,
    passage::Passage, report::Counters, settings::CacheSettings, store::Store,
};

#[derive(Debug)]
pub(crate) struct Cache {
    pub(crate) cx: AttachContext,
    pub(crate) settings: CacheSettings,
    pub(crate) device: CacheDevice,
    pub(crate) store: Store,
    log: Mutex<Log>,
    /// The log has moved on: something was published, destaged or let go.
    pub(crate) progress: Notify,
    /// Flushes and superblocks come one after another; it is the last superblock's generation.
    pub(crate) flushing: sync::Mutex<u64>,
    /// Flushes of the cache device that failed one after another.
    pub(crate) flush_failures: AtomicU32,
    pub(crate) identity: u64,
    pub(crate) passage: Passage,
    /// Writes go straight to the backing.
    pub(crate) is_bypassed: AtomicBool,
    pub(crate) below: Below,
    /// The dirty policy: a write is destaged before its answer.
    pub(crate) is_write_through: AtomicBool,
    demand: Mutex<Demand>,
    guest: Mutex<Guest>,
    /// A batch is on its way to the backing.
    pub(crate) is_destaging: AtomicBool,
    /// The log has no room: said once, until there is some again.
    pub(crate) is_full: AtomicBool,
    /// Something may be there to destage, or is asked for.
    pub(crate) wanted: Notify,
    /// A batch ended.
    pub(crate) ended: Notify,
    pub(crate) hold: Hold,
    pub(crate) counters: Counters,
}

impl Cache {
    pub(crate) fn new(
        cx: AttachContext,
        settings: CacheSettings,
        device: CacheDevice,
        log: Log,
        (identity, generation): (u64, u64),
    ) -> Self {
        Self {
            cx,
            settings,
            store: Store::new(*device.geometry()),
            device,
            log: Mutex::new(log),
            progress: Notify::default(),
            flushing: sync::Mutex::new(generation),
            flush_failures: AtomicU32::new(0),
            identity,
            passage: Passage::default(),
            is_bypassed: AtomicBool::new(false),
            below: Below::default(),
            is_write_through: AtomicBool::new(false),
            demand: Mutex::default(),
            guest: Mutex::default(),
            is_destaging: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            wanted: Notify::default(),
            ended: Notify::default(),
            hold: Hold::default(),
            counters: Counters::default(),
        }
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn demand(&self) -> MutexGuard<'_, Demand> {
        self.demand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the guest's writes take.
    pub(crate) fn guest(&self) -> MutexGuard<'_, Guest> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_bypassed(&self) -> bool {
        self.is_bypassed.load(Relaxed)
    }

    /// Tells whoever waits that the log has moved on.
    pub(crate) fn moved_on(&self) {
        self.progress.notify_all();
        self.wanted.notify_all();
    }

    pub(crate) fn event(&self, severity: Severity, text: impl Into<String>, next_step: &str) {
        let notice = Notice::new(severity, text);
        self.cx.event(notice.with_next_step(next_step));
    }
}
