//! [`Picture`]: one chapter as a grid, a row for each line and a column for each lane. Pure.
//!
//! IO is a box from submission to answer. Beside it hangs a tail while a crash could still take
//! what it wrote; the tail ends at the flush that made it durable, or at the crash.

use std::fmt::Write as _;

use vaio_core::OpKind;

use super::{
    html::{escape, with_ops},
    lanes::Packed,
    lines::lines,
    record::{Chapter, LowerIo, Recording, What},
    story::state,
    text::{answer, fate, time},
};
use crate::{disk::Fate, oracle::OpId};

/// Width of a tail's column.
const TAIL: usize = 16;
/// Tails beside each other; what is more shares the last column.
const TAILS_MAX: usize = 6;
const GUEST: usize = 210;
const FILTER: usize = 175;
/// Width that the lower devices share.
const LOWER: usize = 770;
const LOWER_MIN: usize = 260;

/// One chapter's grid.
pub(super) struct Picture<'a> {
    recording: &'a Recording,
    chapter: &'a Chapter,
    of_row: Vec<usize>,
    /// Lines of the chapter; the grid has one more for what is open at its end.
    count: usize,
    guest: Packed,
    boxes: Vec<Packed>,
    tails: Vec<Packed>,
}

impl<'a> Picture<'a> {
    pub(super) fn new(recording: &'a Recording, chapter: &'a Chapter) -> Self {
        let (all, of_row) = lines(chapter);
        let count = all.len();
        let mut picture = Self {
            recording,
            chapter,
            of_row,
            count,
            guest: Packed::default(),
            boxes: Vec::new(),
            tails: Vec::new(),
        };
        let ops = picture.guest_spans();
        picture.guest = Packed::new(ops.iter().map(|op| (op.0, op.0, op.1)), usize::MAX);
        for disk in 0..recording.disks.len() {
            let ios = || (chapter.ios.iter().enumerate()).filter(|(_, io)| io.disk == disk);
            let boxes =
                ios().map(|(index, io)| (index, picture.at(io.submitted), picture.box_end(io)));
            picture.boxes.push(Packed::new(boxes, usize::MAX));
            let tails = ios().filter_map(|(index, io)| {
                let (from, to) = picture.tail(io)?;
                Some((index, from, to))
            });
            picture.tails.push(Packed::new(tails, TAILS_MAX));
        }
        picture
    }

    fn at(&self, row: usize) -> usize {
        self.of_row[row]
    }

    fn box_end(&self, io: &LowerIo) -> usize {
        io.ended.map_or(self.count, |row| self.at(row))
    }

    /// The lines over which a crash could take what was answered.
    fn tail(&self, io: &LowerIo) -> Option<(usize, usize)> {
        if !io.is_mutation() || io.fate == Fate::Failed || io.durable == io.ended {
            return None;
        }
        let from = io.ended.map(|row| self.at(row))?;
        Some((from, io.durable.map_or(self.count, |row| self.at(row))))
    }

    /// Line of each guest operation's submission and of its answer.
    fn guest_spans(&self) -> Vec<(usize, usize)> {
        let rows = self.chapter.rows.iter().enumerate();
        rows.filter_map(|(number, row)| {
            let What::Asked { op, .. } = &row.what else {
                return None;
            };
            let answer = self.answer_of(*op);
            let end = answer.map_or(self.count, |(row, _, _)| self.at(row));
            Some((self.at(number), end))
        })
        .collect()
    }

    fn answer_of(&self, asked: OpId) -> Option<(usize, &str, bool)> {
        let mut rows = self.chapter.rows.iter().enumerate();
        rows.find_map(|(number, row)| match &row.what {
            What::Answered {
                op,
                text,
                is_broken,
            } if *op == asked => Some((number, text.as_str(), *is_broken)),
            _ => None,
        })
    }

