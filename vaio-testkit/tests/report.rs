//! What a failure prints and leaves: bugs of the zoo, recorded and shown; and the command that it
//! prints, carried out.

use std::{fs, process::Command, sync::LazyLock};

use vaio_core::{OpKind, Promise};
use vaio_testkit::{
    GuestOp, Subject,
    conformance::{self, Budget, Caller, Found, Said, run_case},
    disk::{Fault, Rule},
    explore::{
        FaultBelow, How, Lab, On, Plan,
        campaign::{Effort, exhaustive},
        enumerate::Space,
        replay,
    },
    report::{
        Around, Artifacts, ROWS_MAX, Recording, WIDTH, events, failed_in, html, record, text,
    },
    twins::write_back::WriteBackFactory,
    zoo::Bug,
};

fn subject(bug: Bug, promise: Promise) -> Subject {
    Subject::new(WriteBackFactory::tiny(promise).with_bug(bug))
}

/// A benign plan of one era.
fn plan(ops: &str) -> Plan {
    let head =
        "vaio-plan 1\ncase crash::any_moment\nscale tiny\nblocks 1\ndepth 1\nschedule fifo\n";
    format!("{head}{ops}").parse().expect("a plan")
}

fn recorded(bug: Bug, ops: &str) -> Recording {
    let lab = Lab::new(subject(bug, Promise::AtAck));
    record(&lab, &plan(ops)).expect("the plan fails")
}

/// A write that overtakes the destage of the one before: found among schedules with kicks.
fn clears_newer_dirty() -> Recording {
    static FOUND: LazyLock<Recording> = LazyLock::new(find_newer_dirty);
    FOUND.clone()
}

fn find_newer_dirty() -> Recording {
    let mut lab = Lab::new(subject(Bug::ClearsNewerDirty, Promise::AtFlush));
    lab.checks.tiers.clear();
    let write = GuestOp::Write {
        block: 0,
        count: 1,
        fua: false,
    };
    let mut space = Space::new("order::schedules", 1);
    space.alphabet = vec![write];
    space.ops_max = 2;
    space.schedules = 400;
    let verdict = exhaustive(&lab, &space, Effort::runs(2000));
    let failure = verdict.failure.expect("the bug is found");
    record(&lab, &failure.plan).expect("the plan fails")
}

/// Numbers that start again after a recovery: only a second era shows it.
fn sequence_reset() -> Recording {
    static FOUND: LazyLock<Recording> = LazyLock::new(find_sequence_reset);
    FOUND.clone()
}

fn find_sequence_reset() -> Recording {
    let lab = Lab::new(subject(Bug::SequenceReset, Promise::AtAck));
    let write = GuestOp::Write {
        block: 0,
        count: 1,
        fua: false,
    };
    let mut space = Space::new("crash::any_moment", 1);
    space.alphabet = vec![write, GuestOp::Flush, GuestOp::Idle];
    space.depths = vec![1];
    space.schedules = 4;
    let verdict = exhaustive(&lab, &space, Effort::runs(2000));
    let failure = verdict.failure.expect("the bug is found");
    record(&lab, &failure.plan).expect("the plan fails")
}

fn around() -> Around {
    Around {
        before: Some((37, 4)),
        replay: "VAIO_PLAN=a.vaio cargo test -p my-cache".into(),
        files: vec!["a.html".into()],
    }
}

#[track_caller]
fn assert_tells(text: &str, facts: &[&str]) {
    for fact in facts {
        assert!(text.contains(fact), "no `{fact}` in\n{text}");
    }
}

#[test]
fn text_of_a_lost_write_tells_where_its_data_went() {
    let said = text(
        &recorded(Bug::SecondWriteNotLogged, "op write 0 1\nop write 0 1\n"),
        &around(),
    );
    assert_tells(
        &said,
        &[
            "lost-write BROKEN BY twin-write-back   case crash::any_moment",
            "(promise: durable at ack)",
            "block 0 reads #1 `write 0 1` (submitted at 1, acked at 2)",
            "is guaranteed by its ack",
            "shrunk: 37 ops, 4 crashes -> 2 ops, 1 crash\n",
            "w2 write [1..3] = meta",
            "flush; ok, durable: w2",
            "CRASH: power fails after boundary",
            "every acknowledged write below was durable: nothing is lost",
            "after the crash: a new process recovers",
            "read [0..1] = meta(w1)",
            "#3 ok = #1 <== ILLEGAL",
            "  #2 write 0 1: acked at t=4\n      never written to any lower device\n",
            "      cache w2 [1..3] durable, read again after the crash\n",
            "plan:\n  vaio-plan 1\n",
            "replay:\n  VAIO_PLAN=a.vaio cargo test -p my-cache\n",
            "files:\n  a.html\n",
        ],
    );
}

