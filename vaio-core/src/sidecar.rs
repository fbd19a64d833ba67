//! The sidecar: a small transactional store that travels with the disk, and the two traits by
//! which a host provides it and the disk's exclusive lock.
//!
//! Content is a map from short keys to short values, written whole and atomically. The byte
//! format is `docs/spec/sidecar.md`. Keys of filters are prefixed with the filter's name; the
//! framework's own start with `vaio.`.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    Error, ErrorKind, Result,
    sync::{self, lock},
};

/// Where a sidecar lives. A host implements it: beside a disk file, in a database.
#[async_trait]
pub trait SidecarStore: fmt::Debug + Send + Sync + 'static {
    /// The whole content, or `None` where there is none yet.
    ///
    /// # Errors
    /// As the storage.
    async fn load(&self) -> Result<Option<Bytes>>;

    /// Replaces the whole content, atomically and durably: after a crash at any moment `load`
    /// gives the old content or the new.
    ///
    /// # Errors
    /// As the storage; the old or the new content is there then.
    async fn replace(&self, content: Bytes) -> Result<()>;
}

/// A sidecar in memory: for tests and for disks that do not outlive the process.
#[derive(Debug, Default)]
pub struct MemorySidecar(Mutex<Option<Bytes>>);

#[async_trait]
impl SidecarStore for MemorySidecar {
    async fn load(&self) -> Result<Option<Bytes>> {
        Ok(lock(&self.0).clone())
    }

    async fn replace(&self, content: Bytes) -> Result<()> {
        *lock(&self.0) = Some(content);
        Ok(())
    }
}

/// The disk's exclusive lock, held from open to close. Dropping it lets go.
pub trait DiskLock: fmt::Debug + Send + Sync + 'static {
    /// Whether it is still held. Asked four times a second while there is IO; after `false` the
    /// disk does no more IO: an event says so, every IO fails with [`ErrorKind::Gone`], and what
    /// filters have in hand, or do by themselves, does not reach the device any more.
    fn is_held(&self) -> bool;
}

/// Version of the byte format; the number in `docs/spec/sidecar.md`.
pub const SIDECAR_VERSION: u16 = 1;
const MAGIC: &[u8; 6] = b"VAIOSC";
/// Largest sidecar in bytes.
pub const SIDECAR_BYTES_MAX: usize = 1 << 20;
const KEY_BYTES_MAX: usize = 255;

type Entries = BTreeMap<String, Bytes>;

/// The content of a sidecar, read once and written through. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct SidecarFile {
    store: Arc<dyn SidecarStore>,
    /// Held across a write, so that writes do not pass each other.
    entries: Arc<sync::Mutex<Entries>>,
}

impl SidecarFile {
    pub(crate) async fn open(store: Arc<dyn SidecarStore>) -> Result<Self> {
        let entries = match store.load().await? {
            Some(content) => decode(&content)?,
            None => Entries::new(),
        };
        Ok(Self {
            store,
            entries: Arc::new(sync::Mutex::new(entries)),
        })
    }

    pub(crate) async fn get(&self, key: &str) -> Option<Bytes> {
        self.entries.lock().await.get(key).cloned()
    }

    /// Applies every change at once, durably, or none.
    pub(crate) async fn commit(&self, changes: Vec<(String, Option<Bytes>)>) -> Result<()> {
        let mut entries = self.entries.lock().await;
        let mut next = entries.clone();
        for (key, value) in changes {
            if key.is_empty() || key.len() > KEY_BYTES_MAX {
                return Err(Error::invalid(format!(
                    "sidecar key is empty or too long, key={key:?}"
                )));
            }
            match value {
                Some(value) => next.insert(key, value),
                None => next.remove(&key),
            };
        }
        self.store.replace(encode(&next)?).await?;
        *entries = next;
        Ok(())
    }

    /// The part that belongs to one filter.
    pub(crate) fn scope(&self, filter: &str) -> Sidecar {
        Sidecar {
            file: self.clone(),
            prefix: format!("{filter}."),
        }
    }
}

/// One filter's part of the disk's sidecar.
#[derive(Clone, Debug)]
pub struct Sidecar {
    file: SidecarFile,
    prefix: String,
}

impl Sidecar {
    /// The value of a key.
    pub async fn get(&self, key: &str) -> Option<Bytes> {
        self.file.get(&format!("{}{key}", self.prefix)).await
    }

    /// Sets (`Some`) and removes (`None`) keys: all of them, durably, or none.
    ///
    /// # Cancellation
    /// Not safe to rely on: the change may or may not have happened.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a key that is empty or over 255 bytes with the filter's name,
    /// [`ErrorKind::NoSpace`] above [`SIDECAR_BYTES_MAX`] for the whole sidecar, else as the
    /// storage.
    pub async fn commit(&self, changes: &[(&str, Option<Bytes>)]) -> Result<()> {
        let changes = changes
            .iter()
            .map(|(key, value)| (format!("{}{key}", self.prefix), value.clone()))
            .collect();
        self.file.commit(changes).await
    }
}

