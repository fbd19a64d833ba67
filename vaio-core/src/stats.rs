//! Statistics: counters and log-linear histograms that cost a few nanoseconds to feed.
//!
//! Counts are exact. Times are sampled (1 IO in [`SAMPLE_EVERY`]), because a clock read per layer
//! would cost more than the layer. A layer's *own* time is its total less what it spent waiting
//! for what it sent below itself through `Next`.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{OpKind, tally::Tally};

/// One IO in this many is timed, layer by layer.
pub const SAMPLE_EVERY: u64 = 64;

/// Linear buckets per power of two: a quantile is exact to 1 part in 8.
const SUB: usize = 8;
const SUB_BITS: u32 = SUB.ilog2();
const BUCKETS: usize = SUB * (64 - SUB_BITS as usize + 1);

/// A log-linear histogram of durations in nanoseconds, fed from any thread.
#[derive(Debug, Default)]
pub struct Histogram {
    /// 4 KiB, made for the first value: a disk has a dozen histograms, most of them never fed.
    buckets: OnceLock<Box<[AtomicU64; BUCKETS]>>,
    sum: AtomicU64,
    max: AtomicU64,
}

fn bucket_of(nanos: u64) -> usize {
    if nanos < SUB as u64 {
        return usize::try_from(nanos).unwrap_or(0);
    }
    let log = nanos.ilog2();
    let shift = log - SUB_BITS;
    let sub = usize::try_from(nanos >> shift).unwrap_or(0) - SUB;
    (shift as usize + 1) * SUB + sub
}

/// Largest value of a bucket.
fn bucket_top(bucket: usize) -> u64 {
    if bucket < SUB {
        return bucket as u64;
    }
    let shift = bucket / SUB - 1;
    let base = (SUB + bucket % SUB) as u128 + 1;
    u64::try_from((base << shift) - 1).unwrap_or(u64::MAX)
}

impl Histogram {
    /// Adds one value.
    pub fn record(&self, nanos: u64) {
        let buckets = self
            .buckets
            .get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
        buckets[bucket_of(nanos)].fetch_add(1, Relaxed);
        self.sum.fetch_add(nanos, Relaxed);
        self.max.fetch_max(nanos, Relaxed);
    }

    /// What it holds now.
    pub fn snapshot(&self) -> Quantiles {
        let buckets = self.buckets.get().map_or(&[][..], |all| &all[..]);
        let counts: Vec<u64> = buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let count: u64 = counts.iter().sum();
        let max_ns = self.max.load(Relaxed);
        let quantile = |per_mille: u64| {
            let rank = (count * per_mille).div_ceil(1000).max(1);
            let mut seen = 0;
            for (bucket, n) in counts.iter().enumerate() {
                seen += n;
                if seen >= rank {
                    return bucket_top(bucket).min(max_ns);
                }
            }
            0
        };
        Quantiles {
            count,
            mean_ns: self.sum.load(Relaxed).checked_div(count).unwrap_or(0),
            p50_ns: quantile(500),
            p90_ns: quantile(900),
            p99_ns: quantile(990),
            p999_ns: quantile(999),
            max_ns,
        }
    }
}

/// A histogram in a few numbers: nanoseconds, each quantile at most 1/8 too high.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Quantiles {
    /// Values seen.
    pub count: u64,
    /// Mean.
    pub mean_ns: u64,
    /// Median.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// Largest, exact.
    pub max_ns: u64,
}

/// Counters of one layer of a chain.
#[derive(Debug, Default)]
pub(crate) struct LayerCounters {
    pub(crate) ios: Tally,
    pub(crate) errors: AtomicU64,
    pub(crate) faults: AtomicU64,
    pub(crate) total: Histogram,
    pub(crate) own: Histogram,
}

impl LayerCounters {
    pub(crate) fn record_time(&self, total: Duration, below: Duration) {
        self.total.record(nanos(total));
        self.own.record(nanos(total.saturating_sub(below)));
    }

