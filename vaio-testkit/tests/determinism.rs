//! A run is its seed: equal seeds give equal runs, event by event; and a filter that goes beside its
//! runtime (real time, hash order, threads) is told so, with the first thing that differs.

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
};

use async_trait::async_trait;
use vaio_core::{
    AllocationMap, AttachContext, BypassSafety, Class, Descriptor, DeviceInfo, Extent, Filter,
    FilterFactory, Io, Lifecycle, Next, Op, OpKind, Outcome, Promise, Reply, Result,
};
use vaio_testkit::{
    Subject,
    conformance::{Budget, Said, run_case},
    zoo::Twin,
};

/// What a filter must not do, each beside a write that it passes on.
#[derive(Clone, Copy, Debug)]
enum Habit {
    /// Reads something first, if the time of day is odd.
    RealTime,
    /// Reads again what was written, in the order of a hash table.
    HashOrder,
    /// Waits for a thread of its own.
    Thread,
}

#[derive(Debug)]
struct IllBehaved {
    habit: Habit,
    written: Mutex<HashMap<u64, u64>>,
}

impl IllBehaved {
    #[expect(clippy::disallowed_methods, reason = "that is what is shown")]
    async fn misbehave(&self, at: u64, next: Next<'_>) -> Result<()> {
        match self.habit {
            Habit::RealTime => {
                let since = std::time::SystemTime::UNIX_EPOCH
                    .elapsed()
                    .unwrap_or_default();
                if since.as_nanos() / 100 % 2 == 1 {
                    next.read(Extent::new(0, 512)).await?;
                }
            }
            Habit::HashOrder => {
                let order: Vec<u64> = {
                    let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
                    *written.entry(at).or_default() += 1;
                    written.keys().copied().collect()
                };
                for at in order {
                    next.read(Extent::new(at, 512)).await?;
                }
            }
            Habit::Thread => {
                let mut is_asked = false;
                poll_fn(|cx| {
                    if std::mem::replace(&mut is_asked, true) {
                        return Poll::Ready(());
                    }
                    let waker = cx.waker().clone();
                    let woken = std::thread::spawn(move || waker.wake());
                    woken.join().expect("it only wakes");
                    Poll::Pending
                })
                .await;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Filter for IllBehaved {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        if let Op::Write { offset, .. } = io.op {
            self.misbehave(offset, next).await?;
        }
        next.submit(io).await
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }

    fn allocation(&self, below: AllocationMap) -> AllocationMap {
        below
    }
}

#[async_trait]
impl FilterFactory for Habit {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new("ill-behaved", "1.0.0", Class::Inspect)
            .with_summary("Goes beside its runtime.")
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
        Ok(Arc::new(IllBehaved {
            habit: *self,
            written: Mutex::default(),
        }))
    }
}

const SAME: &str = "determinism::same_run";

fn said(subject: &Subject, case: &str, factor: f64) -> Result<u64, String> {
    let budget = Budget {
        factor,
        ..Budget::default()
    };
    match run_case(subject, case, &budget) {
        Said::Passed(work) => Ok(work.runs),
        Said::Failed(found) => Err(found.broken.to_string()),
        Said::Skipped(why) => Err(why),
    }
}

#[test]
fn thousand_seeds_run_twice_are_equal_event_by_event() {
    let subject = Twin::WriteBack.subject(Promise::AtFlush, None);
    let runs = said(&subject, SAME, 25.0);
    assert_eq!(runs, Ok(1000));
}

#[test]
fn filter_that_goes_beside_its_runtime_is_reported_with_the_first_difference() {
    for habit in [Habit::RealTime, Habit::HashOrder] {
        let report = said(&Subject::new(habit), SAME, 1.0).expect_err("it is found");
        assert!(report.contains("two runs of seed"), "{habit:?}: {report}");
        assert!(report.contains("first difference: "), "{habit:?}: {report}");
        assert!(
            !report.contains("in what is not listed"),
            "{habit:?}: {report}"
        );
    }
}

#[test]
fn filter_that_waits_for_a_thread_is_named() {
    let report =
        said(&Subject::new(Habit::Thread), "basic::neighbours", 1.0).expect_err("it is found");
    assert!(report.contains("thread"), "{report}");
}
