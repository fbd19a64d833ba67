//! The inspector: what is on a cache device, for people and for tools. It only reads.
//!
//! It walks the log with the same code as an open (`scan`), so that it cannot see
//! something else; but where an open would refuse it says so, and what would be lost.
//!
//! * I1: nothing is written, no lock is taken. Of a device that someone writes meanwhile it shows
//!   some moment's view of each part; it may then report an end or damage that is none.
//! * I2: any input ends in a report or an error. Memory is bounded by what verifies on the device
//!   and by [`RECORDS_LISTED_MAX`].

mod extents;
#[cfg(test)]
mod tests;
mod view;

use std::sync::Arc;

use vaio_core::{BlockDevice, BlockDeviceExt, Error, Result};

use crate::{
    device::CacheDevice,
    footer,
    geometry::{At, Span},
    lost,
    record::{Header, Kind},
    recover,
    scan::{Scanned, Segment, scan},
    superblock::{Epoch, OPEN, Superblock},
};
use extents::Extents;
pub use view::{
    Damage, EpochView, Inspection, LogView, RecordView, SegmentView, SuperblockPlace, Verdict,
};

/// Most records that a report lists; more are counted.
pub const RECORDS_LISTED_MAX: usize = 1 << 20;
/// Largest superblock in bytes; the second one lies behind the first.
const SUPERBLOCK_BYTES_MAX: u64 = 64 << 10;
/// Smallest superblock in bytes.
const SUPERBLOCK_BYTES_MIN: u64 = 512;

/// How much of the device is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Depth {
    /// Superblocks, footers and headers; payload only where an open would look at it.
    #[default]
    Headers,
    /// Every payload too: finds bit rot that a read or the destager would meet. Records are listed.
    Payloads,
}

/// Reads a cache device and says what is on it.
///
/// Cancel-safe: it only reads.
///
/// # Errors
/// Those of reading the device. Whatever is *on* it is no error but part of the report.
pub async fn inspect(device: Arc<dyn BlockDevice>, depth: Depth) -> Result<Inspection> {
    let capacity = device.info().capacity;
    let (superblocks, found) = superblocks(&*device).await?;
    let log = match found {
        None => None,
        Some(superblock) => Some(log_of(device, superblock, depth).await?),
    };
    Ok(Inspection {
        capacity,
        superblocks,
        log,
    })
}

/// The two places, and the superblock that counts.
async fn superblocks(
    device: &dyn BlockDevice,
) -> Result<(Vec<SuperblockPlace>, Option<Superblock>)> {
    let block = u64::from(device.info().logical_block);
    let capacity = device.info().capacity / block * block;
    let front = device
        .read(0, capacity.min(2 * SUPERBLOCK_BYTES_MAX))
        .await?;
    let at = |offset: u64| front.get(crate::geometry::index(offset)..);
    let first = at(0).and_then(Superblock::decode);
    // The second lies behind a header of a size that the first tells, or else the second itself.
    let of_size = |bytes: u64| {
        let found = at(bytes).and_then(Superblock::decode)?;
        (found.geometry.header_bytes() as u64 == bytes).then_some((bytes, found))
    };
    let places = || {
        let step = crate::geometry::index(SUPERBLOCK_BYTES_MIN);
        (SUPERBLOCK_BYTES_MIN..=SUPERBLOCK_BYTES_MAX).step_by(step)
    };
    let second = match &first {
        Some(first) => of_size(first.geometry.header_bytes() as u64),
        None => places().find_map(of_size),
    };
    let other =
        |bytes: &u64| at(*bytes).is_some_and(|one| Superblock::other_version(one).is_some());
    let default = u64::from(crate::Sizes::default().header_bytes);
    let header = match (&first, &second) {
        (Some(one), _) | (None, Some((_, one))) => one.geometry.header_bytes() as u64,
        (None, None) => places().find(other).unwrap_or(default),
    };
    let second = second.map(|(_, found)| found);
    let place = |offset: u64, found: Option<&Superblock>| SuperblockPlace {
        offset,
        verdict: match found {
            Some(found) => Verdict::Valid {
                generation: found.generation,
            },
            None if is_empty(at(offset), header) => Verdict::Empty,
            None => match at(offset).and_then(Superblock::other_version) {
                Some(version) => Verdict::OtherVersion { version },
                None => Verdict::Invalid,
            },
        },
    };
    let places = vec![place(0, first.as_ref()), place(header, second.as_ref())];
    // S3.
    let is_known = !places.iter().any(|place| place.other_version().is_some());
    let found = Superblock::newer(first, second);
    Ok((places, found.filter(|_| is_known)))
}

