//! Data that is not yet where it belongs: [`Level`]s of durability, the [`DirtyMap`] that says
//! what is short of one, and [`DirtySource`], the interface of filters that hold such data.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{BoxFuture, Extent, Instant, Result};

/// How far written data has come. One scale for quiesce, flush and queries; each level includes
/// those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum Level {
    /// Nothing is in flight.
    Drained,
    /// Survives a crash of the host process and power: what a guest's flush gives.
    CacheDurable,
    /// Durable on the backing device alone.
    BackingDurable,
    /// Durable at the replica too.
    ReplicaDurable,
}

impl Level {
    /// Name in commands and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::CacheDurable => "cache",
            Self::BackingDurable => "backing",
            Self::ReplicaDurable => "replica",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of extents, sorted, disjoint and merged. Over-reporting is allowed everywhere that a
/// dirty map is answered; under-reporting never.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct DirtyMap {
    extents: Vec<Extent>,
}

impl DirtyMap {
    /// An empty map.
    pub const fn new() -> Self {
        Self {
            extents: Vec::new(),
        }
    }

    /// Adds an extent; merges what overlaps or touches.
    pub fn insert(&mut self, extent: Extent) {
        if extent.is_empty() {
            return;
        }
        let first = self
            .extents
            .partition_point(|old| old.end() < extent.offset());
        let last = self
            .extents
            .partition_point(|old| old.offset() <= extent.end());
        let merged = self.extents[first..last].iter().fold(extent, |sum, old| {
            Extent::from_range(sum.offset().min(old.offset()), sum.end().max(old.end()))
        });
        self.extents.splice(first..last, [merged]);
    }

    /// Takes an extent out.
    pub fn remove(&mut self, extent: Extent) {
        let first = self
            .extents
            .partition_point(|old| old.end() <= extent.offset());
        let last = self
            .extents
            .partition_point(|old| old.offset() < extent.end());
        if first >= last || extent.is_empty() {
            return;
        }
        let head = Extent::from_range(
            self.extents[first].offset().min(extent.offset()),
            extent.offset(),
        );
        let end = self.extents[last - 1].end().max(extent.end());
        let tail = Extent::from_range(extent.end(), end);
        self.extents.splice(
            first..last,
            [head, tail].into_iter().filter(|e| !e.is_empty()),
        );
    }

    /// Adds every extent of another map.
    pub fn merge(&mut self, other: &Self) {
        for extent in &other.extents {
            self.insert(*extent);
        }
    }

    /// The extents in order.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Bytes in the map.
    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len()).sum()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Whether any byte of `extent` is in it.
    pub fn overlaps(&self, extent: Extent) -> bool {
        let first = self
            .extents
            .partition_point(|old| old.end() <= extent.offset());
        self.extents
            .get(first)
            .is_some_and(|old| old.overlaps(extent))
    }
}

impl FromIterator<Extent> for DirtyMap {
    /// In time n log n, whatever the order: inserting one by one is quadratic at worst.
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut all: Vec<_> = extents.into_iter().filter(|one| !one.is_empty()).collect();
        all.sort_unstable_by_key(|one| one.offset());
        let mut extents: Vec<Extent> = Vec::new();
        for one in all {
            match extents.last_mut() {
                Some(last) if last.end() >= one.offset() => {
                    *last = Extent::from_range(last.offset(), last.end().max(one.end()));
                }
                _ => extents.push(one),
            }
        }
        Self { extents }
    }
}

/// A place in one filter's order of writes: everything up to it was acknowledged before the mark
/// was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct DirtyMark(pub u64);

/// How much is short of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DirtySummary {
    /// Bytes short of the level; may over-report.
    pub bytes: u64,
    /// How long the oldest of them has been so.
    pub oldest_age: Duration,
    /// Whether a scan is still running, so that everything counts as dirty.
    pub is_estimate: bool,
}

impl DirtySummary {
    /// A summary of `bytes`, the oldest of them `oldest_age` old.
    pub const fn new(bytes: u64, oldest_age: Duration) -> Self {
        Self {
            bytes,
            oldest_age,
            is_estimate: false,
        }
    }
}

/// Dirty data read back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirtyPiece {
    /// Where it belongs.
    pub extent: Extent,
    /// Its place in the order of writes.
    pub mark: DirtyMark,
    /// The bytes.
    pub data: Bytes,
}

impl DirtyPiece {
    /// A piece of dirty data.
    pub const fn new(extent: Extent, mark: DirtyMark, data: Bytes) -> Self {
        Self { extent, mark, data }
    }
}

/// Whether new dirty data may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum DirtyPolicy {
    /// As the filter's settings say.
    #[default]
    Allow,
    /// No new dirty data: writes go through to the backing, and what is dirty drains.
    WriteThrough,
}

/// How a `flush_to` is coming along; what is reported is a moment's truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct FlushProgress {
    /// Bytes still short of the level.
    pub remaining_bytes: u64,
    /// Bytes brought there so far.
    pub done_bytes: u64,
    /// Estimate of the time left, where there is a rate to estimate from.
    pub eta: Option<Duration>,
}

