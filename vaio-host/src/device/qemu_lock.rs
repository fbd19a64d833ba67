//! [`ImageLock`]: QEMU's lock on an image file, so that it and vaio never serve one at once.
//!
//! QEMU marks each permission that it uses with a shared lock on one byte of the image, and each
//! permission that it does not share with others on another byte, as open-file-description locks.
//! Whoever comes later takes its own marks, then looks for marks of others against it:
//!
//! ```text
//! byte 100 + bit   "I use this permission"
//! byte 200 + bit   "I do not share this permission"
//! bit              0 consistent read, 1 write, 2 write unchanged, 3 resize
//! ```
//!
//! The bytes need not exist; no data changes. The kernel drops the marks with the process.

use std::{
    fs::{File, OpenOptions},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};
use vaio_core::{Error, ErrorKind, Result};

const USED_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;

const CONSISTENT_READ: u8 = 0;
const WRITE: u8 = 1;
const WRITE_UNCHANGED: u8 = 2;
const RESIZE: u8 = 3;

/// What an owner does with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageUse {
    /// Reads it; others may read it too, and no one may write.
    Read,
    /// Reads, writes and resizes it; no one else may write.
    Write,
}

impl ImageUse {
    fn used(self) -> &'static [u8] {
        match self {
            Self::Read => &[CONSISTENT_READ],
            Self::Write => &[CONSISTENT_READ, WRITE, RESIZE],
        }
    }

    /// Reading is shared, so that tools told to read what changes below them (`force-share`) can.
    fn unshared(self) -> &'static [u8] {
        match self {
            Self::Read => &[WRITE, RESIZE],
            Self::Write => &[WRITE, WRITE_UNCHANGED, RESIZE],
        }
    }
}

/// QEMU's marks on one image, held until dropped.
#[derive(Debug)]
pub struct ImageLock {
    _file: File,
}

impl ImageLock {
    /// Marks `path` as used by us. Never waits; leaves no marks behind where it fails.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] where QEMU, one of its tools or another vaio uses the image in a way
    /// that this use excludes; [`ErrorKind::Config`] where the file cannot be opened. A file
    /// system without such locks is not an error: QEMU does without there too.
    pub fn take(path: impl AsRef<Path>, image_use: ImageUse) -> Result<Self> {
        let path = path.as_ref();
        let file = OpenOptions::new().read(true).open(path).map_err(|cause| {
            Error::config(format!("cannot open to lock, path={}", path.display()))
                .with_source(cause)
        })?;
        let failed = |errno: Errno| {
            Error::config(format!("cannot lock the image, path={}", path.display()))
                .with_source(errno)
        };
        let marks = image_use
            .used()
            .iter()
            .map(|bit| USED_BASE + i64::from(*bit));
        let unshared = image_use.unshared().iter();
        let marks = marks.chain(unshared.map(|bit| UNSHARED_BASE + i64::from(*bit)));
        for byte in marks {
            match mark(&file, byte) {
                Ok(()) => {}
                Err(Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::EINVAL) => {
                    tracing::warn!(path = %path.display(), "file system without locks: nothing keeps others off the image");
                    return Ok(Self { _file: file });
                }
                // Someone holds this byte exclusively: no QEMU does, so call it used.
                Err(Errno::EAGAIN | Errno::EACCES) => return Err(busy(path, "it")),
                Err(errno) => return Err(failed(errno)),
            }
        }
        for bit in image_use.used() {
            if is_marked(&file, UNSHARED_BASE + i64::from(*bit)).map_err(failed)? {
                return Err(busy(path, name(*bit)));
            }
        }
        for bit in image_use.unshared() {
            if is_marked(&file, USED_BASE + i64::from(*bit)).map_err(failed)? {
                return Err(busy(path, name(*bit)));
            }
        }
        Ok(Self { _file: file })
    }
}

impl ImageLock {
    /// Whether someone uses `path` to write. Takes no mark, so that it is in no one's way.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where the file cannot be opened. A file system without such locks
    /// says no.
    pub fn is_written(path: impl AsRef<Path>) -> Result<bool> {
        let path = path.as_ref();
        let file = OpenOptions::new().read(true).open(path).map_err(|cause| {
            Error::config(format!("cannot open, path={}", path.display())).with_source(cause)
        })?;
        Ok(is_marked(&file, USED_BASE + i64::from(WRITE)).unwrap_or(false))
    }
}

fn name(bit: u8) -> &'static str {
    match bit {
        CONSISTENT_READ => "consistent read",
        WRITE => "write",
        WRITE_UNCHANGED => "write unchanged",
        _ => "resize",
    }
}

fn busy(path: &Path, permission: &str) -> Error {
    Error::new(
        ErrorKind::Busy,
        format!(
            "the image is in use by QEMU or another vaio: stop that first, see `lslocks`, \
             path={} permission=\"{permission}\"",
            path.display()
        ),
    )
}

fn byte_lock(kind: i32, byte: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).expect("lock types are small"),
        l_whence: i16::try_from(libc::SEEK_SET).expect("whence is small"),
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

/// Takes a shared lock on one byte.
fn mark(file: &File, byte: i64) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&byte_lock(libc::F_RDLCK, byte))).map(drop)
}

/// Whether someone else holds a lock on one byte.
fn is_marked(file: &File, byte: i64) -> Result<bool, Errno> {
    let mut lock = byte_lock(libc::F_WRLCK, byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        (dir, path)
    }

    #[test]
    fn writer_is_seen_without_a_mark_and_a_reader_is_none() {
        let (_dir, path) = image();
        let reader = ImageLock::take(&path, ImageUse::Read).unwrap();
        assert!(!ImageLock::is_written(&path).unwrap());
        drop(reader);
        let writer = ImageLock::take(&path, ImageUse::Write).unwrap();
        assert!(ImageLock::is_written(&path).unwrap());
        drop(writer);
        assert!(!ImageLock::is_written(&path).unwrap());
        assert!(ImageLock::is_written("/nonexistent").is_err());
    }

    #[test]
    fn writers_exclude_each_other_and_readers() {
        let (_dir, path) = image();
        let writer = ImageLock::take(&path, ImageUse::Write).unwrap();
        for second in [ImageUse::Write, ImageUse::Read] {
            let error = ImageLock::take(&path, second).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy);
            assert!(error.to_line().contains("disk.img"), "{}", error.to_line());
        }
        drop(writer);
        ImageLock::take(&path, ImageUse::Write).unwrap();
    }

    #[test]
    fn readers_share_and_keep_writers_out() {
        let (_dir, path) = image();
        let _one = ImageLock::take(&path, ImageUse::Read).unwrap();
        let _two = ImageLock::take(&path, ImageUse::Read).unwrap();
        let error = ImageLock::take(&path, ImageUse::Write).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
    }

    #[test]
    fn refused_taker_leaves_no_marks() {
        let (_dir, path) = image();
        let reader = ImageLock::take(&path, ImageUse::Read).unwrap();
        ImageLock::take(&path, ImageUse::Write).unwrap_err();
        drop(reader);
        ImageLock::take(&path, ImageUse::Write).unwrap();
    }
}
