//! [`Image`]: what a simulated medium holds, block by block.
//!
//! A crash test makes millions of images that differ from each other in a few blocks. So an image
//! is a persistent tree: a clone shares everything, a change copies one path of small nodes, and a
//! payload is never copied at all.
//!
//! Invariants: the hash is the sum of one contribution per block, each a pure function of the
//! fill, the block's number and its bytes. So it is kept up to date at every change, and images of
//! equal content have equal hashes however they came about.

use std::{fmt, sync::Arc};

use bytes::{Bytes, BytesMut};
use vaio_core::zeroes;

use crate::stamp::is_zero;

/// Children of an inner node, and blocks of a leaf.
const FANOUT: usize = 16;
/// Key of a block of zeroes.
const ZERO_KEY: u64 = 0x5a65_726f;

/// What blocks that were never written read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Fill {
    /// Zeroes.
    #[default]
    Zero,
    /// Bytes that depend on the seed and the block's number and look like nothing: finds a filter
    /// that takes fresh storage for zeroed storage.
    Garbage(u64),
}

impl Fill {
    /// First eight bytes of a never-written block.
    fn first_word(self, block: u64) -> u64 {
        match self {
            Self::Zero => 0,
            Self::Garbage(seed) => mix(seed ^ mix(block)) | 1,
        }
    }

    fn bytes(self, block: u64, len: usize) -> Bytes {
        let Self::Garbage(_) = self else {
            return zeroes(len);
        };
        let mut word = self.first_word(block);
        let mut out = BytesMut::with_capacity(len);
        for _ in 0..len / 8 {
            out.extend_from_slice(&word.to_le_bytes());
            word = mix(word);
        }
        out.freeze()
    }

    /// What a block adds to the hash: zero while it reads as if never written.
    pub(super) fn contribution(self, block: u64, content: &Content) -> u64 {
        let key = match (content, self) {
            (Content::Fill, _) | (Content::Hole | Content::Zero, Self::Zero) => return 0,
            (Content::Hole | Content::Zero, Self::Garbage(_)) => ZERO_KEY,
            (Content::Data(data), _) => {
                let is_fill = data.first_word() == self.first_word(block)
                    && data.bytes == self.bytes(block, data.bytes.len());
                if is_fill {
                    return 0;
                }
                data.key
            }
        };
        mix(key ^ mix(block.wrapping_add(1)))
    }
}

/// One block of an image.
#[derive(Clone, Debug)]
pub enum Content {
    /// Never written: reads as the image's [`Fill`].
    Fill,
    /// Discarded: not allocated, reads as zeroes.
    Hole,
    /// Zeroes.
    Zero,
    /// Bytes, not all zero.
    Data(Data),
}

/// The bytes of one block, with their hash.
#[derive(Clone, Debug)]
pub struct Data {
    bytes: Bytes,
    key: u64,
}

impl Data {
    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    fn first_word(&self) -> u64 {
        self.bytes
            .first_chunk()
            .map_or(0, |word| u64::from_le_bytes(*word))
    }
}

impl Content {
    /// The content of a block that `bytes` were written to.
    pub fn of(bytes: Bytes) -> Self {
        if is_zero(&bytes) {
            return Self::Zero;
        }
        let key = key_of(&bytes);
        Self::Data(Data { bytes, key })
    }
}

/// A node of the tree; empty stands for blocks that were never written.
#[derive(Clone, Default)]
enum Node {
    #[default]
    Empty,
    Inner(Arc<[Node; FANOUT]>),
    Leaf(Arc<[Content]>),
}

/// The content of a disk. Cloning costs the same for any size.
#[derive(Clone)]
pub struct Image {
    root: Node,
    /// Levels of inner nodes above the leaves.
    height: u32,
    blocks: u64,
    block_bytes: u32,
    fill: Fill,
    sum: u64,
}

