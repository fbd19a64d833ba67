//! [`HostRuntime`]: the production [`Runtime`], on a current-thread tokio runtime.
//!
//! One disk has one IO thread: socket, chain and ring run to completion on it. Whoever embeds a
//! disk needs only this module, neither NBD nor `io_uring`:
//!
//! ```
//! use std::sync::Arc;
//! use vaio_core::{BlockDevice, BlockDeviceExt, RamDisk, RuntimeExt};
//! use vaio_host::runtime::HostRuntime;
//!
//! HostRuntime::run(|rt| async move {
//!     let disk: Arc<dyn BlockDevice> = Arc::new(RamDisk::new(1 << 20)); // Disk::builder(device, rt)
//!     disk.write(0, vec![7; 512]).await?;
//!     assert_eq!(rt.offload_with(|| 6 * 7).await, Some(42));
//!     Ok::<_, vaio_core::Error>(())
//! })??;
//! # Ok::<_, vaio_core::Error>(())
//! ```
//!
//! A program that has a tokio runtime already calls [`HostRuntime::current`] on it, or
//! [`HostRuntime::new`] with its handle from elsewhere.
//!
//! Invariants: a panic in a task or in offloaded work is logged and ends there; accepted work runs
//! whether or not anyone waits for it.

use std::{
    fmt,
    future::Future,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    time::{self, Duration, SystemTime, UNIX_EPOCH},
};

use futures::FutureExt;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::runtime::{Builder, Handle};
use vaio_core::{BoxFuture, Error, Instant, Result, Rt, Runtime, WallTime};

/// Most threads that [`Runtime::offload`] uses in a runtime made by [`HostRuntime::run`]. What is
/// beyond waits in a queue.
pub const OFFLOAD_THREADS_MAX: usize = 8;
/// How long an idle offload thread is kept.
const OFFLOAD_KEEP_ALIVE: Duration = Duration::from_secs(10);

/// [`Runtime`] over a tokio runtime.
///
/// # Contract
/// Usable from any thread; tasks run where the tokio runtime is driven. The runtime has to be
/// driven (`block_on`) for timers and tasks to move. The disks of one process may share it.
pub struct HostRuntime {
    handle: Handle,
    start: time::Instant,
}

impl HostRuntime {
    /// A runtime door over `handle`, with its own clock start.
    ///
    /// The tokio runtime must have its time driver on (`enable_time`), and its IO driver for the
    /// devices of this crate.
    #[expect(
        clippy::disallowed_methods,
        clippy::new_ret_no_self,
        reason = "this is the door that others come through, and it is used as one"
    )]
    pub fn new(handle: Handle) -> Rt {
        Arc::new(Self {
            handle,
            start: time::Instant::now(),
        })
    }

    /// A runtime door over the tokio runtime that the caller runs on.
    ///
    /// # Errors
    /// [`Config`](vaio_core::ErrorKind::Config) outside a tokio runtime.
    pub fn current() -> Result<Rt> {
        let handle = Handle::try_current().map_err(|cause| {
            Error::config("no tokio runtime here: call this inside block_on").with_source(cause)
        })?;
        Ok(Self::new(handle))
    }

    /// Builds a current-thread tokio runtime, runs `main` on this thread to its end, and ends the
    /// tasks that are left.
    ///
    /// Offloaded work that has started is waited for; what is still in its queue is not run.
    ///
    /// # Errors
    /// [`Io`](vaio_core::ErrorKind::Io) where the operating system refuses what a runtime needs (descriptors).
    pub fn run<F, Fut>(main: F) -> Result<Fut::Output>
    where
        F: FnOnce(Rt) -> Fut,
        Fut: Future,
    {
        let tokio = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(OFFLOAD_THREADS_MAX)
            .thread_keep_alive(OFFLOAD_KEEP_ALIVE)
            .thread_name("vaio-offload")
            .build()
            .map_err(|cause| {
                Error::io(
                    "cannot start a runtime: check the limit of open files",
                    cause,
                )
            })?;
        let rt = Self::new(tokio.handle().clone());
        Ok(tokio.block_on(main(rt)))
    }
}

