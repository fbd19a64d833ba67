//! What the control socket does: reads from this thread, verbs through the disk's own runtime.
//!
//! A question never waits for the IO thread. A verb does, and is given up with the name of the
//! filter that blocks it where that thread does not come back; the verb itself goes on.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use serde_json::{Value, json};
use vaio_core::{
    BlockDevice, Content, Descriptor, Disk, Error, ErrorKind, EventStream, Extent, FilterSpec,
    FlushProgress, Level, Result, Verb,
};

use super::{
    Hosted, HostedDisk, Shared,
    request::Request,
    session::{Broken, Out, give_way},
    within,
};
use crate::{device::Spec, device_size};

/// Longest wait for what a filter says of itself.
const ASK_MAX: Duration = Duration::from_secs(2);
/// Silence of the IO thread after which a verb is given up.
const BLOCKED_MAX: Duration = Duration::from_secs(5);
/// How often a verb that waits looks at the IO thread.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Time between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// Longest time that a resize waits for the disk to drain.
const RESIZE_MAX: Duration = Duration::from_secs(10);
/// Dirty extents in one answer; the asker goes on from where it ends.
const DIRTY_EXTENTS_MAX: usize = 1 << 16;
/// Events sent before other connections get their turn.
const EVENTS_AT_ONCE: usize = 64;

/// The disks a request is for.
pub(super) fn chosen<'a>(hosted: &'a Hosted, name: Option<&str>) -> Result<Vec<&'a HostedDisk>> {
    let all = hosted.disks.iter();
    let Some(name) = name else {
        return Ok(all.collect());
    };
    let found: Vec<_> = all.filter(|one| &**one.disk.name() == name).collect();
    if found.is_empty() {
        let names: Vec<_> = hosted.disks.iter().map(|one| &**one.disk.name()).collect();
        return Err(Error::invalid(format!(
            "no such disk, disk={name} known={}",
            names.join(",")
        )));
    }
    Ok(found)
}

/// The one disk a verb is for.
fn the_one<'a>(hosted: &'a Hosted, name: Option<&str>) -> Result<&'a HostedDisk> {
    let found = chosen(hosted, name)?;
    match found[..] {
        [one] => Ok(one),
        _ => Err(Error::invalid(format!(
            "there are several disks: say which one, disks={}",
            found
                .iter()
                .map(|one| &**one.disk.name())
                .collect::<Vec<_>>()
                .join(",")
        ))),
    }
}

/// Asks filters for something on a thread of its own: they promise not to wait, but this thread
/// does not depend on it.
async fn ask<T: Send + 'static>(
    shared: &Shared,
    question: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let asked = tokio::task::spawn_blocking(question);
    match within(ASK_MAX, asked).await {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(_)) => Err(Error::new(
            ErrorKind::FilterFault,
            "a filter panicked when asked for its state",
        )),
        None => Err(silent(
            shared,
            ASK_MAX,
            "no answer about the state of the filters",
        )),
    }
}

fn silent(shared: &Shared, limit: Duration, what: &str) -> Error {
    let disks = &shared.hosted.disks;
    let error = Error::new(ErrorKind::TimedOut, format!("{what} for {limit:?}"));
    match disks.iter().find_map(|one| one.disk.polling()) {
        Some(filter) => error.with_filter(filter),
        None => error,
    }
}

/// Waits for a verb, unless the IO thread does not come back.
pub(super) async fn wait<T>(shared: &Shared, verb: impl Future<Output = Result<T>>) -> Result<T> {
    let mut verb = std::pin::pin!(verb);
    loop {
        if let Some(result) = within(LOOK_EVERY, verb.as_mut()).await {
            return result;
        }
        if shared
            .heartbeat
            .blocked_for()
            .is_some_and(|silence| silence >= BLOCKED_MAX)
        {
            return Err(silent(
                shared,
                BLOCKED_MAX,
                "the IO thread has not come back, and the verb goes on by itself: silent",
            ));
        }
    }
}

