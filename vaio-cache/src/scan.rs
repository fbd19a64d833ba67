//! Scanning: which records of an epoch are there. Reads only.
//!
//! * N1: a segment's headers come from its footer where that is valid (F1), else one by one, each
//!   following the one before (R1).
//! * N2: the log ends at the first record that is not valid. Payload is looked at only where no
//!   later header says that it was durable.
//! * N3: what lies behind that end tells whether it is the end or damage: a record that was durable
//!   cannot be behind it.

use std::collections::VecDeque;

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
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

/// Footers that are read at the same time.
const READ_AHEAD: usize = 8;

/// A segment of an epoch, with those of its records that are there: at least one.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) live: Live,
    pub(crate) records: Vec<(Header, At)>,
}

impl Segment {
    pub(crate) fn end_seq(&self) -> u64 {
        let last = self.records.last();
        last.map_or(self.live.first_seq, |(header, _)| header.end())
    }
}

/// How far an epoch goes.
#[derive(Debug)]
pub(crate) struct Scanned {
    /// The last segment with something of it.
    pub(crate) last_segment: Option<u32>,
    /// The first seq that is not there.
    pub(crate) end_seq: u64,
    /// Something was there behind the end: damage (O1).
    pub(crate) is_cut: bool,
}

/// Reads one epoch up to its end (O1), and hands each segment over as soon as it is known to be
/// whole: memory for the headers of all of them would be many times what the map takes.
pub(crate) async fn scan(
    device: &CacheDevice,
    epoch: &Epoch,
    destaged: u64,
    take: &mut (dyn FnMut(Segment) + Send),
) -> Result<Scanned> {
    let mut scan = Scan {
        device,
        epoch,
        take,
        pending: VecDeque::new(),
        // What has an end was found and flushed by the open that ended it.
        durable: if epoch.end_seq == OPEN {
            destaged
        } else {
            OPEN
        },
        scanned: Scanned {
            last_segment: None,
            end_seq: epoch.first_seq,
            is_cut: false,
        },
    };
    let mut footers = Footers::new(device, epoch.segment);
    let walked = scan.walk(&mut footers).await;
    footers.end().await;
    walked?;
    if epoch.end_seq == OPEN {
        scan.end_of_log(destaged).await?;
    } else {
        scan.scanned.is_cut = scan.scanned.end_seq != epoch.end_seq;
    }
    Ok(scan.scanned)
}

/// The footers of segments in the order of the ring, some of them read ahead.
struct Footers<'a> {
    device: &'a CacheDevice,
    next: u32,
    left: u32,
    ahead: FuturesOrdered<BoxFuture<'a, (u32, Result<Bytes>)>>,
}

impl<'a> Footers<'a> {
    fn new(device: &'a CacheDevice, first: u32) -> Self {
        Self {
            device,
            next: first,
            left: device.geometry().segments,
            ahead: FuturesOrdered::new(),
        }
    }

    async fn next(&mut self) -> Option<(u32, Result<Bytes>)> {
        while self.ahead.len() < READ_AHEAD && self.left > 0 {
            let (device, segment) = (self.device, self.next);
            let read = async move { (segment, footer_of(device, segment).await) };
            self.ahead.push_back(read.boxed());
            self.next = device.geometry().after(segment);
            self.left -= 1;
        }
        self.ahead.next().await
    }

    /// What was begun ends, though no one wants it any more.
    async fn end(mut self) {
        while self.ahead.next().await.is_some() {}
    }
}

async fn footer_of(device: &CacheDevice, segment: u32) -> Result<Bytes> {
    let geometry = device.geometry();
    let at = geometry.footer_at(segment);
    device.read(at, geometry.footer.into()).await
}

struct Scan<'a> {
    device: &'a CacheDevice,
    epoch: &'a Epoch,
    take: &'a mut (dyn FnMut(Segment) + Send),
    /// Read, and perhaps not whole (N2).
    pending: VecDeque<Segment>,
    /// What is before this seq is whole: a header says so, or the open that ended the epoch.
    durable: u64,
    scanned: Scanned,
}

