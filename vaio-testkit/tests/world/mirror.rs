//! The mirror twin with its second side on another host: what breaks, stalls or loses power there
//! costs the guest nothing.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use vaio_core::{
    BlockDevice, DeviceInfo, DeviceProvider, Disk, Error, FilterRegistry, FilterSpec, Policy,
    Promise, Result,
};
use vaio_testkit::{
    Family, GuestOp, Host, Limits, Oracle, OracleSettings, Schedule, Sim, Tape,
    disk::{Fill, Media, Moments, SimDisk, SimSidecar},
    explore::{Belief, Broken, Guest, OnError},
    twins::mirror::{self, MirrorFactory},
    world::{DiskFrame, Link, Mode, RemoteDisk, lose_power, serve_disk},
    zoo::Bug,
};

use super::{seeds, tape};

const BLOCKS: u64 = 4;

#[derive(Debug)]
struct Remote(Link<DiskFrame>, Host, DeviceInfo);

#[async_trait]
impl DeviceProvider for Remote {
    async fn open_device(&self, _: &str, _: &str, _: &str) -> Result<Arc<dyn BlockDevice>> {
        let Self(link, host, info) = self;
        let timeout = Duration::from_secs(1);
        Ok(Arc::new(RemoteDisk::new(link, host, *info, timeout)))
    }
}

struct Site {
    sim: Sim,
    info: DeviceInfo,
    near: SimDisk,
    far: SimDisk,
    sidecar: SimSidecar,
    link: Link<DiskFrame>,
    belief: Belief,
    bug: Option<Bug>,
}

impl Site {
    fn new(sim: &Sim, bug: Option<Bug>) -> Self {
        sim.set_limits(Limits {
            kick_max: Duration::from_millis(250),
            ..Limits::default()
        });
        let info = DeviceInfo::new(BLOCKS * 512, 512).with_caps(|caps| caps.volatile_cache = true);
        let moments = Moments::default();
        let disk = |name| SimDisk::new(sim, &moments, name, Media::new(info, Fill::Zero));
        let settings = OracleSettings::new(BLOCKS, Promise::AtFlush);
        Self {
            sim: sim.clone(),
            info,
            near: disk("near"),
            far: disk("far"),
            sidecar: SimSidecar::new(sim, "sidecar", None),
            link: Link::new(sim, "wire", Mode::Stream),
            belief: Belief::new(Oracle::new(settings)),
            bug,
        }
    }

    fn serve(&self) -> Host {
        let host = self.sim.host("b");
        let disk = self.far.handle(&host);
        host.spawn("serve", serve_disk(self.link.clone(), host.clone(), disk));
        host
    }

    async fn open(&self, host: &Host) -> Result<Disk, Error> {
        let factory = match self.bug {
            Some(bug) => MirrorFactory::default().with_bug(bug),
            None => MirrorFactory::default(),
        };
        let devices = Remote(self.link.clone(), host.clone(), self.info);
        let spec = FilterSpec::new(mirror::NAME).with(mirror::MIRROR_DEVICE, "far");
        Disk::builder(self.near.handle(host), host.rt())
            .sidecar(self.sidecar.handle(host))
            .devices(Arc::new(devices))
            .policy(
                Policy::empty().with(spec),
                FilterRegistry::default().with(factory),
            )
            .open()
            .await
    }

    /// The far side is copied as far as it needs to be, and both are the same then.
    async fn quiet(&self, disk: &Disk) -> Result<(), Broken> {
        self.sim.sleep(Duration::from_secs(20)).await;
        let guest = self.guest(disk, OnError::Broken);
        guest.submit(GuestOp::Flush).await?;
        self.sim.sleep(Duration::from_secs(20)).await;
        let (near, far) = (self.near.snapshot(), self.far.snapshot());
        if near.live().read(0, BLOCKS) == far.live().read(0, BLOCKS) {
            return Ok(());
        }
        let text = "the sides differ when all is quiet";
        Err(Broken::new("sides-differ", text))
    }

    /// The connection may break under an open: it is tried again, as a host does.
    async fn opened(&self) -> Result<(Host, Disk), Broken> {
        let mut last = String::new();
        for _ in 0..20 {
            let host = self.sim.host("a");
            match self.open(&host).await {
                Ok(disk) => return Ok((host, disk)),
                Err(error) => last = error.to_line(),
            }
            host.kill();
        }
        Err(Broken::new("does-not-open", last))
    }

    fn guest<'a>(&'a self, disk: &'a Disk, on_error: OnError) -> Guest<'a> {
        Guest {
            depth: 2,
            on_error,
            ..Guest::new(&self.sim, disk, &self.belief)
        }
    }

    fn ops(&self) -> Vec<GuestOp> {
        let pick = |n, name: &str| u64::from(self.sim.tape().choose(n, Family::Op, name));
        let write = |_| GuestOp::Write {
            block: pick(4, "block"),
            count: 1,
            fua: false,
        };
        let mut ops: Vec<_> = (0..3).map(write).collect();
        ops.push(GuestOp::Flush);
        ops
    }

    fn trouble(&self, far: &mut Host) {
        match self.sim.tape().choose(6, Family::Fault, "trouble") {
            1 => self.link.break_all(),
            2 => self.link.cut(),
            3 => self.link.heal(),
            4 | 5 => {
                far.kill();
                lose_power(&self.sim, std::slice::from_ref(&self.far));
                *far = self.serve();
                self.link.break_all();
            }
            _ => {}
        }
    }
}

/// The far side has its troubles; then the near host dies with its disk's power, or its disk fails
/// to read, and the guest reads what it was promised.
fn run(bug: Option<Bug>, tape: &Tape) -> Result<(), Broken> {
    let sim = Sim::new(tape.clone(), Schedule::Random);
    let site = Site::new(&sim, bug);
    sim.run(async {
        let mut far = site.serve();
        let (host, disk) = site.opened().await?;
        for _ in 0..4 {
            let guest = site.guest(&disk, OnError::Broken);
            guest.run(&site.ops()).await?;
            site.trouble(&mut far);
            guest.read_all().await?;
        }
        site.link.heal();
        site.quiet(&disk).await?;
        host.kill();
        drop(disk);
        lose_power(&sim, std::slice::from_ref(&site.near));
        site.belief.oracle().crash();
        let (host, disk) = site.opened().await?;
        let guest = site.guest(&disk, OnError::Broken);
        guest.read_all().await?;
        guest.submit(GuestOp::Idle).await?;
        guest.read_all().await?;
        site.quiet(&disk).await?;
        host.kill();
        Ok(())
    })?
}

#[test]
fn mirror_over_a_link_keeps_its_promise() {
    for seed in 0..seeds() * 5 {
        if let Err(broken) = run(None, &tape(seed)) {
            panic!("seed {seed}: {} {broken}", broken.rule);
        }
    }
}

#[test]
fn mirror_over_a_link_with_a_bug_is_found() {
    for bug in [Bug::SidesUnordered, Bug::ResyncUnlocked] {
        let found = (0..2000).find(|seed| run(Some(bug), &tape(*seed)).is_err());
        println!("{bug:?} found at {found:?}");
        assert!(found.is_some(), "{bug:?}");
    }
}
