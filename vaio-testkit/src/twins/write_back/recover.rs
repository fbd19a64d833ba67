//! Opening: from whatever a crash left to an empty log of a new epoch.
//!
//! * O1: recovery ends with every valid record on the backing, flushed, and only then starts a new
//!   epoch. Before that it changes nothing of the log, so a crash in it repeats it with the same
//!   result; after that nothing of the old log is ever read again.
//! * O2: no guest IO is answered before the new epoch is durable. Its records would not be valid,
//!   and slots of the old log would be overwritten that the old superblock still counts on.
//! * O3: records are applied in the order of their numbers, wherever they lie. A number that is
//!   missing was never acknowledged as durable; those after it may have been.
//! * O4: a log epoch begins with the disk's ownership epoch, which the framework records after the
//!   log's is durable. A log from before the last recorded ownership is an old copy: it holds
//!   nothing that may be seen or written.
//!
//! The framework has flushed backing and cache device before an unclean open: what recovery reads
//! is durable.

use bytes::Bytes;
use vaio_core::{AttachContext, BlockDeviceExt, Error, ErrorKind, OpenReason, Result};

use super::{
    super::ordered::Replica,
    record::{self, Content, Found, Superblock, index},
    store::Store,
};
use crate::zoo::Bug;

/// Log epochs of one ownership.
const OWNER: u64 = 1 << 16;

/// The first log epoch of this ownership.
fn owner(cx: &AttachContext) -> u64 {
    cx.epoch().saturating_mul(OWNER).max(OWNER)
}

/// Two of the bugs keep the epoch, and would only be refused here.
const fn checks_owner(bug: Option<Bug>) -> bool {
    !matches!(
        bug,
        Some(Bug::StaleLogReplayed | Bug::EpochKept | Bug::SequenceReset)
    )
}

/// Key in the sidecar: the epoch whose log was empty when the disk was closed.
pub(super) const CLEAN_EPOCH: &str = "clean_epoch";

/// Recovers, starts a new epoch, and returns its tail.
pub(super) async fn open(
    cx: &AttachContext,
    store: &mut Store,
    replica: Option<&Replica>,
    bug: Option<Bug>,
) -> Result<u64> {
    let found = store.read_superblock().await?;
    let (mut epoch, mut tail) = match found {
        // What an earlier attachment left is of an older epoch from now on.
        _ if cx.reason() == OpenReason::Attach => (found.map_or(0, |found| found.epoch), 0),
        Some(found) if found.geometry != *store.geometry() => {
            return Err(Error::config(
                "the cache device holds a log of another geometry; open it with the settings it \
                 was written with",
            ));
        }
        // O4.
        Some(found) if found.epoch < owner(cx) - OWNER && checks_owner(bug) => {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "the cache device was left behind: the disk was opened without it since; detach \
                 the cache, or find the device that was used last",
            ));
        }
        Some(found) => {
            let tail = if is_clean(cx, &found).await {
                found.tail
            } else {
                replay(cx, store, &found, replica, bug).await?
            };
            (found.epoch, tail)
        }
        None => {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "the cache device has no log; it held writes that the backing lacks: find the \
                 right device",
            ));
        }
    };
    if let Some(replica) = replica.filter(|_| cx.reason() == OpenReason::Attach) {
        replica.copy_from(&cx.lower()).await?;
    }
    match bug {
        Some(Bug::EpochKept) if cx.reason() != OpenReason::Attach => {}
        Some(Bug::SequenceReset) if cx.reason() != OpenReason::Attach => tail = 0,
        _ => epoch = (epoch + 1).max(owner(cx)),
    }
    // O2.
    store.begin(epoch, tail).await?;
    Ok(tail)
}

/// Whether the disk was closed with this very log empty. The mark names the epoch, and every open
/// raises the epoch, so that a mark is never older than the log it speaks of.
async fn is_clean(cx: &AttachContext, superblock: &Superblock) -> bool {
    let mark = cx.sidecar().get(CLEAN_EPOCH).await;
    mark == Some(clean_mark(superblock.epoch))
}

/// The value of [`CLEAN_EPOCH`].
pub(super) fn clean_mark(epoch: u64) -> Bytes {
    Bytes::copy_from_slice(&epoch.to_le_bytes())
}

/// Brings every valid record to the backing, durably. Returns the number after the last.
async fn replay(
    cx: &AttachContext,
    store: &mut Store,
    superblock: &Superblock,
    replica: Option<&Replica>,
    bug: Option<Bug>,
) -> Result<u64> {
    store.adopt(superblock.epoch);
    let mut records = scan(store, superblock, bug).await?;
    if bug != Some(Bug::ReplayInSlotOrder) {
        records.sort_by_key(|record| record.seq);
    }
    if replica.is_some() {
        records = unbroken(records, superblock.tail);
    }
    let lower = cx.lower();
    for record in &records {
        if let Some(replica) = replica {
            let piece = (record.extent, record.content.clone());
            replica.apply(&[piece]).await?;
        }
        match &record.content {
            Content::Data(data) => lower.write(record.extent.offset(), data.clone()).await?,
            Content::Zeroes => {
                let extent = record.extent;
                lower.write_zeroes(extent.offset(), extent.len()).await?;
            }
        }
        if replica.is_some_and(|replica| !replica.has(Bug::RecoveryStepsNotKept)) {
            // A crash here must not begin again before what the replica has already.
            lower.flush().await?;
            store.write_tail(record.seq + 1).await?;
        }
    }
    // O1: on the backing for good before the log is given up.
    lower.flush().await?;
    cx.rt().probe("write_back.replayed");
    let last = records.iter().map(|record| record.seq).max();
    Ok(last.map_or(superblock.tail, |last| last + 1))
}

/// Every valid record, in the order of the slots.
async fn scan(store: &Store, superblock: &Superblock, bug: Option<Bug>) -> Result<Vec<Found>> {
    let geometry = store.geometry();
    let mut records = Vec::new();
    let first = superblock.tail % geometry.slots;
    let bytes = match store.read_slots().await {
        // "Nothing there" and "cannot be read" are not the same.
        Err(_) if bug == Some(Bug::RecoveryErrorIgnored) => return Ok(records),
        read => read?,
    };
    let slot_len = index(geometry.slot_len());
    for slot in 0..geometry.slots {
        if slot < first && bug == Some(Bug::WrapNotScanned) {
            continue;
        }
        let at = index(slot) * slot_len;
        let found = record::decode(&bytes.slice(at..at + slot_len), geometry, bug);
        records.extend(found.filter(|found| superblock.accepts(found.epoch, found.seq, bug)));
    }
    if bug == Some(Bug::StopsAtGap) {
        records = unbroken(records, superblock.tail);
    }
    Ok(records)
}

/// The records from the tail on up to the first that is missing.
fn unbroken(mut records: Vec<Found>, tail: u64) -> Vec<Found> {
    records.sort_by_key(|record| record.seq);
    let whole = (tail..)
        .zip(&records)
        .take_while(|(seq, record)| *seq == record.seq)
        .count();
    records.truncate(whole);
    records
}
