//! Each sentence of the contract, in both directions: what it allows and what it refuses.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use vaio_core::{DiscardReads, FlushRetry, Promise};
use vaio_testkit::oracle::{Initial, OpId, Oracle, OracleSettings, Outcome, Rule};
use vaio_testkit::{GuestOp, Stamp, Value};

/// A guest on a small disk: block 0 unless said otherwise.
#[derive(Clone)]
struct Guest(Oracle);

fn guest(promise: Promise) -> Guest {
    Guest(Oracle::new(OracleSettings {
        initial: Initial::Fill,
        ..OracleSettings::new(4, promise)
    }))
}

fn with(change: impl FnOnce(&mut OracleSettings)) -> Guest {
    let mut settings = OracleSettings {
        initial: Initial::Fill,
        ..OracleSettings::new(4, Promise::AtFlush)
    };
    change(&mut settings);
    Guest(Oracle::new(settings))
}

const WRITE: GuestOp = GuestOp::Write {
    block: 0,
    count: 1,
    fua: false,
};
const FUA: GuestOp = GuestOp::Write {
    block: 0,
    count: 1,
    fua: true,
};
const READ: GuestOp = GuestOp::Read { block: 0, count: 1 };
const ZERO: GuestOp = GuestOp::WriteZeroes {
    block: 0,
    count: 1,
    may_unmap: false,
    fua: false,
};
const DISCARD: GuestOp = GuestOp::Discard {
    block: 0,
    count: 1,
    fua: false,
};
const OLD: Value = Value::Fill(0);

impl Guest {
    fn start(&mut self, op: GuestOp) -> (OpId, Value) {
        let id = self.0.submit(&op);
        let value = self
            .0
            .stamps(id)
            .first()
            .map_or(Value::Zero, |stamp| Value::Stamp(*stamp));
        (id, value)
    }

    fn end(&mut self, id: OpId) {
        self.0.ack(id, Outcome::Ok).unwrap();
    }

    fn fail(&mut self, id: OpId) {
        self.0.ack(id, Outcome::Err).unwrap();
    }

    fn done(&mut self, op: GuestOp) -> Value {
        let (id, value) = self.start(op);
        self.end(id);
        value
    }

    fn failed(&mut self, op: GuestOp) -> Value {
        let (id, value) = self.start(op);
        self.fail(id);
        value
    }

    fn read(&mut self, id: OpId, value: Value) -> Result<(), Rule> {
        self.0
            .ack(id, Outcome::Read(vec![value]))
            .map_err(|violation| violation.rule())
    }

    /// A whole read now.
    fn sees(&mut self, value: Value) -> Result<(), Rule> {
        let (id, _) = self.start(READ);
        self.read(id, value)
    }

    fn refuses(&self, value: Value) -> Rule {
        self.clone().sees(value).unwrap_err()
    }

    fn allows(&self, value: Value) {
        self.clone().sees(value).unwrap();
    }
}

#[test]
fn acknowledged_write_unflushed_may_be_lost_at_flush_and_not_at_ack() {
    for (promise, lost) in [
        (Promise::AtFlush, Ok(())),
        (Promise::AtAck, Err(Rule::LostWrite)),
    ] {
        let mut guest = guest(promise);
        let new = guest.done(WRITE);
        guest.0.crash();
        guest.allows(new);
        assert_eq!(guest.sees(OLD), lost);
    }
}

#[test]
fn flush_covers_what_was_acknowledged_before_its_submission_and_nothing_else() {
    let mut guest = guest(Promise::AtFlush);
    let first = guest.done(WRITE);
    let (flush, _) = guest.start(GuestOp::Flush);
    let mut late = guest.clone();
    guest.end(flush);
    guest.0.crash();
    assert_eq!(guest.refuses(OLD), Rule::LostWrite);
    // Acknowledged after the flush was submitted: not covered.
    let (id, _) = late.start(WRITE);
    late.end(id);
    late.end(flush);
    late.0.crash();
    assert_eq!(late.refuses(OLD), Rule::LostWrite);
    late.allows(first);
    let mut other = self::guest(Promise::AtFlush);
    let (write, _) = other.start(WRITE);
    let (flush, _) = other.start(GuestOp::Flush);
    other.end(write);
    other.end(flush);
    other.0.crash();
    other.allows(OLD);
}

