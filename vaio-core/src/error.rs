//! [`Error`]: one word wide, for the person on call and for the code above.
//!
//! `kind` says what a caller can do about it, `retry` whether trying again makes sense, the text
//! what happened, where, and what to do. The cause, where there is one, is the `source` and is not
//! repeated in the text.

use std::{error::Error as StdError, fmt, sync::Arc};

use crate::{Extent, OpKind};

/// What went wrong, as far as a caller would act differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is wrong: unaligned, out of range, too large. Nothing was done.
    Invalid,
    /// The disk does not do this operation. Nothing was done.
    Unsupported,
    /// The disk is read-only. Nothing was done.
    ReadOnly,
    /// No space left below.
    NoSpace,
    /// A device failed the IO. A failed write leaves each block old or new.
    Io,
    /// The deadline passed. What was asked may still be in flight and happen later.
    TimedOut,
    /// The disk, filter instance or device is closed, detached or gone.
    Gone,
    /// Another owner took the disk over; this one must stop.
    Fenced,
    /// A filter or the framework declined: the state does not allow it. The text says why.
    Refused,
    /// Something else holds what is needed (a lock, a running verb). Try later.
    Busy,
    /// A filter broke its contract: panicked, hung, or lied. The text names it.
    FilterFault,
    /// Stored data does not verify.
    Corrupt,
    /// A setting, policy or manifest is wrong. Nothing was opened.
    Config,
    /// A defect of vaio itself.
    Internal,
}

impl ErrorKind {
    /// Name in logs and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::ReadOnly => "read_only",
            Self::NoSpace => "no_space",
            Self::Io => "io",
            Self::TimedOut => "timed_out",
            Self::Gone => "gone",
            Self::Fenced => "fenced",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::FilterFault => "filter_fault",
            Self::Corrupt => "corrupt",
            Self::Config => "config",
            Self::Internal => "internal",
        }
    }
}

/// Whether trying again makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum Retry {
    /// The same request fails again.
    Never,
    /// The same request may succeed later.
    Later,
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of an IO, a life-cycle call or a query. Cheap to clone and to move.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    retry: Retry,
    op: Option<OpKind>,
    extent: Option<Extent>,
    disk: Option<Arc<str>>,
    filter: Option<Arc<str>>,
    message: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Makes an error. `message` is lower case, without full stop: what, and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let retry = match kind {
            ErrorKind::TimedOut | ErrorKind::Busy | ErrorKind::NoSpace => Retry::Later,
            _ => Retry::Never,
        };
        Self(Box::new(Inner {
            kind,
            retry,
            op: None,
            extent: None,
            disk: None,
            filter: None,
            message: message.into(),
            source: None,
        }))
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// The operation is not done here. What a filter's wildcard arm returns.
    pub fn unsupported(op: OpKind) -> Self {
        Self::new(ErrorKind::Unsupported, "operation is not supported here").with_op(op)
    }

    /// The state does not allow it.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, message)
    }

    /// A setting or policy is wrong.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// A device failed, with the operating system's error as source. The kind follows the source:
    /// no space, not found or permission, time-out, else [`ErrorKind::Io`].
    pub fn io(message: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let kind = match source.kind() {
            K::StorageFull | K::QuotaExceeded => ErrorKind::NoSpace,
            K::TimedOut => ErrorKind::TimedOut,
            K::Unsupported => ErrorKind::Unsupported,
            K::ReadOnlyFilesystem => ErrorKind::ReadOnly,
            _ => ErrorKind::Io,
        };
        Self::new(kind, message).with_source(source)
    }

    /// Adds the operation.
    #[must_use]
    pub fn with_op(mut self, op: OpKind) -> Self {
        self.0.op = Some(op);
        self
    }

    /// Adds the bytes concerned.
    #[must_use]
    pub fn with_extent(mut self, extent: Extent) -> Self {
        self.0.extent = Some(extent);
        self
    }

    /// Adds the disk, unless one is named already (the innermost knows best).
    #[must_use]
    pub fn with_disk(mut self, disk: impl Into<Arc<str>>) -> Self {
        self.0.disk.get_or_insert_with(|| disk.into());
        self
    }

    /// Adds the filter at fault or at hand, unless one is named already.
    #[must_use]
    pub fn with_filter(mut self, filter: impl Into<Arc<str>>) -> Self {
        self.0.filter.get_or_insert_with(|| filter.into());
        self
    }

    /// Says whether trying again makes sense.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// Adds the cause. It is not part of the text.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(source));
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether trying again makes sense.
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// The operation that failed.
    pub fn op(&self) -> Option<OpKind> {
        self.0.op
    }

    /// The bytes concerned.
    pub fn extent(&self) -> Option<Extent> {
        self.0.extent
    }

    /// The disk concerned.
    pub fn disk(&self) -> Option<&str> {
        self.0.disk.as_deref()
    }

    /// The filter at fault or at hand.
    pub fn filter(&self) -> Option<&str> {
        self.0.filter.as_deref()
    }

    /// The text without the values.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The text, the values and every cause on one line: for a log or a terminal.
    pub fn to_line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(next) = cause {
            line.push_str(": ");
            line.push_str(&next.to_string());
            cause = next.source();
        }
        line
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        let mut separator = ", ";
        let mut value = |name: &str, value: &dyn fmt::Display| {
            let written = write!(f, "{separator}{name}={value}");
            separator = " ";
            written
        };
        if let Some(disk) = &self.0.disk {
            value("disk", disk)?;
        }
        if let Some(filter) = &self.0.filter {
            value("filter", filter)?;
        }
        if let Some(op) = &self.0.op {
            value("op", op)?;
        }
        if let Some(extent) = &self.0.extent {
            value("extent", extent)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({})", self.0.kind, self.to_line())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_one_word_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        assert_eq!(size_of::<Result<()>>(), size_of::<usize>());
    }

    #[test]
    fn text_has_values_at_the_end_and_not_the_source() {
        let error = Error::io("write failed", std::io::Error::other("bad cable"))
            .with_op(OpKind::Write)
            .with_extent(Extent::new(4096, 512))
            .with_disk("vda")
            .with_filter("cache");
        assert_eq!(
            error.to_string(),
            "write failed, disk=vda filter=cache op=write extent=4096+512"
        );
        assert_eq!(error.to_line(), format!("{error}: bad cable"));
    }

    #[test]
    fn innermost_names_win() {
        let error = Error::invalid("x")
            .with_filter("inner")
            .with_filter("outer");
        assert_eq!(error.filter(), Some("inner"));
    }
}
