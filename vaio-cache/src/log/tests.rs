use bytes::Bytes;
use vaio_core::Instant;

use super::*;
use crate::{geometry::Sizes, record};

fn geometry() -> Geometry {
    // Segments of 7 blocks: a footer, and room for 6.
    Geometry::new(512, 23 * 512, &Sizes::new(1024, 512, 7 * 512, 512)).expect("three segments")
}

fn log() -> Log {
    log_from(start())
}

fn log_from(start: Start) -> Log {
    Log::new(start)
}

fn start() -> Start {
    let epoch = Epoch {
        epoch: 1,
        nonce: 9,
        segment: 0,
        first_seq: 0,
        end_seq: OPEN,
    };
    Start {
        geometry: geometry(),
        limits: Limits {
            unflushed_bytes_max: 16 << 10,
            cut_bytes_max: 1 << 20,
            dirty_bytes_max: 1 << 20,
        },
        epochs: vec![epoch],
        segments: Vec::new(),
        recovered: Recovered::new(geometry(), 0),
    }
}

fn enqueue(log: &mut Log, start: u64, count: u64, byte: u8) -> u64 {
    let span = Span { start, count };
    let data = Bytes::from(vec![byte; crate::geometry::index(count * 512)]);
    let mut sums = Vec::new();
    record::sum(span, &data, &geometry(), &mut sums);
    let kind = Kind::Data;
    log.enqueue(Waiting {
        entry: Entry { span, kind },
        data,
        sums,
    })
}

fn zeroes(start: u64) -> Waiting {
    let span = Span { start, count: 1 };
    let kind = Kind::Zeroes;
    Waiting {
        entry: Entry { span, kind },
        data: Bytes::new(),
        sums: Vec::new(),
    }
}

fn compose(log: &mut Log, end: u64) -> WriteRecord {
    match log.step(end, Instant::default()) {
        Step::Write(write) => write,
        other => panic!("a record to write, not {other:?}"),
    }
}

fn write(log: &mut Log, start: u64, byte: u8) -> u64 {
    let (header, _) = write_header(log, start, byte);
    header.end()
}

/// A write, and the header that it has on the device.
fn write_header(log: &mut Log, start: u64, byte: u8) -> (Header, At) {
    let end = enqueue(log, start, 1, byte);
    let record = compose(log, end);
    log.written(record.seq, record.trust);
    assert_eq!(log.step(end, Instant::default()), Step::Published);
    let decoded = Header::decode(&record.bytes, 9, 1, &geometry());
    (decoded.expect("it was just encoded").0, record.at)
}

fn byte_of(log: &Log, block: u64) -> Option<u8> {
    let span = Span {
        start: block,
        count: 1,
    };
    let piece = log.find(span)[0].piece?;
    match piece.source {
        Source::Data { at, .. } => Some(log.in_memory(at, piece.span.count)?[0]),
        Source::Zeroes { .. } => Some(0),
    }
}

#[test]
fn writes_that_wait_share_a_record() {
    let mut log = log();
    let first = enqueue(&mut log, 0, 1, 1);
    let second = enqueue(&mut log, 5, 2, 2);
    let record = compose(&mut log, second);
    assert_eq!(record.bytes.len(), 4 * 512);
    assert_eq!(log.step(first, Instant::default()), Step::Wait);
    log.written(record.seq, record.trust);
    assert_eq!(log.step(first, Instant::default()), Step::Published);
    assert_eq!((byte_of(&log, 0), byte_of(&log, 6)), (Some(1), Some(2)));
}

#[test]
fn record_is_published_after_those_before_it() {
    let mut log = log();
    let first = enqueue(&mut log, 0, 1, 1);
    let early = compose(&mut log, first);
    // As many as are worth a record of their own.
    for _ in 0..15 {
        log.enqueue(zeroes(9));
    }
    let second = enqueue(&mut log, 0, 1, 2);
    let late = compose(&mut log, second);
    log.written(late.seq, late.trust);
    assert_eq!(log.step(second, Instant::default()), Step::Wait);
    assert_eq!(byte_of(&log, 0), None);
    log.written(early.seq, early.trust);
    assert_eq!(log.step(second, Instant::default()), Step::Published);
    assert_eq!(byte_of(&log, 0), Some(2));
}

#[test]
fn flush_covers_what_was_written_since_the_last_failure() {
    let mut log = log();
    write(&mut log, 0, 1);
    log.distrust();
    let end = write(&mut log, 1, 2);
    let rewrites = log.rewrites();
    assert_eq!(rewrites.len(), 1);
    assert_eq!(rewrites[0].seq, 0);
    assert!(!log.is_still(1), "L4");
    log.written(0, rewrites[0].trust);
    assert!(log.is_still(1) && log.rewrites().is_empty());
    log.made_durable(end);
    assert_eq!(log.durable(), end);
    assert_eq!(log.in_memory(At(0), 1), None);
}