    pub(super) fn draw(&self, out: &mut String) {
        let disks = self.recording.disks.len().max(1);
        let lane = (LOWER / disks).max(LOWER_MIN);
        let mut columns = vec!["92px".to_owned()];
        let mut starts = Vec::new();
        let mut add = |tails: usize, boxes: usize, width: usize| {
            starts.push(columns.len() + 1);
            columns.extend(std::iter::repeat_n(format!("{TAIL}px"), tails));
            let each = (width - tails * TAIL) / boxes.max(1);
            columns.extend(std::iter::repeat_n(format!("{each}px"), boxes.max(1)));
        };
        add(0, self.guest.columns, GUEST);
        add(0, 1, FILTER);
        for (tails, boxes) in self.tails.iter().zip(&self.boxes) {
            add(tails.columns, boxes.columns, lane);
        }
        starts.push(columns.len() + 1);
        let _ = write!(
            out,
            "<div class=\"grid\" style=\"grid-template-columns:{};grid-template-rows:repeat({},auto) 8px\">",
            columns.join(" "),
            self.count + 1
        );
        let names = ["guest", "filter"].into_iter();
        let names = names.chain(self.recording.disks.iter().map(String::as_str));
        for (name, ends) in names.zip(starts.windows(2)) {
            let place = format!("grid-column:{}/{}", ends[0], ends[1]);
            let _ = write!(
                out,
                "<div class=\"lane\" style=\"{place};grid-row:1/-1\"></div>"
            );
            let _ = write!(
                out,
                "<div class=\"head\" style=\"{place};grid-row:1\">{}</div>",
                escape(name)
            );
        }
        self.rows(out, &starts);
        self.tasks(out, starts[1]);
        for (number, io) in self.chapter.ios.iter().enumerate() {
            self.lower(out, number, io, starts[2 + io.disk]);
        }
        out.push_str("</div>");
    }

    fn rows(&self, out: &mut String, starts: &[usize]) {
        let mut shown = usize::MAX;
        for (number, row) in self.chapter.rows.iter().enumerate() {
            let line = self.at(number);
            if line != shown {
                shown = line;
                let clock = row
                    .clock
                    .map_or(String::new(), |at| format!(" <b>t={at}</b>"));
                let at = time(row.at.as_nanos());
                let _ = write!(
                    out,
                    "<div class=\"t\" style=\"grid-column:1;grid-row:{}\">{at}{clock}</div>",
                    line + 2
                );
            }
            match &row.what {
                What::Asked { op, text } => {
                    let answer = self.answer_of(*op);
                    self.guest(out, (line, text.as_str(), row.matters), answer, starts);
                }
                What::Step(text) => {
                    let _ = write!(
                        out,
                        "<div class=\"step\" style=\"grid-column:{}/{};grid-row:{}\">{}</div>",
                        starts[0],
                        starts[1],
                        line + 2,
                        escape(text)
                    );
                }
                What::Filter(text) => {
                    let _ = write!(
                        out,
                        "<div class=\"mark\" style=\"grid-column:{};grid-row:{}\">{}</div>",
                        starts[1],
                        line + 2,
                        escape(text)
                    );
                }
                What::Answered { .. } | What::Submit(_) | What::Done(_) => {}
            }
        }
    }

    fn guest(
        &self,
        out: &mut String,
        (line, text, matters): (usize, &str, bool),
        answer: Option<(usize, &str, bool)>,
        starts: &[usize],
    ) {
        let end = answer.map_or(self.count, |(row, _, _)| self.at(row));
        let (from, to) = self.guest.place(line, starts[0]);
        let is_broken = answer.is_some_and(|(_, _, is_broken)| is_broken);
        let class = match (answer.is_none(), is_broken, matters) {
            (true, _, _) => "box guest hollow",
            (_, true, _) => "box guest illegal",
            (_, _, true) => "box guest matters",
            _ => "box guest",
        };
        let said = match answer {
            Some((_, text, true)) => format!("{} — ILLEGAL", with_ops(text)),
            Some((_, text, false)) => with_ops(text),
            None => "not answered".to_owned(),
        };
        let _ = write!(
            out,
            "<div class=\"{class}\" style=\"grid-column:{from}/{to};grid-row:{}/{}\" title=\"{}\">\
             <span>{}</span><span class=\"end\">{said}</span></div>",
            line + 2,
            end + 3,
            escape(text),
            with_ops(text)
        );
    }

    /// A bar for each stretch in which one task of the filter asked for IO.
    fn tasks(&self, out: &mut String, column: usize) {
        let mut bars: Vec<(&str, usize, usize)> = Vec::new();
        let mut is_open = false;
        for (number, row) in self.chapter.rows.iter().enumerate() {
            let line = self.at(number);
            match &row.what {
                What::Submit(io) => match (self.chapter.ios[*io].task, bars.last_mut()) {
                    (Some(task), Some(bar)) if is_open && bar.0 == task => bar.2 = line,
                    (Some(task), _) => {
                        bars.push((task, line, line));
                        is_open = true;
                    }
                    (None, _) => {}
                },
                What::Done(_) | What::Answered { .. } | What::Asked { .. } => {}
                What::Filter(_) | What::Step(_) => is_open = false,
            }
        }
        for (task, from, to) in bars {
            let _ = write!(
                out,
                "<div class=\"box task\" style=\"grid-column:{column};grid-row:{}/{}\">{}</div>",
                from + 2,
                to + 3,
                escape(task)
            );
        }
    }

