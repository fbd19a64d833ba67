//! A recording as one self-contained page: the timeline as a picture, without script and without
//! anything from elsewhere. Pure.
//!
//! The verdict and where the data went come first, then the chapters, each a
//! [`Picture`](super::picture::Picture) and its crash, then the plan.

use std::fmt::Write as _;

use super::{
    cut::last_rows,
    picture::Picture,
    record::{Chapter, Crash, Recording},
    text::{Around, fate, sizes, undecided},
};
use crate::disk::Fate;

const STYLE: &str = include_str!("page.css");
/// Rows of one chapter that are drawn; of a longer one the last.
pub const ROWS_MAX: usize = 1500;
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
    if let Some(plan) = &recording.plan {
        let plan = escape(&plan.to_string());
        let _ = write!(out, "<h2>Plan</h2>\n<pre>{plan}</pre>\n");
    }
    out.push_str("<h2>Replay</h2>\n");
    let _ = writeln!(out, "<pre>{}</pre>\n</body></html>", escape(&around.replay));
    out
}

fn verdict(out: &mut String, recording: &Recording, around: &Around) {
    let _ = writeln!(
        out,
        "<div class=\"verdict\"><h1>{}</h1><div>filter <b>{}</b>, which promises <b>{}</b>; case \
         <code>{}</code>; {}</div><pre>{}</pre></div>",
        escape(&recording.broken.rule),
        escape(recording.filter),
        escape(recording.promise),
        escape(&recording.case),
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
        out.push_str("<div>every acknowledged write below was durable: nothing is lost</div>");
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

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Escaped, and each `#3` in a colour of its own, so that data can be followed by eye.
pub(super) fn with_ops(text: &str) -> String {
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
