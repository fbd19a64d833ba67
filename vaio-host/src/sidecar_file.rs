//! [`SidecarFileStore`]: a disk's sidecar as a small file beside it.
//!
//! Replaced whole: written to `NAME.new`, flushed, renamed over the old one, and the folder
//! flushed. After a crash at any moment the old content is there or the new.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use vaio_core::{
    Error, ErrorKind, Result, Rt, RuntimeExt, SIDECAR_BYTES_MAX, SidecarStore, sync::Mutex,
};

/// A [`SidecarStore`] in a file.
#[derive(Debug)]
pub struct SidecarFileStore {
    path: PathBuf,
    rt: Rt,
    /// One replacement at a time: they share the temporary name.
    turn: Arc<Mutex<()>>,
}

impl SidecarFileStore {
    /// A sidecar at `path`, which need not exist. Touches nothing yet.
    pub fn new(path: impl Into<PathBuf>, rt: Rt) -> Self {
        Self {
            path: path.into(),
            rt,
            turn: Arc::new(Mutex::new(())),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, what: &str, cause: io::Error) -> Error {
        Error::io(
            format!(
                "cannot {what} the disk's sidecar: check space and permissions, path={}",
                self.path.display()
            ),
            cause,
        )
    }

    fn lost(&self) -> Error {
        Error::new(
            ErrorKind::Internal,
            format!("work on the sidecar was lost, path={}", self.path.display()),
        )
    }
}

#[async_trait]
impl SidecarStore for SidecarFileStore {
    async fn load(&self) -> Result<Option<Bytes>> {
        let path = self.path.clone();
        let loaded = self.rt.offload_with(move || load(&path)).await;
        loaded
            .ok_or_else(|| self.lost())?
            .map_err(|cause| self.failed("read", cause))
    }

    async fn replace(&self, content: Bytes) -> Result<()> {
        let turn = self.turn.lock().await;
        let path = self.path.clone();
        let replaced = self.rt.offload_with(move || replace(&path, &content)).await;
        drop(turn);
        replaced
            .ok_or_else(|| self.lost())?
            .map_err(|cause| self.failed("write", cause))
    }
}

fn load(path: &Path) -> io::Result<Option<Bytes>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(cause),
    };
    let mut content = Vec::new();
    // One byte more than allowed: the reader of the content tells that it is too large.
    file.take(SIDECAR_BYTES_MAX as u64 + 1)
        .read_to_end(&mut content)?;
    Ok(Some(content.into()))
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let fresh = PathBuf::from(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    let written = file
        .write_all(content)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&fresh, path));
    if let Err(cause) = written {
        let _ = fs::remove_file(&fresh);
        return Err(cause);
    }
    sync_folder_of(path)
}

/// Makes the entry of `path` in its folder durable.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::HostRuntime;

    #[test]
    fn content_replaced_is_content_loaded_and_no_other_file_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.vaio");
        HostRuntime::run(|rt| async move {
            let store = SidecarFileStore::new(&path, rt);
            assert_eq!(store.load().await.unwrap(), None);
            for text in ["old", "new and longer", "short"] {
                store.replace(Bytes::from(text)).await.unwrap();
                assert_eq!(store.load().await.unwrap(), Some(Bytes::from(text)));
            }
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        })
        .unwrap();
    }

    #[test]
    fn failed_replacement_leaves_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.vaio");
        HostRuntime::run(|rt| async move {
            let store = SidecarFileStore::new(&path, rt);
            store.replace(Bytes::from("old")).await.unwrap();
            // The temporary name is taken by a folder: the write cannot start.
            fs::create_dir(dir.path().join("disk.vaio.new")).unwrap();
            let error = store.replace(Bytes::from("new")).await.unwrap_err();
            assert!(error.to_line().contains("disk.vaio"));
            assert_eq!(store.load().await.unwrap(), Some(Bytes::from("old")));
        })
        .unwrap();
    }
}
