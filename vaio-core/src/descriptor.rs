//! [`Descriptor`]: what a filter tells about itself before it touches a disk. Pure.
//!
//! It fails closed: an operation or flag that the descriptor does not name is refused, so that a
//! new one can never slip past an old filter.

use crate::{Error, OpKind, Result, SettingSpec};

/// Version of the filter contract. A filter built against another major version, or a newer
/// minor one, is refused at attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ApiVersion {
    /// Changes when an existing filter would break.
    pub major: u16,
    /// Changes when something was added.
    pub minor: u16,
}

impl ApiVersion {
    /// The version of this crate.
    pub const CURRENT: Self = Self { major: 1, minor: 0 };

    /// Whether this crate can run a filter built against `self`.
    pub const fn is_supported(self) -> bool {
        let current = Self::CURRENT;
        self.major == current.major && self.minor <= current.minor
    }
}

/// What a filter is for. The framework orders a chain by class, top (guest) to bottom (disk), in
/// the order of these variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum Class {
    /// Looks, changes nothing.
    Inspect,
    /// Delays, changes nothing.
    Qos,
    /// Sends writes elsewhere. At most one per disk.
    Replicate,
    /// Holds data nearer to the VM. At most one per disk.
    Cache,
    /// Changes content on its way down (encryption, compression).
    Transform,
}

impl Class {
    /// Whether a disk may have only one filter of this class.
    pub const fn is_unique(self) -> bool {
        matches!(self, Self::Replicate | Self::Cache)
    }

    /// Name in policies and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inspect => "inspect",
            Self::Qos => "qos",
            Self::Replicate => "replicate",
            Self::Cache => "cache",
            Self::Transform => "transform",
        }
    }
}

/// What a chain does with an operation when it reaches a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum Disposition {
    /// The filter must not meet it: masked from the disk, and emulated by the framework above
    /// this filter where it can (write zeroes by writes, discard and prefetch by nothing).
    #[default]
    Refuse,
    /// It goes past the filter at no cost.
    Pass,
    /// It goes to [`Filter::io`](crate::Filter::io).
    Intercept,
}

/// Flags of intercepted operations that a filter understands. What it does not accept is taken
/// off by the framework: fua becomes a flush after the write, `may_unmap` is dropped, `fast_only`
/// fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct AcceptedFlags {
    /// Forwards or honours `fua`.
    pub fua: bool,
    /// Honours `may_unmap` of write zeroes.
    pub may_unmap: bool,
    /// Honours `fast_only` of write zeroes.
    pub fast_only: bool,
}

/// Per operation: intercept, pass or refuse; and the flags accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct OpPolicy {
    ops: [Disposition; OpKind::COUNT],
    flags: AcceptedFlags,
}

impl OpPolicy {
    /// What happens to an operation of `kind`.
    pub const fn of(&self, kind: OpKind) -> Disposition {
        self.ops[kind as usize]
    }

    /// The flags accepted on intercepted operations.
    pub const fn flags(&self) -> AcceptedFlags {
        self.flags
    }
}

/// What happens to IO when the filter fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum BypassSafety {
    /// It forwards each IO at most once and unchanged, and holds nothing: IO goes on without it.
    Always,
    /// It can be left out while [`FilterState::dirty_bytes`](crate::FilterState) is zero.
    WhenClean,
    /// It holds or changes data: leaving it out would corrupt, so the VM's IO fails.
    Never,
}

/// When a filter may be attached, detached or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum Rechain {
    /// On a running disk.
    Live,
    /// Only while the disk holds no data (a transform: old content would read as garbage).
    EmptyDisk,
    /// Only when the disk is opened.
    Offline,
}

/// What the filter does to the content below it; the stack manifest records it, so that a disk is
/// never opened with such a filter missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum Content {
    /// The disk below is complete and readable without it.
    Unchanged,
    /// The disk below is complete only while the filter is clean.
    Held,
    /// The disk below is not readable without it.
    Transformed,
}

/// What a later successful flush covers after a flush failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum FlushRetry {
    /// Only writes acknowledged after the failure.
    #[default]
    Forgets,
    /// The writes before the failure too.
    Covers,
}

