//! A read: from the log what is there, from below what is not.
//!
//! * V1: what comes from the cache device is verified, every time. What does not verify is an
//!   error with the extent, never data.
//! * V2: a reader pins the segments that it reads, in the same moment as it looks at the map.
//! * V3: what is not durable comes from memory: after a failed flush the device may have lost it.
//!
//! A block that is not in the log at that moment is below, and stays there while it is overwritten.

use bytes::{Bytes, BytesMut};
use vaio_core::{Error, ErrorKind, Extent, Io, Next, Reply, Result, Severity};

use crate::{
    cache::Cache,
    checksum::crc,
    geometry::{At, Span, index},
    log::Log,
    map::{Found, Piece, Source},
};

/// Most bytes that are read from the cache device at once.
const READ_BYTES_MAX: u64 = 1 << 20;

/// A stretch to read, and where it is.
#[derive(Clone, Debug)]
struct Part {
    span: Span,
    from: From,
}

#[derive(Clone, Debug)]
enum From {
    Below,
    Zeroes,
    /// The whole piece.
    Memory(Span, Bytes),
    Device(Piece, At, u32),
}

/// What is to be read. The segments that it is in are not used again while this lives (V2).
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    cache: &'a Cache,
    parts: Vec<Part>,
    segments: Vec<u32>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.segments.is_empty() {
            return;
        }
        {
            let mut log = self.cache.log();
            for segment in &self.segments {
                log.unpin(*segment);
            }
        }
        self.cache.progress.notify_all();
    }
}

impl Cache {
    /// A read of the guest.
    pub(crate) async fn read(&self, io: Io, extent: Extent, next: Next<'_>) -> Result<Reply> {
        let span = self.device.geometry().span(extent);
        let taken = {
            let mut log = self.log();
            let found = log.find(span);
            if found.iter().any(|found| found.piece.is_some()) {
                Some(self.take(&mut log, &found))
            } else {
                None
            }
        };
        let Some(taken) = taken else {
            return next.submit(io).await;
        };
        let mut data = BytesMut::with_capacity(index(extent.len()));
        let mut rest = &taken.parts[..];
        while let Some(part) = rest.first() {
            if matches!(part.from, From::Below) {
                let gap = self.device.geometry().extent(part.span);
                data.extend_from_slice(&next.read(gap).await?);
                rest = &rest[1..];
            } else {
                rest = self.append_run(rest, &mut data).await?;
            }
        }
        Ok(Reply::Data(data.freeze()))
    }

    /// Keeps a segment, whatever is in it (V2).
    pub(crate) fn pin_segment(&self, log: &mut Log, segment: u32) -> Taken<'_> {
        log.pin_segment(segment);
        Taken {
            cache: self,
            parts: Vec::new(),
            segments: vec![segment],
        }
    }

    /// Looks where stretches are, and keeps them there (V2).
    pub(crate) fn take(&self, log: &mut Log, found: &[Found]) -> Taken<'_> {
        let parts = parts_of(log, found);
        let segments = pin(log, &parts);
        Taken {
            cache: self,
            parts,
            segments,
        }
    }

    /// Content of stretches that are all in the log, one after the other.
    pub(crate) async fn load(&self, taken: &Taken<'_>) -> Result<Bytes> {
        let mut data = BytesMut::new();
        let mut rest = &taken.parts[..];
        while !rest.is_empty() {
            rest = self.append_run(rest, &mut data).await?;
        }
        Ok(data.freeze())
    }

    /// Appends what can be had with one read; gives what is left.
    async fn append_run<'p>(&self, parts: &'p [Part], data: &mut BytesMut) -> Result<&'p [Part]> {
        let geometry = self.device.geometry();
        let (first, rest) = parts.split_first().expect("called with a part");
        let len = index(geometry.bytes(first.span.count));
        match &first.from {
            From::Below => unreachable!("what is below is read there"),
            From::Zeroes => {
                data.resize(data.len() + len, 0);
                Ok(rest)
            }
            From::Memory(piece, bytes) => {
                let from = index(geometry.bytes(first.span.start - piece.start));
                data.extend_from_slice(&bytes[from..from + len]);
                Ok(rest)
            }
            From::Device(_, at, _) => {
                let count = run_len(parts, geometry.bytes(1));
                let (run, rest) = parts.split_at(count);
                let blocks: u64 = run.iter().map(Part::piece_blocks).sum();
                let bytes = self.device.read(*at, blocks).await?;
                let mut place = 0;
                for part in run {
                    let end = place + index(geometry.bytes(part.piece_blocks()));
                    self.append_verified(part, &bytes.slice(place..end), data)?;
                    place = end;
                }
                Ok(rest)
            }
        }
    }

    /// V1.
    fn append_verified(&self, part: &Part, bytes: &Bytes, data: &mut BytesMut) -> Result<()> {
        let From::Device(piece, at, sum) = &part.from else {
            unreachable!("a run is of the device");
        };
        let geometry = self.device.geometry();
        if crc(bytes) != *sum {
            let extent = geometry.extent(part.span);
            let text = format!(
                "dirty data on the cache device does not verify, cache_offset={} extent={extent}",
                geometry.offset(*at)
            );
            let next_step = "replace the cache device; what it held of this extent is lost";
            self.event(Severity::Error, text.clone(), next_step);
            return Err(Error::new(ErrorKind::Corrupt, text).with_extent(extent));
        }
        let from = index(geometry.bytes(part.span.start - piece.span.start));
        let len = index(geometry.bytes(part.span.count));
        data.extend_from_slice(&bytes[from..from + len]);
        Ok(())
    }
}

impl Part {
    fn piece_blocks(&self) -> u64 {
        match &self.from {
            From::Device(piece, _, _) => piece.span.count,
            _ => 0,
        }
    }
}

/// How many parts from the first on lie one after the other on the cache device.
fn run_len(parts: &[Part], block: u64) -> usize {
    let mut expected = None;
    let mut blocks = 0;
    parts
        .iter()
        .take_while(|part| {
            let From::Device(piece, at, _) = &part.from else {
                return false;
            };
            blocks += piece.span.count;
            let is_next = expected.is_none_or(|expected| expected == *at);
            expected = Some(at.plus(piece.span.count));
            is_next && (blocks == piece.span.count || blocks * block <= READ_BYTES_MAX)
        })
        .count()
}

fn parts_of(log: &Log, found: &[Found]) -> Vec<Part> {
    let parts = found.iter().map(|found| Part {
        span: found.span,
        from: match found.piece {
            None => From::Below,
            Some(piece) => match piece.source {
                Source::Zeroes { .. } => From::Zeroes,
                // V3.
                Source::Data { at, crc } => match log.in_memory(at, piece.span.count) {
                    Some(bytes) => From::Memory(piece.span, bytes),
                    None => From::Device(piece, at, crc),
                },
            },
        },
    });
    parts.collect()
}

fn pin(log: &mut Log, parts: &[Part]) -> Vec<u32> {
    let places = parts.iter().filter_map(|part| match &part.from {
        From::Device(_, at, _) => Some(*at),
        _ => None,
    });
    places.map(|at| log.pin(at)).collect()
}
