//! Typed settings of a filter: the specification it declares and the values it gets. Pure.
//!
//! A policy file or a command line gives text; a [`SettingSpec`] says what it means. Unknown keys,
//! missing required ones and values out of range are errors before anything is opened.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{Error, Result};

/// Kind and limits of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum SettingKind {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Number {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// Bytes: a number with an optional suffix `K`, `M`, `G`, `T` (powers of 1024; `KiB` too).
    Bytes {
        /// Smallest, in bytes.
        min: u64,
        /// Largest, in bytes.
        max: u64,
    },
    /// A time: a number with suffix `us`, `ms`, `s`, `m` or `h`.
    Duration {
        /// Shortest, in milliseconds.
        min_ms: u64,
        /// Longest, in milliseconds.
        max_ms: u64,
    },
    /// Any text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A path or device for the host to open or read; kept as text.
    Path,
}

/// One setting of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SettingSpec {
    /// Key: lower case with `_`, unit last.
    pub name: &'static str,
    /// Kind and limits.
    pub kind: SettingKind,
    /// Value when not given, as text; `None`: required.
    pub default: Option<&'static str>,
    /// One sentence: meaning and unit.
    pub summary: &'static str,
}

/// A value of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(untagged))]
#[non_exhaustive]
pub enum SettingValue {
    /// [`SettingKind::Bool`].
    Bool(bool),
    /// [`SettingKind::Number`], and [`SettingKind::Bytes`] in bytes.
    Number(u64),
    /// [`SettingKind::Duration`].
    Duration(Duration),
    /// [`SettingKind::Text`], [`SettingKind::Choice`] and [`SettingKind::Path`].
    Text(String),
}

/// The settings of one filter instance: every declared setting has a value of its kind.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct Settings(BTreeMap<&'static str, SettingValue>);

impl Settings {
    /// Reads the given texts against the specification.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for a key that is not declared, a required
    /// one that is missing, or a value that is malformed or out of range; it names the key, the
    /// value and what is allowed. An empty default means "not set" and leaves the key out.
    pub fn parse(specs: &[SettingSpec], given: &BTreeMap<String, String>) -> Result<Self> {
        for key in given.keys() {
            if !specs.iter().any(|spec| spec.name == key) {
                let known: Vec<_> = specs.iter().map(|spec| spec.name).collect();
                return Err(Error::config(format!(
                    "unknown setting, setting={key} known={}",
                    if known.is_empty() {
                        "none".into()
                    } else {
                        known.join(",")
                    }
                )));
            }
        }
        let mut values = BTreeMap::new();
        for spec in specs {
            let text = given.get(spec.name).map(String::as_str).or(spec.default);
            match text {
                None => {
                    return Err(Error::config(format!(
                        "setting is required, setting={} meaning={:?}",
                        spec.name, spec.summary
                    )));
                }
                Some("") if !given.contains_key(spec.name) => {}
                Some(text) => {
                    values.insert(spec.name, spec.parse(text)?);
                }
            }
        }
        Ok(Self(values))
    }

    /// The value of a setting, if it has one.
    pub fn get(&self, name: &str) -> Option<&SettingValue> {
        self.0.get(name)
    }

    /// A setting of kind `Bool`; `false` where it is not set.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.0.get(name), Some(SettingValue::Bool(true)))
    }

    /// A setting of kind `Number` or `Bytes`.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.0.get(name) {
            Some(SettingValue::Number(value)) => Some(*value),
            _ => None,
        }
    }

    /// A setting of kind `Duration`.
    pub fn duration(&self, name: &str) -> Option<Duration> {
        match self.0.get(name) {
            Some(SettingValue::Duration(value)) => Some(*value),
            _ => None,
        }
    }

    /// A setting of kind `Text`, `Choice` or `Path`.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name) {
            Some(SettingValue::Text(value)) => Some(value),
            _ => None,
        }
    }
}

impl SettingSpec {
    /// A setting with a default.
    pub const fn new(
        name: &'static str,
        kind: SettingKind,
        default: &'static str,
        summary: &'static str,
    ) -> Self {
        Self {
            name,
            kind,
            default: Some(default),
            summary,
        }
    }