#[test]
fn flush_that_did_not_end_covers_nothing() {
    let mut guest = guest(Promise::AtFlush);
    guest.done(WRITE);
    guest.start(GuestOp::Flush);
    guest.0.crash();
    guest.allows(OLD);
}

#[test]
fn flush_after_a_crash_covers_nothing_from_before_it() {
    let mut guest = guest(Promise::AtFlush);
    let new = guest.done(WRITE);
    guest.0.crash();
    guest.done(GuestOp::Flush);
    guest.0.crash();
    guest.allows(OLD);
    guest.allows(new);
}

#[test]
fn fua_makes_durable_at_its_ack_itself_and_nothing_before_it() {
    let mut guest = guest(Promise::AtFlush);
    let other = GuestOp::Write {
        block: 1,
        count: 1,
        fua: false,
    };
    guest.done(other);
    let (id, _) = guest.start(FUA);
    let mut unanswered = guest.clone();
    guest.end(id);
    guest.0.crash();
    assert_eq!(guest.refuses(OLD), Rule::LostWrite);
    guest.0.observe(1, Value::Fill(1)).unwrap();
    unanswered.0.crash();
    unanswered.allows(OLD);
}

#[test]
fn unanswered_write_may_land_or_not_and_not_change_its_mind() {
    let mut guest = guest(Promise::AtAck);
    let (_, new) = guest.start(WRITE);
    guest.0.crash();
    guest.allows(new);
    guest.sees(OLD).unwrap();
    assert_eq!(guest.refuses(new), Rule::GhostWrite);
    guest.0.crash();
    assert_eq!(guest.refuses(new), Rule::GhostWrite);
    guest.sees(OLD).unwrap();
}

#[test]
fn read_after_recovery_settles_what_was_not_durable() {
    let mut guest = guest(Promise::AtFlush);
    let new = guest.done(WRITE);
    guest.0.crash();
    guest.sees(new).unwrap();
    // No flush in between: recovery itself is durable.
    guest.0.crash();
    assert_eq!(guest.refuses(OLD), Rule::LostWrite);
    guest.sees(new).unwrap();
}

#[test]
fn block_not_read_after_a_crash_stays_open_in_the_next() {
    let mut guest = guest(Promise::AtFlush);
    let one = guest.done(WRITE);
    guest.0.crash();
    let two = guest.done(WRITE);
    guest.0.crash();
    for value in [OLD, one, two] {
        guest.allows(value);
    }
    guest.done(FUA);
    guest.0.crash();
    for value in [OLD, one, two] {
        assert_eq!(guest.refuses(value), Rule::LostWrite);
    }
}

#[test]
fn concurrent_writes_read_between_may_not_change_winner_across_a_crash() {
    let mut guest = guest(Promise::AtFlush);
    let ((first, a), (second, b)) = (guest.start(WRITE), guest.start(WRITE));
    guest.end(first);
    guest.end(second);
    let mut unread = guest.clone();
    guest.sees(b).unwrap();
    for guest in [&mut guest, &mut unread] {
        guest.done(GuestOp::Flush);
        guest.0.crash();
    }
    guest.allows(b);
    assert_eq!(guest.refuses(a), Rule::LostWrite);
    // Without the read either may have won.
    unread.allows(a);
    unread.allows(b);
}

#[test]
fn concurrent_write_proven_older_through_a_third_is_refused_after_a_crash() {
    // A is before B by a read, B before C by its end: A before C, although A and C overlap.
    let mut guest = guest(Promise::AtFlush);
    let ((first, a), (second, b)) = (guest.start(WRITE), guest.start(WRITE));
    guest.end(second);
    let (third, c) = guest.start(FUA);
    guest.end(first);
    let unread = guest.clone();
    let (read, _) = guest.start(READ);
    guest.read(read, b).unwrap();
    guest.end(third);
    guest.0.crash();
    guest.allows(c);
    assert_eq!(guest.refuses(a), Rule::LostWrite);
    let mut unread = unread;
    unread.end(third);
    unread.0.crash();
    unread.allows(a);
}

