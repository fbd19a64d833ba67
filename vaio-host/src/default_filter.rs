//! The filter that a disk has where nothing else is said: a write-back cache beside it. Pure but
//! for one look whether the cache is there already.

use std::path::Path;

use vaio_core::FilterSpec;

/// What the cache's file is called: `DISK.cache`.
pub(crate) const SUFFIX: &str = "cache";
/// The part of the disk that the cache is large, as a divisor.
const PART: u64 = 8;
/// Smallest default size, in bytes.
const BYTES_MIN: u64 = 64 << 20;
/// Largest default size, in bytes.
const BYTES_MAX: u64 = 16 << 30;
/// What a default size is a multiple of, in bytes.
const STEP: u64 = 1 << 20;

/// The size of a cache that is to be made for a disk, in bytes: an eighth of it, from 64 MiB to
/// 16 GiB.
pub(crate) fn size_for(capacity: u64) -> u64 {
    (capacity / PART)
        .clamp(BYTES_MIN, BYTES_MAX)
        .next_multiple_of(STEP)
}

/// The cache in the file `path` of a disk of `capacity` bytes. One that is there keeps its size.
pub(crate) fn cache_in(path: &Path, capacity: u64) -> FilterSpec {
    let spec = FilterSpec::new(vaio_cache::NAME)
        .with(vaio_cache::CACHE_DEVICE, path.display().to_string());
    if path.exists() {
        return spec;
    }
    spec.with("size", size_for(capacity).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_size_is_an_eighth_within_limits() {
        for (capacity, size) in [
            (0, 64 << 20),
            (1 << 20, 64 << 20),
            (1 << 30, 128 << 20),
            ((1 << 30) + 512, 129 << 20),
            (1 << 40, 16 << 30),
        ] {
            assert_eq!(size_for(capacity), size, "{capacity}");
        }
    }

    #[test]
    fn cache_that_is_there_keeps_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img.cache");
        assert_eq!(cache_in(&path, 1 << 30).settings["size"], "134217728");
        std::fs::write(&path, "x").unwrap();
        assert!(!cache_in(&path, 1 << 30).settings.contains_key("size"));
    }
}
