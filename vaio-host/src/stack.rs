//! Opens one disk of a [`Plan`](crate::plan::Plan): its device, locks, sidecar and filters. A
//! failure leaves nothing behind that was not there before.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use vaio_core::{
    BlockDevice, Disk, DiskLock, Error, FilterRegistry, MemorySidecar, Result, Rt, SidecarStore,
};

use crate::{
    device::{FileDevice, FileOptions, ImageLock, ImageUse, LockFile, Spec, open_spec},
    exit::{At, Outcome, Stage},
    filter_devices::FilterDevices,
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

    /// Takes over what someone else made on our behalf.
    fn adopt(&mut self, paths: Vec<PathBuf>) {
        self.0.extend(paths);
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

/// An open disk.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) disk: Disk,
    /// The device at the bottom, where it is a file: it can grow.
    pub(crate) file: Option<Arc<FileDevice>>,
    pub(crate) devices: Arc<FilterDevices>,
}

/// Opens a disk. What is created is noted in `made`.
///
/// # Errors
/// The first thing that is wrong.
pub(crate) async fn open(plan: &DiskPlan, host: &Host<'_>, made: &mut Made) -> Outcome<Opened> {
    if let (Some(size), Spec::File(path)) = (plan.create, &plan.spec) {
        made.make(path, |path| create(path, size)).at(Stage::Disk)?;
    }
    let (device, file) = open_device(&plan.spec, host).await.at(Stage::Disk)?;
    let locks = Locks::take(plan, host.options, made).at(Stage::Disk)?;
    let sidecar: Arc<dyn SidecarStore> = match &plan.sidecar {
        Some(path) => {
            // Not made yet, but by no one else: the lock is held.
            made.make(path, |_| Ok(())).at(Stage::Disk)?;
            Arc::new(SidecarFileStore::new(path, Arc::clone(host.rt)))
        }
        None => Arc::new(MemorySidecar::default()),
    };
    let options = host.options.clone().with_read_only(false);
    let devices = Arc::new(FilterDevices::new(Arc::clone(host.rt), options));
    let opened = Disk::builder(device, Arc::clone(host.rt))
        .name(plan.name.as_str())
        .vm(host.vm)
        .policy(plan.policy.clone(), host.registry.clone())
        .sidecar(sidecar)
        .devices(Arc::<FilterDevices>::clone(&devices))
        .lock(Box::new(locks))
        .open()
        .await;
    made.adopt(devices.take_made());
    let disk = opened
        .at(Stage::Disk)
        .map_err(|failure| failure.with_place("path", &plan.text))?;
    Ok(Opened {
        disk,
        file,
        devices,
    })
}

type Device = Arc<dyn BlockDevice>;

async fn open_device(spec: &Spec, host: &Host<'_>) -> Result<(Device, Option<Arc<FileDevice>>)> {
    let Spec::File(path) = spec else {
        return Ok((open_spec(spec, host.options, host.rt).await?, None));
    };
    let file = Arc::new(FileDevice::open(path, host.options, host.rt)?);
    let device: Device = Arc::<FileDevice>::clone(&file);
    Ok((device, Some(file)))
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
pub(crate) struct Locks {
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
    /// Takes both. Never waits.
    ///
    /// # Errors
    /// Someone has one of them, or it cannot be made.
    pub(crate) fn take(plan: &DiskPlan, options: &FileOptions, made: &mut Made) -> Result<Self> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_things_go_unless_kept_and_older_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("old"), "x").unwrap();
        let mut made = Made::default();
        let write = |path: &Path| {
            fs::write(path, "x").unwrap();
            Ok(())
        };
        made.make(&at("old"), write).unwrap();
        made.make(&at("folder"), |path| {
            fs::create_dir(path).unwrap();
            Ok(())
        })
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
