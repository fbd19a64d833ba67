//! The key: how it is read, checked and used. AES-256-XTS over 512-byte sectors, tweak = sector
//! number on the disk. Pure but for the reading of the key file.
//!
//! The sector is 512 bytes whatever the device's block, so that the content does not depend on
//! what it lies on. It is what Linux calls `aes-xts-plain64` with a 512-bit key.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use vaio_core::{Error, Result};
use zeroize::Zeroizing;

use super::xts::Xts;
pub use super::xts::{KEY_BYTES, SECTOR};

/// Longest key file: 128 hexadecimal digits and a line end.
const FILE_BYTES_MAX: usize = 130;
/// Bytes that tell one key from another.
pub const CHECK_BYTES: usize = 16;

/// A key that is ready to use. It has no form that shows it.
pub struct Key(Xts);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// The key in `bytes`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](vaio_core::ErrorKind::Config) where the halves are equal: XTS is not
    /// secure then, and it is a sign of a key that was not made at random.
    pub fn new(bytes: &[u8; KEY_BYTES]) -> Result<Self> {
        let (data, tweak) = bytes.split_at(KEY_BYTES / 2);
        if data == tweak {
            return Err(Error::config(
                "the two halves of the key are equal; make a random key",
            ));
        }
        Ok(Self(Xts::new(bytes)))
    }

    /// Reads a key file: 64 bytes, or 128 hexadecimal digits and a line end. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](vaio_core::ErrorKind::Config) where the file cannot be read, others
    /// than its owner may read it, or it does not hold a key. Never says what it holds.
    pub fn read(path: &Path) -> Result<Self> {
        let named = |text: &str| Error::config(format!("{text}, key_file={}", path.display()));
        let content = Self::read_private(path).map_err(|cause| {
            let text = if cause.kind() == io::ErrorKind::PermissionDenied {
                "the key file must be readable by this user and by no one else: chmod 600"
            } else {
                "the key file cannot be read"
            };
            named(text).with_source(cause)
        })?;
        let key = parse(&content).ok_or_else(|| {
            named("the key file does not hold 64 bytes or 128 hexadecimal digits")
        })?;
        Self::new(&key).map_err(|error| named(error.message()))
    }

    fn read_private(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
        let file = File::open(path)?;
        // Of the open file, so that it cannot be another one by the time it is read.
        let metadata = file.metadata()?;
        if metadata.mode() & 0o077 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("its mode is {:o}", metadata.mode() & 0o777),
            ));
        }
        // Room for the whole: a vector that grows leaves copies behind.
        let mut content = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX + 1));
        file.take(FILE_BYTES_MAX as u64 + 1)
            .read_to_end(&mut content)?;
        Ok(content)
    }

    /// Encrypts whole sectors in place; `offset` is where they lie on the disk, in bytes.
    pub fn encrypt(&self, offset: u64, data: &mut [u8]) {
        self.0.encrypt(sector_of(offset), data);
    }

    /// Decrypts whole sectors in place; `offset` is where they lie on the disk, in bytes.
    pub fn decrypt(&self, offset: u64, data: &mut [u8]) {
        self.0.decrypt(sector_of(offset), data);
    }

    /// A value that tells keys apart and gives neither them nor any content away: zeroes,
    /// encrypted as a sector that no disk can have.
    pub fn check_value(&self) -> [u8; CHECK_BYTES] {
        let mut sector = [0; SECTOR];
        self.0.encrypt(u64::MAX.into(), &mut sector);
        let mut value = [0; CHECK_BYTES];
        value.copy_from_slice(&sector[..CHECK_BYTES]);
        value
    }
}

fn sector_of(offset: u64) -> u128 {
    assert!(
        offset.is_multiple_of(SECTOR as u64),
        "a sector starts at a multiple of its size"
    );
    (offset / SECTOR as u64).into()
}

fn parse(content: &[u8]) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    if content.len() == KEY_BYTES {
        key.copy_from_slice(content);
        return Some(key);
    }
    let digits = content.trim_ascii_end();
    if digits.len() != 2 * KEY_BYTES {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_of(hex: &str) -> Vec<u8> {
        hex.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    const HEX: &str = "27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592";

    #[test]
    fn key_files_raw_and_hex_are_the_same_and_others_are_none() {
        let raw = bytes_of(HEX);
        let hex = parse(format!("{HEX}\n").as_bytes()).unwrap();
        assert_eq!(parse(&raw).unwrap(), hex);
        for bad in [&raw[..63], &HEX.as_bytes()[..126], &[b'x'; 128][..], b""] {
            assert!(parse(bad).is_none());
        }
    }

    #[test]
    fn key_with_equal_halves_is_refused() {
        assert!(Key::new(&[7; KEY_BYTES]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn pieces_of_an_area_are_ciphered_as_the_whole(cut in 1usize..8, sector in 0u64..1 << 40) {
            let key = Key::new(&bytes_of(HEX).try_into().unwrap()).unwrap();
            let plain: Vec<u8> = (0..8 * SECTOR).map(|at| u8::try_from(at / 3 % 251).unwrap()).collect();
            let (mut whole, mut pieces) = (plain.clone(), plain.clone());
            let offset = sector * SECTOR as u64;
            key.encrypt(offset, &mut whole);
            let (head, tail) = pieces.split_at_mut(cut * SECTOR);
            key.encrypt(offset, head);
            key.encrypt(offset + head.len() as u64, tail);
            prop_assert_eq!(&whole, &pieces);
            key.decrypt(offset, &mut whole);
            prop_assert_eq!(whole, plain);
        }
    }
}
