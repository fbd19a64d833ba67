//! What a failure prints and leaves behind: the broken promise, a timeline as text and as a page,
//! the plan, the event log, and the command that replays it.
mod chapter;
mod content;
mod html;
mod lanes;
mod lines;
mod record;
mod story;
mod text;

pub use html::html;
pub use record::{Chapter, Crash, LowerIo, Recording, Row, Undecided, What, record};
pub use story::{Place, Told};
pub use text::{Around, LINES_MAX, WIDTH, text};
