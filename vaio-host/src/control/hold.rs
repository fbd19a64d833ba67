//! A backing held while someone outside takes a snapshot of it.
//!
//! Every filter hears of the snapshot and prepares; then the backing is held: at a point, while
//! the guest goes on, where a cache can do that, else by a quiesce, during which guest IO waits.
//! Several disks are held together, so that the snapshots are of one moment. Whoever let go says
//! truthfully whether it held all the time: if not, the snapshot is torn and must be taken again.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use vaio_core::{
    Disk, Error, ErrorKind, Level, PointInTime, Prepared, Quiesced, Release, Result, Verb,
};

use super::{Shared, verbs};

/// Longest time that a point is held; a quiesce has the disk's own limit.
const POINT_MAX: Duration = Duration::from_secs(60);
/// Longest time that the verb's end waits for the disk to drain.
const COMMIT_MAX: Duration = Duration::from_secs(10);

/// What keeps the backing still.
#[derive(Debug)]
enum Guard {
    Point(PointInTime),
    Quiet(Quiesced),
}

impl Guard {
    fn name(&self) -> &'static str {
        match self {
            Self::Point(_) => "point",
            Self::Quiet(_) => "quiesce",
        }
    }

    fn release(self) -> Release {
        match self {
            Self::Point(point) => point.release(),
            Self::Quiet(quiesced) => quiesced.release(),
        }
    }
}

/// One disk, held.
#[derive(Debug)]
struct Held {
    disk: Disk,
    prepared: Prepared,
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
    ) -> Result<Self> {
        let chosen = verbs::chosen(&shared.hosted, name)?;
        let is_single = chosen.len() == 1;
        let deadline = shared.hosted.rt.now() + timeout;
        let mut prepared = Vec::with_capacity(chosen.len());
        for one in chosen {
            let verb = Verb::Snapshot {
                name: Arc::from(snapshot),
            };
            // An error drops those that prepared, which aborts them.
            let ready = verbs::wait(shared, one.disk.prepare(verb)).await?;
            prepared.push((one.disk.clone(), ready));
        }
        let mut held = Vec::with_capacity(prepared.len());
        for (disk, prepared) in prepared {
            let guard = hold(shared, &disk, is_single, deadline).await?;
            held.push(Held {
                disk,
                prepared,
                guard,
            });
        }
        Ok(Self(held))
    }

    /// What the client is told.
    pub(super) fn told(&self) -> Value {
        let disks: Vec<_> = self
            .0
            .iter()
            .map(|held| json!({ "name": held.disk.name(), "by": held.guard.name() }))
            .collect();
        json!({ "held": disks })
    }

    /// Tells the filters that the snapshot was taken, lets go, and says whether every backing was
    /// held until then.
    pub(super) async fn release(self, shared: &Shared) -> Result<Value> {
        let mut torn = Vec::new();
        let mut failed = None;
        let mut told = Vec::with_capacity(self.0.len());
        for Held {
            disk,
            prepared,
            guard,
        } in self.0
        {
            let deadline = shared.hosted.rt.now() + COMMIT_MAX;
            let commit = prepared.commit(deadline, async { Ok(()) });
            // The guest must not wait longer than the snapshot takes: a point is let go first,
            // because the commit quiesces the disk.
            let (release, committed) = match guard {
                Guard::Point(_) => (guard.release(), verbs::wait(shared, commit).await),
                Guard::Quiet(_) => {
                    let committed = verbs::wait(shared, commit).await;
                    (guard.release(), committed)
                }
            };
            if release != Release::Held {
                torn.push(disk.name().to_string());
            }
            if let Err(error) = committed {
                failed.get_or_insert(error);
            }
            told.push(json!({ "name": disk.name(), "release": release }));
        }
        if !torn.is_empty() {
            return Err(Error::new(
                ErrorKind::Io,
                format!(
                    "the hold ended by itself before it was released, so the snapshot is torn: \
                     take it again, with a faster command, disks={}",
                    torn.join(",")
                ),
            ));
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(json!({ "released": told })),
        }
    }

    /// Lets go: no snapshot was taken.
    pub(super) async fn abort(self) {
        for Held {
            prepared, guard, ..
        } in self.0
        {
            // No one takes a snapshot of it.
            let _ = guard.release();
            prepared.abort().await;
        }
    }
}

async fn hold(
    shared: &Shared,
    disk: &Disk,
    may_point: bool,
    deadline: vaio_core::Instant,
) -> Result<Guard> {
    if may_point {
        match verbs::wait(shared, disk.hold_at_point(POINT_MAX)).await {
            Ok(point) => return Ok(Guard::Point(point)),
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            Err(error) => return Err(error),
        }
    }
    verbs::wait(shared, disk.quiesce(Level::BackingDurable, deadline))
        .await
        .map(Guard::Quiet)
}
