//! [`WorldRow`]: the rows of the zoo that take several hosts. Written down before anyone ran them.

use vaio_core::Promise;

use super::{failover, ha::Rules, script, scripts::SCRIPTS};
use crate::{
    Subject, Tape,
    explore::Broken,
    twins::{
        observer::ObserverFactory,
        write_back::{CACHE_DEVICE, WriteBackFactory},
    },
    zoo::Bug,
};

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct WorldRow {
    /// Name of the row: the bug's, in lower case.
    pub name: &'static str,
    /// The switch.
    pub bug: Bug,
    /// Where it was seen: project and commit. `own` where it is made up.
    pub origin: &'static str,
    /// What is wrong.
    pub breaks: &'static str,
    /// What shows it: a case for any filter, or a script of the pair.
    pub shows: Shows,
}

/// What shows a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shows {
    /// `failover::` and this name, over shared storage.
    Case(&'static str),
    /// The script of this name, over two sites.
    Script(&'static str),
}

impl WorldRow {
    /// Runs what shows the row, with the bug or (`None`) without.
    ///
    /// # Errors
    /// A promise was broken.
    ///
    /// # Panics
    /// If the row names a script that there is not.
    pub fn run(&self, bug: Option<Bug>, tape: &Tape) -> Result<(), Broken> {
        match self.shows {
            Script(name) => {
                let script = SCRIPTS.iter().find(|script| script.name == name);
                script::play(script.expect("a row names a script"), bug, tape)
            }
            Case(name) => shared(name, bug, tape),
        }
    }
}

/// The cases over shared storage, with what the HA manager or the cache leaves out.
fn shared(name: &str, bug: Option<Bug>, tape: &Tape) -> Result<(), Broken> {
    let factory = WriteBackFactory::tiny(Promise::AtFlush);
    let rules = Rules {
        lease: bug != Some(Bug::LeaseIgnored),
        fence: !matches!(bug, Some(Bug::NotFenced | Bug::LeaseIgnored)),
    };
    let subject = Subject::new(match bug {
        Some(Bug::StaleLogReplayed) => factory.with_bug(Bug::StaleLogReplayed),
        _ => factory,
    })
    .device(CACHE_DEVICE, |_| {
        WriteBackFactory::tiny(Promise::AtFlush).device_len(crate::disk::BLOCK) / crate::disk::BLOCK
    });
    match name {
        "ghost_write" => {
            // Nothing between the guest and the storage that would write it again.
            let subject = Subject::new(ObserverFactory::default());
            failover::ghost_write_by(&subject, tape, rules)
        }
        "two_owners" => failover::two_owners_by(&subject, tape, rules),
        "old_host_returns" => failover::old_host_returns_by(&subject, tape, rules),
        _ => failover::devices_stale(&subject, tape),
    }
}

/// Any script of the tape's choice, on a pair without a bug or with one.
///
/// # Errors
/// A promise was broken.
pub fn random(bug: Option<Bug>, tape: &Tape) -> Result<(), Broken> {
    script::play_random(bug, tape)
}

/// Every row.
pub fn rows() -> &'static [WorldRow] {
    ROWS
}

const fn row(
    name: &'static str,
    bug: Bug,
    origin: &'static str,
    shows: Shows,
    breaks: &'static str,
) -> WorldRow {
    WorldRow {
        name,
        bug,
        origin,
        breaks,
        shows,
    }
}

use Shows::{Case, Script};

const ROWS: &[WorldRow] = &[
    row(
        "not_fenced",
        Bug::NotFenced,
        "own; the rule is strict linearizability, HPL-2003-241",
        Case("ghost_write"),
        "a write of the dead host lands on shared storage after the next host answered the guest",
    ),
    row(
        "lease_ignored",
        Bug::LeaseIgnored,
        "own",
        Case("old_host_returns"),
        "a host that comes back starts its VM again although another one owns the disk",
    ),
    row(
        "stale_log_replayed",
        Bug::StaleLogReplayed,
        "Open-CAS/ocf issue 617",
        Case("devices_stale"),
        "a cache device from before the last ownership is replayed over newer data",
    ),
    row(
        "resync_passes_write",
        Bug::ResyncPassesWrite,
        "DRBD 8.4.2 release notes",
        Script("write-in-resync"),
        "a copied block is older than a write that was sent before it",
    ),
    row(
        "write_in_resync_lost",
        Bug::WriteInResyncLost,
        "LINBIT/drbd@415a2c408",
        Script("write-in-resync"),
        "a write while the copy runs is neither sent nor marked",
    ),
    row(
        "reconnect_forgets",
        Bug::ReconnectForgets,
        "LINBIT/drbd@3d0668819",
        Script("connection-breaks"),
        "what was under way as the connection broke is not sent again",
    ),
    row(
        "cleared_on_receipt",
        Bug::ClearedOnReceipt,
        "own",
        Script("target-loses-power-unseen"),
        "a mark is cleared by an answer that says nothing of durability",
    ),
    row(
        "notice_clears_newer",
        Bug::NoticeClearsNewer,
        "LINBIT/drbd@a2172bc7e",
        Script("connection-breaks"),
        "a notice of an older flush clears the mark of a newer write",
    ),
    row(
        "nack_ignored",
        Bug::NackIgnored,
        "LINBIT/drbd@74b50fbdc",
        Script("target-refuses-write"),
        "a write that the target refused counts as there",
    ),
    row(
        "degrades_silently",
        Bug::DegradesSilently,
        "LINBIT/drbd@1eac40e06",
        Script("link-cut"),
        "a flush is answered without the target, and the record still says that it has everything",
    ),
    row(
        "in_sync_early",
        Bug::InSyncEarly,
        "own",
        Script("failover-in-resync"),
        "the record says \"in sync\" as the copy begins",
    ),
    row(
        "flush_acked_early",
        Bug::FlushAckedEarly,
        "LINBIT/drbd@15f2580ae",
        Script("target-loses-power"),
        "the target answers a flush before it has done it",
    ),
    row(
        "epoch_lazy",
        Bug::EpochLazy,
        "LINBIT/drbd@d42ee2c55",
        Script("old-owner-returns"),
        "the new owner's epoch is durable some seconds after it was answered",
    ),
    row(
        "old_epoch_applied",
        Bug::OldEpochApplied,
        "own",
        Script("old-owner-held-up"),
        "a record of the old owner that was held up on its way is applied under the new one",
    ),
    row(
        "old_session_applied",
        Bug::OldSessionApplied,
        "own; the epoch alone does not fence one's own past",
        Script("old-connection"),
        "a record of an old connection is applied after the copy of the new one",
    ),
    row(
        "home_ignored",
        Bug::HomeIgnored,
        "LINBIT/drbd@85b28e236",
        Script("old-home-returns"),
        "a site that is behind gets the disk because it had it once",
    ),
];
