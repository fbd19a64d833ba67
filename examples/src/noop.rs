//! Sees every operation and forwards it: the smallest filter, and the cost of a layer, by its hooks
//! (`by=hooks`, the default) or by a future for every IO (`by=io`).
//!
//! A stack names each filter once, so eight of them have eight names.

use std::sync::Arc;

use async_trait::async_trait;
use vaio_core::{
    AllocationMap, AttachContext, Class, Descriptor, DeviceInfo, Filter, FilterFactory, Hooks, Io,
    Lifecycle, Next, OpKind, Outcome, Reply, Result, SettingKind, SettingSpec, Verdict,
};

const NAMES: [&str; 8] = [
    "noop1", "noop2", "noop3", "noop4", "noop5", "noop6", "noop7", "noop8",
];

const SETTINGS: &[SettingSpec] = &[SettingSpec::new(
    "by",
    SettingKind::Choice(&["hooks", "io"]),
    "hooks",
    "How an IO is forwarded: by hooks, or by a future of the filter's own",
)];

/// The filter. It holds nothing.
#[derive(Debug)]
pub struct Noop {
    has_hooks: bool,
}

#[async_trait]
impl Filter for Noop {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        next.submit(io).await
    }

    fn hooks(self: Arc<Self>) -> Option<Arc<dyn Hooks>> {
        self.has_hooks.then_some(self as _)
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

impl Hooks for Noop {
    fn before(&self, _io: &Io) -> Verdict {
        Verdict::Pass
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
            .with_settings(SETTINGS)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let has_hooks = cx.settings().text("by") == Some("hooks");
        Ok(Arc::new(Noop { has_hooks }))
    }
}
