//! Opening: from whatever a crash left to a log that goes on.
//!
//! * O1: the log ends at the first record that is not valid (R1), unless something behind it
//!   witnesses that it was durable: then it is damage, and the open refuses rather than lose what
//!   was acknowledged.
//! * O2: what was found is durable before the superblock says where it ends: the device is flushed
//!   first. A crash during an open changes nothing: the next one finds the same.
//! * O3: the new epoch is durable before the first reply. Its seqs begin above everything that was
//!   found or destaged; its records go into a segment of their own.
//! * O4: a log that was not there when the disk was opened last is refused: it is an old copy. So
//!   is one of another disk.
//!   Where the setting `discard_dirty` allows it, what would be lost is given up instead (`lost`).
//! * O5: nothing is destaged here: IO is served at once, and the log holds what it held.

use bytes::Bytes;
use vaio_core::{AttachContext, Error, ErrorKind, Instant, OpenReason, Result};

use crate::{
    bytes_at::Get,
    device::CacheDevice,
    geometry::Geometry,
    log::{Limits, Recovered, Start},
    lost::{self, Consent},
    scan::{Scanned, Segment, scan},
    segments::Live,
    superblock::{EPOCHS_MAX, Epoch, OPEN, Superblock},
};

/// Key in the sidecar: identity of the cache device that belongs to the disk.
const IDENTITY: &str = "identity";
/// Key in the sidecar: the log was empty when the disk was closed.
const CLEAN: &str = "clean";
/// Key in the sidecar: epoch and seq up to which the backing has everything, where the cache
/// device could not be written any more.
const DESTAGED: &str = "destaged";

/// What an open found.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) start: Start,
    pub(crate) identity: u64,
    /// Of the superblock that was written last.
    pub(crate) generation: u64,
    /// The list of epochs is full: destage everything before more is written.
    pub(crate) is_crowded: bool,
}

/// Opens the log, or makes one.
pub(crate) async fn open(
    cx: &AttachContext,
    device: &CacheDevice,
    limits: Limits,
    discard_dirty: u64,
) -> Result<Opened> {
    let consent = Consent {
        cx,
        bytes: discard_dirty,
    };
    let found = device.read_superblock().await?;
    if cx.reason() == OpenReason::Attach {
        if let Some(found) = &found {
            check_unused(&consent, device, found).await?;
        }
        return format(cx, device, limits, found.as_ref()).await;
    }
    let Some(superblock) = found else {
        if cx.reason() != OpenReason::Clean || cx.sidecar().get(CLEAN).await.is_none() {
            let why = damage(
                "the cache device has no log, and it held writes that the backing lacks: find the \
                 right device",
            );
            consent.give_up(consent.whole_disk(), &why)?;
        }
        return format(cx, device, limits, None).await;
    };
    check_geometry(device.geometry(), &superblock)?;
    if let Err(why) = check_identity(cx, &superblock).await {
        // What this disk's own device held is not known, and what is on this one goes too.
        let there = held(&consent, device, &superblock).await?;
        consent.give_up(consent.whole_disk().saturating_add(there), &why)?;
        return format(cx, device, limits, Some(&superblock)).await;
    }
    // O2.
    device.flush().await?;
    let opened = take_over(&consent, device, limits, superblock).await?;
    if cx.sidecar().get(CLEAN).await.is_some() {
        cx.sidecar().commit(&[(CLEAN, None)]).await?;
    }
    cx.rt().probe("cache.recovered");
    Ok(opened)
}

/// Refuses a device that holds writes of another disk, or of an earlier attachment.
async fn check_unused(
    consent: &Consent<'_>,
    device: &CacheDevice,
    superblock: &Superblock,
) -> Result<()> {
    let lost = held(consent, device, superblock).await?;
    if lost == 0 {
        return Ok(());
    }
    let why = damage(
        "the cache device holds writes of another disk, or of an earlier attachment, that its \
         backing lacks: give this disk a device of its own",
    );
    consent.give_up(lost, &why)
}

