//! Images made by hand, and what the inspector says of them when they are right, damaged, cut
//! short, or made to mislead.

use bytes::Bytes;
use futures::FutureExt;
use proptest::prelude::*;
use vaio_core::{Extent, RamDisk};

use super::*;
use crate::{
    Sizes,
    checksum::Seed,
    geometry::Geometry,
    record::{self, Entry},
};

const BLOCK: usize = 512;
const NONCE: u64 = 77;
const CAPACITY: u64 = (2 + 10 * 8) * 512;

fn geometry() -> Geometry {
    Geometry::new(512, CAPACITY, &Sizes::new(1024, 512, 8 * 512, 512)).expect("a layout")
}

/// A device's content, written as the cache does it.
struct Image {
    bytes: Vec<u8>,
    epoch: u64,
    seq: u64,
    prev_crc: u32,
    at: At,
    contents: Vec<Vec<u8>>,
}

impl Image {
    fn new() -> Self {
        Self {
            bytes: vec![0; crate::geometry::index(CAPACITY)],
            epoch: 1,
            seq: 0,
            prev_crc: 0,
            at: geometry().segment_at(0),
            contents: Vec::new(),
        }
    }

    fn put(&mut self, at: At, bytes: &[u8]) {
        let from = at.0 as usize * BLOCK;
        self.bytes[from..from + bytes.len()].copy_from_slice(bytes);
    }

    fn superblock(&mut self, superblock: &Superblock) {
        let at = geometry().superblock_at(superblock.generation);
        self.put(at, &superblock.encode());
    }

    /// One write of `count` blocks at `block`; `count` 0: zeroes of two blocks.
    fn record(&mut self, block: u64, count: u64, durable_seq: u64) {
        let geometry = geometry();
        let kind = [Kind::Zeroes, Kind::Data][usize::from(count > 0)];
        let count = [2, count][usize::from(count > 0)];
        let span = Span {
            start: block,
            count,
        };
        let mut sums = Vec::new();
        let mut payload = Vec::new();
        if kind == Kind::Data {
            let fill = u8::try_from(self.seq % 250).expect("small") + 1;
            let data = vec![fill; crate::geometry::index(geometry.bytes(count))];
            record::sum(span, &data, &geometry, &mut sums);
            payload.push(Bytes::from(data));
        }
        let header = Header {
            epoch: self.epoch,
            seq: self.seq,
            durable_seq,
            cut: self.seq,
            prev_crc: self.prev_crc,
            entries: vec![Entry { span, kind }],
            sums,
        };
        self.add(&header, &payload);
    }

    fn add(&mut self, header: &Header, payload: &[Bytes]) {
        let (bytes, crc) = record::encode(header, payload, NONCE, &geometry());
        self.contents.push(header.encode(NONCE).0);
        self.put(self.at, &bytes);
        self.at = self.at.plus((bytes.len() / BLOCK) as u64);
        self.prev_crc = crc;
        self.seq = header.end();
    }

    fn seal(&mut self, first_seq: u64) {
        let geometry = geometry();
        let segment = geometry.segment_of(self.at);
        let seed = Seed {
            nonce: NONCE,
            epoch: self.epoch,
            seq: first_seq,
        };
        let footer = footer::encode(&self.contents, seed, &geometry);
        self.put(geometry.footer_at(segment), &footer);
        self.contents.clear();
        self.at = geometry.segment_at(geometry.after(segment));
    }

    fn inspect(&self, depth: Depth) -> Inspection {
        let disk = Arc::new(RamDisk::new(self.bytes.len() as u64));
        block_on(disk.write(0, Bytes::from(self.bytes.clone()))).expect("a RAM disk takes it");
        block_on(inspect(disk, depth)).expect("a RAM disk can be read")
    }
}

/// A RAM disk never waits.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a RAM disk never waits")
}

fn superblock(generation: u64, destaged_seq: u64) -> Superblock {
    Superblock {
        generation,
        identity: 0xabcd,
        owner: 3,
        geometry: geometry(),
        destaged_seq,
        epochs: vec![Epoch {
            epoch: 1,
            nonce: NONCE,
            segment: 0,
            first_seq: 0,
            end_seq: OPEN,
        }],
    }
}

