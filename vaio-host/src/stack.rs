//! Opens one disk of a [`Plan`](crate::plan::Plan): its device, locks, sidecar and filters. A
//! failure leaves nothing behind that was not there before.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use vaio_core::{
    AllocationMap, BlockDevice, DeviceInfo, DeviceProvider, Disk, DiskLock, Error, Extent,
    FilterRegistry, Io, MemorySidecar, Reply, Result, Rt, SidecarStore,
};

use crate::{
    device::{FileOptions, ImageLock, ImageUse, LockFile, Spec, open_spec},
    exit::{At, Outcome, Stage},
    plan::DiskPlan,
    sidecar_file::{SidecarFileStore, sync_folder_of},
};

/// Files and folders made on the way; removed when dropped, last made first, unless kept.
#[derive(Debug, Default)]
pub(crate) struct Made(Vec<PathBuf>);

impl Made {
    /// Makes something at `path`. What was there before is not ours to remove, nor is what
    /// someone else made meanwhile, so that making it failed.
    pub(crate) fn make<T>(
        &mut self,
        path: &Path,
        make: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<T> {
        let is_new = fs::symlink_metadata(path).is_err();
        let value = make(path)?;
        if is_new {
            self.0.push(path.to_owned());
        }
        Ok(value)
    }

    /// Everything stays.
    pub(crate) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // A folder goes only if it is empty: what others put there stays.
            let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
        }
    }
}

/// What all disks of a process share.
#[derive(Debug)]
pub(crate) struct Host<'a> {
    pub(crate) rt: &'a Rt,
    pub(crate) registry: &'a FilterRegistry,
    pub(crate) options: &'a FileOptions,
    pub(crate) vm: &'a str,
}

/// Opens a disk. What is created is noted in `made`.
///
/// # Errors
/// The first thing that is wrong.
pub(crate) async fn open(plan: &DiskPlan, host: &Host<'_>, made: &mut Made) -> Outcome<Disk> {
    if let (Some(size), Spec::File(path)) = (plan.create, &plan.spec) {
        made.make(path, |path| create(path, size)).at(Stage::Disk)?;
    }
    let device = open_spec(&plan.spec, host.options, host.rt)
        .await
        .at(Stage::Disk)?;
    let locks = Locks::take(plan, host.options, made).at(Stage::Disk)?;
    let sidecar: Arc<dyn SidecarStore> = match &plan.sidecar {
        Some(path) => {
            // Not made yet, but by no one else: the lock is held.
            made.make(path, |_| Ok(())).at(Stage::Disk)?;
            Arc::new(SidecarFileStore::new(path, Arc::clone(host.rt)))
        }
        None => Arc::new(MemorySidecar::default()),
    };
    let devices = HostDevices {
        rt: Arc::clone(host.rt),
        options: host.options.clone().with_read_only(false),
    };
    Disk::builder(device, Arc::clone(host.rt))
        .name(plan.name.as_str())
        .vm(host.vm)
        .policy(plan.policy.clone(), host.registry.clone())
        .sidecar(sidecar)
        .devices(Arc::new(devices))
        .lock(Box::new(locks))
        .open()
        .await
        .at(Stage::Disk)
        .map_err(|failure| failure.with_place("path", &plan.text))
}

/// Makes a sparse file of `size` bytes.
fn create(path: &Path, size: u64) -> Result<()> {
    let failed = |cause| {
        let text = format!(
            "cannot create the disk: check space and permissions, path={}",
            path.display()
        );
        Error::io(text, cause)
    };
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let sized = file
        .set_len(size)
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_folder_of(path));
    sized.map_err(|cause| {
        let _ = fs::remove_file(path);
        failed(cause)
    })
}

/// The locks of one disk: QEMU's on the image, and one beside the sidecar.
#[derive(Debug)]
struct Locks {
    _image: Option<ImageLock>,
    _file: Option<LockFile>,
}

impl DiskLock for Locks {
    /// The kernel takes such locks from no one.
    fn is_held(&self) -> bool {
        true
    }
}

impl Locks {
    fn take(plan: &DiskPlan, options: &FileOptions, made: &mut Made) -> Result<Self> {
        let image_use = if options.read_only {
            ImageUse::Read
        } else {
            ImageUse::Write
        };
        let image = match &plan.spec {
            Spec::File(path) => Some(ImageLock::take(path, image_use)?),
            _ => None,
        };
        let file = match &plan.sidecar {
            Some(sidecar) => {
                let mut name = sidecar.as_os_str().to_owned();
                name.push(".lock");
                Some(made.make(&PathBuf::from(name), |path| LockFile::take(path))?)
            }
            None => None,
        };
        Ok(Self {
            _image: image,
            _file: file,
        })
    }
}

/// Opens the devices that filters ask for by what the user wrote.
#[derive(Debug)]
struct HostDevices {
    rt: Rt,
    options: FileOptions,
}

#[async_trait]
impl DeviceProvider for HostDevices {
    async fn open_device(
        &self,
        filter: &str,
        name: &str,
        spec: &str,
    ) -> Result<Arc<dyn BlockDevice>> {
        let open = async {
            let spec: Spec = spec.parse()?;
            let device = open_spec(&spec, &self.options, &self.rt).await?;
            let Spec::File(path) = &spec else {
                return Ok(device);
            };
            let lock = ImageLock::take(path, ImageUse::Write)?;
            let locked: Arc<dyn BlockDevice> = Arc::new(Locked {
                device,
                _lock: lock,
            });
            Ok(locked)
        };
        open.await.map_err(|error: Error| {
            let text = format!(
                "cannot open the filter's device: {}, device={name}",
                error.to_line()
            );
            Error::new(error.kind(), text).with_filter(filter)
        })
    }
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

    #[test]
    fn made_things_go_unless_kept_and_older_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("old"), "x").unwrap();
        let mut made = Made::default();
        let write = |path: &Path| Ok(fs::write(path, "x").unwrap());
        made.make(&at("old"), write).unwrap();
        made.make(&at("folder"), |path| Ok(fs::create_dir(path).unwrap()))
            .unwrap();
        made.make(&at("new"), write).unwrap();
        drop(made);
        assert!(at("old").exists() && !at("folder").exists() && !at("new").exists());

        let mut made = Made::default();
        made.make(&at("new"), write).unwrap();
        made.keep();
        assert!(at("new").exists());
    }
}
