//! A transform: each block is masked with a stream made of a key and the block's number. Not a
//! cipher; the shape of one.
//!
//! * T1: the mask depends on the block's place on the *disk*, never on its place in the IO: an IO
//!   may be cut and joined anywhere between here and the guest.
//! * T2: what cannot be transformed is refused, and so never goes past the filter: the zeroes of a
//!   device are not zeroes here (write zeroes), and what a discard leaves is neither old content
//!   nor zeroes (discard). The framework writes zeroes through the filter instead and does nothing
//!   for a discard.
//! * T3: a hole below is unmapped above, not zero.
//! * T4: the guest's buffer is shared with layers above: it is copied, never changed.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use vaio_core::{
    Allocation, AllocationMap, AttachContext, Class, Descriptor, DeviceInfo, Error, Filter,
    FilterFactory, Io, Lifecycle, Next, Op, OpKind, Outcome, Promise, Reply, Result,
};

use crate::zoo::Bug;

/// Name of the filter.
pub const NAME: &str = "twin-transform";

/// Bytes masked by one word of the stream.
const WORD: usize = 8;

/// The filter.
#[derive(Debug)]
pub struct Transform {
    key: u64,
    block: u64,
    bug: Option<Bug>,
}

#[async_trait]
impl Filter for Transform {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        match &io.op {
            Op::Read { extent } => {
                let offset = extent.offset();
                let data = next.submit(io).await?.into_data();
                Ok(Reply::Data(self.mask(offset, &data)))
            }
            Op::Write { offset, data, fua } => {
                let (offset, fua) = (*offset, *fua);
                let data = self.mask(offset, data);
                next.submit(io.with_op(Op::Write { offset, data, fua }))
                    .await
            }
            // The bug: a device's zeroes in place of masked ones.
            Op::WriteZeroes { .. } if self.bug == Some(Bug::ZeroesNotTransformed) => {
                next.submit(io).await
            }
            _ => Err(Error::unsupported(io.op.kind())),
        }
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        Ok(*below)
    }

    async fn lifecycle(&self, _event: Lifecycle<'_>) -> Result<Outcome> {
        Ok(Outcome::Done)
    }

    fn allocation(&self, below: AllocationMap) -> AllocationMap {
        below.map(|what| match what {
            Allocation::Hole | Allocation::Unmapped => Allocation::Unmapped,
            Allocation::Zero | Allocation::Data => Allocation::Data,
        })
    }
}

impl Transform {
    /// Masks or unmasks `data` that lies at `offset`.
    fn mask(&self, offset: u64, data: &[u8]) -> Bytes {
        let mut masked = BytesMut::from(data);
        let first = match self.bug {
            Some(Bug::KeyedByRequest) => 0,
            _ => offset / self.block,
        };
        let block = usize::try_from(self.block).expect("a logical block fits into memory");
        for (number, block) in (first..).zip(masked.chunks_mut(block)) {
            let mut stream = mix(self.key ^ mix(number));
            for word in block.chunks_mut(WORD) {
                stream = mix(stream);
                for (byte, mask) in word.iter_mut().zip(stream.to_le_bytes()) {
                    *byte ^= mask;
                }
            }
        }
        masked.freeze()
    }
}

/// A permutation of numbers that looks random (the finisher of splitmix64).
const fn mix(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Makes [`Transform`] instances.
#[derive(Clone, Debug)]
pub struct TransformFactory {
    key: u64,
    bug: Option<Bug>,
}

impl TransformFactory {
    /// A transform under a key.
    pub const fn new(key: u64) -> Self {
        Self { key, bug: None }
    }

    /// The same with a bug of the zoo in it.
    #[must_use]
    pub const fn with_bug(mut self, bug: Bug) -> Self {
        self.bug = Some(bug);
        self
    }
}

#[async_trait]
impl FilterFactory for TransformFactory {
    fn descriptor(&self) -> Descriptor {
        let descriptor = Descriptor::new(NAME, env!("CARGO_PKG_VERSION"), Class::Transform)
            .with_summary("Masks each block with a keyed stream; a model of the testkit.")
            .intercept(&[OpKind::Read, OpKind::Write])
            .pass(&[OpKind::Flush, OpKind::Prefetch])
            .accept_fua()
            .with_promise(Promise::AtFlush);
        match self.bug {
            Some(Bug::ZeroesNotTransformed) => descriptor.intercept(&[OpKind::WriteZeroes]),
            Some(Bug::DiscardNotTransformed) => descriptor.pass(&[OpKind::Discard]),
            _ => descriptor,
        }
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        Ok(Arc::new(Transform {
            key: self.key,
            block: cx.below().logical_block.into(),
            bug: self.bug,
        }))
    }
}