#[test]
fn live_read_returns_what_was_in_place_or_overlaps_it() {
    let mut guest = guest(Promise::AtFlush);
    let (early, _) = guest.start(READ);
    let (id, new) = guest.start(WRITE);
    guest.allows(OLD);
    guest.allows(new);
    guest.end(id);
    // The read began before the write did.
    let mut overlapping = guest.clone();
    overlapping.read(early, OLD).unwrap();
    assert_eq!(guest.refuses(OLD), Rule::StaleRead);
    guest.allows(new);
}

#[test]
fn live_reads_do_not_go_back_from_new_to_old() {
    let mut guest = guest(Promise::AtFlush);
    let (_, new) = guest.start(WRITE);
    guest.sees(OLD).unwrap();
    guest.sees(new).unwrap();
    assert_eq!(guest.refuses(OLD), Rule::StaleRead);
}

#[test]
fn live_reads_in_flight_together_agree_with_one_order() {
    let mut guest = guest(Promise::AtFlush);
    let ((first, a), (second, b)) = (guest.start(WRITE), guest.start(WRITE));
    guest.end(first);
    guest.end(second);
    let ((one, _), (two, _)) = (guest.start(READ), guest.start(READ));
    guest.read(one, a).unwrap();
    assert_eq!(guest.read(two, b), Err(Rule::StaleRead));
}

#[test]
fn read_in_flight_when_its_version_became_durable_history_is_still_answered() {
    let mut guest = guest(Promise::AtAck);
    let (read, _) = guest.start(READ);
    guest.done(WRITE);
    guest.done(WRITE);
    guest.read(read, OLD).unwrap();
}

#[test]
fn failed_write_is_old_or_new_until_overwritten() {
    let mut guest = guest(Promise::AtAck);
    let new = guest.failed(WRITE);
    for value in [new, OLD, new] {
        guest.sees(value).unwrap();
    }
    let mut crashed = guest.clone();
    crashed.0.crash();
    crashed.allows(OLD);
    crashed.sees(new).unwrap();
    assert_eq!(crashed.refuses(OLD), Rule::Resurrected);
    let over = guest.done(WRITE);
    assert_eq!(guest.refuses(new), Rule::StaleRead);
    guest.0.crash();
    assert_eq!(guest.refuses(new), Rule::LostWrite);
    guest.sees(over).unwrap();
}

#[test]
fn content_older_than_a_failed_write_stays_older_when_that_is_forgotten() {
    // At ack the failed write is forgotten once it is overwritten, at flush it is not.
    for promise in [Promise::AtAck, Promise::AtFlush] {
        let mut guest = guest(promise);
        let (_, first) = guest.start(WRITE);
        let failed = guest.failed(WRITE);
        let (over, new) = guest.start(WRITE);
        guest.sees(first).unwrap();
        let mut unread = guest.clone();
        // The first was in place before this read of the failed one; the last write is newer.
        guest.sees(failed).unwrap();
        guest.end(over);
        assert_eq!(guest.refuses(first), Rule::StaleRead);
        guest.sees(new).unwrap();
        unread.end(over);
        unread.sees(first).unwrap();
    }
}

#[test]
fn failed_flush_guarantees_nothing_and_spoils_later_ones_unless_retries_cover() {
    for covers in [false, true] {
        let mut guest = with(|settings| {
            settings.flush_retry = if covers {
                FlushRetry::Covers
            } else {
                FlushRetry::Forgets
            };
        });
        guest.done(WRITE);
        guest.failed(GuestOp::Flush);
        let mut first = guest.clone();
        first.0.crash();
        first.allows(OLD);
        guest.done(GuestOp::Flush);
        let mut second = guest.clone();
        second.0.crash();
        assert_eq!(second.sees(OLD).is_err(), covers);
        // What was written after the failure is covered in any case.
        guest.done(WRITE);
        guest.done(GuestOp::Flush);
        guest.0.crash();
        assert_eq!(guest.refuses(OLD), Rule::LostWrite);
    }
}

