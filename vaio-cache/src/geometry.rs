//! Where things lie on the cache device, and the two kinds of place: [`Span`] on the disk, [`At`]
//! on the cache device. Both count logical blocks of the disk.
//!
//! ```text
//! | superblock 0 | superblock 1 | segment 0 | ... | segment n-1 | region 0 | ... | region m-1 |
//!                               |records ..|footer|
//! ```
//! A *unit* is what is checksummed and mapped; a *header* is the metadata block of a record and the
//! size of a superblock. Everything is a parameter, so that the same code runs on a few blocks.

use vaio_core::{Error, Extent, Result};

/// Consecutive logical blocks of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) count: u64,
}

impl Span {
    pub(crate) const fn end(self) -> u64 {
        self.start + self.count
    }

    pub(crate) const fn from_range(start: u64, end: u64) -> Self {
        assert!(start <= end, "a span does not end before its start");
        Self {
            start,
            count: end - start,
        }
    }
}

/// A logical block of the cache device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct At(pub(crate) u32);

impl At {
    /// The block `blocks` further on.
    ///
    /// # Panics
    /// Beyond what a geometry may have.
    pub(crate) fn plus(self, blocks: u64) -> Self {
        let blocks = u32::try_from(blocks).expect("inside the cache device");
        Self(self.0.checked_add(blocks).expect("inside the cache device"))
    }
}

/// The sizes that a log is made with, in bytes.
///
/// All are multiples of the disk's logical block; a block that is larger than a size replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sizes {
    /// What is checksummed and mapped. Default 4 KiB; at most 64 KiB.
    pub unit_bytes: u32,
    /// Metadata of a record, and a superblock. Default 4 KiB; 512 bytes to 64 KiB.
    pub header_bytes: u32,
    /// A segment, the footer included. Default 4 MiB; at most 1 GiB.
    pub segment_bytes: u32,
    /// What a segment's footer may take. Default 64 KiB.
    pub footer_bytes: u32,
    /// A region of the read store. Default 1 MiB; at most 64 MiB.
    pub region_bytes: u32,
    /// Of 100 bytes of the device, how many are for reads. Default 50; at most 90. The setting
    /// `read_percent` replaces it.
    pub read_percent: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            unit_bytes: 4 << 10,
            header_bytes: 4 << 10,
            segment_bytes: 4 << 20,
            footer_bytes: 64 << 10,
            region_bytes: 1 << 20,
            read_percent: 50,
        }
    }
}

impl Sizes {
    /// Sizes other than the defaults; for tests, which want everything small.
    #[must_use]
    pub const fn new(unit: u32, header: u32, segment: u32, footer: u32) -> Self {
        Self {
            unit_bytes: unit,
            header_bytes: header,
            segment_bytes: segment,
            footer_bytes: footer,
            region_bytes: 1 << 20,
            read_percent: 50,
        }
    }

    /// The same with regions of another size.
    #[must_use]
    pub const fn with_region(mut self, region: u32) -> Self {
        self.region_bytes = region;
        self
    }

    /// The same with another share for reads.
    #[must_use]
    pub const fn with_read_percent(mut self, percent: u32) -> Self {
        self.read_percent = percent;
        self
    }
}

/// Fewest segments of a log: one that is written, one that is destaged, one between.
pub(crate) const SEGMENTS_MIN: u32 = 3;
/// Most logical blocks of a log: the highest bit of a place says "zeroes" in the map.
const LOG_BLOCKS_MAX: u64 = 1 << 31;
const BLOCK_BYTES_MAX: u32 = 64 << 10;
const UNIT_BYTES_MAX: u32 = 64 << 10;
const HEADER_BYTES_MAX: u32 = 64 << 10;
const SEGMENT_BYTES_MAX: u32 = 1 << 30;
const REGION_BYTES_MAX: u32 = 64 << 20;
/// Fewest regions of a read store: one for each queue, one that is full, one spare.
const REGIONS_MIN: u32 = 4;
/// Most of the device that may be for reads.
pub(crate) const READ_PERCENT_MAX: u32 = 90;

/// The layout of one cache device, in logical blocks but for `block`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Bytes of a logical block.
    pub(crate) block: u32,
    pub(crate) unit: u32,
    pub(crate) header: u32,
    pub(crate) segment: u32,
    pub(crate) footer: u32,
    /// Number of segments.
    pub(crate) segments: u32,
    pub(crate) region: u32,
    /// Number of regions; 0: no read store.
    pub(crate) regions: u32,
}

