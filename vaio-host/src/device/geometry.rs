//! How a file is opened, and what it turns out to be: size, blocks, alignment, abilities.
//!
//! Everything that can be wrong with a path is found here, before the first IO, and said in one
//! line that names the path and the way out. Nothing is created or changed.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
};

use rustix::{
    fs::{AtFlags, FallocateFlags, OFlags, StatxFlags, fallocate, ioctl_blksszget, statx},
    io::{Errno, pread},
};
use vaio_core::{BufferPool, DeviceInfo, DiscardReads, Error, Result, Support};

/// Smallest block of any disk, in bytes.
const BLOCK_MIN: u32 = 512;
/// Block that any direct IO accepts, in bytes: tried where 512 is refused.
const BLOCK_SAFE: u32 = 4096;
/// Largest read or write of a file device, in bytes.
pub(super) const TRANSFER_MAX: u32 = 4 << 20;
/// Alignment of pooled memory, in bytes: enough for every direct IO.
pub(super) const MEMORY_ALIGN: usize = 4096;

/// Whether IO goes around the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Direct {
    /// Around it (`O_DIRECT`) where the file system can and the size fits its blocks.
    #[default]
    Auto,
    /// Around it, or fail.
    On,
    /// Through it. A write is then in memory only until flushed, and shares it with every other
    /// file of the host.
    Off,
}

/// What does the system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Engine {
    /// `io_uring`, or threads where it is missing or forbidden.
    #[default]
    Auto,
    /// `io_uring`, or fail.
    IoUring,
    /// Threads that block.
    Threads,
}

/// How to open a file device.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct FileOptions {
    /// Page cache or not. Default: around it where possible.
    pub direct: Direct,
    /// What does the system calls. Default: `io_uring` where possible.
    pub engine: Engine,
    /// Open for reading only. Default: no.
    pub read_only: bool,
    /// Block size to show, in bytes: a power of two from 512 to 65536, not below what the file
    /// needs. Default: the smallest that the file needs.
    pub logical_block: Option<u32>,
}

impl FileOptions {
    /// The same with another way around or through the page cache.
    #[must_use]
    pub fn with_direct(mut self, direct: Direct) -> Self {
        self.direct = direct;
        self
    }

    /// The same with another engine.
    #[must_use]
    pub fn with_engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// The same, for reading only or not.
    #[must_use]
    pub fn with_read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// The same with a given block size in bytes.
    #[must_use]
    pub fn with_logical_block(mut self, bytes: u32) -> Self {
        self.logical_block = Some(bytes);
        self
    }
}

/// An open file and what is known of it.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) info: DeviceInfo,
    pub(super) is_direct: bool,
    pub(super) is_regular: bool,
}

/// What direct IO on a file has to keep to, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Alignment {
    block: u32,
    memory: u32,
}

/// Opens `path` and finds out what it is.
pub(super) fn open(path: &Path, options: &FileOptions) -> Result<Opened> {
    let is_regular = check_kind(path)?;
    if options.direct != Direct::Off
        && let Some(opened) = open_direct(path, options, is_regular)?
    {
        return Ok(opened);
    }
    let file = open_file(path, options.read_only, OFlags::empty()).map_err(|e| denied(path, e))?;
    let size = size(&file, path)?;
    let block = block(path, size, BLOCK_MIN, options)?;
    Ok(Opened {
        info: info(&file, size, block, 1, is_regular, options, false),
        file,
        is_direct: false,
        is_regular,
    })
}