#[test]
fn flush_that_failed_before_a_write_was_acknowledged_spoils_nothing_of_it() {
    let mut guest = guest(Promise::AtFlush);
    let (id, _) = guest.start(WRITE);
    guest.failed(GuestOp::Flush);
    guest.end(id);
    guest.done(GuestOp::Flush);
    guest.0.crash();
    assert_eq!(guest.refuses(OLD), Rule::LostWrite);
}

#[test]
fn write_zeroes_is_a_write_of_zeroes() {
    let mut guest = guest(Promise::AtFlush);
    let new = guest.done(WRITE);
    guest.done(ZERO);
    assert_eq!(guest.refuses(new), Rule::StaleRead);
    guest.allows(Value::Zero);
    guest.done(GuestOp::Flush);
    guest.0.crash();
    assert_eq!(guest.refuses(new), Rule::LostWrite);
    guest.sees(Value::Zero).unwrap();
}

#[test]
fn discarded_block_is_old_or_zero_and_zero_once_read_as_zero() {
    let mut guest = guest(Promise::AtFlush);
    guest.done(DISCARD);
    guest.sees(OLD).unwrap();
    let mut crashed = guest.clone();
    crashed.done(GuestOp::Flush);
    crashed.0.crash();
    crashed.allows(OLD);
    crashed.allows(Value::Zero);
    guest.sees(Value::Zero).unwrap();
    assert_eq!(guest.refuses(OLD), Rule::StaleRead);
    let mut lost = guest.clone();
    lost.0.crash();
    lost.allows(OLD);
    guest.done(GuestOp::Flush);
    guest.0.crash();
    assert_eq!(guest.refuses(OLD), Rule::LostWrite);
}

#[test]
fn discard_is_over_once_the_block_is_written() {
    let mut guest = guest(Promise::AtFlush);
    guest.done(DISCARD);
    let new = guest.done(WRITE);
    assert_eq!(guest.refuses(Value::Zero), Rule::StaleRead);
    guest.sees(new).unwrap();
}

#[test]
fn discard_in_flight_with_a_write_may_take_effect_after_a_read_of_that_write() {
    let mut guest = guest(Promise::AtFlush);
    let ((discard, _), (write, new)) = (guest.start(DISCARD), guest.start(WRITE));
    guest.end(discard);
    guest.end(write);
    guest.sees(new).unwrap();
    guest.allows(Value::Zero);
    guest.done(GuestOp::Flush);
    guest.0.crash();
    guest.allows(Value::Zero);
    assert_eq!(guest.refuses(OLD), Rule::LostWrite);
}

#[test]
fn two_discards_read_as_zero_stay_zero_though_it_is_unknown_which_took_effect() {
    let mut guest = guest(Promise::AtFlush);
    guest.done(DISCARD);
    guest.done(DISCARD);
    guest.sees(Value::Zero).unwrap();
    assert!(guest.sees(OLD).is_err());
}

#[test]
fn zeroes_read_over_a_zero_filled_disk_are_those_that_were_in_place() {
    let mut guest = with(|settings| settings.initial = Initial::Zero);
    let ((zero, _), (write, new)) = (guest.start(ZERO), guest.start(WRITE));
    guest.end(zero);
    guest.end(write);
    // The initial zeroes were overwritten, so these are newer than the write.
    guest.sees(Value::Zero).unwrap();
    guest.done(GuestOp::Flush);
    guest.0.crash();
    assert_eq!(guest.refuses(new), Rule::LostWrite);
}

#[test]
fn zeroes_of_a_failed_write_are_not_taken_for_those_that_overwrote_it() {
    let mut guest = guest(Promise::AtFlush);
    let ((write, new), (failing, _)) = (guest.start(WRITE), guest.start(ZERO));
    guest.fail(failing);
    let (zero, _) = guest.start(ZERO);
    guest.end(write);
    guest.end(zero);
    guest.sees(Value::Zero).unwrap();
    guest.done(GuestOp::Flush);
    guest.0.crash();
    assert_eq!(guest.refuses(new), Rule::LostWrite);
}