impl FlushProgress {
    /// Progress with an estimate of the time left from what was `done_bytes` in `elapsed`.
    pub fn estimated(done_bytes: u64, remaining_bytes: u64, elapsed: Duration) -> Self {
        let nanos = elapsed.as_nanos() * u128::from(remaining_bytes);
        let eta = nanos
            .checked_div(done_bytes.into())
            .map(|nanos| Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        Self {
            remaining_bytes,
            done_bytes,
            eta,
        }
    }
}

/// A filter that holds data short of some level. Reached through
/// [`Filter::dirty`](crate::Filter::dirty); the framework fans its verbs out over the chain.
#[async_trait]
pub trait DirtySource: fmt::Debug + Send + Sync + 'static {
    /// How much is short of `level`. Cheap. Over-reports rather than under-reports.
    fn summary(&self, level: Level) -> DirtySummary;

    /// How many bytes of what `mark` covers are short of `level`: what a flush to it has still to
    /// do. Cheap; asked a few times a second. Over-reports rather than under-reports.
    ///
    /// Unless it is overridden: all that is short of the level, newer writes among it.
    fn remaining(&self, level: Level, _mark: DirtyMark) -> u64 {
        self.summary(level).bytes
    }

    /// What is short of `level` within `range`. Over-reports rather than under-reports.
    fn extents(&self, level: Level, range: Extent) -> DirtyMap;

    /// The place in the order of writes that covers every write acknowledged before this call.
    fn mark(&self) -> DirtyMark;

    /// Reads what is dirty at `level` from `from` on, in order of writes, at most `bytes_max`
    /// bytes (at least one piece where there is one). An empty answer: nothing more.
    ///
    /// # Errors
    /// As the device that holds the data.
    async fn read_dirty(
        &self,
        level: Level,
        from: DirtyMark,
        bytes_max: u64,
    ) -> Result<Vec<DirtyPiece>>;

    /// Brings everything up to `mark` to `level`. Writes after the mark never extend it. What is
    /// there already is not waited for: a replica's lag does not keep data from the backing.
    ///
    /// Called with the gate open or closed: what it waits for must not need a new
    /// [`AttachContext::step`](crate::AttachContext::step), which a closed gate refuses. IO through
    /// [`Lower`](crate::Lower) is admitted meanwhile.
    ///
    /// # Cancellation
    /// Safe: dropping the future stops the wait, not the destaging. Progress is
    /// [`summary`](Self::summary).
    ///
    /// # Errors
    /// The first error that keeps the level from being reached. What was reached stays.
    async fn flush_to(&self, mark: DirtyMark, level: Level) -> Result<()>;

    /// Brings the backing exactly to a point of the guest's order of writes and holds it there
    /// while the guest goes on writing, until `until` or until the space for that runs out.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) where the filter cannot.
    async fn hold(&self, until: Instant) -> Result<Arc<dyn HeldPoint>>;

    /// Sets whether new dirty data may be made. Returns when the policy is in force for every
    /// write that is acknowledged from now on.
    ///
    /// # Errors
    /// As the filter's devices.
    async fn set_policy(&self, policy: DirtyPolicy) -> Result<()>;
}

/// A backing that is held at a point. Dropping it lets go.
pub trait HeldPoint: fmt::Debug + Send + Sync + 'static {
    /// The point.
    fn mark(&self) -> DirtyMark;

    /// Lets go and says whether it was held all the time.
    fn release(&self) -> Release;

    /// Resolves when the filter had to let go by itself.
    fn lost(&self) -> BoxFuture<'static, ()>;
}

/// Whether something was held until it was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[must_use = "a snapshot taken under a hold that was lost is torn"]
pub enum Release {
    /// Held until now: what was copied meanwhile is consistent.
    Held,
    /// It had to let go before: what was copied meanwhile is not to be used.
    ThawedEarly,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn map_of_many_equals_the_map_of_one_by_one(
            all in prop::collection::vec((0u64..64, 0u64..16), 0..40),
        ) {
            let extents = || all.iter().map(|&(offset, len)| Extent::new(offset, len));
            let mut one_by_one = DirtyMap::new();
            extents().for_each(|extent| one_by_one.insert(extent));
            prop_assert_eq!(extents().collect::<DirtyMap>(), one_by_one);
        }

        #[test]
        fn map_equals_a_bitmap(ops in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..16), 0..80)) {
            let mut map = DirtyMap::new();
            let mut bits = [false; 96];
            for (insert, offset, len) in ops {
                let extent = Extent::new(offset, len);
                if insert { map.insert(extent) } else { map.remove(extent) }
                for at in offset..offset + len {
                    bits[usize::try_from(at).unwrap()] = insert;
                }
                for (at, bit) in bits.iter().enumerate() {
                    prop_assert_eq!(map.overlaps(Extent::new(at as u64, 1)), *bit);
                }
                prop_assert_eq!(map.bytes(), bits.iter().filter(|bit| **bit).count() as u64);
                for pair in map.extents().windows(2) {
                    prop_assert!(pair[0].end() < pair[1].offset(), "sorted, disjoint, merged");
                }
            }
        }
    }
}
