//! [`Watch`]: what happens at each boundary of a run: it counts, crashes where the plan says so, and
//! checks the crash states of that moment.

use std::{
    collections::HashSet,
    hash::BuildHasherDefault,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::channel::oneshot;

use super::{
    Belief, Broken, CrashKind, Lab, Rig, RigSnapshot, State,
    hash::{hash_of, mix},
    recovered::Recoveries,
    state::Left,
    target,
};
use crate::{
    Scale,
    disk::{CrashSpec, Image, Landing, Media},
    sim::Host,
    tape::Hashed,
};

/// What was checked before: equal crash states need one check in a campaign, and equal media one
/// recovery. Belongs to one [`Lab`]: what another one checks is not the same.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Never iterated. Its keys are hashes.
    states: HashSet<u64, BuildHasherDefault<Hashed>>,
    recoveries: Recoveries,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Runs.
    pub runs: u64,
    /// Boundaries that were looked at.
    pub boundaries: u64,
    /// Crash images that were made.
    pub images: u64,
    /// Crash states that were checked, second eras included.
    pub states: u64,
    /// Recoveries that were carried out for them; what the others read was known.
    pub recoveries: u64,
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.runs += other.runs;
        self.boundaries += other.boundaries;
        self.images += other.images;
        self.states += other.states;
        self.recoveries += other.recoveries;
    }
}

/// A crash state that broke a promise.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) broken: Broken,
    pub(super) kind: CrashKind,
    pub(super) spec: Option<CrashSpec>,
    pub(super) boundary: u32,
    pub(super) last: Box<Last>,
}

/// The crash that a failure needed, for its report.
#[derive(Clone, Debug)]
pub(crate) struct Last {
    /// What was on the media before it.
    pub(crate) before: RigSnapshot,
    /// What it left; `None` if nothing was recovered to find the failure.
    pub(crate) state: Option<State>,
    /// What a kill did to what was in flight.
    pub(crate) landing: Option<Landing>,
}

/// The crash that the plan says ends an era.
struct Due {
    after: u32,
    host: Host,
}

#[derive(Clone)]
pub(super) struct Watch(Arc<Mutex<Inner>>);

struct Inner {
    lab: Lab,
    rig: Rig,
    belief: Belief,
    scale: Scale,
    /// Boundaries of this era.
    boundary: u32,
    due: Option<Due>,
    explores: bool,
    is_away: bool,
    signal: Option<oneshot::Sender<()>>,
    seen: Seen,
    found: Option<Found>,
    work: Work,
}

impl Watch {
    pub(super) fn new(lab: &Lab, rig: &Rig, belief: &Belief, scale: Scale, seen: Seen) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            lab: lab.clone(),
            rig: rig.clone(),
            belief: belief.clone(),
            scale,
            boundary: 0,
            due: None,
            explores: false,
            is_away: false,
            signal: None,
            seen,
            found: None,
            work: Work::default(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an era; what it gives back resolves when the era is to be broken off.
    pub(super) fn era(
        &self,
        host: &Host,
        crash_after: Option<u32>,
        explores: bool,
    ) -> oneshot::Receiver<()> {
        let (signal, broken_off) = oneshot::channel();
        let mut inner = self.lock();
        inner.boundary = 0;
        inner.due = crash_after.map(|after| Due {
            after,
            host: host.clone(),
        });
        inner.explores = explores;
        inner.signal = Some(signal);
        broken_off
    }

    /// Looks away, or looks again.
    pub(super) fn look_away(&self, is_away: bool) {
        self.lock().is_away = is_away;
    }

    /// Looks no more.
    pub(super) fn end(&self) {
        let mut inner = self.lock();
        inner.explores = false;
        inner.due = None;
    }

    pub(super) fn take(self) -> (Option<Found>, Work, Seen) {
        let mut inner = self.lock();
        let found = inner.found.take();
        (found, inner.work, std::mem::take(&mut inner.seen))
    }

    /// A completion below, or an answer to the guest.
    pub(super) fn boundary(&self) {
        let mut inner = self.lock();
        if inner.is_away {
            return;
        }
        inner.boundary += 1;
        inner.work.boundaries += 1;
        if inner
            .due
            .as_ref()
            .is_some_and(|due| inner.boundary >= due.after.max(1))
        {
            if let Some(due) = inner.due.take() {
                due.host.kill();
            }
            inner.break_off();
            return;
        }
        if inner.explores && inner.found.is_none() {
            let found = inner.explore().err();
            if found.is_some() {
                let boundary = u64::from(inner.boundary);
                inner.rig.sim().note(None, "found", boundary, String::new);
                inner.found = found;
                inner.break_off();
            }
        }
    }
}

impl Inner {
    fn break_off(&mut self) {
        self.explores = false;
        if let Some(signal) = self.signal.take() {
            let _ = signal.send(());
        }
    }

    /// Checks the crash states of this moment.
    fn explore(&mut self) -> Result<(), Found> {
        if self.lab.checks.ordered && self.lab.subject.ordered_target().is_some() {
            self.target()?;
        }
        for kind in self.lab.checks.kinds.clone() {
            match kind {
                CrashKind::Power => self.power()?,
                CrashKind::Kill => self.kill()?,
            }
        }
        Ok(())
    }

