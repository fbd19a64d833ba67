//! Misbehaves on purpose, in every way that a filter can: for tests of containment. Never put it
//! in front of data that matters.
//!
//! Two names for one filter: `fault` says that the disk cannot go on without it
//! ([`BypassSafety::Never`]), `fault-observer` that it can ([`BypassSafety::Always`]). The
//! descriptor refuses `prefetch`, the one operation that harms nothing when it gets through.

use std::{
    future::{pending, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use futures::future::select;
use vaio_core::{
    AllocationMap, AttachContext, BypassSafety, Class, Descriptor, DeviceInfo, Extent, Filter,
    FilterFactory, Io, Lifecycle, Next, Op, OpKind, Outcome, Reply, Result, Rt, SettingKind,
    SettingSpec, sync::Notify, zeroes,
};

const MODES: &[&str] = &[
    "none",
    "panic",
    "late_panic",
    "background_panic",
    "lifecycle_panic",
    "hang",
    "spin",
    "wrong_reply",
    "short_read",
    "forbidden_op",
    "drop_next",
];

const COUNT: SettingKind = SettingKind::Number {
    min: 0,
    max: u64::MAX,
};

const SETTINGS: &[SettingSpec] = &[
    SettingSpec::new(
        "mode",
        SettingKind::Choice(MODES),
        "none",
        "How it misbehaves",
    ),
    SettingSpec::new(
        "op",
        SettingKind::Choice(&["any", "read", "write", "write_zeroes", "discard", "flush"]),
        "any",
        "Operations that count and are hit; short_read hits reads alone",
    ),
    SettingSpec::new(
        "after",
        COUNT,
        "0",
        "IOs that count before the first that is hit",
    ),
    SettingSpec::new(
        "times",
        COUNT,
        "1",
        "IOs that are hit; 0: every one from then on",
    ),
    SettingSpec::new(
        "spin",
        SettingKind::Duration {
            min_ms: 1,
            max_ms: 600_000,
        },
        "5s",
        "How long mode=spin blocks the thread",
    ),
    SettingSpec::new(
        "verb",
        SettingKind::Choice(&["attach", "open", "snapshot", "resize", "detach", "close"]),
        "detach",
        "Life-cycle verb that mode=lifecycle_panic panics in, at its first phase",
    ),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    None,
    Panic,
    LatePanic,
    BackgroundPanic,
    LifecyclePanic,
    Hang,
    Spin,
    WrongReply,
    ShortRead,
    ForbiddenOp,
    DropNext,
}

impl Mode {
    fn parse(name: &str) -> Self {
        match name {
            "panic" => Self::Panic,
            "late_panic" => Self::LatePanic,
            "background_panic" => Self::BackgroundPanic,
            "lifecycle_panic" => Self::LifecyclePanic,
            "hang" => Self::Hang,
            "spin" => Self::Spin,
            "wrong_reply" => Self::WrongReply,
            "short_read" => Self::ShortRead,
            "forbidden_op" => Self::ForbiddenOp,
            "drop_next" => Self::DropNext,
            _ => Self::None,
        }
    }
}

/// The filter.
#[derive(Debug)]
pub struct Fault {
    rt: Rt,
    mode: Mode,
    /// `None`: any.
    op: Option<OpKind>,
    after: u64,
    times: u64,
    spin: Duration,
    verb: String,
    counted: AtomicU64,
    background: Arc<Background>,
}

/// What wakes the background task.
#[derive(Debug, Default)]
struct Background {
    is_hit: AtomicBool,
    hit: Notify,
}

#[async_trait]
impl Filter for Fault {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        if !self.is_hit(&io) {
            return next.submit(io).await;
        }
        match self.mode {
            Mode::None | Mode::LifecyclePanic => next.submit(io).await,
            Mode::Panic => panic!("fault: asked to panic before it forwards"),
            Mode::LatePanic => {
                let reply = next.submit(io).await;
                panic!("fault: asked to panic after {reply:?}")
            }
            Mode::BackgroundPanic => {
                self.background.is_hit.store(true, Relaxed);
                self.background.hit.notify_all();
                next.submit(io).await
            }
            Mode::Hang => pending().await,
            Mode::Spin => {
                let until = self.rt.now() + self.spin;
                while self.rt.now() < until {
                    std::hint::spin_loop();
                }
                next.submit(io).await
            }
            Mode::WrongReply => match next.submit(io).await? {
                Reply::Data(_) => Ok(Reply::Done),
                _ => Ok(Reply::Data(zeroes(1))),
            },
            Mode::ShortRead => {
                let data = next.submit(io).await?.into_data();
                Ok(Reply::Data(data.slice(..data.len() - 1)))
            }
            Mode::ForbiddenOp => {
                let extent = Extent::new(0, next.info().logical_block.into());
                next.submit(io.with_op(Op::Prefetch { extent })).await?;
                next.submit(io).await
            }
            Mode::DropNext => drop_half_way(io, next).await,
        }
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, event: Lifecycle<'_>) -> Result<Outcome> {
        assert!(
            self.mode != Mode::LifecyclePanic || self.verb != event.verb.name(),
            "fault: asked to panic in {} {}",
            event.verb.name(),
            event.phase.name()
        );
        Ok(Outcome::Done)
    }

    fn allocation(&self, below: AllocationMap) -> AllocationMap {
        below
    }
}

impl Fault {
    fn is_hit(&self, io: &Io) -> bool {
        let kind = io.op.kind();
        if self.op.is_some_and(|op| op != kind)
            || (self.mode == Mode::ShortRead && kind != OpKind::Read)
        {
            return false;
        }
        let number = self.counted.fetch_add(1, Relaxed);
        number >= self.after && (self.times == 0 || number - self.after < self.times)
    }
}

/// Lets go of an IO that is under way and does it again, as a time-out that is too short does.
async fn drop_half_way(io: Io, next: Next<'_>) -> Result<Reply> {
    let mut first = Box::pin(next.submit(io.clone()));
    let polled = poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx))).await;
    if let Poll::Ready(result) = polled {
        return result;
    }
    drop(first);
    next.submit(io).await
}