#[test]
fn write_whose_end_is_seen_after_a_failed_flush_is_written_again() {
    let mut log = log();
    let end = enqueue(&mut log, 0, 1, 1);
    let record = compose(&mut log, end);
    log.distrust();
    log.written(record.seq, record.trust);
    assert_eq!(log.published(), end);
    assert_eq!(log.to_flush(), None, "the flush may have lost it");
    let again = log.rewrites();
    assert_eq!(again.len(), 1);
    log.written(again[0].seq, again[0].trust);
    assert_eq!(log.to_flush(), Some(end));
}

#[test]
fn what_may_be_given_up_is_not_written_again() {
    let mut log = log();
    let first = enqueue(&mut log, 0, 1, 1);
    let early = compose(&mut log, first);
    for _ in 0..15 {
        log.enqueue(zeroes(9));
    }
    let second = enqueue(&mut log, 0, 1, 2);
    let late = compose(&mut log, second);
    log.written(late.seq, late.trust);
    log.distrust();
    assert_eq!(log.rewrites(), [], "nothing is published");
    log.not_written(early.seq);
    log.drop_unpublished();
    assert_eq!(log.to_flush(), Some(0));
}

#[test]
fn seqs_that_were_given_up_need_no_destaging() {
    let log = log_from(Start {
        recovered: Recovered::new(geometry(), 7),
        epochs: vec![Epoch {
            first_seq: 20,
            ..start().epochs[0]
        }],
        ..start()
    });
    assert_eq!((log.published(), log.destaged()), (20, 20));
    assert!(!log.has_batch());
}

#[test]
fn cut_is_destaged_with_its_own_last_versions() {
    let mut log = log();
    write(&mut log, 0, 1);
    let end = write(&mut log, 0, 2);
    // The guest may be told: a new cut.
    log.made_durable(end);
    let last = write(&mut log, 0, 3);
    assert_eq!(log.batch_end(Destage::Ordered), Some(end));
    let batch = log.batch(end);
    assert_eq!(batch.moves.len(), 1);
    let second = batch.moves[0].piece.expect("a piece").source;
    let newest = log.find(Span { start: 0, count: 1 })[0].piece;
    assert_ne!(Some(second), newest.map(|piece| piece.source), "B1");
    assert_eq!(log.batch_end(Destage::Relaxed), Some(last));
    log.set_destaged(end);
    assert_eq!(byte_of(&log, 0), Some(3), "the newer content stays");
    assert_eq!(log.batch_end(Destage::Ordered), Some(last));
}

#[test]
fn cut_of_which_the_device_took_a_part_is_destaged_without_the_rest() {
    for how in [Destage::Ordered, Destage::Relaxed] {
        let mut log = log();
        let first = write(&mut log, 0, 1);
        let end = enqueue(&mut log, 1, 1, 2);
        let record = compose(&mut log, end);
        if how == Destage::Ordered {
            assert_eq!(log.batch_end(how), None, "it may be published yet");
        }
        assert_eq!(log.destageable(end), end);
        log.not_written(record.seq);
        assert_eq!(log.batch_end(how), Some(first));
        // Whoever waits for more waits for nothing.
        assert_eq!(log.destageable(end), first);
    }
}

#[test]
fn destaging_closes_the_cut() {
    let mut log = log();
    let end = write(&mut log, 0, 1);
    assert_eq!(log.batch_end(Destage::Ordered), Some(end));
    write(&mut log, 1, 2);
    assert_eq!(log.batch_end(Destage::Ordered), Some(end), "O3");
}

#[test]
fn held_log_gives_no_batch_beyond_the_point() {
    let mut log = log();
    let end = write(&mut log, 0, 1);
    assert_eq!(log.hold(), Some(end));
    assert_eq!(log.hold(), None);
    write(&mut log, 1, 2);
    assert_eq!(log.batch_end(Destage::Relaxed), Some(end));
    log.set_destaged(end);
    assert!(!log.has_batch());
    assert_eq!(log.batch_end(Destage::Relaxed), None);
    log.let_go();
    assert!(log.has_batch());
}

#[test]
fn full_log_goes_on_when_its_oldest_segment_is_destaged() {
    let mut log = log();
    // Three records of two blocks fill a segment.
    let headers: Vec<_> = (0..9)
        .map(|block| write_header(&mut log, block, 1))
        .collect();
    let end = enqueue(&mut log, 9, 1, 1);
    assert_eq!(log.step(end, Instant::default()), Step::Full(3));
    log.made_durable(9);
    let folded = log
        .to_unfold(Destage::Ordered)
        .expect("it was sealed and durable");
    log.unfold(&folded, headers[..3].to_vec());
    let epochs = log.epochs(3);
    log.persisted(&epochs);
    log.set_destaged(3);
    let record = compose(&mut log, end);
    assert_eq!(record.at, geometry().segment_at(0));
    let (at, footer) = record.footer.expect("the segment before is sealed");
    assert_eq!(at, geometry().footer_at(2));
    let headers = crate::footer::decode(&footer, 9, 1, &geometry()).expect("valid");
    assert_eq!(headers.len(), 3);
    assert_eq!(log.epochs(3)[0].first_seq, 3);
}

