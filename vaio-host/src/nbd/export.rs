//! [`Export`]: a disk under a name, and what the handshake says of it.

use std::sync::Arc;

use vaio_core::{DeviceInfo, Disk, Error, Result, Support};

use super::{
    context::{BASE_ALLOCATION, MetaContext},
    negotiate::Offer,
    proto::{BlockSizes, PAYLOAD_MAX, STRING_MAX, transmission_flag as flag},
};

/// A disk that clients can open.
#[derive(Clone, Debug)]
pub struct Export {
    name: String,
    description: String,
    pub(super) disk: Disk,
    /// Beside `base:allocation`, which is number 0.
    pub(super) contexts: Vec<Arc<dyn MetaContext>>,
}

impl Export {
    /// An export of `disk` under `name`, which may be empty.
    pub fn new(name: impl Into<String>, disk: Disk) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            disk,
            contexts: Vec::new(),
        }
    }

    /// Adds a text for people, shown in the list.
    #[must_use]
    pub fn with_description(mut self, text: impl Into<String>) -> Self {
        self.description = text.into();
        self
    }

    /// Adds a meta context.
    #[must_use]
    pub fn with_context(mut self, context: Arc<dyn MetaContext>) -> Self {
        self.contexts.push(context);
        self
    }

    /// The name that chooses it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Refuses what the protocol cannot say.
    pub(super) fn validate(&self) -> Result<()> {
        let names = self.contexts.iter().map(|context| context.name());
        for text in [self.name.as_str(), self.description.as_str()]
            .into_iter()
            .chain(names)
        {
            if text.len() > STRING_MAX || text.contains('\0') {
                return Err(Error::config(format!(
                    "export name, description or context is too long or holds a zero byte, len={}",
                    text.len()
                )));
            }
        }
        Ok(())
    }

    /// What the handshake says of it now.
    pub(super) fn offer(&self) -> Offer {
        let info = self.disk.info();
        let further = self.contexts.iter().map(|context| context.name());
        Offer {
            name: self.name.clone(),
            description: self.description.clone(),
            size: info.capacity,
            flags: flags(&info),
            blocks: blocks(&info),
            contexts: std::iter::once(BASE_ALLOCATION)
                .chain(further)
                .map(str::to_owned)
                .collect(),
        }
    }
}

/// Flags that follow from the disk. Multi-conn is always true: every connection reaches the one
/// chain of the disk, whose flush covers every write acknowledged before it.
fn flags(info: &DeviceInfo) -> u16 {
    let caps = info.caps;
    let writable = [
        (flag::SEND_FUA, caps.fua != Support::None),
        (flag::SEND_TRIM, caps.discard == Support::Native),
        (flag::SEND_WRITE_ZEROES, caps.write_zeroes != Support::None),
        (
            flag::SEND_FAST_ZERO,
            caps.write_zeroes != Support::None && caps.fast_zeroes,
        ),
    ];
    let always = [
        (flag::HAS_FLAGS, true),
        (flag::SEND_FLUSH, true),
        (flag::CAN_MULTI_CONN, true),
        (flag::SEND_CACHE, caps.prefetch == Support::Native),
        (flag::READ_ONLY, caps.read_only),
    ];
    let writable = writable.into_iter().filter(|_| !caps.read_only);
    always
        .into_iter()
        .chain(writable)
        .filter(|(_, set)| *set)
        .fold(0, |flags, (flag, _)| flags | flag)
}

/// Block sizes that follow from the disk; the largest is at most the protocol's.
fn blocks(info: &DeviceInfo) -> BlockSizes {
    let max = info.transfer_max.min(PAYLOAD_MAX);
    BlockSizes {
        min: info.sub_block.unwrap_or(info.logical_block),
        preferred: info.optimal_block.min(1 << max.ilog2()),
        max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_follow_the_capabilities() {
        let plain = DeviceInfo::new(1 << 20, 512);
        let base = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::CAN_MULTI_CONN;
        assert_eq!(flags(&plain), base);

        let full = plain.with_caps(|caps| {
            caps.fua = Support::Emulated;
            caps.write_zeroes = Support::Emulated;
            caps.fast_zeroes = true;
            caps.discard = Support::Native;
            caps.prefetch = Support::Native;
        });
        let writes =
            flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
        assert_eq!(flags(&full), base | writes | flag::SEND_CACHE);

        let emulated = full.with_caps(|caps| {
            caps.discard = Support::Emulated;
            caps.prefetch = Support::Emulated;
            caps.fast_zeroes = false;
        });
        let some = flag::SEND_FUA | flag::SEND_WRITE_ZEROES;
        assert_eq!(flags(&emulated), base | some);

        let read_only = full.with_caps(|caps| caps.read_only = true);
        assert_eq!(flags(&read_only), base | flag::READ_ONLY | flag::SEND_CACHE);
    }

    #[test]
    fn blocks_follow_the_sizes() {
        let mut info = DeviceInfo::new(1 << 30, 4096);
        info.optimal_block = 64 << 20;
        let sizes = |min, preferred| BlockSizes {
            min,
            preferred,
            max: PAYLOAD_MAX,
        };
        assert_eq!(blocks(&info), sizes(4096, 32 << 20));
        info.sub_block = Some(512);
        info.optimal_block = 4096;
        assert_eq!(blocks(&info), sizes(512, 4096));
        info.transfer_max = 12 << 20;
        info.optimal_block = 16 << 20;
        let odd = blocks(&info);
        assert_eq!((odd.preferred, odd.max), (8 << 20, 12 << 20));
    }
}
