//! [`Tape`]: the one place where a run's decisions come from.
//!
//! Which operation, which task runs, which IO completes, which fault, what survives a crash: each
//! is `choose(n, family, name)`, a number below `n` where 0 is the most benign. A source gives the
//! values: nothing ([`Tape::benign`]), a seed, a fuzzer's bytes, a saved plan, or an
//! [`Odometer`]. What differs from 0 is written down ([`Tape::taken`]) and replays the run.
//!
//! Invariants: a choice's key is family, name and how often that was asked before, so a choice
//! depends on no choice of another name; with random numbers each family has a stream of its own,
//! so one draw more in one family moves no other family.

mod choices;
mod odometer;
mod source;
mod swarm;

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasherDefault, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use choices::{Choices, ChoicesError, Key};
pub use odometer::Odometer;
use source::Source;
pub(crate) use source::mix;
pub use swarm::Swarm;

/// What a choice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// What the guest does.
    Op,
    /// Which task runs next.
    Schedule,
    /// Which event of the environment happens next.
    Event,
    /// Background work that starts early: timers, `buggify` points.
    Kick,
    /// What goes wrong in a device.
    Fault,
    /// When a crash comes and what survives it.
    Crash,
    /// Identities and nonces.
    Entropy,
    /// What goes wrong between hosts.
    Net,
}

const FAMILIES: usize = 8;

impl Family {
    /// All of them, in the order of the text form.
    pub const ALL: [Self; FAMILIES] = [
        Self::Op,
        Self::Schedule,
        Self::Event,
        Self::Kick,
        Self::Fault,
        Self::Crash,
        Self::Entropy,
        Self::Net,
    ];

    /// Its name in plans.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Op => "op",
            Self::Schedule => "schedule",
            Self::Event => "event",
            Self::Kick => "kick",
            Self::Fault => "fault",
            Self::Crash => "crash",
            Self::Entropy => "entropy",
            Self::Net => "net",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Choices other than 0 that a tape writes down. Beyond it every choice is 0, so that what is
/// written down still replays the run.
pub const TAKEN_MAX: usize = 4 << 20;

/// Names that a small run uses.
const NAMES_USUAL: usize = 32;

/// A run's decisions. Clones share the tape. One run uses a tape from one thread.
#[derive(Clone)]
pub struct Tape {
    shared: Arc<Mutex<Inner>>,
}

/// A name that was looked up once, for choices which are made often. Valid for its tape only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NameId(u32);

impl NameId {
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

struct Inner {
    source: Source,
    swarm: Swarm,
    masked: [bool; FAMILIES],
    names: Vec<Name>,
    /// By hash of family and name, or the next free place after it. Never iterated.
    ids: HashMap<u64, NameId, BuildHasherDefault<Hashed>>,
    plan: Choices,
    taken: Vec<(NameId, u32, u32)>,
    hash: u64,
}

struct Name {
    family: Family,
    text: Arc<str>,
    one_in: u32,
    asked: u32,
    /// What the plan says, by number, last first.
    planned: Vec<(u32, u32)>,
}

impl Tape {
    /// Every choice is 0.
    pub fn benign() -> Self {
        Self::with_source(Source::Benign)
    }

    /// Random numbers. Equal seeds give equal choices to equal questions.
    pub fn random(seed: u64) -> Self {
        Self::with_source(Source::random(seed))
    }

    /// A fuzzer's bytes: one for a choice of up to 256 options, four for a larger one; 0 after the
    /// last byte.
    pub fn bytes(data: &[u8]) -> Self {
        let data = data.into();
        Self::with_source(Source::Bytes { data, at: 0 })
    }

    /// What was written down, 0 for everything else. A value that is out of range by now becomes
    /// the highest one.
    pub fn replay(choices: Choices) -> Self {
        let tape = Self::with_source(Source::Replay);
        tape.lock().plan = choices;
        tape
    }

    fn with_source(source: Source) -> Self {
        Self {
            shared: Arc::new(Mutex::new(Inner {
                source,
                swarm: Swarm::default(),
                masked: [false; FAMILIES],
                names: Vec::with_capacity(NAMES_USUAL),
                ids: HashMap::with_capacity_and_hasher(NAMES_USUAL, BuildHasherDefault::default()),
                plan: Choices::new(),
                taken: Vec::new(),
                hash: 0,
            })),
        }
    }

    /// A number below `n`; 0 is the most benign. `name` says what is decided, in one line of text
    /// without spaces at its ends; it should be stable against edits of the code and order of
    /// other choices (`cache.write`, not `io 17`).
    ///
    /// # Panics
    /// If `n` is 0, or the name cannot be written down.
    pub fn choose(&self, n: u32, family: Family, name: &str) -> u32 {
        let mut inner = self.lock();
        let id = inner.name(family, name);
        inner.choose(n, id)
    }

