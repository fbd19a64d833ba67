//! Callers that let go: the answer is dropped, the IO never is.

use std::task::Poll;

use futures::future::poll_fn;

use super::{Bench, Broken, Script, seeds};
use crate::{GuestOp, explore::io_of};

pub(super) fn find(name: &str) -> Option<Script> {
    const W: GuestOp = GuestOp::Write {
        block: 0,
        count: 2,
        fua: false,
    };
    const R: GuestOp = GuestOp::Read { block: 0, count: 2 };
    Some(match name {
        "cancel::write" => {
            |subject, budget| seeds(subject, budget, 60, |bench| dropped(bench, &[W]))
        }
        "cancel::read" => {
            |subject, budget| seeds(subject, budget, 60, |bench| dropped(bench, &[R]))
        }
        "cancel::flush" => |subject, budget| {
            seeds(subject, budget, 60, |bench| {
                dropped(bench, &[GuestOp::Flush])
            })
        },
        "cancel::any" => |subject, budget| {
            seeds(subject, budget, 60, |bench| {
                dropped(bench, &bench.workload(8))
            })
        },
        _ => return None,
    })
}

/// Most polls of an IO before its caller lets go.
const POLLS: u32 = 12;

/// Each operation is let go of after a number of polls; what the guest reads and what a clean
/// close leaves must still make sense.
fn dropped(bench: &Bench, ops: &[GuestOp]) -> Result<(), Broken> {
    let host = bench.host("host");
    let disk = bench.open(&host)?;
    let guest = bench.guest(&disk, 2);
    let before = GuestOp::Write {
        block: 0,
        count: 3,
        fua: false,
    };
    bench.run(guest.submit(before))?;
    for polls in 0..POLLS {
        for op in ops {
            let op = *op;
            bench.run(async {
                if op == GuestOp::Idle {
                    return Ok(());
                }
                let (id, io) = {
                    let mut oracle = bench.belief.oracle();
                    let id = oracle.submit(&op);
                    let stamps = oracle.stamps(id);
                    (
                        id,
                        io_of(&op, &stamps, u64::from(disk.info().logical_block)),
                    )
                };
                let mut io = Box::pin(disk.submit(io));
                let mut left = polls;
                let answered = poll_fn(|cx| {
                    if let Poll::Ready(answer) = io.as_mut().poll(cx) {
                        return Poll::Ready(Some(answer));
                    }
                    if left == 0 {
                        return Poll::Ready(None);
                    }
                    left -= 1;
                    Poll::Pending
                })
                .await;
                if let Some(answer) = answered {
                    return guest.answered(id, &op, answer);
                }
                drop(io);
                Ok(())
            })?;
            // Another one over it, at once: it may not be undone by the one that was let go.
            bench.run(guest.submit(GuestOp::Write {
                block: 1,
                count: 1,
                fua: false,
            }))?;
            bench.run(guest.submit(GuestOp::Idle))?;
        }
        bench.run(guest.read_all())?;
    }
    bench.must("close", disk.close())
}
