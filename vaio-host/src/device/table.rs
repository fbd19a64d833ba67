//! [`Table`]: the requests of one ring, from insertion until their answer is taken. Pure.
//!
//! Invariants:
//! - **R1** an entry owns its request, and so the memory that the kernel may touch, from insertion
//!   until its completion; dropping the one who waits only marks it abandoned.
//! - **R2** at most [`IN_FLIGHT_MAX`] entries are with the kernel.
//! - **R3** entries never move: the table is allocated once, at its largest.

use std::{collections::VecDeque, task::Waker};

use super::engine::{Answer, Failure, Request, Step, WAITING_MAX, step};

/// Requests of one device that are with the kernel at once; more wait in the table.
pub const IN_FLIGHT_MAX: usize = 256;

/// Places in the table.
const ENTRIES_MAX: usize = IN_FLIGHT_MAX + WAITING_MAX;

/// Most requests that are held back to be submitted together.
const BATCH_MAX: usize = 16;

/// See the file's first lines.
pub(super) struct Table {
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// Entries that the kernel does not have yet, oldest first.
    waiting: VecDeque<u32>,
    in_flight: usize,
}

/// One request's place.
struct Entry {
    request: Option<Request>,
    phase: Phase,
    /// Bytes done by earlier steps.
    progress: usize,
    retries: u8,
    /// No one waits for the answer any more.
    is_abandoned: bool,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Free,
    Waiting,
    InFlight,
    Done(Result<(), Failure>),
}

/// What completions leave behind, to be dealt with outside of the table's lock.
#[derive(Default)]
pub(super) struct Spoils {
    /// Those whose answers came.
    pub(super) woken: Vec<Waker>,
    /// Requests that no one waits for.
    pub(super) dropped: Vec<Request>,
}

impl Table {
    /// An empty table. Its memory is reserved, and used as far as it fills.
    pub(super) fn new() -> Self {
        Self {
            entries: Vec::with_capacity(ENTRIES_MAX),
            free: Vec::new(),
            waiting: VecDeque::new(),
            in_flight: 0,
        }
    }