    /// As `choose(2, ..)`: true is the choice that is not benign.
    pub fn flip(&self, family: Family, name: &str) -> bool {
        self.choose(2, family, name) == 1
    }

    /// Uses only what `swarm` enables. Names that were asked before keep what they had.
    #[must_use]
    pub fn with_swarm(self, swarm: Swarm) -> Self {
        self.lock().swarm = swarm;
        self
    }

    /// What is enabled, for a run's report.
    pub fn swarm(&self) -> Swarm {
        self.lock().swarm.clone()
    }

    /// Makes a family rarer from now on: one choice in `one_in` is drawn, the others are 0; 0
    /// switches it off. Only random tapes heed a number above 1.
    pub fn set_weight(&self, family: Family, one_in: u32) {
        let mut inner = self.lock();
        inner.swarm = inner.swarm.clone().with(family, one_in);
        let Inner { names, swarm, .. } = &mut *inner;
        for name in names.iter_mut().filter(|name| name.family == family) {
            name.one_in = swarm.one_in_of(family, &name.text);
        }
    }

    /// Switches a family off or on again, whatever the source: while it is off its choices are 0
    /// and consume nothing. They are still counted.
    pub fn set_mask(&self, family: Family, is_off: bool) {
        self.lock().masked[family as usize] = is_off;
    }

    /// The choices so far that were not 0.
    pub fn taken(&self) -> Choices {
        let inner = self.lock();
        let choice = |&(id, nth, value): &(NameId, u32, u32)| {
            let name = &inner.names[id.0 as usize];
            let key = Key {
                family: name.family,
                name: Arc::clone(&name.text),
                nth,
            };
            (key, value)
        };
        inner.taken.iter().map(choice).collect()
    }

    /// A hash over every choice so far, those that were 0 included.
    pub fn hash(&self) -> u64 {
        self.lock().hash
    }

    /// Looks a name up for [`choose_named`](Self::choose_named).
    pub(crate) fn name(&self, family: Family, name: &str) -> NameId {
        self.lock().name(family, name)
    }

    pub(crate) fn choose_named(&self, n: u32, id: NameId) -> u32 {
        self.lock().choose(n, id)
    }

    pub(crate) fn text(&self, id: NameId) -> Arc<str> {
        Arc::clone(&self.lock().names[id.0 as usize].text)
    }

