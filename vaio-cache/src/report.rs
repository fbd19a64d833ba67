//! What the cache says of itself beside its dirty bytes: for `vaio status` and for metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use vaio_core::FilterState;

use crate::{
    cache::Cache,
    settings::{Durability, Mode},
};

/// What is counted while the instance lives.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Guest writes whose answer waited for the backing: a full log, or a way past it.
    pub(crate) waited: AtomicU64,
    /// Bytes brought to the backing.
    pub(crate) destaged_bytes: AtomicU64,
    /// Holds that were given up before they were released.
    pub(crate) holds_lost: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Relaxed);
    }
}

impl Cache {
    /// Adds everything but the dirty bytes.
    pub(crate) fn report(&self, state: FilterState) -> FilterState {
        let now = self.cx.rt().now();
        let geometry = self.device.geometry();
        let segment_bytes = geometry.bytes(geometry.segment.into());
        let (oldest, (used, all), is_held, is_failed) = {
            let log = self.log();
            (
                log.oldest_from(0),
                log.segments_used(),
                log.held().is_some(),
                log.is_failed(),
            )
        };
        let oldest_ms = oldest.map_or(0, |since| now.since(since).as_millis());
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let counters = &self.counters;
        let state = state
            .with_detail("mode", self.way())
            .with_detail("device", if is_failed { "failed" } else { "works" })
            .with_detail("backing", if is_held { "held at a point" } else { "open" })
            .with_value(
                "oldest_dirty_ms",
                u64::try_from(oldest_ms).unwrap_or(u64::MAX),
            )
            .with_value("log_used_bytes", u64::from(used) * segment_bytes)
            .with_value("log_bytes", u64::from(all) * segment_bytes)
            .with_value("destaged_bytes_total", count(&counters.destaged_bytes))
            .with_value("writes_waited_total", count(&counters.waited))
            .with_value("holds_lost_total", count(&counters.holds_lost))
            .with_value("clean_bytes", self.store.bytes())
            .with_value("read_hits_total", count(&self.store.hits))
            .with_value("read_misses_total", count(&self.store.misses));
        if is_failed {
            return state.with_problem("the cache device failed; writes go through");
        }
        if self.is_full.load(Relaxed) {
            return state.with_problem("the log is full; writes go at the pace of the backing");
        }
        state
    }

    /// What becomes of a write now, in words.
    fn way(&self) -> String {
        let mode = match self.settings.mode {
            Mode::WriteBack if self.is_bypassed() => "write_back, degraded: writes go through",
            Mode::WriteBack if self.is_write_through.load(Relaxed) => {
                "write_back, by policy written through"
            }
            Mode::WriteBack => "write_back",
            Mode::WriteThrough => "write_through",
            Mode::WriteAround => "write_around",
            Mode::ReadOnly => "read_only",
        };
        let order = if self.settings.is_ordered {
            "ordered"
        } else {
            "relaxed"
        };
        let durability = match self.settings.durability {
            Durability::AtFlush => "at_flush",
            Durability::AtAck => "at_ack",
        };
        format!("{mode}, {order}, {durability}")
    }
}