/// What the log on a device holds that the backing of its own disk lacks, at most.
async fn held(consent: &Consent<'_>, device: &CacheDevice, superblock: &Superblock) -> Result<u64> {
    if superblock.geometry != *device.geometry() {
        // It is not looked into: all of it counts.
        let geometry = &superblock.geometry;
        return Ok(geometry.bytes(geometry.blocks()));
    }
    // The sidecar's note is of this disk's own device: another's epochs may have the same numbers.
    let destaged = if is_own(consent.cx, superblock).await {
        destaged_of(consent.cx, superblock).await
    } else {
        superblock.destaged_seq
    };
    let epochs = &superblock.epochs;
    let lost = lost::behind(device, epochs, epochs[0].segment, destaged, u64::MAX).await?;
    Ok(lost.bytes)
}

/// Makes an empty log. What an earlier one left is of an older epoch and another nonce.
async fn format(
    cx: &AttachContext,
    device: &CacheDevice,
    limits: Limits,
    before: Option<&Superblock>,
) -> Result<Opened> {
    let epoch = before.map_or(0, |one| one.current().epoch) + 1;
    let identity = cx.rt().entropy();
    let current = Epoch {
        epoch,
        nonce: cx.rt().entropy(),
        segment: 0,
        first_seq: 0,
        end_seq: OPEN,
    };
    let superblock = Superblock {
        generation: before.map_or(0, |one| one.generation) + 1,
        identity,
        owner: cx.epoch(),
        geometry: *device.geometry(),
        destaged_seq: 0,
        epochs: vec![current],
    };
    begin(device, &superblock).await?;
    let id = Bytes::copy_from_slice(&identity.to_le_bytes());
    cx.sidecar()
        .commit(&[(IDENTITY, Some(id)), (CLEAN, None), (DESTAGED, None)])
        .await?;
    Ok(Opened {
        start: Start {
            geometry: *device.geometry(),
            limits,
            epochs: superblock.epochs,
            segments: Vec::new(),
            recovered: Recovered::new(*device.geometry(), 0),
        },
        identity,
        generation: superblock.generation,
        is_crowded: false,
    })
}

/// O3.
async fn begin(device: &CacheDevice, superblock: &Superblock) -> Result<()> {
    device.write_superblock(superblock).await?;
    device.flush().await
}

/// O4.
async fn check_identity(cx: &AttachContext, superblock: &Superblock) -> Result<()> {
    if !is_own(cx, superblock).await {
        return Err(damage(
            "the cache device belongs to another disk, or to an earlier attachment; find the \
             right device",
        ));
    }
    if superblock.owner.saturating_add(1) < cx.epoch() {
        return Err(damage(
            "the cache device was left behind: the disk was opened without it since; detach the \
             cache, or find the device that was used last",
        ));
    }
    Ok(())
}

/// Whether it is the log that the sidecar knows.
async fn is_own(cx: &AttachContext, superblock: &Superblock) -> bool {
    let id = cx.sidecar().get(IDENTITY).await;
    id.and_then(|id| id.get_u64(0)) == Some(superblock.identity)
}

fn check_geometry(geometry: &Geometry, superblock: &Superblock) -> Result<()> {
    if superblock.geometry != *geometry {
        return Err(Error::config(
            "the cache device holds a log of another geometry; open it with the settings and the \
             size it was made with",
        ));
    }
    Ok(())
}

async fn take_over(
    consent: &Consent<'_>,
    device: &CacheDevice,
    limits: Limits,
    superblock: Superblock,
) -> Result<Opened> {
    let cx = consent.cx;
    let destaged = destaged_of(cx, &superblock).await;
    let mut walk = Walk::new(*device.geometry(), &superblock, destaged, cx.rt().now());
    for (number, one) in superblock.epochs.iter().enumerate() {
        if one.end_seq <= destaged {
            // Nothing of it is needed, so nothing of it need be there.
            continue;
        }
        let hole = if walk.is_next(one) {
            let mut segments = Vec::new();
            let mut take = |segment| walk.take(one, &segment, &mut segments);
            let scanned = scan(device, one, destaged, &mut take).await?;
            walk.end(one, &scanned, segments);
            scanned.is_cut.then(|| missing(scanned.end_seq))
        } else {
            Some(unconnected())
        };
        if let Some(why) = hole {
            // K3: what comes before stays.
            let rest = &superblock.epochs[number..];
            let from = walk.next_segment.checked_sub(1);
            let from = from.unwrap_or(device.geometry().segments - 1);
            let disk = consent.whole_disk();
            let lost = lost::behind(device, rest, from, walk.end, disk).await?;
            consent.give_up(lost.bytes, &why)?;
            walk.end = lost.end_seq;
            break;
        }
    }
    walk.epochs.push(Epoch {
        epoch: superblock.current().epoch + 1,
        nonce: cx.rt().entropy(),
        segment: walk.next_segment,
        first_seq: walk.end,
        end_seq: OPEN,
    });
    let superblock = Superblock {
        generation: superblock.generation + 1,
        owner: cx.epoch(),
        destaged_seq: destaged,
        epochs: walk.epochs,
        ..superblock
    };
    begin(device, &superblock).await?;
    Ok(Opened {
        identity: superblock.identity,
        generation: superblock.generation,
        is_crowded: superblock.epochs.len() >= EPOCHS_MAX,
        start: Start {
            geometry: *device.geometry(),
            limits,
            epochs: superblock.epochs,
            segments: walk.segments,
            recovered: walk.recovered,
        },
    })
}

