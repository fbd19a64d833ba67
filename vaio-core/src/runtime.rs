//! [`Runtime`]: the one door to time, tasks and chance, and [`Rt`], the handle that everything
//! holds. Whoever implements the trait owns them: a host for real, a simulator to replay them.

use std::{fmt, future::Future, num::NonZeroU64, ops, pin::Pin, sync::Arc, time::Duration};

use futures::channel::oneshot;

/// A boxed future that can move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A moment on a monotonic clock, in nanoseconds since that clock's start. Never compared across
/// hosts or runs.
// Kept as nanoseconds plus one, so that an optional instant is as small as an instant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(NonZeroU64);

impl Instant {
    /// The moment `nanos` after the clock's start; saturates just below `u64::MAX`.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(nanos))
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0.get() - 1
    }

    /// Time from `earlier` to this moment; zero where `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }
}

impl Default for Instant {
    fn default() -> Self {
        Self::from_nanos(0)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Instant({}ns)", self.as_nanos())
    }
}

impl ops::Add<Duration> for Instant {
    type Output = Self;

    /// Saturates at the end of the clock (584 years).
    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

/// The time of day, in nanoseconds since 1970-01-01 UTC: for people, never for order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct WallTime(pub u64);

/// Time, tasks and chance. A host implements it once; nothing in vaio reaches around it.
pub trait Runtime: fmt::Debug + Send + Sync + 'static {
    /// Monotonic time. Costs tens of nanoseconds at most.
    fn now(&self) -> Instant;

    /// Time of day.
    fn wall(&self) -> WallTime;

    /// Resolves at or after `at`. Dropping the future cancels the timer.
    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()>;

    /// Runs `task` to its end, concurrently with the caller; `name` is for traces. The task is
    /// polled on the thread that polls the disk's IO.
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>);

    /// Runs `work` where it may block or compute for long. The work runs even if the future is
    /// dropped.
    fn offload(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()>;

    /// A random number, from the operating system or from a seed. Good enough for identities and
    /// nonces; not a key generator.
    fn entropy(&self) -> u64;

    /// A place where a simulator may do something unlikely; `false` in production.
    fn buggify(&self, point: &'static str) -> bool {
        let _ = point;
        false
    }

    /// Tells a simulator that a place was reached; nothing in production.
    fn probe(&self, point: &'static str) {
        let _ = point;
    }
}

/// Shared handle to the [`Runtime`].
pub type Rt = Arc<dyn Runtime>;

/// Sugar over [`Runtime`]; implemented for every runtime.
pub trait RuntimeExt: Runtime {
    /// Resolves after `duration`. Cancel-safe.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.sleep_until(self.now() + duration)
    }

    /// Waits for `future`, but not past `deadline`: `None` if the deadline came first. The future
    /// is dropped then, so it must be one whose drop loses nothing.
    fn timeout_at<F>(
        &self,
        deadline: Instant,
        future: F,
    ) -> impl Future<Output = Option<F::Output>> + Send
    where
        F: Future + Send,
    {
        let sleep = self.sleep_until(deadline);
        async move {
            let mut future = std::pin::pin!(future);
            let mut sleep = sleep;
            std::future::poll_fn(|cx| {
                if let std::task::Poll::Ready(output) = future.as_mut().poll(cx) {
                    return std::task::Poll::Ready(Some(output));
                }
                sleep.as_mut().poll(cx).map(|()| None)
            })
            .await
        }
    }

    /// Runs `work` where it may block or compute for long, and returns what it returns; `None` if
    /// it panicked.
    fn offload_with<T, F>(&self, work: F) -> impl Future<Output = Option<T>> + Send
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (send, receive) = oneshot::channel();
        let done = self.offload(Box::new(move || {
            let _ = send.send(work());
        }));
        async move {
            done.await;
            receive.await.ok()
        }
    }
}

impl<T: Runtime + ?Sized> RuntimeExt for T {}
