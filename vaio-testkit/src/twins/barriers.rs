//! The barriers of the twins, by hand: every flush, durable record and awaited order that a design
//! needs, with the reason. The barrier audit has to kill each when it is dropped, and to find none
//! beyond them.

/// A flush, durable write or awaited order that a twin needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// The twin's filter.
    pub twin: &'static str,
    /// File and function under `src/twins`.
    pub site: &'static str,
    /// What is there.
    pub what: &'static str,
    /// What happens without it.
    pub why: &'static str,
}

const fn barrier(
    twin: &'static str,
    site: &'static str,
    what: &'static str,
    why: &'static str,
) -> Barrier {
    Barrier {
        twin,
        site,
        what,
        why,
    }
}

const WRITE_BACK: &str = super::write_back::NAME;
const ORDERED: &str = super::ordered::NAME;
const MIRROR: &str = super::mirror::NAME;

const NEEDED: &[Barrier] = &[
    barrier(
        WRITE_BACK,
        "write_back/mod.rs log_one -> make_durable",
        "flush of the cache device before the ack of a durable write",
        "AtAck and fua: the record of an acknowledged write is dropped by a crash",
    ),
    barrier(
        WRITE_BACK,
        "write_back/mod.rs write_record, before the flush and the ack",
        "the record's write has ended before the flush is sent and the write acknowledged",
        "a flush covers only what ended before it; the ack would be of a write in memory",
    ),
    barrier(
        WRITE_BACK,
        "write_back/mod.rs flush -> make_durable",
        "flush of the cache device before the ack of a guest's flush",
        "AtFlush: everything acknowledged since the last one is dropped by a crash",
    ),
    barrier(
        WRITE_BACK,
        "write_back/mod.rs make_durable, rewrite_untrusted",
        "rewrite of records that a failed flush may have dropped, before the next flush",
        "the next flush succeeds and covers nothing of them",
    ),
    barrier(
        WRITE_BACK,
        "write_back/destage.rs destage_batch, join_all before the flush",
        "every write of a batch has ended before the backing is flushed",
        "the flush does not cover them, and the tail passes them",
    ),
    barrier(
        WRITE_BACK,
        "write_back/destage.rs destage_batch, lower.flush",
        "flush of the backing before the tail is written",
        "a crash keeps the tail and drops the data that it passed",
    ),
    barrier(
        WRITE_BACK,
        "write_back/store.rs write_tail, after the backing's flush",
        "the tail is written only after the backing's flush has ended",
        "in the other order it is the same as without that flush",
    ),
    barrier(
        WRITE_BACK,
        "write_back/store.rs write_tail, flush",
        "flush of the cache device after the superblock, before slots are free",
        "a slot is used again under the old tail: an older record is replayed over what is newer",
    ),
    barrier(
        WRITE_BACK,
        "write_back/destage.rs still, before advance",
        "rewrites of the batch's slots have ended before the slots are free",
        "after a failed flush: a rewrite lands in a slot that is another record's by then",
    ),
    barrier(
        WRITE_BACK,
        "write_back/recover.rs replay, one write after another",
        "a record is applied before the next is sent",
        "two records of one block in flight together end in any order",
    ),
    barrier(
        WRITE_BACK,
        "write_back/recover.rs replay, lower.flush",
        "flush of the backing before the new epoch",
        "a crash keeps the new epoch, whose log is empty, and drops what was replayed",
    ),
    barrier(
        WRITE_BACK,
        "write_back/store.rs begin -> write_tail, flush",
        "the new epoch is durable before open returns",
        "records of the new epoch overwrite slots of the old log; under the old superblock the rest \
         of it is replayed over what is newer",
    ),
    barrier(
        WRITE_BACK,
        "write_back/mod.rs lifecycle, Close Commit",
        "the clean mark is committed after the log is empty, durably",
        "the next open does not read a log that holds writes",
    ),
    barrier(
        ORDERED,
        "write_back/destage.rs destage_batch, make_durable",
        "flush of the journal before a record is applied to the replica",
        "a crash takes the record back from the disk, and the replica has it",
    ),
    barrier(
        ORDERED,
        "ordered.rs apply, flush",
        "flush of the replica after each record",
        "a crash keeps a later record and drops an earlier one",
    ),
    barrier(
        ORDERED,
        "write_back/recover.rs replay, lower.flush and write_tail per record",
        "backing and tail are durable at each record that recovery applies",
        "a recovery that is cut short begins again with what the replica has passed",
    ),
    barrier(
        ORDERED,
        "ordered.rs copy_from, flush",
        "flush of the replica before it is promised to be a copy",
        "a crash drops a part of the copy, and it is never copied again",
    ),
    barrier(
        MIRROR,
        "mirror/mod.rs flush_alone, lower.flush",
        "flush of the primary before the ack of a flush",
        "the primary is read after a crash",
    ),
    barrier(
        MIRROR,
        "mirror/mod.rs flush_alone, mirror.flush",
        "flush of the mirror before the ack of a flush",
        "where the primary failed a write, the mirror alone has it",
    ),
    barrier(
        MIRROR,
        "mirror/mod.rs flush_alone, record",
        "the record of the side that is safe is durable before the ack of a flush",
        "after a crash a side is read that failed a write or a flush",
    ),
    barrier(
        MIRROR,
        "mirror/mod.rs resync, flush_alone",
        "the primary is flushed after a copy, before both sides count as valid",
        "a record made meanwhile says both, which after a crash means the primary",
    ),
];

/// Every barrier that the twins need.
pub fn needed_barriers() -> Vec<Barrier> {
    NEEDED.to_vec()
}
