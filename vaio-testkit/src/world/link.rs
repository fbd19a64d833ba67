//! [`Link`]: messages between two hosts, as an adversary carries them.
//!
//! Every message is an event of the [`Sim`]: it arrives when the simulator picks it, so any delay
//! is possible. As a datagram it may be lost, doubled, or overtaken. On a stream messages arrive in
//! order until the connection breaks, after which a prefix of what was under way still arrives:
//! the receiver of a broken connection may work through it long after another one was opened.
//!
//! A way that is cut loses datagrams and holds streams; a clogged one holds both. What a process
//! sent before it died is under way like anything else. Who was cut off is not told: a stream whose
//! peer is gone is silent, and only a time-out of the reader's own ends that.
//!
//! Invariants: a message arrives at most once on a stream and never before one sent earlier on it;
//! a dead host neither sends nor receives.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use vaio_core::sync::Notify;

use super::wire::{Arrival, Connection, Shared, State};
use crate::{Family, Host, Sim};

/// One message in so many is lost, doubled, or breaks its stream on a tape that draws uniformly.
pub const TROUBLE_ONE_IN: u32 = 12;
/// Messages under way on one connection in one direction; more is a flood.
pub const FLYING_MAX: usize = 4096;

/// How late what a broken connection left under way may be: later than whoever dials again.
pub const LATE: Duration = Duration::from_millis(300);

/// How a link carries messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Each by itself: lost, doubled and reordered.
    Datagram,
    /// In order until the connection breaks.
    Stream,
}

/// The two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// The one that dials.
    Left,
    /// The one that accepts.
    Right,
}

impl Side {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

/// The connection is broken, and what arrived on it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection is broken")]
pub struct Lost;

/// A link. Clones are the same link.
pub struct Link<M>(Arc<Shared<M>>);

impl<M: Clone + Send + 'static> Link<M> {
    /// A link that works. `name` names its events and choices.
    pub fn new(sim: &Sim, name: &str, mode: Mode) -> Self {
        let mut connections = BTreeMap::new();
        if mode == Mode::Datagram {
            connections.insert(0, Connection::new());
        }
        let state = State {
            connections,
            last: 0,
            backlog: VecDeque::new(),
            ways: Default::default(),
        };
        Self(Arc::new(Shared {
            sim: sim.clone(),
            name: name.to_owned(),
            mode,
            events: ["left", "right"].map(|side| format!("{name}.{side}")),
            state: Mutex::new(state),
            changed: Notify::default(),
        }))
    }

    /// An end for datagrams in this process.
    ///
    /// # Panics
    /// If the link carries streams.
    pub fn end(&self, side: Side, host: &Host) -> End<M> {
        assert_eq!(self.0.mode, Mode::Datagram, "a stream is dialled");
        self.end_of(0, side, host)
    }

    /// Opens a connection from the left. It can be written at once; it is accepted when its first
    /// message gets through, which a cut prevents.
    ///
    /// # Panics
    /// If the link carries datagrams.
    pub fn dial(&self, host: &Host) -> End<M> {
        assert_eq!(self.0.mode, Mode::Stream, "a datagram link has no streams");
        let mut state = self.0.lock();
        state.last += 1;
        let connection = state.last;
        state.connections.insert(connection, Connection::new());
        drop(state);
        self.0.fly(Side::Left, Arrival::Dial { connection });
        self.end_of(connection, Side::Left, host)
    }

    /// Waits for a connection from the left. Cancel-safe.
    pub async fn accept(&self, host: &Host) -> End<M> {
        loop {
            let changed = self.0.changed.listen();
            if host.is_alive()
                && let Some(connection) = self.0.lock().backlog.pop_front()
            {
                return self.end_of(connection, Side::Right, host);
            }
            changed.await;
        }
    }

    fn end_of(&self, connection: u64, side: Side, host: &Host) -> End<M> {
        End {
            link: Arc::clone(&self.0),
            connection,
            side,
            host: host.clone(),
        }
    }

    /// Cuts one way: what `from` sends is lost (datagrams) or held (streams).
    pub fn cut_from(&self, from: Side) {
        self.0.lock().ways[from as usize].is_cut = true;
    }

    /// Cuts both ways.
    pub fn cut(&self) {
        self.cut_from(Side::Left);
        self.cut_from(Side::Right);
    }

    /// Holds what `from` sends until [`heal`](Self::heal).
    pub fn clog_from(&self, from: Side) {
        self.0.lock().ways[from as usize].is_clogged = true;
    }

    /// Opens both ways; what was held is under way again.
    pub fn heal(&self) {
        for from in [Side::Left, Side::Right] {
            let mut state = self.0.lock();
            let way = &mut state.ways[from as usize];
            (way.is_cut, way.is_clogged) = (false, false);
            let held = std::mem::take(&mut way.held);
            drop(state);
            for arrival in held {
                self.0.fly(from, arrival);
            }
        }
    }

    /// Whether nothing is cut or clogged.
    pub fn is_whole(&self) -> bool {
        let state = self.0.lock();
        state.ways.iter().all(|way| !way.is_cut && !way.is_clogged)
    }

