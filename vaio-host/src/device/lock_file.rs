//! [`LockFile`]: an exclusive lock on a path beside a disk, so that one process serves it.
//!
//! The kernel drops the lock with the process, however that ends; the file stays and is harmless.
//! It holds the owner's process id, for the error of the next one only: the lock decides.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use vaio_core::{Error, ErrorKind, Result};

/// An exclusive lock on a file, held until dropped.
///
/// It does not hold between hosts that share a file system: there a lease decides.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    _file: File,
}

impl LockFile {
    /// Takes the lock on `path`; the file is made where it is missing. Never waits.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] where another process (or another open of this one) has it, with its
    /// process id as far as known; [`ErrorKind::Config`] where the file cannot be made.
    pub fn take(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let at = path.display();
        let bad = |what: &str, cause: std::io::Error| {
            Error::config(format!("cannot {what} the lock file, path={at}")).with_source(cause)
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|cause| bad("open", cause))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(busy(path, &mut file)),
            Err(errno) => return Err(bad("lock", errno.into())),
        }
        let noted = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "{}", std::process::id()));
        if let Err(cause) = noted {
            // The lock is what counts; the note is for people.
            tracing::debug!(%cause, path = %at, "process id not noted in the lock file");
        }
        Ok(Self {
            path: path.to_owned(),
            _file: file,
        })
    }

    /// The locked path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn busy(path: &Path, file: &mut File) -> Error {
    let mut text = String::new();
    let owner = file
        .take(32)
        .read_to_string(&mut text)
        .ok()
        .and_then(|_| text.trim().parse::<u32>().ok());
    let by = owner.map_or(String::new(), |pid| format!(" pid={pid}"));
    Error::new(
        ErrorKind::Busy,
        format!(
            "another process has the disk: stop it, or use its control socket, lock={}{by}",
            path.display()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_taker_is_busy_with_the_pid_until_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.lock");
        let first = LockFile::take(&path).unwrap();
        let error = LockFile::take(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        let line = error.to_line();
        assert!(
            line.contains(&format!("pid={}", std::process::id())),
            "{line}"
        );
        drop(first);
        LockFile::take(&path).unwrap();
    }

    #[test]
    fn path_in_no_directory_is_config() {
        let dir = tempfile::tempdir().unwrap();
        let error = LockFile::take(dir.path().join("no/such")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}
