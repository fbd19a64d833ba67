//! [`Extent`]: a range of bytes on a disk. All arithmetic on offsets goes through here.

use std::fmt;

/// A half-open range of bytes `[offset, offset + len)`.
///
/// The end never overflows `u64`: [`Extent::new`] asserts it and [`Extent::checked`] reports it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Extent {
    offset: u64,
    len: u64,
}

impl Extent {
    /// Makes an extent.
    ///
    /// # Panics
    /// If `offset + len` overflows. Use [`Extent::checked`] for numbers from outside.
    #[track_caller]
    pub const fn new(offset: u64, len: u64) -> Self {
        assert!(offset.checked_add(len).is_some(), "extent overflows u64");
        Self { offset, len }
    }

    /// Makes an extent, or `None` where `offset + len` overflows.
    pub const fn checked(offset: u64, len: u64) -> Option<Self> {
        match offset.checked_add(len) {
            Some(_) => Some(Self { offset, len }),
            None => None,
        }
    }

    /// Makes the extent `[start, end)`.
    ///
    /// # Panics
    /// If `end < start`.
    #[track_caller]
    pub const fn from_range(start: u64, end: u64) -> Self {
        assert!(start <= end, "extent ends before it starts");
        Self {
            offset: start,
            len: end - start,
        }
    }

    /// First byte.
    pub const fn offset(self) -> u64 {
        self.offset
    }

    /// Length in bytes.
    pub const fn len(self) -> u64 {
        self.len
    }

    /// One past the last byte.
    pub const fn end(self) -> u64 {
        self.offset + self.len
    }

    /// Whether the extent has no bytes.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Whether both ends are multiples of `block` (a power of two).
    pub const fn is_aligned(self, block: u32) -> bool {
        debug_assert!(block.is_power_of_two());
        (self.offset | self.len) & (block as u64 - 1) == 0
    }

    /// The smallest extent of whole blocks that holds this one. `None` on overflow.
    pub const fn align_out(self, block: u32) -> Option<Self> {
        let mask = block as u64 - 1;
        let start = self.offset & !mask;
        match self.end().checked_add(mask) {
            Some(end) => Some(Self {
                offset: start,
                len: (end & !mask) - start,
            }),
            None => None,
        }
    }

    /// The largest extent of whole blocks inside this one; may be empty.
    #[must_use]
    pub const fn align_in(self, block: u32) -> Self {
        let mask = block as u64 - 1;
        let start = match self.offset.checked_add(mask) {
            Some(start) => start & !mask,
            None => {
                return Self {
                    offset: self.offset,
                    len: 0,
                };
            }
        };
        let end = self.end() & !mask;
        Self {
            offset: start,
            len: end.saturating_sub(start),
        }
    }

    /// Whether the two share a byte. Empty extents overlap nothing.
    pub const fn overlaps(self, other: Self) -> bool {
        self.offset < other.end() && other.offset < self.end() && self.len > 0 && other.len > 0
    }

    /// Whether every byte of `other` lies in this extent.
    pub const fn contains(self, other: Self) -> bool {
        self.offset <= other.offset && other.end() <= self.end()
    }

    /// The common bytes, or `None` where there are none.
    pub fn intersect(self, other: Self) -> Option<Self> {
        let start = self.offset.max(other.offset);
        let end = self.end().min(other.end());
        (start < end).then(|| Self::from_range(start, end))
    }

    /// Cuts the extent into pieces of at most `len_max` bytes whose inner cuts are multiples of
    /// `len_max` (not of the start: a device that stripes gets whole stripes).
    ///
    /// # Panics
    /// If `len_max` is zero.
    pub fn split(self, len_max: u64) -> impl Iterator<Item = Self> {
        assert!(len_max > 0, "split into pieces of zero bytes");
        let mut at = self.offset;
        let end = self.end();
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let next = (at / len_max)
                .saturating_add(1)
                .saturating_mul(len_max)
                .min(end);
            let piece = Self::from_range(at, next);
            at = next;
            Some(piece)
        })
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// `offset+len`, both in bytes.
impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn checked_end_overflows_is_none() {
        assert_eq!(Extent::checked(u64::MAX, 1), None);
        assert!(Extent::checked(u64::MAX - 1, 1).is_some());
    }

    #[test]
    fn empty_overlaps_nothing() {
        assert!(!Extent::new(5, 0).overlaps(Extent::new(0, 10)));
        assert!(!Extent::new(0, 10).overlaps(Extent::new(5, 0)));
    }

    proptest! {
        #[test]
        fn split_pieces_tile_the_extent(offset in 0u64..1 << 20, len in 0u64..1 << 16, max in 1u64..5000) {
            let whole = Extent::new(offset, len);
            let pieces: Vec<_> = whole.split(max).collect();
            prop_assert_eq!(pieces.iter().map(|p| p.len()).sum::<u64>(), len);
            let mut at = offset;
            for piece in pieces {
                prop_assert_eq!(piece.offset(), at);
                prop_assert!(piece.len() <= max && !piece.is_empty());
                at = piece.end();
            }
        }

        #[test]
        fn align_in_and_out_bracket(offset in 0u64..1 << 20, len in 0u64..1 << 16, shift in 0u32..14) {
            let (e, block) = (Extent::new(offset, len), 1u32 << shift);
            let (inner, outer) = (e.align_in(block), e.align_out(block).unwrap());
            prop_assert!(outer.contains(e) && outer.is_aligned(block));
            prop_assert!(inner.is_empty() || (e.contains(inner) && inner.is_aligned(block)));
        }
    }
}
