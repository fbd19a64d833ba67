//! The ring of segments: which is written, which hold records, which are free. Pure.
//!
//! * G1: segments are used in the order of the ring, so that an open finds them by walking.
//! * G2: a segment is free only when all its records are destaged, that is durable in the
//!   superblock, and no reader holds a pin.

use std::collections::VecDeque;

use crate::geometry::{At, Geometry};

/// A segment that holds records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) segment: u32,
    pub(crate) epoch: u64,
    /// Seq of its first record.
    pub(crate) first_seq: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Segments {
    geometry: Geometry,
    /// From the oldest to the one that is written.
    live: VecDeque<Live>,
    pins: Vec<u32>,
    /// Blocks used in the newest; all of it once it is sealed.
    used: u32,
    /// Where the ring goes on when there is no live segment.
    next: u32,
}

impl Segments {
    pub(crate) fn new(geometry: Geometry, next: u32) -> Self {
        assert!(next < geometry.segments, "a segment of the log");
        Self {
            geometry,
            live: VecDeque::new(),
            pins: vec![0; geometry.segments as usize],
            used: geometry.room(),
            next,
        }
    }

    /// Takes over a segment that an open found.
    pub(crate) fn adopt(&mut self, live: Live) {
        assert_eq!(live.segment, self.next_segment(), "G1");
        self.live.push_back(live);
        self.used = self.geometry.room();
    }

    /// The segment that comes next in the ring.
    pub(crate) fn next_segment(&self) -> u32 {
        match self.live.back() {
            Some(last) => self.geometry.after(last.segment),
            None => self.next,
        }
    }

    /// Whether the next segment can be begun (G2).
    pub(crate) fn has_free(&self) -> bool {
        let next = self.next_segment();
        self.pins[next as usize] == 0 && self.live.iter().all(|live| live.segment != next)
    }

    /// Begins the next segment.
    pub(crate) fn begin(&mut self, epoch: u64, first_seq: u64) -> Live {
        assert!(self.has_free(), "G2");
        let live = Live {
            segment: self.next_segment(),
            epoch,
            first_seq,
        };
        self.live.push_back(live);
        self.used = 0;
        live
    }

    /// Blocks that the newest segment still has for records.
    pub(crate) fn room(&self) -> u32 {
        self.geometry.room() - self.used
    }

    /// Takes blocks of the newest segment.
    pub(crate) fn take(&mut self, blocks: u64) -> At {
        let live = self
            .live
            .back()
            .expect("a segment is begun before it is used");
        let at = self
            .geometry
            .segment_at(live.segment)
            .plus(self.used.into());
        self.used += u32::try_from(blocks).expect("a record fits a segment");
        assert!(self.used <= self.geometry.room(), "a record fits a segment");
        at
    }

    /// No more records in the newest.
    pub(crate) fn seal(&mut self) {
        self.used = self.geometry.room();
    }

    /// The segment that holds a seq, and the first seq behind it; `None` for the one that takes
    /// more.
    pub(crate) fn holding(&self, seq: u64) -> Option<(Live, u64)> {
        let behind = self.live.partition_point(|live| live.first_seq <= seq);
        let next = self.live.get(behind)?;
        Some((self.live[behind.checked_sub(1)?], next.first_seq))
    }

    /// How many hold records, and how many there are.
    pub(crate) fn used(&self) -> (u32, u32) {
        let live = u32::try_from(self.live.len()).expect("at most all segments");
        (live, self.geometry.segments)
    }

    pub(crate) fn live(&self) -> &VecDeque<Live> {
        &self.live
    }

    /// The segments that are needed when everything before `destaged_seq` is on the backing. The
    /// one that is written stays.
    pub(crate) fn needed(&self, destaged_seq: u64) -> impl Iterator<Item = Live> + '_ {
        let ends = self.live.iter().skip(1).map(|next| next.first_seq);
        let ends = ends.chain([u64::MAX]);
        self.live
            .iter()
            .zip(ends)
            .filter(move |(_, end)| *end > destaged_seq)
            .map(|(live, _)| *live)
    }

    /// Gives up the segments before the one that the durable superblock begins with (G2).
    pub(crate) fn retire(&mut self, tail_seq: u64) {
        let needed = self.needed(tail_seq).count();
        while self.live.len() > needed {
            self.live.pop_front();
        }
    }

    pub(crate) fn pin(&mut self, segment: u32) {
        self.pins[segment as usize] += 1;
    }

    pub(crate) fn unpin(&mut self, segment: u32) {
        let pins = &mut self.pins[segment as usize];
        assert!(*pins > 0, "unpinned as often as pinned");
        *pins -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Sizes;

    fn segments() -> Segments {
        let sizes = Sizes::new(1024, 512, 8 * 512, 512);
        let geometry = Geometry::new(512, 26 * 512, &sizes).expect("three segments");
        assert_eq!(geometry.segments, 3);
        Segments::new(geometry, 1)
    }

    #[test]
    fn ring_wraps_and_is_full_until_the_oldest_retires() {
        let mut ring = segments();
        for (seq, segment) in [(0, 1), (10, 2), (20, 0)] {
            assert!(ring.has_free());
            assert_eq!(ring.begin(1, seq).segment, segment);
            assert_eq!(ring.room(), 7);
        }
        assert!(!ring.has_free());
        ring.retire(9);
        assert!(!ring.has_free(), "seq 9 is still needed");
        ring.retire(10);
        assert!(ring.has_free());
        assert_eq!(ring.begin(1, 30).segment, 1);
    }

    #[test]
    fn pinned_segment_is_not_free() {
        let mut ring = segments();
        for seq in [0, 10, 20] {
            ring.begin(1, seq);
        }
        ring.pin(1);
        ring.retire(10);
        assert!(!ring.has_free());
        ring.unpin(1);
        assert!(ring.has_free());
    }

    #[test]
    fn records_lie_one_after_another_and_a_sealed_segment_takes_none() {
        let mut ring = segments();
        ring.begin(1, 0);
        let first = ring.take(3);
        assert_eq!(ring.take(2), first.plus(3));
        assert_eq!(ring.room(), 2);
        ring.seal();
        assert_eq!(ring.room(), 0);
    }
}