/// Four records, the first destaged; two of them in a sealed segment.
fn sample() -> Image {
    let mut image = Image::new();
    image.superblock(&superblock(1, 0));
    image.superblock(&superblock(2, 1));
    image.record(0, 2, 0);
    image.record(4, 2, 0);
    image.seal(0);
    image.record(5, 3, 2);
    image.record(20, 0, 3);
    image
}

#[test]
fn log_is_shown_as_it_was_written() {
    let found = sample().inspect(Depth::Payloads);
    let verdicts: Vec<_> = found.superblocks.iter().map(|one| &one.verdict).collect();
    let valid = |generation| Verdict::Valid { generation };
    assert_eq!(verdicts, [&valid(2), &valid(1)]);
    let log = found.log.expect("a superblock is valid");
    assert_eq!((log.identity, log.owner, log.destaged_seq), (0xabcd, 3, 1));
    assert_eq!((log.end_seq, log.durable_seq, log.record_count), (4, 3, 4));
    let seen: Vec<_> = log
        .segments
        .iter()
        .map(|one| (one.segment, one.records, one.is_sealed))
        .collect();
    assert_eq!(seen, [(0, 2, true), (1, 2, false)]);
    let dirty: Vec<_> = log.records.iter().map(|one| one.is_dirty).collect();
    assert_eq!(dirty, [false, true, true, true]);
    let blocks = |from: u64, to: u64| Extent::from_range(from * 512, to * 512);
    assert_eq!(log.dirty, [blocks(4, 8), blocks(20, 22)]);
    assert_eq!(log.dirty_bytes, 6 * 512);
    assert_eq!((log.bad_payloads, log.damage), (0, None));
    // Two headers and three blocks behind the start of the second segment.
    assert_eq!(log.end_offset, Some((10 + 5) * 512));
}

#[test]
fn newer_superblock_damaged_shows_the_older_one() {
    let mut image = sample();
    image.bytes[100] ^= 1;
    let found = image.inspect(Depth::Headers);
    assert_eq!(found.superblocks[0].verdict, Verdict::Invalid);
    assert_eq!(found.log.expect("the other is valid").destaged_seq, 0);
}

#[test]
fn device_without_superblock_has_no_log() {
    let found = Image::new().inspect(Depth::Headers);
    assert!(
        found
            .superblocks
            .iter()
            .all(|one| one.verdict == Verdict::Empty)
    );
    assert_eq!(found.log, None);
}

#[test]
fn durable_record_that_is_gone_is_damage() {
    let mut image = sample();
    // The header behind which a later one says that it was durable.
    let at = 10 * BLOCK;
    image.bytes[at] ^= 1;
    let log = image.inspect(Depth::Headers).log.expect("a log");
    let damage = log.damage.expect("an open refuses");
    assert!(damage.text.contains("seq=2"), "{}", damage.text);
    assert_eq!(log.record_count, 2, "what is before it is shown");
}

#[test]
fn rotten_payload_is_found_where_payloads_are_read() {
    let mut image = sample();
    image.bytes[11 * BLOCK + 7] ^= 1;
    let log = image.inspect(Depth::Payloads).log.expect("a log");
    assert_eq!(log.bad_payloads, 1);
    assert_eq!(log.records[2].is_payload_valid, Some(false));
    let log = image.inspect(Depth::Headers).log.expect("a log");
    assert_eq!((log.bad_payloads, log.records.len()), (0, 0));
}

#[test]
fn device_shorter_than_its_log_is_damage() {
    let mut image = sample();
    image.bytes.truncate(40 * BLOCK);
    let log = image.inspect(Depth::Headers).log.expect("a log");
    assert!(log.damage.expect("cut short").text.contains("shorter"));
}

#[test]
fn headers_out_of_range_are_no_records() {
    let entries = [
        (u64::MAX, 1, Kind::Void),
        (u64::MAX - 3, 8, Kind::Zeroes),
        (0, u64::from(u32::MAX), Kind::Discard),
        (1 << 54, 1, Kind::Zeroes),
    ];
    for (start, count, kind) in entries {
        let mut image = sample();
        let header = Header {
            epoch: 1,
            seq: 4,
            durable_seq: 0,
            cut: 9,
            prev_crc: image.prev_crc,
            entries: vec![Entry {
                span: Span { start, count },
                kind,
            }],
            sums: Vec::new(),
        };
        image.add(&header, &[]);
        let log = image.inspect(Depth::Payloads).log.expect("a log");
        assert_eq!(log.end_seq, 4, "{start} {count} {kind:?}");
    }
}

