//! The end of a chapter that is too long to draw. Pure.

use super::record::{Chapter, Crash, What};

/// The last `rows` of a chapter; IO that reaches into them begins with them.
pub(super) fn last_rows(chapter: &Chapter, rows: usize) -> Chapter {
    let cut = chapter.rows.len().saturating_sub(rows);
    let mut ios = Vec::new();
    let places: Vec<Option<usize>> = chapter
        .ios
        .iter()
        .map(|io| {
            // What ended before and was durable before has no part in what is drawn.
            let last = io.durable.or(io.ended);
            let is_open = io.ended.is_none() || (io.is_mutation() && io.durable.is_none());
            if !is_open && last.is_some_and(|row| row < cut) {
                return None;
            }
            let mut io = io.clone();
            io.submitted = io.submitted.saturating_sub(cut);
            io.ended = io.ended.map(|row| row.saturating_sub(cut));
            io.durable = io.durable.map(|row| row.saturating_sub(cut));
            ios.push(io);
            Some(ios.len() - 1)
        })
        .collect();
    let place = |io: usize| places.get(io).copied().flatten();
    let rows = chapter.rows[cut..].iter().filter_map(|row| {
        let mut row = row.clone();
        match &mut row.what {
            What::Submit(io) | What::Done(io) => *io = place(*io)?,
            _ => {}
        }
        Some(row)
    });
    let crash = chapter.crash.as_ref().map(|crash| Crash {
        title: crash.title.clone(),
        undecided: (crash.undecided.iter())
            .filter_map(|one| {
                let io = place(one.io)?;
                Some(super::Undecided { io, ..one.clone() })
            })
            .collect(),
    });
    Chapter {
        title: format!("{}; its last rows of {}", chapter.title, chapter.rows.len()),
        rows: rows.collect(),
        ios,
        crash,
    }
}
