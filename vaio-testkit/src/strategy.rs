//! proptest strategies for guest operations and workloads, for properties of one's own.
//!
//! They shrink towards few, short and simple operations: the order of [`GuestOp::alphabet`].

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};

use crate::workload::GuestOp;

/// One operation on a disk of `blocks`; extents of up to `extent_max` blocks.
///
/// # Panics
/// If either is 0.
pub fn guest_op(blocks: u64, extent_max: u64) -> impl Strategy<Value = GuestOp> + Clone {
    assert!(
        blocks > 0 && extent_max > 0,
        "a disk has blocks, an extent too"
    );
    let extent =
        (0..blocks).prop_flat_map(move |block| (Just(block), 1..=extent_max.min(blocks - block)));
    prop_oneof![
        2 => Just(GuestOp::Flush),
        8 => (extent.clone(), any::<bool>())
            .prop_map(|((block, count), fua)| GuestOp::Write { block, count, fua }),
        1 => Just(GuestOp::Idle),
        4 => extent.clone().prop_map(|(block, count)| GuestOp::Read { block, count }),
        1 => (extent.clone(), any::<bool>(), any::<bool>()).prop_map(
            |((block, count), may_unmap, fua)| GuestOp::WriteZeroes { block, count, may_unmap, fua }
        ),
        1 => (extent, any::<bool>())
            .prop_map(|((block, count), fua)| GuestOp::Discard { block, count, fua }),
    ]
}

/// Up to `ops_max` operations.
///
/// # Panics
/// As [`guest_op`].
pub fn workload(
    blocks: u64,
    extent_max: u64,
    ops_max: usize,
) -> impl Strategy<Value = Vec<GuestOp>> + Clone {
    vec(guest_op(blocks, extent_max), 0..=ops_max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn strategy_workloads_are_within_the_disk(ops in workload(9, 4, 20)) {
            prop_assert!(ops.iter().all(|op| op.is_within(9)));
        }
    }
}
