//! The policy file: which disk of which VM gets which filters. TOML, strict.
//!
//! ```toml
//! [[policy]]
//! vm = "web-*"          # * any text, ? any one character; default *
//! disk = "data?"        # default *
//! [[policy.filter]]
//! name = "throttle"
//! iops = 1000           # every other key is a setting of the filter
//! ```
//! The first policy that matches wins. A disk that none matches is an error: a disk that silently
//! got no filters would be worse. An unknown key, filter or setting, or a value out of range is
//! an error with its line and column.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use toml::{Spanned, Value};
use vaio_core::{Error, FilterRegistry, FilterSpec, Policy, Result, Settings};

use crate::device_size;

/// Largest policy file, in bytes.
const BYTES_MAX: u64 = 1 << 20;
const NAME: &str = "name";

/// A policy file that was read and checked.
#[derive(Clone, Debug, Default)]
pub(crate) struct PolicyFile {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    vm: String,
    disk: String,
    policy: Policy,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    policy: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    #[serde(default = "any")]
    vm: String,
    #[serde(default = "any")]
    disk: String,
    #[serde(default)]
    filter: Vec<Spanned<BTreeMap<String, Spanned<Value>>>>,
}

fn any() -> String {
    "*".into()
}

impl PolicyFile {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](vaio_core::ErrorKind::Config) with the place in the file.
    pub(crate) fn read(path: &Path, registry: &FilterRegistry) -> Result<Self> {
        use std::io::Read;
        let bad = |cause| {
            let at = path.display();
            Error::config(format!("cannot read the policy file, file={at}")).with_source(cause)
        };
        let file = std::fs::File::open(path).map_err(bad)?;
        let mut text = String::new();
        file.take(BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(bad)?;
        Self::parse(&text, &path.display().to_string(), registry)
    }

    /// Reads and checks a text; `file` is its name in errors.
    pub(crate) fn parse(text: &str, file: &str, registry: &FilterRegistry) -> Result<Self> {
        let raw: RawFile = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            Error::config(place(text, file, at, error.message()))
        })?;
        let at_fault =
            |at: usize, error: &Error| Error::config(place(text, file, at, &error.to_line()));
        let mut rules = Vec::with_capacity(raw.policy.len());
        for rule in raw.policy {
            let mut policy = Policy::empty();
            for filter in rule.filter {
                let at = filter.span().start;
                let spec = filter_spec(filter.into_inner(), at, registry)
                    .map_err(|(at, error)| at_fault(at, &error))?;
                policy = policy.with(spec);
            }
            policy
                .resolve(registry)
                .map_err(|error| Error::config(format!("{}, file={file}", error.to_line())))?;
            rules.push(Rule {
                vm: rule.vm,
                disk: rule.disk,
                policy,
            });
        }
        Ok(Self { rules })
    }

    /// The policy of a disk: that of the first rule that matches.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](vaio_core::ErrorKind::Config) where none matches.
    pub(crate) fn of(&self, vm: &str, disk: &str) -> Result<Policy> {
        self.rules
            .iter()
            .find(|rule| matches(&rule.vm, vm) && matches(&rule.disk, disk))
            .map(|rule| rule.policy.clone())
            .ok_or_else(|| {
                Error::config(format!(
                    "no policy matches the disk: add one with disk = \"*\" and no filters if it \
                     shall have none, vm={vm} disk={disk}"
                ))
            })
    }
}