/// What may survive a crash: the promise that a testkit holds the filter to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum Promise {
    /// What a disk with a volatile cache gives: flushed and fua writes survive.
    AtFlush,
    /// Every acknowledged write survives.
    AtAck,
    /// The target alone is at all times a legal crash image of the source at some moment.
    OrderedByFlush,
    /// The target alone equals an exact prefix of the acknowledged history.
    Ordered,
}

/// A device that the host must open for the filter: it never opens one itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct DeviceNeed {
    /// Name for [`AttachContext::device`](crate::AttachContext::device), and of the setting
    /// that names the device (`file`, `log`, `target`).
    pub name: &'static str,
    /// Smallest useful capacity in bytes.
    pub capacity_min: u64,
}

/// What the filter needs of the disk and host; checked at attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Needs {
    /// IOs of its own that it may have in flight below itself; reserved for it alone, so that
    /// layers cannot starve each other. More wait. 1 to 256.
    pub reserved_slots: u16,
    /// Devices beside the disk.
    pub devices: &'static [DeviceNeed],
}

/// What a filter tells about itself. Constant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Descriptor {
    /// Name in policies, events and manifests: lower case, digits, `-` and `_`.
    pub name: &'static str,
    /// One sentence for `vaio filters`.
    pub summary: &'static str,
    /// Version of the filter, for people and manifests.
    pub version: &'static str,
    /// Version of this contract that it was built against.
    pub api: ApiVersion,
    /// Place in the chain.
    pub class: Class,
    /// Operations and flags.
    pub ops: OpPolicy,
    /// What happens to IO when it fails.
    pub bypass: BypassSafety,
    /// When it may come and go.
    pub rechain: Rechain,
    /// What it does to the content below.
    pub content: Content,
    /// What its flush covers after a failed one.
    pub flush_retry: FlushRetry,
    /// What it promises across a crash, if it claims anything.
    pub promise: Option<Promise>,
    /// What it needs.
    pub needs: Needs,
    /// Its settings.
    pub settings: &'static [SettingSpec],
}

impl Descriptor {
    /// A descriptor that refuses every operation, built against this version of the contract.
    ///
    /// Defaults by class: `Inspect` and `Qos` are `Always` safe to bypass, `Live` and leave
    /// content unchanged; `Replicate` and `Cache` are `Never`, `Live` and hold content (a
    /// replicator that holds none says so); `Transform` is `Never`, `EmptyDisk`, transformed.
    pub const fn new(name: &'static str, version: &'static str, class: Class) -> Self {
        let (bypass, rechain, content) = match class {
            Class::Inspect | Class::Qos => {
                (BypassSafety::Always, Rechain::Live, Content::Unchanged)
            }
            Class::Replicate | Class::Cache => (BypassSafety::Never, Rechain::Live, Content::Held),
            Class::Transform => (
                BypassSafety::Never,
                Rechain::EmptyDisk,
                Content::Transformed,
            ),
        };
        Self {
            name,
            summary: "",
            version,
            api: ApiVersion::CURRENT,
            class,
            ops: OpPolicy {
                ops: [Disposition::Refuse; OpKind::COUNT],
                flags: AcceptedFlags {
                    fua: false,
                    may_unmap: false,
                    fast_only: false,
                },
            },
            bypass,
            rechain,
            content,
            flush_retry: FlushRetry::Forgets,
            promise: None,
            needs: Needs {
                reserved_slots: 1,
                devices: &[],
            },
            settings: &[],
        }
    }

    /// Sets the one-sentence summary.
    #[must_use]
    pub const fn with_summary(mut self, summary: &'static str) -> Self {
        self.summary = summary;
        self
    }

    /// These operations go to [`Filter::io`](crate::Filter::io).
    #[must_use]
    pub const fn intercept(self, kinds: &[OpKind]) -> Self {
        self.dispose(kinds, Disposition::Intercept)
    }

    /// These operations go past the filter.
    #[must_use]
    pub const fn pass(self, kinds: &[OpKind]) -> Self {
        self.dispose(kinds, Disposition::Pass)
    }

    const fn dispose(mut self, kinds: &[OpKind], how: Disposition) -> Self {
        let mut index = 0;
        while index < kinds.len() {
            self.ops.ops[kinds[index] as usize] = how;
            index += 1;
        }
        self
    }

    /// The filter forwards or honours `fua`.
    #[must_use]
    pub const fn accept_fua(mut self) -> Self {
        self.ops.flags.fua = true;
        self
    }

