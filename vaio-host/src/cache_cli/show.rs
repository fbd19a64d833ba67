//! A report on a cache device as text and as JSON. Pure.

use std::fmt::Write as _;

use serde_json::{Value, json};
use vaio_cache::inspect::{Inspection, LogView, RecordView, Verdict};
use vaio_core::Extent;

use crate::show::units::bytes;

/// Lines of segments and of extents that the text shows; JSON has all.
const LINES_MAX: usize = 32;

/// For people. Writing to a string cannot fail.
pub(super) fn to_text(file: &str, is_in_use: bool, report: &Inspection) -> String {
    let mut out = String::new();
    let state = if is_in_use {
        "in use by a running process: what follows may change meanwhile"
    } else {
        "not in use here"
    };
    let _ = writeln!(out, "{file}: {}, {state}", bytes(report.capacity));
    let counts = report.log.as_ref().map(|log| log.generation);
    for (number, place) in report.superblocks.iter().enumerate() {
        let verdict = match &place.verdict {
            Verdict::Empty => "never written".into(),
            Verdict::Valid { generation } if Some(*generation) == counts => {
                format!("valid, generation {generation}, counts")
            }
            Verdict::Valid { generation } => format!("valid, generation {generation}"),
            Verdict::OtherVersion { version } => {
                format!("of format version {version}: use the version of vaio that wrote it")
            }
            _ => "not valid".into(),
        };
        let offset = place.offset;
        let _ = writeln!(out, "superblock {number} at byte {offset}: {verdict}");
    }
    match &report.log {
        None => out.push_str("no log\n"),
        Some(log) => log_text(&mut out, log),
    }
    out
}

fn log_text(out: &mut String, log: &LogView) {
    let _ = writeln!(
        out,
        "identity {:016x}, ownership epoch {}\nlog: {} segments of {}, logical block {}; read store: {} regions of {}\n\
         destaged: everything before seq {}",
        log.identity,
        log.owner,
        log.segment_count,
        bytes(log.sizes.segment_bytes.into()),
        bytes(log.logical_block.into()),
        log.region_count,
        bytes(log.sizes.region_bytes.into()),
        log.destaged_seq,
    );
    for one in &log.epochs {
        let end = one.end_seq.map_or("open".into(), |end| end.to_string());
        let _ = writeln!(
            out,
            "epoch {}: seq {} to {end}, found to {}, {} records",
            one.epoch, one.first_seq, one.found_end_seq, one.records
        );
    }
    for one in log.segments.iter().take(LINES_MAX) {
        let state = match (one.is_dirty, one.is_sealed) {
            (false, _) => "on the backing",
            (true, true) => "dirty, full",
            (true, false) => "dirty, not full",
        };
        let _ = writeln!(
            out,
            "segment {} at byte {}: epoch {}, seq {} to {}, {} records, {state}",
            one.segment, one.offset, one.epoch, one.first_seq, one.end_seq, one.records
        );
    }
    more(out, log.segments.len(), "segments");
    for one in &log.records {
        record_text(out, one);
    }
    let end = log
        .end_offset
        .map_or(String::new(), |at| format!(", byte {at}"));
    let _ = writeln!(
        out,
        "end of the log: seq {}{end}; {} records; durable at least before seq {}",
        log.end_seq, log.record_count, log.durable_seq
    );
    let (size, count) = (bytes(log.dirty_bytes), log.dirty.len());
    let _ = writeln!(out, "dirty: {size} in {count} extents");
    for one in log.dirty.iter().take(LINES_MAX) {
        let _ = writeln!(out, "  {}", extent_text(one));
    }
    more(out, count, "extents");
    if let Some(damage) = &log.damage {
        let _ = writeln!(
            out,
            "DAMAGE: {}; giving it up would lose at most {} bytes",
            damage.text, damage.lost_bytes
        );
    }
}

