//! The target of an ordered promise: alone, and whatever a crash leaves of it, it is a cut of the
//! guest's history.

use super::{BACKING, Broken, Rig, watch::values_of};
use crate::{
    disk::{CrashPoint, CrashSpec, Tier},
    oracle::{Oracle, OrderedCheck},
    subject::{Subject, Target},
};

/// What may be left of the target.
const TIERS: [Tier; 5] = [
    Tier::None,
    Tier::All,
    Tier::DropOne,
    Tier::KeepOne,
    Tier::Prefix,
];

/// Checks the target as it is now, if the subject has one. `is_new` is asked for the hash of each
/// image; those that it turns away are not checked. Returns the number of images that were.
///
/// # Errors
/// An image is no cut, with what it kept.
pub(crate) fn check(
    subject: &Subject,
    rig: &Rig,
    oracle: &Oracle,
    is_new: &mut dyn FnMut(u64) -> bool,
) -> Result<u64, (Broken, CrashSpec)> {
    let Some(target) = subject.ordered_target() else {
        return Ok(0);
    };
    let name = match &target {
        Target::Backing => BACKING,
        Target::Device(name) => name,
    };
    let disk = rig
        .disk(name)
        .expect("the subject's target is one of its devices");
    let snapshot = disk.snapshot();
    let point = CrashPoint::new([(name, &snapshot)]);
    let cases = point.cases(&TIERS, &mut |_| 0, is_new);
    if cases.is_empty() {
        return Ok(0);
    }
    // Each is what one crash leaves: none came before another.
    let fresh = OrderedCheck::keeping(oracle, subject.target_promise());
    let mut images = 0;
    for case in cases {
        images += 1;
        let image = point.images(&case);
        let values = values_of(&image[0], oracle.settings().blocks);
        fresh
            .clone()
            .check(&values)
            .map_err(|violation| (violation.into(), point.spec(&case)))?;
    }
    Ok(images)
}
