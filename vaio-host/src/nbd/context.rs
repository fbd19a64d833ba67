//! Meta contexts: what a client can ask of an export beside its data.
//!
//! Every export has `base:allocation`. A host registers more ([`Export::with_context`]), such as
//! which extents are dirty, and any backup tool that speaks NBD can read them.
//!
//! [`Export::with_context`]: super::Export::with_context

use std::fmt;

use async_trait::async_trait;
use vaio_core::{Allocation, AllocationMap, Extent, Result};

use super::proto::{STATUS_EXTENTS_MAX, StatusExtent, status_flag};

/// Name of the allocation context.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Longest range that one block status request looks at, in bytes. A longer request is answered
/// for its beginning, as the protocol allows, so that it never holds up the disk's thread.
pub const STATUS_RANGE_MAX: u64 = 1 << 30;

/// A further meta context of an export.
#[async_trait]
pub trait MetaContext: fmt::Debug + Send + Sync + 'static {
    /// `namespace:leaf`, at most 4096 bytes; constant.
    fn name(&self) -> &str;

    /// What is true of `range`, at most [`STATUS_RANGE_MAX`] bytes.
    ///
    /// # Contract
    /// The answer tiles the range from its start, and may end before it. It is a moment's truth: a
    /// write in flight may change it.
    ///
    /// # Errors
    /// Fails the client's request with the same errors as IO.
    async fn status(&self, range: Extent) -> Result<StatusMap>;
}

/// Consecutive stretches and their flags. Neighbours differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusMap(Vec<(u64, u32)>);

impl StatusMap {
    /// Appends `len` bytes; merges with the stretch before where equal.
    pub fn push(&mut self, len: u64, flags: u32) {
        match self.0.last_mut() {
            _ if len == 0 => {}
            Some((last, same)) if *same == flags => *last += len,
            _ => self.0.push((len, flags)),
        }
    }

    /// The stretches in order: length in bytes and flags.
    pub fn pieces(&self) -> &[(u64, u32)] {
        &self.0
    }

    /// The map as the flags of `base:allocation`.
    pub fn from_allocation(map: &AllocationMap) -> Self {
        let mut status = Self::default();
        for (extent, what) in map.pieces() {
            status.push(extent.len(), allocation_flags(*what));
        }
        status
    }

    /// What goes on the wire: nothing beyond `len_max` bytes, and one extent where the client
    /// asked for one.
    pub(super) fn to_extents(&self, len_max: u64, one: bool) -> Vec<StatusExtent> {
        let mut left = len_max;
        self.0
            .iter()
            .take(if one { 1 } else { STATUS_EXTENTS_MAX })
            .map_while(|&(len, flags)| {
                let len = len.min(left);
                left -= len;
                let flags = flags.into();
                (len > 0).then_some(StatusExtent { len, flags })
            })
            .collect()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the flags are two bits")]
const fn allocation_flags(what: Allocation) -> u32 {
    let flags = match what {
        Allocation::Data => 0,
        Allocation::Zero => status_flag::ZERO,
        Allocation::Hole => status_flag::HOLE | status_flag::ZERO,
        Allocation::Unmapped => status_flag::HOLE,
    };
    flags as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocation_maps_to_hole_and_zero_flags() {
        let mut map = AllocationMap::starting_at(512);
        for (len, what) in [
            (10, Allocation::Data),
            (20, Allocation::Zero),
            (30, Allocation::Hole),
            (40, Allocation::Unmapped),
        ] {
            map.push(len, what);
        }
        let status = StatusMap::from_allocation(&map);
        assert_eq!(status.pieces(), &[(10, 0), (20, 2), (30, 3), (40, 1)]);
    }

    #[test]
    fn extents_stop_at_the_length_and_at_one() {
        let mut status = StatusMap::default();
        status.push(10, 0);
        status.push(0, 7);
        status.push(10, 0);
        status.push(10, 1);
        let lens = |len, one| -> Vec<_> {
            let extents = status.to_extents(len, one);
            extents.iter().map(|extent| extent.len).collect()
        };
        assert_eq!(lens(100, false), [20, 10]);
        assert_eq!(lens(25, false), [20, 5]);
        assert_eq!(lens(20, false), [20]);
        assert_eq!(lens(5, false), [5]);
        assert_eq!(lens(100, true), [20]);
    }

    #[test]
    fn extents_are_no_more_than_a_reply_holds() {
        let mut status = StatusMap::default();
        for index in 0..STATUS_EXTENTS_MAX as u64 + 5 {
            status.push(512, u32::from(index % 2 == 0));
        }
        assert_eq!(status.to_extents(u64::MAX, false).len(), STATUS_EXTENTS_MAX);
    }
}
