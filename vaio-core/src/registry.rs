//! [`FilterRegistry`]: the filters that a program knows; [`Policy`]: which of them a disk gets.

use std::{collections::BTreeMap, sync::Arc};

use crate::{Descriptor, Error, FilterFactory, Result};

/// The filters that a program knows, by name.
#[derive(Clone, Debug, Default)]
pub struct FilterRegistry {
    factories: BTreeMap<&'static str, Arc<dyn FilterFactory>>,
}

impl FilterRegistry {
    /// The same registry with a filter added; a filter of the same name is replaced.
    #[must_use]
    pub fn with(self, factory: impl FilterFactory) -> Self {
        self.with_shared(Arc::new(factory))
    }

    /// The same with one more filter, whose factory others hold too.
    #[must_use]
    pub fn with_shared(mut self, factory: Arc<dyn FilterFactory>) -> Self {
        self.factories.insert(factory.descriptor().name, factory);
        self
    }

    /// The factory of a filter.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) naming the filter and those that exist.
    pub fn get(&self, name: &str) -> Result<Arc<dyn FilterFactory>> {
        self.factories.get(name).map(Arc::clone).ok_or_else(|| {
            let known: Vec<_> = self.factories.keys().copied().collect();
            let known = if known.is_empty() {
                "none".into()
            } else {
                known.join(",")
            };
            Error::config(format!("unknown filter, filter={name} known={known}"))
        })
    }

    /// Every filter's descriptor, by name.
    pub fn descriptors(&self) -> Vec<Descriptor> {
        self.factories
            .values()
            .map(|factory| factory.descriptor())
            .collect()
    }
}

/// One filter of a policy: its name and its settings as text.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FilterSpec {
    /// Name in the registry.
    pub name: String,
    /// Settings as given; [`Settings::parse`](crate::Settings::parse) types them.
    pub settings: BTreeMap<String, String>,
}

impl FilterSpec {
    /// A filter with its default settings.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            settings: BTreeMap::new(),
        }
    }

    /// The same with a setting.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.insert(key.into(), value.into());
        self
    }
}

/// Which filters a disk gets. The chain orders them by class; within a class they keep this order,
/// top first.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Policy {
    /// The filters.
    pub filters: Vec<FilterSpec>,
}

impl Policy {
    /// A policy without filters.
    pub const fn empty() -> Self {
        Self {
            filters: Vec::new(),
        }
    }

    /// The same with a filter added below those of its class.
    #[must_use]
    pub fn with(mut self, filter: FilterSpec) -> Self {
        self.filters.push(filter);
        self
    }

    /// The filters in chain order, with what their factories say.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config): a filter is unknown, its descriptor is
    /// invalid, it is named twice, or a class that may hold one filter has two.
    pub fn resolve(&self, registry: &FilterRegistry) -> Result<Vec<Resolved>> {
        let mut resolved = Vec::with_capacity(self.filters.len());
        for spec in &self.filters {
            let factory = registry.get(&spec.name)?;
            let descriptor = factory.descriptor();
            descriptor.validate()?;
            resolved.push(Resolved {
                spec: spec.clone(),
                factory,
                descriptor,
            });
        }
        check_stack(resolved.iter().map(|one| &one.descriptor))?;
        resolved.sort_by_key(|one| one.descriptor.class);
        Ok(resolved)
    }
}

/// A filter of a policy together with its factory.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Name and settings.
    pub spec: FilterSpec,
    /// Makes the instance.
    pub factory: Arc<dyn FilterFactory>,
    /// What it says of itself.
    pub descriptor: Descriptor,
}

/// Refuses a stack with a filter twice, two of a unique class, or too many layers.
pub(crate) fn check_stack<'a>(descriptors: impl Iterator<Item = &'a Descriptor>) -> Result<()> {
    let descriptors: Vec<_> = descriptors.collect();
    let count = descriptors.len();
    if count > crate::LAYERS_MAX {
        return Err(Error::config(format!(
            "too many filters on one disk, filters={count} filters_max={}",
            crate::LAYERS_MAX
        )));
    }
    for (index, one) in descriptors.iter().enumerate() {
        for other in &descriptors[index + 1..] {
            if one.name == other.name {
                return Err(
                    Error::config("filter is named twice for one disk").with_filter(one.name)
                );
            }
            if one.class == other.class && one.class.is_unique() {
                return Err(Error::config(format!(
                    "a disk can have one filter of this class, class={} filters={},{}",
                    one.class.name(),
                    one.name,
                    other.name
                )));
            }
        }
    }
    Ok(())
}
