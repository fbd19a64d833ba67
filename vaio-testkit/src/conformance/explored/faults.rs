//! The explored cases in which something fails below: while the guest works, while a disk opens,
//! while a crash is recovered. A table.

use std::time::Duration;

use vaio_core::OpKind;

use super::{Explored, F, I, PLAIN, When, fua, large, r, small, w};
use crate::{
    disk::{Fault, Rule, Tier},
    explore::On,
};

pub(super) fn find(group: &str, case: &str) -> Option<Explored> {
    let work = small(&[w(0, 1), F, I, r(0, 2), w(0, 2)], 3, 60).crashing(&[Tier::None, Tier::All]);
    let once = Rule::once(Fault::Error);
    // All of them: write, a flush that fails, one that does not.
    let gate = small(&[w(0, 1), F, I], 4, 240)
        .depths(&[1], 1)
        .crashing(&[Tier::None, Tier::All]);
    let recovery = |kind| {
        let ops = small(&[w(0, 1), F, I, w(0, 2)], 2, 60).crashing(&[Tier::None, Tier::All]);
        ops.rule(On::All, once.on(kind)).when(When::Recovery)
    };
    let open = |kind| {
        let ops = small(&[fua(0, 1), w(1, 1), F, I], 2, 60).crashing(&[Tier::None, Tier::All]);
        ops.rule(On::All, once.on(kind)).when(When::Open)
    };
    Some(match (group, case) {
        ("faults", "backing_read") => work.rule(On::Backing, once.on(OpKind::Read)),
        ("faults", "backing_write") => work.rule(On::Backing, once.on(OpKind::Write)),
        ("faults", "backing_gone") => work.rule(On::Backing, Rule::always(Fault::Gone)),
        ("faults", "backing_stalls") => {
            let stall = Fault::Stall(Duration::from_secs(1));
            work.rule(On::Backing, Rule::once(stall))
        }
        ("faults", "beside_read") => work.rule(On::Beside, once.on(OpKind::Read)),
        ("faults", "beside_write") => work.rule(On::Beside, once.on(OpKind::Write)),
        ("faults", "beside_gone") => work.rule(On::Beside, Rule::always(Fault::Gone)),
        ("faults", "no_space") => work.rule(On::All, Rule::once(Fault::NoSpace)),
        ("faults", "latent") => large(60, 3).any_fault(On::All, &[Fault::Latent]),
        ("faults", "any") => large(120, 3).any_fault(On::All, &[Fault::Error, Fault::NoSpace]),
        ("faults", "recovery_read") => recovery(OpKind::Read),
        ("faults", "recovery_write") => recovery(OpKind::Write),
        ("faults", "recovery_flush") => recovery(OpKind::Flush),
        ("faults", "reread") => small(&[w(0, 1), w(0, 2), F, I], 2, 40)
            .depths(&[1], 1)
            .crashing(&[Tier::All, Tier::DropOne, Tier::KeepOne])
            .rule(On::Backing, once.on(OpKind::Read))
            .when(When::Reread),
        ("faults", "open_read") => open(OpKind::Read),
        ("faults", "open_write") => open(OpKind::Write),
        ("faults", "open_flush") => open(OpKind::Flush),
        ("faults", "open_any") => large(60, 3)
            .any_fault(On::All, &[Fault::Error])
            .when(When::Open),
        // The log's end is not moved, and its slots are used again.
        ("faults", "beside_wraps") => small(&[fua(0, 1), I, w(1, 3)], 5, 120)
            .depths(&[1], 1)
            .crashing(PLAIN)
            .one_era()
            .rule(On::Beside, once.on(OpKind::Write)),
        ("fsyncgate", "then_write") => small(&[w(0, 1), F], 4, 30)
            .depths(&[1], 1)
            .crashing(&[Tier::None])
            .one_era()
            .rule(On::Beside, once.on(OpKind::Flush))
            .rule(On::Beside, once.on(OpKind::Write)),
        ("fsyncgate", "backing") => gate.rule(On::Backing, once.on(OpKind::Flush)),
        ("fsyncgate", "beside") => gate.rule(On::Beside, once.on(OpKind::Flush)),
        _ => return None,
    })
}