    fn found(&self, broken: Broken, kind: CrashKind, spec: Option<CrashSpec>) -> Found {
        Found {
            broken,
            kind,
            spec,
            boundary: self.boundary,
            last: Box::new(Last {
                before: self.rig.snapshot(),
                state: None,
                landing: None,
            }),
        }
    }

    fn power(&mut self) -> Result<(), Found> {
        let snapshot = self.rig.snapshot();
        let point = snapshot.crash_point(&self.rig.names());
        let legal = self.legality();
        let tiers = self.lab.checks.tiers.clone();
        for sidecar in snapshot.sidecar.images() {
            let salt = mix(legal, hash_of(sidecar.as_deref()));
            let (seen, images) = (&mut self.seen.states, &mut self.work.images);
            let cases = point.cases(&tiers, &mut |_| 0, &mut |hash| {
                *images += 1;
                seen.insert(mix(salt, hash))
            });
            if cases.is_empty() {
                continue;
            }
            let mut crashed = self.belief.oracle().clone();
            crashed.crash();
            for case in cases {
                let media = mix(case.hash, hash_of(sidecar.as_deref()));
                let media = mix(media, self.scale as u64);
                let known = self.seen.recoveries.checks.get(media);
                if let Some(known) = known.filter(|known| known.put_to(&crashed).is_some()) {
                    self.work.states += known.states;
                    continue;
                }
                let scale = self.scale;
                let state = || State {
                    left: Left::Images(point.images(&case)),
                    sidecar: sidecar.clone(),
                    oracle: crashed.clone(),
                    scale,
                    variant: case.hash,
                };
                let checked = state().check_knowing(&self.lab, &mut self.seen.recoveries);
                let (states, recovered) = checked.map_err(|broken| {
                    let mut found = self.found(broken, CrashKind::Power, Some(point.spec(&case)));
                    found.last.state = Some(state());
                    found
                })?;
                self.work.states += states;
                if let Some(recovered) = recovered {
                    self.seen.recoveries.checks.keep(media, recovered);
                }
            }
        }
        self.work.recoveries += std::mem::take(&mut self.seen.recoveries.carried_out);
        Ok(())
    }

    /// The process dies: what the media acknowledged stays, what is in flight lands or does not.
    fn kill(&mut self) -> Result<(), Found> {
        let snapshot = self.rig.snapshot();
        let legal = self.legality();
        for landing in [Landing::Lost, Landing::Lands] {
            let media: Vec<Media> = self
                .rig
                .disks()
                .iter()
                .map(|disk| {
                    let mut media = disk.media();
                    media.kill(disk.moments().next(), |_| landing);
                    media
                })
                .collect();
            let live = media.iter().fold(legal, |sum, media| {
                mix(mix(sum, media.live().hash()), media.durable().hash())
            });
            for sidecar in snapshot.sidecar.images() {
                if !self
                    .seen
                    .states
                    .insert(mix(live, !hash_of(sidecar.as_deref())))
                {
                    continue;
                }
                let state = |sidecar| self.state(Left::Media(media.clone()), sidecar, live);
                let checked = state(sidecar.clone()).check(&self.lab);
                let states = checked.map_err(|broken| {
                    let mut found = self.found(broken, CrashKind::Kill, None);
                    found.last.state = Some(state(sidecar));
                    found.last.landing = Some(landing);
                    found
                })?;
                self.work.states += states;
                self.work.recoveries += states;
            }
        }
        Ok(())
    }

    /// A hash of all that decides, beside the media, whether a crash now is legal.
    fn legality(&self) -> u64 {
        let oracle = self.belief.oracle();
        let mut hash = oracle.legal_hash();
        if self.lab.checks.ordered && self.lab.subject.ordered_target().is_some() {
            hash = mix(hash, oracle.history().order_hash());
        }
        hash ^ self.scale as u64
    }

    fn state(&self, left: Left, sidecar: Option<bytes::Bytes>, variant: u64) -> State {
        let mut oracle = self.belief.oracle().clone();
        oracle.crash();
        State {
            left,
            sidecar,
            oracle,
            scale: self.scale,
            variant,
        }
    }

    /// The target of an ordered promise is a cut, alone, whatever a crash leaves of it.
    fn target(&mut self) -> Result<(), Found> {
        let oracle = self.belief.oracle().clone();
        let salt = mix(self.legality(), 0x7a76);
        let seen = &mut self.seen.states;
        let mut is_new = |hash| seen.insert(mix(salt, hash));
        match target::check(&self.lab.subject, &self.rig, &oracle, &mut is_new) {
            Ok(images) => {
                self.work.images += images;
                Ok(())
            }
            Err((broken, spec)) => Err(self.found(broken, CrashKind::Power, Some(spec))),
        }
    }
}

/// What the first `blocks` of an image show.
pub fn values_of(image: &Image, blocks: u64) -> Vec<crate::stamp::Value> {
    (0..blocks)
        .map(|block| {
            let bytes = image.read(block, 1);
            crate::stamp::Value::decode(&bytes, crate::stamp::Check::Header)
        })
        .collect()
}
