//! Is every flush and every awaited order of the filter needed, and is it tested?

use vaio_testkit::{Subject, barrier_audit};
use vendor_filter::{STAGING_DEVICE, StagingFactory};

fn staging() -> Subject {
    let factory = StagingFactory::new(1, 2);
    let blocks = factory.device_blocks();
    Subject::new(factory).device(STAGING_DEVICE, move |_| blocks)
}

barrier_audit! {
    #[ignore = "nightly: cargo test -- --ignored barriers"]
    barriers: staging()
}
