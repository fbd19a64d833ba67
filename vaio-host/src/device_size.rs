//! `size=`: a device that a filter needs is made where it is missing. Pure.
//!
//! It is the host that opens devices, so the size is the host's and no filter sees it: a filter
//! whose descriptor names one device may be given `size=SIZE` beside it (one that names several:
//! `DEVICE_size=SIZE`). [`fold`] turns `file=PATH` and `size=SIZE` into the one text
//! `make:SIZE:PATH` that goes through the framework to
//! [`FilterDevices`](crate::filter_devices::FilterDevices), and [`unfold`] undoes it for people.

use std::path::PathBuf;

use serde_json::{Value, json};
use vaio_core::{
    Descriptor, DeviceInfo, DeviceNeed, Error, FilterRegistry, FilterSpec, Result, parse_bytes,
};

use crate::device::Spec;

/// What begins the text of a device with a size.
const MAKE: &str = "make:";
/// What such a file's size is a multiple of, in bytes: the largest logical block.
const SIZE_STEP: u64 = 4096;

/// A device of a filter as the host is to open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// It is there.
    Open(Spec),
    /// A file of this size; made where it is missing.
    Make(PathBuf, u64),
}

/// Reads what [`fold`] wrote, or a device without a size.
///
/// # Errors
/// As [`Spec`]'s parser.
pub(crate) fn wanted(text: &str) -> Result<Wanted> {
    match made(text) {
        Some((size, path)) => Ok(Wanted::Make(path.into(), size)),
        None => text.parse().map(Wanted::Open),
    }
}

/// Size and path of `make:SIZE:PATH`.
fn made(text: &str) -> Option<(u64, &str)> {
    let (size, path) = text.strip_prefix(MAKE)?.split_once(':')?;
    Some((size.parse().ok()?, path))
}

/// The setting that gives a needed device its size; `None` where the filter has a setting of that
/// name for itself.
fn key_of(descriptor: &Descriptor, need: &DeviceNeed) -> Option<String> {
    let key = match descriptor.needs.devices {
        [_] => "size".to_owned(),
        _ => format!("{}_size", need.name),
    };
    let is_taken = descriptor.settings.iter().any(|one| one.name == key);
    (!is_taken).then_some(key)
}

/// Whether a setting is the size of a device, and so none of the filter's own.
pub(crate) fn is_size(descriptor: &Descriptor, key: &str) -> bool {
    let mut needs = descriptor.needs.devices.iter();
    needs.any(|need| key_of(descriptor, need).as_deref() == Some(key))
}

/// Moves the sizes of a filter's devices into the texts that name them.
///
/// # Errors
/// [`ErrorKind::Config`](vaio_core::ErrorKind::Config), naming filter and setting: no size, one
/// that no file can have, or a device that is no file.
pub(crate) fn fold(spec: &mut FilterSpec, descriptor: &Descriptor) -> Result<()> {
    for need in descriptor.needs.devices {
        let Some(key) = key_of(descriptor, need) else {
            continue;
        };
        // Without the device the framework says that it is required.
        let (Some(text), Some(device)) = (spec.settings.remove(&key), spec.settings.get(need.name))
        else {
            continue;
        };
        let folded = folded(&key, &text, device, need)
            .map_err(|error| error.with_filter(descriptor.name))?;
        spec.settings.insert(need.name.into(), folded);
    }
    Ok(())
}

/// [`fold`] for a filter by its name; one that the program does not know is left as it is.
pub(crate) fn fold_known(spec: &mut FilterSpec, registry: &FilterRegistry) -> Result<()> {
    match registry.get(&spec.name) {
        Ok(factory) => fold(spec, &factory.descriptor()),
        Err(_) => Ok(()),
    }
}

