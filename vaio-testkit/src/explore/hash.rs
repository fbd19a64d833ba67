//! Hashes by which equal media are known.

/// One hash of two; the order counts.
pub(super) fn mix(a: u64, b: u64) -> u64 {
    crate::tape::mix(a ^ b.rotate_left(23).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A hash of bytes that may not be there.
pub(super) fn hash_of(bytes: Option<&[u8]>) -> u64 {
    bytes.map_or(1, |bytes| {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let words = words.iter().chain(std::iter::once(&last));
        words.fold(bytes.len() as u64, |sum, word| {
            mix(sum, u64::from_le_bytes(*word))
        })
    })
}
