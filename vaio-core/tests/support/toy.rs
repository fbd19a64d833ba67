//! A toy write-back cache: dirty blocks of 512 bytes in memory that stands for a durable log. It
//! outlives its instances, like a log does.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use vaio_core::*;

type Dirty = BTreeMap<u64, (u64, Vec<u8>)>;

#[derive(Default)]
struct Log {
    dirty: Dirty,
    last: u64,
    policy: DirtyPolicy,
    held: Option<Arc<Held>>,
}

/// Makes instances over one log.
#[derive(Clone)]
pub struct Toy {
    pub descriptor: Descriptor,
    /// How long one block takes on its way down.
    pub delay: Duration,
    pub fails_policy: Arc<AtomicBool>,
    /// It holds data from the backing; what else it holds is a replica's lag.
    pub keeps_from_backing: bool,
    log: Arc<Mutex<Log>>,
}

impl Toy {
    pub fn new(name: &'static str, class: Class) -> Self {
        Self {
            descriptor: every_op(name, class)
                .with_content(Content::Held)
                .with_bypass(BypassSafety::Never),
            delay: Duration::ZERO,
            fails_policy: Arc::default(),
            keeps_from_backing: class != Class::Replicate,
            log: Arc::default(),
        }
    }

    pub fn slow(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    pub fn dirty_blocks(&self) -> usize {
        self.log.lock().unwrap().dirty.len()
    }

    pub fn policy(&self) -> DirtyPolicy {
        self.log.lock().unwrap().policy
    }

    /// What happens when the log is full while a point is held.
    pub fn lose_hold(&self) {
        if let Some(held) = self.log.lock().unwrap().held.take() {
            held.is_lost.store(true, Ordering::Relaxed);
            held.lost.notify_all();
        }
    }
}

use super::every_op;

impl fmt::Debug for Toy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.descriptor.name)
    }
}

#[async_trait]
impl FilterFactory for Toy {
    fn descriptor(&self) -> Descriptor {
        self.descriptor.clone()
    }
    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }
    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let source = Source {
            toy: self.clone(),
            lower: cx.lower(),
            rt: Arc::clone(cx.rt()),
        };
        self.log.lock().unwrap().policy = DirtyPolicy::Allow;
        Ok(Arc::new(Cache(Arc::new(source))))
    }
}

#[derive(Debug)]
struct Cache(Arc<Source>);

#[derive(Debug)]
struct Source {
    toy: Toy,
    lower: Lower,
    rt: Rt,
}

#[async_trait]
impl Filter for Cache {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        let log = &self.0.toy.log;
        match &io.op {
            Op::Write { offset, data, .. } => {
                let is_through = log.lock().unwrap().policy == DirtyPolicy::WriteThrough;
                if is_through {
                    let extent = io.op.extent();
                    next.submit(io).await?;
                    let mut log = log.lock().unwrap();
                    log.dirty
                        .retain(|at, _| *at < extent.offset() || *at >= extent.end());
                    return Ok(Reply::Done);
                }
                let mut log = log.lock().unwrap();
                for (n, block) in data.chunks(512).enumerate() {
                    log.last += 1;
                    let mark = log.last;
                    log.dirty
                        .insert(offset + n as u64 * 512, (mark, block.to_vec()));
                }
                Ok(Reply::Done)
            }
            Op::Read { extent } => {
                let extent = *extent;
                let mut data = next.submit(io).await?.into_data().to_vec();
                for (at, (_, block)) in log
                    .lock()
                    .unwrap()
                    .dirty
                    .range(extent.offset()..extent.end())
                {
                    let from = usize::try_from(at - extent.offset()).unwrap();
                    data[from..from + 512].copy_from_slice(block);
                }
                Ok(Reply::Data(data.into()))
            }
            Op::Flush => Ok(Reply::Done),
            _ => Err(Error::unsupported(io.op.kind())),
        }
    }
    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(below.with_caps(|caps| caps.write_zeroes = Support::None))
    }
    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }
    fn state(&self) -> FilterState {
        FilterState::dirty(self.0.toy.dirty_blocks() as u64 * 512)
    }
    fn dirty(&self) -> Option<Arc<dyn DirtySource>> {
        Some(Arc::<Source>::clone(&self.0))
    }
}

