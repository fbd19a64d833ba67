//! Failures of large random runs shrink to what a reader can follow, and the saved plan outlives an
//! edit of the filter that does not touch its bug.
//!
//! Each row is run over seeds, in order, until a run of at least 30 operations and 2 crashes fails;
//! nothing is picked by hand.

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use async_trait::async_trait;
use vaio_core::{
    AllocationMap, AttachContext, BlockDeviceExt, Descriptor, DeviceInfo, DirtySource, Filter,
    FilterFactory, FilterState, Hooks, Io, Lifecycle, Next, Outcome, Reply, Result, Rt,
};
use vaio_testkit::{
    conformance::lab_of,
    explore::{
        Failure, Lab, Plan, Seen, TRIES_MAX, campaign::smallest, random::Large, replay, run,
    },
    zoo::{Bug, Row, rows},
};

/// As `println!`, but shown where the test passes, too: libtest keeps what its own macros print.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout().lock(), $($text)*).expect("standard output is open")
    }};
}

const CASE: &str = "crash::several";

/// Rows of different kinds, and the crashes that each needs: the last ones are bugs of the second
/// era, which no single crash shows.
const ROWS: [(Bug, usize); 14] = [
    (Bug::SecondWriteNotLogged, 1),
    (Bug::AckBeforeFlush, 1),
    (Bug::TailBeforeFlush, 1),
    (Bug::ClearsNewerDirty, 1),
    (Bug::DestageUnordered, 1),
    (Bug::NoDataChecksum, 1),
    (Bug::ReplayInSlotOrder, 1),
    (Bug::StepNotFlushed, 1),
    (Bug::SidesUnordered, 1),
    (Bug::ObserverKeepsWrite, 1),
    (Bug::ZeroesKeepCached, 1),
    (Bug::SequenceReset, 2),
    (Bug::ReplicaAheadOfLog, 2),
    (Bug::OpenNotFlushed, 2),
];

/// Least size of a run that counts as large.
const OPS_LARGE: usize = 30;
const CRASHES_LARGE: usize = 2;
/// What a shrunk run may have.
const OPS_SMALL: usize = 5;
/// Most seeds until a row must have failed.
const SEEDS_MAX: u64 = 400;

fn row(bug: Bug) -> Row {
    let mut rows = rows().into_iter();
    rows.find(|row| row.bug == bug).expect("a row of the zoo")
}

fn lab(row: &Row) -> Lab {
    lab_of(&row.twin.subject(row.promise, Some(row.bug)), CASE)
}

/// The first large run that fails.
fn found(lab: &Lab) -> (u64, Box<Failure>) {
    let large = Large {
        ops: (30, 120),
        ..Large::new(CASE, &lab.subject)
    };
    (0..SEEDS_MAX)
        .find_map(|seed| {
            let one = large.run(seed);
            if one.plan.ops() < OPS_LARGE || one.plan.crashes() < CRASHES_LARGE {
                return None;
            }
            let failure = run(lab, &one.plan, &one.tape, &mut Seen::default()).failure?;
            Some((seed, failure))
        })
        .expect("a run that fails")
}

/// Whether the plan, read back from its text, breaks the same rule.
fn breaks(lab: &Lab, text: &str, rule: &str) -> bool {
    let plan: Plan = text.parse().expect("the text of a plan reads back");
    replay(lab, &plan)
        .failure
        .is_some_and(|failure| failure.broken.rule == rule)
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a shrink takes is printed, not tested"
)]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = std::time::Instant::now();
    let done = work();
    (done, start.elapsed())
}

