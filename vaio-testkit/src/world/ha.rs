//! [`Vm`]: one guest whose host changes, over storage that several hosts reach; and what an HA
//! manager does when a host is dead: take the lease with a higher epoch, fence the old owner, open
//! the disk on another host. In that order.
//!
//! The [oracle](crate::oracle) is one history, as for one host: a fail-over is a crash to it.

use std::{sync::Arc, time::Duration};

use vaio_core::{
    Content, Disk, DiskSettings, Disposition, Error, ErrorKind, FilterRegistry, OpKind, Policy,
};

use super::{
    host::Local,
    lease::{Lease, LeaseStore, NotOwner},
    shared_sidecar::SharedSidecar,
};
use crate::{
    GuestOp, Scale, Subject, Value,
    disk::{Fill, Media, Moments, SimDevices, SimDisk},
    explore::{BACKING, Belief, Broken, Guest, OnError},
    oracle::{Oracle, OracleSettings, OrderedCheck},
    sim::{Host, Limits, Sim},
    stamp::Check,
    subject::Target,
};

/// How long a lease holds without a beat.
pub const LEASE: Duration = Duration::from_mins(1);
/// Tries to get a disk that no one owns.
const TRIES_MAX: u32 = 8;
/// How far a kick lets the clock jump: far below the lease.
const KICK_MAX: Duration = Duration::from_millis(250);

/// What an HA manager does before it lets a disk be opened. Each can be left out, to show that the
/// cases see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// An owner needs the lease.
    pub lease: bool,
    /// A new owner fences the old one.
    pub fence: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            lease: true,
            fence: true,
        }
    }
}

/// Whether the disk is opened with the filter under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// With it.
    Filter,
    /// Without any.
    Bare,
}

/// A disk in use on a host.
#[derive(Debug)]
pub struct Opened {
    /// The process.
    pub host: Host,
    /// The disk.
    pub disk: Disk,
    lease: Option<Lease>,
}

/// Why a disk was not opened.
#[derive(Clone, Debug)]
pub enum NotOpened {
    /// Someone else may be using it.
    NotOwner(NotOwner),
    /// The framework or the filter refused: it would not keep its promise.
    Refused(Error),
}

impl NotOpened {
    /// The error as text.
    pub fn text(&self) -> String {
        match self {
            Self::NotOwner(why) => why.to_string(),
            Self::Refused(error) => error.to_line(),
        }
    }
}

/// One guest and its disk. A clone is the same.
#[derive(Clone, Debug)]
pub struct Vm {
    sim: Sim,
    subject: Arc<Subject>,
    scale: Scale,
    backing: SimDisk,
    sidecar: SharedSidecar,
    leases: LeaseStore,
    belief: Belief,
    rules: Rules,
}

impl Vm {
    /// A guest with a blank disk on a shared datastore.
    pub fn new(sim: &Sim, subject: &Subject, rules: Rules) -> Self {
        sim.set_limits(Limits {
            kick_max: KICK_MAX,
            ..Limits::default()
        });
        let scale = Scale::Tiny;
        let blocks = subject.blocks(scale);
        let media = Media::new(subject.info_below(blocks), Fill::Zero);
        let settings = OracleSettings {
            has_target: subject.ordered_target().is_some(),
            flush_retry: subject.descriptor().flush_retry,
            ..OracleSettings::new(blocks, subject.promise())
        };
        Self {
            sim: sim.clone(),
            scale,
            backing: SimDisk::new(sim, &Moments::default(), BACKING, media).shared(),
            sidecar: SharedSidecar::new(sim),
            leases: LeaseStore::new(sim),
            belief: Belief::new(Oracle::new(settings)),
            rules,
            subject: Arc::new(subject.clone()),
        }
    }

    /// Blank local disks for a host.
    pub fn blank(&self) -> Local {
        Local::blank(&self.sim, &self.subject, self.scale)
    }

    /// The shared disk.
    pub fn backing(&self) -> &SimDisk {
        &self.backing
    }

    /// Who owns the disk.
    pub fn leases(&self) -> &LeaseStore {
        &self.leases
    }

    /// What the guest believes.
    pub fn belief(&self) -> &Belief {
        &self.belief
    }

    /// The world.
    pub fn sim(&self) -> &Sim {
        &self.sim
    }

    /// Opens the disk on a host: takes the lease, fences everyone before, opens.
    ///
    /// # Errors
    /// The disk has another owner, or it would not keep its promise with these local disks.
    pub async fn open(
        &self,
        host: &Host,
        local: &Local,
        stack: Stack,
    ) -> Result<Opened, NotOpened> {
        let lease = if self.rules.lease {
            let lease = Lease::acquire(&self.leases, host, LEASE).await;
            Some(lease.map_err(NotOpened::NotOwner)?)
        } else {
            None
        };
        let (backing, epoch) = self.backing.open(host);
        let sidecar = self.sidecar.open(host, epoch);
        if self.rules.fence {
            self.backing.fence(epoch);
            self.sidecar.fence(epoch);
            for disk in local.disks() {
                disk.fence(disk.open(host).1);
            }
        }
        let mut builder = Disk::builder(backing, host.rt())
            .name("disk")
            .settings(patient())
            .sidecar(sidecar)
            .devices(Arc::new(SimDevices::new(
                host,
                local.disks().iter().cloned(),
            )));
        if stack == Stack::Filter {
            let registry = FilterRegistry::default().with_shared(self.subject.factory(self.scale));
            let policy = Policy::empty().with(self.subject.spec().clone());
            builder = builder.policy(policy, registry);
        }
        if let Some(lease) = &lease {
            lease.keep();
            builder = builder.lock(lease.lock());
        }
        let opened = builder.open().await;
        match opened {
            Ok(disk) => Ok(Opened {
                host: host.clone(),
                disk,
                lease,
            }),
            Err(error) => {
                if let Some(lease) = lease {
                    // A contender finds it free, or waits.
                    let _ = lease.release().await;
                }
                Err(NotOpened::Refused(error))
            }
        }
    }

