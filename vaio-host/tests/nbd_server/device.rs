//! Devices that fail, and that hold IO until told.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use futures::channel::oneshot;
use vaio_core::{
    AllocationMap, BlockDevice, DeviceInfo, Error, ErrorKind, Extent, Io, Op, RamDisk, Reply,
    Result,
};

/// A RAM disk whose writes fail as their offset says, and whose IO waits while it is held.
#[derive(Debug)]
pub struct TestDevice {
    ram: RamDisk,
    info: Mutex<DeviceInfo>,
    held: AtomicBool,
    waiting: Mutex<VecDeque<oneshot::Sender<()>>>,
    /// Most IOs that ever waited together.
    pub waiting_max: AtomicUsize,
}

/// Write to block N of the disk to get the Nth of these; others succeed.
pub const FAILURES: [ErrorKind; 6] = [
    ErrorKind::NoSpace,
    ErrorKind::Invalid,
    ErrorKind::Unsupported,
    ErrorKind::ReadOnly,
    ErrorKind::TimedOut,
    ErrorKind::Io,
];

impl TestDevice {
    pub fn new(set: impl FnOnce(&mut DeviceInfo)) -> Self {
        let ram = RamDisk::new(64 << 20);
        let mut info = ram.info();
        set(&mut info);
        Self {
            ram,
            info: Mutex::new(info),
            held: AtomicBool::new(false),
            waiting: Mutex::default(),
            waiting_max: AtomicUsize::new(0),
        }
    }

    /// Changes the size; the disk above learns it in a resize.
    pub fn set_capacity(&self, bytes: u64) {
        self.info.lock().unwrap().capacity = bytes;
    }

    pub fn hold(&self) {
        self.held.store(true, Ordering::SeqCst);
    }

    pub fn waiting(&self) -> usize {
        self.waiting.lock().unwrap().len()
    }

    pub fn release(&self) {
        self.held.store(false, Ordering::SeqCst);
        for waiting in self.waiting.lock().unwrap().drain(..) {
            let _ = waiting.send(());
        }
    }
}

#[async_trait]
impl BlockDevice for TestDevice {
    fn info(&self) -> DeviceInfo {
        *self.info.lock().unwrap()
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        if self.held.load(Ordering::SeqCst) {
            let (send, released) = oneshot::channel();
            {
                let mut waiting = self.waiting.lock().unwrap();
                waiting.push_back(send);
                self.waiting_max.fetch_max(waiting.len(), Ordering::SeqCst);
            }
            let _ = released.await;
        }
        if let Op::Write { offset, .. } = &io.op
            && let Some(kind) = usize::try_from(*offset / 512)
                .ok()
                .and_then(|block| FAILURES.get(block))
        {
            return Err(Error::new(*kind, "the test wants it"));
        }
        self.ram.submit(io).await
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        self.ram.allocation(range).await
    }
}