#[test]
fn header_at_the_end_of_all_seqs_is_none() {
    let mut image = sample();
    let header = Header {
        epoch: 1,
        seq: u64::MAX,
        durable_seq: 0,
        cut: 9,
        prev_crc: image.prev_crc,
        entries: vec![Entry {
            span: Span { start: 1, count: 1 },
            kind: Kind::Void,
        }],
        sums: Vec::new(),
    };
    // Behind a damaged record, where every header that verifies counts as lost.
    image.put(
        image.at,
        &record::encode(&header, &[], NONCE, &geometry()).0,
    );
    image.bytes[10 * BLOCK] ^= 1;
    let log = image.inspect(Depth::Headers).log.expect("a log");
    assert!(log.damage.expect("an open refuses").text.contains("seq=2"));
}

#[test]
fn footer_of_more_than_a_segment_is_none() {
    let geometry = geometry();
    let headers = [0, 1].map(|seq| Header {
        epoch: 1,
        seq,
        durable_seq: 0,
        cut: seq,
        prev_crc: 0,
        entries: vec![Entry {
            span: Span { start: 0, count: 4 },
            kind: Kind::Data,
        }],
        sums: vec![0, 0],
    });
    let seed = Seed {
        nonce: NONCE,
        epoch: 1,
        seq: 0,
    };
    let decoded = |headers: &[Header]| {
        let contents: Vec<_> = headers.iter().map(|one| one.encode(NONCE).0).collect();
        footer::decode(
            &footer::encode(&contents, seed, &geometry),
            NONCE,
            1,
            &geometry,
        )
    };
    assert!(decoded(&headers[..1]).is_some());
    assert_eq!(
        decoded(&headers),
        None,
        "ten blocks, and a segment has room for seven"
    );
}

fn sum_superblock(bytes: &mut [u8]) {
    use crate::bytes_at::Put;
    bytes.put_u32(96, 0);
    let sum = crate::checksum::crc(&bytes[..crate::superblock::USED_BYTES]);
    bytes.put_u32(96, sum);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Bytes changed anywhere, lengths cut anywhere: there is always a report, and what it lists
    /// lies on the device.
    #[test]
    fn mutated_image_gives_a_report(
        changes in prop::collection::vec((0..usize::MAX, any::<u8>()), 0..12),
        is_summed in any::<bool>(),
        blocks in 1usize..=82,
    ) {
        let mut image = sample();
        let front = usize::from(is_summed);
        for (at, byte) in changes {
            // Half of the runs change superblocks only, and make their sums right again.
            let len = [image.bytes.len(), 2 * BLOCK][front];
            image.bytes[at % len] = byte;
        }
        if is_summed {
            sum_superblock(&mut image.bytes[..BLOCK]);
            sum_superblock(&mut image.bytes[BLOCK..2 * BLOCK]);
        }
        image.bytes.truncate(blocks * BLOCK);
        let found = image.inspect(Depth::Payloads);
        let len = image.bytes.len() as u64;
        let records = found.log.iter().flat_map(|log| &log.records);
        for record in records {
            prop_assert!(record.offset + record.payload_bytes < len);
        }
    }

    /// Fields of superblocks with extreme values and right sums: as someone would who wants the
    /// reader to fall over.
    #[test]
    fn misleading_superblock_gives_a_report(
        fields in prop::collection::vec((0usize..106, prop_oneof![
            Just(0u32), Just(1), Just(511), Just(512), Just(4096), Just(1 << 20), Just(1 << 31), Just(u32::MAX), any::<u32>(),
        ]), 1..6),
    ) {
        use crate::bytes_at::Put;
        let mut image = sample();
        for (field, value) in fields {
            for place in [0, BLOCK] {
                image.bytes[place..place + BLOCK].put_u32(4 * field, value);
            }
        }
        sum_superblock(&mut image.bytes[..BLOCK]);
        sum_superblock(&mut image.bytes[BLOCK..2 * BLOCK]);
        image.inspect(Depth::Payloads);
    }

    #[test]
    fn arbitrary_bytes_give_a_report(bytes in prop::collection::vec(any::<u8>(), 1..4096)) {
        let mut image = Image::new();
        image.bytes[..bytes.len()].copy_from_slice(&bytes);
        image.inspect(Depth::Payloads);
    }
}
