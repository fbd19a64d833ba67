//! [`SCRIPTS`]: each is a fail-over that went wrong somewhere once.

use std::time::Duration;

use super::Site;
use super::script::{
    Script, Step,
    Step::{
        Break, Clog, Cut, Do, Expire, FailWrite, Fate, Heal, InSync, Kill, Open, Pause, Resume,
        Start, Until, Wait, Work,
    },
};
use crate::GuestOp;

const A: Site = Site::A;
const B: Site = Site::B;
pub(super) const FLUSH: GuestOp = GuestOp::Flush;
pub(super) const W0: GuestOp = write(0);
pub(super) const W1: GuestOp = write(1);
const W2: GuestOp = write(2);

const fn write(block: u64) -> GuestOp {
    GuestOp::Write {
        block,
        count: 1,
        fua: false,
    }
}

const fn script(name: &'static str, steps: &'static [Step]) -> Script {
    Script { name, steps }
}

/// Every script. After the last step the guest reads everything, wherever it gets the disk.
pub const SCRIPTS: &[Script] = &[
    script("work", &[Open(A), InSync, Work, Work]),
    script(
        "failover",
        &[Open(A), InSync, Work, Do(&[FLUSH]), Kill(A), Open(B)],
    ),
    script(
        "failover-at-work",
        &[
            Open(A),
            InSync,
            Until(&[W0, FLUSH, W0, W1, FLUSH, W0]),
            Kill(A),
            Open(B),
            Work,
        ],
    ),
    script(
        "target-loses-power",
        &[
            Open(A),
            InSync,
            Do(&[W0, W1, FLUSH]),
            Kill(B),
            Kill(A),
            Start(B),
            Open(B),
        ],
    ),
    script(
        "target-loses-power-unseen",
        &[
            Open(A),
            InSync,
            Do(&[W0, W1]),
            Fate,
            Kill(B),
            Start(B),
            Do(&[FLUSH]),
            Kill(A),
            Open(B),
        ],
    ),
    script(
        "link-cut",
        &[Open(A), InSync, Cut(A), Do(&[W0, FLUSH]), Kill(A), Open(B)],
    ),
    script(
        "failover-in-resync",
        &[
            Open(A),
            InSync,
            Cut(A),
            Do(&[W0, W1, W2, FLUSH]),
            Break(A),
            Heal(A),
            Wait(Duration::from_millis(200)),
            Fate,
            Kill(A),
            Open(B),
        ],
    ),
    script(
        "write-in-resync",
        &[
            Open(A),
            InSync,
            Do(&[W0, W1, FLUSH]),
            Break(A),
            Wait(Duration::from_millis(100)),
            Until(&[W0, W1, W2, W0, W1, W2]),
            Do(&[FLUSH]),
            InSync,
            Kill(A),
            Open(B),
        ],
    ),
    script(
        "connection-breaks",
        &[
            Open(A),
            InSync,
            Until(&[W0, W1, FLUSH, W1, W0, FLUSH, W1]),
            Break(A),
            Do(&[FLUSH]),
            Kill(A),
            Open(B),
        ],
    ),
    script(
        "old-connection",
        &[
            Open(A),
            InSync,
            Until(&[W0, W1, W0, W1]),
            Break(A),
            Do(&[W0, W1]),
            Wait(Duration::from_secs(1)),
            Do(&[FLUSH]),
            Kill(A),
            Open(B),
        ],
    ),
    script(
        "target-refuses-write",
        &[
            Open(A),
            InSync,
            FailWrite(B),
            Do(&[W0, W1, FLUSH]),
            Kill(A),
            Open(B),
        ],
    ),
    script(
        "old-owner-held-up",
        &[
            Open(A),
            InSync,
            Do(&[W0, FLUSH]),
            Clog(A),
            Until(&[W0, W1]),
            Pause(A),
            Expire,
            Open(B),
            Do(&[W0, W1]),
            Heal(A),
            Do(&[FLUSH]),
        ],
    ),
    script(
        "old-owner-returns",
        &[
            Open(A),
            InSync,
            Do(&[W0, FLUSH]),
            Clog(A),
            Until(&[W0, W1]),
            Pause(A),
            Expire,
            Open(B),
            Do(&[W0, W1, FLUSH]),
            Kill(B),
            Start(B),
            Break(A),
            Heal(A),
            Resume(A),
            Wait(Duration::from_secs(1)),
            Open(B),
        ],
    ),
    script(
        "old-home-returns",
        &[
            Open(A),
            InSync,
            Do(&[W0, FLUSH]),
            Kill(A),
            Open(B),
            Do(&[W0, W1, FLUSH]),
            Kill(B),
            Start(A),
            Open(A),
        ],
    ),
    script(
        "failback",
        &[
            Open(A),
            InSync,
            Work,
            Kill(A),
            Open(B),
            Work,
            Start(A),
            InSync,
            Work,
            Do(&[FLUSH]),
            Kill(B),
            Open(A),
            Work,
        ],
    ),
    script(
        "source-restarts",
        &[
            Open(A),
            InSync,
            Until(&[W0, W1, FLUSH, W0, W1]),
            Kill(A),
            Start(A),
            Open(A),
            Fate,
            Kill(A),
            Open(B),
        ],
    ),
    script(
        "double-failover",
        &[
            Open(A),
            InSync,
            Work,
            Kill(A),
            Open(B),
            Work,
            Start(A),
            Fate,
            Kill(B),
            Open(A),
            Start(B),
            Open(B),
        ],
    ),
    script(
        "partition-anywhere",
        &[Open(A), Fate, Cut(A), Work, Do(&[FLUSH]), Kill(A), Open(B)],
    ),
    script(
        "one-way-anywhere",
        &[
            Open(A),
            InSync,
            Until(&[W0, FLUSH, W1, FLUSH]),
            Clog(A),
            Do(&[W0, FLUSH]),
            Kill(A),
            Open(B),
        ],
    ),
];
