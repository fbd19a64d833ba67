//! [`Odometer`]: every run of a small space, depth first, without knowing the space beforehand.

use super::{Family, Tape, source::Source};

/// Enumerates all sequences of choices. Each tape it gives is used for one run; the next tape then
/// changes the last choice of that run that has an option left, and everything after it starts at
/// 0 again. The first tape is benign.
///
/// ```
/// use vaio_testkit::{Family, Odometer};
///
/// let mut seen = Vec::new();
/// let mut odometer = Odometer::new();
/// while let Some(tape) = odometer.next() {
///     let first = tape.choose(2, Family::Op, "first");
///     let second = if first == 1 { tape.choose(3, Family::Op, "second") } else { 0 };
///     seen.push((first, second));
/// }
/// assert_eq!(seen, [(0, 0), (1, 0), (1, 1), (1, 2)]);
/// ```
#[derive(Debug)]
pub struct Odometer {
    last: Option<Tape>,
    masked: Vec<Family>,
    depth_max: usize,
    tried: u64,
    diverged: u64,
}

/// One wheel: what stands on it, and how many positions it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wheel {
    pub(super) value: u32,
    pub(super) options: u32,
}

/// Default for [`Odometer::with_depth_max`].
const DEPTH_MAX: usize = 10_000;

impl Default for Odometer {
    fn default() -> Self {
        Self::new()
    }
}

impl Odometer {
    /// Before the first run; every family takes part.
    pub fn new() -> Self {
        Self {
            last: None,
            masked: Vec::new(),
            depth_max: DEPTH_MAX,
            tried: 0,
            diverged: 0,
        }
    }

    /// Only these families are enumerated; the others stay benign.
    #[must_use]
    pub fn with_only(mut self, families: &[Family]) -> Self {
        self.masked = Family::ALL.to_vec();
        self.masked.retain(|family| !families.contains(family));
        self
    }

    /// Choices after the first `depth` of a run stay 0. Default 10,000.
    #[must_use]
    pub fn with_depth_max(mut self, depth: usize) -> Self {
        self.depth_max = depth;
        self
    }

    /// The tape of the next run; `None` when every sequence was tried. Call it when the run of the
    /// tape before is over.
    // Not an iterator: what comes next depends on what was asked of the last item.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator could be collected before any run"
    )]
    pub fn next(&mut self) -> Option<Tape> {
        let path = match self.last.take() {
            None => Vec::new(),
            Some(tape) => {
                let (path, has_diverged) = tape.wheels();
                self.diverged += u64::from(has_diverged);
                turned(path)?
            }
        };
        self.tried += 1;
        let tape = Tape::with_source(Source::wheels(path, self.depth_max));
        for family in &self.masked {
            tape.set_mask(*family, true);
        }
        self.last = Some(tape.clone());
        Some(tape)
    }

    /// Runs begun.
    pub fn tried(&self) -> u64 {
        self.tried
    }

    /// Runs that did not ask what the run before had asked up to the choice that changed. If it is
    /// not 0, the runs are not deterministic and the enumeration is not complete.
    pub fn diverged(&self) -> u64 {
        self.diverged
    }
}

/// The sequence after `path`: the last wheel that can turn did, those behind it are gone.
fn turned(mut path: Vec<Wheel>) -> Option<Vec<Wheel>> {
    while let Some(last) = path.last_mut() {
        if last.value + 1 < last.options {
            last.value += 1;
            return Some(path);
        }
        path.pop();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_of_a_tree_is_given_once() {
        let mut odometer = Odometer::new();
        let mut seen = std::collections::BTreeSet::new();
        while let Some(tape) = odometer.next() {
            let ops = tape.choose(4, Family::Op, "count");
            let run: Vec<_> = (0..ops)
                .map(|_| tape.choose(3, Family::Fault, "op"))
                .collect();
            assert!(seen.insert(run), "given once");
        }
        assert_eq!(seen.len(), 1 + 3 + 9 + 27);
        assert_eq!((odometer.tried(), odometer.diverged()), (40, 0));
    }

    #[test]
    fn masked_families_and_deep_choices_stay_benign() {
        let mut odometer = Odometer::new().with_only(&[Family::Op]).with_depth_max(2);
        let mut runs = 0;
        while let Some(tape) = odometer.next() {
            runs += 1;
            assert_eq!(tape.choose(9, Family::Crash, "masked"), 0);
            let _ = (
                tape.choose(2, Family::Op, "a"),
                tape.choose(2, Family::Op, "b"),
            );
            assert_eq!(tape.choose(1, Family::Op, "one option"), 0);
            assert_eq!(tape.choose(2, Family::Op, "deep"), 0);
        }
        assert_eq!(runs, 4);
    }

    #[test]
    fn run_that_asks_differently_is_counted() {
        let mut odometer = Odometer::new();
        let mut options = 3;
        while let Some(tape) = odometer.next() {
            tape.choose(options, Family::Op, "a");
            tape.choose(2, Family::Op, "b");
            options = 2;
        }
        assert!(odometer.diverged() > 0);
    }

    #[test]
    fn choices_of_a_run_replay_it() {
        let mut odometer = Odometer::new();
        odometer.next().unwrap().choose(3, Family::Net, "delay");
        let tape = odometer.next().unwrap();
        assert_eq!(tape.choose(3, Family::Net, "delay"), 1);
        assert_eq!(tape.taken().to_string(), "choose net delay#0 = 1\n");
    }
}
