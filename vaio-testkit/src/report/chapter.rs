//! [`Builder`]: turns the trace of one world into chapters.
//!
//! The trace gives the order; each entry about IO below names a disk and a number in its journal.
//! Durability is worked out here by the contract's words, and not asked of the disk: a write is
//! durable from the answer of the first successful flush that was submitted after the write's own
//! answer, or from its own answer if it is fua or the device has no volatile cache.

use std::collections::BTreeMap;

use vaio_core::OpKind;

use super::{
    content::{Labels, blocks_of, joined, own_of, stamps_of},
    record::{Chapter, Crash, LowerIo, Row, Undecided, What, touches},
};
use crate::{
    TraceEvent,
    disk::{self, CrashSpec, Fate, Journal, Landing, Survivors},
    explore::{Belief, Rig, RigSnapshot},
    oracle::{Moment, NEVER, OpId, Oracle},
};

struct Lower {
    name: String,
    journal: Journal,
    block: u32,
    is_volatile: bool,
}

pub(super) struct Builder<'a> {
    world: usize,
    disks: Vec<Lower>,
    oracle: Oracle,
    /// The block in question.
    block: Option<u64>,
    labels: &'a mut Labels,
    done: Vec<Chapter>,
    now: Chapter,
    /// Journal number of each IO that this chapter began, by disk.
    begun: BTreeMap<(usize, u64), usize>,
    eras: usize,
    timer_fired: bool,
    /// The task that a timer woke, until it does something.
    woken: Option<(&'static str, TraceEvent)>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        world: usize,
        rig: &Rig,
        belief: &Belief,
        block: Option<u64>,
        labels: &'a mut Labels,
    ) -> Self {
        let disks = rig.disks().iter().map(|disk| {
            let info = *disk.media().info();
            Lower {
                name: disk.name().to_owned(),
                journal: disk.journal(),
                block: info.logical_block,
                is_volatile: info.caps.volatile_cache,
            }
        });
        Self {
            world,
            disks: disks.collect(),
            oracle: belief.oracle().clone(),
            block,
            labels,
            done: Vec::new(),
            now: empty(),
            begun: BTreeMap::new(),
            eras: 0,
            timer_fired: false,
            woken: None,
        }
    }

    /// Takes in the events of the world, up to the crash whose state was checked aside.
    pub(super) fn read(&mut self, events: &[TraceEvent]) {
        for event in events {
            if event.kind == "found" {
                return;
            }
            self.event(event);
        }
    }

    /// All chapters.
    pub(super) fn end(mut self) -> Vec<Chapter> {
        if !self.now.rows.is_empty() {
            self.done.push(self.now);
        }
        self.done
    }

    fn event(&mut self, event: &TraceEvent) {
        let number = u32::try_from(event.value).unwrap_or(0);
        if matches!(event.kind, "submit" | "probe" | "buggify") {
            self.show_woken(event);
        }
        match event.kind {
            "step" => self.step(event),
            "guest" => self.asked(event, OpId(number)),
            "ack" => self.answered(event, OpId(number)),
            "illegal" => self.illegal(),
            "submit" => self.submitted(event),
            "done" | "failed" => self.answered_below(event),
            "power" => self.power(&event.text.parse().unwrap_or_default(), None),
            "killed" => self.killed(None),
            "timer" => self.timer_fired = true,
            "poll" => self.polled(event),
            "probe" | "buggify" => {
                let text = match event.kind {
                    "probe" => format!("* {}", event.text),
                    _ => format!("kicked: {}", event.text),
                };
                self.push(event, None, What::Filter(text));
            }
            "refused" => {
                let text = format!("refused: {}", event.text);
                self.push(event, None, What::Filter(text));
            }
            "event" if event.text.starts_with("sidecar.") => {
                let text = event.text.replacen("sidecar.", "sidecar: ", 1);
                self.push(event, None, What::Filter(text));
            }
            _ => {}
        }
    }

    fn push(&mut self, event: &TraceEvent, clock: Option<Moment>, what: What) -> usize {
        self.now.rows.push(Row {
            at: event.at,
            clock,
            what,
            matters: false,
        });
        self.now.rows.len() - 1
    }

    fn step(&mut self, event: &TraceEvent) {
        if event.value == 1 {
            self.open(event);
        }
        self.push(event, None, What::Step(event.text.clone()));
    }

    /// The disk is opened: a new chapter.
    fn open(&mut self, event: &TraceEvent) {
        if !self.now.rows.is_empty() {
            let last = std::mem::replace(&mut self.now, empty());
            self.done.push(last);
            self.begun.clear();
        }
        self.eras += 1;
        self.now.title = match event.host.as_deref() {
            Some("recovery") => "after the crash: a new process recovers".to_owned(),
            Some("second-era") => "after the second crash: a new process recovers".to_owned(),
            Some("again") => "after the clean close: the disk is opened again".to_owned(),
            _ => format!("era {}", self.eras),
        };
    }

    fn asked(&mut self, event: &TraceEvent, op: OpId) {
        let record = self.oracle.history().get(op);
        let clock = record.map(|record| record.submit);
        let matters = record.is_some_and(|record| touches(&record.op, self.block));
        let text = event.text.clone();
        let row = self.push(event, clock, What::Asked { op, text });
        self.now.rows[row].matters = matters;
    }

    fn answered(&mut self, event: &TraceEvent, op: OpId) {
        let record = self.oracle.history().get(op);
        let clock = record.map(|record| record.end).filter(|end| *end != NEVER);
        let matters = record.is_some_and(|record| touches(&record.op, self.block));
        let said = event.text.split_once(": ").map_or("", |(_, said)| said);
        let what = What::Answered {
            op,
            text: said.to_owned(),
            is_broken: false,
        };
        let row = self.push(event, clock, what);
        self.now.rows[row].matters = matters;
    }

    /// A timer was due, and this task runs next: it was the one that waited. Shown if the task
    /// then does anything.
    fn polled(&mut self, event: &TraceEvent) {
        if std::mem::take(&mut self.timer_fired) {
            self.woken = event.task.map(|task| (task, event.clone()));
        }
    }

    fn show_woken(&mut self, event: &TraceEvent) {
        let Some((task, woken)) = self.woken.take() else {
            return;
        };
        if event.task == Some(task) && task != "main" {
            self.push(&woken, None, What::Filter(format!("timer wakes {task}")));
        }
    }

    /// The latest answer broke the promise.
    fn illegal(&mut self) {
        for row in self.now.rows.iter_mut().rev() {
            if let What::Answered { is_broken, .. } = &mut row.what {
                *is_broken = true;
                row.matters = true;
                return;
            }
        }
    }

    fn find(&self, event: &TraceEvent) -> Option<(usize, &disk::LowerIo)> {
        let disk = self.disks.iter().position(|d| d.name == event.text)?;
        Some((disk, self.disks[disk].journal.get(event.value)?))
    }

    fn submitted(&mut self, event: &TraceEvent) {
        let Some((disk, io)) = self.find(event) else {
            return;
        };
        let io = io.clone();
        let block = u64::from(self.disks[disk].block);
        let blocks = (io.extent.offset() / block, io.extent.end() / block);
        let prime = "'".repeat(self.world);
        let name = match (io.mutation, io.op) {
            (Some(id), OpKind::Write) => format!("w{}{prime}", id.0),
            (Some(id), OpKind::WriteZeroes) => format!("z{}{prime}", id.0),
            (Some(id), _) => format!("d{}{prime}", id.0),
            (None, op) => op.to_string(),
        };
        let mut entry = LowerIo {
            disk,
            name,
            op: io.op,
            blocks: if io.op == OpKind::Flush {
                (0, 0)
            } else {
                blocks
            },
            is_fua: io.is_fua,
            task: event.task.filter(|task| *task != "main"),
            labels: Vec::new(),
            content: String::new(),
            own: Vec::new(),
            stamps: Vec::new(),
            submitted: self.now.rows.len(),
            ended: None,
            fate: match io.fate {
                // What a crash decided is known; an answer is not, until it comes.
                Fate::Survived | Fate::Torn | Fate::Lost => io.fate,
                _ => Fate::InFlight,
            },
            durable: None,
            covers: Vec::new(),
            matters: false,
        };
        if let Some(data) = io.data.as_ref().filter(|_| io.op == OpKind::Write) {
            let data = blocks_of(data, self.disks[disk].block as usize);
            entry.stamps = stamps_of(&data);
            entry.own = own_of(blocks.0, &data);
            entry.labels = self.labels.of_write(disk, blocks.0, &data, &entry.name);
            entry.content = joined(&entry.labels);
        }
        let carries = entry.stamps.iter().any(|s| Some(s.block) == self.block);
        let covers = (self.block).is_some_and(|b| (blocks.0..blocks.1).contains(&b));
        entry.matters = carries || (disk == 0 && covers);
        let index = self.now.ios.len();
        self.begun.insert((disk, event.value), index);
        let row = self.push(event, None, What::Submit(index));
        self.now.rows[row].matters = entry.matters;
        self.now.ios.push(entry);
    }

    fn answered_below(&mut self, event: &TraceEvent) {
        let Some((disk, io)) = self.find(event) else {
            return;
        };
        let io = io.clone();
        let Some(index) = self.begun.get(&(disk, event.value)).copied() else {
            return;
        };
        let row = self.push(event, None, What::Done(index));
        let is_ok = event.kind == "done";
        let entry = &mut self.now.ios[index];
        entry.ended = Some(row);
        entry.fate = match entry.fate {
            // None, some or all of it may be there: no crash says more.
            _ if !is_ok => Fate::Failed,
            Fate::InFlight => Fate::Acked,
            decided => decided,
        };
        if let Some(data) = io.data.as_ref().filter(|_| io.op == OpKind::Read) {
            let data = blocks_of(data, self.disks[disk].block as usize);
            entry.stamps = stamps_of(&data);
            entry.own = own_of(entry.blocks.0, &data);
            entry.labels = self.labels.of_read(disk, entry.blocks.0, &data);
            entry.content = joined(&entry.labels);
            entry.matters |= (entry.stamps.iter()).any(|s| Some(s.block) == self.block);
        }
        if is_ok && entry.is_mutation() && (entry.is_fua || !self.disks[disk].is_volatile) {
            entry.durable = Some(row);
        }
        let matters = entry.matters;
        self.now.rows[row].matters = matters;
        if is_ok && io.op == OpKind::Flush {
            self.flushed(index, row);
        }
    }

    /// A flush covers what was answered before it was submitted.
    fn flushed(&mut self, flush: usize, row: usize) {
        let (disk, from) = (self.now.ios[flush].disk, self.now.ios[flush].submitted);
        let mut covers = Vec::new();
        for io in &mut self.now.ios {
            let is_before = io.ended.is_some_and(|ended| ended < from);
            let is_open = io.durable.is_none() && io.fate != Fate::Failed;
            if io.disk == disk && io.is_mutation() && is_before && is_open {
                io.durable = Some(row);
                covers.push(io.name.clone());
            }
        }
        self.now.ios[flush].covers = covers;
    }

    /// Power fails. `last`: the crash state that was checked aside, and its boundary: the journals
    /// do not know of it yet.
    pub(super) fn power(&mut self, spec: &CrashSpec, last: Option<(&RigSnapshot, u32)>) {
        if let Some((before, _)) = last {
            for (disk, before) in self.disks.iter_mut().zip(&before.disks) {
                let pending: Vec<_> = before.pending().map(|m| (m.id(), m.count())).collect();
                disk.journal.crash(&pending, spec.of(&disk.name));
            }
            for (key, index) in &self.begun {
                let fate = self.disks[key.0].journal.get(key.1).map(|io| io.fate);
                let io = &mut self.now.ios[*index];
                if let Some(fate @ (Fate::Survived | Fate::Torn | Fate::Lost)) = fate
                    && io.fate != Fate::Failed
                {
                    io.fate = fate;
                }
            }
        }
        let mut undecided = Vec::new();
        for (key, index) in &self.begun {
            let io = &self.now.ios[*index];
            if !matches!(io.fate, Fate::Survived | Fate::Torn | Fate::Lost) {
                continue;
            }
            let journaled = self.disks[key.0].journal.get(key.1);
            let number = journaled.and_then(|io| io.mutation).map_or(0, |id| id.0);
            let survivors = spec.of(&self.disks[key.0].name);
            undecided.push(Undecided {
                disk: key.0,
                io: *index,
                fate: io.fate,
                kept: (0..io.blocks.1 - io.blocks.0)
                    .filter(|block| survives(survivors, number, *block))
                    .collect(),
                is_acked: io.ended.is_some(),
            });
        }
        let at = last.map_or(String::new(), |(_, boundary)| {
            format!(" after boundary {boundary}")
        });
        if self.world > 0 {
            // What the guest does here is not in the plan.
            self.now
                .title
                .push_str("; the kit reads it back and lets it work on");
        }
        self.now.crash = Some(Crash {
            title: format!("power fails{at}"),
            undecided,
        });
    }

    /// The process is killed. `last`: the crash state that was checked aside, what it did to what
    /// was in flight, and its boundary.
    pub(super) fn killed(&mut self, last: Option<(Option<Landing>, u32)>) {
        let landing = last.and_then(|(landing, _)| landing);
        let mut undecided = Vec::new();
        for (key, index) in &self.begun {
            let io = &mut self.now.ios[*index];
            if !io.is_mutation() || io.ended.is_some() {
                continue;
            }
            let journaled = self.disks[key.0].journal.get(key.1);
            let landed = journaled.is_some_and(|io| io.fate == Fate::Acked);
            let lands = landing.map_or(landed, |landing| landing == Landing::Lands);
            io.fate = if lands { Fate::Survived } else { Fate::Lost };
            undecided.push(Undecided {
                disk: key.0,
                io: *index,
                fate: io.fate,
                kept: Vec::new(),
                is_acked: false,
            });
        }
        let at = last.map_or(String::new(), |(_, boundary)| {
            format!(" after boundary {boundary}")
        });
        self.now.crash = Some(Crash {
            title: format!(
                "the process is killed{at}; what devices acknowledged stays, as volatile as before"
            ),
            undecided,
        });
    }
}

fn survives(survivors: Option<&Survivors>, number: u64, block: u64) -> bool {
    match survivors {
        None => true,
        Some(Survivors::Keep(pieces)) => pieces.iter().any(|p| p.names(number, block)),
        Some(Survivors::Drop(pieces)) => !pieces.iter().any(|p| p.names(number, block)),
    }
}

fn empty() -> Chapter {
    Chapter {
        title: String::new(),
        rows: Vec::new(),
        ios: Vec::new(),
        crash: None,
    }
}
