//! [`Rig`]: the media of one filter under test, and how a host opens a disk over them.

use std::{sync::Arc, time::Duration};

use vaio_core::{DeviceProvider, Disk, DiskSettings, Error, FilterRegistry, Policy, Rt};

use super::hash::{hash_of, mix};
use crate::{
    Scale, Subject,
    disk::{
        CrashCase, CrashPoint, Fill, Image, Media, Moments, SidecarSnapshot, SimDevices, SimDisk,
        SimSidecar, Snapshot,
    },
    sim::{Host, Limits, Sim},
};

/// Name of the lower device in plans and timelines.
pub const BACKING: &str = "backing";

/// The media that a disk with the filter under test is made of. They outlive hosts. A clone is
/// another handle to the same media.
#[derive(Clone, Debug)]
pub struct Rig {
    sim: Sim,
    subject: Arc<Subject>,
    scale: Scale,
    /// The lower device first, then those that the filter's needs name, in their order.
    disks: Vec<SimDisk>,
    sidecar: SimSidecar,
}

/// A copy of all media at one moment; cheap.
#[derive(Clone, Debug)]
pub struct RigSnapshot {
    /// In the order of the rig.
    pub disks: Vec<Snapshot>,
    /// What the sidecar holds, and may hold after a crash.
    pub sidecar: SidecarSnapshot,
}

impl Rig {
    /// Fresh media.
    pub fn new(sim: &Sim, subject: &Arc<Subject>, scale: Scale, blocks: u64, fill: Fill) -> Self {
        let media = sizes(subject, scale, blocks)
            .map(|blocks| Media::new(subject.info_below(blocks), fill))
            .collect();
        Self::of_media(sim, subject, scale, media, None)
    }

    /// What a crash left.
    pub fn of_images(
        sim: &Sim,
        subject: &Arc<Subject>,
        scale: Scale,
        images: Vec<Image>,
        sidecar: Option<bytes::Bytes>,
    ) -> Self {
        let media = images
            .into_iter()
            .map(|image| Media::of_image(subject.info_below(image.blocks()), image))
            .collect();
        Self::of_media(sim, subject, scale, media, sidecar)
    }

    /// Media as they are, with what they hold in their volatile caches.
    pub fn of_media(
        sim: &Sim,
        subject: &Arc<Subject>,
        scale: Scale,
        media: Vec<Media>,
        sidecar: Option<bytes::Bytes>,
    ) -> Self {
        let names = std::iter::once(BACKING).chain(subject.beside().iter().map(|one| &*one.name));
        let past = media.iter().map(Media::last_moment).max().unwrap_or(0);
        let moments = Moments::after(past);
        let disks = names.zip(media).map(|(name, mut media)| {
            media.hand_over();
            SimDisk::new(sim, &moments, name, media)
        });
        let disks = disks.collect();
        Self {
            sim: sim.clone(),
            subject: Arc::clone(subject),
            scale,
            disks,
            sidecar: SimSidecar::new(sim, "sidecar", sidecar),
        }
    }

    /// The disks, the lower device first.
    pub fn disks(&self) -> &[SimDisk] {
        &self.disks
    }

    /// The disk of this name.
    pub fn disk(&self, name: &str) -> Option<&SimDisk> {
        self.disks.iter().find(|disk| disk.name() == name)
    }

    /// Opens a disk over the media in a new process.
    ///
    /// # Errors
    /// As opening a disk.
    pub async fn open(&self, host: &Host) -> Result<Disk, Error> {
        self.sim.note(Some(host), "step", 1, || "open".to_owned());
        let rt: Rt = host.rt();
        let beside = self.disks[1..].iter().cloned();
        let spec = self.subject.spec().clone();
        let registry = FilterRegistry::default().with_shared(self.subject.factory(self.scale));
        let devices = SimDevices::new(host, beside);
        let mut lower = self.disks[0].handle(host);
        if self.sidecar.snapshot().content.is_some() {
            lower = self.subject.reopened(lower);
        }
        let devices: Arc<dyn DeviceProvider> = match self.subject.taps(host) {
            None => Arc::new(devices),
            Some(taps) => {
                lower = taps.device(BACKING, lower);
                Arc::new(taps.devices(devices))
            }
        };
        let opened = Disk::builder(lower, rt)
            .name("disk")
            .settings(patient())
            .sidecar(self.sidecar.handle(host))
            .devices(devices)
            .policy(Policy::empty().with(spec), registry)
            .open()
            .await;
        self.sim.note(Some(host), "step", 2, || match &opened {
            Ok(_) => "is open".to_owned(),
            Err(error) => format!("does not open: {}", error.to_line()),
        });
        opened
    }

    /// What all media hold now.
    pub fn snapshot(&self) -> RigSnapshot {
        RigSnapshot {
            disks: self.disks.iter().map(SimDisk::snapshot).collect(),
            sidecar: self.sidecar.snapshot(),
        }
    }

    /// A hash of what is durable, and of what a filter that opens it is told.
    pub(super) fn hash(&self) -> u64 {
        mix(self.snapshot().hash(), self.scale as u64)
    }

    /// Power fails: all media keep what `pick` says of what was not durable. The host is dead.
    pub fn lose_power(&self, pick: impl FnOnce(&CrashPoint) -> CrashCase) {
        let point = self.snapshot().crash_point(&self.names());
        let case = pick(&point);
        let spec = point.spec(&case);
        self.sim.note(None, "power", case.hash, || spec.to_string());
        for (disk, image) in self.disks.iter().zip(point.images(&case)) {
            disk.lose_power(image, spec.of(disk.name()));
        }
    }

    /// Names of the disks, in order.
    pub fn names(&self) -> Vec<Arc<str>> {
        let names = self.disks.iter().map(SimDisk::shared_name);
        names.cloned().collect()
    }

    /// The world.
    pub fn sim(&self) -> &Sim {
        &self.sim
    }
}

impl RigSnapshot {
    /// A hash of what is durable, equal for equal content.
    pub(super) fn hash(&self) -> u64 {
        let disks = self.disks.iter().map(|disk| disk.durable().hash());
        let sidecar = hash_of(self.sidecar.content.as_deref());
        disks.fold(sidecar, mix)
    }

    /// What a crash at this moment may leave.
    pub fn crash_point(&self, names: &[Arc<str>]) -> CrashPoint {
        CrashPoint::new(names.iter().cloned().zip(&self.disks))
    }
}

/// What ends a run of the explorer that does not end by itself. A kick goes beyond the intervals
/// of background work at test scale, and stays far below the limits that the framework puts on
/// what hangs.
pub fn limits() -> Limits {
    Limits {
        drain_polls: 100_000,
        steps: 5_000_000,
        time: Duration::from_hours(1),
        kick_max: Duration::from_millis(250),
    }
}

/// Time is an adversary here: IO that takes long by the virtual clock is not a fault.
fn patient() -> DiskSettings {
    let mut settings = DiskSettings::default();
    settings.stall_report_after = Duration::from_mins(10);
    settings.stall_fail_after = Duration::from_mins(20);
    settings.lifecycle_timeout = Duration::from_mins(10);
    settings
}

fn sizes(subject: &Subject, scale: Scale, blocks: u64) -> impl Iterator<Item = u64> {
    std::iter::once(blocks).chain(subject.beside().iter().map(move |one| (one.blocks)(scale)))
}