    /// Breaks every stream, as a router that restarts does.
    pub fn break_all(&self) {
        let mut state = self.0.lock();
        for connection in state.connections.values_mut() {
            self.0.break_off(connection);
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

impl<M> Clone for Link<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> fmt::Debug for Link<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("name", &self.0.name)
            .field("mode", &self.0.mode)
            .finish_non_exhaustive()
    }
}

/// One end of a connection in one process.
pub struct End<M> {
    link: Arc<Shared<M>>,
    connection: u64,
    side: Side,
    host: Host,
}

impl<M: Clone + Send + 'static> End<M> {
    /// Sends a message: it arrives once, never, or (a datagram) twice.
    ///
    /// # Errors
    /// The stream is known to be broken.
    ///
    /// # Panics
    /// If more than [`FLYING_MAX`] are under way.
    pub fn send(&self, message: M) -> Result<(), Lost> {
        if !self.host.is_alive() {
            return Err(Lost);
        }
        let link = &self.link;
        let tape = link.sim.tape();
        let name = &link.events[self.side as usize];
        let trouble = tape.choose(TROUBLE_ONE_IN, Family::Net, name);
        let is_datagram = link.mode == Mode::Datagram;
        let copies = match trouble {
            1 if is_datagram => 0,
            2 if is_datagram => 2,
            _ => 1,
        };
        let mut state = link.lock();
        let connection = state
            .connections
            .get_mut(&self.connection)
            .expect("a connection stays known");
        if connection.is_broken {
            return Err(Lost);
        }
        let mut numbers = Vec::new();
        for message in std::iter::repeat_n(message, copies) {
            let pipe = &mut connection.pipes[self.side as usize];
            assert!(pipe.flying.len() < FLYING_MAX, "a flood of messages");
            pipe.last += 1;
            pipe.flying.push_back((pipe.last, message));
            numbers.push(pipe.last);
        }
        let breaks = !is_datagram && trouble == 1;
        if breaks {
            link.break_off(connection);
        }
        drop(state);
        if breaks {
            link.changed.notify_all();
        }
        for number in numbers {
            let connection = self.connection;
            link.fly(self.side, Arrival::Message { connection, number });
        }
        Ok(())
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// The stream is broken and everything that arrives on it was received.
    pub async fn recv(&self) -> Result<M, Lost> {
        loop {
            let changed = self.link.changed.listen();
            if !self.host.is_alive() {
                pending::<()>().await;
            }
            {
                let mut state = self.link.lock();
                let Some(connection) = state.connections.get_mut(&self.connection) else {
                    return Err(Lost);
                };
                let pipe = &mut connection.pipes[self.side.other() as usize];
                if let Some(message) = pipe.inbox.pop_front() {
                    return Ok(message);
                }
                if connection.is_broken && pipe.flying.is_empty() {
                    return Err(Lost);
                }
            }
            changed.await;
        }
    }

    /// Gives the connection up, as after a time-out. The peer gets a prefix of what is under way.
    pub fn break_off(&self) {
        let mut state = self.link.lock();
        if let Some(connection) = state.connections.get_mut(&self.connection) {
            self.link.break_off(connection);
        }
        drop(state);
        self.link.changed.notify_all();
    }

    /// Whether the stream broke.
    pub fn is_broken(&self) -> bool {
        let state = self.link.lock();
        let connection = state.connections.get(&self.connection);
        connection.is_none_or(|connection| connection.is_broken)
    }

    /// Counts the link's connections: a later one has a higher number, whichever is accepted first.
    pub fn number(&self) -> u64 {
        self.connection
    }

    /// The process that has it.
    pub fn host(&self) -> &Host {
        &self.host
    }
}

impl<M> Clone for End<M> {
    fn clone(&self) -> Self {
        Self {
            link: Arc::clone(&self.link),
            connection: self.connection,
            side: self.side,
            host: self.host.clone(),
        }
    }
}

impl<M> fmt::Debug for End<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("End")
            .field("link", &self.link.name)
            .field("connection", &self.connection)
            .field("side", &self.side)
            .finish_non_exhaustive()
    }
}

/// Swizzle-clog: clogs a subset of links one by one and opens them in another order, as the tape
/// says, with other events in between.
pub async fn swizzle<M: Clone + Send + 'static>(sim: &Sim, links: &[Link<M>]) {
    let tape = sim.tape();
    let mut clogged = Vec::new();
    for link in links {
        let side = match tape.choose(4, Family::Net, "swizzle") {
            1 => Side::Left,
            2 => Side::Right,
            3 => {
                link.clog_from(Side::Left);
                Side::Right
            }
            _ => continue,
        };
        link.clog_from(side);
        clogged.push(link);
        sim.event(None, "swizzle").await;
    }
    while !clogged.is_empty() {
        let len = u32::try_from(clogged.len()).unwrap_or(u32::MAX);
        let at = tape.choose(len, Family::Net, "unswizzle") as usize;
        clogged.remove(at).heal();
        sim.event(None, "swizzle").await;
    }
}
