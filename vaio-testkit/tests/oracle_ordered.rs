//! Cuts of ordered targets against trying every moment.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use proptest::prelude::*;
use vaio_core::{DiscardReads, FlushRetry, Promise};
use vaio_testkit::oracle::{
    Cut, Ended, Initial, NEVER, OpId, Oracle, OracleSettings, OrderedCheck, Outcome, Record, Rule,
};
use vaio_testkit::{GuestOp, Stamp, Value};

const BLOCKS: u64 = 3;

fn write(block: u64) -> GuestOp {
    GuestOp::Write {
        block,
        count: 1,
        fua: false,
    }
}

fn ordered(promise: Promise) -> Oracle {
    Oracle::new(OracleSettings {
        initial: Initial::Fill,
        ..OracleSettings::new(BLOCKS, promise)
    })
}

fn submit(oracle: &mut Oracle, op: GuestOp) -> (OpId, Value) {
    let id = oracle.submit(&op);
    let value = oracle
        .stamps(id)
        .first()
        .map_or(Value::Zero, |stamp| Value::Stamp(*stamp));
    (id, value)
}

fn done(oracle: &mut Oracle, op: GuestOp) -> Value {
    let (id, value) = submit(oracle, op);
    oracle.ack(id, Outcome::Ok).unwrap();
    value
}

#[test]
fn cut_with_a_later_write_and_without_an_earlier_one_names_both() {
    let mut oracle = ordered(Promise::Ordered);
    let first = done(&mut oracle, write(0));
    let second = done(&mut oracle, write(1));
    let third = Value::Fill(2);
    let mut check = OrderedCheck::new(&oracle);
    assert_eq!(
        check.clone().check(&[first, second, third]).unwrap(),
        Cut {
            earliest: 3,
            latest: NEVER
        }
    );
    assert_eq!(
        check
            .clone()
            .check(&[first, Value::Fill(1), third])
            .unwrap(),
        Cut {
            earliest: 1,
            latest: 4
        }
    );
    let broken = check.check(&[Value::Fill(0), second, third]).unwrap_err();
    assert_eq!(broken.rule(), Rule::OutOfOrderCut);
    assert_eq!(broken.block(), 1);
    assert!(
        broken
            .why()
            .contains("lacks #1 `write 0 1` (submitted at 1, acked at 2)"),
        "{broken}"
    );
    assert!(
        broken
            .why()
            .contains("#2 `write 1 1` (submitted at 3, acked at 4)"),
        "{broken}"
    );
}

#[test]
fn cut_of_concurrent_writes_may_have_either() {
    let mut oracle = ordered(Promise::Ordered);
    let (first, one) = submit(&mut oracle, write(0));
    let (second, two) = submit(&mut oracle, write(1));
    oracle.ack(first, Outcome::Ok).unwrap();
    oracle.ack(second, Outcome::Ok).unwrap();
    let check = OrderedCheck::new(&oracle);
    for image in [[one, Value::Fill(1)], [Value::Fill(0), two]] {
        check
            .clone()
            .check(&[image[0], image[1], Value::Fill(2)])
            .unwrap();
    }
}

#[test]
fn cut_of_ordered_by_flush_may_lose_what_no_flush_covered() {
    let mut oracle = ordered(Promise::OrderedByFlush);
    let first = done(&mut oracle, write(0));
    let second = done(&mut oracle, write(1));
    let lost = [Value::Fill(0), second, Value::Fill(2)];
    OrderedCheck::new(&oracle).check(&lost).unwrap();
    done(&mut oracle, GuestOp::Flush);
    let third = done(&mut oracle, write(2));
    OrderedCheck::new(&oracle).check(&lost).unwrap();
    let broken = OrderedCheck::new(&oracle)
        .check(&[Value::Fill(0), second, third])
        .unwrap_err();
    assert_eq!(broken.rule(), Rule::OutOfOrderCut);
    OrderedCheck::new(&oracle)
        .check(&[first, second, third])
        .unwrap();
}

