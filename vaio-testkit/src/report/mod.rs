//! What a failure prints.

use crate::{
    Subject,
    conformance::{Caller, Found},
};

/// The text of a failed case.
pub fn failed(subject: &Subject, name: &str, _caller: &Caller, found: &Found) -> String {
    let mut text = format!(
        "{name} of {}: {}\n{}\n",
        subject.name(),
        found.broken.rule,
        found.broken
    );
    if let Some(failure) = &found.failure {
        text.push_str(&failure.plan.to_string());
    }
    text
}
