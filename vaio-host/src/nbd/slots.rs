//! [`Slots`]: what must be remembered of each request in flight to answer it.

/// One request in flight.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    /// The client's name for it.
    pub(super) cookie: u64,
    /// Its offset, which extended and data replies repeat.
    pub(super) offset: u64,
    /// Payload bytes that it holds, coming or going.
    pub(super) held: usize,
}

/// Requests in flight by tag. Tags are small and reused; the caller bounds how many there are.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

impl Slots {
    /// Remembers a request; its tag.
    pub(super) fn insert(&mut self, slot: Slot) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        self.slots[index] = slot;
        index as u64
    }

    /// Forgets the request with this tag.
    pub(super) fn remove(&mut self, tag: u64) -> Slot {
        let index = usize::try_from(tag).expect("a tag is an index");
        debug_assert!(!self.free.contains(&index), "a request ends once");
        self.free.push(index);
        self.slots[index]
    }
}