fn record_text(out: &mut String, one: &RecordView) {
    let _ = writeln!(
        out,
        "record at byte {}: epoch {}, seq {} to {}, durable before {}, cut {}, {}, {}, {}: {}",
        one.offset,
        one.epoch,
        one.seq,
        one.end_seq,
        one.durable_seq,
        one.cut,
        bytes(one.payload_bytes),
        match one.is_payload_valid {
            Some(true) => "verified",
            Some(false) => "DOES NOT VERIFY",
            None => "not verified",
        },
        if one.is_dirty { "dirty" } else { "destaged" },
        one.extents
            .iter()
            .map(extent_text)
            .collect::<Vec<_>>()
            .join(" "),
    );
}

fn more(out: &mut String, count: usize, what: &str) {
    if count > LINES_MAX {
        let _ = writeln!(
            out,
            "  and {} more {what}; --json lists all",
            count - LINES_MAX
        );
    }
}

/// Byte offset and length.
fn extent_text(extent: &Extent) -> String {
    format!("{}+{}", extent.offset(), extent.len())
}

fn extent_json(extent: &Extent) -> Value {
    json!({ "offset": extent.offset(), "length": extent.len() })
}

/// For programs: numbers in bytes, identities in hexadecimal.
pub(super) fn to_json(report: &Inspection) -> Value {
    let superblocks = report.superblocks.iter().map(|place| {
        let (verdict, generation) = match &place.verdict {
            Verdict::Empty => ("empty", None),
            Verdict::Valid { generation } => ("valid", Some(*generation)),
            Verdict::OtherVersion { .. } => ("other_version", None),
            _ => ("invalid", None),
        };
        json!({ "offset": place.offset, "verdict": verdict, "generation": generation })
    });
    json!({
        "capacity": report.capacity,
        "superblocks": superblocks.collect::<Vec<_>>(),
        "log": report.log.as_ref().map(log_json),
    })
}

fn log_json(log: &LogView) -> Value {
    let epochs = log.epochs.iter().map(|one| {
        json!({
            "epoch": one.epoch, "first_seq": one.first_seq, "end_seq": one.end_seq,
            "found_end_seq": one.found_end_seq, "records": one.records,
        })
    });
    let segments = log.segments.iter().map(|one| {
        json!({
            "segment": one.segment, "offset": one.offset, "epoch": one.epoch,
            "first_seq": one.first_seq, "end_seq": one.end_seq, "records": one.records,
            "sealed": one.is_sealed, "dirty": one.is_dirty,
        })
    });
    let records = log.records.iter().map(|one| {
        json!({
            "offset": one.offset, "epoch": one.epoch, "seq": one.seq, "end_seq": one.end_seq,
            "durable_seq": one.durable_seq, "cut": one.cut, "payload_bytes": one.payload_bytes,
            "payload_valid": one.is_payload_valid, "dirty": one.is_dirty,
            "extents": one.extents.iter().map(extent_json).collect::<Vec<_>>(),
        })
    });
    json!({
        "identity": format!("{:016x}", log.identity),
        "owner": log.owner,
        "generation": log.generation,
        "destaged_seq": log.destaged_seq,
        "logical_block": log.logical_block,
        "unit_bytes": log.sizes.unit_bytes,
        "header_bytes": log.sizes.header_bytes,
        "segment_bytes": log.sizes.segment_bytes,
        "footer_bytes": log.sizes.footer_bytes,
        "segment_count": log.segment_count,
        "region_bytes": log.sizes.region_bytes,
        "region_count": log.region_count,
        "epochs": epochs.collect::<Vec<_>>(),
        "segments": segments.collect::<Vec<_>>(),
        "end_seq": log.end_seq,
        "durable_seq": log.durable_seq,
        "end_offset": log.end_offset,
        "record_count": log.record_count,
        "records": records.collect::<Vec<_>>(),
        "bad_payloads": log.bad_payloads,
        "dirty": log.dirty.iter().map(extent_json).collect::<Vec<_>>(),
        "dirty_bytes": log.dirty_bytes,
        "damage": log.damage.as_ref().map(|damage| {
            json!({ "text": damage.text, "lost_bytes": damage.lost_bytes })
        }),
    })
}
