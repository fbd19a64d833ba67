//! [`Plan`]: everything that makes a run what it is, as text.
//!
//! A plan is what a failure is saved as, what is replayed, and what the shrinker makes smaller. It
//! holds the guest's operations, where crashes come, and the choices that were not benign, by
//! name: an edit of the filter that does not touch those names leaves the plan valid.
//!
//! ```text
//! vaio-plan 1
//! case crash::drop_one
//! scale tiny
//! blocks 4
//! depth 1
//! schedule fifo
//! op write 0 1
//! op flush
//! crash power 7
//! op idle
//! end cache: keep w3
//! choose kick timer#2 = 1
//! ```
//! `crash KIND N` ends an era after its Nth boundary (a completion below, or an answer to the
//! guest), `crash KIND end` after its operations; `crash KIND N SPEC` says what survives, else the
//! choices do. `end` says which crash
//! state of the last era failed.

use std::{fmt, fmt::Write as _, str::FromStr};

use crate::{Choices, GuestOp, Scale, disk::CrashSpec, sim::Schedule};

/// Most operations of a plan.
pub const OPS_MAX: usize = 10_000;
/// Most eras of a plan.
pub const ERAS_MAX: usize = 64;
/// Most guest IOs in flight at once.
pub const DEPTH_MAX: usize = 64;

/// How a host dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrashKind {
    /// Power fails: what the lower devices had not made durable may be lost.
    Power,
    /// The process is killed: what the lower devices acknowledged stays, as volatile as before.
    Kill,
}

impl CrashKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Power => "power",
            Self::Kill => "kill",
        }
    }
}

/// A crash at the end of an era.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// What dies.
    pub kind: CrashKind,
    /// After how many boundaries of the era; at its end if it has fewer.
    pub after: u32,
    /// What survives; `None`: the choices decide.
    pub spec: Option<CrashSpec>,
}

impl Crash {
    /// For `after`: when the era has done its operations.
    pub const AT_END: u32 = u32::MAX;
}

/// From one opening of the disk to its crash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Era {
    /// What the guest does.
    pub ops: Vec<GuestOp>,
    /// How it ends; `None` for the last era.
    pub crash: Option<Crash>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The case that made it: `group::name`.
    pub case: String,
    /// Size of the filter.
    pub scale: Scale,
    /// Logical blocks of the guest's disk.
    pub blocks: u64,
    /// Guest IOs in flight at once, 1 to [`DEPTH_MAX`].
    pub depth: usize,
    /// How the next task is picked.
    pub schedule: Schedule,
    /// At least one.
    pub eras: Vec<Era>,
    /// The crash state of the last era that failed.
    pub end: Option<CrashSpec>,
    /// Every other choice that was not benign.
    pub choices: Choices,
}

impl Plan {
    /// A benign run of `ops`, FIFO.
    pub fn new(case: &str, scale: Scale, blocks: u64, depth: usize, ops: Vec<GuestOp>) -> Self {
        Self {
            case: case.to_owned(),
            scale,
            blocks,
            depth,
            schedule: Schedule::Fifo,
            eras: vec![Era { ops, crash: None }],
            end: None,
            choices: Choices::new(),
        }
    }

    /// Guest operations in all eras.
    pub fn ops(&self) -> usize {
        self.eras.iter().map(|era| era.ops.len()).sum()
    }

    /// Crashes, the one of the last era included if there is one.
    pub fn crashes(&self) -> usize {
        let within = self.eras.iter().filter(|era| era.crash.is_some()).count();
        within + usize::from(self.end.is_some())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "vaio-plan 1\ncase {}", self.case)?;
        let scale = match self.scale {
            Scale::Tiny => "tiny",
            Scale::Small => "small",
        };
        writeln!(
            f,
            "scale {scale}\nblocks {}\ndepth {}",
            self.blocks, self.depth
        )?;
        match self.schedule {
            Schedule::Fifo => writeln!(f, "schedule fifo")?,
            Schedule::Random => writeln!(f, "schedule random")?,
            Schedule::Pct { depth } => writeln!(f, "schedule pct {depth}")?,
        }
        for era in &self.eras {
            for op in &era.ops {
                writeln!(f, "op {op}")?;
            }
            if let Some(crash) = &era.crash {
                write!(f, "crash {} ", crash.kind.name())?;
                match crash.after {
                    Crash::AT_END => f.write_str("end")?,
                    after => write!(f, "{after}")?,
                }
                match &crash.spec {
                    Some(spec) => writeln!(f, " {spec}")?,
                    None => f.write_char('\n')?,
                }
            }
        }
        if let Some(end) = &self.end {
            writeln!(f, "end {end}")?;
        }
        write!(f, "{}", self.choices)
    }
}

/// A line of a plan that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("plan: {reason}, line={line}")]
pub struct PlanError {
    /// Number of the line; the first is 1.
    pub line: usize,
    /// What is wrong and what to write instead.
    pub reason: String,
}

