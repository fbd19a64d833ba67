//! What the framework does itself, at the layer that cannot: zeroes by writes, discard and
//! prefetch by nothing, fua by a flush, large IO in pieces. Decisions first, pure; then the thin
//! async part that acts on them.

use std::{
    panic::Location,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::BytesMut;
use futures::future::join_all;

use super::{
    IoCx, Next, Path, Rule, Submit,
    table::{FuaRule, TRANSFER_MAX},
};
use crate::{Error, ErrorKind, Extent, Io, Op, OpKind, Reply, Result, zeroes};

/// Pieces of one large IO in flight together.
const PIECES_MAX: usize = 8;
/// Bytes of one write of zeroes that stands for a write-zeroes.
const ZERO_WRITE_MAX: u64 = 1 << 20;

/// Whether the IO cannot go to its target as it is.
pub(super) fn is_needed(op: &Op, extent: Extent, rule: &Rule) -> bool {
    if rule.is_refused || extent.len() > rule.len_max {
        return true;
    }
    if op.is_fua() && rule.fua != FuaRule::Native {
        return true;
    }
    match op {
        Op::WriteZeroes {
            may_unmap,
            fast_only,
            ..
        } => (*fast_only && !rule.can_be_fast) || (*may_unmap && !rule.can_unmap),
        _ => false,
    }
}

/// What to do instead of the IO.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// Answer at once.
    Answer,
    Refuse(ErrorKind, &'static str),
    /// Send these down, then flush if asked.
    Pieces {
        pieces: Vec<Op>,
        then_flush: bool,
    },
}

fn plan(op: Op, rule: &Rule) -> Plan {
    let then_flush = op.is_fua() && rule.fua == FuaRule::Flush;
    let keep_fua = rule.fua == FuaRule::Native;
    let op = if keep_fua { op } else { op.with_fua(false) };
    if let Op::WriteZeroes {
        fast_only: true, ..
    } = op
        && (rule.is_refused || !rule.can_be_fast)
    {
        return Plan::Refuse(
            ErrorKind::Unsupported,
            "zeroes would be as slow as data here",
        );
    }
    if rule.is_refused {
        return match op {
            Op::WriteZeroes { extent, fua, .. } => {
                let len_max = rule.len_max.min(ZERO_WRITE_MAX);
                let pieces = extent
                    .split(len_max)
                    .map(|piece| zero_write(piece, fua))
                    .collect();
                Plan::Pieces { pieces, then_flush }
            }
            // A discard promises nothing, so doing nothing keeps it; a flush with nothing volatile
            // below has nothing to do.
            Op::Discard { .. } | Op::Prefetch { .. } | Op::Flush => Plan::Answer,
            Op::Write { .. } => Plan::Refuse(ErrorKind::ReadOnly, "the disk is read-only"),
            Op::Read { .. } => Plan::Refuse(ErrorKind::Unsupported, "reads are refused here"),
        };
    }
    Plan::Pieces {
        pieces: split(op, rule),
        then_flush,
    }
}

fn zero_write(extent: Extent, fua: bool) -> Op {
    let len = usize::try_from(extent.len()).expect("at most ZERO_WRITE_MAX");
    Op::Write {
        offset: extent.offset(),
        data: zeroes(len),
        fua,
    }
}

/// Cuts an operation into pieces that the target takes.
fn split(op: Op, rule: &Rule) -> Vec<Op> {
    let len_max = rule.len_max;
    match op {
        Op::Read { extent } => extent
            .split(len_max)
            .map(|extent| Op::Read { extent })
            .collect(),
        Op::Write { offset, data, fua } => Extent::new(offset, data.len() as u64)
            .split(len_max)
            .map(|piece| {
                let from = usize::try_from(piece.offset() - offset).expect("inside the payload");
                let to = usize::try_from(piece.end() - offset).expect("inside the payload");
                Op::Write {
                    offset: piece.offset(),
                    data: data.slice(from..to),
                    fua,
                }
            })
            .collect(),
        Op::WriteZeroes {
            extent,
            may_unmap,
            fast_only,
            fua,
        } => {
            let may_unmap = may_unmap && rule.can_unmap;
            extent
                .split(len_max)
                .map(|extent| Op::WriteZeroes {
                    extent,
                    may_unmap,
                    fast_only,
                    fua,
                })
                .collect()
        }
        Op::Discard { extent, fua } => extent
            .split(len_max)
            .map(|extent| Op::Discard { extent, fua })
            .collect(),
        Op::Flush | Op::Prefetch { .. } => vec![op],
    }
}

/// Does the IO by other means, at its target, for `caller`.
///
/// Whatever stands for the IO enters at its target: filters above passed the IO, so they do not
/// see its parts. Each part goes down with a slot of its own, because what one came to says
/// nothing of the others.
pub(super) async fn run(
    cx: IoCx,
    caller: u8,
    io: Io,
    rule: Rule,
    site: &'static Location<'static>,
) -> Result<Reply> {
    let kind = io.op.kind();
    let extent = io.op.extent();
    let (pieces, then_flush) = match plan(io.op.clone(), &rule) {
        Plan::Answer => return Ok(Reply::Done),
        Plan::Refuse(what, text) => {
            return Err(Error::new(what, text).with_op(kind).with_extent(extent));
        }
        Plan::Pieces { pieces, then_flush } => (pieces, then_flush),
    };
    debug_assert!(extent.len() <= u64::from(TRANSFER_MAX) || kind != OpKind::Read);
    let failed_flushes = &cx.chain.core.failed_flushes;
    let failed_before = failed_flushes.load(Relaxed);
    let part = |op: Op| part(&cx, caller, io.with_op(op), rule, site);
    let mut data = BytesMut::new();
    // A few at a time, and all of them polled each time: when an observer is bypassed, every IO
    // that it holds has to be looked at, not only those that were woken.
    for some in pieces.chunks(PIECES_MAX) {
        // An error does not cut the others short: they are in flight and have to end.
        for reply in join_all(some.iter().map(|op| part(op.clone()))).await {
            data.extend_from_slice(&reply?.into_data());
        }
    }
    if then_flush {
        part(Op::Flush).await?;
        // A flush that failed in between may have dropped this very write, and the one that
        // succeeded then does not cover it. Writing again could undo what came meanwhile.
        if failed_flushes.load(Relaxed) != failed_before {
            let text = "another flush failed before this write was durable, so it may not be";
            return Err(Error::new(ErrorKind::Io, text)
                .with_op(kind)
                .with_extent(extent));
        }
    }
    Ok(match kind {
        OpKind::Read => Reply::Data(data.freeze()),
        _ => Reply::Done,
    })
}

/// One part of an emulated IO. The whole owns it, so it goes down like an IO of a port.
async fn part(
    whole: &IoCx,
    caller: u8,
    io: Io,
    rule: Rule,
    site: &'static Location<'static>,
) -> Result<Reply> {
    let slot = whole.slot.new_part();
    let is_sampled = whole.slot.is_sampled.load(Relaxed);
    slot.start(io.id, io.op.kind(), io.op.extent(), 0, is_sampled);
    let cx = IoCx {
        chain: Arc::clone(&whole.chain),
        slot,
    };
    let next = Next::new(&cx, rule.to, caller, Path::Root);
    Submit::past_fence(next, io, site).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::table::Plain;
    use bytes::Bytes;

    fn rule() -> Rule {
        Rule {
            to: 0,
            is_forbidden: false,
            is_refused: false,
            fua: FuaRule::Native,
            can_unmap: true,
            can_be_fast: true,
            len_max: 4096,
            plain: Plain::default(),
        }
    }

    #[test]
    fn plain_io_within_limits_goes_as_it_is() {
        let op = Op::Write {
            offset: 0,
            data: zeroes(4096),
            fua: true,
        };
        assert!(!is_needed(&op, op.extent(), &rule()));
    }

    #[test]
    fn fua_over_a_volatile_target_is_a_write_and_a_flush() {
        let rule = Rule {
            fua: FuaRule::Flush,
            ..rule()
        };
        let op = Op::Write {
            offset: 0,
            data: zeroes(512),
            fua: true,
        };
        assert!(is_needed(&op, op.extent(), &rule));
        let plan = plan(op.clone(), &rule);
        assert_eq!(
            plan,
            Plan::Pieces {
                pieces: vec![op.with_fua(false)],
                then_flush: true
            }
        );
    }

    #[test]
    fn fast_zeroes_over_a_target_that_is_slow_are_refused() {
        let rule = Rule {
            is_refused: true,
            ..rule()
        };
        let extent = Extent::new(0, 512);
        let op = Op::WriteZeroes {
            extent,
            may_unmap: true,
            fast_only: true,
            fua: false,
        };
        assert!(matches!(
            plan(op, &rule),
            Plan::Refuse(ErrorKind::Unsupported, _)
        ));
    }

    #[test]
    fn write_above_the_limit_is_cut_into_its_own_bytes() {
        let data: Bytes = (0..10_240u32)
            .map(|i| (i % 251) as u8)
            .collect::<Vec<_>>()
            .into();
        let op = Op::Write {
            offset: 512,
            data: data.clone(),
            fua: false,
        };
        let Plan::Pieces { pieces, .. } = plan(op, &rule()) else {
            panic!("pieces")
        };
        let mut joined = Vec::new();
        for piece in pieces {
            let Op::Write { offset, data, .. } = piece else {
                panic!("writes")
            };
            assert_eq!(offset, 512 + joined.len() as u64);
            assert!(data.len() <= 4096);
            joined.extend_from_slice(&data);
        }
        assert_eq!(joined, data);
    }
}