#[test]
fn zeroes_of_unknown_origin_are_not_legal_for_longer_than_their_origins() {
    let mut guest = guest(Promise::AtFlush);
    let ((one, _), (two, _)) = (guest.start(ZERO), guest.start(ZERO));
    guest.end(one);
    guest.end(two);
    let (read, _) = guest.start(READ);
    let (write, _) = guest.start(FUA);
    guest.read(read, Value::Zero).unwrap();
    guest.end(write);
    guest.0.crash();
    assert_eq!(guest.refuses(Value::Zero), Rule::LostWrite);
}

#[test]
fn failed_write_overwritten_before_what_was_in_place_is_not_read_again() {
    let mut guest = guest(Promise::AtFlush);
    let ((second, b), (failing, w)) = (guest.start(WRITE), guest.start(WRITE));
    guest.fail(failing);
    let (first, _) = guest.start(WRITE);
    guest.end(second);
    let (long, _) = guest.start(READ);
    guest.end(first);
    let mut without = guest.clone();
    // The write after the failed one is before b, and b was in place when the long read began.
    guest.sees(b).unwrap();
    assert_eq!(guest.read(long, w), Err(Rule::StaleRead));
    without.read(long, w).unwrap();
}

#[test]
fn zeroes_read_while_their_writes_were_in_flight_may_be_undone_when_those_fail() {
    let mut guest = guest(Promise::AtFlush);
    let ((one, _), (two, _)) = (guest.start(ZERO), guest.start(ZERO));
    guest.sees(Value::Zero).unwrap();
    assert_eq!(guest.refuses(OLD), Rule::StaleRead);
    guest.fail(one);
    guest.fail(two);
    guest.allows(OLD);
    guest.allows(Value::Zero);
}

#[test]
fn zeroes_that_only_one_write_explains_may_be_of_another_that_fails_later() {
    let mut guest = guest(Promise::AtAck);
    let (failing, _) = guest.start(ZERO);
    guest.sees(Value::Zero).unwrap();
    let new = guest.done(FUA);
    let (other, _) = guest.start(ZERO);
    // The first zeroes were seen before `new`, so these are the others: unless the first fail.
    guest.sees(Value::Zero).unwrap();
    assert_eq!(guest.refuses(new), Rule::StaleRead);
    let mut succeeded = guest.clone();
    succeeded.end(failing);
    succeeded.end(other);
    assert_eq!(succeeded.refuses(new), Rule::StaleRead);
    guest.fail(failing);
    guest.allows(new);
    guest.allows(Value::Zero);
}

#[test]
fn zeroes_seen_after_a_write_that_fails_later_may_be_what_was_before_it() {
    let mut guest = with(|settings| settings.initial = Initial::Zero);
    let (failing, value) = guest.start(WRITE);
    guest.sees(value).unwrap();
    let (long, _) = guest.start(READ);
    let (zero, _) = guest.start(ZERO);
    // Only the second write explains it, unless the first fails: then it may be the initial zeroes.
    guest.read(long, Value::Zero).unwrap();
    guest.done(WRITE);
    guest.fail(failing);
    guest.end(zero);
    guest.allows(Value::Zero);
}

#[test]
fn zeroes_seen_through_a_write_that_fails_later_may_be_what_was_before_it() {
    let mut guest = guest(Promise::AtFlush);
    let ((failing, value), (first, _)) = (guest.start(WRITE), guest.start(ZERO));
    guest.sees(value).unwrap();
    let (second, _) = guest.start(WRITE);
    guest.end(first);
    guest.sees(value).unwrap();
    guest.end(second);
    // The first zeroes are before the failing write, and that is before the second; until it fails.
    let (zero, _) = guest.start(ZERO);
    guest.sees(Value::Zero).unwrap();
    guest.done(WRITE);
    guest.fail(failing);
    guest.end(zero);
    guest.allows(Value::Zero);
}