#[test]
fn cut_older_than_an_earlier_target_went_back() {
    let mut oracle = ordered(Promise::Ordered);
    let one = done(&mut oracle, write(0));
    let two = done(&mut oracle, write(0));
    let mut check = OrderedCheck::new(&oracle);
    let (fill, old) = (Value::Fill, [one, Value::Fill(1), Value::Fill(2)]);
    check.check(&[two, fill(1), fill(2)]).unwrap();
    // The second write was in flight from 3 to 4: both images may be of that moment.
    check.check(&old).unwrap();
    let three = done(&mut oracle, write(1));
    check.update(&oracle);
    check.check(&[two, three, fill(2)]).unwrap();
    assert_eq!(check.check(&old).unwrap_err().rule(), Rule::CutWentBack);
    check.check(&[two, three, fill(2)]).unwrap();
}

#[test]
fn cut_says_by_how_much_a_target_is_behind() {
    let mut oracle = ordered(Promise::Ordered);
    done(&mut oracle, write(0));
    let image = [Value::Fill(0), Value::Fill(1), Value::Fill(2)];
    done(&mut oracle, write(1));
    let cut = OrderedCheck::new(&oracle).check(&image).unwrap();
    assert_eq!((cut.latest, cut.behind(oracle.now())), (2, 2));
}

#[test]
fn cut_does_not_join_content_before_and_after_a_crash() {
    let mut oracle = ordered(Promise::Ordered);
    let lost = done(&mut oracle, write(0));
    let kept = done(&mut oracle, write(1));
    done(&mut oracle, write(1));
    oracle.crash();
    oracle.observe(0, Value::Fill(0)).unwrap();
    oracle.observe(1, kept).unwrap();
    let third = done(&mut oracle, write(2));
    let mut check = OrderedCheck::new(&oracle);
    check.clone().check(&[lost, kept, Value::Fill(2)]).unwrap();
    check.clone().check(&[Value::Fill(0), kept, third]).unwrap();
    assert_eq!(
        check.check(&[lost, kept, third]).unwrap_err().rule(),
        Rule::OutOfOrderCut
    );
}

#[test]
fn cut_knows_what_is_older_by_way_of_a_failed_write() {
    let mut oracle = ordered(Promise::Ordered);
    let ((first, a), (failing, b)) = (submit(&mut oracle, write(0)), submit(&mut oracle, write(0)));
    oracle.ack(failing, Outcome::Err).unwrap();
    let (last, c) = submit(&mut oracle, write(0));
    oracle.ack(first, Outcome::Ok).unwrap();
    // a is before b by this read, and b before c by its end, although a and c overlap.
    oracle.observe(0, b).unwrap();
    oracle.ack(last, Outcome::Ok).unwrap();
    let later = done(&mut oracle, write(1));
    let mut check = OrderedCheck::new(&oracle);
    check
        .clone()
        .check(&[a, Value::Fill(1), Value::Fill(2)])
        .unwrap();
    check.clone().check(&[c, later, Value::Fill(2)]).unwrap();
    assert!(check.check(&[a, later, Value::Fill(2)]).is_err());
}

#[test]
fn cut_with_a_value_that_the_source_never_showed_is_explained() {
    let mut oracle = ordered(Promise::Ordered);
    let value = done(&mut oracle, write(0));
    let check = OrderedCheck::new(&oracle);
    let rule = |image: [Value; 3]| check.clone().check(&image).unwrap_err().rule();
    let fill = Value::Fill;
    assert_eq!(rule([fill(0), value, fill(2)]), Rule::Misdirected);
    assert_eq!(rule([fill(0), fill(2), fill(2)]), Rule::Misdirected);
    assert_eq!(
        rule([fill(0), fill(1), Value::Zero]),
        Rule::UntouchedChanged
    );
    assert_eq!(rule([Value::Other(3), fill(1), fill(2)]), Rule::Corrupt);
    assert_eq!(
        rule([
            Value::Torn {
                head: 1,
                tail: 0,
                at: 32
            },
            fill(1),
            fill(2)
        ]),
        Rule::TornBlock
    );
}

/// One version of one block, for the slow check.
struct Version {
    value: Value,
    submit: u64,
    end: u64,
    acked: bool,
    removes: u64,
    era: usize,
    base: bool,
    reads: Vec<u64>,
}

fn base(value: Value, at: u64, removes: u64, era: usize) -> Version {
    Version {
        value,
        submit: at,
        end: at,
        acked: true,
        removes,
        era,
        base: true,
        reads: Vec::new(),
    }
}

