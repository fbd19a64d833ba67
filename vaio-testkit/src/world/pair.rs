//! [`Pair`]: two sites without shared storage, the [replicator](crate::twins::replicator) between
//! them, and one guest that runs on either.
//!
//! Each site has a disk, a sidecar and a target, all in one process; a lease store apart from both
//! says who owns the disk and whether the other site has everything. A site that is not in sync
//! does not get the disk: refusing is right, serving something older is not.

use std::{sync::Arc, time::Duration};

use vaio_core::{
    BlockDevice, DeviceInfo, Disk, FilterRegistry, FilterSpec, OpKind, Policy, Promise,
};

use super::{
    ha::LEASE,
    host::lose_power,
    lease::{Lease, LeaseStore},
    link::{Link, Mode},
    shared_sidecar::SharedSidecar,
};
use crate::{
    GuestOp,
    disk::{Fault, Fill, Media, Moments, Rule, SimDisk},
    explore::{Belief, Broken, Guest, OnError},
    oracle::{Oracle, OracleSettings},
    sim::{Host, Limits, Sim},
    twins::replicator::{self, Message, ReplicatorFactory, Target},
    zoo::Bug,
};

/// Blocks of the guest's disk.
pub const BLOCKS: u64 = 4;
/// Bytes of one.
const BLOCK: u32 = 512;
const KICK_MAX: Duration = Duration::from_millis(250);

/// One of the two sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    /// Where the guest starts.
    A,
    /// The other one.
    B,
}

impl Site {
    const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

struct Place {
    host: Host,
    is_up: bool,
    is_paused: bool,
    disk: SimDisk,
    sidecar: SharedSidecar,
    meta: SharedSidecar,
    /// Counts processes, for the fences of sidecar and meta.
    life: u64,
    target: Option<Arc<Target>>,
    /// From this site to the other.
    link: Link<Message>,
}

/// Where the guest runs.
struct Running {
    site: Site,
    disk: Disk,
}

/// Two sites, and one guest that runs on either. A site that is not in sync does not get the disk.
pub struct Pair {
    sim: Sim,
    places: [Place; 2],
    leases: LeaseStore,
    belief: Belief,
    running: Option<Running>,
    /// Disks of an owner that was stopped: their tasks go on when it wakes up.
    stopped: Vec<Disk>,
    bug: Option<Bug>,
}

impl Pair {
    /// Two sites with blank disks, up and connected; the guest is off.
    ///
    /// # Errors
    /// A target does not start.
    pub async fn new(sim: &Sim, bug: Option<Bug>) -> Result<Self, Broken> {
        sim.set_limits(Limits {
            kick_max: KICK_MAX,
            ..Limits::default()
        });
        let moments = Moments::default();
        let place = |site: Site| {
            let info = DeviceInfo::new(BLOCKS * u64::from(BLOCK), BLOCK)
                .with_caps(|caps| caps.volatile_cache = true);
            let media = Media::new(info, Fill::Zero);
            Place {
                host: sim.host(site.name()),
                is_up: false,
                is_paused: false,
                disk: SimDisk::new(sim, &moments, &format!("disk-{}", site.name()), media).shared(),
                sidecar: SharedSidecar::new(sim),
                meta: SharedSidecar::new(sim),
                life: 0,
                target: None,
                link: Link::new(sim, &format!("wire-{}", site.name()), Mode::Stream),
            }
        };
        let settings = OracleSettings::new(BLOCKS, Promise::AtFlush);
        let mut pair = Self {
            sim: sim.clone(),
            places: [place(Site::A), place(Site::B)],
            leases: LeaseStore::new(sim),
            belief: Belief::new(Oracle::new(settings)),
            running: None,
            stopped: Vec::new(),
            bug,
        };
        pair.start(Site::A).await?;
        pair.start(Site::B).await?;
        Ok(pair)
    }

    fn place(&mut self, site: Site) -> &mut Place {
        &mut self.places[site as usize]
    }

    /// Whether the guest runs.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The link on which a site is the source.
    pub fn link(&self, from: Site) -> &Link<Message> {
        &self.places[from as usize].link
    }

    /// Whether the record says that both sites have everything.
    pub fn is_in_sync(&self) -> bool {
        self.leases.peek().in_sync
    }

    /// Starts a site's process with its target. Nothing happens if it runs.
    ///
    /// # Errors
    /// The target does not start.
    pub async fn start(&mut self, site: Site) -> Result<(), Broken> {
        let (sim, bug) = (self.sim.clone(), self.bug);
        let link = self.link(site.other()).clone();
        let place = self.place(site);
        if place.is_up {
            return Ok(());
        }
        place.host = sim.host(site.name());
        place.is_up = true;
        place.is_paused = false;
        place.life += 1;
        place.meta.fence(place.life);
        let meta = place.meta.open(&place.host, place.life);
        let target = Target::start(&place.host, &place.disk, meta, bug).await;
        let target =
            target.map_err(|error| Broken::new("target-does-not-start", error.to_line()))?;
        place.target = Some(Arc::clone(&target));
        place.host.spawn("target.serve", target.serve(link));
        Ok(())
    }

