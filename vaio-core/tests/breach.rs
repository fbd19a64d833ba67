//! What an observer does wrong never becomes the guest's error.
#![allow(
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::items_after_statements,
    clippy::too_many_lines,
    clippy::unwrap_used,
    clippy::wildcard_imports,
    reason = "tests own their runtime, and may fail"
)]
mod support;

use support::*;
use vaio_core::*;

/// Found by the fault filter of the examples: the observer was bypassed, but the error that it got
/// for its own forbidden operation went up as the answer to the guest's write.
#[tokio::test]
async fn error_for_an_observers_own_breach_does_not_reach_the_guest() {
    let descriptor =
        Descriptor::new("observer", "1", Class::Inspect).intercept(&[OpKind::Read, OpKind::Write]);
    let observer = custom(descriptor, |io, next| {
        Box::pin(async move {
            // Its descriptor refuses prefetch.
            let extent = io.op.extent();
            next.submit(io.with_op(Op::Prefetch { extent })).await?;
            next.submit(io).await
        })
    });
    let disk = open(RamDisk::new(1 << 20), vec![observer]).await;
    disk.submit(write_of(0, 7, 512))
        .await
        .expect("IO goes on without the observer");
    assert_eq!(disk.state().layers[0].health, Health::Bypassed);
    assert_eq!(events_of(&disk, EventKind::FilterLied).len(), 1);
    assert_eq!(read_all(&disk, 0, 512).await, vec![7; 512]);
}

/// Found by the end-to-end fault run: the event named a filter that never answers, its state said
/// that all was well.
#[tokio::test(start_paused = true)]
async fn filter_that_never_answers_is_counted_in_the_state() {
    let descriptor = every_op("holder", Class::Qos).with_bypass(BypassSafety::Never);
    let holder = custom(descriptor, |_io, _next| Box::pin(std::future::pending()));
    let disk = open(RamDisk::new(1 << 20), vec![holder]).await;
    let error = disk.submit(write_of(0, 7, 512)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(disk.state().layers[0].faults, 1);
}

/// Found by reading: an observer that flushed first and then panicked had its write answered with
/// the flush's success, and the write was never sent down.
#[tokio::test]
async fn write_that_an_observer_never_forwarded_is_not_answered_with_its_flush() {
    let observer = custom(every_op("observer", Class::Inspect), |io, next| {
        Box::pin(async move {
            if io.op.kind() == OpKind::Write {
                next.flush().await?;
                panic!("before the write");
            }
            next.submit(io).await
        })
    });
    let disk = open(RamDisk::new(1 << 20), vec![observer]).await;
    disk.submit(write_of(0, 7, 512)).await.unwrap();
    assert_eq!(read_all(&disk, 0, 512).await, vec![7; 512]);
}