    fn lower(&self, out: &mut String, number: usize, io: &LowerIo, start: usize) {
        let boxes = start + self.tails[io.disk].columns;
        let (from, to) = self.boxes[io.disk].place(number, boxes);
        let mut class = match io.op {
            OpKind::Read => "box read".to_owned(),
            OpKind::Flush => "box flush".to_owned(),
            _ => "box write".to_owned(),
        };
        match io.fate {
            Fate::InFlight => class.push_str(" hollow"),
            Fate::Lost => class.push_str(" lost"),
            Fate::Failed => class.push_str(" failed"),
            _ => {}
        }
        if io.matters {
            class.push_str(" matters");
        }
        let end = self.box_end(io);
        let _ = write!(
            out,
            "<div class=\"{class}\" style=\"grid-column:{from}/{to};grid-row:{}/{}\" title=\"{}\">\
             <span class=\"what\">{}</span>{}</div>",
            self.at(io.submitted) + 2,
            end + 3,
            escape(&self.hover(io)),
            label(io),
            note(io)
        );
        if let Some((from_line, to_line)) = self.tail(io) {
            let (from, to) = self.tails[io.disk].place(number, start);
            let (class, cap) = match (io.durable, io.fate) {
                (Some(_), _) | (None, Fate::Survived) => ("tail", "✓"),
                (None, Fate::Lost | Fate::Torn) => ("tail gone", "✗"),
                _ => ("tail open", "?"),
            };
            let _ = write!(
                out,
                "<div class=\"{class}\" style=\"grid-column:{from}/{to};grid-row:{}/{}\"><i>{cap}</i></div>",
                from_line + 2,
                to_line + 3
            );
        }
    }

    fn hover(&self, io: &LowerIo) -> String {
        let at = |row: usize| time(self.chapter.rows[row].at.as_nanos());
        let mut text = format!("{} {} on {}", io.name, io.op, self.recording.disks[io.disk]);
        if !io.range().is_empty() {
            let _ = write!(text, "\nblocks {}", io.range());
        }
        if !io.content.is_empty() {
            let _ = write!(text, "\n{}", io.content);
        }
        let by = io.task.unwrap_or("the guest's own request");
        let _ = write!(text, "\nsubmitted at {} by {by}", at(io.submitted));
        match io.ended {
            Some(row) => {
                let _ = write!(text, "\nanswered at {}", at(row));
            }
            None => text.push_str("\nnot answered"),
        }
        if io.is_mutation() {
            let _ = write!(text, "\n{}", state(io));
        }
        for (block, bytes) in &io.own {
            let _ = write!(text, "\nblock {block}: {bytes}");
        }
        text
    }
}

fn label(io: &LowerIo) -> String {
    let mut text = if io.is_mutation() {
        format!("<b>{}</b> {}", escape(&io.name), io.op)
    } else {
        io.op.to_string()
    };
    if io.is_fua {
        text.push_str(" fua");
    }
    if io.op != OpKind::Flush {
        let _ = write!(text, " [{}]", io.range());
    }
    if !io.content.is_empty() {
        let _ = write!(text, " = {}", with_ops(&io.content));
    }
    text
}

/// What is to be said at the end of a box.
fn note(io: &LowerIo) -> String {
    let text = match (io.op, io.fate) {
        (_, Fate::InFlight) => "in flight".to_owned(),
        (_, Fate::Failed) => "FAILED".to_owned(),
        (_, Fate::Lost) if io.ended.is_none() => "in flight, LOST".to_owned(),
        (_, Fate::Survived) if io.ended.is_none() => "in flight, SURVIVES".to_owned(),
        (_, Fate::Lost | Fate::Torn | Fate::Survived) => fate(io.fate).to_owned(),
        (OpKind::Flush, _) if !io.covers.is_empty() => answer(io),
        _ if io.durable == io.ended && io.is_mutation() => "durable".to_owned(),
        _ => return String::new(),
    };
    format!("<span class=\"end\">{}</span>", escape(&text))
}