impl Image {
    /// An image of `blocks` never-written blocks of `block_bytes` bytes each.
    ///
    /// # Panics
    /// If a block is not a multiple of 8 bytes.
    pub fn new(blocks: u64, block_bytes: u32, fill: Fill) -> Self {
        assert!(
            block_bytes.is_multiple_of(8) && block_bytes > 0,
            "a block is whole words"
        );
        let mut height = 0;
        let mut reach = FANOUT as u64;
        while reach < blocks {
            reach = reach.saturating_mul(FANOUT as u64);
            height += 1;
        }
        Self {
            root: Node::Empty,
            height,
            blocks,
            block_bytes,
            fill,
            sum: 0,
        }
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// What never-written blocks read as.
    pub fn fill(&self) -> Fill {
        self.fill
    }

    /// Hash of what every block reads as. Images of the same size and fill read alike if and, but
    /// for a chance of 2^-64, only if their hashes are equal. Allocation is not part of it.
    pub fn hash(&self) -> u64 {
        self.hash_with(0)
    }

    /// The hash that the image would have if the blocks' contributions changed by `delta`.
    pub(super) fn hash_with(&self, delta: u64) -> u64 {
        mix(self.sum.wrapping_add(delta) ^ mix(self.blocks))
    }

    /// A block's content.
    ///
    /// # Panics
    /// If the block is past the end.
    pub fn get(&self, block: u64) -> &Content {
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        let mut node = &self.root;
        let mut height = self.height;
        loop {
            match node {
                Node::Empty => return &Content::Fill,
                Node::Leaf(leaf) => return &leaf[digit(block, 0)],
                Node::Inner(children) => node = &children[digit(block, height)],
            }
            height -= u32::from(height > 0);
        }
    }

    /// Changes a block.
    ///
    /// # Panics
    /// If the block is past the end, or data is not one block.
    pub fn set(&mut self, block: u64, content: Content) {
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        if let Content::Data(data) = &content {
            assert_eq!(
                data.bytes.len(),
                self.block_bytes as usize,
                "data of one block"
            );
        }
        let added = self.fill.contribution(block, &content);
        let leaf_len = FANOUT.min(usize::try_from(self.blocks).unwrap_or(FANOUT));
        let place = place(&mut self.root, self.height, block, leaf_len);
        let removed = self.fill.contribution(block, place);
        *place = content;
        self.sum = self.sum.wrapping_add(added).wrapping_sub(removed);
    }

    /// The bytes of one block.
    pub fn block(&self, block: u64) -> Bytes {
        let len = self.block_bytes as usize;
        match self.get(block) {
            Content::Fill => self.fill.bytes(block, len),
            Content::Hole | Content::Zero => zeroes(len),
            Content::Data(data) => data.bytes.clone(),
        }
    }

    /// The bytes of `count` blocks.
    ///
    /// # Panics
    /// If they reach past the end.
    pub fn read(&self, block: u64, count: u64) -> Bytes {
        if count == 1 {
            return self.block(block);
        }
        let bytes = usize::try_from(count * u64::from(self.block_bytes));
        let mut out = BytesMut::with_capacity(bytes.expect("what is read fits in memory"));
        for block in block..block + count {
            out.extend_from_slice(&self.block(block));
        }
        out.freeze()
    }

    /// The blocks whose content may differ, in order: every one that does, and no whole stretch
    /// that the two share.
    pub fn changed(&self, other: &Self) -> Vec<u64> {
        let mut found = Vec::new();
        if self.blocks == other.blocks {
            differ(&self.root, &other.root, self.height, 0, &mut found);
            found.retain(|block| *block < self.blocks && !self.reads_alike(other, *block));
        } else {
            found.extend(0..self.blocks.max(other.blocks));
        }
        found
    }

    fn reads_alike(&self, other: &Self, block: u64) -> bool {
        self.block(block) == other.block(block)
    }

    /// The same content on a larger disk; blocks that are new were never written.
    ///
    /// # Panics
    /// If `blocks` is smaller than now.
    #[must_use]
    pub fn grown(&self, blocks: u64) -> Self {
        assert!(blocks >= self.blocks, "a disk grows");
        let mut image = Self::new(blocks, self.block_bytes, self.fill);
        for block in self.written() {
            image.set(block, self.get(block).clone());
        }
        image
    }

    /// The blocks that were ever written or discarded, in order.
    pub fn written(&self) -> Vec<u64> {
        let mut found = Vec::new();
        differ(&self.root, &Node::Empty, self.height, 0, &mut found);
        found.retain(|block| *block < self.blocks && !matches!(self.get(*block), Content::Fill));
        found
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("blocks", &self.blocks)
            .field("hash", &format_args!("{:016x}", self.hash()))
            .finish_non_exhaustive()
    }
}

/// Position of a block in a node `height` levels above the leaves.
fn digit(block: u64, height: u32) -> usize {
    // Fits: below FANOUT.
    usize::try_from((block >> (4 * height)) % FANOUT as u64).expect("a digit is small")
}

/// The place of a block, with the path to it unshared.
fn place(node: &mut Node, height: u32, block: u64, leaf_len: usize) -> &mut Content {
    if matches!(node, Node::Empty) {
        *node = if height == 0 {
            Node::Leaf(vec![Content::Fill; leaf_len].into())
        } else {
            Node::Inner(Arc::default())
        };
    }
    match node {
        Node::Leaf(leaf) => &mut Arc::make_mut(leaf)[digit(block, 0)],
        Node::Inner(children) => {
            let child = &mut Arc::make_mut(children)[digit(block, height)];
            place(child, height - 1, block, leaf_len)
        }
        Node::Empty => unreachable!("an empty node was just replaced"),
    }
}

/// Collects the blocks below two nodes that they do not share.
fn differ(one: &Node, other: &Node, height: u32, first: u64, found: &mut Vec<u64>) {
    let empty: [Node; FANOUT] = Default::default();
    let (left, right) = match (one, other) {
        (Node::Empty, Node::Empty) => return,
        (Node::Leaf(a), Node::Leaf(b)) if Arc::ptr_eq(a, b) => return,
        (Node::Leaf(leaf), _) | (_, Node::Leaf(leaf)) => {
            found.extend((first..).take(leaf.len()));
            return;
        }
        (Node::Inner(a), Node::Inner(b)) if Arc::ptr_eq(a, b) => return,
        (Node::Inner(a), Node::Inner(b)) => (&**a, &**b),
        (Node::Inner(a), Node::Empty) => (&**a, &empty),
        (Node::Empty, Node::Inner(b)) => (&empty, &**b),
    };
    for (number, (a, b)) in (0..).zip(left.iter().zip(right)) {
        differ(a, b, height - 1, first + (number << (4 * height)), found);
    }
}

/// Bijective mixing of one word: neighbours in, unrelated words out.
pub(super) fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (word ^ (word >> 31)).wrapping_add(0x9e37_79b9_7f4a_7c15)
}

