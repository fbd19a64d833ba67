//! [`Local`]: the disks in a host's own slots. They outlive its process, fall with its power, can
//! be carried to another host, be lost, or come back as they were long ago.

use std::sync::Arc;

use crate::{
    Family, Scale, Subject,
    disk::{CrashPoint, Fill, Media, Moments, SimDisk, Snapshot, Tier},
    sim::{Host, Sim},
};

/// The local disks that a filter needs, by name. A clone is the same disks.
#[derive(Clone, Debug)]
pub struct Local {
    sim: Sim,
    disks: Vec<SimDisk>,
    moments: Moments,
}

/// What local disks held at one moment.
#[derive(Clone, Debug)]
pub struct Kept(Vec<(String, Media)>);

impl Local {
    /// Blank disks as the subject's needs say.
    pub fn blank(sim: &Sim, subject: &Subject, scale: Scale) -> Self {
        let moments = Moments::default();
        let disk = |one: &crate::Beside| {
            let media = Media::new(subject.info_below((one.blocks)(scale)), Fill::Zero);
            SimDisk::new(sim, &moments, &one.name, media).shared()
        };
        Self {
            sim: sim.clone(),
            disks: subject.beside().iter().map(disk).collect(),
            moments: moments.clone(),
        }
    }

    /// Disks as they were: an old copy that comes back.
    pub fn stale(sim: &Sim, kept: &Kept) -> Self {
        let past = kept.0.iter().map(|(_, media)| media.last_moment()).max();
        let moments = Moments::after(past.unwrap_or(0));
        let disk = |(name, media): &(String, Media)| {
            SimDisk::new(sim, &moments, name, media.clone()).shared()
        };
        Self {
            sim: sim.clone(),
            disks: kept.0.iter().map(disk).collect(),
            moments: moments.clone(),
        }
    }

    /// A copy for [`stale`](Self::stale).
    pub fn keep(&self) -> Kept {
        Kept(
            self.disks
                .iter()
                .map(|disk| (disk.name().to_owned(), disk.media()))
                .collect(),
        )
    }

    /// The disks.
    pub fn disks(&self) -> &[SimDisk] {
        &self.disks
    }

    /// The disk of this name.
    pub fn disk(&self, name: &str) -> Option<&SimDisk> {
        self.disks.iter().find(|disk| disk.name() == name)
    }

    /// Whether the filter needs none.
    pub fn is_empty(&self) -> bool {
        self.disks.is_empty()
    }

    /// The host's power fails: the process dies, and its disks keep of what was not durable what
    /// the tape says.
    pub fn lose_power(&self, host: &Host) {
        host.kill();
        lose_power(&self.sim, &self.disks);
    }

    /// Numbers moments of these disks.
    pub fn moments(&self) -> &Moments {
        &self.moments
    }
}

/// Disks lose power together and keep what the tape says. The processes that used them are dead.
#[expect(
    clippy::missing_panics_doc,
    reason = "that tier always has its one case"
)]
pub fn lose_power(sim: &Sim, disks: &[SimDisk]) {
    let names: Vec<Arc<str>> = disks.iter().map(|disk| Arc::from(disk.name())).collect();
    let snapshots: Vec<Snapshot> = disks.iter().map(SimDisk::snapshot).collect();
    let point = CrashPoint::new(names.into_iter().zip(&snapshots));
    let tape = sim.tape();
    let mut choose = |n| tape.choose(n, Family::Crash, "keep");
    let mut cases = point.cases(&[Tier::Random(1)], &mut choose, &mut |_| true);
    let case = cases.pop().expect("one random image");
    let spec = point.spec(&case);
    for (disk, image) in disks.iter().zip(point.images(&case)) {
        disk.lose_power(image, spec.of(disk.name()));
    }
}