impl Source {
    fn is_there(&self, level: Level) -> bool {
        level <= Level::CacheDurable
            || (level == Level::BackingDurable && !self.toy.keeps_from_backing)
    }

    fn next_dirty(&self, up_to: u64) -> Option<(u64, u64, Vec<u8>)> {
        let log = self.toy.log.lock().unwrap();
        let mut due: Vec<_> = log
            .dirty
            .iter()
            .filter(|(_, (mark, _))| *mark <= up_to)
            .collect();
        due.sort_by_key(|(_, (mark, _))| *mark);
        due.first()
            .map(|(at, (mark, block))| (**at, *mark, block.clone()))
    }
}

#[async_trait]
impl DirtySource for Source {
    fn summary(&self, level: Level) -> DirtySummary {
        if self.is_there(level) {
            return DirtySummary::default();
        }
        DirtySummary::new(self.toy.dirty_blocks() as u64 * 512, Duration::from_secs(1))
    }
    fn extents(&self, level: Level, range: Extent) -> DirtyMap {
        if self.is_there(level) {
            return DirtyMap::new();
        }
        let log = self.toy.log.lock().unwrap();
        log.dirty
            .range(range.offset()..range.end())
            .map(|(at, _)| Extent::new(*at, 512))
            .collect()
    }
    fn mark(&self) -> DirtyMark {
        DirtyMark(self.toy.log.lock().unwrap().last)
    }
    async fn read_dirty(
        &self,
        _level: Level,
        from: DirtyMark,
        bytes_max: u64,
    ) -> Result<Vec<DirtyPiece>> {
        let log = self.toy.log.lock().unwrap();
        let mut pieces: Vec<_> = log
            .dirty
            .iter()
            .filter(|(_, (mark, _))| *mark >= from.0)
            .map(|(at, (mark, block))| {
                DirtyPiece::new(
                    Extent::new(*at, 512),
                    DirtyMark(*mark),
                    block.clone().into(),
                )
            })
            .collect();
        pieces.sort_by_key(|piece| piece.mark);
        pieces.truncate(usize::try_from(bytes_max / 512).unwrap().max(1));
        Ok(pieces)
    }
    async fn flush_to(&self, mark: DirtyMark, level: Level) -> Result<()> {
        if self.is_there(level) {
            return Ok(());
        }
        while let Some((at, marked, block)) = self.next_dirty(mark.0) {
            self.rt.sleep(self.toy.delay).await;
            self.lower.submit(Io::write(at, block.into())).await?;
            let mut log = self.toy.log.lock().unwrap();
            if log.dirty.get(&at).is_some_and(|(now, _)| *now == marked) {
                log.dirty.remove(&at);
            }
        }
        Ok(())
    }
    async fn hold(&self, _until: Instant) -> Result<Arc<dyn HeldPoint>> {
        let mark = self.mark();
        self.flush_to(mark, Level::BackingDurable).await?;
        let held = Arc::new(Held {
            mark,
            is_lost: AtomicBool::new(false),
            lost: Arc::default(),
        });
        self.toy.log.lock().unwrap().held = Some(Arc::clone(&held));
        Ok(held)
    }
    async fn set_policy(&self, policy: DirtyPolicy) -> Result<()> {
        if self.toy.fails_policy.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Io, "log is broken"));
        }
        self.toy.log.lock().unwrap().policy = policy;
        Ok(())
    }
}

#[derive(Debug)]
struct Held {
    mark: DirtyMark,
    is_lost: AtomicBool,
    lost: Arc<sync::Notify>,
}

impl HeldPoint for Held {
    fn mark(&self) -> DirtyMark {
        self.mark
    }
    fn release(&self) -> Release {
        if self.is_lost.load(Ordering::Relaxed) {
            Release::ThawedEarly
        } else {
            Release::Held
        }
    }
    fn lost(&self) -> BoxFuture<'static, ()> {
        let lost = Arc::clone(&self.lost);
        let is_lost = self.is_lost.load(Ordering::Relaxed);
        Box::pin(async move {
            if !is_lost {
                lost.listen().await;
            }
        })
    }
}
