//! The passage that every write goes through, so that the way writes take can be changed while
//! none is on it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vaio_core::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct Passage {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    inside: u32,
}

/// A write on its way.
#[derive(Debug)]
pub(crate) struct Pass<'a>(&'a Passage);

/// No write is on its way, and none begins.
#[derive(Debug)]
pub(crate) struct Closed<'a>(&'a Passage);

impl Passage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while it is closed. Cancel-safe.
    pub(crate) async fn enter(&self) -> Pass<'_> {
        loop {
            let changed = self.changed.listen();
            {
                let mut state = self.state();
                if !state.is_closed {
                    state.inside += 1;
                    return Pass(self);
                }
            }
            changed.await;
        }
    }

    /// Closes it, and waits until every write inside has ended. Cancel-safe.
    pub(crate) async fn close(&self) -> Closed<'_> {
        let closed = loop {
            let changed = self.changed.listen();
            {
                let mut state = self.state();
                if !state.is_closed {
                    state.is_closed = true;
                    break Closed(self);
                }
            }
            changed.await;
        };
        loop {
            let changed = self.changed.listen();
            if self.state().inside == 0 {
                return closed;
            }
            changed.await;
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let is_awaited = {
            let mut state = self.0.state();
            assert!(state.inside > 0, "a write that leaves has entered");
            state.inside -= 1;
            state.is_closed && state.inside == 0
        };
        if is_awaited {
            self.0.changed.notify_all();
        }
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.state().is_closed = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn closing_waits_for_what_is_inside_and_keeps_others_out() {
        let passage = Passage::default();
        let pass = passage.enter().now_or_never().expect("open");
        let mut closing = Box::pin(passage.close());
        assert!(closing.as_mut().now_or_never().is_none());
        assert!(passage.enter().now_or_never().is_none());
        drop(pass);
        let closed = closing.now_or_never().expect("empty");
        assert!(passage.enter().now_or_never().is_none());
        drop(closed);
        assert!(passage.enter().now_or_never().is_some());
    }
}
