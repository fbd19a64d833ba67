//! The token bucket. Pure: time comes in as nanoseconds, decisions go out.
//!
//! It is kept as one number, the moment at which the bucket would be full again (`full_at`).
//! Taking units moves that moment on by what they cost; waiting lets it come nearer.
//!
//! Invariant: in any span of time `t`, at most `rate * (t + burst)` units and one request more
//! pass. A request larger than the burst passes when nothing is owed and is paid off afterwards:
//! no size waits for ever.

use std::time::Duration;

const NANOS_PER_S: u128 = 1_000_000_000;

/// Limits units per second, and lets a pause be made up for by `burst` worth of them.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate_per_s: u64,
    burst_ns: u128,
    full_at_ns: u128,
}

impl Bucket {
    /// A full bucket of `rate_per_s` units a second. `None` for 0, which stands for no limit.
    pub fn new(rate_per_s: u64, burst: Duration) -> Option<Self> {
        (rate_per_s > 0).then_some(Self {
            rate_per_s,
            burst_ns: burst.as_nanos(),
            full_at_ns: 0,
        })
    }

    /// When the next request may pass, in the clock of `take`.
    pub fn ready_at_ns(&self) -> u64 {
        u64::try_from(self.full_at_ns.saturating_sub(self.burst_ns)).unwrap_or(u64::MAX)
    }

    /// Takes `units` at `now_ns`. The caller has waited for [`ready_at_ns`](Self::ready_at_ns).
    pub fn take(&mut self, now_ns: u64, units: u64) {
        debug_assert!(self.ready_at_ns() <= now_ns, "taken before it was ready");
        let cost = u128::from(units) * NANOS_PER_S;
        let cost = cost.div_ceil(u128::from(self.rate_per_s));
        self.full_at_ns = self.full_at_ns.max(now_ns.into()) + cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn rate_of_zero_is_no_limit() {
        assert!(Bucket::new(0, Duration::ZERO).is_none());
    }

    #[test]
    fn full_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(100, Duration::from_millis(100)).unwrap();
        let mut passed_at = Vec::new();
        let mut now = 5 * SECOND;
        for _ in 0..20 {
            now = now.max(bucket.ready_at_ns());
            bucket.take(now, 1);
            passed_at.push(now - 5 * SECOND);
        }
        assert!(
            passed_at[..11].iter().all(|at| *at == 0),
            "a burst of 10 and the one that owes"
        );
        assert_eq!(passed_at[11..14], [10_000_000, 20_000_000, 30_000_000]);
    }

    proptest! {
        /// Every request passes at last, in bounded time, and no span of time sees more than the
        /// rate, the burst and one request.
        #[test]
        fn no_span_exceeds_rate_and_burst(
            rate in 1u64..1_000_000,
            burst_ms in 0u64..2_000,
            requests in prop::collection::vec((0u64..SECOND, 1u64..100_000), 1..60),
        ) {
            let mut bucket = Bucket::new(rate, Duration::from_millis(burst_ms)).unwrap();
            let mut now = 0;
            let mut passed: Vec<(u64, u64)> = Vec::new();
            for (pause, units) in requests {
                let owed = bucket.ready_at_ns().saturating_sub(now);
                let largest = passed.iter().map(|(_, units)| *units).max().unwrap_or(0);
                let pay_off = u128::from(largest) * 1_000_000_000 / u128::from(rate) + 1;
                prop_assert!(u128::from(owed) <= pay_off, "waits for one request at most");
                now = (now + pause).max(bucket.ready_at_ns());
                bucket.take(now, units);
                passed.push((now, units));
            }
            for (from, (start, _)) in passed.iter().enumerate() {
                let mut sum = 0u128;
                for (at, units) in &passed[from..] {
                    let span_ms = u128::from(at - start) / 1_000_000 + 1 + u128::from(burst_ms);
                    let allowed = u128::from(rate) * span_ms / 1_000 + 1;
                    prop_assert!(sum <= allowed, "sum={} allowed={}", sum, allowed);
                    sum += u128::from(*units);
                }
            }
        }
    }
}