#[test]
fn large_failures_shrink_to_a_few_operations_and_outlive_edits() {
    let mut longest = Duration::ZERO;
    let (mut ops_most, mut kept) = (0, [0; EDITS.len()]);
    for (bug, crashes_max) in ROWS {
        let row = row(bug);
        let lab = lab(&row);
        let (seed, failure) = found(&lab);
        let (small, took) = timed(|| smallest(&lab, &failure, TRIES_MAX));
        let (was, is, rule) = (&failure.plan, &small.plan, &failure.broken.rule);
        say!(
            "{}: seed {seed}, {rule}: {} ops, {} crashes, {} choices -> {}, {}, {} in {took:?}",
            row.name,
            was.ops(),
            was.crashes(),
            was.choices.len(),
            is.ops(),
            is.crashes(),
            is.choices.len()
        );
        let text = is.to_string();
        assert_eq!(*rule, small.broken.rule, "{}", row.name);
        assert!(is.ops() <= OPS_SMALL, "{}:\n{text}", row.name);
        assert!(is.crashes() <= crashes_max, "{}:\n{text}", row.name);
        assert!(breaks(&lab, &text, rule), "{}:\n{text}", row.name);
        for (edit, kept) in EDITS.into_iter().zip(&mut kept) {
            let is_kept = breaks(&edited(&row, edit), &text, rule);
            *kept += usize::from(is_kept);
            if !is_kept && !mends(edit, bug) {
                say!("  not after the edit {edit:?}:\n{text}");
            }
        }
        longest = longest.max(took);
        ops_most = ops_most.max(is.ops());
    }
    say!("figure shrink_rows {} rows", ROWS.len());
    say!("figure shrink_ops_max {ops_most} operations");
    say!("figure shrink_seconds_max {:.2} s", longest.as_secs_f64());
    let [waits, reads, writes] = kept;
    say!("figure shrink_kept_after_an_await {waits} rows");
    say!("figure shrink_kept_after_a_read {reads} rows");
    say!("figure shrink_kept_after_a_write {writes} rows");
    assert_eq!(
        waits,
        ROWS.len(),
        "an await more changes nothing that a plan names"
    );
    // Where IO below has other numbers, a plan that names a moment of background work may miss it.
    assert!(
        reads * 10 >= ROWS.len() * 8 && writes * 10 >= ROWS.len() * 6,
        "{kept:?}"
    );
}

/// Whether the edit mends the bug: a flush at each opening is what `OpenNotFlushed` takes away.
fn mends(edit: Edit, bug: Bug) -> bool {
    edit == Edit::Write && bug == Bug::OpenNotFlushed
}

/// An edit of a filter that leaves its bug as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    /// A probe and an await before each IO.
    Await,
    /// And a read of the first block below at each opening.
    Read,
    /// And that block written back as it is and flushed: all IO below has other numbers.
    Write,
}

const EDITS: [Edit; 3] = [Edit::Await, Edit::Read, Edit::Write];

/// The row's lab with an edited filter.
fn edited(row: &Row, edit: Edit) -> Lab {
    let registry = row.twin.registry(row.promise, Some(row.bug));
    let factory = registry.get(row.twin.filter()).expect("the twin");
    let subject = row.twin.subject(row.promise, Some(row.bug));
    let subject = subject.with_factory(move |_| {
        let factory = Arc::clone(&factory);
        Arc::new(Edited { factory, edit })
    });
    lab_of(&subject, CASE)
}

/// The filter as it would be after the edit.
#[derive(Debug)]
struct Edited {
    factory: Arc<dyn FilterFactory>,
    edit: Edit,
}

#[async_trait]
impl FilterFactory for Edited {
    fn descriptor(&self) -> Descriptor {
        self.factory.descriptor()
    }

    async fn prepare(&self, cx: &AttachContext) -> Result<()> {
        self.factory.prepare(cx).await
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let rt = Arc::clone(cx.rt());
        if self.edit != Edit::Await {
            let block = u64::from(cx.below().logical_block);
            let first = cx.lower().read(0, block).await?;
            if self.edit == Edit::Write {
                cx.lower().write(0, first).await?;
                cx.lower().flush().await?;
            }
        }
        let filter = self.factory.open(cx).await?;
        Ok(Arc::new(EditedFilter { filter, rt }))
    }
}

#[derive(Debug)]
struct EditedFilter {
    filter: Arc<dyn Filter>,
    rt: Rt,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Filter for EditedFilter {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        self.rt.probe("edited");
        let mut has_waited = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut has_waited, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        self.filter.io(io, next).await
    }

    /// None: the edit is in `io`.
    fn hooks(self: Arc<Self>) -> Option<Arc<dyn Hooks>> {
        None
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        self.filter.shape(below)
    }

    async fn lifecycle(&self, event: Lifecycle<'_>) -> Result<Outcome> {
        self.filter.lifecycle(event).await
    }

    fn state(&self) -> FilterState {
        self.filter.state()
    }

    fn dirty(&self) -> Option<Arc<dyn DirtySource>> {
        self.filter.dirty()
    }

    fn allocation(&self, below: AllocationMap) -> AllocationMap {
        self.filter.allocation(below)
    }
}
