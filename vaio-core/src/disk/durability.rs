//! Durability verbs over the whole chain: flush to a level, hold at a point, set the dirty
//! policy. They fan out over the filters that hold data.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{Disk, DiskInner, contained::Contained, run_to_end};
use crate::{
    Class, DirtyMap, DirtyMark, DirtyPolicy, DirtySource, DirtySummary, Error, ErrorKind, Extent,
    FlushProgress, HeldPoint, Instant, Io, Level, Release, Result, RuntimeExt,
    chain::{Chain, IoCx},
    event::{EventKind, Notice, Severity},
    root::{Entered, Rooted},
    sync::lock,
};

/// A source of dirty data, and how far to bring it.
type Marked = (Arc<str>, Class, Arc<dyn DirtySource>, DirtyMark);

/// The sources of dirty data in a chain, top first.
fn sources(chain: &Chain) -> Vec<(Arc<str>, Class, Arc<dyn DirtySource>)> {
    let layers = chain.layers.iter();
    layers
        .filter_map(|layer| {
            let source = Contained::of(&chain.core, layer)?;
            Some((Arc::clone(&layer.name), layer.descriptor.class, source))
        })
        .collect()
}

/// What the marks cover and is still short of a level, in bytes.
fn remaining(marks: &[(Arc<dyn DirtySource>, DirtyMark)], level: Level) -> u64 {
    marks.iter().fold(0, |sum, (source, mark)| {
        sum.saturating_add(source.remaining(level, *mark))
    })
}

impl DiskInner {
    /// A flush down the whole chain, as a guest's would go.
    pub(super) async fn flush_chain(&self) -> Result<()> {
        self.flush_from(0).await
    }

    /// Makes durable what was told so far to the filters from place `at` on, and to the device,
    /// for a filter that joins above them: a flush that comes to it may be answered from what it
    /// holds, and never get there. With a limit, because the guest may be waiting.
    pub(super) async fn flush_below(&self, at: usize) -> Result<()> {
        let level = u8::try_from(at).expect("at most LAYERS_MAX");
        let limit = self.core.settings.lifecycle_timeout;
        let flush = self.flush_from(level);
        let flushed = self.core.rt.timeout_at(self.core.rt.now() + limit, flush);
        flushed.await.unwrap_or_else(|| {
            Err(self.error(
                ErrorKind::TimedOut,
                format!(
                    "the flush below the filter takes longer than {limit:?} and goes on; try again"
                ),
            ))
        })
    }

    async fn flush_from(&self, level: u8) -> Result<()> {
        self.core.gate.enter_always();
        let entered = Entered(Arc::clone(&self.core));
        let (chain, _) = self.chain();
        let cx = IoCx {
            chain,
            slot: self.core.slots.new_slot(),
        };
        let mut io = Io::flush().with_origin(crate::Origin::Filter);
        io.id = self.core.take_ids(1);
        Rooted::new(cx, level, io, Arc::from("vaio"), entered)
            .await
            .map(drop)
    }

    /// Brings everything that is acknowledged now to `level`, until `deadline`. Counted: with the
    /// gate closed a filter's destaging is admitted for as long as this runs.
    pub(super) async fn reach(self: &Arc<Self>, level: Level, deadline: Instant) -> Result<()> {
        self.core.gate.enter_always();
        let _entered = Entered(Arc::clone(&self.core));
        let job = self.bring_to(level, self.marks());
        let rt = Arc::clone(self.rt());
        match rt.timeout_at(deadline, job).await {
            Some(result) => result,
            None => Err(self.error(
                ErrorKind::TimedOut,
                format!("data did not reach the level in time, level={level}"),
            )),
        }
    }

    fn marks(&self) -> Vec<Marked> {
        let (chain, _) = self.chain();
        sources(&chain)
            .into_iter()
            .map(|(name, class, source)| {
                let mark = source.mark();
                (name, class, source, mark)
            })
            .collect()
    }