/// Hash of a block's bytes: 16 bytes at a time by a folded 128-bit product.
fn key_of(bytes: &[u8]) -> u64 {
    let mut state = bytes.len() as u64 ^ 0x243f_6a88_85a3_08d3;
    let (pairs, rest) = bytes.as_chunks::<16>();
    let mut last = [0; 16];
    last[..rest.len()].copy_from_slice(rest);
    let last = (!rest.is_empty()).then_some(&last);
    for pair in pairs.iter().chain(last) {
        let both = u128::from_le_bytes(*pair);
        let (low, high) = (low_half(both), low_half(both >> 64));
        let product = u128::from(low ^ 0x1319_8a2e_0370_7344 ^ state)
            * u128::from(high ^ 0xa409_3822_299f_31d0);
        // Adding what was read keeps a zero factor from swallowing it.
        state = low_half(product ^ (product >> 64))
            .wrapping_add(low.rotate_left(23))
            .wrapping_add(high)
            .wrapping_add(state.rotate_left(7));
    }
    mix(state)
}

fn low_half(word: u128) -> u64 {
    u64::try_from(word & u128::from(u64::MAX)).expect("masked to 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn data(byte: u8) -> Content {
        Content::of(Bytes::from(vec![byte; 512]))
    }

    fn all(image: &Image) -> Vec<Bytes> {
        (0..image.blocks())
            .map(|block| image.block(block))
            .collect()
    }

    fn content() -> impl Strategy<Value = Content> {
        prop_oneof![
            Just(Content::Fill),
            Just(Content::Hole),
            Just(Content::Zero),
            (0u8..3).prop_map(data),
            (0u64..3).prop_map(|block| Content::of(Fill::Garbage(7).bytes(block, 512))),
        ]
    }

    proptest! {
        #[test]
        fn equal_hash_exactly_where_equal_bytes(
            one in prop::collection::vec((0u64..3, content()), 0..6),
            other in prop::collection::vec((0u64..3, content()), 0..6),
            fill in prop_oneof![Just(Fill::Zero), Just(Fill::Garbage(7))],
        ) {
            let build = |sets: &[(u64, Content)]| {
                let mut image = Image::new(3, 512, fill);
                for (block, content) in sets {
                    image.set(*block, content.clone());
                }
                image
            };
            let (one, other) = (build(&one), build(&other));
            prop_assert_eq!(one.hash() == other.hash(), all(&one) == all(&other));
            let differing: Vec<u64> = (0..3).filter(|b| one.block(*b) != other.block(*b)).collect();
            prop_assert_eq!(one.changed(&other), differing);
        }

        #[test]
        fn large_image_reads_back_what_was_set(sets in prop::collection::vec((0u64..1 << 20, any::<u8>()), 0..40)) {
            let mut image = Image::new(1 << 20, 512, Fill::Zero);
            let before = image.clone();
            let mut model = BTreeMap::new();
            for (block, byte) in sets {
                image.set(block, data(byte));
                model.insert(block, byte);
            }
            for (block, byte) in &model {
                prop_assert_eq!(&image.block(*block)[..], &[*byte; 512][..]);
                prop_assert_eq!(&before.block(*block)[..], &[0; 512][..]);
            }
            prop_assert_eq!(image.written(), model.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!(image.grown(1 << 21).written(), image.written());
        }
    }

    #[test]
    fn every_byte_of_a_block_counts_in_the_hash() {
        let hash = |at: Option<usize>| {
            let mut bytes = vec![7; 512];
            if let Some(at) = at {
                bytes[at] = 8;
            }
            let mut image = Image::new(1, 512, Fill::Zero);
            image.set(0, Content::of(bytes.into()));
            image.hash()
        };
        let hashes: std::collections::BTreeSet<_> =
            (0..512).map(Some).chain([None]).map(hash).collect();
        assert_eq!(hashes.len(), 513);
    }

    #[test]
    fn never_written_block_reads_as_the_fill() {
        let image = Image::new(4, 512, Fill::Garbage(3));
        assert_ne!(image.block(0), image.block(1));
        assert_ne!(image.block(0), zeroes(512));
        assert_eq!(Image::new(4, 512, Fill::Zero).read(0, 4), zeroes(2048));
    }

    #[test]
    fn keys_of_similar_blocks_differ() {
        let mut keys = std::collections::BTreeSet::new();
        for at in 0..512 {
            for bit in 0..8 {
                let mut bytes = vec![0; 512];
                bytes[at] = 1 << bit;
                keys.insert(key_of(&bytes));
            }
        }
        assert_eq!(keys.len(), 4096);
    }
}