    /// A site's power fails: its process dies, and its disk keeps what the tape says. The guest is
    /// off if it ran there.
    pub fn kill(&mut self, site: Site) {
        let sim = self.sim.clone();
        let place = self.place(site);
        place.host.kill();
        place.is_up = false;
        place.target = None;
        lose_power(&sim, std::slice::from_ref(&place.disk));
        if self.running.as_ref().is_some_and(|run| run.site == site) {
            self.running = None;
            self.belief.oracle().crash();
        }
    }

    /// A site stands still, and its guest counts as dead.
    pub fn pause(&mut self, site: Site) {
        let place = self.place(site);
        place.host.pause();
        place.is_paused = true;
        if let Some(run) = self.running.take_if(|run| run.site == site) {
            self.stopped.push(run.disk);
            self.belief.oracle().crash();
        }
    }

    /// It goes on where it stood.
    pub fn resume(&mut self, site: Site) {
        let place = self.place(site);
        place.host.resume();
        place.is_paused = false;
    }

    /// The owner's lease ends early.
    pub fn expire(&self) {
        self.leases.expire();
    }

    /// The next write that reaches a site's disk fails.
    pub fn fail_write(&mut self, site: Site) {
        let rule = Rule::once(Fault::Error).on(OpKind::Write);
        self.place(site).disk.faults(|faults| faults.add(rule));
    }

    /// The guest starts on a site, if it gets the disk there. Nothing happens if it runs already, or
    /// the site is down or stands still.
    ///
    /// # Errors
    /// It gets the disk, and the disk does not open.
    pub async fn open(&mut self, site: Site) -> Result<(), Broken> {
        let place = self.place(site);
        let is_ready = place.is_up && !place.is_paused;
        if self.running.is_some() || !is_ready {
            return Ok(());
        }
        let host = self.place(site).host.clone();
        let Ok(lease) = Lease::acquire(&self.leases, &host, LEASE).await else {
            return Ok(());
        };
        let record = lease.record();
        let is_home = record
            .home
            .as_deref()
            .is_none_or(|home| home == site.name());
        // N8.
        if !is_home && !record.in_sync && self.bug != Some(Bug::HomeIgnored) {
            let _ = lease.release().await;
            return Ok(());
        }
        // N9: recorded before anything is served.
        let taken = lease.change(|record| {
            record.in_sync = false;
            record.home = Some(site.name().to_owned());
        });
        if taken.await.is_err() {
            return Ok(());
        }
        lease.keep();
        let disk = self.open_disk(site, &lease).await;
        let disk = disk.map_err(|error| Broken::new("recovery-failed", error.to_line()))?;
        self.running = Some(Running { site, disk });
        Ok(())
    }

    async fn open_disk(&mut self, site: Site, lease: &Lease) -> vaio_core::Result<Disk> {
        let (bug, link) = (self.bug, self.link(site).clone());
        let place = self.place(site);
        let target = place
            .target
            .clone()
            .expect("a site that is up has a target");
        target.seal(lease.epoch()).await?;
        let (device, _): (Arc<dyn BlockDevice>, u64) = place.disk.open(&place.host);
        let factory = ReplicatorFactory::new(link, place.host.clone(), lease.clone(), bug);
        let registry = FilterRegistry::default().with(factory);
        place.sidecar.fence(place.life);
        Disk::builder(device, place.host.rt())
            .name("disk")
            .settings(super::ha::patient())
            .sidecar(place.sidecar.open(&place.host, place.life))
            .policy(
                Policy::empty().with(FilterSpec::new(replicator::NAME)),
                registry,
            )
            .lock(lease.lock())
            .open()
            .await
    }

    /// The guest works, if it runs, with `depth` IOs at once. Errors are honest here: owners change.
    ///
    /// # Errors
    /// A promise was broken.
    pub async fn work(&self, ops: &[GuestOp], depth: usize) -> Result<(), Broken> {
        match self.guest(depth) {
            Some(guest) => guest.run(ops).await,
            None => Ok(()),
        }
    }

    /// The guest reads everything twice, and time passes in between.
    ///
    /// # Errors
    /// A promise was broken.
    pub async fn read_twice(&self) -> Result<(), Broken> {
        let Some(guest) = self.guest(1) else {
            return Ok(());
        };
        guest.read_all().await?;
        guest.submit(GuestOp::Idle).await?;
        guest.read_all().await
    }

    fn guest(&self, depth: usize) -> Option<Guest<'_>> {
        let running = self.running.as_ref()?;
        Some(Guest {
            depth,
            on_error: OnError::Allowed,
            ..Guest::new(&self.sim, &running.disk, &self.belief)
        })
    }
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair")
            .field("running", &self.running.as_ref().map(|run| run.site))
            .field("bug", &self.bug)
            .finish_non_exhaustive()
    }
}