    /// As [`open`](Self::open), where no owner lives: what a dead one asked of the lease store may
    /// still come in between, and then it is tried again.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_after_death(
        &self,
        host: &Host,
        local: &Local,
        stack: Stack,
    ) -> Result<Opened, NotOpened> {
        for _ in 1..TRIES_MAX {
            match self.open(host, local, stack).await {
                Err(NotOpened::NotOwner(_)) => {}
                opened => return opened,
            }
        }
        self.open(host, local, stack).await
    }

    /// As [`open`](Self::open) with the filter, where nothing excuses a refusal.
    ///
    /// # Errors
    /// It was refused.
    pub async fn must_open(&self, host: &Host, local: &Local) -> Result<Opened, Broken> {
        let opened = self.open_after_death(host, local, Stack::Filter).await;
        let opened = opened.map_err(|error| {
            let (name, text) = (host.name(), error.text());
            let what =
                format!("the disk does not open on host {name} with everything it had\n  {text}");
            Broken::new("recovery-failed", what)
        })?;
        let is_fresh = self.belief.oracle().history().ops().next().is_none();
        if is_fresh && self.subject.descriptor().content == Content::Transformed {
            // What no one wrote is no one's data to a transform: the guest formats its disk.
            let count = self.belief.oracle().settings().blocks;
            let format = GuestOp::WriteZeroes {
                block: 0,
                count,
                may_unmap: false,
                fua: true,
            };
            self.work(&opened, &[format], 1).await?;
        }
        Ok(opened)
    }

    /// Whether the filter refuses discards.
    pub fn refuses_discard(&self) -> bool {
        let ops = self.subject.descriptor().ops;
        ops.of(OpKind::Discard) == Disposition::Refuse
    }

    /// What the HA manager does.
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// Closes the disk cleanly and gives the lease back.
    ///
    /// # Errors
    /// The close failed.
    pub async fn close(&self, opened: Opened) -> Result<(), Broken> {
        let closed = opened.disk.close().await;
        closed.map_err(|error| Broken::new("close-failed", error.to_line()))?;
        self.released(opened).await;
        Ok(())
    }

    /// Gives the lease of a closed disk back; its process ends.
    pub async fn released(&self, opened: Opened) {
        if let Some(lease) = &opened.lease {
            // Lost answers only make the next owner wait.
            let _ = lease.release().await;
        }
        opened.host.kill();
    }

    /// The guest on an open disk.
    pub fn guest<'a>(&'a self, opened: &'a Opened, depth: usize, on_error: OnError) -> Guest<'a> {
        Guest {
            depth,
            on_error,
            ..Guest::new(&self.sim, &opened.disk, &self.belief)
        }
    }

    /// The guest works.
    ///
    /// # Errors
    /// A promise was broken.
    pub async fn work(&self, opened: &Opened, ops: &[GuestOp], depth: usize) -> Result<(), Broken> {
        self.guest(opened, depth, OnError::Broken).run(ops).await
    }

    /// The guest reads everything, time passes until nothing is under way, and it reads again:
    /// what was read once stays.
    ///
    /// # Errors
    /// A promise was broken.
    pub async fn read_twice(&self, opened: &Opened) -> Result<(), Broken> {
        let guest = self.guest(opened, 1, OnError::Broken);
        guest.read_all().await?;
        guest.submit(GuestOp::Idle).await?;
        guest.read_all().await
    }

    /// The guest's host is gone: what was in flight ends.
    pub fn crash(&self) {
        self.belief.oracle().crash();
    }

    /// The target of an ordered promise alone is the guest's disk at some moment. Nothing to check
    /// for other promises.
    ///
    /// # Errors
    /// It is not.
    pub fn check_target(&self, local: &Local) -> Result<(), Broken> {
        let target = match self.subject.ordered_target() {
            None => return Ok(()),
            Some(Target::Backing) => &self.backing,
            Some(Target::Device(name)) => local
                .disk(&name)
                .ok_or_else(|| Broken::new("target-does-not-start", format!("no device {name}")))?,
        };
        let snapshot = target.snapshot();
        let oracle = self.belief.oracle().clone();
        let blocks = oracle.settings().blocks;
        let data = snapshot.durable().read(0, blocks);
        let block = self.subject.info_below(1).logical_block;
        let size = usize::try_from(block).unwrap_or(usize::MAX);
        let values = Value::decode_all(&data, size, Check::Full);
        OrderedCheck::keeping(&oracle, self.subject.target_promise()).check(&values)?;
        Ok(())
    }
}

/// An error that says "not me any more", which is honest after a fence or a hand-over.
pub fn is_fenced(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Gone)
}

/// Time is an adversary here: IO that takes long by the virtual clock is not a fault.
pub(super) fn patient() -> DiskSettings {
    let mut settings = DiskSettings::default();
    settings.stall_report_after = Duration::from_hours(1);
    settings.stall_fail_after = Duration::from_hours(2);
    settings.lifecycle_timeout = Duration::from_mins(10);
    settings
}
