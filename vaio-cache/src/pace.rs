//! When destaging goes on. A pure function of what waits and what is asked for.

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
}

/// How long to wait before the next batch; zero: now.
pub(crate) fn wait(load: &Load, settings: &CacheSettings) -> Duration {
    if load.is_awaited {
        return Duration::ZERO;
    }
    let is_due =
        load.dirty_bytes >= settings.dirty_bytes_max || load.oldest_age >= settings.dirty_age_max;
    let until_due = if is_due {
        Duration::ZERO
    } else {
        settings.dirty_age_max.saturating_sub(load.oldest_age)
    };
    let rate = settings.destage_bytes_per_s;
    let owed = u128::from(load.last_bytes) * 1_000_000_000;
    let owed = owed.checked_div(rate.into()).unwrap_or(0);
    let owed = Duration::from_nanos(u64::try_from(owed).unwrap_or(u64::MAX));
    until_due.max(owed.saturating_sub(load.since_last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Durability, Mode};

    fn settings() -> CacheSettings {
        CacheSettings {
            mode: Mode::WriteBack,
            durability: Durability::AtFlush,
            is_ordered: true,
            unflushed_bytes_max: 1,
            cut_bytes_max: 1,
            dirty_age_max: Duration::from_secs(30),
            dirty_bytes_max: 1000,
            destage_bytes_per_s: 100,
        }
    }

    #[test]
    fn waits_for_age_or_bytes_and_not_where_it_is_awaited() {
        let mut load = Load {
            oldest_age: Duration::from_secs(10),
            ..Load::default()
        };
        assert_eq!(wait(&load, &settings()), Duration::from_secs(20));
        load.dirty_bytes = 1000;
        assert_eq!(wait(&load, &settings()), Duration::ZERO);
        load.last_bytes = 200;
        assert_eq!(wait(&load, &settings()), Duration::from_secs(2), "the rate");
        load.since_last = Duration::from_secs(3);
        assert_eq!(wait(&load, &settings()), Duration::ZERO);
        load.since_last = Duration::ZERO;
        load.is_awaited = true;
        assert_eq!(wait(&load, &settings()), Duration::ZERO);
    }
}
