//! Dirty truth: what a filter says it still holds, against what the lower device has.

use vaio_core::{Content, Disk, Extent, Level};

use super::{BACKING, Belief, Broken, Lab, Rig, watch::values_of};

/// Every block whose content is not durable on the lower device is reported dirty. The disk is
/// quiet, and the guest has read it.
///
/// # Errors
/// A block is under-reported.
pub(super) fn check(lab: &Lab, disk: &Disk, rig: &Rig, belief: &Belief) -> Result<(), Broken> {
    if lab.subject.descriptor().content != Content::Held {
        return Ok(());
    }
    let info = disk.info();
    let whole = Extent::new(0, info.capacity);
    let dirty = disk.dirty_extents(Level::BackingDurable, whole);
    let backing = rig
        .disk(BACKING)
        .expect("there is a lower device")
        .snapshot();
    let oracle = belief.oracle().clone();
    let values = values_of(backing.durable(), oracle.settings().blocks);
    let size = u64::from(info.logical_block);
    for (block, value) in (0..).zip(values) {
        let is_there = oracle.clone().observe(block, value).is_ok();
        if !is_there && !dirty.overlaps(Extent::new(block * size, size)) {
            return Err(Broken::new(
                "dirty-under-reported",
                format!(
                    "block {block} is not reported dirty, and the lower device does not have it\n  \
                     lower device: {value:?}\n  reported dirty: {dirty:?}"
                ),
            )
            .about(block));
        }
    }
    Ok(())
}
