//! The proof: every case of the suite on a log of a few blocks, for each durability and each order
//! of destaging, and for writing through.
//!
//! Ordered, the *backing alone* is checked at every boundary: it is a legal crash image of the
//! guest, whatever becomes of the cache device.

use std::sync::Arc;

use vaio_cache::{CACHE_DEVICE, CacheFactory, Durability, Sizes};
use vaio_core::Promise;
use vaio_testkit::{Scale, Subject, Target, conformance};

const BLOCK: u32 = 512;
/// Superblocks and header are a block; a unit is two, so that single blocks are fragments.
fn sizes(scale: Scale) -> (Sizes, u64) {
    let (segment, segments) = match scale {
        Scale::Tiny => (5, 4),
        Scale::Small => (10, 8),
    };
    let sizes = Sizes::new(2 * BLOCK, BLOCK, segment * BLOCK, BLOCK);
    (sizes, u64::from(2 + segment * segments))
}

fn cache(durability: Durability) -> Subject {
    Subject::scaled(move |scale| {
        let factory = CacheFactory::default().with_durability(durability);
        Arc::new(factory.with_sizes(sizes(scale).0))
    })
    .device(CACHE_DEVICE, |scale| sizes(scale).1)
    .setting("dirty_age_max", "5ms")
    .setting("unflushed_bytes_max", "4K")
}

fn ordered(durability: Durability) -> Subject {
    let promise = match durability {
        // Every answer is a guarantee: the backing is an exact prefix.
        Durability::AtAck => Promise::Ordered,
        _ => Promise::OrderedByFlush,
    };
    cache(durability)
        .setting("order", "ordered")
        .target(Target::Backing)
        .target_keeps(promise)
}

fn relaxed(durability: Durability) -> Subject {
    cache(durability).setting("order", "relaxed")
}

conformance!(at_flush_ordered: ordered(Durability::AtFlush));
conformance!(at_flush_relaxed: relaxed(Durability::AtFlush));
conformance!(at_ack_ordered: ordered(Durability::AtAck));
conformance!(at_ack_relaxed: relaxed(Durability::AtAck));

/// With a read store of a few regions of two units, so that it fills up and evicts.
fn with_reads(subject: Subject) -> Subject {
    subject
        .with_factory(|scale| {
            let region = 4 * BLOCK;
            Arc::new(CacheFactory::default().with_sizes(sizes(scale).0.with_region(region)))
        })
        .device(CACHE_DEVICE, |scale| match scale {
            Scale::Tiny => 2 + 5 * 4 + 4 * 4,
            Scale::Small => 2 + 10 * 8 + 4 * 16,
        })
        .setting("read_percent", "45")
}

fn through(mode: &str) -> Subject {
    with_reads(cache(Durability::AtFlush)).setting("mode", mode)
}

conformance!(at_flush_ordered_reads: with_reads(ordered(Durability::AtFlush)));
conformance!(write_through: through("write_through"));
conformance!(write_around: through("write_around"));
conformance!(read_only: through("read_only"));
