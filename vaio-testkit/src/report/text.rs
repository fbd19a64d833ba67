//! A recording as text, for a terminal: at most [`WIDTH`] columns of ASCII, a lane for the guest,
//! the filter and each lower device. Pure.

use std::fmt::Write as _;

use vaio_core::OpKind;

use super::{
    lines::{Line, lines},
    record::{Chapter, Crash, LowerIo, Recording, Undecided, What},
};
use crate::disk::Fate;

/// Columns of the text, with up to three lower devices.
pub const WIDTH: usize = 120;
/// Lines of one chapter that are printed; of a longer one the middle is left out, visibly.
pub const LINES_MAX: usize = 60;

/// Lines of the plan that are printed.
pub const PLAN_MAX: usize = 60;
/// Writes of the block in question that are followed, the last ones.
pub const TOLD_MAX: usize = 12;

const CLOCK: usize = 4;
const TIME: usize = 8;
const GUEST: usize = 24;
const FILTER: usize = 22;
/// Narrowest lane of a lower device.
const LANE_MIN: usize = 18;
const MARK: usize = 2;

/// What stands around the timeline.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// Operations and crashes of the plan before it was shrunk.
    pub before: Option<(usize, usize)>,
    /// The command that replays the plan.
    pub replay: String,
    /// Files that were written.
    pub files: Vec<String>,
}

/// The whole text; ends with a line break.
pub fn text(recording: &Recording, around: &Around) -> String {
    let mut out = String::new();
    head(&mut out, recording, around);
    let lanes = Lanes::new(recording);
    lanes.titles(&mut out, recording);
    for chapter in &recording.chapters {
        lanes.chapter(&mut out, recording, chapter);
    }
    story(&mut out, recording);
    if let Some(plan) = &recording.plan {
        let _ = write!(out, "\nplan:\n");
        let plan = plan.to_string();
        for line in plan.lines().take(PLAN_MAX) {
            let _ = writeln!(out, "  {line}");
        }
        if let Some(more) = plan.lines().count().checked_sub(PLAN_MAX + 1) {
            let _ = writeln!(out, "  ... {} more lines in the plan's file ...", more + 1);
        }
    }
    let _ = write!(out, "\nreplay:\n  {}\n", around.replay);
    if !around.files.is_empty() {
        let _ = write!(out, "\nfiles:\n");
        for file in &around.files {
            let _ = writeln!(out, "  {file}");
        }
    }
    out
}

/// "37 ops, 4 crashes -> 3 ops, 1 crash"; empty for a script.
pub(super) fn sizes(recording: &Recording, around: &Around) -> String {
    let Some(plan) = &recording.plan else {
        return String::new();
    };
    let size = |(ops, crashes): (usize, usize)| {
        let plural = |n: usize, word: &str, more: &str| {
            format!("{n} {word}{}", if n == 1 { "" } else { more })
        };
        format!(
            "{}, {}",
            plural(ops, "op", "s"),
            plural(crashes, "crash", "es")
        )
    };
    // The kit's own crash after the recovery is in no plan.
    let crashed = recording
        .chapters
        .iter()
        .filter(|chapter| chapter.crash.is_some());
    let second = if crashed.count() > plan.crashes() {
        ", then a second era"
    } else {
        ""
    };
    let now = (plan.ops(), plan.crashes());
    match around.before.filter(|before| *before != now) {
        Some(before) => format!("shrunk: {} -> {}{second}", size(before), size(now)),
        None => format!("size: {}{second}", size(now)),
    }
}

fn head(out: &mut String, recording: &Recording, around: &Around) {
    let _ = writeln!(
        out,
        "{} BROKEN BY {}   case {}",
        recording.broken.rule, recording.filter, recording.case
    );
    for line in recording.broken.what.lines() {
        for part in wrap(line, WIDTH - 2) {
            let _ = writeln!(out, "  {part}");
        }
    }
    let sizes = sizes(recording, around);
    if !sizes.is_empty() {
        let _ = writeln!(out, "  {sizes}");
    }
    out.push('\n');
}

fn story(out: &mut String, recording: &Recording) {
    let (Some(block), false) = (recording.broken.block, recording.story.is_empty()) else {
        return;
    };
    let _ = writeln!(out, "\nwhere the data of block {block} went:");
    let skipped = recording.story.len().saturating_sub(TOLD_MAX);
    if skipped > 0 {
        let _ = writeln!(out, "  ... {skipped} earlier writes ...");
    }
    for told in &recording.story[skipped..] {
        let _ = writeln!(out, "  {}", told.op);
        for place in &told.places {
            let disk = place.disk.map(|disk| recording.disks[disk].as_str());
            let _ = match disk {
                Some(disk) => writeln!(out, "      {disk} {}", place.text),
                None => writeln!(out, "      {}", place.text),
            };
        }
    }
}

