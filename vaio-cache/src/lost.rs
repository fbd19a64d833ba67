//! What would be lost: counted before it is given up, and given up only where that was asked for.
//!
//! * K1: an open that would lose dirty data is refused, and says how much at most. Nothing on the
//!   device or in the sidecar was changed then.
//! * K2: the setting `discard_dirty` allows it: only if it is at least that number. The number may
//!   over-report, never under-report: what cannot be read counts as the most it can have been.
//! * K3: where the front of the log is whole, only what comes after is given up: the disk goes back
//!   to one moment of its history, never to a mixture.

use vaio_core::{AttachContext, Error, Notice, Result, Severity};

use crate::{
    device::CacheDevice,
    footer,
    geometry::{Geometry, index},
    log::{ZEROES_BLOCKS_MAX, bytes_of, entry_blocks_max},
    record::Header,
    superblock::{Epoch, OPEN},
};

/// Segments without anything of the log, one after another, behind which nothing is looked for:
/// more than what can be on its way at once.
pub(crate) const BEHIND_SEGMENTS_MAX: u32 = 5;

/// What an operator allows to be lost.
#[derive(Debug)]
pub(crate) struct Consent<'a> {
    pub(crate) cx: &'a AttachContext,
    /// The setting, in bytes.
    pub(crate) bytes: u64,
}

impl Consent<'_> {
    /// K1, K2.
    ///
    /// # Errors
    /// `why` with the number, where it is more than what is allowed.
    pub(crate) fn give_up(&self, lost: u64, why: &Error) -> Result<()> {
        let lost = lost.max(1);
        if self.bytes < lost {
            let text = format!(
                "{}; it would lose at most {lost} bytes of dirty data, which discard_dirty={lost} \
                 allows",
                why.message()
            );
            return Err(Error::new(why.kind(), text));
        }
        let text = format!(
            "dirty data was given up as discard_dirty={} allows, lost_bytes_max={lost}: {}",
            self.bytes,
            why.message()
        );
        let next_step = "check the file systems on the disk, and take discard_dirty out again";
        let notice = Notice::new(Severity::Error, text);
        self.cx.event(notice.with_next_step(next_step));
        self.cx.rt().probe("cache.discarded");
        Ok(())
    }

    /// The most that a device which cannot be read may have held: the whole disk.
    pub(crate) fn whole_disk(&self) -> u64 {
        self.cx.below().capacity
    }
}

/// What is in a log from some place on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// At most these bytes.
    pub(crate) bytes: u64,
    /// The first seq that is higher than all of it.
    pub(crate) end_seq: u64,
}

/// What these epochs hold at `seq` and behind it, looked for from `segment` on, wherever it lies
/// (K2). `disk` are the bytes of the disk, the most that it can be.
pub(crate) async fn behind(
    device: &CacheDevice,
    epochs: &[Epoch],
    segment: u32,
    seq: u64,
    disk: u64,
) -> Result<Lost> {
    let geometry = device.geometry();
    let mut headers = Vec::new();
    let (mut segment, mut empty) = (segment, 0);
    for _ in 0..geometry.segments {
        let before = headers.len();
        headers.extend(headers_in(device, epochs, segment).await?);
        empty = if headers.len() == before {
            empty + 1
        } else {
            0
        };
        if empty == BEHIND_SEGMENTS_MAX {
            break;
        }
        segment = geometry.after(segment);
    }
    Ok(count(&headers, epochs, seq, geometry, disk))
}

/// K2.
fn count(headers: &[Header], epochs: &[Epoch], seq: u64, geometry: &Geometry, disk: u64) -> Lost {
    let behind = || headers.iter().filter(|header| header.end() > seq);
    let known = behind().map(|header| header.end().max(header.durable_seq));
    let ended = epochs.iter().map(|one| one.end_seq);
    let ended = ended.filter(|end| *end != OPEN);
    let end_seq = known.chain(ended).fold(seq, u64::max);
    let seen: u64 = behind().map(|one| one.end() - one.seq.max(seq)).sum();
    let unseen = (end_seq - seq).saturating_sub(seen);
    let entry_max = geometry.bytes(entry_blocks_max(geometry).max(ZEROES_BLOCKS_MAX));
    let bytes: u64 = behind().map(|header| bytes_of(header, geometry)).sum();
    let bytes = bytes.saturating_add(unseen.saturating_mul(entry_max));
    Lost {
        bytes: bytes.min(disk),
        end_seq,
    }
}

/// Valid headers of these epochs in one segment, wherever they lie.
pub(crate) async fn headers_in(
    device: &CacheDevice,
    epochs: &[Epoch],
    segment: u32,
) -> Result<Vec<Header>> {
    let geometry = device.geometry();
    let at = geometry.segment_at(segment);
    let bytes = device.read(at, geometry.segment.into()).await?;
    let (records, footer_bytes) = bytes.split_at(index(geometry.bytes(geometry.room().into())));
    let mut found: Vec<Header> = Vec::new();
    for one in epochs {
        let sealed = footer::decode(footer_bytes, one.nonce, one.epoch, geometry);
        found.extend(sealed.into_iter().flatten().map(|(header, _)| header));
        for at in (0..records.len()).step_by(index(geometry.bytes(1))) {
            let header = Header::decode(&records[at..], one.nonce, one.epoch, geometry);
            found.extend(header.map(|(header, _)| header));
        }
    }
    found.sort_unstable_by_key(|header| header.seq);
    found.dedup_by_key(|header| header.seq);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        geometry::Span,
        record::{Entry, Kind, tests::geometry},
    };

    fn header(seq: u64, durable_seq: u64) -> Header {
        Header {
            epoch: 1,
            seq,
            durable_seq,
            cut: 0,
            prev_crc: 0,
            entries: vec![Entry {
                span: Span { start: 0, count: 2 },
                kind: Kind::Zeroes,
            }],
            sums: Vec::new(),
        }
    }

    #[test]
    fn what_cannot_be_read_counts_as_the_most_it_can_be() {
        let disk = 1 << 40;
        let whole = count(&[header(5, 0), header(6, 0)], &[], 5, &geometry(), disk);
        assert_eq!((whole.bytes, whole.end_seq), (2048, 7));
        let hole = count(&[header(6, 0)], &[], 5, &geometry(), disk);
        assert_eq!(hole.bytes, 1024 + ZEROES_BLOCKS_MAX * 512);
        let witness = count(&[header(5, 8)], &[], 5, &geometry(), disk);
        assert_eq!(witness.bytes, 1024 + 2 * ZEROES_BLOCKS_MAX * 512);
        assert_eq!(witness.end_seq, 8);
        let small = count(&[header(6, 0)], &[], 5, &geometry(), 4096);
        assert_eq!(small.bytes, 4096, "never more than the disk");
        let nothing = count(&[header(3, 0)], &[], 5, &geometry(), disk);
        assert_eq!((nothing.bytes, nothing.end_seq), (0, 5));
    }
}
