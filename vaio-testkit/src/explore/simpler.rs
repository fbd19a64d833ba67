//! What makes a guest operation simpler. Pure.

use crate::GuestOp;

/// How much an operation is for a reader: extents, kinds and flags count.
pub(super) fn weight(op: &GuestOp) -> u64 {
    let blocks = op.blocks();
    let kind = match op {
        GuestOp::Flush | GuestOp::Idle => 0,
        GuestOp::Write { fua, .. } => 1 + u64::from(*fua),
        GuestOp::Read { .. } => 1,
        GuestOp::WriteZeroes { .. } => 3,
        GuestOp::Discard { .. } => 4,
    };
    kind + blocks.start + 2 * (blocks.end - blocks.start)
}

/// Simpler operations than this one, the simplest first.
pub(super) fn simpler(op: &GuestOp) -> Vec<GuestOp> {
    let blocks = op.blocks();
    let (block, count) = (blocks.start, blocks.end - blocks.start);
    let mut found = Vec::new();
    let write = |block, count, fua| GuestOp::Write { block, count, fua };
    match *op {
        GuestOp::Flush | GuestOp::Idle => {}
        GuestOp::Write { fua, .. } => {
            for (block, count, fua) in places(block, count)
                .map(|(block, count)| (block, count, false))
                .chain(places(block, count).map(|(block, count)| (block, count, fua)))
            {
                found.push(write(block, count, fua));
            }
        }
        GuestOp::Read { .. } => {
            found.extend(places(block, count).map(|(block, count)| GuestOp::Read { block, count }));
        }
        GuestOp::WriteZeroes { fua, may_unmap, .. } => {
            found.push(write(block, count, fua));
            found.extend(
                places(block, count).map(|(block, count)| GuestOp::WriteZeroes {
                    block,
                    count,
                    may_unmap: false,
                    fua: false,
                }),
            );
            found.extend(
                places(block, count).map(|(block, count)| GuestOp::WriteZeroes {
                    block,
                    count,
                    may_unmap,
                    fua,
                }),
            );
        }
        GuestOp::Discard { fua, .. } => {
            found.push(GuestOp::WriteZeroes {
                block,
                count,
                may_unmap: false,
                fua,
            });
            found.extend(places(block, count).map(|(block, count)| GuestOp::Discard {
                block,
                count,
                fua,
            }));
        }
    }
    found.retain(|simpler| weight(simpler) < weight(op) || simpler.name() != op.name());
    found.dedup();
    found
}

/// Smaller and lower places, the smallest first.
fn places(block: u64, count: u64) -> impl Iterator<Item = (u64, u64)> {
    [
        (0, count.min(1)),
        (block, count.min(1)),
        (0, count),
        (block, count / 2),
        (block / 2, count),
        (block, count),
    ]
    .into_iter()
}
