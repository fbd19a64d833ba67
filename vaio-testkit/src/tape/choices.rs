//! [`Choices`]: the choices of a run that were not benign, as sorted text lines. What a saved plan
//! holds of the schedule, the faults and the crashes.
//!
//! A line names its choice by what it decides (`choose event cache.write#3 = 1`: the fourth time
//! that `cache.write` was asked of the event family, 1 was taken), not by its place in the run. A
//! choice without a line is 0. So lines can be dropped one by one, and survive edits of the code
//! which do not touch the name.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use super::Family;

/// Which choice: what it is about, its name, and how often that was asked before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What it is about.
    pub family: Family,
    /// The name that it was asked under; one line of text, no spaces at its ends.
    pub name: Arc<str>,
    /// How often this name was asked before in this family: the first is 0.
    pub nth: u32,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}#{}", self.family, self.name, self.nth)
    }
}

/// The choices of a run that were not 0. Text form: one line per choice, sorted; the text of equal
/// choices is equal, and parsing it gives them back. Empty lines and lines that start with `#` are
/// skipped when parsing.
///
/// ```
/// use vaio_testkit::{Choices, Family};
///
/// let choices: Choices = "choose event cache.write#3 = 1\n".parse()?;
/// assert_eq!(choices.get(Family::Event, "cache.write", 3), 1);
/// assert_eq!(choices.get(Family::Event, "cache.write", 4), 0);
/// assert_eq!(choices.to_string(), "choose event cache.write#3 = 1\n");
/// # Ok::<(), vaio_testkit::ChoicesError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    taken: BTreeMap<Key, u32>,
}

/// A line that is not a choice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}, line={line} text={text:?}")]
pub struct ChoicesError {
    /// Number of the line; the first is 1.
    pub line: usize,
    /// What is wrong with it, and what to write instead.
    pub reason: String,
    /// The line, shortened to 120 characters.
    pub text: String,
}

const SHAPE: &str = "write `choose FAMILY NAME#NTH = VALUE`, or drop the line";
const SHOWN_MAX: usize = 120;

impl Choices {
    /// None: a benign run.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of choices that are not 0.
    pub fn len(&self) -> usize {
        self.taken.len()
    }

    /// True for a benign run.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// What was chosen; 0 where nothing is written down.
    pub fn get(&self, family: Family, name: &str, nth: u32) -> u32 {
        let key = Key {
            family,
            name: name.into(),
            nth,
        };
        self.taken.get(&key).copied().unwrap_or(0)
    }

    /// Sets one choice; 0 removes it.
    ///
    /// # Panics
    /// If the name is empty, has more than one line, or has spaces at its ends.
    pub fn set(&mut self, key: Key, value: u32) {
        assert!(is_name(&key.name), "a name is one trimmed line of text");
        if value == 0 {
            self.taken.remove(&key);
        } else {
            self.taken.insert(key, value);
        }
    }

    /// Makes one choice benign; what it was before.
    pub fn remove(&mut self, key: &Key) -> u32 {
        self.taken.remove(key).unwrap_or(0)
    }

    /// Every choice that is not 0, in the order of the text.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, u32)> {
        self.taken.iter().map(|(key, value)| (key, *value))
    }

    /// The choices of one name as number and value, by number.
    pub(super) fn of_name(&self, family: Family, name: &Arc<str>) -> Vec<(u32, u32)> {
        let key = |nth| Key {
            family,
            name: Arc::clone(name),
            nth,
        };
        self.taken
            .range(key(0)..=key(u32::MAX))
            .map(|(key, value)| (key.nth, *value))
            .collect()
    }

    /// Keeps those that `keep` says; for shrinking.
    pub fn retain(&mut self, mut keep: impl FnMut(&Key, u32) -> bool) {
        self.taken.retain(|key, value| keep(key, *value));
    }
}

impl FromIterator<(Key, u32)> for Choices {
    /// # Panics
    /// As [`Choices::set`].
    fn from_iter<I: IntoIterator<Item = (Key, u32)>>(choices: I) -> Self {
        let mut all = Self::new();
        for (key, value) in choices {
            all.set(key, value);
        }
        all
    }
}

impl fmt::Display for Choices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, value) in &self.taken {
            writeln!(f, "choose {key} = {value}")?;
        }
        Ok(())
    }
}

impl FromStr for Choices {
    type Err = ChoicesError;

