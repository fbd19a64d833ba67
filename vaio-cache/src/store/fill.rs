//! The task that fills the read store: it writes what was offered, and makes room for it.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::{Bytes, BytesMut};
use futures::future::{Either, select};
use vaio_core::{Result, Severity};

use super::{
    Job, Store, lock,
    policy::Queue,
    shelf::{Leaving, Room},
};
use crate::{
    cache::Cache,
    checksum::crc,
    geometry::{Span, index},
};

/// Writes that may fail one after another before nothing more is filled.
const FAILURES_MAX: u32 = 3;

/// A unit, and its content.
type Unit = (u32, Bytes);

/// The background task, until the instance closes.
pub(crate) async fn run(cache: Arc<Cache>) {
    let mut failures = 0;
    loop {
        let wanted = cache.store.wanted.listen();
        let Some(job) = cache.store.take_job() else {
            if matches!(
                select(pin!(cache.cx.stopped()), wanted).await,
                Either::Left(_)
            ) {
                return;
            }
            continue;
        };
        let filled = cache.fill(job).await;
        failures = if filled.is_ok() { 0 } else { failures + 1 };
        if failures == FAILURES_MAX {
            cache.store.stop();
            cache.event(
                Severity::Warning,
                "the read store takes no more: writes to the cache device failed",
                "look at the cache device",
            );
        }
    }
}

impl Store {
    /// The units of an offer that are to be kept, by queue.
    fn admit(&self, job: &Job) -> [Vec<Unit>; 2] {
        let mut shelf = lock(&self.shelf);
        let mut admitted = [Vec::new(), Vec::new()];
        for (span, data) in &job.parts {
            let unit = span.start / u64::from(self.geometry.unit);
            let Ok(unit) = u32::try_from(unit) else {
                continue;
            };
            if let Some(queue) = shelf.admit(unit) {
                admitted[queue as usize].push((unit, data.clone()));
            }
        }
        admitted
    }
}

impl Cache {
    async fn fill(&self, job: Job) -> Result<()> {
        let [small, main] = self.store.admit(&job);
        let mut written = Vec::new();
        let mut filled = self.write_units(Queue::Small, &small, &mut written).await;
        if filled.is_ok() {
            filled = self.write_units(Queue::Main, &main, &mut written).await;
        }
        lock(&self.store.shelf).publish(job.token, &written);
        if !written.is_empty() {
            self.cx.rt().probe("cache.fill");
        }
        filled
    }

    /// Writes units to places of a queue, and notes unit, place and sum of each. Fewer, if there is
    /// no room.
    async fn write_units(
        &self,
        queue: Queue,
        units: &[Unit],
        written: &mut Vec<(u32, u32, u32)>,
    ) -> Result<()> {
        let mut rest = units;
        while !rest.is_empty() {
            self.make_room().await?;
            let room = lock(&self.store.shelf).take(queue, rest.len());
            let Some(room) = room else {
                return Ok(());
            };
            let (now, later) = rest.split_at(room.count as usize);
            self.write_room(room, now).await?;
            let places = now.iter().zip(room.place..);
            written.extend(places.map(|((unit, data), place)| (*unit, place, crc(data))));
            rest = later;
        }
        Ok(())
    }

    async fn write_room(&self, room: Room, units: &[Unit]) -> Result<()> {
        let mut data = BytesMut::new();
        for (_, one) in units {
            data.extend_from_slice(one);
        }
        let at = lock(&self.store.shelf).at(room.place);
        let done = self.device.write(at, data.freeze()).await;
        self.store.unpin(room.region);
        done
    }

    /// Lets regions go until there is room, each with its survivors written again.
    async fn make_room(&self) -> Result<()> {
        for _ in 0..self.store.geometry.regions {
            if !lock(&self.store.shelf).is_full() {
                return Ok(());
            }
            let leaving = lock(&self.store.shelf).leave();
            let Some(leaving) = leaving else {
                return Ok(());
            };
            let saved = self.save(&leaving).await;
            lock(&self.store.shelf).left(&leaving);
            self.cx.rt().probe("cache.evict");
            saved?;
        }
        Ok(())
    }

    /// Writes the survivors of a region that goes into the main queue.
    async fn save(&self, leaving: &Leaving) -> Result<()> {
        let (Some((_, first, _)), Some((_, last, _))) = (leaving.kept.first(), leaving.kept.last())
        else {
            return Ok(());
        };
        let geometry = *self.device.geometry();
        let unit = u64::from(geometry.unit);
        let at = lock(&self.store.shelf).at(*first);
        let bytes = self
            .device
            .read(at, u64::from(last - first + 1) * unit)
            .await?;
        let content = |place: u32| {
            let from = index(geometry.bytes(u64::from(place - first) * unit));
            bytes.slice(from..from + index(geometry.bytes(unit)))
        };
        let kept = leaving
            .kept
            .iter()
            .filter(|(_, place, sum)| crc(&content(*place)) == *sum);
        let kept: Vec<_> = kept.collect();
        let mut rest = &kept[..];
        while !rest.is_empty() {
            let room = lock(&self.store.shelf).take(Queue::Main, rest.len());
            let Some(room) = room else {
                return Ok(());
            };
            let (now, later) = rest.split_at(room.count as usize);
            let units: Vec<Unit> = now.iter().map(|one| (one.0, content(one.1))).collect();
            self.write_room(room, &units).await?;
            let mut shelf = lock(&self.store.shelf);
            for ((unit, from, sum), place) in now.iter().zip(room.place..) {
                shelf.moved(*from, (*unit, place, *sum));
            }
            rest = later;
        }
        Ok(())
    }

    /// Says that clean data did not verify, and drops it (X3).
    pub(crate) fn drop_clean(&self, span: Span, why: &str) {
        self.store.drop_units(span);
        self.store.misses.fetch_add(1, Relaxed);
        let extent = self.device.geometry().extent(span);
        let text =
            format!("clean data on the cache device {why}, read from below, extent={extent}");
        self.event(Severity::Warning, text, "look at the cache device");
    }
}
