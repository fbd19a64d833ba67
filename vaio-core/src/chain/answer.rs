//! A target's answer on its way up: polled for, looked at and moved without being taken apart.

use std::{
    future::Future,
    mem::ManuallyDrop,
    pin::Pin,
    task::{Context, Poll},
};

use crate::{OpKind, Reply, Result};

pub(super) type Answer = Result<Reply>;
/// What catching a panic leaves.
pub(super) type Caught = std::thread::Result<Came>;

/// Where a target's answer is put: it is looked at there, and moved as a whole. If the destructor
/// of the target's future panics, the answer is forgotten.
pub(super) type Place = ManuallyDrop<Poll<Answer>>;

/// What is in the place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Came {
    Nothing,
    /// An answer to the question.
    Fit,
    /// An error, or an answer to another question.
    Unfit,
}

/// What is in the place, for good.
#[inline]
pub(super) fn take(place: &mut Place) -> Place {
    std::mem::replace(place, ManuallyDrop::new(Poll::Pending))
}

/// Polls a target that was asked for `kind`, of `len` bytes if that is a read. Not inlined, or the
/// answer would be taken apart.
#[inline(never)]
pub(super) fn ask(
    place: &mut Place,
    kind: OpKind,
    len: u64,
    target: Pin<&mut (dyn Future<Output = Answer> + Send + '_)>,
    context: &mut Context<'_>,
) -> Came {
    let poll = target.poll(context);
    let came = match &poll {
        Poll::Pending => Came::Nothing,
        Poll::Ready(Ok(reply)) if reply.answers(kind, len) => Came::Fit,
        Poll::Ready(_) => Came::Unfit,
    };
    *place = ManuallyDrop::new(poll);
    came
}