fn is_empty(bytes: Option<&[u8]>, len: u64) -> bool {
    let bytes = bytes.unwrap_or_default();
    let len = bytes.len().min(crate::geometry::index(len));
    bytes[..len].iter().all(|byte| *byte == 0)
}

async fn log_of(
    device: Arc<dyn BlockDevice>,
    superblock: Superblock,
    depth: Depth,
) -> Result<LogView> {
    let geometry = superblock.geometry;
    let capacity = device.info().capacity;
    let mut view = empty(&superblock);
    let wanted = geometry.bytes(geometry.blocks());
    if wanted > capacity {
        view.damage = Some(Damage {
            text: format!(
                "the device is shorter than its log, capacity={capacity} needed={wanted}; find \
                 the whole device"
            ),
            lost_bytes: 0,
        });
        return Ok(view);
    }
    let device = match CacheDevice::new(device, geometry) {
        Ok(device) => device,
        Err(error) => {
            view.damage = Some(Damage {
                text: error.to_line(),
                lost_bytes: 0,
            });
            return Ok(view);
        }
    };
    let mut walk = Walk {
        device,
        destaged: superblock.destaged_seq,
        depth,
        next_segment: None,
        dirty: Extents::default(),
        view,
    };
    for number in 0..superblock.epochs.len() {
        walk.epoch(&superblock.epochs[number..]).await?;
        if walk.view.damage.is_some() {
            break;
        }
    }
    let Walk {
        mut view, dirty, ..
    } = walk;
    view.dirty = dirty.iter().map(|span| geometry.extent(span)).collect();
    view.dirty_bytes = view.dirty.iter().map(|one| one.len()).sum();
    Ok(view)
}

fn empty(superblock: &Superblock) -> LogView {
    let geometry = &superblock.geometry;
    let bytes = |blocks: u32| {
        u32::try_from(geometry.bytes(blocks.into())).expect("validated: at most 1 GiB")
    };
    LogView {
        identity: superblock.identity,
        owner: superblock.owner,
        generation: superblock.generation,
        destaged_seq: superblock.destaged_seq,
        logical_block: geometry.block,
        sizes: crate::Sizes::new(
            bytes(geometry.unit),
            bytes(geometry.header),
            bytes(geometry.segment),
            bytes(geometry.footer),
        )
        .with_region(bytes(geometry.region)),
        segment_count: geometry.segments,
        region_count: geometry.regions,
        epochs: Vec::new(),
        segments: Vec::new(),
        end_seq: superblock.destaged_seq,
        durable_seq: superblock.destaged_seq,
        end_offset: None,
        record_count: 0,
        records: Vec::new(),
        bad_payloads: 0,
        dirty: Vec::new(),
        dirty_bytes: 0,
        damage: None,
    }
}

/// The way through the log.
struct Walk {
    device: CacheDevice,
    destaged: u64,
    depth: Depth,
    /// Where the ring goes on behind what is needed.
    next_segment: Option<u32>,
    dirty: Extents,
    view: LogView,
}