/// `None`: direct IO is not to be had, and the options do not insist.
fn open_direct(path: &Path, options: &FileOptions, is_regular: bool) -> Result<Option<Opened>> {
    let is_must = options.direct == Direct::On;
    let no = |cause: Option<io::Error>| {
        if !is_must {
            return Ok(None);
        }
        let text = format!(
            "the file system does no direct io: use another or direct=off, path={}",
            path.display()
        );
        let error = Error::config(text);
        Err(match cause {
            Some(cause) => error.with_source(cause),
            None => error,
        })
    };
    let file = match open_file(path, options.read_only, OFlags::DIRECT) {
        Ok(file) => file,
        Err(cause) if cause.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            return no(Some(cause));
        }
        Err(cause) => return Err(denied(path, cause)),
    };
    let size = size(&file, path)?;
    let Some(alignment) = alignment(&file, is_regular, size) else {
        return no(None);
    };
    if !is_must && !size.is_multiple_of(alignment.block.into()) {
        return Ok(None); // through the page cache, blocks of 512 bytes do
    }
    let block = block(path, size, alignment.block, options)?;
    Ok(Some(Opened {
        info: info(
            &file,
            size,
            block,
            alignment.memory,
            is_regular,
            options,
            true,
        ),
        file,
        is_direct: true,
        is_regular,
    }))
}

/// Refuses what is no disk, before it is opened: opening a device or a pipe may do something.
/// Returns whether it is a regular file.
fn check_kind(path: &Path) -> Result<bool> {
    let at = path.display();
    let kind = match std::fs::metadata(path) {
        Ok(found) => found.file_type(),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            return Err(Error::config(format!(
                "no such file: check the path, or create it with `truncate -s SIZE`, path={at}"
            )));
        }
        Err(cause) => return Err(denied(path, cause)),
    };
    if kind.is_dir() {
        return Err(Error::config(format!(
            "this is a directory: name a disk image or a block device in it, path={at}"
        )));
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::config(format!(
            "neither a regular file nor a block device, path={at}"
        )));
    }
    Ok(kind.is_file())
}

fn open_file(path: &Path, read_only: bool, flags: OFlags) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
}

fn denied(path: &Path, cause: io::Error) -> Error {
    let hint = match cause.kind() {
        io::ErrorKind::PermissionDenied => {
            "cannot open: check its owner and mode, or use read-only"
        }
        io::ErrorKind::ReadOnlyFilesystem => "cannot open for writing: use read-only",
        _ => "cannot open",
    };
    Error::config(format!("{hint}, path={}", path.display())).with_source(cause)
}

/// The size in bytes; a block device's `stat` has none, its end does.
fn size(mut file: &File, path: &Path) -> Result<u64> {
    file.seek(SeekFrom::End(0)).map_err(|cause| {
        Error::config(format!("cannot find its size, path={}", path.display())).with_source(cause)
    })
}