#[test]
fn discard_on_a_device_that_promises_zero_is_a_write_of_zeroes() {
    let mut guest = with(|settings| settings.discard_reads = DiscardReads::Zero);
    guest.done(DISCARD);
    assert_eq!(guest.refuses(OLD), Rule::StaleRead);
    guest.done(GuestOp::Flush);
    guest.0.crash();
    assert_eq!(guest.refuses(OLD), Rule::LostWrite);
}

#[test]
fn untouched_block_keeps_its_initial_content() {
    let mut guest = guest(Promise::AtFlush);
    guest.done(GuestOp::Write {
        block: 1,
        count: 1,
        fua: false,
    });
    assert_eq!(guest.refuses(Value::Zero), Rule::UntouchedChanged);
    guest.0.crash();
    assert_eq!(guest.refuses(Value::Zero), Rule::UntouchedChanged);
    guest.allows(OLD);
    assert_eq!(
        guest.0.clone().observe(3, Value::Zero).unwrap_err().rule(),
        Rule::UntouchedChanged
    );
}

#[test]
fn values_that_no_version_explains_are_named() {
    let mut guest = guest(Promise::AtFlush);
    let one = guest.done(WRITE);
    let Value::Stamp(stamp) = one else {
        panic!("a write is stamped")
    };
    let rule = |value| guest.refuses(value);
    assert_eq!(
        rule(Value::Stamp(Stamp { block: 2, ..stamp })),
        Rule::Misdirected
    );
    assert_eq!(rule(Value::Fill(3)), Rule::Misdirected);
    assert_eq!(rule(Value::Stamp(Stamp { run: 9, ..stamp })), Rule::Foreign);
    assert_eq!(rule(Value::Stamp(Stamp { op: 99, ..stamp })), Rule::Corrupt);
    assert_eq!(rule(Value::Other(7)), Rule::Corrupt);
    assert_eq!(
        rule(Value::Torn {
            head: 1,
            tail: 0,
            at: 256
        }),
        Rule::TornBlock
    );
    let mut short = guest.clone();
    let (id, _) = short.start(READ);
    assert_eq!(
        short
            .0
            .ack(id, Outcome::Read(Vec::new()))
            .unwrap_err()
            .rule(),
        Rule::WrongAnswer
    );
}

