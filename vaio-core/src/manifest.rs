//! The stack manifest: what the sidecar says of the filters that a disk was last opened with, so
//! that it is never opened with the one that holds or changes its data missing. Pure.

use bytes::Bytes;

use crate::{Content, Descriptor, Error, ErrorKind, Result};

/// What is recorded of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// Random, made at the first open: a copy of a disk with another's sidecar is found.
    pub identity: u64,
    /// Lineage of content.
    pub generation: u64,
    /// Whether the disk was closed in order.
    pub clean: bool,
    /// Bytes, as seen at the top, at the last open.
    pub capacity: u64,
    /// The filters, top to bottom.
    pub layers: Vec<ManifestLayer>,
}

/// What is recorded of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ManifestLayer {
    pub name: String,
    pub version: String,
    pub content: Content,
}

impl Manifest {
    pub(crate) const KEY: &str = "vaio.manifest";

    pub(crate) fn encode(&self) -> Bytes {
        let mut text = format!(
            "identity={:016x}\ngeneration={}\nclean={}\ncapacity={}\n",
            self.identity, self.generation, self.clean, self.capacity
        );
        for layer in &self.layers {
            let content = match layer.content {
                Content::Unchanged => "unchanged",
                Content::Held => "held",
                Content::Transformed => "transformed",
            };
            text.push_str("filter=");
            text.push_str(&[&layer.name, content, &layer.version].join(" "));
            text.push('\n');
        }
        text.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                "the sidecar's stack manifest is not readable",
            )
        })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut manifest = Self {
            identity: 0,
            generation: 0,
            clean: false,
            capacity: 0,
            layers: Vec::new(),
        };
        for line in std::str::from_utf8(bytes).ok()?.lines() {
            let (key, value) = line.split_once('=')?;
            match key {
                "identity" => manifest.identity = u64::from_str_radix(value, 16).ok()?,
                "generation" => manifest.generation = value.parse().ok()?,
                "clean" => manifest.clean = value.parse().ok()?,
                "capacity" => manifest.capacity = value.parse().ok()?,
                "filter" => {
                    let mut words = value.splitn(3, ' ');
                    manifest.layers.push(ManifestLayer {
                        name: words.next()?.into(),
                        content: match words.next()? {
                            "unchanged" => Content::Unchanged,
                            "held" => Content::Held,
                            "transformed" => Content::Transformed,
                            _ => return None,
                        },
                        version: words.next()?.into(),
                    });
                }
                _ => return None,
            }
        }
        Some(manifest)
    }

    pub(crate) fn layers_of<'a>(
        descriptors: impl Iterator<Item = &'a Descriptor>,
    ) -> Vec<ManifestLayer> {
        descriptors
            .map(|descriptor| ManifestLayer {
                name: descriptor.name.into(),
                version: descriptor.version.into(),
                content: descriptor.content,
            })
            .collect()
    }

    /// Refuses a stack that lacks a filter which the content needs, or has a transform that the
    /// content was not written through, or has transforms in another order.
    pub(crate) fn check<'a>(
        &self,
        stack: impl Iterator<Item = &'a Descriptor> + Clone,
        is_empty_disk: bool,
    ) -> Result<()> {
        for layer in &self.layers {
            let present = stack
                .clone()
                .any(|descriptor| descriptor.name == layer.name);
            let needed = match layer.content {
                Content::Unchanged => false,
                Content::Held => !self.clean,
                Content::Transformed => true,
            };
            if needed && !present {
                let why = match layer.content {
                    Content::Transformed => "the disk's content was written through it",
                    _ => "it may hold data that the disk lacks",
                };
                return Err(Error::refused(format!(
                    "a filter is missing from the stack: {why}; open the disk with it, missing={}",
                    layer.name
                )));
            }
        }
        let transforms = |descriptor: &&Descriptor| descriptor.content == Content::Transformed;
        let wanted: Vec<_> = stack
            .filter(transforms)
            .map(|descriptor| descriptor.name)
            .collect();
        let recorded: Vec<_> = self
            .layers
            .iter()
            .filter(|layer| layer.content == Content::Transformed)
            .map(|layer| layer.name.as_str())
            .collect();
        if wanted != recorded && !is_empty_disk {
            return Err(Error::refused(format!(
                "the disk holds data that was not written through these transforms; \
                 copy it to a new disk instead, recorded={recorded:?} wanted={wanted:?}"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Class, OpKind};

    fn descriptor(name: &'static str, class: Class) -> Descriptor {
        Descriptor::new(name, "1.0 beta", class).intercept(&[OpKind::Read, OpKind::Write])
    }

    fn manifest(clean: bool, stack: &[Descriptor]) -> Manifest {
        let layers = Manifest::layers_of(stack.iter());
        Manifest {
            identity: 7,
            generation: 3,
            clean,
            capacity: 1 << 30,
            layers,
        }
    }

    #[test]
    fn decode_undoes_encode() {
        let manifest = manifest(
            true,
            &[
                descriptor("a", Class::Cache),
                descriptor("b", Class::Transform),
            ],
        );
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
        assert!(Manifest::decode(b"nonsense").is_err());
    }

    #[test]
    fn stack_without_what_the_content_needs_is_refused() {
        let (cache, crypt) = (
            descriptor("cache", Class::Cache),
            descriptor("crypt", Class::Transform),
        );
        let both = [cache.clone(), crypt.clone()];
        assert!(manifest(true, &both).check([].iter(), false).is_err());
        assert!(
            manifest(true, &both)
                .check([crypt.clone()].iter(), false)
                .is_ok(),
            "clean cache"
        );
        assert!(
            manifest(false, &both)
                .check([crypt.clone()].iter(), false)
                .is_err(),
            "dirty cache"
        );
        assert!(
            manifest(true, &[])
                .check([crypt.clone()].iter(), false)
                .is_err(),
            "data in clear"
        );
        assert!(
            manifest(true, &[]).check([crypt].iter(), true).is_ok(),
            "an empty disk"
        );
    }
}