/// What was found of the epochs so far.
#[derive(Debug)]
struct Walk {
    geometry: Geometry,
    destaged: u64,
    now: Instant,
    epochs: Vec<Epoch>,
    segments: Vec<Live>,
    recovered: Recovered,
    /// The first seq after it.
    end: u64,
    next_segment: u32,
}

impl Walk {
    fn new(geometry: Geometry, superblock: &Superblock, destaged: u64, now: Instant) -> Self {
        Self {
            geometry,
            destaged,
            now,
            epochs: Vec::new(),
            segments: Vec::new(),
            recovered: Recovered::new(geometry, destaged),
            end: destaged,
            next_segment: superblock.epochs[0].segment,
        }
    }

    /// Whether the ring goes on with this epoch.
    fn is_next(&self, epoch: &Epoch) -> bool {
        epoch.segment == self.next_segment || self.segments.is_empty()
    }

    fn take(&mut self, epoch: &Epoch, segment: &Segment, segments: &mut Vec<Live>) {
        segments.push(segment.live);
        self.recovered.take(segment, epoch.nonce, self.now);
    }

    fn end(&mut self, epoch: &Epoch, scanned: &Scanned, segments: Vec<Live>) {
        let last = scanned.last_segment;
        self.next_segment = last.map_or(epoch.segment, |last| self.geometry.after(last));
        self.end = self.end.max(scanned.end_seq);
        let is_live = scanned.end_seq > self.destaged && scanned.end_seq > epoch.first_seq;
        if is_live || !self.segments.is_empty() {
            self.segments.extend(segments);
        }
        if is_live {
            self.epochs.push(Epoch {
                end_seq: scanned.end_seq,
                ..*epoch
            });
        }
    }
}

/// What the backing has: as the superblock says, or the sidecar, where the device could not.
async fn destaged_of(cx: &AttachContext, superblock: &Superblock) -> u64 {
    let note = cx.sidecar().get(DESTAGED).await;
    let note = note.and_then(|note| Some((note.get_u64(0)?, note.get_u64(8)?)));
    match note {
        Some((epoch, seq)) if epoch == superblock.current().epoch => {
            superblock.destaged_seq.max(seq)
        }
        _ => superblock.destaged_seq,
    }
}

/// Says in the sidecar what the superblock cannot.
pub(crate) async fn note_destaged(cx: &AttachContext, epoch: u64, seq: u64) -> Result<()> {
    let note = [epoch.to_le_bytes(), seq.to_le_bytes()].concat();
    cx.sidecar()
        .commit(&[(DESTAGED, Some(Bytes::from(note)))])
        .await
}

/// Says in the sidecar that the log is empty: a device that is lost now loses nothing.
pub(crate) async fn note_clean(cx: &AttachContext) -> Result<()> {
    cx.sidecar()
        .commit(&[(CLEAN, Some(Bytes::from_static(b"1")))])
        .await
}

fn damage(text: &str) -> Error {
    Error::new(ErrorKind::Corrupt, text)
}

pub(crate) fn unconnected() -> Error {
    damage("the segments of the log do not follow each other")
}

pub(crate) fn missing(seq: u64) -> Error {
    let text = format!(
        "the log of the cache device is damaged: a record that was durable is not there, \
         seq={seq}; restore the device, or detach the cache and give up what it held"
    );
    Error::new(ErrorKind::Corrupt, text)
}
