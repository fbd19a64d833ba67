//! [`Mutant`]: what is done to the IO of one call site, and the lower device that does it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{Either, select};
use vaio_core::{
    AllocationMap, BlockDevice, DeviceInfo, DeviceProvider, DiscardReads, Extent, Io, Op, OpKind,
    Reply, Result, RuntimeExt, Support, sync::Notify,
};

use super::site::{SiteId, Sites};
use crate::{disk::SimDevices, sim::Host};

/// A swapped IO waits at most so long, in the time of the simulator, for another that it is done
/// after.
const SWAP_WAIT: Duration = Duration::from_millis(1);

/// What is done to every IO of a call site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Mutant {
    /// Answered with success and not done: a write, a flush, a discard that promises zeroes.
    Drop,
    /// Written without fua.
    NoFua,
    /// Answered with success at once, and done without anyone waiting.
    Early,
    /// Answered with success at once, and done after the next IO of the process: what was to wait
    /// for it overtakes it.
    Swap,
    /// A failure is answered as success; a failed read with zeroes.
    ErrorIgnored,
}

impl Mutant {
    /// Every mutant, in the order of the report.
    pub const ALL: [Self; 5] = [
        Self::Drop,
        Self::NoFua,
        Self::Early,
        Self::Swap,
        Self::ErrorIgnored,
    ];

    /// As in reports and explanations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::NoFua => "no-fua",
            Self::Early => "early",
            Self::Swap => "swap",
            Self::ErrorIgnored => "error-ignored",
        }
    }

    /// The mutant of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mutant| mutant.name() == name)
    }

    /// Whether the contract lets a filter tell it from the original. What it cannot tell, such as a
    /// discard that the device was free to ignore, says nothing about the filter.
    pub(super) fn changes(self, op: OpKind, has_fua: bool, below: &DeviceInfo) -> bool {
        let caps = &below.caps;
        let is_write = matches!(op, OpKind::Write | OpKind::WriteZeroes);
        match self {
            Self::Drop => match op {
                OpKind::Flush => caps.volatile_cache,
                OpKind::Write | OpKind::WriteZeroes => true,
                OpKind::Discard => caps.discard_reads == DiscardReads::Zero,
                _ => false,
            },
            Self::NoFua => is_write && has_fua && caps.volatile_cache && caps.fua != Support::None,
            Self::Early => is_write || (op == OpKind::Flush && caps.volatile_cache),
            Self::Swap => is_write,
            Self::ErrorIgnored => op != OpKind::Prefetch,
        }
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How often something happened at a site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) ios: u64,
    pub(super) fua: u64,
    pub(super) failed: u64,
}

/// What the devices do while a case runs: count, or mutate one site.
#[derive(Debug)]
pub(super) struct Tap {
    sites: Arc<Sites>,
    change: Option<Change>,
    counts: Mutex<BTreeMap<SiteId, Count>>,
    /// IO that no filter waits for.
    of_framework: AtomicU64,
}

/// A mutant at a site.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) site: SiteId,
    pub(super) mutant: Mutant,
    /// Only IO of this kind is looked at.
    pub(super) op: OpKind,
}

impl Tap {
    pub(super) fn recording(sites: &Arc<Sites>) -> Arc<Self> {
        Self::new(sites, None)
    }

    pub(super) fn mutating(sites: &Arc<Sites>, change: Change) -> Arc<Self> {
        Self::new(sites, Some(change))
    }

    fn new(sites: &Arc<Sites>, change: Option<Change>) -> Arc<Self> {
        Arc::new(Self {
            sites: Arc::clone(sites),
            change,
            counts: Mutex::default(),
            of_framework: AtomicU64::new(0),
        })
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<SiteId, Count>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counted(&self) -> BTreeMap<SiteId, Count> {
        self.counts().clone()
    }

    pub(super) fn of_framework(&self) -> u64 {
        self.of_framework.load(Relaxed)
    }

    /// Counts the IO that is polled now; the site, if there is one.
    fn count(&self, device: &Arc<str>, io: &Io) -> Option<SiteId> {
        let Some(site) = self.sites.here(device, io.op.kind()) else {
            self.of_framework.fetch_add(1, Relaxed);
            return None;
        };
        let mut counts = self.counts();
        let count = counts.entry(site).or_default();
        count.ios += 1;
        count.fua += u64::from(io.op.is_fua());
        Some(site)
    }

    /// What is done to the IO that is polled now.
    fn mutant(&self, change: Change, device: &Arc<str>, io: &Io) -> Option<Mutant> {
        let is_it =
            io.op.kind() == change.op && self.sites.here(device, change.op) == Some(change.site);
        is_it.then_some(change.mutant)
    }
}

/// The taps on the devices of one open disk.
#[derive(Clone, Debug)]
pub(crate) struct Taps {
    tap: Arc<Tap>,
    host: Host,
    passed: Arc<Passed>,
}

/// IO that ended on any device of the disk.
#[derive(Debug, Default)]
struct Passed {
    count: AtomicU64,
    more: Notify,
}

impl Taps {
    pub(super) fn new(tap: &Arc<Tap>, host: &Host) -> Self {
        Self {
            tap: Arc::clone(tap),
            host: host.clone(),
            passed: Arc::default(),
        }
    }

