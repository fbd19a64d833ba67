//! What can be asked on the control socket. Pure: from a line to a [`Request`].

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vaio_core::{DirtyDisposition, Error, FilterSpec, Level, Result};

use super::PROTOCOL_VERSION;

/// A line that was understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    /// Given back with every answer.
    pub(super) id: Value,
    /// The disk; `None`: all, or the only one.
    pub(super) disk: Option<String>,
    pub(super) request: Request,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Disks, filters and the process as they are.
    Status {},
    /// Counters and latencies.
    Stats {},
    /// The kept events, and new ones where `follow` is set.
    Events {
        #[serde(default)]
        follow: bool,
    },
    /// What the program knows.
    Filters {},
    /// The stack as configured.
    Stack {},
    Attach {
        filter: FilterText,
    },
    Detach {
        filter: String,
        #[serde(default)]
        dirty: DirtyText,
    },
    Replace {
        filter: FilterText,
        #[serde(default)]
        instead_of: Option<String>,
    },
    Flush {
        #[serde(default)]
        to: LevelText,
        #[serde(default = "timeout_ms")]
        timeout_ms: u64,
    },
    Dirty {
        #[serde(default)]
        to: LevelText,
        /// Tell the extents, too, from byte `from` on.
        #[serde(default)]
        extents: bool,
        #[serde(default)]
        from: u64,
    },
    /// Holds the backing until `release` on the same connection.
    Hold {
        #[serde(default = "snapshot")]
        name: String,
        #[serde(default = "timeout_ms")]
        timeout_ms: u64,
        /// Make the guest wait, though a cache could take its writes.
        #[serde(default)]
        quiesce: bool,
    },
    Release {},
    Resize {
        bytes: u64,
    },
    /// Prometheus text.
    Metrics {},
}

fn timeout_ms() -> u64 {
    30_000
}

fn snapshot() -> String {
    "snapshot".into()
}

/// A filter with its settings as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FilterText {
    name: String,
    #[serde(default)]
    settings: BTreeMap<String, String>,
}

impl From<FilterText> for FilterSpec {
    fn from(text: FilterText) -> Self {
        let mut spec = Self::new(text.name);
        spec.settings = text.settings;
        spec
    }
}

impl From<FilterSpec> for FilterText {
    fn from(spec: FilterSpec) -> Self {
        Self {
            name: spec.name,
            settings: spec.settings,
        }
    }
}

/// A level by its name in commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LevelText {
    Cache,
    #[default]
    Backing,
    Replica,
}

impl From<LevelText> for Level {
    fn from(text: LevelText) -> Self {
        match text {
            LevelText::Cache => Self::CacheDurable,
            LevelText::Backing => Self::BackingDurable,
            LevelText::Replica => Self::ReplicaDurable,
        }
    }
}

impl From<Level> for LevelText {
    fn from(level: Level) -> Self {
        match level {
            Level::Drained | Level::CacheDurable => Self::Cache,
            Level::BackingDurable => Self::Backing,
            Level::ReplicaDurable => Self::Replica,
        }
    }
}

/// What becomes of dirty data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DirtyText {
    #[default]
    Refuse,
    Flush,
    /// Thrown away, if it is at most so many bytes.
    Discard(u64),
}

impl From<DirtyText> for DirtyDisposition {
    fn from(text: DirtyText) -> Self {
        match text {
            DirtyText::Refuse => Self::Refuse,
            DirtyText::Flush => Self::Flush,
            DirtyText::Discard(bytes_max) => Self::Discard { bytes_max },
        }
    }
}

impl From<DirtyDisposition> for DirtyText {
    fn from(disposition: DirtyDisposition) -> Self {
        match disposition {
            DirtyDisposition::Refuse => Self::Refuse,
            DirtyDisposition::Flush => Self::Flush,
            DirtyDisposition::Discard { bytes_max } => Self::Discard(bytes_max),
        }
    }
}

/// Longest wait that a request may ask for.
const TIMEOUT_MAX: Duration = Duration::from_hours(24);

/// A request's time-out, limited.
pub(super) fn timeout(ms: u64) -> Duration {
    Duration::from_millis(ms).min(TIMEOUT_MAX)
}

