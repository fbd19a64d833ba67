//! Rows of a chapter as lines of a picture: what is answered at once takes one line. Pure.

use super::record::{Chapter, Row, What};

/// One line: a row, and for IO below that is answered by the very next row, that one too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub(super) row: &'a Row,
    /// The IO below was answered on the same line.
    pub(super) is_whole: bool,
}

/// The lines of a chapter, and for each row the index of its line.
pub(super) fn lines(chapter: &Chapter) -> (Vec<Line<'_>>, Vec<usize>) {
    let mut lines = Vec::new();
    let mut of_row = Vec::with_capacity(chapter.rows.len());
    let mut rows = chapter.rows.iter().peekable();
    while let Some(row) = rows.next() {
        of_row.push(lines.len());
        let is_whole = matches!(
            (&row.what, rows.peek().map(|next| &next.what)),
            (What::Submit(began), Some(What::Done(ended))) if began == ended
        );
        if is_whole {
            rows.next();
            of_row.push(lines.len());
        }
        lines.push(Line { row, is_whole });
    }
    (lines, of_row)
}
