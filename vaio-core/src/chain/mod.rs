//! The chain: an immutable snapshot of a disk's filters and device, with a table that says for
//! every level and operation where an IO goes next. A filter that does not intercept an operation
//! is not in its path and costs nothing.
//!
//! Levels count from the top: level 0 is what the port submits into, level `i + 1` what filter
//! `i` submits into. With `n` filters, target `n` is the device.

mod answer;
mod emulate;
mod enter;
mod fault;
mod hooked;
mod hop;
mod next;
mod table;

pub use hop::Submit;
pub use next::Next;
pub(crate) use next::{IoCx, Path};
pub(crate) use table::{Level, Rule};

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
};

use crate::{
    AllocationMap, BlockDevice, BypassSafety, Descriptor, DeviceInfo, Error, Extent, Filter,
    Health, Hooks, LayerState, Result,
    core::Core,
    event::{EventKind, Notice, Severity},
    stats::LayerCounters,
    sync::lock,
};

/// Most filters on one disk.
pub const LAYERS_MAX: usize = 16;

/// One filter instance in a chain. Shared by successive chains, and by the instance's context.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) name: Arc<str>,
    pub(crate) descriptor: Descriptor,
    /// Whether it is never safe to bypass: its IO outlives a caller that lets go.
    pub(crate) is_never: bool,
    pub(crate) filter: Arc<dyn Filter>,
    pub(crate) hooks: Option<Arc<dyn Hooks>>,
    pub(crate) health: Arc<LayerHealth>,
    pub(crate) counters: Arc<LayerCounters>,
}

/// How a filter instance fares. Lives apart from the instance, so that its own tasks can be
/// blamed too.
#[derive(Debug, Default)]
pub(crate) struct LayerHealth {
    health: AtomicU8,
    fault: Mutex<Option<String>>,
}

impl LayerHealth {
    pub(crate) fn get(&self) -> Health {
        Health::from_byte(self.health.load(Relaxed))
    }

    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.health.load(Relaxed) == Health::Active as u8
    }

    pub(crate) fn fault(&self) -> Option<String> {
        lock(&self.fault).clone()
    }

    /// Sets the health for the worse, once.
    fn fail(&self, health: Health, fault: &str) -> bool {
        let mut first = lock(&self.fault);
        if first.is_some() {
            return false;
        }
        *first = Some(fault.to_owned());
        self.health.store(health as u8, Relaxed);
        true
    }
}

impl Layer {
    /// What the filter says of itself; one that panics is blamed and says nothing.
    pub(crate) fn state(&self, core: &Core) -> LayerState {
        let said = catch_unwind(AssertUnwindSafe(|| self.filter.state()));
        let filter = said.unwrap_or_else(|panic| {
            self.blame(core, EventKind::FilterPanicked, &panic_text(panic.as_ref()));
            crate::FilterState {
                dirty_bytes: u64::MAX,
                ..Default::default()
            }
        });
        LayerState {
            name: Arc::clone(&self.name),
            version: self.descriptor.version,
            class: self.descriptor.class,
            health: self.health.get(),
            fault: self.health.fault(),
            faults: self.counters.faults.load(Relaxed),
            filter,
        }
    }

    /// Bytes that would be lost or missed without the filter; everything where it cannot say.
    fn dirty_bytes(&self) -> u64 {
        catch_unwind(AssertUnwindSafe(|| self.filter.state().dirty_bytes)).unwrap_or(u64::MAX)
    }

    /// Records a breach of contract that makes the filter unfit, and takes it out of the path if
    /// that is safe. Says whether IO goes on without it.
    pub(crate) fn blame(&self, core: &Core, kind: EventKind, what: &str) -> bool {
        self.counters.faults.fetch_add(1, Relaxed);
        let can_bypass = match self.descriptor.bypass {
            BypassSafety::Always => true,
            BypassSafety::WhenClean => {
                self.health.get() != Health::Faulted && self.dirty_bytes() == 0
            }
            BypassSafety::Never => false,
        };
        core.events
            .send(Notice::of(Severity::Error, kind, what.to_owned()).with_filter(&self.name));
        let health = if can_bypass {
            Health::Bypassed
        } else {
            Health::Faulted
        };
        if self.health.fail(health, what) {
            let notice = if can_bypass {
                Notice::of(
                    Severity::Warning,
                    EventKind::FilterBypassed,
                    format!("IO goes on without the filter: {what}"),
                )
                .with_next_step("replace or detach the filter when convenient")
            } else {
                Notice::of(
                    Severity::Error,
                    EventKind::FilterFaulted,
                    format!("the disk's IO fails, because going on without the filter is not safe: {what}"),
                )
                .with_next_step("replace the filter, or close the disk and open it with a good one")
            };
            core.events.send(notice.with_filter(&self.name));
            core.published.set(());
        }
        can_bypass
    }