#[test]
fn timeline_is_ascii_with_aligned_lanes_of_bounded_width() {
    for recording in [sequence_reset(), clears_newer_dirty()] {
        let said = text(&recording, &around());
        assert!(said.is_ascii(), "{said}");
        let bars = |line: &str| -> Vec<usize> {
            line.char_indices()
                .filter(|(_, c)| *c == '|')
                .map(|(at, _)| at)
                .collect()
        };
        let title = said.lines().find(|line| line.contains("| filter")).unwrap();
        let lanes = bars(title);
        assert_eq!(lanes.len(), 2 + recording.disks.len());
        let mut rows = 0;
        for line in said.lines() {
            assert!(line.len() <= WIDTH, "{} columns: {line}", line.len());
            if line.contains('|') {
                assert!(lanes.starts_with(&bars(line)), "{line}\n{title}");
                rows += 1;
            }
        }
        assert!(rows > 20, "{said}");
    }
}

#[test]
fn second_era_is_told_as_a_chapter_of_its_own() {
    let recording = sequence_reset();
    let crashes: Vec<_> = recording
        .chapters
        .iter()
        .map(|c| c.crash.is_some())
        .collect();
    assert_eq!(crashes, [true, true, false]);
    let said = text(&recording, &around());
    assert_tells(
        &said,
        &[
            ", 1 crash, then a second era\n",
            "-- after the second crash: a new process recovers",
        ],
    );
}

#[test]
fn failure_that_the_recovery_shows_is_not_blamed_on_a_crash_within_it() {
    let mut lab = Lab::new(subject(Bug::AckBeforeFlush, Promise::AtAck));
    lab.checks.recovery_crash = true;
    lab.checks.second_era = false;
    let recording = record(&lab, &plan("op write 0 1\n")).expect("the plan fails");
    let said = text(&recording, &around());
    assert_tells(&said, &["ILLEGAL"]);
    assert!(!said.contains("within this recovery"), "{said}");
}

#[test]
fn crash_says_what_is_lost_and_what_is_torn() {
    let lost = text(&recorded(Bug::AckBeforeFlush, "op write 0 1\n"), &around());
    assert_tells(
        &lost,
        &[
            "LOST      cache: w",
            "(acked, not flushed)",
            "lost in the crash",
        ],
    );
    let torn = recorded(Bug::NoDataChecksum, "op write 0 1\nop write 0 1\n");
    assert_tells(
        &text(&torn, &around()),
        &[
            "TORN      cache: w3 write [4..6] = meta #2@0",
            "block 4 meta there, block 5 #2@0 lost",
            "not durable, torn by the crash",
        ],
    );
    assert_tells(
        &html(&torn, &around()),
        &[">TORN</b>", "power fails after boundary"],
    );
}

#[test]
fn overlapping_io_is_drawn_from_submission_to_answer() {
    let recording = clears_newer_dirty();
    let said = text(&recording, &around());
    assert_tells(
        &said,
        &["> w1 write [0..1] = #1", "< w1 ok", "backing never written"],
    );
    let page = html(&recording, &around());
    assert_tells(&page, &["ILLEGAL", "w3</b> write", "class=\"tail\""]);
}

#[test]
fn io_that_fails_is_shown_as_failed_and_not_as_decided_by_the_crash() {
    let mut lab = Lab::new(subject(Bug::DestageErrorIgnored, Promise::AtAck));
    let rule = Rule::once(Fault::Error).on(OpKind::Write);
    lab.checks.faults = vec![FaultBelow {
        on: On::Backing,
        how: How::Rule(rule),
    }];
    let recording = record(&lab, &plan("op write 0 1\n")).expect("the plan fails");
    let said = text(&recording, &around());
    assert_tells(
        &said,
        &[
            "w1 write [0..1] = #1;",
            "FAILED",
            "backing w1 [0..1] FAILED: none, some or all",
        ],
    );
    assert!(!said.contains("SURVIVES  backing: w1"), "{said}");
    assert_tells(
        &html(&recording, &around()),
        &[" failed", "<b>w1</b> write [0..1]"],
    );
}

#[test]
fn long_run_is_cut_visibly() {
    let mut recording = recorded(Bug::AckBeforeFlush, "op write 0 1\n");
    let era = &mut recording.chapters[0];
    let rows = era.rows.clone();
    // As if the bug had shown late.
    while era.rows.len() < 2 * ROWS_MAX {
        era.rows.extend(rows.iter().cloned());
    }
    let ops = &mut recording.plan.as_mut().unwrap().eras[0].ops;
    *ops = vec![ops[0]; 300];
    let said = text(&recording, &around());
    assert_tells(
        &said,
        &[
            "lines left out here",
            "more lines in the plan's file",
            "ILLEGAL",
        ],
    );
    assert!(said.lines().count() < 250, "{}", said.lines().count());
    let page = html(&recording, &around());
    assert_balanced(&page);
    assert_tells(&page, &["its last rows of 30"]);
}

