//! A read: from the log what is there, from the read store what is there, from below what is not.
//!
//! * V1: what comes from the cache device is verified, every time. What does not verify is an
//!   error with the extent, never data.
//!   Clean data is read from below then.
//! * V2: a reader pins the segments and regions that it reads, in the same moment as it looks at the
//!   map; and in that moment it asks for permission to keep what it is going to read below (X2).
//! * V3: what is not durable comes from memory: after a failed flush the device may have lost it.
//!
//! A block that is not in the log at that moment is below, and stays there while it is overwritten.
//! Neighbours on the device are read at once, over the headers between them: one IO for what was
//! written in order.

use std::sync::atomic::Ordering::Relaxed;

use bytes::{Bytes, BytesMut};
use vaio_core::{Error, ErrorKind, Extent, Io, Next, Origin, Reply, Result, Severity};

use crate::{
    cache::Cache,
    checksum::crc,
    geometry::{At, Geometry, Span, index},
    log::Log,
    map::{Found, Source},
    store::Token,
};

/// Most bytes that are read from the cache device at once.
const READ_BYTES_MAX: u64 = 1 << 20;
/// Bytes between neighbours that are read over rather than left out: a few headers.
const GAP_BYTES_MAX: u64 = 16 << 10;

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
    Device(Place),
}

/// A piece on the cache device.
#[derive(Clone, Copy, Debug)]
struct Place {
    piece: Span,
    at: At,
    crc: u32,
    /// In the read store: it is below too.
    is_clean: bool,
}

impl Place {
    fn end(&self) -> At {
        self.at.plus(self.piece.count)
    }
}

