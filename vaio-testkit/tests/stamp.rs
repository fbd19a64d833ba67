//! Stamps and the text of guest operations.

use vaio_testkit::stamp::Check;
use vaio_testkit::workload::{WorkloadSettings, random_workload};
use vaio_testkit::{GuestOp, Stamp, Value};

const STAMP: Stamp = Stamp {
    run: 7,
    op: 3,
    block: 12,
    version: 2,
};

fn block(stamp: Stamp) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    stamp.encode(&mut bytes);
    bytes
}

#[test]
fn stamp_written_to_a_block_is_read_back() {
    for check in [Check::Header, Check::Full] {
        assert_eq!(Value::decode(&block(STAMP), check), Value::Stamp(STAMP));
        assert_eq!(Value::decode(&[0; 512], check), Value::Zero);
        let mut fill = [0; 4096];
        Value::fill(7, 12, &mut fill);
        assert_eq!(Value::decode(&fill, check), Value::Fill(12));
    }
}

#[test]
fn stamp_with_any_bit_changed_is_not_taken_for_itself() {
    for bit in 0..512 * 8 {
        let mut bytes = block(STAMP);
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(
            matches!(Value::decode(&bytes, Check::Full), Value::Other(_)),
            "bit {bit}"
        );
        let header = Value::decode(&bytes, Check::Header);
        assert_eq!(header == Value::Stamp(STAMP), bit >= 32 * 8, "bit {bit}");
    }
}

#[test]
fn stamp_torn_anywhere_names_both_writers() {
    let (old, new) = (
        block(Stamp { op: 2, ..STAMP }),
        block(Stamp { op: 4, ..STAMP }),
    );
    for at in (32..512).step_by(32) {
        let bytes = [&new[..at], &old[at..]].concat();
        let torn = Value::Torn {
            head: 4,
            tail: 2,
            at: u32::try_from(at).unwrap(),
        };
        assert_eq!(Value::decode(&bytes, Check::Full), torn);
        let explained = format!("op #4 up to byte {at}, then op #2: torn inside a block");
        assert_eq!(torn.explain(7, 12), explained);
    }
    let half = [&[0; 256], &old[256..]].concat();
    assert_eq!(
        Value::decode(&half, Check::Full),
        Value::Torn {
            head: 0,
            tail: 2,
            at: 256
        }
    );
    assert_eq!(
        Value::decode(&half, Check::Header),
        Value::Torn {
            head: 0,
            tail: 2,
            at: 256
        }
    );
}

#[test]
fn stamp_in_the_wrong_place_is_explained() {
    let value = Value::Stamp(STAMP);
    assert_eq!(
        value.explain(7, 9),
        "holds op #3's data for block 12: misdirected"
    );
    assert_eq!(
        value.explain(1, 12),
        "holds data of run 7: the medium was not wiped"
    );
    assert_eq!(value.explain(7, 12), "op #3 (version 2)");
    assert_eq!(
        Value::Fill(4).explain(7, 9),
        "holds block 4's initial content: misdirected"
    );
}

#[test]
fn payload_has_one_block_for_each_stamp() {
    let stamps = [STAMP, Stamp { block: 13, ..STAMP }];
    let payload = Stamp::payload(stamps, 512);
    assert_eq!(
        Value::decode_all(&payload, 512, Check::Full),
        stamps.map(Value::Stamp)
    );
}

#[test]
fn guest_op_reads_back_from_its_text() {
    let mut ops = GuestOp::alphabet(4);
    ops.push(GuestOp::WriteZeroes {
        block: 3,
        count: 0,
        may_unmap: true,
        fua: true,
    });
    ops.push(GuestOp::Discard {
        block: 1,
        count: 2,
        fua: true,
    });
    for op in ops {
        assert_eq!(op.to_string().parse::<GuestOp>().unwrap(), op);
    }
    assert_eq!(
        GuestOp::Write {
            block: 0,
            count: 1,
            fua: true
        }
        .to_string(),
        "write 0 1 fua"
    );
}

#[test]
fn guest_op_text_that_is_wrong_is_explained() {
    for (line, reason) in [
        ("", "the line is empty"),
        ("wrote 0 1", "unknown name \"wrote\""),
        ("write 0", "write needs a first block and a count"),
        ("write zero 1", "the first block is not a number: \"zero\""),
        ("write 0 -1", "the count is not a number: \"-1\""),
        ("read 0 1 fua", "read does not take \"fua\" here"),
        ("write 0 1 fua fua", "write does not take \"fua\" here"),
        ("flush 1", "nothing may follow flush"),
        (
            "read 18446744073709551615 1",
            "the extent passes the largest block number",
        ),
    ] {
        let error = line.parse::<GuestOp>().unwrap_err().to_string();
        assert!(error.contains(reason), "{line:?}: {error}");
        assert!(error.ends_with(&format!("line={line:?}")), "{error}");
    }
}

#[test]
fn alphabet_fits_the_disk_and_starts_with_the_simplest() {
    for blocks in 1..5 {
        let ops = GuestOp::alphabet(blocks);
        assert!(ops.iter().all(|op| op.is_within(blocks)));
        assert_eq!(ops[0], GuestOp::Flush);
        assert!(
            ops.iter()
                .enumerate()
                .all(|(index, op)| !ops[..index].contains(op)),
            "{ops:?}"
        );
    }
    assert!(!GuestOp::Read { block: 4, count: 1 }.is_within(4));
    assert!(
        !GuestOp::Read {
            block: u64::MAX,
            count: 2
        }
        .is_within(4)
    );
    assert!(GuestOp::Read { block: 4, count: 0 }.is_within(4));
}

#[test]
fn random_workload_is_within_the_disk_and_overlaps() {
    let mut state = 1u64;
    let mut next = |n: u32, _: &str| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((state >> 33) % u64::from(n)).unwrap()
    };
    for blocks in [1, 5, 1024] {
        let ops = random_workload(&WorkloadSettings::new(blocks, 500), &mut next);
        assert_eq!(ops.len(), 500);
        assert!(ops.iter().all(|op| op.is_within(blocks)));
        for name in ["read", "write", "write-zeroes", "discard", "flush", "idle"] {
            assert!(ops.iter().any(|op| op.name() == name), "{name}");
        }
        let touched: Vec<_> = ops
            .iter()
            .filter(|op| op.is_change())
            .map(GuestOp::blocks)
            .collect();
        let partly = touched
            .windows(2)
            .filter(|pair| pair[0].start < pair[1].end && pair[1].start < pair[0].end);
        assert!(partly.count() * 20 > touched.len(), "overlaps are common");
    }
    let benign = random_workload(&WorkloadSettings::new(8, 3), |_, _| 0);
    assert_eq!(benign, [GuestOp::Flush; 3]);
}