    pub(crate) fn snapshot(&self, name: Arc<str>) -> LayerStats {
        LayerStats {
            name,
            ios: OpKind::ALL.map(|kind| (kind, self.ios.of(kind))).to_vec(),
            errors: self.errors.load(Relaxed),
            faults: self.faults.load(Relaxed),
            total: self.total.snapshot(),
            own: self.own.snapshot(),
        }
    }
}

/// Counters at the top of a disk. One writer per port, so plain loads and stores do.
#[derive(Debug, Default)]
pub(crate) struct OpCounters {
    ios: [AtomicU64; OpKind::COUNT],
    bytes: [AtomicU64; OpKind::COUNT],
    errors: [AtomicU64; OpKind::COUNT],
}

impl OpCounters {
    /// Counts one IO. Only one thread at a time may call this on one value.
    pub(crate) fn count(&self, kind: OpKind, bytes: u64, failed: bool) {
        let add = |counter: &AtomicU64, n: u64| counter.store(counter.load(Relaxed) + n, Relaxed);
        add(&self.ios[kind as usize], 1);
        add(&self.bytes[kind as usize], bytes);
        if failed {
            add(&self.errors[kind as usize], 1);
        }
    }

    /// Adds everything to `sum`.
    pub(crate) fn add_to(&self, sum: &mut [OpStats]) {
        for (kind, op) in OpKind::ALL.into_iter().zip(sum) {
            op.ios += self.ios[kind as usize].load(Relaxed);
            op.bytes += self.bytes[kind as usize].load(Relaxed);
            op.errors += self.errors[kind as usize].load(Relaxed);
        }
    }

    /// Takes over what another counted; any thread.
    pub(crate) fn absorb(&self, other: &Self) {
        for kind in 0..OpKind::COUNT {
            self.ios[kind].fetch_add(other.ios[kind].load(Relaxed), Relaxed);
            self.bytes[kind].fetch_add(other.bytes[kind].load(Relaxed), Relaxed);
            self.errors[kind].fetch_add(other.errors[kind].load(Relaxed), Relaxed);
        }
    }
}

/// Statistics of one filter, since it was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LayerStats {
    /// Name of the filter; `device` for what is below all filters.
    pub name: Arc<str>,
    /// IOs that it got, by operation.
    pub ios: Vec<(OpKind, u64)>,
    /// IOs that it answered with an error.
    pub errors: u64,
    /// Breaches of contract.
    pub faults: u64,
    /// Time from the call to the answer (sampled).
    pub total: Quantiles,
    /// The same less the time below it (sampled).
    pub own: Quantiles,
}

/// Statistics of one operation at the top of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct OpStats {
    /// The operation.
    pub op: OpKind,
    /// IOs that ended.
    pub ios: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// IOs that failed.
    pub errors: u64,
    /// Time from submission to answer (sampled).
    pub latency: Quantiles,
}

/// Statistics of a disk, since it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DiskStats {
    /// By operation.
    pub ops: Vec<OpStats>,
    /// The filters, top to bottom, and last the device.
    pub layers: Vec<LayerStats>,
    /// How long the gate was closed, each time.
    pub gate_closed: Quantiles,
    /// IOs whose asker let go before they ended.
    pub orphans: u64,
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_of_known_values() {
        let histogram = Histogram::default();
        for value in 1..=1000 {
            histogram.record(value * 1000);
        }
        let q = histogram.snapshot();
        assert_eq!((q.count, q.max_ns, q.mean_ns), (1000, 1_000_000, 500_500));
        assert!((500_000..=562_500).contains(&q.p50_ns), "{q:?}");
        assert!((990_000..=1_000_000).contains(&q.p99_ns), "{q:?}");
    }

    proptest! {
        #[test]
        fn bucket_holds_its_values(value in any::<u64>()) {
            let bucket = bucket_of(value);
            prop_assert!(bucket < BUCKETS);
            prop_assert!(bucket_top(bucket) >= value);
            prop_assert!(bucket == 0 || bucket_top(bucket - 1) < value);
        }
    }
}