#[test]
fn multi_block_write_is_lost_in_any_subset() {
    let mut guest = guest(Promise::AtFlush);
    let id = guest.0.submit(&GuestOp::Write {
        block: 0,
        count: 3,
        fua: false,
    });
    let stamps = guest.0.stamps(id);
    assert_eq!(
        stamps.iter().map(|stamp| stamp.block).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    guest.0.crash();
    guest.0.observe(0, Value::Fill(0)).unwrap();
    guest.0.observe(1, Value::Stamp(stamps[1])).unwrap();
    guest.0.observe(2, Value::Fill(2)).unwrap();
}

#[test]
fn violation_says_rule_promise_block_value_and_why() {
    let mut guest = guest(Promise::AtFlush);
    let one = guest.done(WRITE);
    guest.done(WRITE);
    guest.0.advance(43);
    guest.done(GuestOp::Flush);
    guest.0.crash();
    let text = guest.0.observe(0, one).unwrap_err().to_string();
    let expected = "\
VIOLATION  lost-write  (promise: durable at flush)
  block 0 reads #1 `write 0 1` (submitted at 1, acked at 2)
  legal: #2 `write 0 1` (submitted at 3, acked at 4)
  why: #2 `write 0 1` (submitted at 3, acked at 4) is covered by flush #3 submitted at 43";
    assert_eq!(text, expected);
}

#[test]
fn violation_of_a_live_read_says_what_was_in_place() {
    let mut guest = guest(Promise::AtFlush);
    guest.done(WRITE);
    let (id, _) = guest.start(READ);
    let violation = guest.0.ack(id, Outcome::Read(vec![OLD])).unwrap_err();
    assert_eq!(
        violation.why(),
        "#1 `write 0 1` (submitted at 1, acked at 2) was in place when the read was submitted at 3"
    );
    assert_eq!(violation.block(), 0);
    assert_eq!(violation.found(), Some(OLD));
}

#[test]
fn order_hash_tells_histories_with_equal_legal_sets_apart() {
    let elsewhere = GuestOp::Write {
        block: 1,
        count: 1,
        fua: false,
    };
    let mut after = guest(Promise::OrderedByFlush);
    after.done(WRITE);
    after.done(GuestOp::Flush);
    after.start(elsewhere);
    let mut beside = guest(Promise::OrderedByFlush);
    beside.done(WRITE);
    let (flush, _) = beside.start(GuestOp::Flush);
    beside.start(elsewhere);
    beside.end(flush);
    assert_eq!(after.0.legal_hash(), beside.0.legal_hash());
    let order = |guest: &Guest| guest.0.history().order_hash();
    assert_ne!(order(&after), order(&beside));
    assert_eq!(order(&after), order(&after.clone()));
}

#[test]
fn legal_hash_is_that_of_the_legal_sets() {
    let mut guest = guest(Promise::AtFlush);
    let fresh = guest.0.legal_hash();
    let mut reading = guest.clone();
    reading.sees(OLD).unwrap();
    assert_eq!(reading.0.legal_hash(), fresh);
    let (id, _) = guest.start(WRITE);
    let in_flight = guest.0.legal_hash();
    assert_ne!(in_flight, fresh);
    guest.end(id);
    assert_eq!(guest.0.legal_hash(), in_flight, "not guaranteed yet");
    let mut crashed = guest.clone();
    crashed.0.crash();
    assert_eq!(crashed.0.legal_hash(), in_flight);
    guest.done(GuestOp::Flush);
    assert_ne!(guest.0.legal_hash(), in_flight);
    let mut elsewhere = self::guest(Promise::AtFlush);
    elsewhere.start(GuestOp::Write {
        block: 1,
        count: 1,
        fua: false,
    });
    assert_ne!(elsewhere.0.legal_hash(), in_flight);
    let mut zeroes = with(|settings| settings.initial = Initial::Zero);
    let before = zeroes.0.legal_hash();
    zeroes.done(DISCARD);
    assert_eq!(zeroes.0.legal_hash(), before, "zeroes or zeroes");
    let zeroed = |block: u64, count: u64| {
        let mut guest = self::guest(Promise::AtAck);
        guest.done(GuestOp::WriteZeroes {
            block,
            count,
            may_unmap: false,
            fua: false,
        });
        guest.0.legal_hash()
    };
    let hashes = [fresh, zeroed(0, 1), zeroed(1, 1), zeroed(0, 2)];
    assert!(
        (0..4).all(|index| !hashes[..index].contains(&hashes[index])),
        "{hashes:?}"
    );
}

#[test]
fn clone_is_independent_of_its_origin() {
    let mut origin = guest(Promise::AtAck);
    let copy = origin.clone();
    let new = origin.done(WRITE);
    copy.allows(OLD);
    assert_eq!(origin.refuses(OLD), Rule::StaleRead);
    origin.allows(new);
    assert_eq!(copy.0.history().ops().count(), 0);
}

#[test]
fn failed_write_before_what_a_read_proved_older_is_refused_after_a_crash() {
    // The failed A is before B by its end, B before C by a read: A before C, although A and C
    // overlap and a read says nothing of what failed.
    let mut guest = guest(Promise::AtFlush);
    let (third, c) = guest.start(FUA);
    let a = guest.failed(WRITE);
    let (second, b) = guest.start(WRITE);
    guest.end(second);
    guest.sees(c).unwrap();
    guest.end(third);
    guest.0.crash();
    guest.allows(c);
    assert_eq!(guest.refuses(b), Rule::LostWrite);
    assert_eq!(guest.refuses(a), Rule::LostWrite);
}

#[test]
fn read_of_zeroes_of_several_origins_does_not_decide_what_failed_before_it() {
    let mut guest = guest(Promise::AtFlush);
    let ((first, _), (second, _)) = (guest.start(ZERO), guest.start(ZERO));
    let new = guest.failed(WRITE);
    guest.end(first);
    guest.end(second);
    guest.sees(Value::Zero).unwrap();
    guest.done(GuestOp::Flush);
    guest.0.crash();
    guest.allows(Value::Zero);
    guest.allows(new);
}