    /// Brings what the marks cover to `level`: first what is volatile, then source by source, top
    /// first (an upper cache writes into the lower one), then the device.
    async fn bring_to(self: &Arc<Self>, level: Level, marks: Vec<Marked>) -> Result<()> {
        if level == Level::ReplicaDurable
            && !marks
                .iter()
                .any(|(_, class, ..)| *class == Class::Replicate)
        {
            return Err(self.error(
                ErrorKind::Unsupported,
                "the disk has no replica; attach a replication filter first",
            ));
        }
        if level == Level::Drained {
            return Ok(());
        }
        self.flush_chain().await?;
        if level == Level::CacheDurable {
            return Ok(());
        }
        let mut is_lowest_yet = true;
        for (name, _, source, mark) in marks {
            // What a source above has just brought down came after the mark that was taken.
            let mark = if is_lowest_yet { mark } else { source.mark() };
            is_lowest_yet = false;
            source
                .flush_to(mark, level)
                .await
                .map_err(|error| error.with_filter(name))?;
        }
        let (chain, _) = self.chain();
        if chain.info(chain.layers.len()).caps.volatile_cache {
            let level_of_device = u8::try_from(chain.layers.len()).expect("at most LAYERS_MAX");
            self.flush_from(level_of_device).await?;
        }
        Ok(())
    }

    fn summary(&self, level: Level) -> DirtySummary {
        let (chain, _) = self.chain();
        let mut sum = DirtySummary::default();
        for (_, _, source) in sources(&chain) {
            let one = source.summary(level);
            sum.bytes = sum.bytes.saturating_add(one.bytes);
            sum.oldest_age = sum.oldest_age.max(one.oldest_age);
            sum.is_estimate |= one.is_estimate;
        }
        sum
    }
}

/// A flush to a level on its way. Dropping it does not stop the flush.
#[derive(Debug)]
pub struct Flushing {
    disk: Disk,
    level: Level,
    from: Instant,
    initial_bytes: u64,
    /// Each source with its mark.
    marks: Vec<(Arc<dyn DirtySource>, DirtyMark)>,
    ended: Arc<Ended>,
}

#[derive(Debug, Default)]
struct Ended {
    result: Mutex<Option<Result<()>>>,
    notify: crate::sync::Notify,
    left: Mutex<Left>,
}

/// What was left when something was done last. A filter brings its data there a batch at a time.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    bytes: u64,
    since: Instant,
}

impl Left {
    /// The time left, from what was `done` between `from` and then, if that was anything. Late,
    /// it is as long again as it is late by.
    fn eta(self, done: u64, from: Instant, now: Instant) -> Option<Duration> {
        let then = FlushProgress::estimated(done, self.bytes, self.since.since(from)).eta?;
        Some(then.abs_diff(now.since(self.since)))
    }
}

impl Flushing {
    /// How it is coming along. The remaining bytes never grow, although newer writes make new
    /// dirty data: those are not waited for.
    pub fn progress(&self) -> FlushProgress {
        let now = self.disk.inner.rt().now();
        let result = lock(&self.ended.result).as_ref().map(Result::is_ok);
        if result == Some(true) {
            return FlushProgress::estimated(self.initial_bytes, 0, now.since(self.from));
        }
        let bytes = remaining(&self.marks, self.level);
        let mut left = lock(&self.ended.left);
        if bytes < left.bytes {
            *left = Left { bytes, since: now };
        }
        let done_bytes = self.initial_bytes - left.bytes;
        FlushProgress {
            remaining_bytes: left.bytes,
            done_bytes,
            eta: match result {
                None => left.eta(done_bytes, self.from, now),
                Some(_) => None,
            },
        }
    }