fn legend(out: &mut String, recording: &Recording) {
    if let Some(block) = recording.broken.block {
        let _ = writeln!(out, "*   concerns block {block}");
    }
    out.push_str(
        "t   the guest's clock, as in the explanation\n\
         #2  data of the guest's op #2; #2@7 its data for block 7; meta: the filter's own bytes\n\
         w3  a write below, w3' in the world after the crash; meta(w3): as w3 wrote it\n\
         > < submitted, answered; without either: answered before anything else happened\n\n",
    );
}

/// Widths of the lanes after the two columns of time.
struct Lanes {
    widths: Vec<usize>,
}

impl Lanes {
    fn new(recording: &Recording) -> Self {
        let disks = recording.disks.len().max(1);
        // Each lane is headed by " | ".
        let taken = MARK + CLOCK + 1 + TIME + 3 + GUEST + 3 + FILTER;
        let lane = (WIDTH.saturating_sub(taken) / disks)
            .saturating_sub(3)
            .max(LANE_MIN);
        let mut widths = vec![GUEST, FILTER];
        widths.extend(std::iter::repeat_n(lane, disks));
        Self { widths }
    }

    fn titles(&self, out: &mut String, recording: &Recording) {
        let mut cells = vec!["guest".to_owned(), "filter".to_owned()];
        cells.extend(recording.disks.iter().cloned());
        legend(out, recording);
        self.print(out, ' ', "t", "time", &cells);
        let total =
            MARK + CLOCK + 1 + TIME + self.widths.iter().sum::<usize>() + 3 * self.widths.len();
        let _ = writeln!(out, "{}", "-".repeat(total.min(WIDTH)));
    }

    fn chapter(&self, out: &mut String, recording: &Recording, chapter: &Chapter) {
        let _ = writeln!(out, "-- {} {}", chapter.title, "-".repeat(20));
        let (lines, _) = lines(chapter);
        let (head, tail) = if lines.len() > LINES_MAX {
            (LINES_MAX / 2, lines.len() - LINES_MAX / 2)
        } else {
            (lines.len(), lines.len())
        };
        for line in &lines[..head] {
            self.line(out, chapter, line);
        }
        if tail > head {
            let _ = writeln!(
                out,
                "      ... {} lines left out here; the event log has them ...",
                tail - head
            );
        }
        for line in &lines[tail..] {
            self.line(out, chapter, line);
        }
        if let Some(crash) = &chapter.crash {
            crash_lines(out, recording, chapter, crash);
        }
    }

    fn line(&self, out: &mut String, chapter: &Chapter, line: &Line<'_>) {
        let mut cells = vec![String::new(); self.widths.len()];
        match &line.row.what {
            What::Asked { text, .. } => cells[0].clone_from(text),
            What::Answered {
                op,
                text,
                is_broken,
            } => {
                cells[0] = format!("  {op} {text}");
                if *is_broken {
                    cells[0].push_str(" <== ILLEGAL");
                }
            }
            What::Step(text) => cells[0] = format!("({text})"),
            What::Filter(text) => cells[1].clone_from(text),
            What::Submit(io) => {
                let io = &chapter.ios[*io];
                io.task.unwrap_or_default().clone_into(&mut cells[1]);
                cells[2 + io.disk] = if line.is_whole { whole(io) } else { begun(io) };
            }
            What::Done(io) => {
                let io = &chapter.ios[*io];
                cells[2 + io.disk] = ended(io);
            }
        }
        let clock = line.row.clock.map(|at| at.to_string()).unwrap_or_default();
        let time = time(line.row.at.as_nanos());
        let mark = if line.row.matters { '*' } else { ' ' };
        self.print(out, mark, &clock, &time, &cells);
    }

    /// One line, or more where a cell does not fit.
    fn print(&self, out: &mut String, mark: char, clock: &str, time: &str, cells: &[String]) {
        let wrapped: Vec<Vec<String>> = cells
            .iter()
            .zip(&self.widths)
            .map(|(cell, width)| wrap(cell, *width))
            .collect();
        let height = wrapped.iter().map(Vec::len).max().unwrap_or(1).max(1);
        for number in 0..height {
            let (mark, clock, time) = match number {
                0 => (mark, clock, time),
                _ => (' ', "", ""),
            };
            let mut text = format!("{mark} {clock:>CLOCK$} {time:>TIME$}");
            for (lines, width) in wrapped.iter().zip(&self.widths) {
                let cell = lines.get(number).map_or("", String::as_str);
                let _ = write!(text, " | {cell:<width$}");
            }
            let _ = writeln!(out, "{}", text.trim_end());
        }
    }
}

/// `write fua` and so on, with the name that crashes use.
fn title(io: &LowerIo) -> String {
    let mut text = if io.is_mutation() {
        format!("{} {}", io.name, io.op)
    } else {
        io.op.to_string()
    };
    if io.is_fua {
        text.push_str(" fua");
    }
    if io.op != OpKind::Flush {
        let _ = write!(text, " [{}]", io.range());
    }
    text
}

