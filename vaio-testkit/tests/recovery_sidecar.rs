//! What a filter keeps in the sidecar counts in a crash within its recovery: equal disks with another
//! sidecar are another state.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use vaio_core::{
    AllocationMap, AttachContext, BlockDeviceExt, BypassSafety, Class, Content, Descriptor,
    DeviceInfo, Filter, FilterFactory, Io, Lifecycle, Next, Op, OpKind, OpenReason, Outcome,
    Promise, Reply, Result, sync,
};
use vaio_testkit::{
    Subject,
    conformance::{Budget, Said, run_case},
};

/// Makes every acknowledged write durable: the latest one is in the sidecar until a flush below has
/// made it durable there.
#[derive(Debug)]
struct Redo {
    cx: AttachContext,
    /// Whether the sidecar holds a write. Writes are done one by one.
    holds: sync::Mutex<bool>,
}

const KEY: &str = "redo";

#[async_trait]
impl Filter for Redo {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        let Op::Write { offset, data, .. } = &io.op else {
            return next.submit(io).await;
        };
        let mut holds = self.holds.lock().await;
        if *holds {
            next.flush().await?;
        }
        let mut redo = BytesMut::new();
        redo.put_u64_le(*offset);
        redo.put_slice(data);
        let sidecar = self.cx.sidecar();
        sidecar.commit(&[(KEY, Some(redo.freeze()))]).await?;
        *holds = true;
        next.submit(io).await
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        let mut info = *below;
        info.caps.volatile_cache = false;
        Ok(info)
    }

    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }

    fn allocation(&self, below: AllocationMap) -> AllocationMap {
        below
    }
}

/// Whether a recovery forgets the write before it is durable below.
#[derive(Clone, Copy, Debug)]
struct ForgetsEarly(bool);

#[async_trait]
impl FilterFactory for ForgetsEarly {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new("redo", "1.0.0", Class::Cache)
            .with_summary("Keeps the latest write in the sidecar.")
            .intercept(&[OpKind::Write])
            .pass(&[OpKind::Read, OpKind::Flush, OpKind::Prefetch])
            .accept_fua()
            .with_content(Content::Held)
            .with_bypass(BypassSafety::Never)
            .with_promise(Promise::AtAck)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let sidecar = cx.sidecar();
        if cx.reason() == OpenReason::Unclean
            && let Some(mut redo) = sidecar.get(KEY).await
        {
            let offset = redo.get_u64_le();
            cx.lower().write(offset, redo).await?;
            let forget: [(&str, Option<Bytes>); 1] = [(KEY, None)];
            if self.0 {
                sidecar.commit(&forget).await?;
                cx.lower().flush().await?;
            } else {
                cx.lower().flush().await?;
                sidecar.commit(&forget).await?;
            }
        }
        let holds = sync::Mutex::new(false);
        Ok(Arc::new(Redo { cx, holds }))
    }
}

fn said(factory: ForgetsEarly) -> Said {
    let subject = Subject::new(factory);
    run_case(&subject, "recovery_crash::small_writes", &Budget::default())
}

#[test]
fn write_forgotten_in_the_sidecar_before_it_is_durable_is_found() {
    assert!(matches!(said(ForgetsEarly(false)), Said::Passed(_)));
    let Said::Failed(found) = said(ForgetsEarly(true)) else {
        panic!("a power loss between the mark and the flush loses the write");
    };
    assert_eq!(found.broken.rule, "lost-write");
}