impl Scan<'_> {
    async fn walk(&mut self, footers: &mut Footers<'_>) -> Result<()> {
        let mut prev_crc = None;
        while self.scanned.end_seq < self.epoch.end_seq
            && let Some((segment, footer)) = footers.next().await
        {
            let first_seq = self.scanned.end_seq;
            let (device, epoch) = (self.device, self.epoch);
            let footer = footer?;
            let records =
                headers(device, epoch, segment, first_seq, &footer, &mut prev_crc).await?;
            let Some((last, _)) = records.last() else {
                break;
            };
            self.scanned.end_seq = last.end();
            let said = witnessed(records.iter().map(|(header, _)| header));
            self.durable = self.durable.max(said);
            let live = Live {
                segment,
                epoch: epoch.epoch,
                first_seq,
            };
            self.pending.push_back(Segment { live, records });
            while let Some(whole) = self
                .pending
                .pop_front_if(|one| one.end_seq() <= self.durable)
            {
                self.hand_over(whole);
            }
        }
        Ok(())
    }

    fn hand_over(&mut self, segment: Segment) {
        self.scanned.last_segment = Some(segment.live.segment);
        (self.take)(segment);
    }

    /// Finds the end of the epoch that was written when the disk was closed or crashed (O1).
    async fn end_of_log(&mut self, destaged: u64) -> Result<()> {
        while let Some(mut segment) = self.pending.pop_front() {
            let torn = first_torn(self.device, &segment.records, self.durable).await?;
            if let Some(end) = torn {
                self.scanned.end_seq = segment.records[end].0.seq;
                segment.records.truncate(end);
                self.pending.clear();
            }
            if !segment.records.is_empty() {
                self.hand_over(segment);
            }
        }
        let durable = witnessed_behind(self.device, self.epoch, &self.scanned).await?;
        self.scanned.is_cut = durable > self.scanned.end_seq.max(destaged);
        Ok(())
    }
}

/// The first record whose payload is not whole; what is before `durable` is.
async fn first_torn(
    device: &CacheDevice,
    records: &[(Header, At)],
    durable: u64,
) -> Result<Option<usize>> {
    let geometry = device.geometry();
    for (index, (header, at)) in records.iter().enumerate() {
        if header.end() <= durable || header.payload() == 0 {
            continue;
        }
        let payload = at.plus(geometry.header.into());
        let bytes = device.read(payload, header.payload()).await?;
        if !header.is_payload(&bytes, geometry) {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// The headers of one segment, from its first record on, as far as they are valid.
pub(crate) async fn headers_of(
    device: &CacheDevice,
    epoch: &Epoch,
    segment: u32,
    first_seq: u64,
) -> Result<Vec<(Header, At)>> {
    let footer = footer_of(device, segment).await?;
    headers(device, epoch, segment, first_seq, &footer, &mut None).await
}

/// The same, where the footer was read.
async fn headers(
    device: &CacheDevice,
    epoch: &Epoch,
    segment: u32,
    first_seq: u64,
    footer: &[u8],
    prev_crc: &mut Option<u32>,
) -> Result<Vec<(Header, At)>> {
    let geometry = device.geometry();
    let mut at = geometry.segment_at(segment);
    let end = geometry.footer_at(segment);
    let mut found: Vec<(Header, At)> = Vec::new();
    let sealed = footer::decode(footer, epoch.nonce, epoch.epoch, geometry)
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

/// The highest seq before which everything was durable, as these headers know.
fn witnessed<'a>(headers: impl Iterator<Item = &'a Header>) -> u64 {
    headers.map(|header| header.durable_seq).max().unwrap_or(0)
}

/// What valid headers of the epoch behind its end know to have been durable, wherever they lie: in
/// the rest of the last segment, and in the segments that would have come next.
async fn witnessed_behind(device: &CacheDevice, epoch: &Epoch, scanned: &Scanned) -> Result<u64> {
    let geometry = device.geometry();
    let mut segment = scanned.last_segment.unwrap_or(epoch.segment);
    let (mut seen, mut empty) = (0, 0);
    for _ in 0..geometry.segments {
        let mut headers = lost::headers_in(device, std::slice::from_ref(epoch), segment).await?;
        headers.retain(|header| header.seq > scanned.end_seq);
        empty = if headers.is_empty() { empty + 1 } else { 0 };
        seen = seen.max(witnessed(headers.iter()));
        if empty == BEHIND_SEGMENTS_MAX {
            break;
        }
        segment = geometry.after(segment);
    }
    Ok(seen)
}
