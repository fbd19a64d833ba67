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
        "bypass.rs:flush_below < src/bypass.rs:write_below"
            => "it bounds what is kept in memory of writes that went past the log, and promises nothing",
        "bypass.rs:write_below < src/write.rs:mutate"
            => "zeroes and discards go past this subject's log only when the device failed; the modes that \
                write through are subjects of the conformance suite",
        "device.rs:read < src/lost.rs:headers_in error-ignored"
            => "what lies behind the end is only looked at for damage: damage and a read error at once",
        "device.rs:read < src/scan.rs:footer_of error-ignored"
            => "a footer is a hint: zeroes are none, and the records are read one by one",
        "device.rs:read < src/scan.rs:headers < src/scan.rs:headers_of error-ignored"
            => "zeroes are no header: the records that were folded are not all there, an error as well",
        "device.rs:read < src/read.rs:read_run < src/read.rs:append_run error-ignored"
            => "zeroes do not verify: the backing is read",
        "device.rs:write < src/write.rs:write_record"
            => "a footer is a hint",
        "factory.rs:open"
            => "the framework flushes before an attach and an unclean open, a close before a replacement; \
                this one does not ask who came before",
        "device.rs:flush < src/recover.rs:open"
            => "the framework flushes the device of a disk that was not closed in order; this one is for a \
                log that a close left dirty",
    ]
}
