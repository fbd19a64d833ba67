//! [`FilterDevices`]: opens the devices that the filters of one disk need, by what the user wrote.
//!
//! A file is locked as the disk's own image is, so that one process uses it. A file with a size
//! ([`device_size`](crate::device_size)) is made where it is missing, with its room allocated as
//! far as the file system can: a log must not run out of room that it was promised.
//!
//! Invariant: what was made here is remembered until someone says what becomes of it
//! ([`FilterDevices::take_made`]), so that a start or an attach that failed leaves nothing behind.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};
use vaio_core::{
    AllocationMap, BlockDevice, DeviceInfo, DeviceProvider, Error, Extent, Io, Reply, Result, Rt,
    RuntimeExt,
};

use crate::{
    device::{FileOptions, ImageLock, ImageUse, Spec, open_spec},
    device_size::{Wanted, wanted},
    sidecar_file::sync_folder_of,
};

/// The provider of one disk.
#[derive(Debug)]
pub(crate) struct FilterDevices {
    rt: Rt,
    options: FileOptions,
    made: Mutex<Vec<PathBuf>>,
}

impl FilterDevices {
    /// A provider that opens files with `options`.
    pub(crate) fn new(rt: Rt, options: FileOptions) -> Self {
        Self {
            rt,
            options,
            made: Mutex::default(),
        }
    }

    /// The files that were made since this was asked last; the caller keeps or removes them.
    pub(crate) fn take_made(&self) -> Vec<PathBuf> {
        std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Removes what was made since, where what it was made for has failed.
    pub(crate) fn settle<T>(&self, result: &Result<T>) {
        for path in self.take_made() {
            if result.is_err() {
                let _ = fs::remove_file(path);
            }
        }
    }

    async fn open(&self, wanted: Wanted) -> Result<Arc<dyn BlockDevice>> {
        let (spec, size) = match wanted {
            Wanted::Open(spec) => (spec, None),
            Wanted::Make(path, size) => (Spec::File(path), Some(size)),
        };
        let Spec::File(path) = &spec else {
            return open_spec(&spec, &self.options, &self.rt).await;
        };
        if is_missing(path) {
            let size = size.ok_or_else(|| {
                Error::config(format!(
                    "no such file: name the right one, or add size=SIZE to make it, path={}",
                    path.display()
                ))
            })?;
            self.make(path, size).await?;
        }
        let device = open_spec(&spec, &self.options, &self.rt).await?;
        let found = device.info().capacity;
        if let Some(size) = size.filter(|size| *size != found) {
            return Err(Error::config(format!(
                "the file is there with another size: leave size= out, or name another file, \
                 path={} size={found} asked={size}",
                path.display()
            )));
        }
        let lock = ImageLock::take(path, ImageUse::Write)?;
        Ok(Arc::new(Locked {
            device,
            _lock: lock,
        }))
    }

    /// Allocating may take a while: it is done beside the IO thread.
    async fn make(&self, path: &Path, size: u64) -> Result<()> {
        let to_make = path.to_owned();
        let making = self.rt.offload_with(move || make(&to_make, size));
        making
            .await
            .unwrap_or_else(|| Err(io::Error::other("making it panicked")))
            .map_err(|cause| {
                let text = format!(
                    "cannot make the file: check space and permissions, path={} size={size}",
                    path.display()
                );
                Error::config(text).with_source(cause)
            })?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.push(path.to_owned());
        Ok(())
    }
}

#[async_trait]
impl DeviceProvider for FilterDevices {
    async fn open_device(
        &self,
        filter: &str,
        name: &str,
        spec: &str,
    ) -> Result<Arc<dyn BlockDevice>> {
        let opened = async { self.open(wanted(spec)?).await };
        opened.await.map_err(|error: Error| {
            let text = format!(
                "cannot open the filter's device: {}, device={name}",
                error.to_line()
            );
            Error::new(error.kind(), text).with_filter(filter)
        })
    }
}

fn is_missing(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|cause| cause.kind() == io::ErrorKind::NotFound)
}

/// Makes a file of `size` bytes that read as zeroes, durably; leaves nothing where it fails.
fn make(path: &Path, size: u64) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let allocated = match fallocate(&file, FallocateFlags::empty(), 0, size) {
        // Sparse, then.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(size),
        other => other.map_err(io::Error::from),
    };
    let made = allocated
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_folder_of(path));
    if made.is_err() {
        let _ = fs::remove_file(path);
    }
    made
}

/// A device together with the lock on its image.
#[derive(Debug)]
struct Locked {
    device: Arc<dyn BlockDevice>,
    _lock: ImageLock,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlockDevice for Locked {
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        self.device.submit(io).await
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        self.device.allocation(range).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::HostRuntime;
    use vaio_core::ErrorKind;

    const MIB: u64 = 1 << 20;

    /// Opens in a folder; `Ok` holds the capacity and the device.
    fn open(path: &Path, size: Option<u64>) -> Result<(u64, Vec<PathBuf>)> {
        HostRuntime::run(|rt| async move {
            let devices = FilterDevices::new(rt, FileOptions::default());
            let text = match size {
                Some(size) => format!("make:{size}:{}", path.display()),
                None => path.display().to_string(),
            };
            let device = devices.open_device("cache", "file", &text).await?;
            let second = devices.open_device("cache", "file", &text).await;
            let error = second.expect_err("the file is locked");
            assert_eq!(error.kind(), ErrorKind::Busy, "{}", error.to_line());
            Ok((device.info().capacity, devices.take_made()))
        })
        .unwrap()
    }

    #[test]
    fn missing_file_with_size_is_made_whole_and_allocated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.cache");
        let (capacity, made) = open(&path, Some(MIB)).unwrap();
        assert_eq!(capacity, MIB);
        assert_eq!(made, std::slice::from_ref(&path));
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let (_, made) = open(&path, Some(MIB)).unwrap();
        assert!(made.is_empty(), "one that is there is left alone");
        assert_eq!(fs::read(&path).unwrap(), vec![7; 1 << 20]);
    }

    #[test]
    fn wrong_size_missing_file_and_missing_folder_are_one_clear_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.cache");
        let line = open(&path, None).unwrap_err().to_line();
        assert!(
            line.contains("add size=SIZE") && line.contains("a.cache"),
            "{line}"
        );
        let line = open(&dir.path().join("no/such"), Some(MIB))
            .unwrap_err()
            .to_line();
        assert!(line.contains("no/such"), "{line}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing made");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let line = open(&path, Some(2 * MIB)).unwrap_err().to_line();
        assert!(line.contains("size=1048576 asked=2097152"), "{line}");
    }

    #[test]
    fn what_was_made_for_something_that_failed_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.cache");
        HostRuntime::run(|rt| async move {
            let devices = FilterDevices::new(rt, FileOptions::default());
            devices.make(&path, MIB).await.unwrap();
            devices.settle(&Err::<(), _>(Error::config("on purpose")));
            assert!(!path.exists());
            devices.make(&path, MIB).await.unwrap();
            devices.settle(&Ok(()));
            assert!(path.exists());
        })
        .unwrap();
    }
}
