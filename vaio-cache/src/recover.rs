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
//! * O5: nothing is destaged here: IO is served at once, and the log holds what it held.

use bytes::Bytes;
use vaio_core::{AttachContext, Error, ErrorKind, OpenReason, Result};

use crate::{
    bytes_at::Get,
    device::CacheDevice,
    footer,
    geometry::{At, Geometry},
    log::{Limits, Start},
    record::Header,
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

/// Segments that are looked at behind the end of the log: more than what can be on its way at once.
const BEHIND_SEGMENTS_MAX: u32 = 5;

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

/// One epoch of a log, as it was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scanned {
    pub(crate) records: Vec<(Header, At)>,
    pub(crate) segments: Vec<Live>,
    /// The first seq that is not there.
    pub(crate) end_seq: u64,
    /// Where the ring goes on.
    next_segment: u32,
}

/// Opens the log, or makes one.
pub(crate) async fn open(
    cx: &AttachContext,
    device: &CacheDevice,
    limits: Limits,
) -> Result<Opened> {
    let found = device.read_superblock().await?;
    if cx.reason() == OpenReason::Attach {
        return format(cx, device, limits, found.as_ref()).await;
    }
    let Some(superblock) = found else {
        if cx.reason() == OpenReason::Clean && cx.sidecar().get(CLEAN).await.is_some() {
            return format(cx, device, limits, None).await;
        }
        return Err(damage(
            "the cache device has no log; it held writes that the backing lacks: find the right \
             device",
        ));
    };
    check_identity(cx, device.geometry(), &superblock).await?;
    // O2.
    device.flush().await?;
    let opened = take_over(cx, device, limits, superblock).await?;
    if cx.sidecar().get(CLEAN).await.is_some() {
        cx.sidecar().commit(&[(CLEAN, None)]).await?;
    }
    cx.rt().probe("cache.recovered");
    Ok(opened)
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
            destaged_seq: 0,
            segments: Vec::new(),
            records: Vec::new(),
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
async fn check_identity(
    cx: &AttachContext,
    geometry: &Geometry,
    superblock: &Superblock,
) -> Result<()> {
    let id = cx.sidecar().get(IDENTITY).await;
    if id.and_then(|id| id.get_u64(0)) != Some(superblock.identity) {
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
    if superblock.geometry != *geometry {
        return Err(Error::config(
            "the cache device holds a log of another geometry; open it with the settings and the \
             size it was made with",
        ));
    }
    Ok(())
}

async fn take_over(
    cx: &AttachContext,
    device: &CacheDevice,
    limits: Limits,
    superblock: Superblock,
) -> Result<Opened> {
    let destaged = destaged_of(cx, &superblock).await;
    let mut epochs = Vec::new();
    let mut segments: Vec<Live> = Vec::new();
    let mut records = Vec::new();
    let mut end = destaged;
    let mut next_segment = superblock.epochs[0].segment;
    for one in &superblock.epochs {
        if one.end_seq <= destaged {
            // Nothing of it is needed, so nothing of it need be there.
            continue;
        }
        let scanned = judge(device, one, walk(device, one).await?, destaged).await?;
        if one.segment != next_segment && !segments.is_empty() {
            return Err(damage("the segments of the log do not follow each other"));
        }
        next_segment = scanned.next_segment;
        end = end.max(scanned.end_seq);
        let is_live = scanned.end_seq > destaged && scanned.end_seq > one.first_seq;
        if is_live || !segments.is_empty() {
            segments.extend(scanned.segments);
        }
        if is_live {
            epochs.push(Epoch {
                end_seq: scanned.end_seq,
                ..*one
            });
        }
        let live = scanned.records.into_iter();
        records.extend(live.filter(|(header, _)| header.end() > destaged));
    }
    epochs.push(Epoch {
        epoch: superblock.current().epoch + 1,
        nonce: cx.rt().entropy(),
        segment: next_segment,
        first_seq: end,
        end_seq: OPEN,
    });
    let superblock = Superblock {
        generation: superblock.generation + 1,
        owner: cx.epoch(),
        destaged_seq: destaged,
        epochs,
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
            destaged_seq: destaged,
            segments,
            records,
        },
    })
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

/// Reads the headers of one epoch as far as they follow each other.
pub(crate) async fn walk(device: &CacheDevice, epoch: &Epoch) -> Result<Scanned> {
    let geometry = device.geometry();
    let mut scanned = Scanned {
        end_seq: epoch.first_seq,
        next_segment: epoch.segment,
        ..Scanned::default()
    };
    let mut prev_crc = None;
    for _ in 0..geometry.segments {
        let segment = scanned.next_segment;
        let wanted = scanned.end_seq;
        if wanted >= epoch.end_seq {
            break;
        }
        let found = headers_of(device, epoch, segment, wanted, &mut prev_crc).await?;
        let Some((last, _)) = found.last() else {
            break;
        };
        scanned.end_seq = last.end();
        scanned.segments.push(Live {
            segment,
            epoch: epoch.epoch,
            first_seq: wanted,
        });
        scanned.records.extend(found);
        scanned.next_segment = geometry.after(segment);
    }
    Ok(scanned)
}

/// Whether what [`walk`] found is the whole epoch; cuts it off at its end (O1).
///
/// # Errors
/// Something that was durable is missing.
pub(crate) async fn judge(
    device: &CacheDevice,
    epoch: &Epoch,
    scanned: Scanned,
    destaged: u64,
) -> Result<Scanned> {
    if epoch.end_seq == OPEN {
        return end_of_log(device, epoch, scanned, destaged).await;
    }
    // Found and flushed by the open that ended it.
    if scanned.end_seq != epoch.end_seq {
        return Err(missing(scanned.end_seq));
    }
    Ok(scanned)
}

/// The headers of one segment, from its first record on, as far as they are valid.
async fn headers_of(
    device: &CacheDevice,
    epoch: &Epoch,
    segment: u32,
    first_seq: u64,
    prev_crc: &mut Option<u32>,
) -> Result<Vec<(Header, At)>> {
    let geometry = device.geometry();
    let footer = device
        .read(geometry.footer_at(segment), geometry.footer.into())
        .await?;
    let mut at = geometry.segment_at(segment);
    let end = geometry.footer_at(segment);
    let mut found: Vec<(Header, At)> = Vec::new();
    let sealed = footer::decode(&footer, epoch.nonce, epoch.epoch, geometry)
        .filter(|headers| headers.first().is_some_and(|(one, _)| one.seq == first_seq));
    if let Some(headers) = sealed {
        // The open that ended the epoch may have done so before the end of the segment.
        let ended = |header: &Header| header.end() > epoch.end_seq;
        for (header, crc) in headers.into_iter().take_while(|(one, _)| !ended(one)) {
            let next = at.plus(u64::from(geometry.header) + header.payload());
            *prev_crc = Some(crc);
            found.push((header, at));
            at = next;
        }
        return Ok(found);
    }
    let mut wanted = first_seq;
    while at.plus(geometry.header.into()) <= end && wanted < epoch.end_seq {
        let bytes = device.read(at, geometry.header.into()).await?;
        let Some((header, crc)) = Header::decode(&bytes, epoch.nonce, epoch.epoch, geometry) else {
            break;
        };
        let next = at.plus(u64::from(geometry.header) + header.payload());
        let is_next = header.seq == wanted
            && next <= end
            && prev_crc.is_none_or(|prev| prev == header.prev_crc);
        if !is_next {
            break;
        }
        *prev_crc = Some(crc);
        wanted = header.end();
        found.push((header, at));
        at = next;
    }
    Ok(found)
}

/// Finds the end of the epoch that was written when the disk was closed or crashed (O1).
async fn end_of_log(
    device: &CacheDevice,
    epoch: &Epoch,
    mut scanned: Scanned,
    destaged: u64,
) -> Result<Scanned> {
    let geometry = device.geometry();
    let durable = witnessed(scanned.records.iter().map(|(header, _)| header)).max(destaged);
    let mut whole = scanned.records.len();
    for (index, (header, at)) in scanned.records.iter().enumerate() {
        if header.end() <= durable {
            continue;
        }
        let payload = at.plus(geometry.header.into());
        let is_whole = match header.payload() {
            0 => true,
            blocks => header.is_payload(&device.read(payload, blocks).await?, geometry),
        };
        if !is_whole {
            whole = index;
            break;
        }
    }
    if let Some((header, _)) = scanned.records.get(whole) {
        scanned.end_seq = header.seq;
    }
    scanned.records.truncate(whole);
    let end = scanned.end_seq;
    scanned.segments.retain(|live| live.first_seq < end);
    scanned.next_segment = scanned
        .segments
        .last()
        .map_or(epoch.segment, |live| geometry.after(live.segment));
    if witnessed(behind(device, epoch, &scanned).await?.iter()) > end.max(destaged) {
        return Err(missing(end));
    }
    Ok(scanned)
}

/// The highest seq before which everything was durable, as these headers know.
fn witnessed<'a>(headers: impl Iterator<Item = &'a Header>) -> u64 {
    headers.map(|header| header.durable_seq).max().unwrap_or(0)
}