    /// Records a breach that spoils one IO but does not make the filter unfit for others, unless
    /// it is an observer, which is taken out of the path.
    pub(crate) fn rebuke(&self, core: &Core, what: &str) -> bool {
        if self.descriptor.bypass == BypassSafety::Always {
            return self.blame(core, EventKind::FilterLied, what);
        }
        self.counters.faults.fetch_add(1, Relaxed);
        core.events.send(
            Notice::of(Severity::Error, EventKind::FilterLied, what.to_owned())
                .with_filter(&self.name)
                .with_next_step("report it to the filter's vendor; the IO was failed"),
        );
        false
    }
}

/// The filters and device of one disk at one time.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) core: Arc<Core>,
    pub(crate) layers: Box<[Arc<Layer>]>,
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) device_counters: Arc<LayerCounters>,
    /// Only what is below a filter that is being opened: its levels are not those of the disk.
    pub(crate) is_part: bool,
    pub(crate) levels: Box<[Level]>,
}

impl Chain {
    /// Builds a chain from filters in order (top first) over a device.
    ///
    /// # Errors
    /// A filter cannot sit where it is: its `shape` refuses, its numbers do not validate, or it
    /// refuses flush over a device that needs one.
    pub(crate) fn new(
        core: Arc<Core>,
        layers: Vec<Arc<Layer>>,
        device: Arc<dyn BlockDevice>,
        device_counters: Arc<LayerCounters>,
    ) -> Result<Self> {
        let levels = table::build(&layers, &device.info())?;
        Ok(Self {
            core,
            layers: layers.into(),
            device,
            device_counters,
            is_part: false,
            levels,
        })
    }

    /// What the disk looks like to whoever submits into `level`.
    pub(crate) fn info(&self, level: usize) -> &DeviceInfo {
        &self.levels[level].info
    }

    /// What is wrong with an extent submitted into the top, if anything.
    pub(crate) fn misfit(&self, kind: crate::OpKind, extent: Extent) -> Option<&'static str> {
        self.levels[0].misfit(kind, extent)
    }

    /// What is known of the allocation, as seen by whoever submits into `level`.
    pub(crate) async fn allocation(&self, level: u8, range: Extent) -> Result<AllocationMap> {
        let info = self.info(level.into());
        if range.end() > info.capacity {
            let text = format!(
                "range is past the end of the disk, capacity={}",
                info.capacity
            );
            return Err(Error::invalid(text).with_extent(range));
        }
        let mut map = self.device.allocation(range).await?;
        for layer in self.layers[level.into()..].iter().rev() {
            match layer.health.get() {
                Health::Active => {}
                Health::Bypassed => continue,
                Health::Faulted => {
                    // What is above it is not what is below it, and no one can say.
                    map = AllocationMap::uniform(range, crate::Allocation::Data);
                    continue;
                }
            }
            let above = catch_unwind(AssertUnwindSafe(|| layer.filter.allocation(map.clone())));
            map = match above {
                Ok(above) if above.range() == range => above,
                Ok(_) => {
                    layer.rebuke(
                        &self.core,
                        "the filter answered for another range of allocation",
                    );
                    AllocationMap::uniform(range, crate::Allocation::Data)
                }
                Err(panic) => {
                    let text = panic_text(panic.as_ref());
                    layer.blame(&self.core, EventKind::FilterPanicked, &text);
                    AllocationMap::uniform(range, crate::Allocation::Data)
                }
            };
        }
        Ok(map)
    }

    /// Name of what stands at `target`.
    pub(crate) fn name_of(&self, target: u8) -> Arc<str> {
        match self.layers.get(target as usize) {
            Some(layer) => Arc::clone(&layer.name),
            None => Arc::from("device"),
        }
    }
}

/// The text of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the filter panicked: {}", text.unwrap_or("no message"))
}
