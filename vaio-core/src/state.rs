//! State: levels, as opposed to events, which are edges. What a disk and its filters are like now.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    Class, DeviceInfo, DirtyPolicy,
    sync::{Notify, lock},
};

/// What a filter says of itself. Cheap to make; asked at any time, from any thread.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct FilterState {
    /// Bytes it holds that are not on the backing; may over-report.
    pub dirty_bytes: u64,
    /// Bytes that its replica lacks.
    pub lag_bytes: u64,
    /// Age of the oldest write that its replica lacks.
    pub lag: Duration,
    /// What is wrong, for a person; `None` where it works as it should.
    pub problem: Option<String>,
    /// Further values for people, by name.
    pub details: Vec<(&'static str, String)>,
    /// Further numbers, for people and for metrics, by name: lower case with `_`, unit last
    /// (`_bytes`, `_ms`); a name that ends in `_total` only ever grows while the instance lives.
    pub values: Vec<(&'static str, u64)>,
}

impl FilterState {
    /// A state with this many dirty bytes.
    pub fn dirty(dirty_bytes: u64) -> Self {
        Self {
            dirty_bytes,
            ..Self::default()
        }
    }

    /// The same with a detail added.
    #[must_use]
    pub fn with_detail(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.details.push((name, value.into()));
        self
    }

    /// The same with a number added.
    #[must_use]
    pub fn with_value(mut self, name: &'static str, value: u64) -> Self {
        self.values.push((name, value));
        self
    }

    /// The same with a problem named.
    #[must_use]
    pub fn with_problem(mut self, problem: impl Into<String>) -> Self {
        self.problem = Some(problem.into());
        self
    }
}

/// What the framework does with a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[repr(u8)]
pub enum Health {
    /// IO goes through it.
    #[default]
    Active = 0,
    /// It failed, and IO goes on without it.
    Bypassed = 1,
    /// It failed, and IO that needs it fails.
    Faulted = 2,
}

impl Health {
    pub(crate) const fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Active,
            1 => Self::Bypassed,
            _ => Self::Faulted,
        }
    }
}

/// One filter of a disk, as seen now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LayerState {
    /// Name of the filter.
    pub name: Arc<str>,
    /// Its version.
    pub version: &'static str,
    /// Its class.
    pub class: Class,
    /// What the framework does with it.
    pub health: Health,
    /// Why it is not active, if so.
    pub fault: Option<String>,
    /// Contract breaches seen.
    pub faults: u64,
    /// What it says of itself.
    pub filter: FilterState,
}

/// Where a disk is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum DiskPhase {
    /// Serves IO.
    #[default]
    Open,
    /// Admits no new IO for now.
    Quiesced,
    /// Will not serve IO again.
    Closed,
}

/// A disk, as seen now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DiskState {
    /// Name of the disk.
    pub name: Arc<str>,
    /// Name of the VM.
    pub vm: Arc<str>,
    /// Where it is in its life.
    pub phase: DiskPhase,
    /// What it looks like from the top.
    pub info: DeviceInfo,
    /// Lineage of its content: changes when content may have been taken back.
    pub generation: u64,
    /// The filters, top to bottom.
    pub layers: Vec<LayerState>,
    /// Sum of the filters' dirty bytes.
    pub dirty_bytes: u64,
    /// Whether new dirty data may be made.
    pub dirty_policy: DirtyPolicy,
    /// IO, filter IO and background steps in flight.
    pub in_flight: u64,
    /// IO whose asker let go, still in flight.
    pub orphans: u64,
    /// The verb that runs now, if any.
    pub running: Option<&'static str>,
}

/// The newest value of something, for those who want to be told of changes. Values in between may
/// be skipped; the newest never is.
#[derive(Debug)]
pub(crate) struct Latest<T> {
    value: Mutex<(u64, T)>,
    changed: Notify,
}

impl<T: Clone> Latest<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            value: Mutex::new((1, value)),
            changed: Notify::default(),
        }
    }

    pub(crate) fn set(&self, value: T) {
        {
            let mut slot = lock(&self.value);
            slot.0 += 1;
            slot.1 = value;
        }
        self.changed.notify_all();
    }

    /// Waits for a version newer than `seen`.
    pub(crate) async fn newer_than(&self, seen: u64) -> (u64, T) {
        loop {
            let changed = self.changed.listen();
            {
                let slot = lock(&self.value);
                if slot.0 > seen {
                    return slot.clone();
                }
            }
            changed.await;
        }
    }
}
