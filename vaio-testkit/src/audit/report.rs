//! [`AuditReport`]: which mutants were killed, by what, and which survived.

use std::fmt;

use super::{Mutant, Site};

/// What came of a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A case failed.
    Killed {
        /// The case.
        case: &'static str,
        /// The rule that was broken.
        rule: String,
    },
    /// No case failed.
    Survived {
        /// Cases that were run: all that reach the site.
        cases: u32,
    },
    /// No case failed, and that is accepted.
    Explained {
        /// Why.
        why: String,
    },
    /// No case gives it a chance: none makes the IO of this site fail. Says something about the
    /// cases, nothing about the filter; not in the score.
    NotTried,
}

/// A mutant of a call site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// The call site.
    pub site: Site,
    /// IO of the site in all cases, without mutants.
    pub ios: u64,
    /// What was done to it.
    pub mutant: Mutant,
    /// What came of it.
    pub verdict: Verdict,
}

impl AuditRow {
    /// The survivor in words.
    fn told(&self) -> String {
        let (op, place) = (self.site.op, self.site.place());
        let of = match self.mutant {
            Mutant::Drop => format!("{op} at {place}"),
            Mutant::NoFua => format!("fua of the {op} at {place}"),
            Mutant::Early => format!("waiting for the {op} at {place}"),
            Mutant::Swap => format!("that the {op} at {place} comes before what follows"),
            Mutant::ErrorIgnored => format!("the error of the {op} at {place}"),
        };
        format!("{of} is not needed or not tested")
    }
}

/// A survivor that is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// A part of the site's [`label`](Site::label), such as `src/log.rs:commit`, or of its text
    /// with lines.
    pub site: String,
    /// Only this mutant; `None`: any.
    pub mutant: Option<Mutant>,
    /// Why it may survive.
    pub why: String,
}

impl Explained {
    /// An explanation. `site` may end in a space and the name of a mutant, which is the only one
    /// that is then meant: `src/log.rs:commit early`.
    pub fn new(site: &str, why: &str) -> Self {
        let (part, mutant) = match site.rsplit_once(' ') {
            Some((part, last)) => match Mutant::of_name(last) {
                Some(mutant) => (part, Some(mutant)),
                None => (site, None),
            },
            None => (site, None),
        };
        Self {
            site: part.to_owned(),
            mutant,
            why: why.to_owned(),
        }
    }

    fn fits(&self, row: &AuditRow) -> bool {
        let is_site =
            row.site.label().contains(&self.site) || row.site.to_string().contains(&self.site);
        is_site && self.mutant.is_none_or(|mutant| mutant == row.mutant)
    }
}

/// What an audit found. Its text is for people; the same audit gives the same text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditReport {
    /// The filter.
    pub subject: &'static str,
    /// Every mutant, by site.
    pub rows: Vec<AuditRow>,
    /// Cases that were there to kill.
    pub cases: usize,
    /// Cases that fail without any mutant, with the rule: they killed nothing.
    pub broken: Vec<(&'static str, String)>,
    /// IO below that no frame of the filter waits for: the framework's own.
    pub of_framework: u64,
    /// Whether the binary says in which lines its functions are.
    pub has_lines: bool,
    /// Cases that were run with a mutant.
    pub cases_run: u64,
    /// Explanations that fit no survivor.
    pub stale: Vec<Explained>,
}

impl AuditReport {
    /// Accepts the survivors that an explanation fits.
    pub(super) fn explain(&mut self, explained: &[Explained]) {
        let mut used = vec![false; explained.len()];
        for row in &mut self.rows {
            if !matches!(row.verdict, Verdict::Survived { .. }) {
                continue;
            }
            let Some(number) = explained.iter().position(|one| one.fits(row)) else {
                continue;
            };
            used[number] = true;
            let why = explained[number].why.clone();
            row.verdict = Verdict::Explained { why };
        }
        let stale = explained.iter().zip(used).filter(|(_, used)| !used);
        self.stale = stale.map(|(one, _)| one.clone()).collect();
    }

    /// Mutants that survived and are not explained.
    pub fn survivors(&self) -> impl Iterator<Item = &AuditRow> {
        let survived = |row: &&AuditRow| matches!(row.verdict, Verdict::Survived { .. });
        self.rows.iter().filter(survived)
    }

    /// Mutants killed, and mutants that could have been: all but those that are explained and
    /// those that no case gave a chance.
    pub fn score(&self) -> (usize, usize) {
        let killed = |row: &&AuditRow| matches!(row.verdict, Verdict::Killed { .. });
        let killed = self.rows.iter().filter(killed).count();
        (killed, killed + self.survivors().count())
    }

    /// Whether a test may pass: sites were found, nothing survived unexplained, every explanation
    /// was needed, and every case passes without a mutant.
    pub fn is_accepted(&self) -> bool {
        !self.rows.is_empty()
            && self.survivors().next().is_none()
            && self.stale.is_empty()
            && self.broken.is_empty()
    }

    /// What keeps the report from being accepted, one line each.
    pub fn complaints(&self) -> String {
        let mut lines = Vec::new();
        if self.rows.is_empty() {
            lines.push(self.nothing_found().to_owned());
        }
        for (case, rule) in &self.broken {
            lines.push(format!("{case} fails without a mutant, rule={rule}"));
        }
        for row in self.survivors() {
            lines.push(format!("{}\n  {}", row.told(), row.site));
        }
        for one in &self.stale {
            let any = |mutant: Mutant| mutant.name();
            lines.push(format!(
                "explained, but nothing survives there; take it off the list, site={} mutant={}",
                one.site,
                one.mutant.map_or("any", any)
            ));
        }
        lines.join("\n")
    }

