//! A slot: what is known of one IO in flight, for the stall ladder, the statistics and blame.
//! Written by whoever polls the IO, read by anyone, all of it diagnosis: no decision about data
//! hangs on a torn read.

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
};

use crate::{Error, Extent, LAYERS_MAX, OpKind, sync::lock};

/// How far the topmost owned hop of an IO came: what can be done for it if an observer above that
/// hop fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Reached {
    /// Nothing below was asked yet: the IO can be issued again.
    Nothing = 0,
    /// It is in flight below.
    InFlight = 1,
    /// It succeeded below.
    Done = 2,
    /// It failed below; the error is in [`Slot::error`].
    Failed = 3,
}

/// Values of [`Slot::fate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Fate {
    /// Runs as usual.
    Runs = 0,
    /// Look at it again: a filter above it was bypassed.
    Kicked = 1,
    /// Its asker is to be told that it took too long.
    Expired = 2,
}

#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// Tick of the start plus one; 0: free.
    started: AtomicU32,
    /// Deepest layer entered and not left, plus one; 0: the port. Of an emulated IO the layer
    /// where that is done: see [`deepest`](Self::deepest).
    pub(crate) at: AtomicU8,
    kind: AtomicU8,
    reached: AtomicU8,
    fate: AtomicU8,
    /// Caller that is letting go of the IO right now, plus one; 0: none.
    dropper: AtomicU8,
    /// Whether a stall was reported.
    pub(crate) is_reported: AtomicBool,
    /// Whether this IO is timed.
    pub(crate) is_sampled: AtomicBool,
    /// A filter's own IO: reported when it stalls, and never failed for it.
    pub(crate) is_own: AtomicBool,
    /// In a chain whose levels are not the disk's: `at` names nothing there.
    pub(crate) is_part: AtomicBool,
    id: AtomicU64,
    offset: AtomicU64,
    len: AtomicU64,
    /// Time spent below, per layer, of a sampled IO.
    pub(crate) below: [AtomicU64; LAYERS_MAX + 1],
    /// When each layer was entered last, of a sampled IO. Parts of one IO that are in one layer
    /// at the same time share it, so theirs is a little short.
    pub(crate) entered: [AtomicU64; LAYERS_MAX + 1],
    /// Slots of the parts that stand for its IO, where that is emulated, and the id of that IO: a
    /// part that no one waits for any more may outlive it.
    parts: Mutex<Vec<(u64, Weak<Self>)>>,
    pub(crate) error: Mutex<Option<Error>>,
    /// Whoever polls the IO, where a port does not.
    pub(crate) waker: Mutex<Option<Waker>>,
}

impl Slot {
    /// Starts an IO.
    pub(crate) fn start(&self, id: u64, kind: OpKind, extent: Extent, tick: u32, sampled: bool) {
        self.id.store(id, Relaxed);
        self.kind.store(kind as u8, Relaxed);
        self.offset.store(extent.offset(), Relaxed);
        self.len.store(extent.len(), Relaxed);
        self.at.store(0, Relaxed);
        self.reached.store(Reached::Nothing as u8, Relaxed);
        self.fate.store(Fate::Runs as u8, Relaxed);
        self.is_reported.store(false, Relaxed);
        self.is_sampled.store(sampled, Relaxed);
        if sampled {
            for below in &self.below {
                below.store(0, Relaxed);
            }
        }
        self.started.store(tick.wrapping_add(1).max(1), Relaxed);
    }

    /// Ends the IO.
    pub(crate) fn end(&self) {
        self.started.store(0, Relaxed);
    }

    /// The tick at which the IO started, if one is in flight.
    pub(crate) fn started(&self) -> Option<u32> {
        self.started.load(Relaxed).checked_sub(1)
    }

    pub(crate) fn kind(&self) -> OpKind {
        OpKind::from_index(self.kind.load(Relaxed)).unwrap_or(OpKind::Read)
    }

    /// A slot for a part that stands for this one's IO.
    pub(crate) fn new_part(&self) -> Arc<Self> {
        let part = Arc::<Self>::default();
        let mut parts = lock(&self.parts);
        parts.retain(|(_, part)| part.strong_count() > 0);
        parts.push((self.id(), Arc::downgrade(&part)));
        part
    }

    /// Deepest layer that has the IO, plus one; 0: the port. Of an IO that is emulated, where its
    /// parts are.
    pub(crate) fn deepest(&self) -> u8 {
        let parts = lock(&self.parts);
        let own = parts.iter().filter(|(id, _)| *id == self.id());
        let alive = own.filter_map(|(_, part)| part.upgrade());
        let deepest = alive.map(|part| part.deepest()).max();
        deepest.unwrap_or_else(|| self.at.load(Relaxed))
    }

    /// Whether its IO is a `kind` of `extent`.
    #[inline]
    pub(crate) fn is_for(&self, kind: OpKind, extent: Extent) -> bool {
        self.kind.load(Relaxed) == kind as u8
            && self.offset.load(Relaxed) == extent.offset()
            && self.len.load(Relaxed) == extent.len()
    }

    pub(crate) fn extent(&self) -> Extent {
        Extent::checked(self.offset.load(Relaxed), self.len.load(Relaxed)).unwrap_or_default()
    }

    pub(crate) fn id(&self) -> u64 {
        self.id.load(Relaxed)
    }

    pub(crate) fn reached(&self) -> Reached {
        match self.reached.load(Relaxed) {
            0 => Reached::Nothing,
            1 => Reached::InFlight,
            2 => Reached::Done,
            _ => Reached::Failed,
        }
    }

    pub(crate) fn set_reached(&self, reached: Reached) {
        self.reached.store(reached as u8, Relaxed);
    }

    pub(crate) fn fail(&self, error: &Error) {
        *lock(&self.error) = Some(error.clone());
        self.set_reached(Reached::Failed);
    }

    /// Who is letting go of the IO, as a caller number.
    pub(crate) fn dropper(&self) -> Option<u8> {
        self.dropper.load(Relaxed).checked_sub(1)
    }

    /// Remembers who lets go, unless an outer hop is doing so already.
    pub(crate) fn set_dropper(&self, caller: u8) -> bool {
        self.dropper
            .compare_exchange(0, caller + 1, Relaxed, Relaxed)
            .is_ok()
    }

    pub(crate) fn clear_dropper(&self) {
        self.dropper.store(0, Relaxed);
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.fate.load(Relaxed) == Fate::Expired as u8
    }

    /// Sets the fate and wakes whoever polls the IO on its own.
    pub(crate) fn set_fate(&self, fate: Fate) {
        self.fate.store(fate as u8, Relaxed);
        let waker = lock(&self.waker).clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Every slot of a disk, for those who look.
#[derive(Debug, Default)]
pub(crate) struct SlotTable(Mutex<Vec<Weak<Slot>>>);

impl SlotTable {
    /// A new slot, listed for as long as someone holds it.
    pub(crate) fn new_slot(&self) -> Arc<Slot> {
        let slot = Arc::new(Slot::default());
        let mut slots = lock(&self.0);
        if slots.len() == slots.capacity() {
            slots.retain(|slot| slot.strong_count() > 0);
        }
        slots.push(Arc::downgrade(&slot));
        slot
    }

    /// The slots with an IO in flight. Forgets those that are gone: a listed one keeps its memory.
    pub(crate) fn busy(&self) -> Vec<Arc<Slot>> {
        let mut slots = lock(&self.0);
        slots.retain(|slot| slot.strong_count() > 0);
        if slots.capacity() / 4 > slots.len() {
            slots.shrink_to_fit();
        }
        slots
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|slot| slot.started().is_some())
            .collect()
    }
}