impl Geometry {
    /// The layout of a device of `capacity` bytes.
    ///
    /// # Errors
    /// Sizes that are no layout, or a device that has no room for [`SEGMENTS_MIN`] segments.
    pub(crate) fn new(block: u32, capacity: u64, sizes: &Sizes) -> Result<Self> {
        let fits = sizes.unit_bytes <= UNIT_BYTES_MAX
            && (512..=HEADER_BYTES_MAX).contains(&sizes.header_bytes)
            && sizes.segment_bytes <= SEGMENT_BYTES_MAX
            && sizes.region_bytes <= REGION_BYTES_MAX
            && sizes.read_percent <= READ_PERCENT_MAX;
        let blocks = |bytes: u32| bytes.div_ceil(block).max(1);
        let mut geometry = Self {
            block,
            unit: blocks(sizes.unit_bytes),
            header: blocks(sizes.header_bytes),
            segment: blocks(sizes.segment_bytes),
            footer: blocks(sizes.footer_bytes),
            segments: 0,
            region: 0,
            regions: 0,
        };
        // Whole units.
        geometry.region = (blocks(sizes.region_bytes) / geometry.unit).max(1) * geometry.unit;
        let device = (capacity / u64::from(block)).min(LOG_BLOCKS_MAX);
        let room = device.saturating_sub(2 * u64::from(geometry.header));
        let log_min = u64::from(SEGMENTS_MIN) * u64::from(geometry.segment);
        let for_reads = room * u64::from(sizes.read_percent) / 100;
        let for_reads = for_reads.min(room.saturating_sub(log_min));
        let regions = for_reads / u64::from(geometry.region);
        if regions >= u64::from(REGIONS_MIN) {
            geometry.regions = u32::try_from(regions).expect("limited above");
        }
        let for_log = room - u64::from(geometry.regions) * u64::from(geometry.region);
        let segments = for_log / u64::from(geometry.segment);
        geometry.segments = u32::try_from(segments).expect("limited above");
        if !fits {
            return Err(Error::config("sizes of the log are out of range"));
        }
        geometry.validate()?;
        Ok(geometry)
    }

    /// # Errors
    /// Names what is wrong; also for numbers that a damaged superblock gives.
    pub(crate) fn validate(&self) -> Result<()> {
        let bytes = |blocks: u32| u64::from(blocks) * u64::from(self.block);
        let in_range = (512..=BLOCK_BYTES_MAX).contains(&self.block)
            && bytes(self.unit) <= u64::from(UNIT_BYTES_MAX)
            && (512..=u64::from(HEADER_BYTES_MAX)).contains(&bytes(self.header))
            && bytes(self.segment) <= u64::from(SEGMENT_BYTES_MAX)
            && bytes(self.region) <= u64::from(REGION_BYTES_MAX)
            && self.footer > 0;
        if !in_range {
            return Err(Error::config("sizes of the log are out of range"));
        }
        let overhead = u64::from(self.header) + u64::from(self.footer) + u64::from(self.unit);
        if self.block == 0 || u64::from(self.segment) < overhead || self.unit == 0 {
            return Err(Error::config(format!(
                "a segment has no room for a record, segment_blocks={} needed={overhead}",
                self.segment
            )));
        }
        let is_whole = self.region >= self.unit && self.region.is_multiple_of(self.unit);
        if self.regions > 0 && !is_whole {
            return Err(Error::config(format!(
                "a region is not of whole units, region_blocks={} unit_blocks={}",
                self.region, self.unit
            )));
        }
        if self.segments < SEGMENTS_MIN || self.blocks() > LOG_BLOCKS_MAX {
            return Err(Error::config(format!(
                "the cache device is too small for a log, segments={} segments_min={SEGMENTS_MIN}",
                self.segments
            )));
        }
        Ok(())
    }

    /// Blocks of the device that are used.
    pub(crate) fn blocks(&self) -> u64 {
        2 * u64::from(self.header)
            + u64::from(self.segments) * u64::from(self.segment)
            + u64::from(self.regions) * u64::from(self.region)
    }

    /// Where a region of the read store lies.
    pub(crate) fn region_at(&self, region: u32) -> At {
        assert!(region < self.regions, "a region of the store");
        At(2 * self.header + self.segments * self.segment + region * self.region)
    }

    /// Units in a region.
    pub(crate) fn region_units(&self) -> u32 {
        self.region / self.unit
    }

    /// Units in all regions.
    pub(crate) fn store_units(&self) -> u64 {
        u64::from(self.regions) * u64::from(self.region_units())
    }

    /// Where a superblock lies: they alternate.
    pub(crate) fn superblock_at(&self, generation: u64) -> At {
        At(if generation.is_multiple_of(2) {
            0
        } else {
            self.header
        })
    }

    pub(crate) fn segment_at(&self, segment: u32) -> At {
        assert!(segment < self.segments, "a segment of the log");
        At(2 * self.header + segment * self.segment)
    }

    /// The segment that a place lies in.
    pub(crate) fn segment_of(&self, at: At) -> u32 {
        (at.0 - 2 * self.header) / self.segment
    }

    pub(crate) fn footer_at(&self, segment: u32) -> At {
        At(self.segment_at(segment).0 + self.room())
    }

