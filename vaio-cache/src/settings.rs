//! [`CacheSettings`]: what an operator may choose, with units, defaults and limits.

use std::time::Duration;

use vaio_core::{SettingKind, SettingSpec, Settings};

use crate::log::Destage;

/// The cache device, in needs and settings.
pub const CACHE_DEVICE: &str = "file";

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Mode {
    /// Answered from the log, destaged later.
    #[default]
    WriteBack,
    /// Written to the backing before its answer, then kept for reads.
    WriteThrough,
    /// Written to the backing before its answer, and not kept: only what is read is.
    WriteAround,
    /// Written to the backing before its answer; what reads have brought into the cache is kept
    /// up to date, and nothing else is kept.
    ReadOnly,
}

impl Mode {
    /// Its name in the setting.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WriteBack => "write_back",
            Self::WriteThrough => "write_through",
            Self::WriteAround => "write_around",
            Self::ReadOnly => "read_only",
        }
    }
}

/// What a write's answer promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// What a disk with a volatile cache does: a flush makes durable.
    #[default]
    AtFlush,
    /// Every answered write is durable.
    AtAck,
}

/// The settings of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheSettings {
    /// What becomes of a write.
    pub mode: Mode,
    /// What a write's answer promises.
    pub durability: Durability,
    /// Whether the backing alone is always a legal crash image of the guest.
    pub is_ordered: bool,
    /// Bytes of writes kept in memory because they are not durable; a flush is forced then.
    pub unflushed_bytes_max: u64,
    /// Bytes destaged, and done again after an error, as a whole.
    pub cut_bytes_max: u64,
    /// How long a write may wait before it is destaged.
    pub dirty_age_max: Duration,
    /// Bytes that wait at most before destaging begins.
    pub dirty_bytes_max: u64,
    /// Destaging is not faster than this; 0: no limit.
    pub destage_bytes_per_s: u64,
    /// Destaging that makes way for the guest is still this fast.
    pub destage_bytes_per_s_min: u64,
    /// Of 100 bytes of the cache device, how many are for reads.
    pub read_percent: u32,
    /// Dirty bytes that an open may give up where it cannot have them; 0: none.
    pub discard_dirty: u64,
}

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

const fn bytes(min: u64, max: u64) -> SettingKind {
    SettingKind::Bytes { min, max }
}

/// Every setting of the filter.
pub(crate) const SPECS: &[SettingSpec] = &[
    SettingSpec::required(
        CACHE_DEVICE,
        SettingKind::Path,
        "Device that holds the log; it is used whole",
    ),
    SettingSpec::new(
        "mode",
        SettingKind::Choice(&["write_back", "write_through", "write_around", "read_only"]),
        "write_back",
        "What becomes of a write",
    ),
    SettingSpec::new(
        "durability",
        SettingKind::Choice(&["at_flush", "at_ack"]),
        "at_flush",
        "What a write's answer promises: a volatile cache, or that it is durable",
    ),
    SettingSpec::new(
        "order",
        SettingKind::Choice(&["ordered", "relaxed"]),
        "ordered",
        "Whether the backing alone is always a legal crash image of the guest",
    ),
    SettingSpec::new(
        "unflushed_bytes_max",
        bytes(1 << 10, 1 << 30),
        "64M",
        "Bytes kept in memory because they are not durable; a flush is forced then",
    ),
    SettingSpec::new(
        "cut_bytes_max",
        bytes(1 << 10, 1 << 30),
        "64M",
        "Bytes that are destaged, and done again after an error, as a whole",
    ),
    SettingSpec::new(
        "dirty_age_max",
        SettingKind::Duration {
            min_ms: 1,
            max_ms: 86_400_000,
        },
        "30s",
        "How long a write may wait before it is destaged",
    ),
    SettingSpec::new(
        "dirty_bytes_max",
        bytes(1 << 10, TIB),
        "1G",
        "Bytes that may wait before destaging begins",
    ),
    SettingSpec::new(
        "destage_bytes_per_s",
        bytes(0, TIB),
        "0",
        "Limit of the destaging rate in bytes a second; 0: none",
    ),
    SettingSpec::new(
        "destage_bytes_per_s_min",
        bytes(1 << 10, TIB),
        "16M",
        "Destaging makes way for a guest that it slows down, but not below this rate",
    ),
    SettingSpec::new(
        "read_percent",
        SettingKind::Number { min: 0, max: 90 },
        "50",
        "Of 100 bytes of a new cache device, how many are for reads; the rest is the log",
    ),
    SettingSpec::new(
        "discard_dirty",
        bytes(0, 1 << 62),
        "0",
        "Bytes of dirty data that may be given up where an open would refuse; 0: none",
    ),
];

impl CacheSettings {
    /// Types what was parsed against the specification.
    pub(crate) fn of(settings: &Settings) -> Self {
        let number = |name, default| settings.number(name).unwrap_or(default);
        let is = |name, word| settings.text(name) == Some(word);
        Self {
            mode: match settings.text("mode") {
                Some("write_through") => Mode::WriteThrough,
                Some("write_around") => Mode::WriteAround,
                Some("read_only") => Mode::ReadOnly,
                _ => Mode::WriteBack,
            },
            durability: if is("durability", "at_ack") {
                Durability::AtAck
            } else {
                Durability::AtFlush
            },
            is_ordered: !is("order", "relaxed"),
            unflushed_bytes_max: number("unflushed_bytes_max", 64 * MIB),
            cut_bytes_max: number("cut_bytes_max", 64 * MIB),
            dirty_age_max: settings
                .duration("dirty_age_max")
                .unwrap_or(Duration::from_secs(30)),
            dirty_bytes_max: number("dirty_bytes_max", 1 << 30),
            destage_bytes_per_s: number("destage_bytes_per_s", 0),
            destage_bytes_per_s_min: number("destage_bytes_per_s_min", 16 * MIB),
            read_percent: u32::try_from(number("read_percent", 50)).unwrap_or(50),
            discard_dirty: number("discard_dirty", 0),
        }
    }

    pub(crate) const fn destage(&self) -> Destage {
        if self.is_ordered {
            Destage::Ordered
        } else {
            Destage::Relaxed
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use vaio_core::Result;

    fn parse(pairs: &[(&str, &str)]) -> Result<CacheSettings> {
        let given = [(CACHE_DEVICE, "ssd")].iter().chain(pairs);
        let given: BTreeMap<_, _> = given
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Ok(CacheSettings::of(&Settings::parse(SPECS, &given)?))
    }

    /// Settings that are allowed.
    pub(crate) fn of(pairs: &[(&str, &str)]) -> CacheSettings {
        parse(pairs).expect("they are allowed")
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let settings = parse(&[]).expect("defaults are allowed");
        assert_eq!(settings.mode, Mode::WriteBack);
        assert_eq!(settings.durability, Durability::AtFlush);
        assert!(settings.is_ordered);
        assert_eq!(settings.dirty_age_max, Duration::from_secs(30));
    }

    #[test]
    fn unknown_or_out_of_range_is_refused_by_name() {
        for (key, value) in [
            ("sise", "1G"),
            ("mode", "write_maybe"),
            ("unflushed_bytes_max", "0"),
            ("dirty_age_max", "2000h"),
        ] {
            let error = parse(&[(key, value)]).expect_err(key);
            assert!(error.to_string().contains(key), "{error}");
        }
        let settings = parse(&[("mode", "read_only"), ("order", "relaxed")]).expect("allowed");
        assert_eq!(settings.mode, Mode::ReadOnly);
        assert!(!settings.is_ordered);
    }
}