    /// Adds a request at the end of those that wait; returns its place.
    pub(super) fn insert(&mut self, request: Request) -> Result<u32, Failure> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(Failure::QueueFull);
        }
        let entry = Entry {
            request: Some(request),
            phase: Phase::Waiting,
            progress: 0,
            retries: 0,
            is_abandoned: false,
            waker: None,
        };
        let slot = if let Some(slot) = self.free.pop() {
            let place = &mut self.entries[slot as usize];
            debug_assert_eq!(place.phase, Phase::Free);
            *place = entry;
            slot
        } else if self.entries.len() < ENTRIES_MAX {
            assert!(self.entries.len() < self.entries.capacity(), "R3");
            self.entries.push(entry);
            u32::try_from(self.entries.len() - 1).expect("below ENTRIES_MAX")
        } else {
            return Err(Failure::QueueFull); // answers that no one took yet hold places too
        };
        self.waiting.push_back(slot);
        Ok(slot)
    }

    /// Whether enough wait to be worth a system call.
    ///
    /// A device that has little to do gets the next request at once, else it would run dry while a
    /// batch is made; one that is busy gets batches of half of what it has.
    pub(super) fn is_batch(&self) -> bool {
        self.waiting.len() >= (self.in_flight / 2).clamp(1, BATCH_MAX)
    }

    /// The next request for the kernel, with the bytes of it that are done, if R2 allows one.
    pub(super) fn next(&mut self) -> Option<(u32, &mut Request, usize)> {
        if self.in_flight >= IN_FLIGHT_MAX {
            return None;
        }
        let slot = *self.waiting.front()?;
        let entry = &mut self.entries[slot as usize];
        let request = entry.request.as_mut();
        Some((
            slot,
            request.expect("a waiting entry has its request"),
            entry.progress,
        ))
    }

    /// What [`next`](Self::next) gave is with the kernel now.
    pub(super) fn sent(&mut self) {
        let slot = self.waiting.pop_front().expect("next gave it");
        let entry = &mut self.entries[slot as usize];
        assert_eq!(entry.phase, Phase::Waiting);
        entry.phase = Phase::InFlight;
        self.in_flight += 1;
    }

    /// The kernel is done with `slot`'s step, with `result` bytes or a negative errno.
    pub(super) fn complete(&mut self, slot: u32, result: i32, spoils: &mut Spoils) {
        let entry = &mut self.entries[slot as usize];
        assert_eq!(entry.phase, Phase::InFlight, "one completion per entry");
        self.in_flight -= 1;
        let len = entry.request.as_ref().map_or(0, Request::len);
        match step(len, entry.progress, result, &mut entry.retries) {
            Step::Again(progress) => {
                entry.progress = progress;
                entry.phase = Phase::Waiting;
                self.waiting.push_front(slot);
            }
            Step::Done(result) => self.finish(slot, result, spoils),
        }
    }

    /// Fails everything that the kernel does not have.
    pub(super) fn fail_waiting(&mut self, failure: Failure, spoils: &mut Spoils) {
        while let Some(slot) = self.waiting.pop_front() {
            self.finish(slot, Err(failure), spoils);
        }
    }

    fn finish(&mut self, slot: u32, result: Result<(), Failure>, spoils: &mut Spoils) {
        let entry = &mut self.entries[slot as usize];
        if entry.is_abandoned {
            spoils.dropped.extend(entry.request.take());
            self.release(slot);
        } else {
            entry.phase = Phase::Done(result);
            spoils.woken.extend(entry.waker.take());
        }
    }

    /// Takes the answer of `slot` and frees its place; `None` if it is not there yet, and then
    /// `waker` is woken when it is.
    pub(super) fn take(&mut self, slot: u32, waker: &Waker) -> Option<Answer> {
        let entry = &mut self.entries[slot as usize];
        let Phase::Done(result) = entry.phase else {
            debug_assert_ne!(entry.phase, Phase::Free);
            match &mut entry.waker {
                Some(known) => known.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
            return None;
        };
        let request = entry.request.take();
        self.release(slot);
        Some(result.map(|()| match request {
            Some(Request::Read { buffer, .. }) => Some(buffer),
            _ => None,
        }))
    }

    /// No one waits for `slot` any more. Returns its request where the kernel is done with it.
    pub(super) fn abandon(&mut self, slot: u32) -> Option<Request> {
        let entry = &mut self.entries[slot as usize];
        entry.waker = None;
        if !matches!(entry.phase, Phase::Done(_)) {
            entry.is_abandoned = true; // R1
            return None;
        }
        let request = entry.request.take();
        self.release(slot);
        request
    }

    fn release(&mut self, slot: u32) {
        self.entries[slot as usize].phase = Phase::Free;
        self.free.push(slot);
    }

    /// Requests with the kernel.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether requests wait that R2 would let go.
    pub(super) fn is_sendable(&self) -> bool {
        !self.waiting.is_empty() && self.in_flight < IN_FLIGHT_MAX
    }

    /// Nothing is with the kernel or on its way there.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.waiting.is_empty()
    }

    /// Gives up the memory of what is still in flight, for ever: the kernel may write there.
    pub(super) fn leak(&mut self, spoils: &mut Spoils) {
        for slot in 0..self.entries.len() {
            if self.entries[slot].phase == Phase::InFlight {
                std::mem::forget(self.entries[slot].request.take());
                self.in_flight -= 1;
                let slot = u32::try_from(slot).expect("below ENTRIES_MAX");
                self.finish(slot, Err(Failure::Stopped), spoils);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vaio_core::BufferPool;

    fn read(len: usize) -> Request {
        let buffer = BufferPool::new(4096, 0).take(len);
        Request::Read { offset: 0, buffer }
    }

    fn send_all(table: &mut Table) -> Vec<u32> {
        let mut sent = Vec::new();
        while let Some((slot, ..)) = table.next() {
            sent.push(slot);
            table.sent();
        }
        sent
    }

    #[test]
    fn abandoned_request_keeps_its_memory_until_completion() {
        let (mut table, mut spoils) = (Table::new(), Spoils::default());
        let slot = table.insert(read(512)).unwrap();
        send_all(&mut table);
        assert!(table.abandon(slot).is_none());
        assert!(table.entries[slot as usize].request.is_some());
        table.complete(slot, 512, &mut spoils);
        assert_eq!(spoils.dropped.len(), 1);
        assert!(table.is_idle() && table.free == [slot]);
    }

    #[test]
    fn short_answer_is_sent_again_before_others() {
        let (mut table, mut spoils) = (Table::new(), Spoils::default());
        let first = table.insert(read(1024)).unwrap();
        send_all(&mut table);
        let second = table.insert(read(512)).unwrap();
        table.complete(first, 512, &mut spoils);
        let (slot, _, progress) = table.next().unwrap();
        assert_eq!((slot, progress), (first, 512));
        assert_eq!(send_all(&mut table), [first, second]);
        table.complete(first, 512, &mut spoils);
        let answer = table.take(first, Waker::noop()).unwrap();
        assert_eq!(answer.unwrap().unwrap().len(), 1024);
    }

    #[test]
    fn limits_hold_in_flight_and_waiting() {
        let mut table = Table::new();
        for _ in 0..WAITING_MAX {
            table.insert(Request::Flush).unwrap();
        }
        assert_eq!(table.insert(Request::Flush), Err(Failure::QueueFull));
        assert_eq!(send_all(&mut table).len(), IN_FLIGHT_MAX);
        assert!(!table.is_sendable());
        for _ in 0..IN_FLIGHT_MAX {
            table.insert(Request::Flush).unwrap();
        }
        assert_eq!(table.entries.len(), ENTRIES_MAX);
        assert_eq!(table.insert(Request::Flush), Err(Failure::QueueFull));
    }

    #[test]
    fn batch_is_one_for_an_idle_device_and_grows_with_load() {
        let mut table = Table::new();
        let mut calls = 0;
        for _ in 0..32 {
            table.insert(Request::Flush).unwrap();
            if table.is_batch() {
                calls += 1;
                send_all(&mut table);
            }
        }
        assert!((8..=14).contains(&calls), "{calls}");
    }

    proptest! {
        /// Any order of events keeps every place in exactly one state and answers each request.
        #[test]
        fn every_request_ends_once(events in prop::collection::vec((0u8..5, any::<u16>()), 1..200)) {
            let (mut table, mut spoils) = (Table::new(), Spoils::default());
            let (mut held, mut flying) = (Vec::new(), Vec::new());
            let (mut inserted, mut ended) = (0, 0);
            for (event, pick) in events {
                let of = |list: &Vec<u32>| (!list.is_empty()).then(|| pick as usize % list.len());
                match event {
                    0 => { held.push(table.insert(read(1024)).unwrap()); inserted += 1; }
                    1 => flying.extend(send_all(&mut table)),
                    2 => if let Some(at) = of(&flying) {
                        let result = [1024, 512, -4, -5, 0][pick as usize % 5];
                        table.complete(flying.swap_remove(at), result, &mut spoils);
                    },
                    3 => if let Some(at) = of(&held)
                        && table.take(held[at], Waker::noop()).is_some()
                    { held.swap_remove(at); ended += 1; },
                    _ => if let Some(at) = of(&held)
                        && table.abandon(held.swap_remove(at)).is_some()
                    { ended += 1; },
                }
                prop_assert_eq!(table.in_flight(), flying.len());
            }
            while !table.is_idle() {
                flying.extend(send_all(&mut table));
                for slot in flying.drain(..) { table.complete(slot, 1024, &mut spoils); }
            }
            for slot in held { prop_assert!(table.take(slot, Waker::noop()).is_some()); ended += 1; }
            prop_assert_eq!(ended + spoils.dropped.len(), inserted);
            prop_assert_eq!(table.free.len(), table.entries.len());
        }
    }
}
