//! Filters of the vendor's test program.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use vaio_core::{
    AttachContext, BypassSafety, Class, Content, Descriptor, DeviceInfo, Filter, FilterFactory,
    FilterRegistry, Io, Lifecycle, Next, Op, OpKind, Outcome, Rechain, Reply, Result, SettingKind,
    SettingSpec,
};

/// `tag` does nothing; `spin` runs on the thread for a while at the first read; `scramble`
/// changes content and stays with it.
pub(crate) fn registry() -> FilterRegistry {
    FilterRegistry::default()
        .with(Tag)
        .with(Spin)
        .with(Scramble)
}

const SPIN: &[SettingSpec] = &[SettingSpec::new(
    "time",
    SettingKind::Duration {
        min_ms: 1,
        max_ms: 60_000,
    },
    "3s",
    "how long it spins",
)];

const TAG: &[SettingSpec] = &[SettingSpec::new("text", SettingKind::Text, "", "anything")];

#[derive(Debug)]
struct Tag;

#[derive(Debug)]
struct Spin;

#[derive(Debug)]
struct Scramble;

#[async_trait]
impl FilterFactory for Tag {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new("tag", "1.0", Class::Inspect)
            .with_summary("passes everything on")
            .pass(&OpKind::ALL)
            .with_bypass(BypassSafety::Always)
            .with_settings(TAG)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, _cx: AttachContext) -> Result<Arc<dyn Filter>> {
        Ok(Arc::new(Passing {
            spin: None,
            is_spun: AtomicBool::new(true),
        }))
    }
}

#[async_trait]
impl FilterFactory for Spin {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new("spin", "1.0", Class::Qos)
            .with_summary("spins at the first read")
            .intercept(&[OpKind::Read])
            .pass(&[
                OpKind::Write,
                OpKind::WriteZeroes,
                OpKind::Discard,
                OpKind::Flush,
                OpKind::Prefetch,
            ])
            .with_settings(SPIN)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        Ok(Arc::new(Passing {
            spin: cx.settings().duration("time"),
            is_spun: AtomicBool::new(false),
        }))
    }
}

#[async_trait]
impl FilterFactory for Scramble {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new("scramble", "1.0", Class::Transform)
            .with_summary("inverts every byte")
            .intercept(&[OpKind::Read, OpKind::Write])
            .pass(&[OpKind::Flush])
            .accept_fua()
            .with_content(Content::Transformed)
            .with_rechain(Rechain::EmptyDisk)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, _cx: AttachContext) -> Result<Arc<dyn Filter>> {
        Ok(Arc::new(Inverting))
    }
}

#[derive(Debug)]
struct Passing {
    spin: Option<Duration>,
    is_spun: AtomicBool,
}

#[async_trait]
impl Filter for Passing {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        if let (Op::Read { .. }, Some(time)) = (&io.op, self.spin)
            && !self.is_spun.swap(true, Ordering::SeqCst)
        {
            let started = super::now();
            while started.elapsed() < time {
                std::hint::spin_loop();
            }
        }
        next.submit(io).await
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }
}

#[derive(Debug)]
struct Inverting;

fn inverted(data: &[u8]) -> Vec<u8> {
    data.iter().map(|byte| !byte).collect()
}

#[async_trait]
impl Filter for Inverting {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        match &io.op {
            Op::Read { .. } => {
                let data = next.submit(io).await?.into_data();
                Ok(Reply::Data(inverted(&data).into()))
            }
            Op::Write { offset, data, fua } => {
                let op = Op::Write {
                    offset: *offset,
                    data: inverted(data).into(),
                    fua: *fua,
                };
                next.submit(io.with_op(op)).await
            }
            op => Err(vaio_core::Error::unsupported(op.kind())),
        }
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }
}