    /// The filter forwards or honours `may_unmap` and `fast_only` of write zeroes.
    #[must_use]
    pub const fn accept_zeroes_flags(mut self) -> Self {
        self.ops.flags.may_unmap = true;
        self.ops.flags.fast_only = true;
        self
    }

    /// Sets what happens to IO when the filter fails.
    #[must_use]
    pub const fn with_bypass(mut self, bypass: BypassSafety) -> Self {
        self.bypass = bypass;
        self
    }

    /// Sets when the filter may come and go.
    #[must_use]
    pub const fn with_rechain(mut self, rechain: Rechain) -> Self {
        self.rechain = rechain;
        self
    }

    /// Sets what the filter does to the content below.
    #[must_use]
    pub const fn with_content(mut self, content: Content) -> Self {
        self.content = content;
        self
    }

    /// Sets what its flush covers after a failed one.
    #[must_use]
    pub const fn with_flush_retry(mut self, flush_retry: FlushRetry) -> Self {
        self.flush_retry = flush_retry;
        self
    }

    /// Declares a promise.
    #[must_use]
    pub const fn with_promise(mut self, promise: Promise) -> Self {
        self.promise = Some(promise);
        self
    }

    /// Sets the slots reserved for IO of its own.
    #[must_use]
    pub const fn with_reserved_slots(mut self, slots: u16) -> Self {
        self.needs.reserved_slots = slots;
        self
    }

    /// Sets the devices it needs.
    #[must_use]
    pub const fn with_devices(mut self, devices: &'static [DeviceNeed]) -> Self {
        self.needs.devices = devices;
        self
    }

    /// Sets its settings.
    #[must_use]
    pub const fn with_settings(mut self, settings: &'static [SettingSpec]) -> Self {
        self.settings = settings;
        self
    }

    /// Says what is wrong with the descriptor, if anything; checked at attach.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), naming filter and field.
    pub fn validate(&self) -> Result<()> {
        let bad = |text: String| Err(Error::config(text).with_filter(self.name));
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(valid) {
            return bad(format!(
                "filter name has other than a-z 0-9 - _, name={:?}",
                self.name
            ));
        }
        if !self.api.is_supported() {
            let (api, own) = (self.api, ApiVersion::CURRENT);
            return bad(format!(
                "filter was built for another filter API; rebuild it, filter_api={}.{} api={}.{}",
                api.major, api.minor, own.major, own.minor
            ));
        }
        for kind in [OpKind::Read, OpKind::Write] {
            if self.ops.of(kind) == Disposition::Refuse {
                return bad(format!(
                    "filter refuses an operation that every disk needs, op={kind}"
                ));
            }
        }
        if !(1..=256).contains(&self.needs.reserved_slots) {
            return bad(format!(
                "reserved slots are 1 to 256, reserved_slots={}",
                self.needs.reserved_slots
            ));
        }
        if self.bypass == BypassSafety::Always && self.content != Content::Unchanged {
            return bad(
                "a filter that holds or changes content is not always safe to bypass".into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ_WRITE: &[OpKind] = &[OpKind::Read, OpKind::Write];

    #[test]
    fn unnamed_operations_are_refused() {
        let descriptor = Descriptor::new("x", "1", Class::Inspect).intercept(READ_WRITE);
        assert_eq!(descriptor.ops.of(OpKind::Discard), Disposition::Refuse);
        assert!(descriptor.validate().is_ok());
    }

    #[test]
    fn descriptor_refusing_read_or_with_wrong_api_is_invalid() {
        let descriptor = Descriptor::new("x", "1", Class::Inspect).pass(&[OpKind::Write]);
        assert!(descriptor.validate().is_err());
        let mut descriptor = Descriptor::new("x", "1", Class::Inspect).pass(READ_WRITE);
        descriptor.api.minor += 1;
        assert!(
            descriptor
                .validate()
                .unwrap_err()
                .to_string()
                .contains("another filter API")
        );
    }

    #[test]
    fn transform_that_claims_always_is_invalid() {
        let descriptor = Descriptor::new("x", "1", Class::Transform)
            .intercept(READ_WRITE)
            .with_bypass(BypassSafety::Always);
        assert!(descriptor.validate().is_err());
    }
}
