//! [`RamDisk`] and [`NullDisk`]: the two smallest block devices. Every example uses the first;
//! benchmarks measure against the second.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use crate::{
    Allocation, AllocationMap, BlockDevice, DeviceInfo, DiscardReads, Error, Extent, Io, Op, Reply,
    Result, Support, zeroes,
};

/// Bytes of one lazily allocated piece.
const CHUNK: u64 = 64 << 10;
/// Locks over the pieces, so that threads rarely meet.
const SHARDS: usize = 16;

type Shard = Mutex<HashMap<u64, Box<[u8]>>>;

/// A disk in memory: sparse, no volatile cache, everything native. Its content is gone with it.
pub struct RamDisk {
    info: DeviceInfo,
    shards: [Shard; SHARDS],
}

impl RamDisk {
    /// An empty disk of `capacity` bytes in 512-byte blocks.
    ///
    /// # Panics
    /// If the capacity is not a multiple of 512.
    pub fn new(capacity: u64) -> Self {
        Self::with_block(capacity, 512)
    }

    /// An empty disk of `capacity` bytes in blocks of `logical_block` bytes.
    ///
    /// # Panics
    /// If [`DeviceInfo::validate`] refuses the numbers.
    pub fn with_block(capacity: u64, logical_block: u32) -> Self {
        let info = DeviceInfo::new(capacity, logical_block).with_caps(|caps| {
            caps.fua = Support::Native;
            caps.write_zeroes = Support::Native;
            caps.fast_zeroes = true;
            caps.discard = Support::Native;
            caps.discard_reads = DiscardReads::Zero;
            caps.prefetch = Support::Native;
            caps.allocation = true;
        });
        info.validate().expect("a RAM disk of whole blocks");
        Self {
            info,
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    fn shard(&self, chunk: u64) -> std::sync::MutexGuard<'_, HashMap<u64, Box<[u8]>>> {
        // A shard is a plain map of bytes: a panic elsewhere cannot have left it half changed.
        self.shards[index(chunk % SHARDS as u64)]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, extent: Extent) -> Bytes {
        let mut data = BytesMut::with_capacity(index(extent.len()));
        for piece in extent.split(CHUNK) {
            let from = index(piece.offset() % CHUNK);
            let len = index(piece.len());
            match self
                .shard(piece.offset() / CHUNK)
                .get(&(piece.offset() / CHUNK))
            {
                Some(chunk) => data.extend_from_slice(&chunk[from..from + len]),
                None => data.resize(data.len() + len, 0),
            }
        }
        data.freeze()
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut rest = data;
        for piece in Extent::new(offset, data.len() as u64).split(CHUNK) {
            let (now, later) = rest.split_at(index(piece.len()));
            rest = later;
            let number = piece.offset() / CHUNK;
            let from = index(piece.offset() % CHUNK);
            let mut shard = self.shard(number);
            let chunk = shard
                .entry(number)
                .or_insert_with(|| vec![0; index(CHUNK)].into_boxed_slice());
            chunk[from..from + now.len()].copy_from_slice(now);
        }
    }

    fn clear(&self, extent: Extent) {
        for piece in extent.split(CHUNK) {
            let number = piece.offset() / CHUNK;
            let mut shard = self.shard(number);
            if piece.len() == CHUNK {
                shard.remove(&number);
            } else if let Some(chunk) = shard.get_mut(&number) {
                let from = index(piece.offset() % CHUNK);
                chunk[from..from + index(piece.len())].fill(0);
            }
        }
    }
}

impl fmt::Debug for RamDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RamDisk")
            .field("capacity", &self.info.capacity)
            .finish_non_exhaustive()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlockDevice for RamDisk {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        match io.op {
            Op::Read { extent } => return Ok(Reply::Data(self.read(extent))),
            Op::Write { offset, data, .. } => self.write(offset, &data),
            Op::WriteZeroes { extent, .. } | Op::Discard { extent, .. } => self.clear(extent),
            Op::Flush | Op::Prefetch { .. } => {}
        }
        Ok(Reply::Done)
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        let mut map = AllocationMap::starting_at(range.offset());
        for piece in range.split(CHUNK) {
            let number = piece.offset() / CHUNK;
            let held = self.shard(number).contains_key(&number);
            map.push(
                piece.len(),
                if held {
                    Allocation::Data
                } else {
                    Allocation::Hole
                },
            );
        }
        Ok(map)
    }
}

/// A disk that swallows writes and reads as zeroes: the cost of everything but a device.
#[derive(Debug)]
pub struct NullDisk {
    info: DeviceInfo,
}

impl NullDisk {
    /// A null disk of `capacity` bytes in 512-byte blocks.
    ///
    /// # Panics
    /// If the capacity is not a multiple of 512.
    pub fn new(capacity: u64) -> Self {
        let info = RamDisk::new(capacity)
            .info
            .with_caps(|caps| caps.allocation = false);
        Self { info }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlockDevice for NullDisk {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        match io.op {
            Op::Read { extent } => {
                let len = usize::try_from(extent.len())
                    .map_err(|_| Error::invalid("read is too large for memory"))?;
                Ok(Reply::Data(zeroes(len)))
            }
            _ => Ok(Reply::Done),
        }
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        Ok(AllocationMap::uniform(range, Allocation::Data))
    }
}

/// Lengths here are at most a transfer or a chunk, which the framework keeps below 2 GiB.
fn index(value: u64) -> usize {
    usize::try_from(value).expect("a transfer fits in memory")
}
