//! Which cases a filter's promise does not cover.

use vaio_core::{Content, OpKind, Promise, Rechain, Support};

use crate::Subject;

/// Why the filter's promise does not cover a case.
pub(super) fn why(subject: &Subject, name: &str) -> Option<String> {
    let descriptor = subject.descriptor();
    let (group, case) = name.split_once("::")?;
    let has_beside = !subject.beside().is_empty();
    let needs_beside = case.starts_with("beside") || name == "fsyncgate::then_write";
    let refuses_discard = descriptor.ops.of(OpKind::Discard) == vaio_core::Disposition::Refuse
        || subject.info_below(1).caps.discard == Support::None;
    match group {
        "dirty" | "snapshot" if descriptor.content != Content::Held => {
            Some("the filter declares that it holds no data".into())
        }
        "ordered"
            if !matches!(
                subject.target_promise(),
                Promise::Ordered | Promise::OrderedByFlush
            ) =>
        {
            Some(format!(
                "the filter promises {:?}, no ordered target",
                subject.promise()
            ))
        }
        "faults" | "fsyncgate" if needs_beside && !has_beside => {
            Some("the filter needs no device beside its lower one".into())
        }
        "faults" if case == "attach_again" && descriptor.rechain != Rechain::Live => {
            Some("the filter may not leave a disk with data".into())
        }
        "zero_discard" if case.starts_with("discard") && refuses_discard => {
            Some("the filter refuses discard".into())
        }
        "bypass" if descriptor.bypass == vaio_core::BypassSafety::Never => {
            Some("the filter declares that it is never safe to bypass".into())
        }
        _ => None,
    }
}
