//! The real `Disk` inside the simulated world: open, IO, quiesce, close, and the same again.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use vaio_core::*;
use vaio_testkit::{Choices, Schedule, Sim, Tape, first_difference};

/// Waits for an event of the environment around each IO, and ticks in the background.
#[derive(Clone, Debug)]
struct Slow(Sim);

#[async_trait]
impl Filter for Slow {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        self.0.event(None, io.op.kind().name()).await;
        next.submit(io).await
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }
}

#[async_trait]
impl FilterFactory for Slow {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new("slow", "1", Class::Inspect)
            .intercept(&OpKind::ALL)
            .accept_fua()
            .accept_zeroes_flags()
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let rt = Arc::clone(cx.rt());
        let stopped = cx.stopped();
        cx.spawn("ticker", async move {
            let mut stopped = std::pin::pin!(stopped);
            loop {
                let tick = rt.now() + Duration::from_micros(3);
                if rt.timeout_at(tick, &mut stopped).await.is_some() {
                    return;
                }
                rt.probe("tick");
            }
        });
        Ok(Arc::new(self.clone()))
    }
}

async fn open(sim: &Sim, rt: Rt) -> Disk {
    let spec = FilterSpec {
        name: "slow".into(),
        settings: BTreeMap::new(),
    };
    let registry = FilterRegistry::default().with(Slow(sim.clone()));
    Disk::builder(Arc::new(RamDisk::new(1 << 20)), rt)
        .policy(Policy::empty().with(spec), registry)
        .open()
        .await
        .unwrap()
}

/// One run; its world, so that traces can be compared.
fn run(tape: Tape, schedule: Schedule) -> Sim {
    let sim = Sim::new(tape, schedule);
    sim.trace().start(1 << 16);
    let rt = sim.host("vm1").rt();
    sim.run(async {
        let disk = open(&sim, Arc::clone(&rt)).await;
        let writes = (0..8u64).map(|block| {
            let data = vec![u8::try_from(block).unwrap() + 1; 512];
            disk.submit(Io::write(block * 512, data.into()))
        });
        for result in futures::future::join_all(writes).await {
            result.unwrap();
        }
        disk.submit(Io::flush()).await.unwrap();
        let read = disk.submit(Io::read(Extent::new(7 * 512, 512)));
        assert_eq!(read.await.unwrap().into_data(), vec![8; 512]);
        let deadline = rt.now() + Duration::from_secs(9);
        let quiesced = disk.quiesce(Level::CacheDurable, deadline).await.unwrap();
        drop(quiesced);
        disk.submit(Io::write(0, vec![9; 512].into()))
            .await
            .unwrap();
        disk.close().await.unwrap();
    })
    .unwrap();
    sim
}

#[test]
fn disk_with_a_filter_lives_and_repeats_under_every_schedule() {
    let mut hashes = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let schedule = match seed % 3 {
            0 => Schedule::Fifo,
            1 => Schedule::Random,
            _ => Schedule::Pct { depth: 3 },
        };
        let first = run(Tape::random(seed), schedule);
        let second = run(Tape::random(seed), schedule);
        if let Some(difference) = first_difference(first.trace(), second.trace()) {
            panic!("seed {seed}: {difference}");
        }
        let plan: Choices = first.tape().taken().to_string().parse().unwrap();
        let third = run(Tape::replay(plan), schedule);
        assert_eq!(first_difference(first.trace(), third.trace()), None);
        hashes.insert(first.trace().hash());
    }
    assert!(hashes.len() > 50, "{}", hashes.len());
    let benign = run(Tape::benign(), Schedule::Fifo);
    assert!(benign.marks()["tick"] > 0);
}

#[test]
fn idle_disk_lets_an_hour_pass_in_few_steps() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let rt = sim.host("vm1").rt();
    sim.run(async {
        let disk = Disk::builder(Arc::new(RamDisk::new(1 << 20)), Arc::clone(&rt))
            .open()
            .await
            .unwrap();
        disk.submit(Io::write(0, vec![1; 512].into()))
            .await
            .unwrap();
        sim.sleep(Duration::from_mins(59)).await;
        assert!(sim.trace().steps() < 1000, "{}", sim.trace().steps());
        disk.close().await.unwrap();
    })
    .unwrap();
}

#[test]
fn killed_host_takes_its_disk_with_it() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let host = sim.host("vm1");
    let device = Arc::new(RamDisk::new(1 << 20));
    let lower: Arc<dyn BlockDevice> = Arc::<RamDisk>::clone(&device);
    let rt = host.rt();
    host.spawn("guest", async move {
        let disk = Disk::builder(lower, Arc::clone(&rt)).open().await.unwrap();
        loop {
            disk.submit(Io::write(0, vec![1; 512].into()))
                .await
                .unwrap();
            rt.sleep(Duration::from_millis(1)).await;
        }
    });
    sim.run(sim.sleep(Duration::from_millis(9))).unwrap();
    host.kill();
    sim.run(sim.sleep(Duration::from_millis(9))).unwrap();
    assert_eq!(Arc::strong_count(&device), 1, "the disk is gone");
}