impl Runtime for HostRuntime {
    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the door that others come through"
    )]
    fn wall(&self) -> WallTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        WallTime(since.map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        }))
    }

    /// Resolution: 1 ms, rounded up.
    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()> {
        let Some(at) = self.start.checked_add(Duration::from_nanos(at.as_nanos())) else {
            return Box::pin(std::future::pending());
        };
        // The timer belongs to the handle's runtime, whoever asks.
        let _entered = self.handle.enter();
        Box::pin(tokio::time::sleep_until(at.into()))
    }

    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) {
        drop(self.handle.spawn(async move {
            if let Err(cause) = AssertUnwindSafe(task).catch_unwind().await {
                tracing::error!(
                    task = name,
                    panic = text(&*cause),
                    "task panicked and ended"
                );
            }
        }));
    }

    fn offload(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        // Queued here and now: tokio runs a blocking task even if its handle is dropped.
        let done = self.handle.spawn_blocking(move || {
            if let Err(cause) = panic::catch_unwind(AssertUnwindSafe(work)) {
                tracing::error!(panic = text(&*cause), "offloaded work panicked");
            }
        });
        Box::pin(done.map(drop))
    }

    fn entropy(&self) -> u64 {
        let mut bytes = [0; 8];
        let mut filled = 0;
        while filled < bytes.len() {
            match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
                Ok(more) => filled += more,
                Err(rustix::io::Errno::INTR) => {}
                // Only where a sandbox forbids the call: an identity must not repeat, so say it
                // loudly instead of returning a constant.
                Err(cause) => {
                    tracing::error!(%cause, "no randomness from the operating system");
                    return fallback_entropy();
                }
            }
        }
        u64::from_le_bytes(bytes)
    }
}

/// Keys of the standard library's hash maps: random per process, distinct per call.
fn fallback_entropy() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

impl fmt::Debug for HostRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostRuntime").finish_non_exhaustive()
    }
}

/// The text of a panic, as far as it has one.
pub(crate) fn text(cause: &(dyn std::any::Any + Send)) -> &str {
    if let Some(text) = cause.downcast_ref::<&str>() {
        text
    } else if let Some(text) = cause.downcast_ref::<String>() {
        text
    } else {
        "(no text)"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use vaio_core::{ErrorKind, RuntimeExt};

    #[test]
    fn sleep_until_ends_at_or_after_the_moment() {
        HostRuntime::run(|rt| async move {
            let at = rt.now() + Duration::from_millis(3);
            rt.sleep_until(at).await;
            assert!(rt.now() >= at);
        })
        .unwrap();
    }

    #[test]
    fn spawn_from_another_thread_runs_on_the_runtimes_thread() {
        HostRuntime::run(|rt| async move {
            let home = std::thread::current().id();
            let (send, receive) = futures::channel::oneshot::channel();
            let handle = Arc::clone(&rt);
            rt.offload_with(move || {
                handle.spawn(
                    "probe",
                    Box::pin(async move {
                        let _ = send.send(std::thread::current().id());
                    }),
                );
                assert_ne!(std::thread::current().id(), home);
            })
            .await
            .unwrap();
            assert_eq!(receive.await.unwrap(), home);
        })
        .unwrap();
    }

    #[test]
    fn panics_in_task_and_work_leave_the_runtime_alive() {
        HostRuntime::run(|rt| async move {
            rt.spawn("bad", Box::pin(async { panic!("on purpose") }));
            assert_eq!(rt.offload_with(|| panic!("on purpose")).await, None::<()>);
            rt.sleep(Duration::from_millis(1)).await;
        })
        .unwrap();
    }

    #[test]
    fn offloaded_work_runs_though_its_future_is_dropped() {
        static RAN: AtomicBool = AtomicBool::new(false);
        HostRuntime::run(|rt| async move {
            drop(rt.offload(Box::new(|| RAN.store(true, Ordering::SeqCst))));
            for _ in 0..1000 {
                if RAN.load(Ordering::SeqCst) {
                    return;
                }
                rt.sleep(Duration::from_millis(1)).await;
            }
            panic!("work did not run");
        })
        .unwrap();
    }

    #[test]
    fn entropy_differs_and_current_outside_is_refused() {
        assert_eq!(
            HostRuntime::current().unwrap_err().kind(),
            ErrorKind::Config
        );
        HostRuntime::run(|rt| async move { assert_ne!(rt.entropy(), rt.entropy()) }).unwrap();
    }
}
