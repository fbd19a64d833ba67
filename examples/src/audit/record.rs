//! One line of the audit trail. Pure.

use std::sync::Arc;

use serde::Serialize;
use vaio_core::{OpKind, Origin};

/// What one operation did, or tried to do.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// Time of day at its start, in nanoseconds since 1970-01-01 UTC.
    pub wall_ns: u64,
    /// Name of the VM.
    pub vm: Arc<str>,
    /// Name of the disk.
    pub disk: Arc<str>,
    /// Who asked.
    pub origin: Origin,
    /// Number of the IO on this disk while it is open; its parts share it.
    pub id: u64,
    /// What was asked.
    pub op: OpKind,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// `ok`, the kind of the error, or `abandoned` where whoever asked let go before the answer.
    pub result: &'static str,
    /// Time from the call to the answer, in nanoseconds.
    pub latency_ns: u64,
}

/// A place in the trail where lines are missing.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Gap {
    /// Lines that were dropped here.
    pub dropped: u64,
}

/// One line of JSON with its line end.
pub(super) fn line(value: &impl Serialize) -> String {
    let mut line = serde_json::to_string(value).expect("numbers and names have a JSON form");
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_one_line_of_json() {
        let record = Record {
            wall_ns: 7,
            vm: Arc::from("vm\n1"),
            disk: Arc::from("vda"),
            origin: Origin::Guest,
            id: 3,
            op: OpKind::WriteZeroes,
            offset: 4096,
            len: 512,
            result: "ok",
            latency_ns: 9,
        };
        assert_eq!(
            line(&record),
            "{\"wall_ns\":7,\"vm\":\"vm\\n1\",\"disk\":\"vda\",\"origin\":\"guest\",\"id\":3,\
             \"op\":\"write_zeroes\",\"offset\":4096,\"len\":512,\"result\":\"ok\",\
             \"latency_ns\":9}\n"
        );
        assert_eq!(line(&Gap { dropped: 2 }), "{\"dropped\":2}\n");
    }
}