/// Everything that is one question and one answer.
pub(super) async fn answer(shared: &Shared, name: Option<&str>, request: Request) -> Result<Value> {
    let hosted = &shared.hosted;
    match request {
        Request::Status {} => status(shared, name).await,
        Request::Stats {} => {
            let disks = disks_of(hosted, name)?;
            let stats = ask(shared, move || disks.iter().map(stats).collect::<Vec<_>>()).await?;
            Ok(json!({ "disks": stats }))
        }
        Request::Filters {} => Ok(json!({ "filters": filters(&hosted.registry.descriptors()) })),
        Request::Stack {} => stack(shared, name).await,
        Request::Attach { filter } => {
            let one = the_one(hosted, name)?;
            let mut spec = FilterSpec::from(filter);
            check_remembered(hosted, one, &spec)?;
            device_size::fold_known(&mut spec, &hosted.registry)?;
            let attach = settled(one, one.disk.attach(spec));
            wait(shared, attach).await.map(done)
        }
        Request::Detach { filter, dirty } => {
            let disk = &the_one(hosted, name)?.disk;
            wait(shared, disk.detach(filter, dirty.into()))
                .await
                .map(done)
        }
        Request::Replace { filter, instead_of } => {
            let one = the_one(hosted, name)?;
            let mut spec = FilterSpec::from(filter);
            check_remembered(hosted, one, &spec)?;
            device_size::fold_known(&mut spec, &hosted.registry)?;
            let old = instead_of.unwrap_or_else(|| spec.name.clone());
            let replace = settled(one, one.disk.replace(old, spec));
            wait(shared, replace).await.map(done)
        }
        Request::Dirty { to, extents, from } => {
            let (level, disks) = (Level::from(to), disks_of(hosted, name)?);
            let from = extents.then_some(from);
            let dirty = move || {
                disks
                    .iter()
                    .map(|disk| dirty(disk, level, from))
                    .collect::<Vec<_>>()
            };
            Ok(json!({ "disks": ask(shared, dirty).await? }))
        }
        Request::Resize { bytes } => resize(shared, the_one(hosted, name)?, bytes).await,
        Request::Metrics {} => {
            let disks = disks_of(hosted, name)?;
            let connections = hosted.server.connections();
            let text = ask(shared, move || crate::metrics::text(&disks, connections)).await?;
            Ok(json!({ "text": text }))
        }
        Request::Events { .. }
        | Request::Flush { .. }
        | Request::Hold { .. }
        | Request::Release {} => Err(Error::new(
            ErrorKind::Internal,
            "a request of a session was not answered by it",
        )),
    }
}

/// What was configured, as it was written.
async fn stack(shared: &Shared, name: Option<&str>) -> Result<Value> {
    let hosted = &shared.hosted;
    let mut disks = Vec::new();
    for one in chosen(hosted, name)? {
        let mut filters = wait(shared, async { Ok(one.disk.stack().await) }).await?;
        for filter in &mut filters {
            if let Ok(factory) = hosted.registry.get(&filter.name) {
                device_size::unfold(filter, &factory.descriptor());
            }
        }
        disks.push(json!({ "name": one.disk.name(), "filters": filters }));
    }
    Ok(json!({ "disks": disks }))
}

/// A verb that may make files; they stay only where it did what it should. Where it is given up
/// it goes on, and they stay.
async fn settled(one: &HostedDisk, verb: impl Future<Output = Result<()>>) -> Result<()> {
    let result = verb.await;
    one.devices.settle(&result);
    result
}

fn done((): ()) -> Value {
    json!({})
}

fn disks_of(hosted: &Hosted, name: Option<&str>) -> Result<Vec<Disk>> {
    Ok(chosen(hosted, name)?
        .into_iter()
        .map(|one| one.disk.clone())
        .collect())
}

