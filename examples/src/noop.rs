//! Sees every operation and forwards it: the smallest filter, and the cost of a layer.
//!
//! A stack names each filter once, so eight of them have eight names.

use std::sync::Arc;

use async_trait::async_trait;
use vaio_core::{
    AllocationMap, AttachContext, Class, Descriptor, DeviceInfo, Filter, FilterFactory, Io,
    Lifecycle, Next, OpKind, Outcome, Reply, Result,
};

const NAMES: [&str; 8] = [
    "noop1", "noop2", "noop3", "noop4", "noop5", "noop6", "noop7", "noop8",
];

/// The filter. It holds nothing.
#[derive(Debug)]
pub struct Noop;

#[async_trait]
impl Filter for Noop {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        next.submit(io).await
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }

    fn allocation(&self, below: AllocationMap) -> AllocationMap {
        below
    }
}

/// Makes one of `noop1` to `noop8`.
#[derive(Debug)]
pub struct NoopFactory(&'static str);

impl NoopFactory {
    /// The eight factories, `noop1` first.
    pub fn all() -> [Self; 8] {
        NAMES.map(Self)
    }
}

#[async_trait]
impl FilterFactory for NoopFactory {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new(self.0, env!("CARGO_PKG_VERSION"), Class::Inspect)
            .with_summary("Forwards every operation; measures what a layer costs.")
            .intercept(&OpKind::ALL)
            .accept_fua()
            .accept_zeroes_flags()
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, _cx: AttachContext) -> Result<Arc<dyn Filter>> {
        Ok(Arc::new(Noop))
    }
}
