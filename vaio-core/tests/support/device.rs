//! A device that writes down what it is asked, asserts the contract, and does what a hook says.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use vaio_core::*;

type Hook = Arc<dyn Fn(&Io) -> BoxFuture<'static, Result<()>> + Send + Sync>;

pub struct TestDevice {
    ram: RamDisk,
    info: Mutex<DeviceInfo>,
    started: Mutex<Vec<Op>>,
    ended: Mutex<Vec<Op>>,
    violations: Mutex<Vec<String>>,
    hook: Mutex<Option<Hook>>,
    is_all_hole: bool,
}

impl fmt::Debug for TestDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestDevice")
    }
}

impl TestDevice {
    pub fn new(info: DeviceInfo) -> Arc<Self> {
        Arc::new(Self {
            ram: RamDisk::new(info.capacity),
            info: Mutex::new(info),
            started: Mutex::default(),
            ended: Mutex::default(),
            violations: Mutex::default(),
            hook: Mutex::default(),
            is_all_hole: false,
        })
    }

    /// 1 MiB in 512-byte blocks, everything native, no volatile cache.
    pub fn native() -> Arc<Self> {
        Self::new(native_info())
    }

    /// 1 MiB with a volatile cache, and neither fua nor anything else beside read and write.
    pub fn volatile() -> Arc<Self> {
        Self::new(DeviceInfo::new(1 << 20, 512).with_caps(|caps| caps.volatile_cache = true))
    }

    /// What happens before an IO is done.
    pub fn hook(
        &self,
        hook: impl Fn(&Io) -> BoxFuture<'static, Result<()>> + Send + Sync + 'static,
    ) {
        *self.hook.lock().unwrap() = Some(Arc::new(hook));
    }

    /// Every IO that `is_slow` picks takes `time`.
    pub fn slow(&self, time: Duration, is_slow: impl Fn(&Op) -> bool + Send + Sync + 'static) {
        self.hook(move |io| {
            let is_slow = is_slow(&io.op);
            Box::pin(async move {
                if is_slow {
                    tokio::time::sleep(time).await;
                }
                Ok(())
            })
        });
    }

    pub fn set_info(&self, info: DeviceInfo) {
        *self.info.lock().unwrap() = info;
    }

    /// What was asked, in order of arrival.
    pub fn started(&self) -> Vec<Op> {
        self.started.lock().unwrap().clone()
    }

    /// What was done, in order of ends.
    pub fn ended(&self) -> Vec<Op> {
        self.ended.lock().unwrap().clone()
    }

    pub fn forget(&self) {
        self.started.lock().unwrap().clear();
        self.ended.lock().unwrap().clear();
    }

    pub fn count(&self, kind: OpKind) -> usize {
        self.started().iter().filter(|op| op.kind() == kind).count()
    }

    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    /// The content, without any filter.
    pub fn content(&self, offset: u64, len: u64) -> Vec<u8> {
        let read = self.ram.submit(Io::read(Extent::new(offset, len)));
        futures::executor::block_on(read)
            .unwrap()
            .into_data()
            .to_vec()
    }

    fn check(&self, op: &Op) -> Option<&'static str> {
        let info = *self.info.lock().unwrap();
        let extent = op.extent();
        let kind = op.kind();
        if info.caps.support(kind) != Support::Native {
            return Some("an operation that it does not do");
        }
        if op.is_fua() && info.caps.volatile_cache && info.caps.fua != Support::Native {
            return Some("fua that it does not do");
        }
        if kind == OpKind::Flush {
            return None;
        }
        if extent.is_empty()
            || extent.end() > info.capacity
            || !extent.is_aligned(info.logical_block)
        {
            return Some("an extent that is empty, misaligned or past the end");
        }
        let limit = match kind {
            OpKind::Read | OpKind::Write => info.transfer_max.into(),
            OpKind::WriteZeroes | OpKind::Discard => info.zeroes_max,
            _ => u64::MAX,
        };
        (extent.len() > limit).then_some("an extent above its limit")
    }
}

pub fn native_info() -> DeviceInfo {
    RamDisk::new(1 << 20).info()
}

#[async_trait]
impl BlockDevice for TestDevice {
    fn info(&self) -> DeviceInfo {
        *self.info.lock().unwrap()
    }

    async fn submit(&self, io: Io) -> Result<Reply> {
        if let Some(what) = self.check(&io.op) {
            self.violations.lock().unwrap().push(format!(
                "{what}: {:?} {}",
                io.op.kind(),
                io.op.extent()
            ));
        }
        self.started.lock().unwrap().push(io.op.clone());
        let hook = self.hook.lock().unwrap().clone();
        if let Some(hook) = hook {
            hook(&io).await?;
        }
        let op = io.op.clone();
        let reply = self.ram.submit(io).await;
        self.ended.lock().unwrap().push(op);
        reply
    }

    async fn allocation(&self, range: Extent) -> Result<AllocationMap> {
        if self.is_all_hole {
            return Ok(AllocationMap::uniform(range, Allocation::Hole));
        }
        self.ram.allocation(range).await
    }
}
