//! Encrypts a disk: AES-256-XTS, see [`key`].
//!
//! The model of a transform. What it cannot transform, its descriptor refuses, so that it never
//! reaches the device by another way:
//! * Write zeroes is refused: a device's zeroes would read as garbage. The framework writes zeroes
//!   through the filter instead, and they are encrypted like any data.
//! * Discard is refused: it would tell the device which blocks are unused, and what is discarded
//!   may come back as raw zeroes, which decrypt to neither old content nor zeroes, although the
//!   contract promises one of them. The framework answers a discard by doing nothing.
//! * A hole below is [`Unmapped`](Allocation::Unmapped) above, never zero: a block that was never
//!   written reads as decrypted zeroes, which look random and are stable, until it is written.
//!
//! It joins and leaves only an empty disk; the framework records it, so that the disk is never
//! opened without it. A check value in the sidecar finds a wrong key before any IO.
//!
//! XTS hides content and not patterns of access, and does not notice tampering.

pub mod key;
mod xts;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use vaio_core::{
    Allocation, AllocationMap, AttachContext, Class, Descriptor, DeviceInfo, Error, ErrorKind,
    Filter, FilterFactory, FilterState, Io, Lifecycle, Next, Op, OpKind, OpenReason, Outcome,
    Phase, Reply, Result, Rt, RuntimeExt, SettingKind, SettingSpec, Sidecar, Verb,
};

use key::Key;

/// From this payload on, the cipher runs beside the IO thread. Measured: 70 us for so many bytes,
/// against 15 to 50 us for waking another thread and coming back; 4 KiB take 2 us.
pub const OFFLOAD_BYTES_MIN: usize = 128 << 10;

/// Key of the check value in the sidecar.
const CHECK: &str = "key_check";

const SETTINGS: &[SettingSpec] = &[SettingSpec::required(
    "key_file",
    SettingKind::Path,
    "File of 64 random bytes, raw or as hexadecimal digits, that only its owner may read",
)];

/// The filter.
#[derive(Debug)]
pub struct Encrypt {
    key: Arc<Key>,
    rt: Rt,
    sidecar: Sidecar,
    offloaded: AtomicU64,
}

#[async_trait]
impl Filter for Encrypt {
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply> {
        match &io.op {
            Op::Read { extent } => {
                let offset = extent.offset();
                let data = next.submit(io).await?.into_data();
                let decrypted = self.cipher(data, move |key, data| key.decrypt(offset, data));
                Ok(Reply::Data(decrypted.await?))
            }
            Op::Write { offset, data, fua } => {
                let (offset, fua) = (*offset, *fua);
                let data = data.clone();
                let encrypted = self.cipher(data, move |key, data| key.encrypt(offset, data));
                let data = encrypted.await?;
                next.submit(io.with_op(Op::Write { offset, data, fua }))
                    .await
            }
            other => Err(Error::unsupported(other.kind())),
        }
    }

    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo> {
        // Logical blocks are 512 bytes or a multiple, so whole sectors.
        Ok(*below)
    }

    async fn lifecycle(&self, event: Lifecycle<'_>) -> Result<Outcome> {
        if let (Verb::Detach, Phase::Commit) = (event.verb, event.phase) {
            self.sidecar.commit(&[(CHECK, None)]).await?;
        }
        Ok(Outcome::Done)
    }

    fn state(&self) -> FilterState {
        FilterState::default()
            .with_detail("cipher", "aes-256-xts, 512-byte sectors")
            .with_detail("offloaded", self.offloaded.load(Relaxed).to_string())
    }

    fn allocation(&self, below: AllocationMap) -> AllocationMap {
        below.map(|what| match what {
            Allocation::Hole | Allocation::Unmapped => Allocation::Unmapped,
            // Zeroes below are not zeroes here.
            Allocation::Zero | Allocation::Data => Allocation::Data,
        })
    }
}

impl Encrypt {
    /// Applies `cipher` to a copy of `data`: the guest's bytes are shared with other layers.
    async fn cipher(
        &self,
        data: Bytes,
        cipher: impl FnOnce(&Key, &mut [u8]) + Send + 'static,
    ) -> Result<Bytes> {
        // No copy where this is the only holder, as for most reads.
        let mut data = data
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        if data.len() < OFFLOAD_BYTES_MIN {
            cipher(&self.key, &mut data);
            return Ok(data.freeze());
        }
        self.offloaded.fetch_add(1, Relaxed);
        let key = Arc::clone(&self.key);
        let work = self.rt.offload_with(move || {
            cipher(&key, &mut data);
            data.freeze()
        });
        work.await
            .ok_or_else(|| Error::new(ErrorKind::Internal, "the cipher broke off"))
    }
}

/// Makes [`Encrypt`] instances.
#[derive(Debug)]
pub struct EncryptFactory;

impl EncryptFactory {
    async fn read_key(cx: &AttachContext) -> Result<Key> {
        let path = PathBuf::from(cx.settings().text("key_file").unwrap_or_default());
        let read = cx.rt().offload_with(move || Key::read(&path)).await;
        read.unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, "reading the key broke off")))
    }
}

#[async_trait]
impl FilterFactory for EncryptFactory {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new("encrypt", env!("CARGO_PKG_VERSION"), Class::Transform)
            .with_summary("Encrypts the disk's content with AES-256-XTS.")
            .intercept(&[OpKind::Read, OpKind::Write])
            .pass(&[OpKind::Flush, OpKind::Prefetch])
            .accept_fua()
            .with_settings(SETTINGS)
    }

    async fn prepare(&self, cx: &AttachContext) -> Result<()> {
        Self::read_key(cx).await.map(drop)
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let key = Self::read_key(&cx).await?;
        let value = key.check_value();
        let known = cx.sidecar().get(CHECK).await;
        match (cx.reason(), known) {
            // The disk is empty: a value from an attach that was cut short does not matter.
            (OpenReason::Attach, _) => {
                let value = Bytes::copy_from_slice(&value);
                cx.sidecar().commit(&[(CHECK, Some(value))]).await?;
            }
            (_, Some(known)) if known == value[..] => {}
            (_, Some(_)) => {
                return Err(Error::refused(
                    "this is not the key that the disk was encrypted with; give the right key_file",
                ));
            }
            (_, None) => {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    "the sidecar has no check value for the key; restore it from a backup of the \
                     disk's folder",
                ));
            }
        }
        Ok(Arc::new(Encrypt {
            key: Arc::new(key),
            rt: Arc::clone(cx.rt()),
            sidecar: cx.sidecar().clone(),
            offloaded: AtomicU64::new(0),
        }))
    }
}
