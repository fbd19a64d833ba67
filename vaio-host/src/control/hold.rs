//! A backing held while someone outside takes a snapshot of it.
//!
//! Every filter hears of the snapshot and prepares; then the backing is held: at a point, while
//! the guest goes on, where a cache can do that; else the disk is quiesced and flushed, and guest
//! IO waits. Filters hear of the commit at the held moment, or of the abort. Several disks are
//! held together, so that the snapshots are of one moment. Whoever let go says truthfully whether
//! it held all the time: if not, the snapshot is torn and must be taken again.

use std::{sync::Arc, time::Duration};

use futures::channel::oneshot;
use serde_json::{Value, json};
use vaio_core::{
    Disk, Error, ErrorKind, Instant, Level, PointInTime, Prepared, Release, Result, Rt, RuntimeExt,
    Verb,
};

use super::{Shared, verbs};

/// Longest time that a backing is held: a guest waits for it, or a cache fills.
const HOLD_MAX: Duration = Duration::from_mins(1);
/// Longest time that the commit after a point waits for the disk to drain.
const COMMIT_MAX: Duration = Duration::from_secs(10);

/// What keeps the backing still.
#[derive(Debug)]
enum Guard {
    Point(PointInTime, Prepared),
    Quiet(Quiet),
}

/// A quiesced disk: the verb's commit runs, and waits for us.
#[derive(Debug)]
struct Quiet {
    /// Sent: the snapshot was taken. Dropped: it was not.
    taken: oneshot::Sender<()>,
    /// What became of the commit.
    ended: oneshot::Receiver<Result<()>>,
}

/// One disk, held.
#[derive(Debug)]
struct Held {
    disk: Disk,
    guard: Guard,
}

/// Disks held together. Dropping it lets go and aborts.
#[derive(Debug)]
pub(super) struct Hold(Vec<Held>);

impl Hold {
    /// Prepares and holds the chosen disks, all or none.
    pub(super) async fn begin(
        shared: &Shared,
        name: Option<&str>,
        snapshot: &str,
        timeout: Duration,
        quiesce: bool,
    ) -> Result<Self> {
        let chosen = verbs::chosen(&shared.hosted, name)?;
        // Points of several disks are several moments.
        let is_point = chosen.len() == 1 && !quiesce;
        let deadline = shared.hosted.rt.now() + timeout;
        let mut prepared = Vec::with_capacity(chosen.len());
        for one in &chosen {
            // The most of it first, while the guest goes on: filters have less time to prepare.
            verbs::wait(shared, flush(&one.disk, deadline)).await?;
        }
        for one in chosen {
            let verb = Verb::Snapshot {
                name: Arc::from(snapshot),
            };
            // An error drops those that prepared, which aborts them; as below.
            let ready = verbs::wait(shared, one.disk.prepare(verb)).await?;
            prepared.push((one.disk.clone(), ready));
        }
        let mut held = Vec::with_capacity(prepared.len());
        for (disk, prepared) in prepared {
            let guard = if is_point {
                hold(shared, &disk, prepared, deadline).await?
            } else {
                Guard::Quiet(self::quiesce(shared, &disk, prepared, deadline).await?)
            };
            held.push(Held { disk, guard });
        }
        Ok(Self(held))
    }

    /// What the client is told.
    pub(super) fn told(&self) -> Value {
        let disks = self.0.iter().map(|held| {
            let by = match held.guard {
                Guard::Point(..) => "point",
                Guard::Quiet(_) => "quiesce",
            };
            json!({ "name": held.disk.name(), "by": by })
        });
        json!({ "held": disks.collect::<Vec<_>>() })
    }