#[test]
fn zeroes_that_take_no_room_in_the_log_are_limited_too() {
    let mut limited = start();
    limited.limits.dirty_bytes_max = 100 * 512;
    let mut log = log_from(limited);
    let count_99 = |start| {
        let mut many = zeroes(start);
        many.entry.span.count = 99;
        many
    };
    let end = log.enqueue(count_99(0));
    let record = compose(&mut log, end);
    log.written(record.seq, record.trust);
    write(&mut log, 200, 1);
    let end = log.enqueue(count_99(300));
    assert_eq!(log.step(end, Instant::default()), Step::Full(1));
    log.made_durable(2);
    log.set_destaged(1);
    compose(&mut log, end);
}

#[test]
fn cancelled_write_uses_its_seq_and_changes_nothing() {
    let mut log = log();
    let first = enqueue(&mut log, 0, 1, 1);
    assert!(log.cancel(first - 1, first));
    let second = enqueue(&mut log, 1, 1, 2);
    let record = compose(&mut log, second);
    log.written(record.seq, record.trust);
    assert_eq!((byte_of(&log, 0), byte_of(&log, 1)), (None, Some(2)));
    assert!(!log.cancel(first - 1, first), "it is in a record");
}

#[test]
fn too_much_in_memory_asks_for_a_flush() {
    let mut log = log();
    log.limits.unflushed_bytes_max = 1024;
    let end = write(&mut log, 0, 1);
    let next = enqueue(&mut log, 1, 1, 1);
    assert_eq!(log.step(next, Instant::default()), Step::Unflushed(end));
    log.made_durable(end);
    compose(&mut log, next);
}

#[test]
fn failed_device_fails_what_is_not_published() {
    let mut log = log();
    let end = enqueue(&mut log, 0, 1, 1);
    let record = compose(&mut log, end);
    log.not_written(record.seq);
    assert_eq!(log.step(end, Instant::default()), Step::Failed);
    log.drop_unpublished();
    assert!(log.is_empty());
    log.set_destaged(end);
}

#[test]
fn sealed_and_durable_segment_is_folded_and_comes_back_whole() {
    let mut log = log();
    let headers: Vec<_> = (0..5)
        .map(|block| write_header(&mut log, block, 7))
        .collect();
    assert_eq!(log.to_unfold(Destage::Ordered), None, "nothing is durable");
    log.made_durable(5);
    assert_eq!(
        (log.front.len(), log.folded.len(), log.recent.len()),
        (0, 1, 2),
        "P1"
    );
    assert!(log.has_batch());
    assert_eq!(log.batch_end(Destage::Ordered), None, "it is not known yet");
    let dirty: u64 = log.dirty_spans().map(|span| span.count).sum();
    assert_eq!((dirty, log.dirty_blocks_bytes()), (5, 5 * 512));
    let folded = log.to_unfold(Destage::Ordered).expect("folded");
    assert_eq!(
        folded.own(headers[1..3].to_vec()),
        None,
        "P3: the first is missing"
    );
    assert_eq!(
        folded.own(headers[..2].to_vec()),
        None,
        "P3: the last is missing"
    );
    let own = folded.own(headers[..3].to_vec()).expect("all of them");
    log.unfold(&folded, own);
    assert_eq!(log.to_unfold(Destage::Ordered), None);
    assert_eq!(log.batch_end(Destage::Ordered), Some(5));
    assert_eq!(log.batch(5).moves.len(), 5);
    let epochs = log.epochs(5);
    log.persisted(&epochs);
    log.set_destaged(5);
    assert!(log.is_empty());
    assert_eq!(log.dirty_blocks_bytes(), 0);
}

#[test]
fn records_that_are_being_destaged_are_not_folded() {
    let mut log = log();
    for block in 0..4 {
        write(&mut log, block, 1);
    }
    assert_eq!(log.batch_end(Destage::Ordered), Some(4));
    assert_eq!(log.batch(4).moves.len(), 4);
    let headers: Vec<_> = (4..7)
        .map(|block| write_header(&mut log, block, 1))
        .collect();
    log.made_durable(7);
    // The second segment's first record is in the batch; its other two are not.
    assert_eq!(
        (log.front.len(), log.folded.len(), log.recent.len()),
        (4, 1, 1),
        "P1, P2"
    );
    log.set_destaged(4);
    let folded = log.to_unfold(Destage::Ordered).expect("the other two");
    log.unfold(&folded, headers[..2].to_vec());
    assert_eq!(log.batch_end(Destage::Ordered), Some(7));
}

#[test]
fn few_writes_wait_for_the_record_in_flight_and_many_do_not() {
    let mut log = log();
    let end = enqueue(&mut log, 0, 1, 1);
    assert!(!log.has_company());
    compose(&mut log, end);
    for block in 1..16 {
        let last = enqueue(&mut log, block, 1, 2);
        assert_eq!(log.step(last, Instant::default()), Step::Wait);
    }
    let last = enqueue(&mut log, 16, 1, 2);
    compose(&mut log, last);
}