/// What is to be read. The segments that it is in are not used again while this lives (V2).
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    cache: &'a Cache,
    parts: Vec<Part>,
    segments: Vec<u32>,
    regions: Vec<u32>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for region in &self.regions {
            self.cache.store.unpin(*region);
        }
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
        let (taken, token) = self.look(span, io.origin);
        let Some(taken) = taken else {
            let reply = next.submit(io).await?;
            if let (Some(token), Reply::Data(data)) = (token, &reply) {
                self.store.offer(token, vec![(span, data.clone())]);
            }
            return Ok(reply);
        };
        let mut data = BytesMut::with_capacity(index(extent.len()));
        let mut fresh = Vec::new();
        let mut rest = &taken.parts[..];
        while let Some(part) = rest.first() {
            match &part.from {
                From::Below => {
                    let gap = next.read(self.device.geometry().extent(part.span)).await?;
                    data.extend_from_slice(&gap);
                    fresh.push((part.span, gap));
                    rest = &rest[1..];
                }
                From::Device(place) if place.is_clean => {
                    rest = self.append_clean(rest, &mut data, next).await?;
                }
                _ => rest = self.append_run(rest, &mut data).await?,
            }
        }
        if let Some(token) = token {
            self.store.offer(token, fresh);
        }
        Ok(Reply::Data(data.freeze()))
    }

    /// Where a read's blocks are, kept there (V2); `None`: all below. And permission to keep what
    /// is below (X2).
    fn look(&self, span: Span, origin: Origin) -> (Option<Taken<'_>>, Option<Token>) {
        let mut log = self.log();
        let found = log.find(span);
        let is_logged = found.iter().any(|found| found.piece.is_some());
        if !self.store.is_there() {
            return (is_logged.then(|| self.take(&mut log, &found)), None);
        }
        let mut taken = self.take(&mut log, &found);
        let parts = std::mem::take(&mut taken.parts);
        for part in parts {
            if matches!(part.from, From::Below) {
                self.look_in_store(part.span, &mut taken);
            } else {
                taken.parts.push(part);
            }
        }
        let is_below = |part: &Part| matches!(part.from, From::Below);
        // A copy of the whole disk would only push out what the guest uses.
        let is_missed = origin == Origin::Guest && taken.parts.iter().any(is_below);
        let token = is_missed.then(|| self.store.permit(span)).flatten();
        if taken.parts.iter().all(is_below) {
            return (None, token);
        }
        (Some(taken), token)
    }

    /// The parts of a stretch that is not in the log.
    fn look_in_store(&self, span: Span, taken: &mut Taken<'_>) {
        let geometry = self.device.geometry();
        let unit = u64::from(geometry.unit);
        for piece in geometry.pieces(span) {
            let from = if let Some(hit) = self.store.find(piece.start / unit) {
                self.store.hits.fetch_add(1, Relaxed);
                taken.regions.push(hit.region);
                From::Device(Place {
                    piece: Span {
                        start: piece.start / unit * unit,
                        count: unit,
                    },
                    at: hit.at,
                    crc: hit.crc,
                    is_clean: true,
                })
            } else {
                self.store.misses.fetch_add(1, Relaxed);
                From::Below
            };
            match (taken.parts.last_mut(), &from) {
                (Some(last), From::Below)
                    if matches!(last.from, From::Below) && last.span.end() == piece.start =>
                {
                    last.span.count += piece.count;
                }
                _ => taken.parts.push(Part { span: piece, from }),
            }
        }
    }

    /// Keeps a segment, whatever is in it (V2).
    pub(crate) fn pin_segment(&self, log: &mut Log, segment: u32) -> Taken<'_> {
        log.pin_segment(segment);
        Taken {
            cache: self,
            parts: Vec::new(),
            segments: vec![segment],
            regions: Vec::new(),
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
            regions: Vec::new(),
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
            From::Device(_) => {
                let run = &parts[..run_len(parts, geometry)];
                for (part, bytes) in run.iter().zip(self.read_run(run).await?) {
                    self.append_verified(part, &bytes, data)?;
                }
                Ok(&parts[run.len()..])
            }
        }
    }

    /// Appends a run of the read store; from below where it cannot be had.
    async fn append_clean<'p>(
        &self,
        parts: &'p [Part],
        data: &mut BytesMut,
        next: Next<'_>,
    ) -> Result<&'p [Part]> {
        let run = &parts[..run_len(parts, self.device.geometry())];
        let before = data.len();
        let is_right = match self.read_run(run).await {
            Ok(read) => {
                let mut pairs = run.iter().zip(read);
                pairs.all(|(part, bytes)| self.append_if_right(part, &bytes, data))
            }
            Err(_) => false,
        };
        if !is_right {
            data.truncate(before);
            let whole = Span::from_range(run[0].span.start, run[run.len() - 1].span.end());
            self.drop_clean(whole, "does not verify or cannot be read");
            let below = next.read(self.device.geometry().extent(whole)).await?;
            data.extend_from_slice(&below);
        }
        Ok(&parts[run.len()..])
    }

    /// Reads a run with one IO; the bytes of each of its parts' pieces.
    async fn read_run(&self, run: &[Part]) -> Result<Vec<Bytes>> {
        let places: Vec<_> = run.iter().filter_map(Part::place).collect();
        let (Some(first), Some(last)) = (places.first(), places.last()) else {
            return Ok(Vec::new());
        };
        let geometry = self.device.geometry();
        let blocks = u64::from(last.end().0 - first.at.0);
        let bytes = self.device.read(first.at, blocks).await?;
        let piece = |place: &&Place| {
            let from = index(geometry.bytes(u64::from(place.at.0 - first.at.0)));
            bytes.slice(from..from + index(geometry.bytes(place.piece.count)))
        };
        Ok(places.iter().map(piece).collect())
    }

    /// V1.
    fn append_verified(&self, part: &Part, bytes: &Bytes, data: &mut BytesMut) -> Result<()> {
        if self.append_if_right(part, bytes, data) {
            return Ok(());
        }
        let geometry = self.device.geometry();
        let extent = geometry.extent(part.span);
        let offset = part.place().map_or(0, |place| geometry.offset(place.at));
        let text = format!(
            "dirty data on the cache device does not verify, cache_offset={offset} extent={extent}"
        );
        let next_step = "replace the cache device; what it held of this extent is lost";
        self.event(Severity::Error, text.clone(), next_step);
        Err(Error::new(ErrorKind::Corrupt, text).with_extent(extent))
    }

    /// Appends a part of a piece, if the piece verifies.
    fn append_if_right(&self, part: &Part, bytes: &Bytes, data: &mut BytesMut) -> bool {
        let Some(place) = part.place() else {
            unreachable!("a run is of the device");
        };
        if crc(bytes) != place.crc {
            return false;
        }
        let geometry = self.device.geometry();
        let from = index(geometry.bytes(part.span.start - place.piece.start));
        let len = index(geometry.bytes(part.span.count));
        data.extend_from_slice(&bytes[from..from + len]);
        true
    }
}

impl Part {
    fn place(&self) -> Option<&Place> {
        match &self.from {
            From::Device(place) => Some(place),
            _ => None,
        }
    }
}

/// How many parts from the first on lie one after the other on the cache device, with little
/// between them.
fn run_len(parts: &[Part], geometry: &Geometry) -> usize {
    let Some(first) = parts.first().and_then(Part::place) else {
        return 0;
    };
    let mut end = first.at;
    parts
        .iter()
        .take_while(|part| {
            let Some(place) = part.place() else {
                return false;
            };
            let Some(gap) = place.at.0.checked_sub(end.0) else {
                return false;
            };
            let bytes = geometry.bytes(u64::from(place.end().0 - first.at.0));
            end = place.end();
            let is_near = geometry.bytes(gap.into()) <= GAP_BYTES_MAX && bytes <= READ_BYTES_MAX;
            place.is_clean == first.is_clean && (is_near || place.at == first.at)
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
                    None => From::Device(Place {
                        piece: piece.span,
                        at,
                        crc,
                        is_clean: false,
                    }),
                },
            },
        },
    });
    parts.collect()
}

fn pin(log: &mut Log, parts: &[Part]) -> Vec<u32> {
    let places = parts.iter().filter_map(Part::place);
    places.map(|place| log.pin(place.at)).collect()
}