/// Reads a line. `Err` holds the id, as far as it was understood.
pub(super) fn parse(line: &[u8]) -> Result<Envelope, (Value, Error)> {
    let bad = |id: &Value, what: String| (id.clone(), Error::invalid(what));
    let value: Value = serde_json::from_slice(line).map_err(|error| {
        bad(
            &Value::Null,
            format!("a request is one line of JSON: {error}"),
        )
    })?;
    let Value::Object(mut fields) = value else {
        return Err(bad(&Value::Null, "a request is a JSON object".into()));
    };
    let id = fields.remove("id").unwrap_or(Value::Null);
    if id.is_array() || id.is_object() {
        return Err(bad(&Value::Null, "an id is a number or text".into()));
    }
    match fields.remove("v").as_ref().map(Value::as_u64) {
        Some(Some(PROTOCOL_VERSION)) => {}
        _ => {
            return Err(bad(
                &id,
                format!("this program speaks version {PROTOCOL_VERSION}: set \"v\" to it"),
            ));
        }
    }
    let disk = match fields.remove("disk") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => Some(name),
        Some(_) => return Err(bad(&id, "a disk is given by its name".into())),
    };
    let request = serde_json::from_value(Value::Object(fields))
        .map_err(|error| bad(&id, format!("cannot understand the request: {error}")))?;
    Ok(Envelope { id, disk, request })
}

/// Writes a request as a line, for the client.
pub(crate) fn encode(disk: Option<&str>, request: &Request) -> String {
    let mut fields = match serde_json::to_value(request) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    fields.insert("v".into(), PROTOCOL_VERSION.into());
    fields.insert("id".into(), 1.into());
    if let Some(disk) = disk {
        fields.insert("disk".into(), disk.into());
    }
    let mut line = Value::Object(fields).to_string();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(line: &str) -> Request {
        parse(line.as_bytes())
            .unwrap_or_else(|(_, error)| panic!("{line}: {error}"))
            .request
    }

    #[test]
    fn documented_requests_parse() {
        assert_eq!(request(r#"{"v":1,"do":"status"}"#), Request::Status {});
        assert_eq!(
            request(r#"{"v":1,"do":"events"}"#),
            Request::Events { follow: false }
        );
        assert_eq!(
            request(r#"{"v":1,"do":"flush","to":"cache","timeout_ms":5}"#),
            Request::Flush {
                to: LevelText::Cache,
                timeout_ms: 5
            }
        );
        assert_eq!(
            request(r#"{"v":1,"do":"detach","filter":"x","dirty":{"discard":4096}}"#),
            Request::Detach {
                filter: "x".into(),
                dirty: DirtyText::Discard(4096)
            }
        );
        let Request::Attach { filter } =
            request(r#"{"v":1,"do":"attach","filter":{"name":"a","settings":{"k":"v"}}}"#)
        else {
            panic!("attach");
        };
        assert_eq!(
            FilterSpec::from(filter),
            FilterSpec::new("a").with("k", "v")
        );
    }

    #[test]
    fn bad_lines_are_refused_with_their_id() {
        for (line, id, words) in [
            ("", Value::Null, "JSON"),
            ("[]", Value::Null, "object"),
            (r#"{"do":"status"}"#, Value::Null, "version 1"),
            (r#"{"v":2,"id":7,"do":"status"}"#, 7.into(), "version 1"),
            (r#"{"v":1,"id":"x","do":"burn"}"#, "x".into(), "burn"),
            (r#"{"v":1,"id":7,"do":"status","hue":1}"#, 7.into(), "hue"),
            (r#"{"v":1,"id":7,"do":"resize"}"#, 7.into(), "bytes"),
            (r#"{"v":1,"id":7,"do":"resize","bytes":-1}"#, 7.into(), "-1"),
            (r#"{"v":1,"id":7,"disk":3,"do":"status"}"#, 7.into(), "name"),
            (r#"{"v":1,"id":[1],"do":"status"}"#, Value::Null, "id"),
        ] {
            let (got, error) = parse(line.as_bytes()).expect_err(line);
            assert_eq!(got, id, "{line}");
            assert!(error.to_line().contains(words), "{line}: {error}");
        }
    }

    #[test]
    fn encoded_request_parses_to_itself() {
        for request in [
            Request::Status {},
            Request::Events { follow: true },
            Request::Detach {
                filter: "x".into(),
                dirty: DirtyText::Discard(9),
            },
            Request::Hold {
                name: "n".into(),
                timeout_ms: 7,
                quiesce: true,
            },
            Request::Replace {
                filter: FilterSpec::new("a").with("k", "v").into(),
                instead_of: None,
            },
        ] {
            let line = encode(Some("d"), &request);
            let envelope = parse(line.trim_end().as_bytes()).unwrap();
            assert_eq!(
                (envelope.disk.as_deref(), envelope.request),
                (Some("d"), request)
            );
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
        }

        #[test]
        fn json_like_garbage_never_panics(line in r#"\{"v":1,("[a-z]{1,6}":[\[\]{}0-9a-z",:]{0,10},?){0,4}\}"#) {
            let _ = parse(line.as_bytes());
        }
    }
}
