//! Is every flush and every awaited order of the cache needed, and is it tested?

use std::sync::Arc;

use vaio_cache::{CACHE_DEVICE, CacheFactory, Sizes};
use vaio_core::Promise;
use vaio_testkit::{Subject, Target, barrier_audit};

fn ordered() -> Subject {
    let sizes = Sizes::new(1024, 512, 5 * 512, 512);
    Subject::scaled(move |_| Arc::new(CacheFactory::default().with_sizes(sizes)))
        .device(CACHE_DEVICE, |_| 2 + 4 * 5)
        .setting("dirty_age_max", "5ms")
        .setting("unflushed_bytes_max", "4K")
        .target(Target::Backing)
        .target_keeps(Promise::OrderedByFlush)
}

barrier_audit! {
    #[ignore = "hours: see .ci/nightly"]
    at_flush_ordered: ordered(),
    explained = [
        "bypass.rs:flush_below < src/flush.rs:flush < src/filter.rs:lifecycle drop"
            => "a close promises no durability; it leaves less to the next open's flush",
        "bypass.rs:flush_below < src/flush.rs:flush < src/filter.rs:lifecycle early"
            => "a close promises no durability; it leaves less to the next open's flush",
    ]
}