impl FromStr for Plan {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let mut plan = Self::new("", Scale::Tiny, 4, 1, Vec::new());
        let mut choices = String::new();
        let mut has_head = false;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            // Choices are parsed at the end, all at once; the lines of others are kept empty, so
            // that an error names the right one.
            let is_choice = line.starts_with("choose ");
            choices.push_str(if is_choice { line } else { "" });
            choices.push('\n');
            if line.is_empty() || line.starts_with('#') || is_choice {
                continue;
            }
            let wrong = |reason: String| PlanError {
                line: index + 1,
                reason,
            };
            if !has_head {
                if line != "vaio-plan 1" {
                    return Err(wrong(
                        "not a plan of version 1, begin with `vaio-plan 1`".into(),
                    ));
                }
                has_head = true;
                continue;
            }
            plan.line(line).map_err(wrong)?;
        }
        let end = PlanError {
            line: text.lines().count(),
            reason: "no `vaio-plan 1` line".into(),
        };
        if !has_head {
            return Err(end);
        }
        plan.choices = choices
            .parse()
            .map_err(|error: crate::ChoicesError| PlanError {
                line: error.line,
                reason: error.reason,
            })?;
        Ok(plan)
    }
}

impl Plan {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim();
        let number = |max: u64| {
            let value: u64 = rest
                .parse()
                .map_err(|_| format!("{word} is a number, text={rest}"))?;
            match value {
                0 => Err(format!("{word} is at least 1")),
                value if value > max => Err(format!("{word} is at most {max}, value={value}")),
                value => Ok(value),
            }
        };
        match word {
            "case" => rest.clone_into(&mut self.case),
            "scale" => {
                self.scale = match rest {
                    "tiny" => Scale::Tiny,
                    "small" => Scale::Small,
                    _ => return Err(format!("scale is tiny or small, text={rest}")),
                }
            }
            "blocks" => self.blocks = number(1 << 20)?,
            "depth" => {
                let depth = number(DEPTH_MAX as u64)?;
                self.depth = usize::try_from(depth).map_err(|error| error.to_string())?;
            }
            "schedule" => self.schedule = schedule(rest)?,
            "op" => {
                let op: GuestOp = rest.parse().map_err(|error| format!("{error}"))?;
                if self.ops() >= OPS_MAX {
                    return Err(format!("a plan has at most {OPS_MAX} operations"));
                }
                self.last_era().ops.push(op);
            }
            "crash" => self.crash_line(rest)?,
            "end" => self.end = Some(rest.parse().map_err(|error| format!("{error}"))?),
            _ => return Err(format!("unknown word {word}")),
        }
        Ok(())
    }

    fn last_era(&mut self) -> &mut Era {
        self.eras.last_mut().expect("a plan has an era")
    }

    fn crash_line(&mut self, rest: &str) -> Result<(), String> {
        const SHAPE: &str = "write `crash power|kill BOUNDARY|end [SPEC]`";
        let mut words = rest.splitn(3, ' ');
        let kind = match words.next() {
            Some("power") => CrashKind::Power,
            Some("kill") => CrashKind::Kill,
            _ => return Err(SHAPE.into()),
        };
        let after = match words.next() {
            Some("end") => Crash::AT_END,
            word => word.and_then(|word| word.parse().ok()).ok_or(SHAPE)?,
        };
        let spec = match words.next() {
            Some(text) => Some(text.parse().map_err(|error| format!("{error}"))?),
            None => None,
        };
        if self.eras.len() >= ERAS_MAX {
            return Err(format!("a plan has at most {ERAS_MAX} eras"));
        }
        self.last_era().crash = Some(Crash { kind, after, spec });
        self.eras.push(Era::default());
        Ok(())
    }
}

fn schedule(text: &str) -> Result<Schedule, String> {
    match text.split_once(' ') {
        None if text == "fifo" => Ok(Schedule::Fifo),
        None if text == "random" => Ok(Schedule::Random),
        Some(("pct", depth)) => {
            let depth = depth.parse().map_err(|_| "write `schedule pct DEPTH`")?;
            Ok(Schedule::Pct { depth })
        }
        _ => Err("schedule is fifo, random or `pct DEPTH`".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "vaio-plan 1\ncase crash::none\nscale small\nblocks 64\ndepth 4\n\
        schedule pct 3\nop write 0 1\nop flush\ncrash power 7\nop write 1 2 fua\n\
        crash kill end cache: keep w1\nop idle\nend cache: keep w3,w5[0..2]\n\
        choose kick timer#2 = 1\n";

    #[test]
    fn text_of_a_plan_reads_back() {
        let plan: Plan = TEXT.parse().unwrap();
        assert_eq!(plan.to_string(), TEXT);
        assert_eq!((plan.ops(), plan.crashes(), plan.eras.len()), (4, 3, 3));
    }

    #[test]
    fn garbage_is_refused_with_its_line() {
        let refused = |text: &str| text.parse::<Plan>().unwrap_err();
        assert_eq!(refused("").line, 0);
        assert_eq!(refused("\nvaio-plan 2").line, 2);
        for (line, word) in [
            ("op fly 1", "operation"),
            ("depth 0", "at least 1"),
            ("depth 65", "at most 64"),
            ("crash power", "BOUNDARY"),
            ("schedule pct", "pct DEPTH"),
            ("choose op a = 1", "#NTH"),
            ("frobnicate", "unknown word"),
        ] {
            let error = refused(&format!("vaio-plan 1\n# note\n{line}"));
            assert_eq!(error.line, 3, "{line}");
            assert!(error.to_string().contains(word), "{line}: {error}");
        }
    }
}