    /// Waits for the end, until `deadline` at most. Cancel-safe: ask again.
    ///
    /// # Errors
    /// What kept the level from being reached; [`ErrorKind::TimedOut`] at the deadline: the flush
    /// goes on.
    pub async fn wait(&self, deadline: Instant) -> Result<()> {
        let rt = Arc::clone(self.disk.inner.rt());
        let ended = async {
            loop {
                let listener = self.ended.notify.listen();
                if let Some(result) = lock(&self.ended.result).clone() {
                    return result;
                }
                listener.await;
            }
        };
        rt.timeout_at(deadline, ended).await.unwrap_or_else(|| {
            let remaining = self.progress().remaining_bytes;
            Err(self.disk.inner.error(
                ErrorKind::TimedOut,
                format!(
                    "data did not reach the level in time; the flush goes on, level={} \
                     remaining_bytes={remaining}",
                    self.level
                ),
            ))
        })
    }
}

/// A backing held at a point while the guest goes on writing. Dropping it lets go.
#[derive(Debug)]
#[must_use = "dropping it lets go"]
pub struct PointInTime {
    filter: Arc<str>,
    held: Arc<dyn HeldPoint>,
    ended: Arc<crate::sync::Notify>,
}

impl Drop for PointInTime {
    fn drop(&mut self) {
        self.ended.notify_all();
    }
}

/// Tells in an event when a filter had to let go of a point by itself.
fn watch_held(
    core: &Arc<crate::core::Core>,
    filter: &Arc<str>,
    held: &Arc<dyn HeldPoint>,
) -> Arc<crate::sync::Notify> {
    let ended = Arc::<crate::sync::Notify>::default();
    let lost = held.lost();
    let (events, filter, end) = (
        Arc::clone(&core.events),
        Arc::clone(filter),
        Arc::clone(&ended),
    );
    core.rt.spawn(
        "vaio-held",
        Box::pin(async move {
            let mut ended = std::pin::pin!(end.listen());
            let mut lost = lost;
            let is_lost = std::future::poll_fn(|cx| {
                if ended.as_mut().poll(cx).is_ready() {
                    return std::task::Poll::Ready(false);
                }
                lost.as_mut().poll(cx).map(|()| true)
            })
            .await;
            if is_lost {
                events.send(
                    Notice::of(
                        Severity::Error,
                        EventKind::ThawedEarly,
                        "the filter had to let go of the point that it held",
                    )
                    .with_filter(&filter)
                    .with_next_step("what was copied meanwhile is torn: take the snapshot again"),
                );
            }
        }),
    );
    ended
}

impl PointInTime {
    /// The filter that holds it.
    pub fn filter(&self) -> &str {
        &self.filter
    }

    /// The point in that filter's order of writes.
    pub fn mark(&self) -> DirtyMark {
        self.held.mark()
    }

    /// Resolves when the filter had to let go by itself.
    pub async fn lost(&self) {
        self.held.lost().await;
    }

    /// Lets go, and says whether the backing was held until now.
    pub fn release(self) -> Release {
        self.held.release()
    }
}

impl Disk {
    /// How much data is short of `level`, over all filters. Over-reports rather than
    /// under-reports.
    pub fn dirty(&self, level: Level) -> DirtySummary {
        self.inner.summary(level)
    }

    /// What is short of `level` within `range`, over all filters.
    pub fn dirty_extents(&self, level: Level, range: Extent) -> DirtyMap {
        let (chain, _) = self.inner.chain();
        let mut sum = DirtyMap::new();
        for (_, _, source) in sources(&chain) {
            sum.merge(&source.extents(level, range));
        }
        sum
    }

    /// The sources of dirty data, top first, with the names of their filters: for software that
    /// reads dirty data itself.
    pub fn dirty_sources(&self) -> Vec<(Arc<str>, Arc<dyn DirtySource>)> {
        let (chain, _) = self.inner.chain();
        sources(&chain)
            .into_iter()
            .map(|(name, _, source)| (name, source))
            .collect()
    }