async fn status(shared: &Shared, name: Option<&str>) -> Result<Value> {
    let hosted = &shared.hosted;
    let chosen = chosen(hosted, name)?;
    let mut disks = Vec::with_capacity(chosen.len());
    for one in chosen {
        let disk = one.disk.clone();
        let state = ask(shared, move || to_json(&disk.state())).await;
        // One disk whose filter does not answer hides no other.
        let mut state = state
            .unwrap_or_else(|error| json!({ "name": one.disk.name(), "problem": error.to_line() }));
        state["spec"] = one.text.as_str().into();
        state["polling"] = json!(one.disk.polling());
        disks.push(state);
    }
    let blocked = shared.heartbeat.blocked_for();
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptime_ms": millis(shared.started.elapsed()),
        "nbd_connections": hosted.server.connections(),
        "io_thread_blocked_ms": blocked.map(millis),
        "disks": disks,
    }))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What the framework's plain data looks like in JSON.
fn to_json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

fn stats(disk: &Disk) -> Value {
    let mut stats = to_json(&disk.stats());
    stats["name"] = json!(disk.name());
    stats
}

/// What is short of a level; with `from`, also its extents from that byte on, and where the next
/// answer goes on if there are more than fit one.
fn dirty(disk: &Disk, level: Level, from: Option<u64>) -> Value {
    let summary = disk.dirty(level);
    let mut answer = json!({
        "name": disk.name(),
        "level": level.name(),
        "bytes": summary.bytes,
        "oldest_age_ms": millis(summary.oldest_age),
        "is_estimate": summary.is_estimate,
    });
    if let Some(from) = from {
        let end = disk.info().capacity;
        let map = disk.dirty_extents(level, Extent::from_range(from.min(end), end));
        let all = map.extents();
        let told = &all[..all.len().min(DIRTY_EXTENTS_MAX)];
        let pairs = told.iter().map(|one| json!([one.offset(), one.len()]));
        answer["extents"] = pairs.collect();
        answer["next"] = json!(all.get(told.len()).map(|one| one.offset()));
    }
    answer
}

/// Descriptors as JSON.
pub(crate) fn filters(descriptors: &[Descriptor]) -> Value {
    let listed = |descriptor| {
        let mut value = to_json(descriptor);
        if let Some(settings) = value["settings"].as_array_mut() {
            settings.extend(device_size::settings_json(descriptor));
        }
        value
    };
    descriptors.iter().map(listed).collect()
}

/// Refuses a filter that keeps something on a disk whose sidecar ends with the process.
fn check_remembered(hosted: &Hosted, one: &HostedDisk, spec: &FilterSpec) -> Result<()> {
    let descriptor = hosted.registry.get(&spec.name)?.descriptor();
    let is_gone_anyway = matches!(one.spec, Spec::Ram(_) | Spec::Null(_));
    if one.is_remembered || is_gone_anyway || descriptor.content == Content::Unchanged {
        return Ok(());
    }
    Err(Error::refused(
        "what this filter keeps must be remembered, and the disk is no file: serve it with \
         --state-dir DIR",
    )
    .with_filter(descriptor.name)
    .with_disk(Arc::clone(one.disk.name())))
}