/// What each block may show at each moment, from the history, by definition.
fn versions(oracle: &Oracle, number: u64) -> Vec<Version> {
    let history = oracle.history();
    let filled = oracle.settings().initial == Initial::Fill;
    let mut all = vec![base(
        if filled {
            Value::Fill(number)
        } else {
            Value::Zero
        },
        0,
        0,
        0,
    )];
    let changes = |record: &Record| record.op.is_change() && record.op.blocks().contains(&number);
    for ((id, record), version) in history.ops().filter(|(_, record)| changes(record)).zip(1..) {
        let ok = matches!(record.ended, Ended::Ok(_));
        let optional = is_optional(oracle, record.op);
        let value = if let GuestOp::Write { .. } = record.op {
            Value::Stamp(Stamp {
                run: 0,
                op: id.0,
                block: number,
                version,
            })
        } else {
            Value::Zero
        };
        all.push(Version {
            value,
            submit: record.submit,
            end: record.end,
            acked: ok && !optional,
            removes: if ok && !optional {
                removes(oracle, record)
            } else {
                NEVER
            },
            era: record.era as usize,
            base: false,
            reads: Vec::new(),
        });
    }
    for (crash, era) in history.crashes().iter().zip(1..) {
        for (_, values) in crash.left.iter().filter(|(block, _)| *block == number) {
            all.extend(
                values
                    .iter()
                    .map(|value| base(*value, crash.settled, crash.at, era)),
            );
        }
    }
    for (_, read) in history.ops() {
        let Ended::Ok(values) = &read.ended else {
            continue;
        };
        for (_, value) in read
            .op
            .blocks()
            .zip(values.iter())
            .filter(|(block, _)| *block == number)
        {
            note_read(&mut all, read, *value);
        }
    }
    all
}

fn is_optional(oracle: &Oracle, op: GuestOp) -> bool {
    let keeps_old = oracle.settings().discard_reads == DiscardReads::OldOrZero;
    matches!(op, GuestOp::Discard { .. }) && keeps_old
}

/// When older content is no longer shown.
fn removes(oracle: &Oracle, write: &Record) -> u64 {
    let (history, settings) = (oracle.history(), oracle.settings());
    if settings.promise == Promise::Ordered || write.op.is_fua() {
        return write.end;
    }
    let flushes = || {
        history
            .ops()
            .map(|(_, record)| record)
            .filter(|flush| flush.op == GuestOp::Flush)
    };
    let spoilt = |flush: &Record| {
        let fails = |failed: &Record| {
            failed.ended == Ended::Err && failed.end > write.end && failed.end < flush.end
        };
        settings.flush_retry == FlushRetry::Forgets && flushes().any(fails)
    };
    let covers = |flush: &&Record| {
        matches!(flush.ended, Ended::Ok(_))
            && flush.era == write.era
            && flush.submit > write.end
            && !spoilt(flush)
    };
    flushes()
        .filter(covers)
        .map(|flush| flush.end)
        .min()
        .unwrap_or(NEVER)
}

fn note_read(all: &mut Vec<Version>, read: &Record, value: Value) {
    let era = read.era as usize;
    let fits = |version: &Version| {
        version.era == era && version.value == value && version.submit < read.end
    };
    let same: Vec<usize> = (0..all.len()).filter(|index| fits(&all[*index])).collect();
    let [one] = same[..] else { return };
    all[one].reads.push(read.submit);
    if all[one].base {
        all.retain(|version| !version.base || version.era != era || version.value == value);
    }
}

fn shows(versions: &[Version], value: Value, moment: u64) -> bool {
    let count = versions.len();
    let before = |i: usize, j: usize| {
        let (v, w) = (&versions[i], &versions[j]);
        i != j && (v.end < w.submit || v.acked && w.reads.iter().any(|read| v.end < *read))
    };
    let mut matrix: Vec<Vec<bool>> = (0..count)
        .map(|i| (0..count).map(|j| before(i, j)).collect())
        .collect();
    for k in 0..count {
        for i in 0..count {
            for j in 0..count {
                matrix[i][j] |= matrix[i][k] && matrix[k][j];
            }
        }
    }
    (0..count).any(|i| {
        let over = (0..count).any(|j| i != j && matrix[i][j] && versions[j].removes < moment);
        versions[i].value == value && versions[i].submit <= moment && !over
    })
}