    /// Starts to bring everything that was acknowledged before this call to `level`. Newer writes
    /// never extend it. Runs beside guest IO.
    ///
    /// On a disk that is quiesced, also inside a verb's commit, what it moves is admitted. One that
    /// runs when the disk is being quiesced goes on when it is resumed.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] when the disk is closed. What the flush itself meets comes from
    /// [`Flushing::wait`].
    pub fn flush_to(&self, level: Level) -> Result<Flushing> {
        let core = &self.inner.core;
        if core.is_closed() {
            return Err(core.gone());
        }
        let marks = self.inner.marks();
        let covered: Vec<_> = marks
            .iter()
            .map(|(_, _, source, mark)| (Arc::clone(source), *mark))
            .collect();
        let initial_bytes = remaining(&covered, level);
        let ended = Arc::<Ended>::default();
        lock(&ended.left).bytes = initial_bytes;
        let (inner, report) = (Arc::clone(&self.inner), Arc::clone(&ended));
        let counted = core.gate.try_enter_quiet();
        let counted = counted.then(|| Entered(Arc::clone(core)));
        let job = run_to_end(core, "flush_to", async move {
            let _counted = counted;
            inner.bring_to(level, marks).await
        });
        core.rt.spawn(
            "vaio-flush",
            Box::pin(async move {
                let result = job.await;
                *lock(&report.result) = Some(result);
                report.notify.notify_all();
            }),
        );
        let from = core.rt.now();
        Ok(Flushing {
            disk: self.clone(),
            level,
            from,
            initial_bytes,
            marks: covered,
            ended,
        })
    }

    /// Brings the backing exactly to a point of the guest's writes and holds it there, while the
    /// guest goes on: an array can take its snapshot meanwhile. Held for `limit` at most.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where no filter holds data that new writes could go into
    /// ([`quiesce`](Self::quiesce) works everywhere), else as the filter.
    pub async fn hold_at_point(&self, limit: Duration) -> Result<PointInTime> {
        self.verb("hold_at_point", move |inner| async move {
            let (chain, _) = inner.chain();
            let until = inner.core.rt.now() + limit;
            // The lowest one: what is above it may go on freely.
            let caches = sources(&chain).into_iter().rev();
            for (filter, class, source) in caches {
                if class != Class::Cache {
                    continue;
                }
                let held = source
                    .hold(until)
                    .await
                    .map_err(|error| error.with_filter(Arc::clone(&filter)))?;
                inner.core.events.send(
                    Notice::of(
                        Severity::Info,
                        EventKind::Quiesced,
                        "the backing is held at a point; the guest goes on",
                    )
                    .with_filter(&filter),
                );
                let ended = watch_held(&inner.core, &filter, &held);
                return Ok(PointInTime {
                    filter,
                    held,
                    ended,
                });
            }
            Err(Error::new(
                ErrorKind::Unsupported,
                "no filter can hold the backing at a point while the guest goes on; \
                 quiesce the disk instead",
            ))
        })
        .await
    }

    /// Sets whether new dirty data may be made, on every filter that holds any. With
    /// `WriteThrough` a later stop is bounded.
    ///
    /// # Errors
    /// The first filter's that fails; those before it are set back.
    pub async fn set_dirty_policy(&self, policy: DirtyPolicy) -> Result<()> {
        self.verb("set_dirty_policy", move |inner| async move {
            let _control = inner.control.lock().await;
            inner.refuse_while_held()?;
            let (chain, _) = inner.chain();
            let before = *lock(&inner.dirty_policy);
            let mut done: Vec<Arc<dyn DirtySource>> = Vec::new();
            for (name, _, source) in sources(&chain) {
                if let Err(error) = source.set_policy(policy).await {
                    for undo in done.iter().rev() {
                        let _ = undo.set_policy(before).await;
                    }
                    return Err(error.with_filter(name));
                }
                done.push(source);
            }
            *lock(&inner.dirty_policy) = policy;
            Ok(())
        })
        .await
    }
}
