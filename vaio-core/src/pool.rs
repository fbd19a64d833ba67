//! [`BufferPool`]: aligned, recycled buffers for direct IO, in safe code.
//!
//! A buffer is a vector that is long enough for an aligned window to lie inside it. Frozen into
//! [`Bytes`], it comes back to its pool when the last clone is dropped. A large one is a mapping
//! of its own: an allocator would keep the memory of a burst, the operating system takes it back
//! at once.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use memmap2::MmapMut;

/// Buffers from this size on are mappings of their own, in bytes.
const MAPPED_MIN: usize = 512 << 10;
/// What a mapping is aligned to at least.
const PAGE: usize = 4096;

enum Memory {
    Heap(Box<[u8]>),
    Map(MmapMut),
}

impl Memory {
    /// Memory in which `len` bytes aligned to `align` lie.
    fn new(len: usize, align: usize) -> Self {
        if len >= MAPPED_MIN
            && align <= PAGE
            && let Ok(map) = MmapMut::map_anon(len + align)
        {
            return Self::Map(map);
        }
        Self::Heap(vec![0; len + align].into_boxed_slice())
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Map(map) => map,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Map(map) => map,
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes().len())
    }
}

/// A pool of buffers of one alignment.
///
/// It keeps at most `held_max` bytes of unused buffers, in power-of-two size classes; beyond that
/// memory goes back to the allocator.
#[derive(Clone)]
pub struct BufferPool(Arc<Shared>);

struct Shared {
    align: usize,
    held_max: usize,
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Free {
    held: usize,
    /// Index: log2 of the capacity without the slack for alignment.
    classes: [Vec<Memory>; 48],
}

impl BufferPool {
    /// A pool of buffers aligned to `align` bytes (a power of two) that holds at most `held_max`
    /// bytes unused.
    ///
    /// # Panics
    /// If `align` is no power of two.
    pub fn new(align: usize, held_max: usize) -> Self {
        assert!(align.is_power_of_two(), "alignment is a power of two");
        Self(Arc::new(Shared {
            align,
            held_max,
            free: Mutex::new(Free {
                held: 0,
                classes: std::array::from_fn(|_| Vec::new()),
            }),
        }))
    }

    /// A buffer of `len` bytes with unspecified content.
    pub fn take(&self, len: usize) -> AlignedBuf {
        let class = len.max(512).next_power_of_two();
        let reused = {
            let mut free = self.0.lock();
            let reused = free.classes[class.ilog2() as usize].pop();
            if reused.is_some() {
                free.held -= class;
            }
            reused
        };
        let memory = reused.unwrap_or_else(|| Memory::new(class, self.0.align));
        let from = memory.bytes().as_ptr().align_offset(self.0.align);
        debug_assert!(from < self.0.align, "an aligned window lies inside");
        AlignedBuf {
            memory: Some(memory),
            from,
            len,
            pool: Arc::downgrade(&self.0),
        }
    }

    /// A buffer that holds a copy of `data`.
    pub fn copy_of(&self, data: &[u8]) -> AlignedBuf {
        let mut buffer = self.take(data.len());
        buffer.as_mut().copy_from_slice(data);
        buffer
    }

    /// Bytes of unused buffers held now.
    pub fn held(&self) -> usize {
        self.0.lock().held
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("align", &self.0.align)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer of a [`BufferPool`]: aligned, exclusive, returned on drop.
pub struct AlignedBuf {
    /// Taken when it goes back to the pool.
    memory: Option<Memory>,
    from: usize,
    len: usize,
    pool: Weak<Shared>,
}

impl AlignedBuf {
    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("held until drop")
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Shortens it to `len` bytes; no effect where it is shorter already.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes it immutable and shared, without a copy. The last clone returns it to the pool.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        &self.memory().bytes()[self.from..self.from + self.len]
    }
}

impl AsMut<[u8]> for AlignedBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        let memory = self.memory.as_mut().expect("held until drop");
        &mut memory.bytes_mut()[self.from..self.from + self.len]
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        let Some(memory) = self.memory.take() else {
            return;
        };
        let class = memory.bytes().len() - pool.align;
        let mut free = pool.lock();
        if free.held + class <= pool.held_max {
            free.held += class;
            free.classes[class.ilog2() as usize].push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_come_back() {
        let pool = BufferPool::new(4096, 1 << 20);
        let buffer = pool.copy_of(&[7; 5000]);
        assert_eq!(buffer.as_ref().as_ptr().align_offset(4096), 0);
        let bytes = buffer.freeze();
        let clone = bytes.slice(10..20);
        drop(bytes);
        assert_eq!(pool.held(), 0);
        assert_eq!(&clone[..], &[7; 10]);
        drop(clone);
        assert_eq!(pool.held(), 8192);
        let again = pool.take(6000);
        assert_eq!((pool.held(), again.len()), (0, 6000));
    }

    #[test]
    fn large_buffers_are_aligned_writable_and_come_back_too() {
        let pool = BufferPool::new(4096, 4 << 20);
        let mut buffer = pool.take(MAPPED_MIN + 1);
        assert_eq!(buffer.as_ref().as_ptr().align_offset(4096), 0);
        buffer.as_mut().fill(7);
        assert!(buffer.freeze().iter().all(|byte| *byte == 7));
        assert_eq!(pool.held(), 2 * MAPPED_MIN);
    }

    #[test]
    fn pool_holds_no_more_than_its_limit() {
        let pool = BufferPool::new(512, 1000);
        let (a, b) = (pool.take(512), pool.take(512));
        drop(a);
        drop(b);
        assert_eq!(pool.held(), 512);
    }
}