fn with_content(io: &LowerIo, mut text: String) -> String {
    if !io.content.is_empty() {
        let _ = write!(text, " = {}", io.content);
    }
    text
}

fn begun(io: &LowerIo) -> String {
    match io.op {
        OpKind::Read => format!("> {}", title(io)),
        _ => format!("> {}", with_content(io, title(io))),
    }
}

fn ended(io: &LowerIo) -> String {
    let name = if io.is_mutation() {
        io.name.clone()
    } else {
        title(io)
    };
    match io.op {
        OpKind::Read => format!("< {}", with_content(io, name)),
        _ => format!("< {name} {}", answer(io)),
    }
}

fn whole(io: &LowerIo) -> String {
    match (io.op, io.fate) {
        (OpKind::Read | OpKind::Write | OpKind::WriteZeroes | OpKind::Discard, fate)
            if fate != Fate::Failed && !(io.is_fua && io.durable == io.ended) =>
        {
            with_content(io, title(io))
        }
        _ => format!("{}; {}", with_content(io, title(io)), answer(io)),
    }
}

/// What an answer means for durability.
pub(super) fn answer(io: &LowerIo) -> String {
    if io.fate == Fate::Failed {
        return "FAILED".to_owned();
    }
    if io.op == OpKind::Flush {
        return if io.covers.is_empty() {
            "ok, nothing new".to_owned()
        } else {
            format!("ok, durable: {}", io.covers.join(" "))
        };
    }
    let is_durable = io.durable == io.ended && io.is_mutation();
    if is_durable { "ok, durable" } else { "ok" }.to_owned()
}

fn crash_lines(out: &mut String, recording: &Recording, chapter: &Chapter, crash: &Crash) {
    let _ = writeln!(out, "{}", "=".repeat(WIDTH));
    let _ = writeln!(out, "CRASH: {}", crash.title);
    if crash.undecided.is_empty() {
        let _ = writeln!(
            out,
            "  every acknowledged write below was durable: nothing is lost"
        );
    }
    for one in &crash.undecided {
        let io = &chapter.ios[one.io];
        let line = format!(
            "  {:<9} {}: {} ({})",
            fate(one.fate),
            recording.disks[one.disk],
            with_content(io, title(io)),
            undecided(one, io)
        );
        for (number, line) in wrap(&line, WIDTH - 12).iter().enumerate() {
            let indent = if number == 0 { 0 } else { 10 };
            let _ = writeln!(out, "{:indent$}{line}", "");
        }
    }
    let _ = writeln!(out, "{}", "=".repeat(WIDTH));
}

pub(super) fn fate(fate: Fate) -> &'static str {
    match fate {
        Fate::Survived => "SURVIVES",
        Fate::Torn => "TORN",
        Fate::Lost => "LOST",
        Fate::InFlight => "IN FLIGHT",
        Fate::Acked => "ACKED",
        Fate::Failed => "FAILED",
    }
}

/// Why a crash could decide it, and of a torn one which blocks it kept.
pub(super) fn undecided(one: &Undecided, io: &LowerIo) -> String {
    let state = if one.is_acked {
        "acked, not flushed"
    } else {
        "in flight"
    };
    if one.fate != Fate::Torn {
        return state.to_owned();
    }
    let blocks: Vec<_> = (0..io.blocks.1 - io.blocks.0)
        .map(|at| {
            let label = usize::try_from(at).ok().and_then(|at| io.labels.get(at));
            let label = label.map_or(String::new(), |label| format!(" {label}"));
            let fate = if one.kept.contains(&at) {
                "there"
            } else {
                "lost"
            };
            format!("block {}{label} {fate}", io.blocks.0 + at)
        })
        .collect();
    format!("{state}; {}", blocks.join(", "))
}

/// `41us`, `100ms`: short, and exact enough to see a timer.
pub(super) fn time(nanos: u64) -> String {
    let micros = nanos / 1_000;
    match micros {
        0..10_000 => format!("{micros}us"),
        10_000..10_000_000 => format!("{}ms", micros / 1_000),
        _ => format!("{}s", micros / 1_000_000),
    }
}

/// Breaks at blanks where it can.
fn wrap(text: &str, width: usize) -> Vec<String> {
    if text.chars().count() <= width {
        return vec![text.to_owned()];
    }
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut fits = |line: &mut String, word: &str| {
        let gap = usize::from(!line.trim().is_empty());
        if line.chars().count() + gap + word.chars().count() > width && !line.trim().is_empty() {
            lines.push(std::mem::take(line));
            line.push_str("  ");
        } else if gap == 1 {
            line.push(' ');
        }
        for letter in word.chars() {
            if line.chars().count() == width {
                lines.push(std::mem::take(line));
                line.push_str("  ");
            }
            line.push(letter);
        }
    };
    let indent = text.len() - text.trim_start().len();
    line.push_str(&text[..indent]);
    for word in text.split_whitespace() {
        fits(&mut line, word);
    }
    if !line.trim().is_empty() {
        lines.push(line);
    }
    lines
}
