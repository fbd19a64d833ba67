//! [`Script`]: what happens to a [`Pair`], step by step; the tape decides all that a script leaves
//! open. Each is a fail-over that went wrong somewhere once.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::future::{Either, select};

use super::{
    Link, Pair, Site,
    scripts::{FLUSH, W0, W1},
};
use crate::{
    Family, GuestOp, Tape,
    explore::Broken,
    sim::{Schedule, Sim},
    workload::{WorkloadSettings, random_workload},
    zoo::Bug,
};

/// Guest IOs at once where a step does several.
const DEPTH: usize = 4;
/// Events within which a step that is cut short ends.
const FATES: u32 = 40;
/// How long a script waits for both sites to have everything.
const SYNC_ROUNDS: u32 = 40;
/// Steps of a random script.
const RANDOM_STEPS: u32 = 14;

/// One step.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The guest does these operations, one after the other.
    Do(&'static [GuestOp]),
    /// It does these, several at once, until an event of the tape's choice, and goes on with the next step then.
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
    /// The owner's lease ends early.
    Expire,
    /// The guest starts there, if it gets the disk.
    Open(Site),
    /// The next write of the site's disk fails.
    FailWrite(Site),
}

use Step::{
    Break, Clog, Cut, Do, Expire, FailWrite, Fate, Heal, InSync, Kill, Open, Pause, Resume, Start,
    Until, Wait, Work,
};

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
        Expire,
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

/// Plays a script, and cuts both links when that many messages have arrived. False: no more
/// arrived than that.
///
/// # Errors
/// A promise was broken.
pub fn play_cut(
    script: &Script,
    bug: Option<Bug>,
    tape: &Tape,
    messages: u64,
) -> Result<bool, Broken> {
    let left = Arc::new(AtomicU64::new(messages));
    run_cut(script.steps, bug, tape, Some(Arc::clone(&left)))?;
    Ok(left.load(Relaxed) == 0)
}

fn run(steps: &[Step], bug: Option<Bug>, tape: &Tape) -> Result<(), Broken> {
    run_cut(steps, bug, tape, None)
}

fn run_cut(
    steps: &[Step],
    bug: Option<Bug>,
    tape: &Tape,
    cut_in: Option<Arc<AtomicU64>>,
) -> Result<(), Broken> {
    let sim = Sim::new(tape.clone(), Schedule::Random);
    sim.run(async {
        let mut pair = Pair::new(&sim, bug).await?;
        if let Some(left) = cut_in {
            let links = [A, B].map(|site| pair.link(site).clone());
            sim.on_event(move |boundary| {
                if boundary.name.starts_with("wire-") && left.load(Relaxed) > 0 {
                    left.fetch_sub(1, Relaxed);
                    if left.load(Relaxed) == 0 {
                        links.iter().for_each(Link::cut);
                    }
                }
            });
        }
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
        Do(ops) => pair.work(ops, 1).await?,
        Until(ops) => {
            let (work, fate) = (pin!(pair.work(ops, DEPTH)), pin!(fate(sim)));
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
            pair.work(&ops, DEPTH).await?;
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
        Expire => pair.expire(),
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
