//! Where the data of one block went: for each write of the guest, what each lower device ever had
//! of it, and whether it was durable. Mostly this alone explains a lost write. Pure.

use vaio_core::OpKind;

use super::record::{Chapter, LowerIo, touches};
use crate::{
    GuestOp,
    disk::Fate,
    oracle::{Ended, History, OpId},
};

/// What became of one write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The operation and how it ended.
    pub op: String,
    /// Each lower write that carried it, in order.
    pub places: Vec<Place>,
}

/// A place where data was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the disk; `None` where the text is about no disk.
    pub disk: Option<usize>,
    /// What was written there, and what became of it.
    pub text: String,
}

/// The story of `block`; empty if there is none.
pub(super) fn tell(history: &History, chapters: &[Chapter], block: Option<u64>) -> Vec<Told> {
    let Some(number) = block else {
        return Vec::new();
    };
    history
        .ops()
        .filter(|(_, record)| touches(&record.op, block))
        .filter(|(_, record)| !matches!(record.op, GuestOp::Read { .. }))
        .map(|(id, record)| {
            let ended = match record.ended {
                Ended::NotYet => "not answered".to_owned(),
                Ended::Ok(_) => format!("acked at t={}", record.end),
                Ended::Err => format!("failed at t={}", record.end),
                Ended::Crash => "not answered before the crash".to_owned(),
            };
            let places = match record.op {
                GuestOp::Write { .. } => places(chapters, id, number),
                _ => vec![nowhere("zeroes carry no stamp: see the timeline")],
            };
            Told {
                op: format!("{id} {}: {ended}", record.op),
                places,
            }
        })
        .collect()
}

fn places(chapters: &[Chapter], id: OpId, block: u64) -> Vec<Place> {
    let carries = |io: &LowerIo| {
        let mut stamps = io.stamps.iter();
        io.is_mutation() && stamps.any(|stamp| stamp.op == id.0 && stamp.block == block)
    };
    let mut found = Vec::new();
    for (number, chapter) in chapters.iter().enumerate() {
        for io in chapter.ios.iter().filter(|io| carries(io)) {
            let later = &chapters[number + 1..];
            let read = read_back(later, io, id, block);
            found.push(Place {
                disk: Some(io.disk),
                text: format!("{} [{}] {}{read}", io.name, io.range(), state(io)),
            });
        }
    }
    if found.is_empty() {
        found.push(nowhere("never written to any lower device"));
    } else if !found.iter().any(|place| place.disk == Some(0)) {
        found.push(Place {
            disk: Some(0),
            text: "never written".to_owned(),
        });
    }
    found
}

/// Whether what is beside the backing was ever looked at again: what recovery did not read, it
/// cannot have used.
fn read_back(later: &[Chapter], io: &LowerIo, id: OpId, block: u64) -> &'static str {
    if later.is_empty() || io.disk == 0 || matches!(io.fate, Fate::Lost | Fate::Torn) {
        return "";
    }
    let returns = |read: &LowerIo| {
        let mut stamps = read.stamps.iter();
        read.op == OpKind::Read
            && read.disk == io.disk
            && stamps.any(|stamp| stamp.op == id.0 && stamp.block == block)
    };
    let is_read = later.iter().flat_map(|chapter| &chapter.ios).any(returns);
    if is_read {
        ", read again after the crash"
    } else {
        ", never read again"
    }
}

fn nowhere(text: &str) -> Place {
    Place {
        disk: None,
        text: text.to_owned(),
    }
}

/// What became of a lower write, in words.
pub(super) fn state(io: &LowerIo) -> &'static str {
    match (io.fate, io.durable) {
        (Fate::Failed, _) => "FAILED: none, some or all of it may be there",
        (_, Some(_)) => "durable",
        (Fate::InFlight, _) => "in flight at the end",
        (Fate::Acked, _) => "acked below, not durable",
        (Fate::Survived, _) => "not durable, survived the crash",
        (Fate::Torn, _) => "not durable, torn by the crash",
        (Fate::Lost, _) => "not durable, lost in the crash",
    }
}
