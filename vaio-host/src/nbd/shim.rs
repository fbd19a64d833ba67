//! Stand-in for the disk and port of vaio-core until they land.
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    sync::Arc,
    task::{Context, Poll},
};
use vaio_core::{AllocationMap, BlockDevice, DeviceInfo, Error, Extent, Io, Reply, Result};

#[derive(Clone, Debug)]
pub struct Disk(pub Arc<dyn BlockDevice>);
#[derive(Debug)]
pub struct Completion {
    pub tag: u64,
    pub result: Result<Reply>,
}
#[derive(Debug)]
pub struct Port {
    disk: Disk,
    depth: usize,
    io: FuturesUnordered<BoxFuture<'static, Completion>>,
}

impl Disk {
    pub fn info(&self) -> DeviceInfo {
        self.0.info()
    }
    pub fn port(&self, depth: usize) -> Result<Port> {
        Ok(Port {
            disk: self.clone(),
            depth,
            io: FuturesUnordered::new(),
        })
    }
    pub async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        if !self.0.info().extent().contains(range) {
            return Err(Error::invalid("out of range"));
        }
        self.0.allocation(range).await
    }
}
impl Port {
    pub fn push(&mut self, tag: u64, io: Io) -> Result<()> {
        if self.io.len() >= self.depth {
            return Err(Error::new(vaio_core::ErrorKind::Busy, "port is full"));
        }
        let dev = self.disk.0.clone();
        let info = dev.info();
        self.io.push(Box::pin(async move {
            let e = io.op.extent();
            let result = if !info.extent().contains(e) || !e.is_aligned(info.logical_block) {
                Err(Error::invalid("out of range or unaligned"))
            } else {
                dev.submit(io).await
            };
            Completion { tag, result }
        }));
        Ok(())
    }
    pub fn in_flight(&self) -> usize {
        self.io.len()
    }
    pub fn poll_complete(&mut self, cx: &mut Context<'_>) -> Poll<Completion> {
        match self.io.poll_next_unpin(cx) {
            Poll::Ready(Some(c)) => Poll::Ready(c),
            _ => Poll::Pending,
        }
    }
}
