//! [`Exit`]: the program's exit codes, and the one place that says which error gets which.
//!
//! A [`Failure`] is an error together with what was being done; that and the error's kind decide
//! the code. Every failure is one line on stderr: what, where, what to do.

use std::fmt;

use vaio_core::{Error, ErrorKind};

/// Exit codes of the `vaio` program, as `vaio --help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The operation failed.
    Failed = 1,
    /// Command line, policy file or TLS file is wrong; nothing was done.
    Usage = 2,
    /// The disk cannot be opened.
    Disk = 3,
    /// Something else has the disk, the socket or the address.
    Busy = 4,
    /// A filter, its settings or the stack was refused.
    Filter = 5,
    /// No one answers on the control socket.
    Control = 6,
    /// The time was up; what was asked may go on.
    TimedOut = 7,
}

impl Exit {
    /// Every code.
    pub const ALL: [Self; 8] = [
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::Disk,
        Self::Busy,
        Self::Filter,
        Self::Control,
        Self::TimedOut,
    ];

    /// The number that the process ends with.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What it means, for the help text.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done",
            Self::Failed => "the operation failed (IO, corruption, a snapshot that did not hold)",
            Self::Usage => "command line, policy file or TLS file is wrong",
            Self::Disk => "the disk cannot be opened",
            Self::Busy => "the disk, socket or address is in use",
            Self::Filter => "a filter, its settings or the stack was refused",
            Self::Control => "no one answers on the control socket",
            Self::TimedOut => "the time was up; what was asked may go on",
        }
    }
}

/// What was being done when an error came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Reading the command line or a file it names.
    Usage,
    /// Opening a disk or its place to listen.
    Disk,
    /// Making a stack of filters.
    Filter,
    /// Reaching the control socket.
    Connect,
    /// A verb on a running disk.
    Verb,
    /// Serving and closing.
    Serve,
}

/// An error and the code that the program ends with.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    exit: Exit,
    error: Error,
    place: Option<String>,
}

/// Result with a [`Failure`].
pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// An error met at a stage.
    pub(crate) fn new(stage: Stage, error: Error) -> Self {
        Self {
            exit: exit_of(stage, error.kind(), error.filter().is_some()),
            error,
            place: None,
        }
    }

    /// An error that another program told, with the code it gets.
    pub(crate) const fn told(exit: Exit, error: Error) -> Self {
        Self {
            exit,
            error,
            place: None,
        }
    }

    /// Adds where it happened, as `key=value`, unless the text says it already.
    #[must_use]
    pub(crate) fn with_place(mut self, key: &str, value: &str) -> Self {
        if !self.error.to_line().contains(value) {
            self.place = Some(format!("{key}={value}"));
        }
        self
    }

    /// A mistake on the command line.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(Stage::Usage, Error::config(text))
    }

    /// The code.
    pub(crate) const fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for Failure {
    /// One line, whatever the text holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.error.to_line()))?;
        match &self.place {
            Some(place) => write!(f, ", {}", one_line(place)),
            None => Ok(()),
        }
    }
}

/// `text` without line breaks and other control characters.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => line.push(' '),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

/// Adds the stage to an error.
pub(crate) trait At<T> {
    /// The same with the stage at which an error came.
    fn at(self, stage: Stage) -> Outcome<T>;
}

impl<T> At<T> for vaio_core::Result<T> {
    fn at(self, stage: Stage) -> Outcome<T> {
        self.map_err(|error| Failure::new(stage, error))
    }
}

/// Which code an error gets.
pub(crate) fn exit_of(stage: Stage, kind: ErrorKind, names_a_filter: bool) -> Exit {
    match (stage, kind) {
        (Stage::Usage, _) => Exit::Usage,
        (Stage::Connect, ErrorKind::TimedOut) | (_, ErrorKind::TimedOut) => Exit::TimedOut,
        (Stage::Connect, _) => Exit::Control,
        (_, ErrorKind::Busy | ErrorKind::Fenced) => Exit::Busy,
        (_, ErrorKind::Refused) | (Stage::Filter, _) => Exit::Filter,
        (Stage::Disk, _) if names_a_filter => Exit::Filter,
        (Stage::Disk, _) => Exit::Disk,
        (Stage::Verb, ErrorKind::Config | ErrorKind::FilterFault | ErrorKind::Unsupported) => {
            Exit::Filter
        }
        (Stage::Verb, ErrorKind::Invalid) => Exit::Usage,
        (Stage::Verb | Stage::Serve, _) => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_follows_stage_and_kind() {
        use ErrorKind as K;
        for (stage, kind, names, exit) in [
            (Stage::Usage, K::Config, false, Exit::Usage),
            (Stage::Usage, K::Io, false, Exit::Usage),
            (Stage::Disk, K::Config, false, Exit::Disk),
            (Stage::Disk, K::Io, false, Exit::Disk),
            (Stage::Disk, K::Corrupt, false, Exit::Disk),
            (Stage::Disk, K::Config, true, Exit::Filter),
            (Stage::Disk, K::Refused, false, Exit::Filter),
            (Stage::Disk, K::Busy, false, Exit::Busy),
            (Stage::Disk, K::TimedOut, false, Exit::TimedOut),
            (Stage::Filter, K::Config, false, Exit::Filter),
            (Stage::Connect, K::Io, false, Exit::Control),
            (Stage::Verb, K::Config, false, Exit::Filter),
            (Stage::Verb, K::Refused, false, Exit::Filter),
            (Stage::Verb, K::Invalid, false, Exit::Usage),
            (Stage::Verb, K::Busy, false, Exit::Busy),
            (Stage::Verb, K::TimedOut, false, Exit::TimedOut),
            (Stage::Verb, K::Io, false, Exit::Failed),
            (Stage::Serve, K::Io, true, Exit::Failed),
        ] {
            assert_eq!(exit_of(stage, kind, names), exit, "{stage:?} {kind:?}");
        }
    }

    #[test]
    fn codes_are_the_documented_numbers() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn failure_with_line_breaks_is_one_line() {
        let failure = Failure::usage("a\nb\r\tc\u{1b}[1m");
        assert_eq!(failure.to_string(), "a b  c\\u{1b}[1m");
    }
}