    fn from_str(text: &str) -> Result<Self, ChoicesError> {
        let mut choices = Self::new();
        for (before, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |reason: String| ChoicesError {
                line: before + 1,
                reason,
                text: line.chars().take(SHOWN_MAX).collect(),
            };
            let (key, value) = parse_line(line).map_err(wrong)?;
            if choices.taken.contains_key(&key) {
                return Err(wrong("choice is written twice; drop one".into()));
            }
            choices.set(key, value);
        }
        Ok(choices)
    }
}

fn parse_line(line: &str) -> Result<(Key, u32), String> {
    let not_a_choice = || format!("not a choice; {SHAPE}");
    let rest = line.strip_prefix("choose ").ok_or_else(not_a_choice)?;
    let (family, rest) = rest.trim().split_once(' ').ok_or_else(not_a_choice)?;
    let (key, value) = rest.rsplit_once('=').ok_or_else(not_a_choice)?;
    let (name, nth) = key
        .trim()
        .rsplit_once('#')
        .ok_or_else(|| format!("no #NTH after the name; {SHAPE}"))?;
    let family = Family::parse(family).ok_or_else(|| {
        let known: Vec<_> = Family::ALL.iter().map(|family| family.name()).collect();
        format!("unknown family {family}; use one of {}", known.join(", "))
    })?;
    let number = |what: &str, text: &str| -> Result<u32, String> {
        let text = text.trim();
        text.parse()
            .map_err(|_| format!("{what} {text} is not a number below 2^32; {SHAPE}"))
    };
    let key = Key {
        family,
        name: name.into(),
        nth: number("NTH", nth)?,
    };
    if !is_name(&key.name) {
        return Err(format!("no name; {SHAPE}"));
    }
    Ok((key, number("VALUE", value)?))
}

/// What survives the text form.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.trim() == name
        && !name.bytes().any(|byte| matches!(byte, b'\n' | b'\r'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> ChoicesError {
        text.parse::<Choices>().unwrap_err()
    }

    #[test]
    fn text_of_choices_is_sorted_and_parses_back() {
        let text = "choose kick timer#2 = 1\n# a note\n\n  choose op kind#0 = 3  \n";
        let choices: Choices = text.parse().unwrap();
        assert_eq!(
            choices.to_string(),
            "choose op kind#0 = 3\nchoose kick timer#2 = 1\n"
        );
        assert_eq!(choices.to_string().parse::<Choices>().unwrap(), choices);
    }

    #[test]
    fn names_with_spaces_signs_and_hashes_survive() {
        let choices: Choices = "choose event a #1 = b#4 = 7".parse().unwrap();
        assert_eq!(choices.get(Family::Event, "a #1 = b", 4), 7);
        assert_eq!(choices.to_string().parse::<Choices>().unwrap(), choices);
    }

    #[test]
    fn garbage_is_refused_with_its_line_and_advice() {
        let error = refused("choose op a#0 = 1\nnonsense");
        assert_eq!(error.line, 2);
        assert_eq!(
            error.to_string(),
            "not a choice; write `choose FAMILY NAME#NTH = VALUE`, or drop the line, line=2 text=\"nonsense\""
        );
        assert!(
            refused("choose ops a#0 = 1")
                .reason
                .contains("use one of op, schedule")
        );
        assert!(refused("choose op a = 1").reason.contains("#NTH"));
        assert!(refused("choose op a#x = 1").reason.contains("NTH x"));
        assert!(
            refused("choose op a#0 = 4294967296")
                .reason
                .contains("VALUE")
        );
        assert!(refused("choose op #0 = 1").reason.contains("no name"));
        assert!(
            refused("choose op a#0 = 1\nchoose op a#0 = 2")
                .reason
                .contains("twice")
        );
        assert!(refused(&"x".repeat(5000)).text.len() <= SHOWN_MAX);
    }

    #[test]
    fn choice_of_zero_is_no_line() {
        let mut choices: Choices = "choose op a#0 = 0".parse().unwrap();
        assert!(choices.is_empty());
        let key = Key {
            family: Family::Op,
            name: "a".into(),
            nth: 0,
        };
        choices.set(key.clone(), 4);
        assert_eq!(choices.len(), 1);
        assert_eq!(choices.remove(&key), 4);
        assert!(choices.is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "[a-z#= \n0-9]{0,80}") {
            if let Ok(choices) = text.parse::<Choices>() {
                prop_assert_eq!(choices.to_string().parse::<Choices>().unwrap(), choices);
            }
        }
    }
}
