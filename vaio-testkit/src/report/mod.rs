//! What a failure prints and leaves behind: the broken promise, a timeline, where the data went,
//! the plan, and the command that replays it.
//!
//! ```text
//! plan -> record -> Recording -> text   (terminal, .txt)
//!                            '-> html   (.html)
//!                            '-> events (.jsonl)
//! ```
//! Recording runs the plan again; the other steps are pure. Invariant: nothing that goes wrong
//! here hides the failure itself.

mod artifacts;
mod chapter;
mod content;
mod cut;
mod events;
mod html;
mod lanes;
mod lines;
mod picture;
mod record;
mod story;
mod text;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use artifacts::{Artifacts, Paths};
pub use events::events;
pub use html::{ROWS_MAX, html};
pub(crate) use record::record_script;
pub use record::{Chapter, Crash, LowerIo, Recording, Row, Undecided, What, record};
pub use story::{Place, Told};
pub use text::{Around, LINES_MAX, PLAN_MAX, TOLD_MAX, WIDTH, text};

use crate::{
    Subject,
    conformance::{Caller, Found},
};

/// The text of a failed case; its plan, page, event log and this text are written as files on the
/// way.
pub fn failed(subject: &Subject, name: &str, caller: &Caller, found: &Found) -> String {
    let artifacts = Artifacts::from_env(caller.folder);
    failed_in(&artifacts, subject, name, caller, found)
}

/// As [`failed`], with the files where `artifacts` says.
pub fn failed_in(
    artifacts: &Artifacts,
    subject: &Subject,
    name: &str,
    caller: &Caller,
    found: &Found,
) -> String {
    let short = |replay: &str| {
        format!(
            "{} BROKEN BY {}   case {name}\n{}\n\nreplay:\n  {replay}\n",
            found.broken.rule,
            subject.name(),
            found.broken
        )
    };
    let command = command(caller);
    let (key, replay) = match (&found.failure, found.seed) {
        (Some(failure), _) => (failure.plan.to_string(), None),
        (None, Some(seed)) => (
            seed.to_string(),
            Some(format!("VAIO_SEED={seed} {command}")),
        ),
        (None, None) => return short(&command),
    };
    let paths = artifacts.paths(name, caller.test, &key);
    let with_plan = || {
        format!(
            "VAIO_PLAN={} {command}",
            quoted(&paths.plan.to_string_lossy())
        )
    };
    let has_plan = found.failure.is_some();
    let files = paths.all().into_iter().skip(usize::from(!has_plan));
    let around = Around {
        before: has_plan.then_some(found.was),
        replay: replay.unwrap_or_else(with_plan),
        files: files.map(|path| path.display().to_string()).collect(),
    };
    let mut problems = Vec::new();
    if has_plan {
        // First of all: what comes next may fail.
        problems.extend(artifacts.write(&paths.plan, &key));
    }
    let bare = || {
        let plan = if has_plan { key.as_str() } else { "" };
        format!("{}\n{plan}", short(&around.replay))
    };
    let recorded = catch_unwind(AssertUnwindSafe(|| match &found.failure {
        Some(failure) => record(&found.lab, &failure.plan),
        None => found.recording.as_deref().cloned(),
    }));
    let mut said = match recorded {
        Ok(Some(mut recording)) => {
            name.clone_into(&mut recording.case);
            let said = text(&recording, &around);
            problems.extend(artifacts.write(&paths.events, &events(&recording)));
            problems.extend(artifacts.write(&paths.page, &html(&recording, &around)));
            said
        }
        Ok(None) => {
            let why = "no timeline: run again, it does not fail; the filter is not deterministic";
            problems.push(why.to_owned());
            bare()
        }
        Err(_) => {
            problems.push("the timeline could not be made".to_owned());
            bare()
        }
    };
    problems.extend(artifacts.write(&paths.text, &said));
    for problem in problems {
        said.push_str("note: ");
        said.push_str(&problem);
        said.push('\n');
    }
    said
}

/// `cargo test -p package module::group::case -- --exact --nocapture`.
fn command(caller: &Caller) -> String {
    // The path of a test as its binary knows it has no crate in front.
    let test = caller
        .test
        .split_once("::")
        .map_or(caller.test, |(_, test)| test);
    format!(
        "cargo test -p {} {test} -- --exact --nocapture",
        caller.package
    )
}

/// As a POSIX shell reads it back.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,".contains(c);
    if text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_names_the_test_as_its_binary_does() {
        let caller = Caller {
            known_failures: &[],
            package: "my-cache",
            folder: ".",
            test: "conformance::my_cache::crash::drop_one",
        };
        assert_eq!(
            command(&caller),
            "cargo test -p my-cache my_cache::crash::drop_one -- --exact --nocapture"
        );
    }

    #[test]
    fn path_with_blanks_is_quoted() {
        assert_eq!(quoted("/a/b-1.vaio"), "/a/b-1.vaio");
        assert_eq!(quoted("/a b/it's"), "'/a b/it'\\''s'");
    }
}
