//! The heartbeat of the IO thread, listened to from the control thread.
//!
//! A filter that spins or blocks stops every disk of the process, and no code on that thread can
//! tell. So the control thread pings it; where no answer comes for [`LATE`], the event names the
//! filter whose code runs there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use vaio_core::{Disk, Rt};

/// Time between pings.
pub(crate) const PING_EVERY: Duration = Duration::from_millis(250);
/// An answer that takes longer is reported.
const LATE: Duration = Duration::from_secs(1);
/// And again each time that much has passed.
const AGAIN: Duration = Duration::from_secs(30);

/// What is known of the IO thread.
#[derive(Debug, Default)]
pub(crate) struct Heartbeat {
    /// Whether a ping is on its way.
    is_out: AtomicBool,
    /// When it was sent, in nanoseconds of the runtime's clock.
    sent_ns: AtomicU64,
    /// For how long the thread has been silent at the last look, in nanoseconds; 0: it answers.
    blocked_ns: AtomicU64,
}

impl Heartbeat {
    /// For how long the IO thread has not come back; `None` where it answers.
    pub(crate) fn blocked_for(&self) -> Option<Duration> {
        match self.blocked_ns.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }
}

/// The control thread's side.
#[derive(Debug)]
pub(crate) struct Watchdog {
    rt: Rt,
    disks: Vec<Disk>,
    heartbeat: Arc<Heartbeat>,
    /// Silence at which the next report is due.
    report_at: Duration,
}

impl Watchdog {
    pub(crate) fn new(rt: Rt, disks: Vec<Disk>, heartbeat: Arc<Heartbeat>) -> Self {
        Self {
            rt,
            disks,
            heartbeat,
            report_at: LATE,
        }
    }

    /// One look; call it every [`PING_EVERY`].
    pub(crate) fn look(&mut self) {
        let heartbeat = &self.heartbeat;
        let now = self.rt.now();
        if !heartbeat.is_out.swap(true, Ordering::AcqRel) {
            heartbeat.sent_ns.store(now.as_nanos(), Ordering::Relaxed);
            if heartbeat.blocked_ns.swap(0, Ordering::Relaxed) > 0 {
                tracing::warn!("the IO thread is back");
            }
            self.report_at = LATE;
            let pong = Arc::clone(heartbeat);
            self.rt.spawn(
                "vaio-heartbeat",
                Box::pin(async move { pong.is_out.store(false, Ordering::Release) }),
            );
            return;
        }
        let sent = vaio_core::Instant::from_nanos(heartbeat.sent_ns.load(Ordering::Relaxed));
        let silence = now.since(sent);
        if silence < LATE {
            return;
        }
        let nanos = u64::try_from(silence.as_nanos()).unwrap_or(u64::MAX);
        heartbeat.blocked_ns.store(nanos, Ordering::Relaxed);
        if silence >= self.report_at {
            self.report_at = silence + AGAIN;
            self.report(silence);
        }
    }

    /// Tells it on the disk whose filter runs; where none does, on every disk.
    fn report(&self, silence: Duration) {
        let mut at_fault: Vec<&Disk> = self
            .disks
            .iter()
            .filter(|disk| disk.polling().is_some())
            .collect();
        if at_fault.is_empty() {
            at_fault = self.disks.iter().collect();
        }
        for disk in at_fault {
            disk.report_blocked(silence);
        }
    }
}
