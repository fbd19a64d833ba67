//! The bug zoo: what is known to go wrong in filters, each as a switch in a correct
//! [twin](crate::twins).
//!
//! The kit is trusted because it finds every one of them, and nothing in the twins without them.
//! A row says what is expected *before* it is run: the case that catches it, and how short a
//! workload shows it.

mod bug;
mod deaf;
mod others;
mod row;
mod subject;
mod write_back;

pub use bug::Bug;
pub use deaf::FirstFlushLost;
pub use row::{Need, Row, Twin};

/// Every row, by twin.
pub fn rows() -> Vec<Row> {
    [write_back::ROWS, others::ROWS].concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const CASES: &[&str] = &[
        "basic",
        "order",
        "flush",
        "fua",
        "zero_discard",
        "crash",
        "era2",
        "torn",
        "recovery_crash",
        "faults",
        "fsyncgate",
        "dirty",
        "lifecycle",
        "cancel",
        "bypass",
        "liveness",
        "determinism",
        "ordered",
    ];

    #[test]
    fn rows_are_enough_distinct_and_complete() {
        let rows = rows();
        assert!(rows.len() >= 34, "{}", rows.len());
        assert_eq!(
            rows.iter()
                .map(|row| row.name)
                .collect::<BTreeSet<_>>()
                .len(),
            rows.len()
        );
        assert_eq!(
            rows.iter()
                .map(|row| row.bug)
                .collect::<BTreeSet<_>>()
                .len(),
            rows.len()
        );
        for row in &rows {
            assert!(CASES.contains(&row.expected_case), "{}", row.name);
            assert!(row.smallest > 0 && !row.origin.is_empty(), "{}", row.name);
            assert!(row.twin.can_promise(row.promise), "{}", row.name);
        }
    }

    #[test]
    fn every_row_opens_under_the_name_that_the_twin_says() {
        for row in rows() {
            let registry = row.twin.registry(row.promise, Some(row.bug));
            let descriptor = registry
                .get(row.twin.filter())
                .expect("registered")
                .descriptor();
            descriptor.validate().expect("a valid descriptor");
            assert_eq!(descriptor.promise, Some(row.promise), "{}", row.name);
            let devices = row.twin.devices(4096, 512);
            assert_eq!(
                devices.len(),
                descriptor.needs.devices.len(),
                "{}",
                row.name
            );
        }
    }
}