    /// The path of an odometer's tape, and whether the run left the path it was given.
    fn wheels(&self) -> (Vec<odometer::Wheel>, bool) {
        match &mut self.lock().source {
            Source::Wheels {
                path,
                at,
                has_diverged,
                ..
            } => {
                // A run that asked less than it was given did not follow its path either.
                let is_short = *at < path.len();
                path.truncate(*at);
                (std::mem::take(path), *has_diverged || is_short)
            }
            _ => (Vec::new(), false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere on the thread leaves no choice half made.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        f.debug_struct("Tape")
            .field("swarm", &inner.swarm)
            .field("taken", &inner.taken.len())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn name(&mut self, family: Family, name: &str) -> NameId {
        let mut key = mix(key_of(name) ^ (family as u64));
        while let Some(id) = self.ids.get(&key) {
            let known = &self.names[id.0 as usize];
            if known.family == family && *known.text == *name {
                return *id;
            }
            key = key.wrapping_add(1);
        }
        assert!(choices::is_name(name), "a name is one trimmed line of text");
        let id = NameId(u32::try_from(self.names.len()).expect("names fit in memory"));
        let text: Arc<str> = name.into();
        self.ids.insert(key, id);
        let mut planned = Vec::new();
        if !self.plan.is_empty() {
            planned = self.plan.of_name(family, &text);
            planned.reverse();
        }
        self.names.push(Name {
            family,
            one_in: self.swarm.one_in_of(family, name),
            text,
            asked: 0,
            planned,
        });
        id
    }

    fn choose(&mut self, n: u32, id: NameId) -> u32 {
        assert!(n > 0, "a choice has at least one option");
        let name = &mut self.names[id.0 as usize];
        let nth = name.asked;
        name.asked = nth.saturating_add(1);
        let mut planned = 0;
        if name.planned.last().is_some_and(|(at, _)| *at == nth) {
            planned = name.planned.pop().map_or(0, |(_, value)| value);
        }
        let is_free = n > 1
            && !self.masked[name.family as usize]
            && name.one_in > 0
            && self.taken.len() < TAKEN_MAX;
        let value = if is_free {
            self.source.draw(n, name.family, name.one_in, planned)
        } else {
            0
        };
        assert!(value < n, "sources stay in range");
        if value != 0 {
            self.taken.push((id, nth, value));
        }
        let step = ((u64::from(id.0) + 1) << 32) | u64::from(value);
        self.hash = (self.hash.rotate_left(5) ^ step).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        value
    }
}

/// A hash of text, the same in every run and on every machine: seeds keep their meaning by it.
/// FNV-1a with a mix at the end.
pub(crate) fn hash_text(text: &str) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(text.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// A quicker one, for look-ups only: words at a time, for names are short and come from the code,
/// not from an adversary.
fn key_of(text: &str) -> u64 {
    let (words, rest) = text.as_bytes().as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let words = words.iter().chain(std::iter::once(&last));
    words.fold(text.len() as u64, |hash, word| {
        mix(hash ^ u64::from_le_bytes(*word))
    })
}

/// The hash of a number that is a hash already.
#[derive(Default)]
pub(crate) struct Hashed(u64);

impl Hasher for Hashed {
    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only numbers are hashed");
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(tape: &Tape) -> Vec<u32> {
        (0..200)
            .map(|n| match n % 3 {
                0 => tape.choose(4, Family::Op, "kind"),
                1 => tape.choose(8, Family::Event, "cache.write"),
                _ => tape.choose(2, Family::Kick, "timer"),
            })
            .collect()
    }

    #[test]
    fn benign_tape_gives_zero_and_writes_nothing_down() {
        let tape = Tape::benign();
        assert!(ask(&tape).iter().all(|value| *value == 0));
        assert!(tape.taken().is_empty());
    }

    #[test]
    fn equal_seeds_give_equal_choices() {
        assert_eq!(ask(&Tape::random(3)), ask(&Tape::random(3)));
        assert_ne!(ask(&Tape::random(3)), ask(&Tape::random(4)));
        let (a, b) = (Tape::random(3), Tape::random(3));
        assert_eq!((ask(&a), a.hash()), (ask(&b), b.hash()));
    }

    #[test]
    fn what_was_taken_replays_the_run() {
        let tape = Tape::random(9);
        let run = ask(&tape);
        let text = tape.taken().to_string();
        let again = Tape::replay(text.parse().unwrap());
        assert_eq!(ask(&again), run);
        assert_eq!(again.taken(), tape.taken());
        assert_eq!(again.hash(), tape.hash());
    }

    #[test]
    fn draws_of_one_family_move_no_other() {
        let (a, b) = (Tape::random(5), Tape::random(5));
        for _ in 0..7 {
            b.choose(100, Family::Fault, "extra");
        }
        assert_eq!(ask(&a), ask(&b));
    }

    #[test]
    fn plan_keeps_its_meaning_when_other_names_come_and_go() {
        let plan: Choices = "choose event write#1 = 2\n".parse().unwrap();
        let tape = Tape::replay(plan);
        assert_eq!(tape.choose(4, Family::Event, "read"), 0);
        assert_eq!(tape.choose(4, Family::Event, "write"), 0);
        assert_eq!(tape.choose(4, Family::Op, "write"), 0);
        assert_eq!(tape.choose(4, Family::Event, "write"), 2);
        assert_eq!(tape.choose(4, Family::Event, "write"), 0);
    }

    #[test]
    fn planned_value_out_of_range_becomes_the_highest() {
        let tape = Tape::replay("choose op a#0 = 9\nchoose op a#1 = 9".parse().unwrap());
        assert_eq!(tape.choose(3, Family::Op, "a"), 2);
        assert_eq!(tape.choose(1, Family::Op, "a"), 0);
        assert_eq!(tape.taken().to_string(), "choose op a#0 = 2\n");
    }

    #[test]
    fn masked_family_is_benign_and_still_counted() {
        let tape = Tape::replay("choose kick a#1 = 1\nchoose kick a#2 = 1".parse().unwrap());
        tape.set_mask(Family::Kick, true);
        assert!(!tape.flip(Family::Kick, "a") && !tape.flip(Family::Kick, "a"));
        tape.set_mask(Family::Kick, false);
        assert!(tape.flip(Family::Kick, "a"));
    }

    #[test]
    fn weight_makes_a_family_rare() {
        let tape = Tape::random(1);
        tape.choose(2, Family::Kick, "early");
        tape.set_weight(Family::Kick, 16);
        let hits = (0..3200)
            .filter(|_| tape.flip(Family::Kick, "early"))
            .count();
        assert!((60..140).contains(&hits), "1 in 32, got {hits} of 3200");
        tape.set_weight(Family::Kick, 0);
        assert!((0..100).all(|_| !tape.flip(Family::Kick, "early")));
    }

    #[test]
    fn bytes_decide_in_order() {
        let tape = Tape::bytes(&[3, 1]);
        assert_eq!(tape.choose(8, Family::Op, "a"), 3);
        assert_eq!(tape.choose(1, Family::Op, "a"), 0);
        assert_eq!(tape.choose(2, Family::Fault, "b"), 1);
        assert_eq!(tape.choose(8, Family::Op, "a"), 0);
    }
}
