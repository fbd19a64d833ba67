//! [`Row`]: what is known of one bug before it is looked for, and [`Twin`]: the filter that it is
//! put into.

use vaio_core::{FilterRegistry, Promise};

use super::Bug;
use crate::twins::{
    mirror::{self, MirrorFactory},
    observer::{self, ObserverFactory},
    ordered::{self, OrderedFactory},
    read_cache::{self, ReadCacheFactory},
    transform::{self, TransformFactory},
    write_back::{self, WriteBackFactory},
};

/// One row of the zoo.
///
/// In texts, `W0..2` is one write of blocks 0 to 2, `R` a read, `Z` write zeroes, `D` a discard,
/// `F` a flush; "destage" is the filter's background work, kicked.
#[derive(Clone, Debug)]
pub struct Row {
    /// Name of the row: the bug's, in lower case.
    pub name: &'static str,
    /// The switch.
    pub bug: Bug,
    /// The twin that has it.
    pub twin: Twin,
    /// The promise that the twin declares, and is held to.
    pub promise: Promise,
    /// Where it was seen: address, or project and commit. `own` where it is made up.
    pub origin: &'static str,
    /// What is wrong.
    pub breaks: &'static str,
    /// A sequence that shows it.
    pub exposes: &'static str,
    /// The conformance group that must catch it.
    pub expected_case: &'static str,
    /// Guest operations of the shortest workload that is expected to show it: before the crash,
    /// and in a second era what is named in `exposes` beyond one write and a flush. Reads that the
    /// kit does by itself afterwards are not counted.
    pub smallest: u32,
    /// Without which it cannot be seen.
    pub needs: &'static [Need],
}

/// What a run must have, for a bug to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Background work at any moment, not only when its timer says so.
    Kicks,
    /// Crash images that keep a part of one write.
    Torn,
    /// A second crash after a recovery.
    Era2,
    /// Several guest operations in flight.
    Concurrency,
    /// A device that fails or stalls.
    Fault,
    /// A process that dies with the device's cache left as it is.
    Kill,
}

/// The kinds of twins, each with a tiny size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twin {
    /// Three slots of two blocks.
    WriteBack,
    /// Three slots of one block.
    WriteBackNarrow,
    /// Three slots of two blocks, and a replica.
    Ordered,
    /// Two sides.
    Mirror,
    /// Counts.
    Observer,
    /// Masks.
    Transform,
    /// Three blocks.
    ReadCache,
}

impl Twin {
    /// Every twin.
    pub const ALL: [Self; 7] = [
        Self::WriteBack,
        Self::WriteBackNarrow,
        Self::Ordered,
        Self::Mirror,
        Self::Observer,
        Self::Transform,
        Self::ReadCache,
    ];

    /// Name of the filter.
    pub const fn filter(self) -> &'static str {
        match self {
            Self::WriteBack | Self::WriteBackNarrow => write_back::NAME,
            Self::Ordered => ordered::NAME,
            Self::Mirror => mirror::NAME,
            Self::Observer => observer::NAME,
            Self::Transform => transform::NAME,
            Self::ReadCache => read_cache::NAME,
        }
    }

    /// Whether it can be told to keep this promise.
    pub const fn can_promise(self, promise: Promise) -> bool {
        match self {
            Self::WriteBack | Self::WriteBackNarrow => {
                matches!(promise, Promise::AtAck | Promise::AtFlush)
            }
            Self::Ordered => matches!(promise, Promise::Ordered),
            _ => matches!(promise, Promise::AtFlush),
        }
    }

    /// The devices that it needs beside a disk of `capacity` bytes in blocks of `block` bytes, by
    /// name, with the bytes that each needs.
    pub fn devices(self, capacity: u64, block: u64) -> Vec<(&'static str, u64)> {
        let log = |slot_blocks| WriteBackFactory::new(Promise::AtFlush, 3, slot_blocks);
        match self {
            Self::WriteBack => vec![(write_back::CACHE_DEVICE, log(2).device_len(block))],
            Self::WriteBackNarrow => vec![(write_back::CACHE_DEVICE, log(1).device_len(block))],
            Self::Ordered => vec![
                (ordered::JOURNAL_DEVICE, log(2).device_len(block)),
                (ordered::REPLICA_DEVICE, capacity),
            ],
            Self::Mirror => vec![(mirror::MIRROR_DEVICE, capacity)],
            Self::Observer | Self::Transform | Self::ReadCache => Vec::new(),
        }
    }

    /// A registry with this one twin, correct (`None`) or with a bug. The policy names
    /// [`filter`](Self::filter) and needs no settings.
    ///
    /// # Panics
    /// For a promise that it [cannot](Self::can_promise) be told to keep.
    pub fn registry(self, promise: Promise, bug: Option<Bug>) -> FilterRegistry {
        assert!(self.can_promise(promise), "a promise of this twin");
        let registry = FilterRegistry::default();
        macro_rules! with {
            ($factory:expr) => {
                registry.with(match bug {
                    Some(bug) => $factory.with_bug(bug),
                    None => $factory,
                })
            };
        }
        match self {
            Self::WriteBack => with!(WriteBackFactory::tiny(promise)),
            Self::WriteBackNarrow => with!(WriteBackFactory::new(promise, 3, 1)),
            Self::Ordered => with!(OrderedFactory::tiny()),
            Self::Mirror => with!(MirrorFactory::default()),
            Self::Observer => with!(ObserverFactory::default()),
            Self::Transform => with!(TransformFactory::new(KEY)),
            Self::ReadCache => with!(ReadCacheFactory::tiny()),
        }
    }
}

/// Key of the transform.
const KEY: u64 = 0x7661_696f;