fn drive(oracle: &mut Oracle, steps: &[[u8; 3]]) {
    let mut in_flight: Vec<(OpId, GuestOp)> = Vec::new();
    let mut crashes = 0;
    for [kind, place, how] in steps {
        let block = u64::from(*place) % BLOCKS;
        if *kind < 120 && in_flight.len() < 4 {
            let fua = place & 64 != 0;
            let op = match how % 16 {
                0..=2 => GuestOp::Read { block, count: 1 },
                3..=10 => GuestOp::Write {
                    block,
                    count: 1 + u64::from(how & 1).min(BLOCKS - block - 1),
                    fua,
                },
                11 => GuestOp::WriteZeroes {
                    block,
                    count: 1,
                    may_unmap: false,
                    fua,
                },
                12 => GuestOp::Discard {
                    block,
                    count: 1,
                    fua,
                },
                _ => GuestOp::Flush,
            };
            in_flight.push((oracle.submit(&op), op));
        } else if *kind < 245 && !in_flight.is_empty() {
            let (id, op) = in_flight.remove(usize::from(*place) % in_flight.len());
            let outcome = match op {
                _ if how % 16 == 0 => Outcome::Err,
                GuestOp::Read { block, .. } => {
                    let readable =
                        |value: &Value| oracle.clone().ack(id, Outcome::Read(vec![*value])).is_ok();
                    let values: Vec<Value> = candidates(oracle, block)
                        .into_iter()
                        .filter(readable)
                        .collect();
                    Outcome::Read(vec![values[usize::from(*how) % values.len()]])
                }
                _ => Outcome::Ok,
            };
            oracle.ack(id, outcome).unwrap();
        } else if crashes < 2 && *kind >= 245 {
            crashes += 1;
            in_flight.clear();
            oracle.crash();
        }
    }
}

fn candidates(oracle: &Oracle, block: u64) -> Vec<Value> {
    let mut values: Vec<Value> = versions(oracle, block)
        .iter()
        .map(|version| version.value)
        .collect();
    values.sort_unstable();
    values.dedup();
    values
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn cut_check_agrees_with_trying_every_moment(
        steps in proptest::collection::vec(any::<[u8; 3]>(), 1..40),
        by_flush in any::<bool>(),
        covers in any::<bool>(),
        fill in any::<bool>(),
        zero in any::<bool>(),
        picks in proptest::collection::vec(any::<[u8; 3]>(), 30),
    ) {
        let promise = if by_flush { Promise::OrderedByFlush } else { Promise::Ordered };
        let mut oracle = Oracle::new(OracleSettings {
            initial: if fill { Initial::Fill } else { Initial::Zero },
            flush_retry: if covers { FlushRetry::Covers } else { FlushRetry::Forgets },
            discard_reads: if zero { DiscardReads::Zero } else { DiscardReads::OldOrZero },
            ..OracleSettings::new(BLOCKS, promise)
        });
        drive(&mut oracle, &steps);
        let all: Vec<Vec<Version>> = (0..BLOCKS).map(|block| versions(&oracle, block)).collect();
        let mut check = OrderedCheck::new(&oracle);
        let mut floor = 0;
        for pick in picks {
            let image: Vec<Value> = all.iter().zip(pick).map(|(versions, pick)| versions[usize::from(pick) % versions.len()].value).collect();
            let fits = |moment: &u64| all.iter().zip(&image).all(|(versions, value)| shows(versions, *value, *moment));
            let moments: Vec<u64> = (0..=oracle.now() + 1).filter(fits).collect();
            let allowed: Vec<u64> = moments.iter().copied().filter(|moment| *moment >= floor).collect();
            let found = check.check(&image);
            match (allowed.first(), &found) {
                (Some(first), Ok(cut)) => {
                    let last = allowed[allowed.len() - 1];
                    let latest = if last > oracle.now() { NEVER } else { last };
                    prop_assert_eq!(*cut, Cut { earliest: *first, latest }, "{:?}\n{}", image, oracle.history());
                    floor = *first;
                }
                (None, Err(violation)) => {
                    let rule = if moments.is_empty() { Rule::OutOfOrderCut } else { Rule::CutWentBack };
                    prop_assert_eq!(violation.rule(), rule, "{}\n{}", violation, oracle.history());
                }
                _ => prop_assert!(false, "{:?} {:?} {:?}\n{}", allowed, found, image, oracle.history()),
            }
        }
    }
}
