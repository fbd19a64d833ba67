//! Filters for this crate's own tests.

use std::sync::Arc;

use async_trait::async_trait;
use vaio_core::{
    AttachContext, Class, Content, Descriptor, DeviceInfo, Filter, FilterFactory, FilterRegistry,
    FilterSpec, Io, Lifecycle, Next, OpKind, Outcome, Reply, Result, SettingKind, SettingSpec,
};

/// `test` with settings, and `keeps`, which transforms content.
pub(crate) fn registry() -> FilterRegistry {
    FilterRegistry::default()
        .with(Factory("test", Content::Unchanged))
        .with(Factory("keeps", Content::Transformed))
}

pub(crate) fn spec(name: &str) -> FilterSpec {
    FilterSpec::new(name)
}

#[derive(Debug)]
struct Factory(&'static str, Content);

const SETTINGS: &[SettingSpec] = &[
    SettingSpec::new(
        "count",
        SettingKind::Number { min: 1, max: 100 },
        "1",
        "how many",
    ),
    SettingSpec::new("mode", SettingKind::Choice(&["a", "b"]), "a", "how"),
];

#[async_trait]
impl FilterFactory for Factory {
    fn descriptor(&self) -> Descriptor {
        let class = if self.1 == Content::Unchanged {
            Class::Inspect
        } else {
            Class::Transform
        };
        Descriptor::new(self.0, "1.0", class)
            .with_summary("passes everything on")
            .pass(&OpKind::ALL)
            .with_content(self.1)
            .with_settings(SETTINGS)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, _cx: AttachContext) -> Result<Arc<dyn Filter>> {
        Ok(Arc::new(Pass))
    }
}

#[derive(Debug)]
struct Pass;

#[async_trait]
impl Filter for Pass {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        next.submit(io).await
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }
}
