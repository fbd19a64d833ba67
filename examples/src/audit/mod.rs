//! Writes down who changed what: one line of JSON for every write, write-zeroes and discard.
//!
//! The model of an observer. Invariants:
//! * It never delays an IO: a line goes into a bounded queue; where the writer falls behind,
//!   lines are dropped, counted and leave a gap line.
//! * Every mutation it saw has exactly one line or is counted as dropped, also when whoever asked
//!   let go of it (`abandoned`).
//! * It changes nothing, so that a disk goes on without it when it fails.
//!
//! A filter that keeps *data of the disk* gets its devices from the host and never opens a file,
//! so that a testkit can stand in for them. A log for people is not data of the disk: nothing of
//! the guest's depends on it, so this filter opens its own.

pub mod record;
mod trail;

pub use trail::Ring;

use std::{path::PathBuf, pin::pin, sync::Arc};

use async_trait::async_trait;
use futures::future::select;
use vaio_core::{
    AllocationMap, AttachContext, Class, Descriptor, DeviceInfo, Error, Filter, FilterFactory,
    FilterState, Instant, Io, Lifecycle, Next, Notice, OpKind, Outcome, Phase, Reply, Result, Rt,
    SettingKind, SettingSpec, Severity, Verb,
};

use record::Record;
use trail::Writer;

/// Records kept in memory where there is no file.
const RING_MAX: usize = 4096;

const SETTINGS: &[SettingSpec] = &[
    SettingSpec::new(
        "path",
        SettingKind::Path,
        "",
        "File that lines are appended to; none: the newest 4096 stay in memory",
    ),
    SettingSpec::new(
        "queue_lines_max",
        SettingKind::Number {
            min: 1,
            max: 1 << 20,
        },
        "8192",
        "Lines that wait to be written; more are dropped and counted",
    ),
];

#[derive(Clone, Debug)]
enum Sink {
    Ring(Arc<Ring>),
    File(Arc<Writer>),
}

impl Sink {
    fn push(&self, record: Record) {
        match self {
            Self::Ring(ring) => ring.push(record),
            Self::File(writer) => writer.push(record),
        }
    }
}

/// The filter.
#[derive(Debug)]
pub struct Audit {
    vm: Arc<str>,
    disk: Arc<str>,
    rt: Rt,
    sink: Sink,
}

#[async_trait]
impl Filter for Audit {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        match io.op.kind() {
            OpKind::Write | OpKind::WriteZeroes | OpKind::Discard => {
                let pending = self.begin(&io);
                let result = next.submit(io).await;
                pending.end(&result);
                result
            }
            // The descriptor lets nothing else come here.
            other => Err(Error::unsupported(other)),
        }
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, event: Lifecycle<'_>) -> Result<Outcome> {
        if let (Sink::File(writer), Phase::Prepare) = (&self.sink, event.phase) {
            writer.drain(&self.rt).await;
            let synced = writer.sync(&self.rt);
            // At `Close` the guest waits: the lines are written, and become durable behind it.
            if !matches!(event.verb, Verb::Close) {
                synced.await;
            }
        }
        Ok(Outcome::Done)
    }

    fn state(&self) -> FilterState {
        let Sink::File(writer) = &self.sink else {
            return FilterState::default();
        };
        let progress = writer.progress();
        let state = FilterState::default()
            .with_detail("lines", progress.lines.to_string())
            .with_detail("dropped", progress.dropped.to_string());
        match progress.problem {
            Some(problem) => state.with_problem(problem),
            None => state,
        }
    }

    fn allocation(&self, below: AllocationMap) -> AllocationMap {
        below
    }
}

impl Audit {
    fn begin(&self, io: &Io) -> Pending<'_> {
        let extent = io.op.extent();
        let record = Record {
            wall_ns: self.rt.wall().0,
            vm: Arc::clone(&self.vm),
            disk: Arc::clone(&self.disk),
            origin: io.origin,
            id: io.id,
            op: io.op.kind(),
            offset: extent.offset(),
            len: extent.len(),
            result: "abandoned",
            latency_ns: 0,
        };
        Pending {
            audit: self,
            since: self.rt.now(),
            record: Some(record),
        }
    }
}

/// A mutation on its way. Dropped before [`end`](Pending::end), it is recorded as abandoned.
struct Pending<'a> {
    audit: &'a Audit,
    since: Instant,
    record: Option<Record>,
}

impl Pending<'_> {
    fn end(mut self, result: &Result<Reply>) {
        if let Some(record) = &mut self.record {
            record.result = result
                .as_ref()
                .map_or_else(|error| error.kind().name(), |_| "ok");
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            let latency = self.audit.rt.now().since(self.since);
            record.latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
            self.audit.sink.push(record);
        }
    }
}

/// Writes behind until the instance closes. It takes no [`step`](AttachContext::step): steps are
/// for work on the disk, which a quiesce has to wait for, and a slow log must not hold up a
/// quiesce.
async fn write_behind(cx: AttachContext, writer: Arc<Writer>) {
    let work = async {
        loop {
            writer.wait().await;
            let lost = writer.drain(cx.rt()).await;
            if lost > 0 {
                let text = format!("lines of the audit trail were lost, lost={lost}");
                cx.event(Notice::new(Severity::Warning, text).with_next_step(
                    "look at the disk of the audit file, or raise queue_lines_max",
                ));
            }
        }
    };
    // Whatever is left when it is dropped, the life-cycle call before has written.
    select(pin!(cx.stopped()), pin!(work)).await;
}

/// Makes [`Audit`] instances.
#[derive(Debug, Default)]
pub struct AuditFactory {
    ring: Option<Arc<Ring>>,
}

impl AuditFactory {
    /// A factory whose instances without a `path` write into `ring`: for a program that shows the
    /// trail itself.
    pub fn with_ring(ring: Arc<Ring>) -> Self {
        Self { ring: Some(ring) }
    }
}

#[async_trait]
impl FilterFactory for AuditFactory {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new("audit", env!("CARGO_PKG_VERSION"), Class::Inspect)
            .with_summary("Writes down every change of the disk's content, as lines of JSON.")
            .intercept(&[OpKind::Write, OpKind::WriteZeroes, OpKind::Discard])
            .pass(&[OpKind::Read, OpKind::Flush, OpKind::Prefetch])
            .accept_fua()
            .accept_zeroes_flags()
            .with_settings(SETTINGS)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let sink = match cx.settings().text("path") {
            None => Sink::Ring(self.ring.clone().unwrap_or_else(|| Ring::new(RING_MAX))),
            Some(path) => {
                let queue_max = cx.settings().number("queue_lines_max").unwrap_or(1);
                let queue_max = usize::try_from(queue_max).unwrap_or(usize::MAX);
                let writer = Writer::open(PathBuf::from(path), queue_max, cx.rt()).await?;
                let writer = Arc::new(writer);
                cx.spawn(
                    "audit-writer",
                    write_behind(cx.clone(), Arc::clone(&writer)),
                );
                Sink::File(writer)
            }
        };
        Ok(Arc::new(Audit {
            vm: Arc::from(cx.vm()),
            disk: Arc::from(cx.disk()),
            rt: Arc::clone(cx.rt()),
            sink,
        }))
    }
}
