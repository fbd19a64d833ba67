//! A twin as a [`Subject`] of the suite.

use vaio_core::Promise;

use super::{Bug, FirstFlushLost, Twin};
use crate::{Scale, Subject, disk::BLOCK};

/// Blocks of the guest's disk.
const fn guest_blocks(scale: Scale) -> u64 {
    match scale {
        Scale::Tiny => 4,
        Scale::Small => 64,
    }
}

impl Twin {
    /// The twin, correct (`None`) or with a bug, in the small world that the suite tests it in.
    ///
    /// # Panics
    /// For a promise that it [cannot](Self::can_promise) be told to keep.
    pub fn subject(self, promise: Promise, bug: Option<Bug>) -> Subject {
        let registry = self.registry(promise, bug);
        let factory = registry
            .get(self.filter())
            .expect("the registry has the twin");
        let mut subject = Subject::scaled(move |_| std::sync::Arc::clone(&factory));
        if bug == Some(Bug::OpenNotFlushed) {
            subject = subject.over(|lower| std::sync::Arc::new(FirstFlushLost::new(lower)));
        }
        let names = self.devices(BLOCK, BLOCK).into_iter().map(|(name, _)| name);
        names.fold(subject.guest_blocks(guest_blocks), |subject, name| {
            subject.device(name, move |scale| {
                let devices = self.devices(guest_blocks(scale) * BLOCK, BLOCK);
                let mut sizes = devices.into_iter().filter(|(other, _)| *other == name);
                sizes.next().map_or(0, |(_, bytes)| bytes.div_ceil(BLOCK))
            })
        })
    }
}