/// Sends the kept events, then new ones where `follow` is set. The answer says how many were
/// lost.
pub(super) async fn events(
    shared: &Shared,
    name: Option<&str>,
    follow: bool,
    out: &mut Out,
) -> Result<Result<Value>, Broken> {
    let mut streams: Vec<EventStream> = match chosen(&shared.hosted, name) {
        Ok(chosen) => chosen.iter().map(|one| one.disk.events()).collect(),
        Err(error) => return Ok(Err(error)),
    };
    let mut kept = Vec::new();
    for stream in &mut streams {
        while let Some(event) = stream.try_next() {
            kept.push(event);
        }
    }
    kept.sort_by_key(|event| event.at);
    for (index, event) in kept.iter().enumerate() {
        out.send("event", to_json(event)).await?;
        if index % EVENTS_AT_ONCE == EVENTS_AT_ONCE - 1 {
            give_way().await;
        }
    }
    if !follow {
        let missed: u64 = streams.iter().map(EventStream::missed).sum();
        return Ok(Ok(json!({ "missed": missed })));
    }
    let next = |mut stream: EventStream| async move {
        let before = stream.missed();
        let event = stream.next().await;
        (event, stream.missed() - before, stream)
    };
    let mut coming: FuturesUnordered<_> = streams.into_iter().map(next).collect();
    while let Some((event, missed, stream)) = coming.next().await {
        let mut value = to_json(&event);
        if missed > 0 {
            value["missed"] = missed.into();
        }
        out.send("event", value).await?;
        coming.push(next(stream));
    }
    Ok(Ok(json!({})))
}

/// Brings data to a level, telling of progress.
pub(super) async fn flush(
    shared: &Shared,
    name: Option<&str>,
    level: Level,
    timeout: Duration,
    out: &mut Out,
) -> Result<Result<Value>, Broken> {
    let disks = match disks_of(&shared.hosted, name) {
        Ok(disks) => disks,
        Err(error) => return Ok(Err(error)),
    };
    let rt = &shared.hosted.rt;
    let deadline = rt.now() + timeout;
    let began = rt.now();
    let started: Result<Vec<_>> = disks.iter().map(|disk| disk.flush_to(level)).collect();
    let started = match started {
        Ok(started) => started,
        Err(error) => return Ok(Err(error)),
    };
    for (disk, flushing) in disks.iter().zip(&started) {
        let mut ended = std::pin::pin!(wait(shared, flushing.wait(deadline)));
        loop {
            // Whatever the disk's clock does, the time-out counts on this thread.
            let result = match within(PROGRESS_EVERY, ended.as_mut()).await {
                Some(result) => result,
                None if rt.now() < deadline + PROGRESS_EVERY => {
                    let now = flushing.progress();
                    let mut progress = to_json(&now);
                    progress["name"] = json!(disk.name());
                    progress["bytes_per_s"] = rate(&now, rt.now().since(began)).into();
                    out.send("progress", progress).await?;
                    continue;
                }
                None => Err(silent(
                    shared,
                    timeout,
                    "the flush goes on: it has not ended",
                )),
            };
            match result {
                Ok(()) => break,
                Err(error) => return Ok(Err(error)),
            }
        }
    }
    Ok(Ok(json!({ "level": level.name() })))
}

/// Bytes brought to the level in a second, so far.
fn rate(progress: &FlushProgress, elapsed: Duration) -> u64 {
    let bytes = u128::from(progress.done_bytes) * 1_000_000_000;
    let rate = bytes.checked_div(elapsed.as_nanos()).unwrap_or(0);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// Grows a disk: the filters prepare, the file grows, the filters commit.
async fn resize(shared: &Shared, one: &HostedDisk, to: u64) -> Result<Value> {
    let disk = &one.disk;
    let from = disk.info().capacity;
    if to <= from {
        return Err(
            Error::invalid(format!("a disk can only grow, from={from} to={to}"))
                .with_disk(Arc::clone(disk.name())),
        );
    }
    let file = one.file.clone().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "only a disk that is a file or block device can grow while it is open",
        )
        .with_disk(Arc::clone(disk.name()))
    })?;
    let prepared = wait(shared, disk.prepare(Verb::Resize { from, to })).await?;
    let deadline = shared.hosted.rt.now() + RESIZE_MAX;
    // What the filters keep for themselves below is theirs: the file grows by as much as the disk.
    let grow = async move {
        file.grow(file.info().capacity.saturating_add(to - from))
            .await
    };
    wait(shared, prepared.commit(deadline, grow)).await?;
    Ok(json!({ "capacity": disk.info().capacity }))
}
