//! What a [`Link`](super::Link) is made of: connections, what is under way on them, and how it
//! arrives.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vaio_core::sync::Notify;

use super::link::{LATE, Mode, Side};
use crate::{Family, Sim};

pub(super) struct Shared<M> {
    pub(super) sim: Sim,
    pub(super) name: String,
    pub(super) mode: Mode,
    /// Names of the events by the side that sends.
    pub(super) events: [String; 2],
    pub(super) state: Mutex<State<M>>,
    pub(super) changed: Notify,
}

pub(super) struct State<M> {
    pub(super) connections: BTreeMap<u64, Connection<M>>,
    pub(super) last: u64,
    /// Dialled and not accepted yet.
    pub(super) backlog: VecDeque<u64>,
    pub(super) ways: [Way; 2],
}

#[derive(Default)]
pub(super) struct Way {
    pub(super) is_cut: bool,
    pub(super) is_clogged: bool,
    /// Arrivals that wait for the way to open; each becomes an event then.
    pub(super) held: Vec<Arrival>,
}

#[derive(Clone, Copy)]
pub(super) enum Arrival {
    Message { connection: u64, number: u64 },
    Dial { connection: u64 },
}

pub(super) struct Connection<M> {
    pub(super) pipes: [Pipe<M>; 2],
    pub(super) is_broken: bool,
}

pub(super) struct Pipe<M> {
    /// Under way, by number.
    pub(super) flying: VecDeque<(u64, M)>,
    pub(super) last: u64,
    pub(super) inbox: VecDeque<M>,
}

impl<M> Connection<M> {
    pub(super) fn new() -> Self {
        let pipe = || Pipe {
            flying: VecDeque::new(),
            last: 0,
            inbox: VecDeque::new(),
        };
        Self {
            pipes: [pipe(), pipe()],
            is_broken: false,
        }
    }
}

impl<M> Shared<M> {
    pub(super) fn lock(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Breaks a stream: of what is under way a prefix of the tape's choice still arrives.
    pub(super) fn break_off(&self, connection: &mut Connection<M>) {
        if self.mode == Mode::Datagram || connection.is_broken {
            return;
        }
        connection.is_broken = true;
        for pipe in &mut connection.pipes {
            let len = u32::try_from(pipe.flying.len()).expect("a flood is refused");
            let name = format!("{}.cut-off", self.name);
            let lost = self.sim.tape().choose(len + 1, Family::Net, &name);
            pipe.flying.truncate((len - lost) as usize);
        }
    }
}

impl<M: Send + 'static> Shared<M> {
    /// Puts an arrival under way.
    pub(super) fn fly(self: &Arc<Self>, from: Side, arrival: Arrival) {
        let shared = Arc::clone(self);
        let name = &self.events[from as usize];
        let event = self
            .sim
            .event_with(None, name, move || shared.picked(from, arrival));
        // It is under way whoever waits for it.
        drop(event.detach());
    }

    /// What a broken connection left under way may be held up by something that no one sees.
    fn is_late(&self, arrival: Arrival) -> bool {
        let Arrival::Message { connection, .. } = arrival else {
            return false;
        };
        let state = self.lock();
        let is_broken = state
            .connections
            .get(&connection)
            .is_some_and(|connection| connection.is_broken);
        drop(state);
        let name = format!("{}.late", self.name);
        is_broken && self.sim.tape().choose(2, Family::Net, &name) == 1
    }

    /// An arrival's event was picked.
    fn picked(self: &Arc<Self>, from: Side, arrival: Arrival) {
        if !self.is_late(arrival) {
            return self.arrive(from, arrival);
        }
        let (shared, sim) = (Arc::clone(self), self.sim.clone());
        self.sim.spawn("link.late", async move {
            sim.sleep(LATE).await;
            shared.arrive(from, arrival);
        });
    }

    fn arrive(&self, from: Side, arrival: Arrival) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let way = &mut state.ways[from as usize];
        let is_datagram = self.mode == Mode::Datagram;
        let is_open = !way.is_cut && !way.is_clogged;
        if !is_open && (way.is_clogged || !is_datagram) {
            way.held.push(arrival);
            return;
        }
        match arrival {
            Arrival::Dial { connection } => state.backlog.push_back(connection),
            Arrival::Message { connection, number } => {
                let Some(connection) = state.connections.get_mut(&connection) else {
                    return;
                };
                let pipe = &mut connection.pipes[from as usize];
                // A stream delivers its oldest, whichever event was picked.
                let place = if is_datagram {
                    pipe.flying.iter().position(|(other, _)| *other == number)
                } else {
                    Some(0)
                };
                let message = place.and_then(|place| pipe.flying.remove(place));
                if let Some((_, message)) = message.filter(|_| is_open) {
                    pipe.inbox.push_back(message);
                }
            }
        }
        drop(guard);
        self.changed.notify_all();
    }
}
