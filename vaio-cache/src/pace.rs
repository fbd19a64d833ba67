//! How fast destaging and the guest's writes go: pure functions of what waits, what is asked for
//! and what the guest feels.
//!
//! * T1: what someone waits for is not slowed down.
//! * T2: destaging makes way for a guest that it slows down, but is never slower than the minimum:
//!   it does not wait for an idle disk.
//! * T3: a log that fills up slows the guest's writes down before it is full, so that it meets the
//!   backing's speed gradually. Full, a write goes when the backing has taken what makes room.

use std::time::Duration;

use crate::settings::CacheSettings;

/// What the destager looks at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(crate) dirty_bytes: u64,
    pub(crate) oldest_age: Duration,
    /// Someone waits for it: a full log, a flush, a detach.
    pub(crate) is_awaited: bool,
    /// What the last batch moved.
    pub(crate) last_bytes: u64,
    /// How long ago the last batch began.
    pub(crate) since_last: Duration,
    /// Segments that hold something, and all there are.
    pub(crate) segments: (u32, u32),
}

/// Of 100 segments, how many may be in use before destaging begins.
const SEGMENTS_DUE_PERCENT: u32 = 75;
/// Of 100 segments, how many may be in use before writes are slowed down.
const SEGMENTS_SLOW_PERCENT: u32 = 90;
/// A write is slowed down at most by this (T3).
const SLOW_MAX: Duration = Duration::from_millis(10);
/// How much slower the guest may be while something is destaged: two times.
const SLOWER_MAX: u64 = 2;

/// How long to wait before the next batch; zero: now.
pub(crate) fn wait(load: &Load, settings: &CacheSettings) -> Duration {
    if load.is_awaited {
        return Duration::ZERO;
    }
    let (used, all) = load.segments;
    let is_due = load.dirty_bytes >= settings.dirty_bytes_max
        || load.oldest_age >= settings.dirty_age_max
        || percent(used, all) > SEGMENTS_DUE_PERCENT;
    let until_due = if is_due {
        Duration::ZERO
    } else {
        settings.dirty_age_max.saturating_sub(load.oldest_age)
    };
    let rate = settings.destage_bytes_per_s;
    until_due.max(time_of(load.last_bytes, rate).saturating_sub(load.since_last))
}

/// How long to make way for the guest after `bytes` were destaged (T2). `took` is the time that
/// they took.
pub(crate) fn make_way(
    guest: Guest,
    bytes: u64,
    took: Duration,
    settings: &CacheSettings,
) -> Duration {
    if guest.busy <= guest.idle.saturating_mul(SLOWER_MAX) || guest.idle == 0 {
        return Duration::ZERO;
    }
    let slowest = time_of(bytes, settings.destage_bytes_per_s_min).saturating_sub(took);
    // The slower the guest, the more of the time is its own.
    let factor = guest.busy / (guest.idle * SLOWER_MAX);
    slowest.min(took.saturating_mul(u32::try_from(factor).unwrap_or(u32::MAX)))
}

/// How long a write waits because of what the log holds (T3).
pub(crate) fn slow_down(segments: (u32, u32)) -> Duration {
    let (used, all) = segments;
    let over = percent(used, all).saturating_sub(SEGMENTS_SLOW_PERCENT);
    let range = 100 - SEGMENTS_SLOW_PERCENT;
    // With few segments each is much; the last of them is no sign of anything.
    if used + 1 >= all {
        return if all <= range {
            Duration::ZERO
        } else {
            SLOW_MAX
        };
    }
    SLOW_MAX * over * over / (range * range)
}

/// What the guest's writes take, in nanoseconds: smoothed, apart by whether something is destaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) idle: u64,
    pub(crate) busy: u64,
}

impl Guest {
    /// Weight of the newest is one of so many.
    const SMOOTH: u64 = 16;

