//! [`Subject`]: the filter under test and the small world that it is tested in.

use std::sync::Arc;

use vaio_core::{
    BlockDevice, Capabilities, Descriptor, DeviceInfo, FilterFactory, FilterSpec, Promise, Support,
};

use crate::{audit::Taps, disk::BLOCK, sim::Host};

/// How big the filter is asked to be. Big caches hide bugs of wrapping and eviction: a factory
/// that has sizes must honour it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scale {
    /// Three or four slots, lines, records: every workload of three operations wraps or evicts.
    Tiny,
    /// A few dozen: for long random runs.
    Small,
}

/// The device whose content alone is promised to be a cut of the guest's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// What the filter sits on.
    Backing,
    /// One of the devices that the filter's needs name.
    Device(String),
}

/// A device beside the lower device.
#[derive(Clone)]
pub struct Beside {
    /// As in the descriptor's needs.
    pub name: String,
    /// Logical blocks at each scale.
    pub blocks: Blocks,
}

impl std::fmt::Debug for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name)
    }
}

/// Logical blocks at each scale.
pub type Blocks = Arc<dyn Fn(Scale) -> u64 + Send + Sync>;

/// Makes the filter's factory for a scale.
pub type MakeFactory = dyn Fn(Scale) -> Arc<dyn FilterFactory> + Send + Sync;

/// The filter under test, its settings and the devices around it. Made from any factory; the
/// defaults fit a filter that needs no device and has no sizes.
///
/// ```
/// # use vaio_testkit::Subject;
/// # fn demo(factory: impl vaio_core::FilterFactory) -> Subject {
/// Subject::new(factory).setting("mode", "write_back").guest_blocks(|_| 4)
/// # }
/// ```
#[derive(Clone)]
pub struct Subject {
    make: Arc<MakeFactory>,
    spec: FilterSpec,
    descriptor: Descriptor,
    guest_blocks: Blocks,
    beside: Vec<Beside>,
    target: Option<Target>,
    target_promise: Option<Promise>,
    below: DeviceInfo,
    /// A bug of the zoo: wraps the lower device of a disk that was opened before.
    reopened: Option<Arc<WrapDevice>>,
    /// For the barrier audit: wraps the devices of each disk that is opened.
    tap: Option<Arc<MakeTaps>>,
}

type WrapDevice = dyn Fn(Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> + Send + Sync;
type MakeTaps = dyn Fn(&Host) -> Taps + Send + Sync;

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject")
            .field("spec", &self.spec)
            .field("beside", &self.beside)
            .finish_non_exhaustive()
    }
}

/// Blocks of the guest's disk by default: enough for neighbours, few enough to enumerate.
fn guest_blocks(scale: Scale) -> u64 {
    match scale {
        Scale::Tiny => 4,
        Scale::Small => 64,
    }
}

/// The weakest disk that the contract allows: a volatile cache, no fua of its own.
fn weakest() -> DeviceInfo {
    let block = u32::try_from(BLOCK).expect("a logical block is small");
    DeviceInfo::new(0, block).with_caps(|caps: &mut Capabilities| {
        caps.volatile_cache = true;
        caps.fua = Support::Native;
        caps.write_zeroes = Support::Native;
        caps.discard = Support::Native;
    })
}

impl Subject {
    /// A filter that is the same at every scale.
    pub fn new(factory: impl FilterFactory) -> Self {
        let factory: Arc<dyn FilterFactory> = Arc::new(factory);
        Self::scaled(move |_| Arc::clone(&factory))
    }

    /// A filter that is made to a scale.
    pub fn scaled(make: impl Fn(Scale) -> Arc<dyn FilterFactory> + Send + Sync + 'static) -> Self {
        let descriptor = make(Scale::Tiny).descriptor();
        let beside = descriptor
            .needs
            .devices
            .iter()
            .map(|need| Beside {
                name: need.name.to_owned(),
                blocks: Arc::new(|scale| match scale {
                    Scale::Tiny => 16,
                    Scale::Small => 256,
                }),
            })
            .collect();
        // How an operator would name the device: the kit's provider knows it by the same name.
        let spec = descriptor
            .needs
            .devices
            .iter()
            .fold(FilterSpec::new(descriptor.name), |spec, need| {
                spec.with(need.name, need.name)
            });
        Self {
            make: Arc::new(make),
            spec,
            descriptor,
            guest_blocks: Arc::new(guest_blocks),
            beside,
            target: None,
            target_promise: None,
            below: weakest(),
            reopened: None,
            tap: None,
        }
    }

    /// The same world with another factory, whose descriptor is the same: an edited or wrapped
    /// filter.
    #[must_use]
    pub fn with_factory(
        mut self,
        make: impl Fn(Scale) -> Arc<dyn FilterFactory> + Send + Sync + 'static,
    ) -> Self {
        self.make = Arc::new(make);
        self
    }

    /// A setting, as an operator would write it.
    #[must_use]
    pub fn setting(mut self, key: &str, value: &str) -> Self {
        self.spec = self.spec.with(key, value);
        self
    }