/// Valid headers of the epoch behind its end, wherever they lie: in the rest of the last segment,
/// and in the segments that would have come next.
async fn behind(device: &CacheDevice, epoch: &Epoch, scanned: &Scanned) -> Result<Vec<Header>> {
    let geometry = device.geometry();
    let mut found = Vec::new();
    let mut segment = scanned
        .segments
        .last()
        .map_or(epoch.segment, |one| one.segment);
    for _ in 0..geometry.segments.min(BEHIND_SEGMENTS_MAX) {
        let bytes = device
            .read(geometry.segment_at(segment), geometry.segment.into())
            .await?;
        let footer_at = crate::geometry::index(geometry.bytes(geometry.room().into()));
        let sealed = footer::decode(&bytes[footer_at..], epoch.nonce, epoch.epoch, geometry);
        found.extend(sealed.into_iter().flatten().map(|(header, _)| header));
        let block = crate::geometry::index(geometry.bytes(1));
        for at in (0..footer_at).step_by(block) {
            let header = Header::decode(&bytes[at..], epoch.nonce, epoch.epoch, geometry);
            found.extend(header.map(|(header, _)| header));
        }
        segment = geometry.after(segment);
    }
    found.retain(|header| header.seq > scanned.end_seq);
    Ok(found)
}

fn damage(text: &str) -> Error {
    Error::new(ErrorKind::Corrupt, text)
}

fn missing(seq: u64) -> Error {
    let text = format!(
        "the log of the cache device is damaged: a record that was durable is not there, \
         seq={seq}; restore the device, or detach the cache and give up what it held"
    );
    Error::new(ErrorKind::Corrupt, text)
}