    /// One more write that took so long.
    pub(crate) fn add(&mut self, took: Duration, is_destaging: bool) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let mean = if is_destaging {
            &mut self.busy
        } else {
            &mut self.idle
        };
        if *mean == 0 {
            *mean = took;
        } else {
            *mean = (*mean - *mean / Self::SMOOTH).saturating_add(took / Self::SMOOTH);
        }
    }
}

fn percent(part: u32, all: u32) -> u32 {
    u32::try_from(u64::from(part) * 100 / u64::from(all.max(1))).unwrap_or(100)
}

/// The time that `bytes` take at a rate; none where it is 0.
fn time_of(bytes: u64, bytes_per_s: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000;
    let nanos = nanos.checked_div(bytes_per_s.into()).unwrap_or(0);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tests::of;

    fn settings() -> CacheSettings {
        of(&[
            ("dirty_age_max", "30s"),
            ("dirty_bytes_max", "1024"),
            ("destage_bytes_per_s", "100"),
            ("destage_bytes_per_s_min", "1M"),
        ])
    }

    #[test]
    fn waits_for_age_or_bytes_and_not_where_it_is_awaited() {
        let mut load = Load {
            oldest_age: Duration::from_secs(10),
            ..Load::default()
        };
        assert_eq!(wait(&load, &settings()), Duration::from_secs(20));
        load.dirty_bytes = 1024;
        assert_eq!(wait(&load, &settings()), Duration::ZERO);
        load.last_bytes = 200;
        assert_eq!(wait(&load, &settings()), Duration::from_secs(2), "the rate");
        load.since_last = Duration::from_secs(3);
        assert_eq!(wait(&load, &settings()), Duration::ZERO);
        load.since_last = Duration::ZERO;
        load.is_awaited = true;
        assert_eq!(wait(&load, &settings()), Duration::ZERO);
    }

    #[test]
    fn log_that_fills_up_is_destaged_whatever_its_bytes() {
        let mut load = Load {
            segments: (75, 100),
            ..Load::default()
        };
        assert_eq!(wait(&load, &settings()), Duration::from_secs(30));
        load.segments.0 = 76;
        assert_eq!(wait(&load, &settings()), Duration::ZERO);
    }

    #[test]
    fn destaging_makes_way_for_a_slow_guest_down_to_its_minimum() {
        let guest = |idle, busy| Guest { idle, busy };
        let way = |guest, took| make_way(guest, 1 << 20, took, &settings());
        let ms = Duration::from_millis;
        assert_eq!(
            way(guest(10, 20), ms(5)),
            Duration::ZERO,
            "twice is allowed"
        );
        assert_eq!(
            way(guest(0, 9000), ms(5)),
            Duration::ZERO,
            "nothing to compare with"
        );
        assert_eq!(way(guest(10, 40), ms(5)), ms(10));
        assert_eq!(way(guest(10, 40_000), ms(5)), ms(995), "T2: 1 MiB/s");
        assert_eq!(
            way(guest(10, 40_000), ms(2000)),
            Duration::ZERO,
            "slow already"
        );
    }

    #[test]
    fn writes_slow_down_before_the_log_is_full() {
        assert_eq!(slow_down((90, 100)), Duration::ZERO);
        let (some, more) = (slow_down((94, 100)), slow_down((98, 100)));
        assert!(Duration::ZERO < some && some < more && more < SLOW_MAX);
        assert_eq!(slow_down((100, 100)), SLOW_MAX);
        assert_eq!(slow_down((4, 4)), Duration::ZERO, "each segment is much");
    }

    #[test]
    fn guest_is_measured_apart_and_smoothed() {
        let mut guest = Guest::default();
        for _ in 0..100 {
            guest.add(Duration::from_nanos(160), false);
            guest.add(Duration::from_nanos(1600), true);
        }
        assert_eq!(
            guest,
            Guest {
                idle: 160,
                busy: 1600
            }
        );
        guest.add(Duration::from_micros(16), true);
        assert_eq!(guest.busy, 2500);
    }
}