fn folded(key: &str, text: &str, device: &str, need: &DeviceNeed) -> Result<String> {
    let limits = need.capacity_min..=DeviceInfo::CAPACITY_MAX;
    let size = parse_bytes(text)
        .filter(|size| limits.contains(size) && size.is_multiple_of(SIZE_STEP))
        .ok_or_else(|| {
            Error::config(format!(
                "a device's size is a multiple of {SIZE_STEP} bytes, at least {}, \
                 setting={key} value={text:?}",
                need.capacity_min
            ))
        })?;
    match device.parse::<Spec>()? {
        Spec::File(_) => Ok(format!("{MAKE}{size}:{device}")),
        _ => Err(Error::config(format!(
            "only a file can be made: leave the size out, setting={key} device={device}"
        ))),
    }
}

/// Undoes [`fold`]: the settings as they were written, sizes in bytes.
pub(crate) fn unfold(spec: &mut FilterSpec, descriptor: &Descriptor) {
    for need in descriptor.needs.devices {
        let found = spec.settings.get(need.name).and_then(|text| made(text));
        let found = found.map(|(size, path)| (size.to_string(), path.to_owned()));
        if let (Some((size, path)), Some(key)) = (found, key_of(descriptor, need)) {
            spec.settings.insert(need.name.into(), path);
            spec.settings.insert(key, size);
        }
    }
}

/// The settings that this adds to a filter, as `vaio filters` lists settings.
pub(crate) fn settings_json(descriptor: &Descriptor) -> Vec<Value> {
    let one = |need: &DeviceNeed| {
        let key = key_of(descriptor, need)?;
        Some(json!({
            "name": key,
            "kind": { "bytes": { "min": need.capacity_min, "max": DeviceInfo::CAPACITY_MAX } },
            "default": "",
            "summary": format!(
                "Size to make {} with where it is a file that is missing; one that is there must \
                 have it",
                need.name
            ),
        }))
    };
    descriptor.needs.devices.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vaio_cache::CacheFactory;
    use vaio_core::FilterFactory;

    fn cache() -> Descriptor {
        CacheFactory::default().descriptor()
    }

    fn spec(pairs: &[(&str, &str)]) -> FilterSpec {
        let new = FilterSpec::new("cache");
        pairs
            .iter()
            .fold(new, |spec, (key, value)| spec.with(*key, *value))
    }

    #[test]
    fn size_is_folded_into_the_device_and_back() {
        let mut folded = spec(&[
            ("file", "/ssd/a:b"),
            ("size", "64M"),
            ("mode", "write_back"),
        ]);
        fold(&mut folded, &cache()).unwrap();
        assert!(!folded.settings.contains_key("size"), "{folded:?}");
        let device = wanted(&folded.settings["file"]).unwrap();
        assert_eq!(device, Wanted::Make("/ssd/a:b".into(), 64 << 20));
        unfold(&mut folded, &cache());
        assert_eq!(folded.settings["file"], "/ssd/a:b");
        assert_eq!(folded.settings["size"], "67108864");
    }

    #[test]
    fn device_without_size_stays_as_it_is() {
        let mut plain = spec(&[("file", "/ssd/a")]);
        fold(&mut plain, &cache()).unwrap();
        assert_eq!(plain, spec(&[("file", "/ssd/a")]));
        let device = wanted("/ssd/a").unwrap();
        assert_eq!(device, Wanted::Open(Spec::File("/ssd/a".into())));
    }

    #[test]
    fn size_that_no_file_can_have_is_refused_by_name() {
        for (file, size, words) in [
            ("/ssd/a", "many", "value=\"many\""),
            ("/ssd/a", "0", "multiple of 4096"),
            ("/ssd/a", "1000001", "multiple of 4096"),
            ("/ssd/a", "8388608T", "multiple of 4096"),
            ("ram:64M", "64M", "only a file"),
            ("nbd://host/x", "64M", "only a file"),
        ] {
            let mut bad = spec(&[("file", file), ("size", size)]);
            let line = fold(&mut bad, &cache()).unwrap_err().to_line();
            assert!(
                line.contains(words) && line.contains("filter=cache"),
                "{line}"
            );
        }
    }

    #[test]
    fn listing_names_the_size_of_every_needed_device() {
        let listed = settings_json(&cache());
        assert_eq!(listed[0]["name"], "size");
        assert!(is_size(&cache(), "size") && !is_size(&cache(), "mode"));
    }
}