    /// Blocks of a segment for records.
    pub(crate) fn room(&self) -> u32 {
        self.segment - self.footer
    }

    /// The segment after this one: the log is a ring.
    pub(crate) fn after(&self, segment: u32) -> u32 {
        (segment + 1) % self.segments
    }

    pub(crate) fn header_bytes(&self) -> usize {
        index(u64::from(self.header) * u64::from(self.block))
    }

    pub(crate) fn footer_bytes(&self) -> usize {
        index(u64::from(self.footer) * u64::from(self.block))
    }

    /// Byte offset on the cache device.
    pub(crate) fn offset(&self, at: At) -> u64 {
        u64::from(at.0) * u64::from(self.block)
    }

    pub(crate) fn bytes(&self, blocks: u64) -> u64 {
        blocks * u64::from(self.block)
    }

    pub(crate) fn span(&self, extent: Extent) -> Span {
        let block = u64::from(self.block);
        debug_assert!(
            extent.offset().is_multiple_of(block) && extent.len().is_multiple_of(block),
            "the framework has checked the alignment"
        );
        Span {
            start: extent.offset() / block,
            count: extent.len() / block,
        }
    }

    pub(crate) fn extent(&self, span: Span) -> Extent {
        Extent::new(self.bytes(span.start), self.bytes(span.count))
    }

    /// Cuts a span at the bounds of units: each piece has a checksum and a place of its own.
    pub(crate) fn pieces(&self, span: Span) -> impl Iterator<Item = Span> + use<> {
        let unit = u64::from(self.unit);
        let mut at = span.start;
        std::iter::from_fn(move || {
            let end = ((at / unit + 1) * unit).min(span.end());
            let piece = (at < end).then(|| Span::from_range(at, end));
            at = end;
            piece
        })
    }

    /// Pieces that a span is cut into.
    pub(crate) fn piece_count(&self, span: Span) -> u64 {
        let unit = u64::from(self.unit);
        if span.count == 0 {
            return 0;
        }
        (span.end() - 1) / unit - span.start / unit + 1
    }
}

/// A length in memory.
pub(crate) fn index(value: u64) -> usize {
    usize::try_from(value).expect("a length in memory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TINY: Sizes = Sizes::new(1024, 512, 3072, 512);

    #[test]
    fn segments_tile_the_device_and_end_in_footers() {
        let geometry = Geometry::new(512, 30 * 512, &TINY).expect("a layout");
        assert_eq!(geometry.segments, 4);
        assert_eq!(geometry.segment_at(0), At(2));
        assert_eq!(geometry.footer_at(0), At(7));
        assert_eq!(geometry.segment_of(At(7)), 0);
        assert_eq!(geometry.segment_of(At(8)), 1);
        assert_eq!(geometry.after(3), 0);
        assert!(geometry.blocks() <= 30);
    }

    #[test]
    fn regions_follow_the_segments_where_there_is_room_for_both() {
        let sizes = TINY.with_region(2048).with_read_percent(45);
        let geometry = Geometry::new(512, 44 * 512, &sizes).expect("a layout");
        assert_eq!((geometry.regions, geometry.segments), (4, 4));
        assert_eq!(geometry.region_at(0), At(2 + 4 * 6));
        assert_eq!((geometry.region_units(), geometry.store_units()), (2, 8));
        assert!(geometry.blocks() <= 44);
        let small = Geometry::new(512, 34 * 512, &sizes).expect("a layout");
        assert_eq!((small.regions, small.segments), (0, 5), "no store of three");
        let none = Geometry::new(512, 44 * 512, &sizes.with_read_percent(0)).expect("a layout");
        assert_eq!((none.regions, none.segments), (0, 7));
        assert!(Geometry::new(512, 44 * 512, &sizes.with_read_percent(91)).is_err());
    }

    #[test]
    fn layout_without_room_is_refused() {
        assert!(Geometry::new(512, 10 * 512, &TINY).is_err());
        assert!(Geometry::new(512, 1 << 20, &Sizes::new(1024, 512, 1024, 512)).is_err());
        assert!(Geometry::new(512, 1 << 20, &Sizes::new(1 << 20, 512, 1 << 21, 512)).is_err());
    }

    proptest! {
        #[test]
        fn pieces_tile_the_span_and_cross_no_unit(start in 0u64..50, count in 0u64..20) {
            let geometry = Geometry::new(512, 30 * 512, &TINY).expect("a layout");
            let span = Span { start, count };
            let pieces: Vec<_> = geometry.pieces(span).collect();
            prop_assert_eq!(pieces.len() as u64, geometry.piece_count(span));
            let mut at = start;
            for piece in pieces {
                prop_assert_eq!(piece.start, at);
                prop_assert_eq!(piece.start / 2, (piece.end() - 1) / 2);
                at = piece.end();
            }
            prop_assert_eq!(at, span.end());
        }
    }
}