/// One filter's table: its name, and its settings checked one by one, so that an error has the
/// place of the value.
fn filter_spec(
    mut table: BTreeMap<String, Spanned<Value>>,
    at: usize,
    registry: &FilterRegistry,
) -> Result<FilterSpec, (usize, Error)> {
    let name = table
        .remove(NAME)
        .ok_or_else(|| (at, Error::config("a filter needs a name = \"...\"")))?;
    let name_at = name.span().start;
    let Value::String(name) = name.into_inner() else {
        return Err((name_at, Error::config("a filter's name is text")));
    };
    let factory = registry.get(&name).map_err(|error| (name_at, error))?;
    let descriptor = factory.descriptor();
    let mut spec = FilterSpec::new(&name);
    for (key, value) in table {
        let value_at = value.span().start;
        let text = as_text(value.into_inner()).ok_or_else(|| {
            let error = Error::config(format!(
                "a setting is text, a whole number, true or false, setting={key}"
            ));
            (value_at, error.with_filter(descriptor.name))
        })?;
        if device_size::is_size(&descriptor, &key) {
            spec.settings.insert(key, text);
            continue;
        }
        let declared: Vec<_> = descriptor
            .settings
            .iter()
            .filter(|setting| setting.name == key)
            .copied()
            .collect();
        let known = if declared.is_empty() {
            descriptor.settings
        } else {
            &declared
        };
        let one = BTreeMap::from([(key.clone(), text.clone())]);
        Settings::parse(known, &one)
            .map_err(|error| (value_at, error.with_filter(descriptor.name)))?;
        spec.settings.insert(key, text);
    }
    device_size::fold(&mut spec, &descriptor).map_err(|error| (name_at, error))?;
    Settings::parse(descriptor.settings, &spec.settings)
        .map_err(|error| (name_at, error.with_filter(descriptor.name)))?;
    Ok(spec)
}

fn as_text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Integer(number) => Some(number.to_string()),
        Value::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// What is wrong, with its line and column, both from 1.
fn place(text: &str, file: &str, at: usize, what: &str) -> String {
    let before = &text[..text.floor_char_boundary(at)];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    let what = what.trim().replace('\n', ", ");
    format!("{what}, file={file} line={line} column={column}")
}

/// Whether `text` fits `pattern`: `*` any text, `?` any one character. Linear in the product of
/// the lengths at worst.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where to go on after the last star: just behind it, one character further each time.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, t + 1));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((star, from)) => {
                    p = star;
                    t = from;
                    retry = Some((star, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{registry, spec};

    fn parse(text: &str) -> Result<PolicyFile> {
        PolicyFile::parse(text, "p.toml", &registry())
    }

    #[test]
    fn first_policy_that_matches_wins() {
        let file = parse(
            r#"
            [[policy]]
            vm = "web-*"
            disk = "data?"
            [[policy.filter]]
            name = "test"
            count = 7
            mode = "b"
            [[policy]]
            "#,
        )
        .unwrap();
        let policy = file.of("web-1", "data2").unwrap();
        assert_eq!(
            policy.filters,
            [spec("test").with("count", "7").with("mode", "b")]
        );
        assert_eq!(file.of("web-1", "root").unwrap(), Policy::empty());
        assert_eq!(file.of("db", "data2").unwrap(), Policy::empty());
        let error = parse("").unwrap().of("a", "b").unwrap_err();
        assert!(
            error.to_line().contains("vm=a disk=b"),
            "{}",
            error.to_line()
        );
    }

    #[test]
    fn every_mistake_has_its_line_and_column() {
        let head = "[[policy]]\n[[policy.filter]]\n";
        for (text, words, line, column) in [
            ("frobnicate = true".to_owned(), "frobnicate", 1, 1),
            ("[[policy]]\nvms = \"x\"".to_owned(), "vms", 2, 1),
            ("[[policy]]\nvm = 7".to_owned(), "string", 2, 6),
            ("[[policy]\n".to_owned(), "", 1, 10),
            (format!("{head}name = \"nix\""), "filter=nix", 3, 8),
            (format!("{head}mode = \"a\""), "name", 2, 1),
            (
                format!("{head}name = \"test\"\nhue = 1"),
                "setting=hue",
                4,
                7,
            ),
            (
                format!("{head}name = \"test\"\ncount = 9999"),
                "setting=count",
                4,
                9,
            ),
            (
                format!("{head}name = \"test\"\nmode = [1]"),
                "setting=mode",
                4,
                8,
            ),
        ] {
            let error = parse(&text).unwrap_err().to_line();
            assert!(error.contains(words), "{text}: {error}");
            let place = format!("file=p.toml line={line} column={column}");
            assert!(error.contains(&place), "{text}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn pattern_matches_as_documented() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "a", true),
            ("a*c", "abbc", true),
            ("a*c", "abb", false),
            ("?", "", false),
            ("?b", "ab", true),
            ("*a*b", "xaybzab", true),
            ("*a*b", "xayc", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
