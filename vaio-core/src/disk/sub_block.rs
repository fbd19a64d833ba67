//! [`SubBlock`]: serves IO smaller than a device's logical block by read-modify-write, where the
//! device asks for it. Writes that share a block with another are serialised, so that neither
//! takes the other's bytes back.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use crate::{
    AllocationMap, BlockDevice, DeviceInfo, DiscardReads, Error, Extent, Io, Op, OpKind, Reply,
    Result, Support,
    sync::{LockMode, RangeLock},
};

/// A device in smaller blocks than its own.
///
/// A small write becomes a read and a write of whole blocks: a crash may tear it like any write,
/// whole small blocks at a time, and leaves its neighbours as they were.
#[derive(Debug)]
pub(super) struct SubBlock {
    inner: Arc<dyn BlockDevice>,
    info: DeviceInfo,
    block: u32,
    ranges: RangeLock,
}

impl SubBlock {
    /// Wraps the device if it asks for it.
    pub(super) fn wrap(inner: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
        let mut info = inner.info();
        let block = info.logical_block;
        let Some(sub) = info.sub_block.filter(|sub| *sub < block) else {
            return inner;
        };
        info.logical_block = sub;
        info.optimal_block = info.optimal_block.max(block);
        info.sub_block = None;
        // Room for the two partial blocks at the ends; where there is none, an IO must not cross
        // the end of a block.
        info.transfer_max = match info.transfer_max - block {
            0 => sub,
            room => room,
        };
        // A partial block is written as data, and keeps its content when discarded.
        info.caps.fast_zeroes = false;
        info.caps.discard_reads = DiscardReads::OldOrZero;
        Arc::new(Self {
            inner,
            info,
            block,
            ranges: RangeLock::default(),
        })
    }

    fn outer(&self, extent: Extent) -> Extent {
        extent
            .align_out(self.block)
            .expect("the capacity is whole blocks")
    }

    async fn read(&self, io: &Io, extent: Extent) -> Result<Bytes> {
        let outer = self.outer(extent);
        let reply = self
            .inner
            .submit(io.with_op(Op::Read { extent: outer }))
            .await?;
        let from = index(extent.offset() - outer.offset());
        let data = reply.into_data();
        if data.len() as u64 != outer.len() {
            return Err(
                Error::new(crate::ErrorKind::Internal, "device read has a wrong length")
                    .with_extent(outer),
            );
        }
        Ok(data.slice(from..from + index(extent.len())))
    }

    async fn write(&self, io: &Io, offset: u64, data: Bytes, fua: bool) -> Result<Reply> {
        let extent = Extent::new(offset, data.len() as u64);
        let outer = self.outer(extent);
        let _turn = self.ranges.lock(outer, LockMode::Exclusive).await;
        let mut whole = BytesMut::with_capacity(index(outer.len()));
        let head = Extent::from_range(outer.offset(), extent.offset());
        let tail = Extent::from_range(extent.end(), outer.end());
        if !head.is_empty() {
            whole.extend_from_slice(&self.read(io, head).await?);
        }
        whole.extend_from_slice(&data);
        if !tail.is_empty() {
            whole.extend_from_slice(&self.read(io, tail).await?);
        }
        let op = Op::Write {
            offset: outer.offset(),
            data: whole.freeze(),
            fua,
        };
        self.inner.submit(io.with_op(op)).await
    }
}

/// The parts of an extent: what is whole blocks, and the partial ones at its ends.
fn parts(extent: Extent, block: u32) -> (Extent, Vec<Extent>) {
    let inner = extent.align_in(block);
    if inner.is_empty() {
        let edges = extent.split(block.into()).collect();
        return (Extent::new(extent.offset(), 0), edges);
    }
    let edges = [
        Extent::from_range(extent.offset(), inner.offset()),
        Extent::from_range(inner.end(), extent.end()),
    ];
    (
        inner,
        edges.into_iter().filter(|edge| !edge.is_empty()).collect(),
    )
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlockDevice for SubBlock {
    fn info(&self) -> DeviceInfo {
        let now = self.inner.info();
        DeviceInfo {
            capacity: now.capacity,
            ..self.info
        }
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        let kind = io.op.kind();
        let extent = io.op.extent();
        if kind == OpKind::Flush {
            return self.inner.submit(io).await;
        }
        if extent.is_aligned(self.block) {
            // Whole blocks still wait for a partial write that is being put together on them.
            let _turn = if kind.is_mutation() {
                Some(self.ranges.lock(extent, LockMode::Exclusive).await)
            } else {
                None
            };
            return self.inner.submit(io).await;
        }
        match io.op.clone() {
            Op::Read { extent } => Ok(Reply::Data(self.read(&io, extent).await?)),
            Op::Write { offset, data, fua } => self.write(&io, offset, data, fua).await,
            Op::WriteZeroes {
                extent,
                may_unmap,
                fast_only,
                fua,
            } => {
                if fast_only {
                    return Err(Error::unsupported(kind).with_extent(extent));
                }
                let (whole, edges) = parts(extent, self.block);
                for edge in edges {
                    self.write(&io, edge.offset(), crate::zeroes(index(edge.len())), fua)
                        .await?;
                }
                if whole.is_empty() {
                    return Ok(Reply::Done);
                }
                if self.info.caps.write_zeroes == Support::None {
                    for piece in whole.split(self.info.transfer_max.into()) {
                        let zeroes = crate::zeroes(index(piece.len()));
                        self.write(&io, piece.offset(), zeroes, fua).await?;
                    }
                    return Ok(Reply::Done);
                }
                let _turn = self.ranges.lock(whole, LockMode::Exclusive).await;
                let op = Op::WriteZeroes {
                    extent: whole,
                    may_unmap,
                    fast_only,
                    fua,
                };
                self.inner.submit(io.with_op(op)).await
            }
            Op::Discard { extent, fua } => {
                // The partial blocks keep their content: a discard promises nothing.
                let whole = parts(extent, self.block).0;
                if whole.is_empty() {
                    return Ok(Reply::Done);
                }
                let _turn = self.ranges.lock(whole, LockMode::Exclusive).await;
                self.inner
                    .submit(io.with_op(Op::Discard { extent: whole, fua }))
                    .await
            }
            Op::Prefetch { extent } => {
                let op = Op::Prefetch {
                    extent: self.outer(extent),
                };
                self.inner.submit(io.with_op(op)).await
            }
            Op::Flush => unreachable!("a flush was passed on above"),
        }
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        let outer = self.outer(range);
        let map = self.inner.allocation(outer).await?;
        let mut inside = AllocationMap::starting_at(range.offset());
        for (extent, what) in map.pieces() {
            if let Some(part) = extent.intersect(range) {
                inside.push(part.len(), *what);
            }
        }
        Ok(inside)
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("a transfer fits in memory")
}