    /// A setting that must be given.
    pub const fn required(name: &'static str, kind: SettingKind, summary: &'static str) -> Self {
        Self {
            name,
            kind,
            default: None,
            summary,
        }
    }

    fn parse(&self, text: &str) -> Result<SettingValue> {
        let bad = |allowed: &dyn fmt::Display| {
            Err(Error::config(format!(
                "setting has a value that is not allowed, setting={} value={text:?} allowed={allowed}",
                self.name
            )))
        };
        let ranged = |value: Option<u64>, min: u64, max: u64, what: &str| match value {
            Some(value) if (min..=max).contains(&value) => Ok(SettingValue::Number(value)),
            _ => bad(&format_args!("{what} from {min} to {max}")),
        };
        match self.kind {
            SettingKind::Bool => match text {
                "true" => Ok(SettingValue::Bool(true)),
                "false" => Ok(SettingValue::Bool(false)),
                _ => bad(&"true or false"),
            },
            SettingKind::Number { min, max } => ranged(text.parse().ok(), min, max, "a number"),
            SettingKind::Bytes { min, max } => ranged(parse_bytes(text), min, max, "bytes"),
            SettingKind::Duration { min_ms, max_ms } => match parse_duration(text) {
                Some(value)
                    if value >= Duration::from_millis(min_ms)
                        && value <= Duration::from_millis(max_ms) =>
                {
                    Ok(SettingValue::Duration(value))
                }
                _ => bad(&format_args!("a time from {min_ms}ms to {max_ms}ms")),
            },
            SettingKind::Choice(words) => {
                if words.contains(&text) {
                    Ok(SettingValue::Text(text.into()))
                } else {
                    bad(&words.join("|"))
                }
            }
            SettingKind::Text | SettingKind::Path => Ok(SettingValue::Text(text.into())),
        }
    }
}

/// Reads a number of bytes: `4096`, `64K`, `64KiB`, `1G`. Suffixes are powers of 1024.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Reads a time: `250us`, `20ms`, `30s`, `5m`, `1h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_us: u64 = match &text[digits.len()..] {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        _ => return None,
    };
    Some(Duration::from_micros(
        digits.parse::<u64>().ok()?.checked_mul(unit_us)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: &[SettingSpec] = &[
        SettingSpec::required("file", SettingKind::Path, "where"),
        SettingSpec::new(
            "size",
            SettingKind::Bytes {
                min: 1 << 20,
                max: 1 << 40,
            },
            "1G",
            "how much",
        ),
        SettingSpec::new(
            "age",
            SettingKind::Duration {
                min_ms: 1,
                max_ms: 60_000,
            },
            "30s",
            "how old",
        ),
        SettingSpec::new("mode", SettingKind::Choice(&["a", "b"]), "a", "how"),
        SettingSpec::new("note", SettingKind::Text, "", "optional"),
    ];

    fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect()
    }

    #[test]
    fn defaults_fill_in_and_values_are_typed() {
        let settings =
            Settings::parse(SPECS, &given(&[("file", "/x"), ("size", "64MiB")])).unwrap();
        assert_eq!(settings.text("file"), Some("/x"));
        assert_eq!(settings.number("size"), Some(64 << 20));
        assert_eq!(settings.duration("age"), Some(Duration::from_secs(30)));
        assert_eq!(settings.text("note"), None);
    }

    #[test]
    fn every_bad_value_is_refused_by_name() {
        for (pairs, word) in [
            (&[][..], "file"),
            (&[("file", "x"), ("sise", "1G")][..], "sise"),
            (&[("file", "x"), ("size", "1K")][..], "size"),
            (&[("file", "x"), ("size", "99999999999T")][..], "size"),
            (&[("file", "x"), ("age", "30")][..], "age"),
            (&[("file", "x"), ("mode", "c")][..], "a|b"),
        ] {
            let error = Settings::parse(SPECS, &given(pairs)).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
