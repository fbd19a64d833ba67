//! Little-endian numbers at fixed places of a metadata block.

/// Puts numbers into a block that is long enough by construction.
pub(crate) trait Put {
    fn put_u16(&mut self, at: usize, value: u16);
    fn put_u32(&mut self, at: usize, value: u32);
    fn put_u64(&mut self, at: usize, value: u64);
}

impl Put for [u8] {
    fn put_u16(&mut self, at: usize, value: u16) {
        self[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn put_u32(&mut self, at: usize, value: u32) {
        self[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, at: usize, value: u64) {
        self[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

/// Takes numbers out; `None` past the end, because the block may be damaged.
pub(crate) trait Get {
    fn get_u16(&self, at: usize) -> Option<u16>;
    fn get_u32(&self, at: usize) -> Option<u32>;
    fn get_u64(&self, at: usize) -> Option<u64>;
}

impl Get for [u8] {
    fn get_u16(&self, at: usize) -> Option<u16> {
        let bytes = self.get(at..at.checked_add(2)?)?;
        Some(u16::from_le_bytes(bytes.try_into().ok()?))
    }

    fn get_u32(&self, at: usize) -> Option<u32> {
        let bytes = self.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    fn get_u64(&self, at: usize) -> Option<u64> {
        let bytes = self.get(at..at.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }
}