impl Walk {
    /// The first of these epochs; the others are looked at if it is damaged.
    async fn epoch(&mut self, epochs: &[Epoch]) -> Result<()> {
        let epoch = &epochs[0];
        let mut segments = Vec::new();
        let mut take = |segment| segments.push(segment);
        let scanned = scan(&self.device, epoch, self.destaged, &mut take).await?;
        // What is all on the backing need not be there.
        let is_needed = epoch.end_seq > self.destaged;
        let follows = self.next_segment.is_none_or(|next| next == epoch.segment);
        if is_needed && (scanned.is_cut || !follows) {
            let why = if follows {
                recover::missing(scanned.end_seq)
            } else {
                recover::unconnected()
            };
            self.damaged(&why, epochs, &scanned).await?;
        }
        if is_needed && let Some(last) = scanned.last_segment {
            self.next_segment = Some(self.device.geometry().after(last));
        }
        self.view.epochs.push(EpochView {
            epoch: epoch.epoch,
            first_seq: epoch.first_seq,
            end_seq: (epoch.end_seq != OPEN).then_some(epoch.end_seq),
            found_end_seq: scanned.end_seq,
            records: segments.iter().map(|one| one.records.len() as u64).sum(),
        });
        for segment in &segments {
            self.segment(segment, epoch).await?;
        }
        self.view.end_seq = self.view.end_seq.max(scanned.end_seq);
        Ok(())
    }

    async fn damaged(&mut self, why: &Error, epochs: &[Epoch], scanned: &Scanned) -> Result<()> {
        let from = scanned.last_segment.unwrap_or(epochs[0].segment);
        let end = scanned.end_seq.max(self.destaged);
        let lost = lost::behind(&self.device, epochs, from, end, u64::MAX).await?;
        self.view.damage = Some(Damage {
            text: why.to_line(),
            lost_bytes: lost.bytes.max(1),
        });
        Ok(())
    }

    async fn segment(&mut self, found: &Segment, epoch: &Epoch) -> Result<()> {
        let geometry = *self.device.geometry();
        let live = found.live;
        let at = geometry.footer_at(live.segment);
        let bytes = self.device.read(at, geometry.footer.into()).await?;
        let footer = footer::decode(&bytes, epoch.nonce, epoch.epoch, &geometry);
        let first = footer.and_then(|headers| headers.first().map(|(header, _)| header.seq));
        self.view.segments.push(SegmentView {
            segment: live.segment,
            offset: geometry.offset(geometry.segment_at(live.segment)),
            epoch: live.epoch,
            first_seq: live.first_seq,
            end_seq: found.end_seq(),
            records: found.records.len() as u64,
            is_sealed: first == Some(live.first_seq),
            is_dirty: found.end_seq() > self.destaged,
        });
        for (header, at) in &found.records {
            self.record(header, *at).await?;
        }
        Ok(())
    }

    async fn record(&mut self, header: &Header, at: At) -> Result<()> {
        let geometry = *self.device.geometry();
        let is_dirty = header.end() > self.destaged;
        let entries = header.entries.iter().filter(|one| one.kind != Kind::Void);
        let spans: Vec<Span> = entries.map(|one| one.span).collect();
        if is_dirty {
            for span in &spans {
                self.dirty.insert(*span);
            }
        }
        let payload = at.plus(geometry.header.into());
        let view = &mut self.view;
        view.record_count += 1;
        view.durable_seq = view.durable_seq.max(header.durable_seq);
        view.end_offset = Some(geometry.offset(payload.plus(header.payload())));
        if self.depth == Depth::Headers {
            return Ok(());
        }
        let is_payload_valid = match header.payload() {
            0 => true,
            blocks => {
                let bytes = self.device.read(payload, blocks).await?;
                header.is_payload(&bytes, &geometry)
            }
        };
        view.bad_payloads += u64::from(!is_payload_valid);
        if view.records.len() < RECORDS_LISTED_MAX {
            view.records.push(RecordView {
                offset: geometry.offset(at),
                epoch: header.epoch,
                seq: header.seq,
                end_seq: header.end(),
                durable_seq: header.durable_seq,
                cut: header.cut,
                payload_bytes: geometry.bytes(header.payload()),
                extents: spans
                    .into_iter()
                    .map(|span| geometry.extent(span))
                    .collect(),
                is_payload_valid: Some(is_payload_valid),
                is_dirty,
            });
        }
        Ok(())
    }
}