#[test]
fn page_is_well_formed_and_needs_nothing_from_elsewhere() {
    for recording in [
        recorded(Bug::SecondWriteNotLogged, "op write 0 1\nop write 0 1\n"),
        sequence_reset(),
        recorded(Bug::AckBeforeFlush, "op write 0 1\n"),
        clears_newer_dirty(),
    ] {
        let mut recording = recording;
        recording.broken.what.push_str("\n  <b> & \"x\"");
        let page = html(&recording, &around());
        assert_balanced(&page);
        for foreign in [
            "http", "src=", "href=", "url(", "@import", "<script", "<link",
        ] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert_tells(
            &page,
            &[
                "prefers-color-scheme: dark",
                "ILLEGAL",
                "VIOLATION",
                "vaio-plan 1",
                "VAIO_PLAN=",
            ],
        );
    }
}

/// Every element is closed, in order; every attribute is quoted; no bare ampersand.
#[track_caller]
fn assert_balanced(page: &str) {
    let body = page
        .strip_prefix("<!DOCTYPE html>")
        .expect("a document type");
    let (style_from, style_to) = (
        body.find("<style>").expect("a style"),
        body.find("</style>").expect("a style"),
    );
    let body = format!("{}{}", &body[..style_from + 7], &body[style_to..]);
    let mut open = Vec::new();
    let mut rest = body.as_str();
    while let Some(at) = rest.find('<') {
        assert_text(&rest[..at]);
        let end = at + rest[at..].find('>').expect("a tag ends");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        let name = tag
            .trim_start_matches('/')
            .split([' ', '/'])
            .next()
            .expect("a name");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "before {rest:.80}");
        } else if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[track_caller]
fn assert_text(text: &str) {
    assert!(!text.contains('>'), "{text}");
    for (at, _) in text.match_indices('&') {
        let known = ["&amp;", "&lt;", "&gt;", "&quot;"];
        assert!(known.iter().any(|k| text[at..].starts_with(k)), "{text}");
    }
}

#[test]
fn events_are_one_object_in_each_line_of_both_worlds() {
    let log = events(&recorded(Bug::AckBeforeFlush, "op write 0 1\n"));
    assert!(
        log.lines()
            .all(|line| line.starts_with("{\"world\":") && line.ends_with('}'))
    );
    assert_tells(
        &log,
        &[
            "\"world\":1",
            "\"kind\":\"submit\",\"text\":\"cache\"",
            "\"task\":\"open\"",
        ],
    );
}

const CALLER: Caller = Caller {
    known_failures: &[],
    package: env!("CARGO_PKG_NAME"),
    folder: env!("CARGO_MANIFEST_DIR"),
    test: concat!(module_path!(), "::broken_filter"),
};

#[test]
fn saved_plan_breaks_the_same_rule() {
    let folder = tempfile::tempdir().unwrap();
    let subject = subject(Bug::SecondWriteNotLogged, Promise::AtAck);
    let lab = Lab::new(subject.clone());
    let failure = replay(&lab, &plan("op write 0 1\nop write 0 1\n"))
        .failure
        .unwrap();
    let found = Found {
        broken: failure.broken.clone(),
        was: (2, 1),
        failure: Some(failure.clone()),
        lab: lab.clone(),
        seed: None,
        recording: None,
    };
    let artifacts = Artifacts::at(folder.path().join("vaio"));
    let case = "crash::any_moment";
    let said = failed_in(&artifacts, &subject, case, &CALLER, &found);
    let paths = artifacts.paths(case, CALLER.test, &failure.plan.to_string());
    assert_eq!(
        paths,
        artifacts.paths(case, CALLER.test, &failure.plan.to_string()),
        "names are stable"
    );
    let saved = fs::read_to_string(&paths.plan).unwrap();
    let again = replay(&lab, &saved.parse().unwrap()).failure.unwrap();
    assert_eq!(again.broken, failure.broken);
    assert_eq!(again.plan, failure.plan);
    assert_eq!(fs::read_to_string(&paths.text).unwrap(), said);
    assert_balanced(&fs::read_to_string(&paths.page).unwrap());
    assert!(fs::metadata(&paths.events).unwrap().len() > 1000);
}