    /// Logical blocks of the guest's disk: default 4 at tiny scale and 64 else; the fewer the faster,
    /// at least 4: the suite's operations reach so far.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn guest_blocks(mut self, blocks: impl Fn(Scale) -> u64 + Send + Sync + 'static) -> Self {
        let is_enough = [Scale::Tiny, Scale::Small].map(|scale| blocks(scale) >= 4);
        assert_eq!(is_enough, [true; 2], "a guest's disk has at least 4 blocks");
        self.guest_blocks = Arc::new(blocks);
        self
    }

    /// Logical blocks of a device that the filter needs: default 16 and 256.
    ///
    /// # Panics
    /// If the descriptor's needs do not name it.
    #[must_use]
    pub fn device(
        mut self,
        name: &str,
        blocks: impl Fn(Scale) -> u64 + Send + Sync + 'static,
    ) -> Self {
        let one = self
            .beside
            .iter_mut()
            .find(|one| one.name == name)
            .expect("the descriptor's needs name the device");
        one.blocks = Arc::new(blocks);
        self
    }

    /// The device that alone keeps the promise `Ordered` or `OrderedByFlush`. Default: the device
    /// called `replica` if the filter needs one, else what it sits on.
    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// What the target keeps beside what the guest is promised: a cache that destages in order
    /// keeps its *backing* a legal crash image, whatever becomes of the cache. Default: the
    /// descriptor's promise, where that is one of a target.
    #[must_use]
    pub fn target_keeps(mut self, promise: Promise) -> Self {
        self.target_promise = Some(promise);
        self
    }

    /// What the lower devices are like; their capacity is set by the kit. Default: 512-byte
    /// blocks, a volatile cache, everything native.
    #[must_use]
    pub fn below(mut self, info: DeviceInfo) -> Self {
        self.below = info;
        self
    }

    /// The descriptor at tiny scale.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The filter's name.
    pub fn name(&self) -> &'static str {
        self.descriptor.name
    }

    /// What the guest is promised: what the filter declares, else what any disk gives.
    pub fn promise(&self) -> Promise {
        self.descriptor.promise.unwrap_or(Promise::AtFlush)
    }

    /// What the target alone keeps.
    pub fn target_promise(&self) -> Promise {
        self.target_promise.unwrap_or(self.promise())
    }

    /// Whether blocks that were never written show what the filter makes of zeroes.
    pub(crate) fn shows_garbage_first(&self) -> bool {
        self.descriptor.content == vaio_core::Content::Transformed
    }

    pub(crate) fn factory(&self, scale: Scale) -> Arc<dyn FilterFactory> {
        (self.make)(scale)
    }

    pub(crate) fn spec(&self) -> &FilterSpec {
        &self.spec
    }

    /// Logical blocks of the guest's disk at a scale.
    pub fn blocks(&self, scale: Scale) -> u64 {
        (self.guest_blocks)(scale)
    }

    pub(crate) fn beside(&self) -> &[Beside] {
        &self.beside
    }

    pub(crate) fn info_below(&self, blocks: u64) -> DeviceInfo {
        let mut info = self.below;
        info.capacity = blocks * u64::from(info.logical_block);
        info
    }

    /// Wraps the lower device of each disk that is opened again.
    #[must_use]
    pub(crate) fn with_reopened(
        mut self,
        wrap: impl Fn(Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> + Send + Sync + 'static,
    ) -> Self {
        self.reopened = Some(Arc::new(wrap));
        self
    }

    pub(crate) fn reopened(&self, lower: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
        match &self.reopened {
            Some(wrap) => wrap(lower),
            None => lower,
        }
    }

    /// The same with each of its factories wrapped.
    pub(crate) fn wrapped(
        &self,
        wrap: impl Fn(Arc<dyn FilterFactory>) -> Arc<dyn FilterFactory> + Send + Sync + 'static,
    ) -> Self {
        let make = Arc::clone(&self.make);
        Self {
            make: Arc::new(move |scale| wrap(make(scale))),
            ..self.clone()
        }
    }

    pub(crate) fn tapped(&self, taps: impl Fn(&Host) -> Taps + Send + Sync + 'static) -> Self {
        let tap: Arc<MakeTaps> = Arc::new(taps);
        Self {
            tap: Some(tap),
            ..self.clone()
        }
    }

    pub(crate) fn taps(&self, host: &Host) -> Option<Taps> {
        self.tap.as_ref().map(|taps| taps(host))
    }

    /// The target of an ordered promise, if the filter makes one.
    pub(crate) fn ordered_target(&self) -> Option<Target> {
        if !matches!(
            self.target_promise(),
            Promise::Ordered | Promise::OrderedByFlush
        ) {
            return None;
        }
        let replica = || Target::Device("replica".into());
        let has_replica = self.beside.iter().any(|one| one.name == "replica");
        let default = if has_replica {
            replica()
        } else {
            Target::Backing
        };
        Some(self.target.clone().unwrap_or(default))
    }
}

impl<F: FilterFactory> From<F> for Subject {
    fn from(factory: F) -> Self {
        Self::new(factory)
    }
}