/// What direct IO on `file` needs; `None` where it cannot be done.
fn alignment(file: &File, is_regular: bool, size: u64) -> Option<Alignment> {
    let told = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        .ok()
        .filter(|found| found.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
    let least = if is_regular {
        BLOCK_MIN
    } else {
        ioctl_blksszget(file).unwrap_or(BLOCK_MIN).max(BLOCK_MIN)
    };
    let first = match told {
        Some(found) if found.stx_dio_offset_align == 0 => return None,
        Some(found) => Alignment {
            block: found.stx_dio_offset_align.max(least),
            memory: found.stx_dio_mem_align.max(1),
        },
        None => Alignment {
            block: least,
            memory: least,
        },
    };
    // What the kernel told is tried as well: stacked file systems do not always know.
    let safe = Alignment {
        block: BLOCK_SAFE.max(least),
        memory: BLOCK_SAFE,
    };
    [first, safe]
        .into_iter()
        .find(|tried| can_read(file, tried.block, size))
}

/// Whether a direct read of one block works (or could not be tried on so small a file).
fn can_read(file: &File, block: u32, size: u64) -> bool {
    if size < block.into() {
        return true;
    }
    let mut buffer = BufferPool::new(MEMORY_ALIGN, 0).take(block as usize);
    pread(file, buffer.as_mut(), 0) != Err(Errno::INVAL)
}

/// The logical block to show, if the options and the size agree with it.
fn block(path: &Path, size: u64, needed: u32, options: &FileOptions) -> Result<u32> {
    let at = path.display();
    let block = options.logical_block.unwrap_or(needed);
    if !block.is_power_of_two() || !(BLOCK_MIN..=DeviceInfo::BLOCK_MAX).contains(&block) {
        return Err(Error::config(format!(
            "a block is a power of two from 512 to 65536 bytes, path={at} block={block}"
        )));
    }
    if block < needed {
        return Err(Error::config(format!(
            "the file needs larger blocks: ask for those or use direct=off, \
             path={at} block={block} needed={needed}"
        )));
    }
    if size == 0 {
        return Err(Error::config(format!(
            "the file is empty: give it a size with `truncate -s SIZE`, path={at}"
        )));
    }
    if !size.is_multiple_of(block.into()) {
        let grown = size.next_multiple_of(block.into());
        return Err(Error::config(format!(
            "size is not a multiple of the block: grow it with `truncate -s {grown}`, \
             path={at} size={size} block={block}"
        )));
    }
    Ok(block)
}

fn info(
    file: &File,
    size: u64,
    block: u32,
    memory_align: u32,
    is_regular: bool,
    options: &FileOptions,
    is_direct: bool,
) -> DeviceInfo {
    let read_only = options.read_only;
    let can_punch = !read_only && (!is_regular || can_punch(file, size, block));
    let native = |yes| if yes { Support::Native } else { Support::None };
    let mut info = DeviceInfo::new(size, block).with_caps(|caps| {
        caps.volatile_cache = !read_only;
        caps.fua = native(!read_only);
        caps.write_zeroes = native(can_punch);
        caps.fast_zeroes = can_punch;
        caps.discard = native(can_punch);
        if is_regular && can_punch {
            caps.discard_reads = DiscardReads::Zero;
        }
        caps.prefetch = native(!is_direct);
        caps.allocation = is_regular;
        caps.read_only = read_only;
    });
    info.transfer_max = TRANSFER_MAX;
    info.memory_align = memory_align;
    info.sub_block = (block > BLOCK_MIN).then_some(BLOCK_MIN);
    info
}

/// Whether holes can be made: asked past the end of the file, where there is nothing to change.
fn can_punch(file: &File, size: u64, block: u32) -> bool {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, mode, size, block.into()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path, options: &FileOptions) -> String {
        let error = open(path, options).unwrap_err();
        assert_eq!(error.kind(), vaio_core::ErrorKind::Config);
        error.to_line()
    }

    #[test]
    fn bad_paths_are_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let options = FileOptions::default();
        assert!(refused(&dir.path().join("none"), &options).starts_with("no such file"));
        assert!(refused(dir.path(), &options).starts_with("this is a directory"));
        assert!(refused(Path::new("/dev/zero"), &options).starts_with("neither a regular file"));
        let path = dir.path().join("empty");
        File::create(&path).unwrap();
        assert!(refused(&path, &options).starts_with("the file is empty"));
    }

    #[test]
    fn odd_size_is_refused_with_size_and_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("odd");
        File::create(&path).unwrap().set_len(1000).unwrap();
        for direct in [Direct::Auto, Direct::On, Direct::Off] {
            let line = refused(&path, &FileOptions::default().with_direct(direct));
            assert!(line.contains("truncate -s 1024"), "{line}");
            assert!(line.contains("size=1000 block=512"), "{line}");
        }
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1536)
            .unwrap();
        let options = FileOptions::default().with_logical_block(4096);
        assert!(refused(&path, &options).contains("size=1536 block=4096"));
        let options = FileOptions::default().with_logical_block(768);
        assert!(refused(&path, &options).contains("power of two"));
        assert_eq!(
            open(&path, &FileOptions::default()).unwrap().info.capacity,
            1536
        );
    }

    #[test]
    fn larger_blocks_ask_for_read_modify_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let info = open(&path, &FileOptions::default()).unwrap().info;
        info.validate().unwrap();
        assert_eq!(info.sub_block, (info.logical_block > 512).then_some(512));
        let options = FileOptions::default().with_logical_block(4096);
        assert_eq!(open(&path, &options).unwrap().info.sub_block, Some(512));
    }
}