    fn nothing_found(&self) -> &'static str {
        if self.of_framework > 0 && !self.has_lines {
            "no call site was found: the binary has no symbols; build it with \
             debug = \"line-tables-only\" and without strip"
        } else {
            "no call site was found: the filter does no io on its lower devices in these cases"
        }
    }

    fn count(&self, of: impl Fn(&Verdict) -> bool) -> usize {
        self.rows.iter().filter(|row| of(&row.verdict)).count()
    }
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "barrier audit of {}: {} mutants, {} cases",
            self.subject,
            self.rows.len(),
            self.cases
        )?;
        if !self.has_lines && !self.rows.is_empty() {
            writeln!(
                f,
                "no debug info: sites are functions without lines, and functions that were \
                 inlined are missing; build with debug = \"line-tables-only\""
            )?;
        }
        let mut last = None;
        for row in &self.rows {
            if last != Some(&row.site) {
                writeln!(
                    f,
                    "\n{} of {}, {} times",
                    row.site.op, row.site.device, row.ios
                )?;
                for (number, place) in row.site.path.iter().enumerate() {
                    let by = if number == 0 { "at" } else { "for" };
                    writeln!(f, "  {by:3} {place}")?;
                }
                last = Some(&row.site);
            }
            write!(f, "    {:14} ", row.mutant.name())?;
            match &row.verdict {
                Verdict::Killed { case, rule } => writeln!(f, "killed by {case} ({rule})")?,
                Verdict::Survived { cases } => writeln!(f, "SURVIVED {cases} cases")?,
                Verdict::Explained { why } => writeln!(f, "survived as explained: {why}")?,
                Verdict::NotTried => writeln!(f, "not tried: no case makes it fail")?,
            }
        }
        let complaints = self.complaints();
        if !complaints.is_empty() {
            writeln!(f, "\n{complaints}")?;
        }
        let (killed, all) = self.score();
        writeln!(
            f,
            "\ndurability mutation score: {killed} of {all}, explained={} not_tried={}",
            self.count(|verdict| matches!(verdict, Verdict::Explained { .. })),
            self.count(|verdict| *verdict == Verdict::NotTried),
        )?;
        writeln!(f, "figure audit_mutants {} mutants", self.rows.len())?;
        write!(f, "figure audit_survivors {} mutants", all - killed)
    }
}

#[cfg(test)]
mod tests {
    use vaio_core::OpKind;

    use super::{super::Place, *};

    fn row(function: &str, mutant: Mutant, verdict: Verdict) -> AuditRow {
        let place = |line, function: &str| Place {
            file: "src/log.rs".into(),
            line,
            column: 9,
            function: function.into(),
        };
        AuditRow {
            site: Site {
                path: vec![place(214, function), place(20, "Cache::io")],
                device: "cache".into(),
                op: OpKind::Flush,
            },
            ios: 7,
            mutant,
            verdict,
        }
    }

    fn report(explained: &[(&str, &str)]) -> AuditReport {
        let killed = Verdict::Killed {
            case: "crash::none_kept",
            rule: "lost-write".into(),
        };
        let survived = || Verdict::Survived { cases: 5 };
        let mut report = AuditReport {
            subject: "filter",
            rows: vec![
                row("Log::commit", Mutant::Drop, killed),
                row("Log::commit", Mutant::Early, survived()),
                row("Log::trim", Mutant::Drop, survived()),
                row("Log::trim", Mutant::ErrorIgnored, Verdict::NotTried),
            ],
            cases: 5,
            broken: Vec::new(),
            of_framework: 0,
            has_lines: true,
            cases_run: 16,
            stale: Vec::new(),
        };
        let explained: Vec<_> = explained
            .iter()
            .map(|(site, why)| Explained::new(site, why))
            .collect();
        report.explain(&explained);
        report
    }

    #[test]
    fn survivors_are_named_by_line_and_function() {
        let report = report(&[]);
        let told = report.complaints();
        let waiting = "waiting for the flush at src/log.rs:214:9 (Log::commit) is not needed or";
        let flush = "\nflush at src/log.rs:214:9 (Log::trim) is not needed or not tested";
        assert!(told.starts_with(waiting), "{told}");
        assert!(told.contains(flush), "{told}");
        assert_eq!(report.score(), (1, 3));
        assert!(!report.is_accepted());
    }

    #[test]
    fn survivors_that_are_all_explained_are_accepted() {
        let report = report(&[
            ("src/log.rs:commit early", "the caller waits"),
            ("log.rs:trim < src/log.rs:io", "saves work only"),
        ]);
        assert!(report.is_accepted(), "{report}");
        assert_eq!(report.score(), (1, 1));
        assert!(
            report
                .to_string()
                .contains("survived as explained: saves work only")
        );
    }

    #[test]
    fn explanation_of_another_mutant_explains_nothing_and_is_stale() {
        let report = report(&[("src/log.rs:commit swap", "?"), ("src/log.rs:trim", "?")]);
        assert_eq!(report.survivors().count(), 1);
        let told = report.complaints();
        let stale = "take it off the list, site=src/log.rs:commit mutant=swap";
        assert!(told.contains(stale), "{told}");
    }

    #[test]
    fn report_without_sites_says_why_and_is_not_accepted() {
        let mut report = report(&[]);
        report.rows.clear();
        (report.of_framework, report.has_lines) = (9, false);
        assert!(!report.is_accepted());
        assert!(report.complaints().contains("no symbols"));
    }
}