/// The value of `key`, with its filter's prefix, in the content of a sidecar: for tools that look
/// at a disk without opening it.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for content that is no sidecar, [`ErrorKind::Config`] for one of another
/// version.
pub fn sidecar_value(content: &Bytes, key: &str) -> Result<Option<Bytes>> {
    Ok(decode(content)?.remove(key))
}

fn encode(entries: &Entries) -> Result<Bytes> {
    // Headers and checksum take fewer than 32 bytes, lengths fewer than 8 for each entry.
    let bytes = entries
        .iter()
        .map(|(key, value)| key.len() + value.len() + 8);
    let mut out = BytesMut::with_capacity(32 + bytes.sum::<usize>());
    out.put_slice(MAGIC);
    out.put_u16_le(SIDECAR_VERSION);
    out.put_u32_le(length(entries.len())?);
    for (key, value) in entries {
        out.put_u8(u8::try_from(key.len()).map_err(|_| Error::invalid("sidecar key is too long"))?);
        out.put_slice(key.as_bytes());
        out.put_u32_le(length(value.len())?);
        out.put_slice(value);
    }
    out.put_u32_le(checksum(&out));
    if out.len() > SIDECAR_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::NoSpace,
            format!(
                "sidecar is too large, bytes={} bytes_max={SIDECAR_BYTES_MAX}",
                out.len()
            ),
        ));
    }
    Ok(out.freeze())
}

fn length(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| Error::new(ErrorKind::NoSpace, "sidecar is too large"))
}

fn checksum(bytes: &[u8]) -> u32 {
    // The algorithm's width is 32 bits.
    u32::try_from(crc_fast::checksum(
        crc_fast::CrcAlgorithm::Crc32Iscsi,
        bytes,
    ))
    .expect("a 32-bit checksum fits")
}

fn decode(content: &Bytes) -> Result<Entries> {
    let damaged = |what: &str| {
        Err(Error::new(
            ErrorKind::Corrupt,
            format!("sidecar is damaged: {what}; restore it from a backup of the disk's folder"),
        ))
    };
    if content.len() > SIDECAR_BYTES_MAX {
        return damaged("too large");
    }
    let Some(body_len) = content.len().checked_sub(4) else {
        return damaged("too short");
    };
    let mut body = content.slice(..body_len);
    if content.slice(body_len..).get_u32_le() != checksum(&body) {
        return damaged("checksum differs");
    }
    if body.len() < 12 || &body[..6] != MAGIC {
        return damaged("not a sidecar");
    }
    body.advance(6);
    let version = body.get_u16_le();
    if version != SIDECAR_VERSION {
        return Err(Error::config(format!(
            "sidecar was written by another version of vaio, version={version} known={SIDECAR_VERSION}"
        )));
    }
    let mut entries = Entries::new();
    for _ in 0..body.get_u32_le() {
        let Some(key) = take(&mut body, 1) else {
            return damaged("ends early");
        };
        let Ok(key) = String::from_utf8(key.to_vec()) else {
            return damaged("key is not text");
        };
        let Some(value) = take(&mut body, 4) else {
            return damaged("ends early");
        };
        entries.insert(key, value);
    }
    if !body.is_empty() {
        return damaged("bytes after the end");
    }
    Ok(entries)
}

/// Takes a value with a little-endian length of `width` bytes in front.
fn take(body: &mut Bytes, width: usize) -> Option<Bytes> {
    if body.len() < width {
        return None;
    }
    let len = usize::try_from(body.get_uint_le(width)).ok()?;
    (len <= body.len()).then(|| body.split_to(len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decode_undoes_encode(entries in prop::collection::btree_map("[a-z.]{1,20}", prop::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let entries: Entries = entries.into_iter().map(|(k, v)| (k, Bytes::from(v))).collect();
            let encoded = encode(&entries).unwrap();
            prop_assert_eq!(decode(&encoded).unwrap(), entries);
        }

        #[test]
        fn any_flipped_byte_is_refused(at in 0usize..60, bit in 0u8..8) {
            let mut entries = Entries::new();
            entries.insert("vaio.disk".into(), Bytes::from_static(b"some identity of a disk"));
            let mut bytes = encode(&entries).unwrap().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&Bytes::from(bytes)).is_err());
        }

        #[test]
        fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..200), fix in any::<bool>()) {
            if fix {
                let mut framed = MAGIC.to_vec();
                framed.extend_from_slice(&SIDECAR_VERSION.to_le_bytes());
                framed.append(&mut bytes);
                let sum = checksum(&framed);
                framed.extend_from_slice(&sum.to_le_bytes());
                bytes = framed;
            }
            let _ = decode(&Bytes::from(bytes));
        }
    }
}