    /// The snapshot was taken: tells the filters, lets go, and says whether every backing was
    /// held until then.
    pub(super) async fn release(self, shared: &Shared) -> Result<Value> {
        let mut failed = None;
        let mut told = Vec::with_capacity(self.0.len());
        for Held { disk, guard } in self.0 {
            let released = match guard {
                Guard::Point(point, prepared) => {
                    let release = point.release();
                    let deadline = shared.hosted.rt.now() + COMMIT_MAX;
                    let commit = prepared.commit(deadline, async move {
                        match release {
                            Release::Held => Ok(()),
                            Release::ThawedEarly => Err(torn()),
                        }
                    });
                    verbs::wait(shared, commit).await
                }
                Guard::Quiet(quiet) => quiet.release(shared).await,
            };
            match released {
                Ok(()) => told.push(json!({ "name": disk.name(), "release": Release::Held })),
                Err(error) => {
                    failed.get_or_insert(error.with_disk(Arc::clone(disk.name())));
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(json!({ "released": told })),
        }
    }

    /// Lets go: no snapshot was taken.
    pub(super) async fn abort(self) {
        for Held { guard, .. } in self.0 {
            match guard {
                Guard::Point(point, prepared) => {
                    // No one takes a snapshot of it.
                    let _ = point.release();
                    prepared.abort().await;
                }
                Guard::Quiet(Quiet { taken, ended }) => {
                    drop(taken);
                    // The verb aborts whether or not we wait for it.
                    let _ = ended.await;
                }
            }
        }
    }
}

fn torn() -> Error {
    Error::new(
        ErrorKind::Io,
        format!(
            "the hold ended by itself before it was released, so the snapshot is torn: `vaio \
             events` says why (time, or a cache whose log was full); take it again, with a faster \
             command, held_max={HOLD_MAX:?}"
        ),
    )
}

/// Holds the backing at a point, or quiesces the disk where no filter can.
async fn hold(
    shared: &Shared,
    disk: &Disk,
    prepared: Prepared,
    deadline: Instant,
) -> Result<Guard> {
    let rt = &shared.hosted.rt;
    let point = async {
        // Given up, it ends by itself, and lets go.
        let held = rt.timeout_at(deadline, disk.hold_at_point(HOLD_MAX)).await;
        held.unwrap_or_else(|| {
            let text = "the backing has not reached the point in time: allow more with --timeout";
            Err(Error::new(ErrorKind::TimedOut, text).with_disk(Arc::clone(disk.name())))
        })
    };
    match verbs::wait(shared, point).await {
        Ok(point) => Ok(Guard::Point(point, prepared)),
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let quiet = quiesce(shared, disk, prepared, deadline).await?;
            Ok(Guard::Quiet(quiet))
        }
        Err(error) => Err(error),
    }
}

/// Starts the verb's commit and returns when the disk is quiesced and durable below.
async fn quiesce(
    shared: &Shared,
    disk: &Disk,
    prepared: Prepared,
    deadline: Instant,
) -> Result<Quiet> {
    // The most of it while the guest goes on.
    verbs::wait(shared, flush(disk, deadline)).await?;
    let rt = &shared.hosted.rt;
    let (quiet, is_quiet) = oneshot::channel();
    let (taken, is_taken) = oneshot::channel();
    let (report, ended) = oneshot::channel();
    let action = keep_quiet(disk.clone(), Arc::clone(rt), deadline, quiet, is_taken);
    let commit = prepared.commit(deadline + HOLD_MAX, action);
    rt.spawn(
        "vaio-snapshot",
        Box::pin(async move {
            // The one who asked may be gone.
            let _ = report.send(commit.await);
        }),
    );
    let begun = Quiet { taken, ended };
    match verbs::wait(shared, async { Ok(is_quiet.await) }).await? {
        Ok(()) => Ok(begun),
        Err(oneshot::Canceled) => Err(match begun.ended.await {
            Ok(Err(error)) => error,
            _ => gone(),
        }),
    }
}

async fn flush(disk: &Disk, deadline: Instant) -> Result<()> {
    disk.flush_to(Level::BackingDurable)?.wait(deadline).await
}

/// What happens while the disk is quiesced: what is left goes to the backing, and then nothing,
/// until the snapshot is taken.
async fn keep_quiet(
    disk: Disk,
    rt: Rt,
    deadline: Instant,
    quiet: oneshot::Sender<()>,
    is_taken: oneshot::Receiver<()>,
) -> Result<()> {
    flush(&disk, deadline).await?;
    // The one who asked may be gone; then the snapshot is not taken either.
    let _ = quiet.send(());
    match rt.timeout_at(rt.now() + HOLD_MAX, is_taken).await {
        Some(Ok(())) => Ok(()),
        Some(Err(oneshot::Canceled)) => Err(Error::refused("no snapshot was taken")),
        None => Err(torn()),
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Gone, "the program is ending")
}

impl Quiet {
    async fn release(self, shared: &Shared) -> Result<()> {
        // It is gone only where the commit ended by itself, and that says why.
        let _ = self.taken.send(());
        verbs::wait(shared, async {
            self.ended.await.unwrap_or_else(|_| Err(gone()))
        })
        .await
    }
}
