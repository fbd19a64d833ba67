//! Filters that vendors can copy from: each is small, complete, tested, and the model of its
//! class. The programs in `examples/` and the end-to-end tests share them.
//!
//! | module | class | shows |
//! |---|---|---|
//! | [`noop`] | inspect | the smallest filter there is; what a layer costs |
//! | [`audit`] | inspect | background work, a bounded queue, life-cycle calls, typed settings |
//! | [`dedupe_stats`] | inspect | long computing beside the IO path |
//! | [`throttle`] | qos | to defer an IO; fairness; cancellation |
//! | [`encrypt`] | transform | to change content; refusing; keys; the sidecar |
//! | [`fault`] | qos and inspect | every way in which a filter can misbehave, for tests |
//!
//! The guide `docs/guide/writing-a-filter.md` builds [`throttle`] step by step.

pub mod audit;
pub mod dedupe_stats;
pub mod encrypt;
pub mod fault;
pub mod noop;
pub mod throttle;

use vaio_core::FilterRegistry;

/// A registry of every filter in this package, for a host program or a test.
pub fn registry() -> FilterRegistry {
    add_to(FilterRegistry::default())
}

/// The same filters beside those that a registry has.
pub fn add_to(registry: FilterRegistry) -> FilterRegistry {
    let registry = registry
        .with(audit::AuditFactory::default())
        .with(throttle::ThrottleFactory)
        .with(encrypt::EncryptFactory)
        .with(dedupe_stats::DedupeStatsFactory)
        .with(fault::FaultFactory::holder())
        .with(fault::FaultFactory::observer());
    noop::NoopFactory::all()
        .into_iter()
        .fold(registry, FilterRegistry::with)
}

#[cfg(doctest)]
#[doc = include_str!("../../docs/guide/writing-a-filter.md")]
struct WritingAFilter;
