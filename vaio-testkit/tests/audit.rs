//! The barrier audit, on filters whose barriers are known by hand.

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use vaio_core::*;
use vaio_testkit::{
    Subject,
    audit::{self, AuditReport, AuditSettings, Mutant, Verdict},
    conformance::Budget,
    twins::{
        barriers::needed_barriers,
        mirror,
        observer::ObserverFactory,
        ordered,
        write_back::{self, WriteBackFactory},
    },
    zoo::Twin,
};

fn write_back(promise: Promise) -> Subject {
    let factory = WriteBackFactory::tiny(promise);
    let blocks = factory.device_len(512) / 512;
    Subject::new(factory).device("cache", move |_| blocks)
}

vaio_testkit::barrier_audit! {
    #[ignore = "hours: see .ci/nightly"]
    write_back_at_flush: write_back(Promise::AtFlush),
    explained = []
}

vaio_testkit::barrier_audit! {
    #[ignore = "hours: see .ci/nightly"]
    write_back_at_ack: write_back(Promise::AtAck),
    explained = []
}

vaio_testkit::barrier_audit! {
    #[ignore = "hours: see .ci/nightly"]
    ordered: Twin::Ordered.subject(Promise::Ordered, None),
    explained = [
        "write_back/recover.rs:replay < src/twins/write_back/recover.rs:open" => "each record was flushed by itself",
    ]
}

vaio_testkit::barrier_audit! {
    #[ignore = "hours: see .ci/nightly"]
    mirror: Twin::Mirror.subject(Promise::AtFlush, None),
    explained = [
        "source.rs:flush_to" => "the disk was flushed before its sources are asked",
        "mod.rs:lifecycle" => "the framework flushes the disk before it tells its filters to close; this \
            one is for a disk whose last flush failed, and the sides are recorded once more",
        "mirror/mod.rs:flush_alone < src/twins/mirror/mod.rs:flush < src/twins/mirror/mod.rs:io error-ignored" =>
            "it takes a write that the primary failed and a flush that the mirror failed",
        "mirror/mod.rs:flush_alone < src/twins/mirror/mod.rs:resync drop" => "what is recorded as being \
            on both sides is read from the primary after a crash",
    ]
}

/// A filter of which every read is followed by a flush that no promise asks for.
#[derive(Debug)]
struct Flushing<F>(F);

#[derive(Debug)]
struct FlushingFilter(Arc<dyn Filter>);

/// Where that flush is.
const UNNEEDED: u32 = line!() + 8;

#[async_trait]
impl Filter for FlushingFilter {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        let is_read = matches!(io.op, Op::Read { .. });
        let reply = self.0.io(io, next).await?;
        if is_read {
            next.flush().await?;
        }
        Ok(reply)
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        self.0.shape(below)
    }

    async fn lifecycle(&self, event: Lifecycle<'_>) -> Result<Outcome> {
        self.0.lifecycle(event).await
    }

    fn state(&self) -> FilterState {
        self.0.state()
    }

    fn dirty(&self) -> Option<Arc<dyn DirtySource>> {
        self.0.dirty()
    }

    fn allocation(&self, below: AllocationMap) -> AllocationMap {
        self.0.allocation(below)
    }
}

#[async_trait]
impl<F: FilterFactory> FilterFactory for Flushing<F> {
    fn descriptor(&self) -> Descriptor {
        self.0.descriptor()
    }

    async fn prepare(&self, cx: &AttachContext) -> Result<()> {
        self.0.prepare(cx).await
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        Ok(Arc::new(FlushingFilter(self.0.open(cx).await?)))
    }
}

