//! Sequential reads: a stream that goes on is not worth keeping; the backing is good at it. Pure.

use crate::geometry::Span;

/// Streams that are known at once.
const STREAMS_MAX: usize = 32;
/// Bytes in a row from which on a stream is not filled any more.
const SEQUENTIAL_BYTES: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    next: u64,
    bytes: u64,
}

/// The last few streams of misses, the one that went on last at the end.
#[derive(Debug, Default)]
pub(crate) struct Streams(Vec<Stream>);

impl Streams {
    /// Notes a miss; whether it belongs to a long stream.
    pub(crate) fn is_sequential(&mut self, span: Span, bytes: u64) -> bool {
        let known = self.0.iter().position(|one| one.next == span.start);
        let before = known.map(|place| self.0.remove(place));
        if self.0.len() == STREAMS_MAX {
            self.0.remove(0);
        }
        let bytes = before.map_or(0, |one| one.bytes).saturating_add(bytes);
        let next = span.end();
        self.0.push(Stream { next, bytes });
        bytes > SEQUENTIAL_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(streams: &mut Streams, start: u64) -> bool {
        streams.is_sequential(Span { start, count: 64 }, 64 << 10)
    }

    #[test]
    fn stream_is_sequential_behind_its_first_mebibyte_also_among_others() {
        let mut streams = Streams::default();
        for step in 0..16 {
            assert!(!read(&mut streams, step * 64));
            assert!(!read(&mut streams, 1_000_000 + step * 999));
        }
        assert!(read(&mut streams, 16 * 64));
        assert!(!read(&mut streams, 5_000_000));
        assert!(read(&mut streams, 17 * 64));
    }

    #[test]
    fn only_so_many_streams_are_known() {
        let mut streams = Streams::default();
        for step in 0..17 {
            assert_eq!(read(&mut streams, step * 64), step == 16);
        }
        for other in 0..32 {
            assert!(!read(&mut streams, 1_000_000 + other * 999));
        }
        assert!(!read(&mut streams, 17 * 64), "forgotten");
    }
}
