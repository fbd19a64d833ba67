//! [`Swarm`]: which families of choices a random run uses, and how often. A run that mixes
//! everything hides bugs that need much of one thing and none of another.

use std::fmt;

use super::{FAMILIES, Family, source::SplitMix};

/// How rare the choices of each family are in one run. Prints as text that a person can read
/// (`op=1 schedule=1/8 event=1 kick=off ...`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swarm {
    one_in: [u32; FAMILIES],
    names: Option<u64>,
}

impl Default for Swarm {
    /// Everything, always.
    fn default() -> Self {
        Self {
            one_in: [1; FAMILIES],
            names: None,
        }
    }
}

impl Swarm {
    /// A random subset: schedule, event, kick, fault and net are off, rare or common, and of the
    /// names in kick and fault (each `buggify` point, each kind of fault) about half are off.
    /// Operations, crashes and entropy stay as they are.
    pub fn random(seed: u64) -> Self {
        let mut random = SplitMix::new(seed ^ 0x0073_7761_726d);
        let mut swarm = Self::default();
        for (family, rates) in [
            (Family::Schedule, [0, 1, 4, 16]),
            (Family::Event, [0, 1, 2, 8]),
            (Family::Kick, [0, 2, 8, 32]),
            (Family::Fault, [0, 4, 16, 64]),
            (Family::Net, [0, 1, 4, 16]),
        ] {
            swarm.one_in[family as usize] = rates[random.below(4) as usize];
        }
        swarm.names = Some(random.next());
        swarm
    }

    /// Sets how rare a family is: one choice in `one_in` is drawn, the others are 0; 0 switches it
    /// off.
    #[must_use]
    pub fn with(mut self, family: Family, one_in: u32) -> Self {
        self.one_in[family as usize] = one_in;
        self
    }

    /// How rare a family is; 0 if it is off.
    pub fn one_in(&self, family: Family) -> u32 {
        self.one_in[family as usize]
    }

    /// How rare one name of a family is.
    pub(super) fn one_in_of(&self, family: Family, name: &str) -> u32 {
        let is_off = match (self.names, family) {
            (Some(salt), Family::Kick | Family::Fault) => {
                let hash = super::hash_text(name) ^ salt;
                SplitMix::new(hash).below(2) == 1
            }
            _ => false,
        };
        if is_off { 0 } else { self.one_in(family) }
    }
}

impl fmt::Display for Swarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (before, family) in Family::ALL.into_iter().enumerate() {
            let space = if before == 0 { "" } else { " " };
            match self.one_in(family) {
                0 => write!(f, "{space}{family}=off")?,
                1 => write!(f, "{space}{family}=1")?,
                rare => write!(f, "{space}{family}=1/{rare}")?,
            }
        }
        if let Some(salt) = self.names {
            write!(f, " names={salt:016x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_switch_families_and_names_on_and_off() {
        let count =
            |is: &dyn Fn(&Swarm) -> bool| (0..200).filter(|seed| is(&Swarm::random(*seed))).count();
        let faultless = count(&|swarm| swarm.one_in(Family::Fault) == 0);
        assert!((20..80).contains(&faultless), "{faultless}");
        let unnamed = count(&|swarm| {
            swarm.one_in(Family::Fault) > 0 && swarm.one_in_of(Family::Fault, "eio") == 0
        });
        assert!((40..120).contains(&unnamed), "{unnamed}");
        assert_eq!(count(&|swarm| swarm.one_in(Family::Op) == 1), 200);
    }

    #[test]
    fn options_print_in_words() {
        let swarm = Swarm::default().with(Family::Kick, 8).with(Family::Net, 0);
        assert_eq!(
            swarm.to_string(),
            "op=1 schedule=1 event=1 kick=1/8 fault=1 crash=1 entropy=1 net=off"
        );
    }
}
