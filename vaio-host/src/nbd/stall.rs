//! [`Stall`]: notices a client that stops in the middle of a message, or does not take its replies.
//!
//! Being idle between requests is no stall. One timer that is looked at only in the middle of
//! something, and that is not moved on by every byte: when it fires, nothing may have moved since
//! it was set. So a stall is noticed after one to two time-outs.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

/// The two directions of one connection.
#[derive(Debug)]
pub(super) struct Stall {
    timeout: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    moved: Moved,
    /// `moved` when the timer was set.
    before: Moved,
}

/// How often something moved, or nothing was to be waited for.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    received: u64,
    sent: u64,
}

impl Stall {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            timer: None,
            moved: Moved::default(),
            before: Moved::default(),
        }
    }

    /// The client sent something.
    pub(super) fn received(&mut self) {
        self.moved.received += 1;
    }

    /// The client took something.
    pub(super) fn sent(&mut self) {
        self.moved.sent += 1;
    }

    /// Looks at the timer, if the rest of a message is waited for, or the client taking replies.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        is_receiving: bool,
        is_sending: bool,
    ) -> Poll<io::Error> {
        self.moved.received += u64::from(!is_receiving);
        self.moved.sent += u64::from(!is_sending);
        if !is_receiving && !is_sending {
            return Poll::Pending;
        }
        loop {
            let timer = self.timer.get_or_insert_with(|| {
                self.before = self.moved;
                Box::pin(sleep(self.timeout))
            });
            ready!(timer.as_mut().poll(cx));
            if is_receiving && self.before.received == self.moved.received {
                return Poll::Ready(late("nbd client stopped in the middle of a message"));
            }
            if is_sending && self.before.sent == self.moved.sent {
                return Poll::Ready(late("nbd client does not take its replies"));
            }
            self.before = self.moved;
            timer.as_mut().reset(now() + self.timeout);
        }
    }
}

fn late(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, text)
}

#[expect(clippy::disallowed_methods, reason = "sockets live in real time")]
fn sleep(timeout: Duration) -> Sleep {
    tokio::time::sleep(timeout)
}

fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    const TIMEOUT: Duration = Duration::from_mins(1);

    /// Polls every second, as `state` says, until it stalls; the second in which it does.
    async fn stalls_at(
        seconds: u64,
        state: impl Fn(u64, &mut Stall) -> (bool, bool),
    ) -> Option<u64> {
        let mut stall = Stall::new(TIMEOUT);
        for second in 0..seconds {
            let (receiving, sending) = state(second, &mut stall);
            let poll = poll_fn(|cx| Poll::Ready(stall.poll(cx, receiving, sending))).await;
            if poll.is_ready() {
                return Some(second);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn idle_for_hours_is_no_stall() {
        assert_eq!(stalls_at(10_000, |_, _| (false, false)).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_byte_in_each_time_out_is_no_stall() {
        let drips = |second, stall: &mut Stall| {
            if second % 59 == 0 {
                stall.received();
            }
            (true, false)
        };
        assert_eq!(stalls_at(10_000, drips).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_message_and_replies_not_taken_stall_after_one_to_two_time_outs() {
        assert_eq!(stalls_at(200, |_, _| (true, false)).await, Some(60));
        assert_eq!(stalls_at(200, |_, _| (false, true)).await, Some(60));
        let late = |second, _: &mut Stall| (second >= 30, second < 29);
        let stalled = stalls_at(300, late).await.unwrap();
        assert!((90..=150).contains(&stalled), "{stalled}");
        // The other direction moves all the time.
        let one_way = |_, stall: &mut Stall| {
            stall.received();
            (true, true)
        };
        assert_eq!(stalls_at(200, one_way).await, Some(60));
    }
}
