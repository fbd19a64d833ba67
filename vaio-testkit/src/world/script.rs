//! [`Script`]: what happens to a [`Pair`], step by step; the tape decides all that a script leaves
//! open. Each is a fail-over that went wrong somewhere once.

use std::{pin::pin, time::Duration};

use futures::future::{Either, select};

use super::{Pair, Site};
use crate::{
    Family, GuestOp, Tape,
    explore::Broken,
    sim::{Schedule, Sim},
    workload::{WorkloadSettings, random_workload},
    zoo::Bug,
};

/// Events within which a step that is cut short ends.
const FATES: u32 = 40;
/// How long a script waits for both sites to have everything.
const SYNC_ROUNDS: u32 = 40;
/// Steps of a random script.
const RANDOM_STEPS: u32 = 14;

/// One step.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The guest does these operations.
    Do(&'static [GuestOp]),
    /// It does them until an event of the tape's choice, and goes on with the next step then.
    Until(&'static [GuestOp]),
    /// It does a few operations of the tape's choice.
    Work,
    /// Events happen, as many as the tape says.
    Fate,
    /// Time passes.
    Wait(Duration),
    /// Time passes until both sites have everything, or that takes too long.
    InSync,
    /// The link on which the site is the source is cut.
    Cut(Site),
    /// What the site sends is held.
    Clog(Site),
    /// Its link works again.
    Heal(Site),
    /// Every connection of it breaks.
    Break(Site),
    /// The site's power fails.
    Kill(Site),
    /// It starts again.
    Start(Site),
    /// It stands still, and counts as dead.
    Pause(Site),
    /// It goes on.
    Resume(Site),
    /// The guest starts there, if it gets the disk.
    Open(Site),
    /// The next write of the site's disk fails.
    FailWrite(Site),
}

use Step::{Break, Clog, Cut, Do, FailWrite, Fate, Heal, InSync, Kill, Open, Pause, Resume, Start};
use Step::{Until, Wait, Work};

/// A named list of steps.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// Name.
    pub name: &'static str,
    /// What happens.
    pub steps: &'static [Step],
}

const A: Site = Site::A;
const B: Site = Site::B;
const FLUSH: GuestOp = GuestOp::Flush;
const W0: GuestOp = write(0);
const W1: GuestOp = write(1);
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
            Until(&[W0, FLUSH, W1, W0]),
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

/// Plays a script on a new pair.
///
/// # Errors
/// A promise was broken.
pub fn play(script: &Script, bug: Option<Bug>, tape: &Tape) -> Result<(), Broken> {
    run(script.steps, bug, tape)
}

/// Plays steps of the tape's own choice.
///
/// # Errors
/// A promise was broken.
pub(super) fn play_random(bug: Option<Bug>, tape: &Tape) -> Result<(), Broken> {
    const MENU: &[Step] = &[
        Do(&[FLUSH]),
        Work,
        Fate,
        InSync,
        Wait(Duration::from_secs(3)),
        Until(&[W0, FLUSH, W1, W0]),
        Cut(A),
        Cut(B),
        Clog(A),
        Heal(A),
        Heal(B),
        Break(A),
        Break(B),
        Kill(A),
        Kill(B),
        Start(A),
        Start(B),
        Pause(A),
        Resume(A),
        Open(A),
        Open(B),
        FailWrite(B),
    ];
    let choose = |_| {
        let len = u32::try_from(MENU.len()).expect("a short menu");
        MENU[tape.choose(len, Family::Op, "world.step") as usize]
    };
    let mut steps = vec![Open(A), InSync, Work];
    steps.extend((0..RANDOM_STEPS).map(choose));
    run(&steps, bug, tape)
}

fn run(steps: &[Step], bug: Option<Bug>, tape: &Tape) -> Result<(), Broken> {
    let sim = Sim::new(tape.clone(), Schedule::Random);
    sim.run(async {
        let mut pair = Pair::new(&sim, bug).await?;
        for step in steps {
            take(&sim, &mut pair, *step).await?;
        }
        finish(&mut pair).await
    })?
}

/// Everything is up again, and the guest reads wherever it gets the disk.
async fn finish(pair: &mut Pair) -> Result<(), Broken> {
    for site in [A, B] {
        pair.resume(site);
    }
    pair.read_twice().await?;
    for site in [A, B] {
        pair.link(site).heal();
        pair.start(site).await?;
    }
    for site in [B, A] {
        pair.open(site).await?;
    }
    pair.read_twice().await
}

async fn take(sim: &Sim, pair: &mut Pair, step: Step) -> Result<(), Broken> {
    sim.note(None, "step", 0, || format!("{step:?}"));
    match step {
        Do(ops) => pair.work(ops).await?,
        Until(ops) => {
            let (work, fate) = (pin!(pair.work(ops)), pin!(fate(sim)));
            if let Either::Left((done, _)) = select(work, fate).await {
                done?;
            }
        }
        Work => {
            let settings = WorkloadSettings {
                extent_max: 2,
                zeroes: false,
                ..WorkloadSettings::new(super::BLOCKS, 5)
            };
            let ops = random_workload(&settings, |n, name| {
                sim.tape().choose(n, Family::Op, &format!("world.{name}"))
            });
            pair.work(&ops).await?;
        }
        Fate => fate(sim).await,
        Wait(time) => sim.sleep(time).await,
        InSync => {
            for _ in 0..SYNC_ROUNDS {
                if pair.is_in_sync() || !pair.is_running() {
                    break;
                }
                sim.sleep(Duration::from_millis(500)).await;
            }
        }
        Cut(site) => pair.link(site).cut(),
        Clog(site) => pair.link(site).clog_from(super::Side::Left),
        Heal(site) => pair.link(site).heal(),
        Break(site) => pair.link(site).break_all(),
        Kill(site) => pair.kill(site),
        Start(site) => pair.start(site).await?,
        Pause(site) => pair.pause(site),
        Resume(site) => pair.resume(site),
        Open(site) => pair.open(site).await?,
        FailWrite(site) => pair.fail_write(site),
    }
    Ok(())
}

async fn fate(sim: &Sim) {
    for _ in 0..sim.tape().choose(FATES, Family::Crash, "fate") {
        sim.event(None, "fate").await;
    }
}