#[test]
fn file_that_cannot_be_written_hides_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let in_the_way = folder.path().join("file");
    fs::write(&in_the_way, "").unwrap();
    let subject = subject(Bug::AckBeforeFlush, Promise::AtAck);
    let lab = Lab::new(subject.clone());
    let failure = replay(&lab, &plan("op write 0 1\n")).failure.unwrap();
    let found = Found {
        broken: failure.broken.clone(),
        was: (1, 1),
        failure: Some(failure),
        lab,
        seed: None,
        recording: None,
    };
    let artifacts = Artifacts::at(&in_the_way);
    let said = failed_in(&artifacts, &subject, "crash::any_moment", &CALLER, &found);
    assert_tells(
        &said,
        &["lost-write BROKEN BY", "ILLEGAL", "note: cannot write"],
    );
}

#[test]
fn failed_script_prints_its_timeline_and_the_seed_that_replays_it() {
    let folder = tempfile::tempdir().unwrap();
    let subject = subject(Bug::FlushDoesNothing, Promise::AtFlush);
    let case = "failover::power_loss";
    let Said::Failed(found) = run_case(&subject, case, &Budget::default()) else {
        panic!("the bug is not found");
    };
    let artifacts = Artifacts::at(folder.path());
    let said = failed_in(&artifacts, &subject, case, &CALLER, &found);
    assert_tells(
        &said,
        &[
            "case failover::power_loss",
            "CRASH: power fails",
            "TORN",
            "ILLEGAL",
            "replay:\n  VAIO_SEED=",
        ],
    );
    assert!(!said.contains("plan:") && !said.contains("note:"), "{said}");
    for line in said.lines().filter(|line| !line.contains('/')) {
        assert!(line.len() <= WIDTH, "{} columns: {line}", line.len());
    }
    let seed = found.seed.unwrap();
    let again = Budget {
        factor: 0.01,
        seed,
        ..Budget::default()
    };
    let Said::Failed(again) = run_case(&subject, case, &again) else {
        panic!("the seed does not replay it");
    };
    assert_eq!(again.broken, found.broken);
}

#[test]
#[ignore = "fails on purpose: replay_command_as_printed_fails_in_the_same_way runs it"]
fn broken_filter() {
    let subject = subject(Bug::SecondWriteNotLogged, Promise::AtAck);
    conformance::check(&subject, "crash::all_kept", &CALLER);
}

#[test]
#[ignore = "plan_that_fails_no_more_is_said_to_pass runs it"]
fn mended_filter() {
    let subject = vaio_testkit::zoo::Twin::WriteBack.subject(Promise::AtAck, None);
    conformance::check(&subject, "crash::all_kept", &CALLER);
}

#[test]
fn plan_that_fails_no_more_is_said_to_pass() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.vaio");
    let said = |case: &str| {
        let text =
            format!("vaio-plan 1\ncase {case}\nscale tiny\nblocks 4\ndepth 1\nop write 0 1\n");
        fs::write(&path, text).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["mended_filter", "--exact", "--ignored", "--nocapture"])
            .env("VAIO_PLAN", &path)
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert_tells(
        &said("crash::all_kept"),
        &["crash::all_kept: passed, the plan no longer fails, path="],
    );
    assert_tells(
        &said("crash::none_kept"),
        &["crash::all_kept: skipped: VAIO_PLAN is a plan of another case"],
    );
}

#[test]
fn replay_command_as_printed_fails_in_the_same_way() {
    let folder = tempfile::tempdir().unwrap();
    let exe = std::env::current_exe().unwrap();
    let run = |args: &[&str], plan: Option<&str>| {
        let mut command = Command::new(&exe);
        command
            .args(args)
            .arg("--ignored")
            .env("VAIO_ARTIFACTS", folder.path());
        match plan {
            Some(plan) => command.env("VAIO_PLAN", plan),
            None => command.env_remove("VAIO_PLAN"),
        };
        let output = command.output().unwrap();
        assert!(!output.status.success());
        format!(
            "{}{}",
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap()
        )
    };
    let first = run(&["broken_filter", "--exact"], None);
    assert_tells(&first, &["lost-write BROKEN BY", "replay:\n  VAIO_PLAN="]);
    let line = first
        .split("replay:\n  ")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap();
    let (plan, command) = line
        .strip_prefix("VAIO_PLAN=")
        .unwrap()
        .split_once(' ')
        .unwrap();
    let args = command
        .strip_prefix("cargo test -p vaio-testkit ")
        .expect("the package");
    let args: Vec<_> = args.split(' ').filter(|word| *word != "--").collect();
    let again = run(&args, Some(plan));
    assert_tells(&again, &["fails again", "lost-write BROKEN BY"]);
    let cause = |text: &str| {
        text.split("VIOLATION")
            .nth(1)
            .map(|rest| rest[..300].to_owned())
    };
    assert_eq!(cause(&first), cause(&again));
}