fn quick(cases: &[&'static str]) -> AuditSettings {
    let budget = Budget {
        factor: 0.1,
        ..Budget::default()
    };
    AuditSettings::default()
        .with_cases(cases)
        .with_budget(budget)
        .with_persistence(0.0)
}

const FEW: &[&str] = &[
    "order::read_against_write",
    "crash::any_moment",
    "flush::covers_acked",
    "zero_discard::zeroes",
];

fn flushing_observer() -> AuditReport {
    let subject = Subject::new(Flushing(ObserverFactory::default()));
    let settings = quick(FEW).with_mutants(&[Mutant::Drop]);
    audit::run(&subject, &settings)
}

static FLUSHING_OBSERVER: LazyLock<AuditReport> = LazyLock::new(flushing_observer);

#[test]
fn flush_that_nothing_needs_survives_and_is_named_with_its_line() {
    let report = &*FLUSHING_OBSERVER;
    println!("{report}");

    let survivors: Vec<_> = report.survivors().collect();
    let [survivor] = &survivors[..] else {
        panic!("one flush is not needed:\n{report}");
    };
    assert_eq!(survivor.site.op, OpKind::Flush);
    let place = survivor.site.place();
    assert_eq!((&*place.file, place.line), ("tests/audit.rs", UNNEEDED));
    let told = report.complaints();
    let expected = format!("flush at tests/audit.rs:{UNNEEDED}:");
    assert!(told.starts_with(&expected), "{told}");
    assert!(told.contains("is not needed or not tested"), "{told}");
    assert!(!report.is_accepted());
}

#[test]
fn flush_that_is_needed_is_killed_beside_one_that_is_not() {
    let report = &*FLUSHING_OBSERVER;

    let needed = report.rows.iter().find(|row| {
        row.site.op == OpKind::Flush && row.site.place().file == "src/twins/observer.rs"
    });
    let verdict = &needed.expect("the observer forwards flushes").verdict;
    assert!(matches!(verdict, Verdict::Killed { .. }), "{report}");
}

#[test]
fn same_audit_twice_gives_the_same_report() {
    let (first, second) = (&*FLUSHING_OBSERVER, &flushing_observer());
    assert_eq!(first, second);
    assert_eq!(first.to_string(), second.to_string());
}

/// A barrier of the write-back twin as the audit sees it.
struct Seen {
    /// As in `needed_barriers`.
    site: &'static str,
    op: OpKind,
    device: &'static str,
    /// End of the label, innermost first.
    label: &'static str,
    mutant: Mutant,
    /// Sites of that label from this line on are others.
    before_line: u32,
}

const fn seen(
    site: &'static str,
    op: OpKind,
    device: &'static str,
    label: &'static str,
    mutant: Mutant,
) -> Seen {
    Seen {
        site,
        op,
        device,
        label,
        mutant,
        before_line: u32::MAX,
    }
}

const BARRIERS: &[Seen] = &[
    seen(
        "write_back/mod.rs log_one -> make_durable",
        OpKind::Flush,
        "cache",
        "store.rs:flush < src/twins/write_back/mod.rs:make_durable < src/twins/write_back/mod.rs:log_one",
        Mutant::Drop,
    ),
    seen(
        "write_back/mod.rs write_record, before the flush and the ack",
        OpKind::Write,
        "cache",
        "store.rs:write_slot < src/twins/write_back/mod.rs:write_record < src/twins/write_back/mod.rs:log_one",
        Mutant::Swap,
    ),
    seen(
        "write_back/mod.rs flush -> make_durable",
        OpKind::Flush,
        "cache",
        "store.rs:flush < src/twins/write_back/mod.rs:make_durable < src/twins/write_back/mod.rs:flush",
        Mutant::Drop,
    ),
    seen(
        "write_back/mod.rs make_durable, rewrite_untrusted",
        OpKind::Write,
        "cache",
        "store.rs:write_slot < src/twins/write_back/mod.rs:write_record < src/twins/write_back/mod.rs:make_durable",
        Mutant::Drop,
    ),
    seen(
        "write_back/destage.rs destage_batch, join_all before the flush",
        OpKind::Write,
        "backing",
        // Its caller joins with a macro, and may be named by the macro's file.
        "write_back/destage.rs:destage_piece <",
        Mutant::Swap,
    ),
    seen(
        "write_back/destage.rs destage_batch, lower.flush",
        OpKind::Flush,
        "backing",
        "write_back/destage.rs:destage_batch",
        Mutant::Drop,
    ),
    seen(
        "write_back/store.rs write_tail, after the backing's flush",
        OpKind::Flush,
        "backing",
        "write_back/destage.rs:destage_batch",
        Mutant::Early,
    ),
    seen(
        "write_back/store.rs write_tail, flush",
        OpKind::Flush,
        "cache",
        "store.rs:flush < src/twins/write_back/store.rs:write_tail < src/twins/write_back/destage.rs:destage_batch",
        Mutant::Drop,
    ),
    seen(
        "write_back/destage.rs still, before advance",
        OpKind::Write,
        "cache",
        "store.rs:write_slot < src/twins/write_back/mod.rs:write_record < src/twins/write_back/mod.rs:make_durable",
        Mutant::Early,
    ),
    seen(
        "write_back/recover.rs replay, one write after another",
        OpKind::Write,
        "backing",
        "write_back/recover.rs:replay",
        Mutant::Swap,
    ),
    seen(
        "write_back/recover.rs replay, lower.flush",
        OpKind::Flush,
        "backing",
        "write_back/recover.rs:replay",
        Mutant::Drop,
    ),
    seen(
        "write_back/store.rs begin -> write_tail, flush",
        OpKind::Flush,
        "cache",
        "store.rs:flush < src/twins/write_back/store.rs:write_tail < src/twins/write_back/store.rs:begin",
        Mutant::Drop,
    ),
    seen(
        "write_back/destage.rs destage_batch, make_durable",
        OpKind::Flush,
        "journal",
        "store.rs:flush < src/twins/write_back/mod.rs:make_durable < src/twins/write_back/destage.rs:destage_batch",
        Mutant::Drop,
    ),
    seen(
        "ordered.rs apply, flush",
        OpKind::Flush,
        "replica",
        "ordered.rs:apply",
        Mutant::Drop,
    ),
    // Not the flush after the last record, which nothing needs here: see `ordered` above.
    Seen {
        before_line: 147,
        ..seen(
            "write_back/recover.rs replay, lower.flush and write_tail per record",
            OpKind::Flush,
            "backing",
            "write_back/recover.rs:replay < src/twins/write_back/recover.rs:open",
            Mutant::Drop,
        )
    },
    seen(
        "write_back/recover.rs replay, lower.flush and write_tail per record",
        OpKind::Flush,
        "journal",
        "store.rs:write_tail < src/twins/write_back/recover.rs:replay",
        Mutant::Drop,
    ),
    seen(
        "ordered.rs copy_from, flush",
        OpKind::Flush,
        "replica",
        "ordered.rs:copy_from",
        Mutant::Drop,
    ),
    seen(
        "mirror/mod.rs flush_alone, lower.flush",
        OpKind::Flush,
        "backing",
        "flush_alone < src/twins/mirror/mod.rs:flush < src/twins/mirror/mod.rs:io",
        Mutant::Drop,
    ),
    seen(
        "mirror/mod.rs flush_alone, mirror.flush",
        OpKind::Flush,
        "mirror",
        "flush_alone < src/twins/mirror/mod.rs:flush < src/twins/mirror/mod.rs:io",
        Mutant::Drop,
    ),
    seen(
        "mirror/mod.rs resync, flush_alone",
        OpKind::Flush,
        "backing",
        "flush_alone < src/twins/mirror/mod.rs:resync",
        Mutant::Drop,
    ),
];

/// Needed, but no IO of a lower device: the zoo's `CleanMarkEarly` and `StaleSideNotRecorded` break
/// them.
const OF_SIDECAR: &[&str] = &[
    "write_back/mod.rs lifecycle, Close Commit",
    "mirror/mod.rs flush_alone, record",
];

/// Every barrier of the list that a twin has as IO: whether each mutant of it is killed.
fn assert_barriers_are_killed(twin: &str, reports: &[AuditReport], left_out: &[&str]) {
    let mut missing = Vec::new();
    let mut killed = 0;
    let broken: Vec<_> = reports.iter().flat_map(|report| &report.broken).collect();
    assert!(broken.is_empty(), "without a mutant: {broken:?}");
    for barrier in needed_barriers() {
        let is_left_out = [OF_SIDECAR, left_out].concat().contains(&barrier.site);
        if barrier.twin != twin || is_left_out {
            continue;
        }
        let seen = BARRIERS.iter().filter(|seen| seen.site == barrier.site);
        let rows: Vec<_> = seen.flat_map(|seen| rows_of(reports, seen)).collect();
        let all_killed = rows
            .iter()
            .all(|verdict| matches!(verdict, Verdict::Killed { .. }));
        println!("{}: {rows:?}", barrier.site);
        if rows.is_empty() || !all_killed {
            missing.push((barrier, rows));
        } else {
            killed += 1;
        }
    }
    println!("figure audit_barriers_killed {killed} barriers of {twin}");
    assert!(missing.is_empty(), "{missing:#?}\n{reports:?}");
}

/// Cases that kill what is needed, as few as do.
const KILLERS: &[&str] = &[
    "flush::covers_acked",
    "fua::durable_at_ack",
    "crash::drop_one",
    "crash::wraps",
    "recovery_crash::overwrites",
    "faults::backing_gone",
    "fsyncgate::beside",
];

/// The sites of a twin's barriers, with these cases only.
fn barriers_only(twin: &str) -> AuditSettings {
    let sites: Vec<_> = (needed_barriers().into_iter())
        .filter(|barrier| barrier.twin == twin)
        .flat_map(|barrier| {
            BARRIERS
                .iter()
                .filter(move |seen| seen.site == barrier.site)
        })
        .map(|seen| seen.label)
        .collect();
    AuditSettings::default()
        .with_cases(KILLERS)
        .with_sites(&sites)
        .with_mutants(&[Mutant::Drop])
        .with_persistence(0.0)
}

/// Killed only where two faults meet: by the whole audit.
const RARE: &[&str] = &["mirror/mod.rs resync, flush_alone"];

#[test]
fn dropped_flushes_of_the_mirror_twin_are_killed() {
    let subject = Twin::Mirror.subject(Promise::AtFlush, None);
    let settings = barriers_only(mirror::NAME);
    let report = audit::run(&subject, &settings.with_sites(&["mirror/mod.rs:flush <"]));
    assert_barriers_are_killed(mirror::NAME, &[report], RARE);
}

#[test]
#[ignore = "hours: see .ci/nightly"]
fn every_needed_barrier_of_the_mirror_twin_is_killed() {
    let subject = Twin::Mirror.subject(Promise::AtFlush, None);
    let settings = AuditSettings::default().with_mutants(&[Mutant::Drop]);
    let report = audit::run(&subject, &settings);
    assert_barriers_are_killed(mirror::NAME, &[report], &[]);
}

#[test]
#[ignore = "hours: see .ci/nightly"]
fn every_needed_barrier_of_the_write_back_twin_is_killed() {
    let settings =
        AuditSettings::default().with_mutants(&[Mutant::Drop, Mutant::Early, Mutant::Swap]);
    let reports = [Promise::AtFlush, Promise::AtAck]
        .map(|promise| audit::run(&write_back(promise), &settings));
    assert_barriers_are_killed(write_back::NAME, &reports, &[]);
}

#[test]
#[ignore = "hours: see .ci/nightly"]
fn every_needed_barrier_of_the_ordered_twin_is_killed() {
    let subject = Twin::Ordered.subject(Promise::Ordered, None);
    let settings = AuditSettings::default().with_mutants(&[Mutant::Drop]);
    let report = audit::run(&subject, &settings);
    assert_barriers_are_killed(ordered::NAME, &[report], &[]);
}

fn rows_of<'a>(reports: &'a [AuditReport], seen: &Seen) -> Vec<&'a Verdict> {
    let rows = reports.iter().flat_map(|report| &report.rows);
    rows.filter(|row| {
        row.site.op == seen.op
            && &*row.site.device == seen.device
            && row.site.label().contains(seen.label)
            && row.mutant == seen.mutant
            && row.site.place().line < seen.before_line
    })
    .map(|row| &row.verdict)
    .collect()
}