async fn panic_when_hit(cx: AttachContext, background: Arc<Background>) {
    loop {
        let hit = background.hit.listen();
        if background.is_hit.load(Relaxed) {
            break;
        }
        hit.await;
    }
    // Inside a step, which a quiesce waits for: it must be given back all the same.
    let _step = cx.step().await;
    panic!("fault: asked to panic in the background");
}

/// Makes [`Fault`] instances.
#[derive(Debug)]
pub struct FaultFactory {
    name: &'static str,
    class: Class,
    bypass: BypassSafety,
}

impl FaultFactory {
    /// `fault`: stands for a filter that holds something; IO fails when it does.
    pub const fn holder() -> Self {
        Self {
            name: "fault",
            class: Class::Qos,
            bypass: BypassSafety::Never,
        }
    }

    /// `fault-observer`: IO goes on without it.
    pub const fn observer() -> Self {
        Self {
            name: "fault-observer",
            class: Class::Inspect,
            bypass: BypassSafety::Always,
        }
    }
}

#[async_trait]
impl FilterFactory for FaultFactory {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new(self.name, env!("CARGO_PKG_VERSION"), self.class)
            .with_summary("Misbehaves on purpose, for tests; never for data that matters.")
            .intercept(&[
                OpKind::Read,
                OpKind::Write,
                OpKind::WriteZeroes,
                OpKind::Discard,
                OpKind::Flush,
            ])
            .accept_fua()
            .accept_zeroes_flags()
            .with_bypass(self.bypass)
            .with_settings(SETTINGS)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let settings = cx.settings();
        let op = settings.text("op").unwrap_or_default();
        let fault = Fault {
            rt: Arc::clone(cx.rt()),
            mode: Mode::parse(settings.text("mode").unwrap_or_default()),
            op: OpKind::ALL.into_iter().find(|kind| kind.name() == op),
            after: settings.number("after").unwrap_or(0),
            times: settings.number("times").unwrap_or(1),
            spin: settings.duration("spin").unwrap_or_default(),
            verb: settings.text("verb").unwrap_or_default().to_owned(),
            counted: AtomicU64::new(0),
            background: Arc::default(),
        };
        if fault.mode == Mode::BackgroundPanic {
            let task = panic_when_hit(cx.clone(), Arc::clone(&fault.background));
            let stopped = cx.stopped();
            cx.spawn("fault-background", async move {
                select(pin!(stopped), pin!(task)).await;
            });
        }
        Ok(Arc::new(fault))
    }
}
