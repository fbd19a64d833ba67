//! A recording as one self-contained page: the timeline as a picture, without script and without
//! anything from elsewhere. Pure.
//!
//! Each chapter is a grid: a row for each line, a column for each lane. IO is a box from submission
//! to answer; beside it hangs a tail while a crash could still take it, which ends at the flush
//! that made it durable, or at the crash.

use std::fmt::Write as _;

use super::{
    cut::last_rows,
    lanes::Packed,
    lines::lines,
    record::{Chapter, Crash, LowerIo, Recording, What},
    text::{Around, answer, fate, sizes, time, undecided},
};
use crate::disk::Fate;
use vaio_core::OpKind;

const STYLE: &str = include_str!("page.css");
/// Rows of one chapter that are drawn; of a longer one the last.
pub const ROWS_MAX: usize = 1500;
/// Width of a tail's column.
const TAIL: usize = 16;
/// Tails beside each other; what is more shares the last column.
const TAILS_MAX: usize = 6;
const GUEST: usize = 210;
const FILTER: usize = 175;
/// Width that the lower devices share.
const LOWER: usize = 770;
const LOWER_MIN: usize = 260;

/// The page.
pub fn html(recording: &Recording, around: &Around) -> String {
    let mut out = String::new();
    let title = format!("{}: {}", recording.filter, recording.broken.rule);
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width\"/><title>{}</title>\
         <style>{STYLE}</style></head><body>\n",
        escape(&title)
    );
    verdict(&mut out, recording, around);
    story(&mut out, recording);
    legend(&mut out, recording);
    for whole in &recording.chapters {
        let short = (whole.rows.len() > ROWS_MAX).then(|| last_rows(whole, ROWS_MAX));
        let chapter = short.as_ref().unwrap_or(whole);
        let _ = write!(
            out,
            "<h2>{}</h2>\n<div class=\"wrap\">",
            escape(&chapter.title)
        );
        Picture::new(recording, chapter).draw(&mut out);
        out.push_str("</div>\n");
        if let Some(crash) = &chapter.crash {
            self::crash(&mut out, recording, chapter, crash);
        }
    }
    let plan = escape(&recording.plan.to_string());
    let _ = write!(out, "<h2>Plan</h2>\n<pre>{plan}</pre>\n<h2>Replay</h2>\n");
    let _ = writeln!(out, "<pre>{}</pre>\n</body></html>", escape(&around.replay));
    out
}

fn verdict(out: &mut String, recording: &Recording, around: &Around) {
    let _ = write!(
        out,
        "<div class=\"verdict\"><h1>{}</h1><div>filter <b>{}</b>, which promises <b>{}</b>; case \
         <code>{}</code>; {}</div><pre>{}</pre></div>\n",
        escape(&recording.broken.rule),
        escape(recording.filter),
        escape(recording.promise),
        escape(&recording.plan.case),
        escape(&sizes(recording, around)),
        with_ops(&recording.broken.what)
    );
}

fn story(out: &mut String, recording: &Recording) {
    let (Some(block), false) = (recording.broken.block, recording.story.is_empty()) else {
        return;
    };
    let _ = write!(
        out,
        "<h2>Where the data of block {block} went</h2>\n<table class=\"story\">"
    );
    for told in &recording.story {
        let places: Vec<_> = (told.places.iter())
            .map(|place| {
                let disk = place.disk.map(|disk| escape(&recording.disks[disk]));
                let disk = disk.map_or(String::new(), |disk| format!("<b>{disk}</b> "));
                format!("<div>{disk}{}</div>", with_ops(&place.text))
            })
            .collect();
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td></tr>",
            with_ops(&told.op),
            places.concat()
        );
    }
    out.push_str("</table>\n");
}

fn legend(out: &mut String, recording: &Recording) {
    out.push_str("<h2>What happened</h2>\n<div class=\"legend\">");
    if let Some(block) = recording.broken.block {
        let _ = write!(
            out,
            "<span><span class=\"box matters\">ring</span> concerns block {block}</span>"
        );
    }
    out.push_str(
        "<span><span class=\"box write\">box</span> from submission to answer</span>\
         <span><b style=\"color:var(--wait)\">┊</b> answered, a crash can still take it</span>\
         <span><b style=\"color:var(--good)\">✓</b> durable, by that flush or fua; or survived the crash</span>\
         <span><b style=\"color:var(--bad)\">✗</b> <span class=\"box lost\"><span class=\"what\">lost</span></span> in the crash</span>\
         <span><b class=\"op\" style=\"--h:137\">#1</b> data of guest op #1, <b>@0</b> for block 0</span>\
         <span>meta: the filter's own bytes, (w3): as w3 wrote them</span>\
         <span>w3': in the world after the crash</span>\
         <span>t: the guest's clock</span></div>\n",
    );
}

fn crash(out: &mut String, recording: &Recording, chapter: &Chapter, crash: &Crash) {
    let _ = write!(
        out,
        "<div class=\"crash\"><b class=\"boom\">⚡ CRASH: {}</b>",
        escape(&crash.title)
    );
    if crash.undecided.is_empty() {
        out.push_str("<div>every write below was durable: nothing is lost</div>");
    }
    for (number, disk) in recording.disks.iter().enumerate() {
        let mut ones = crash
            .undecided
            .iter()
            .filter(|one| one.disk == number)
            .peekable();
        if ones.peek().is_none() {
            continue;
        }
        let _ = write!(out, "<div class=\"chips\"><b>{}</b>", escape(disk));
        for one in ones {
            let io = &chapter.ios[one.io];
            let what = format!("{} [{}] {}", io.name, io.range(), with_ops(&io.content));
            let (class, what) = match one.fate {
                Fate::Lost => ("chip gone", format!("<s>{what}</s>")),
                Fate::Torn => ("chip gone", what),
                _ => ("chip", what),
            };
            let _ = write!(
                out,
                "<span class=\"{class}\"><b>{}</b> {what} <span class=\"dim\">{}</span></span>",
                fate(one.fate),
                with_ops(&undecided(one, io))
            );
        }
        out.push_str("</div>");
    }
    out.push_str("</div>\n");
}

/// One chapter's grid.
struct Picture<'a> {
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
    fn new(recording: &'a Recording, chapter: &'a Chapter) -> Self {
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

    fn answer_of(&self, asked: crate::oracle::OpId) -> Option<(usize, &str, bool)> {
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

    fn draw(&self, out: &mut String) {
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
                (Some(_), _) => ("tail", "✓"),
                (None, Fate::Lost | Fate::Torn) => ("tail gone", "✗"),
                (None, Fate::Survived) => ("tail", "✓"),
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
            let _ = write!(text, "\n{}", super::story::state(io));
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

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Escaped, and each `#3` in a colour of its own, so that data can be followed by eye.
fn with_ops(text: &str) -> String {
    let escaped = escape(text);
    let mut parts = escaped.split('#');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = part.split_at(digits);
        match number.parse::<u64>() {
            Ok(op) => {
                let hue = op.wrapping_mul(137) % 360;
                let _ = write!(
                    out,
                    "<b class=\"op\" style=\"--h:{hue}\">#{number}</b>{rest}"
                );
            }
            Err(_) => {
                let _ = write!(out, "#{part}");
            }
        }
    }
    out
}