    pub(crate) fn device(&self, name: &str, device: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
        Arc::new(Tapped {
            taps: self.clone(),
            name: name.into(),
            device,
        })
    }

    pub(crate) fn devices(&self, devices: SimDevices) -> TappedDevices {
        TappedDevices {
            taps: self.clone(),
            devices,
        }
    }
}

/// Devices with taps.
#[derive(Debug)]
pub(crate) struct TappedDevices {
    taps: Taps,
    devices: SimDevices,
}

#[async_trait]
impl DeviceProvider for TappedDevices {
    async fn open_device(
        &self,
        filter: &str,
        name: &str,
        spec: &str,
    ) -> Result<Arc<dyn BlockDevice>> {
        let device = self.devices.open_device(filter, name, spec).await?;
        Ok(self.taps.device(spec, device))
    }
}

/// A lower device, as the audit lets the filter see it.
#[derive(Debug)]
struct Tapped {
    taps: Taps,
    name: Arc<str>,
    device: Arc<dyn BlockDevice>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlockDevice for Tapped {
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    // Its body begins at the first poll: on the stack are the futures that wait for it.
    async fn submit(&self, io: Io) -> Result<Reply> {
        let tap = &self.taps.tap;
        let Some(change) = tap.change else {
            let site = tap.count(&self.name, &io);
            let result = self.device.submit(io).await;
            if let (Some(site), Err(_)) = (site, &result) {
                tap.counts().entry(site).or_default().failed += 1;
            }
            return result;
        };
        let result = match tap.mutant(change, &self.name, &io) {
            None => self.device.submit(io).await,
            Some(mutant) => self.mutated(mutant, io).await,
        };
        let passed = &self.taps.passed;
        passed.count.fetch_add(1, Relaxed);
        passed.more.notify_all();
        result
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        self.device.allocation(range).await
    }
}

impl Tapped {
    async fn mutated(&self, mutant: Mutant, io: Io) -> Result<Reply> {
        match mutant {
            Mutant::Drop => Ok(Reply::Done),
            Mutant::NoFua => self.device.submit(without_fua(io)).await,
            Mutant::Early => {
                self.later(io, false);
                Ok(Reply::Done)
            }
            Mutant::Swap => {
                self.later(io, true);
                Ok(Reply::Done)
            }
            Mutant::ErrorIgnored => {
                let nothing = match io.op {
                    Op::Read { extent } => Reply::Data(zeroes(extent)),
                    _ => Reply::Done,
                };
                Ok(self.device.submit(io).await.unwrap_or(nothing))
            }
        }
    }

    /// Has it done by a task of the process.
    fn later(&self, io: Io, is_overtaken: bool) {
        let (taps, device) = (self.taps.clone(), Arc::clone(&self.device));
        // Its own answer, which follows at once, is not another IO's.
        let first = taps.passed.count.load(Relaxed) + 1;
        self.taps.host.spawn("audit.later", async move {
            if is_overtaken {
                let overtaken = std::pin::pin!(taps.passed.beyond(first));
                let patience = taps.host.rt().sleep(SWAP_WAIT);
                match select(overtaken, patience).await {
                    Either::Left(_) | Either::Right(_) => {}
                }
            }
            // The filter was told of success; that is the mutant.
            let _ = device.submit(io).await;
        });
    }
}

impl Passed {
    async fn beyond(&self, count: u64) {
        loop {
            let more = self.more.listen();
            if self.count.load(Relaxed) > count {
                return;
            }
            more.await;
        }
    }
}

fn without_fua(mut io: Io) -> Io {
    match &mut io.op {
        Op::Write { fua, .. } | Op::WriteZeroes { fua, .. } | Op::Discard { fua, .. } => {
            *fua = false;
        }
        _ => {}
    }
    io
}

fn zeroes(extent: Extent) -> Bytes {
    let len = usize::try_from(extent.len()).expect("a read fits in memory");
    Bytes::from(vec![0; len])
}
