//! Scanning: which records of an epoch are there. Reads only.
//!
//! * N1: a segment's headers come from its footer where that is valid (F1), else one by one, each
//!   following the one before (R1).
//! * N2: the log ends at the first record that is not valid. Payload is looked at only where no
//!   later header says that it was durable.
//! * N3: what lies behind that end tells whether it is the end or damage: a record that was durable
//!   cannot be behind it.

use vaio_core::Result;

use crate::{
    device::CacheDevice,
    footer,
    geometry::At,
    lost::{self, BEHIND_SEGMENTS_MAX},
    record::Header,
    segments::Live,
    superblock::{Epoch, OPEN},
};

/// One epoch of a log, as it was found.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    pub(crate) records: Vec<(Header, At)>,
    pub(crate) segments: Vec<Live>,
    /// The first seq that is not there.
    pub(crate) end_seq: u64,
    /// Where the ring goes on.
    pub(crate) next_segment: u32,
    /// Something was there behind the end: damage (O1).
    pub(crate) is_cut: bool,
}

/// Reads one epoch up to its end (O1).
pub(crate) async fn scan(device: &CacheDevice, epoch: &Epoch, destaged: u64) -> Result<Scanned> {
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
    if epoch.end_seq != OPEN {
        // Found and flushed by the open that ended it.
        scanned.is_cut = scanned.end_seq != epoch.end_seq;
        return Ok(scanned);
    }
    end_of_log(device, epoch, scanned, destaged).await
}

/// The headers of one segment, from its first record on, as far as they are valid.
pub(crate) async fn headers_of(
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
    let behind = behind(device, epoch, &scanned).await?;
    scanned.is_cut = witnessed(behind.iter()) > end.max(destaged);
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
        found.extend(lost::headers_in(device, std::slice::from_ref(epoch), segment).await?);
        segment = geometry.after(segment);
    }
    found.retain(|header| header.seq > scanned.end_seq);
    Ok(found)
}