/// The same flush as [`unneeded_flush_in_the_write_back_twin_is_named_with_its_line`], with the
/// cases that kill the others.
#[test]
fn unneeded_flush_is_named_among_the_needed_ones_of_the_write_back_twin() {
    let settings = AuditSettings::default()
        .with_cases(KILLERS)
        .with_sites(&["tests/audit.rs", "make_durable", "destage_batch"])
        .with_mutants(&[Mutant::Drop])
        .with_persistence(0.0);
    let report = audit::run(&flushing_write_back(), &settings);
    assert_only_the_unneeded_flush_survives(&report);
}

fn flushing_write_back() -> Subject {
    let factory = WriteBackFactory::tiny(Promise::AtFlush);
    let blocks = factory.device_len(512) / 512;
    Subject::new(Flushing(factory)).device("cache", move |_| blocks)
}

fn assert_only_the_unneeded_flush_survives(report: &AuditReport) {
    assert!(report.broken.is_empty(), "{:?}", report.broken);
    let flushes: Vec<_> = report
        .survivors()
        .filter(|row| row.site.op == OpKind::Flush)
        .collect();
    let [flush] = &flushes[..] else {
        panic!("one flush is not needed:\n{report}");
    };
    let place = flush.site.place();
    assert_eq!((&*place.file, place.line), ("tests/audit.rs", UNNEEDED));
    println!("{}", report.complaints());
    println!("figure audit_unneeded_flushes {} flushes", flushes.len());
}

#[test]
#[ignore = "hours: see .ci/nightly"]
fn unneeded_flush_in_the_write_back_twin_is_named_with_its_line() {
    let settings = AuditSettings::default().with_mutants(&[Mutant::Drop]);
    let report = audit::run(&flushing_write_back(), &settings);
    assert_only_the_unneeded_flush_survives(&report);
}
