//! The proof: every case of the suite, on two sheets of one record, so that three writes wrap.

use std::sync::Arc;

use vaio_testkit::{Scale, Subject, conformance};
use vendor_filter::{STAGING_DEVICE, StagingFactory};

fn factory(scale: Scale) -> StagingFactory {
    match scale {
        Scale::Tiny => StagingFactory::new(1, 2),
        Scale::Small => StagingFactory::new(8, 4),
    }
}

fn staging() -> Subject {
    Subject::scaled(|scale| Arc::new(factory(scale)))
        .device(STAGING_DEVICE, |scale| factory(scale).device_blocks())
}

conformance!(staging_conformance: staging());
