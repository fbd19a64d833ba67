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

/// An observer that does `first` before it forwards a write, and breaks while it does so.
async fn disk_with(
    device: std::sync::Arc<TestDevice>,
    first: impl for<'a> Fn(Io, Next<'a>) -> BoxFuture<'a, Result<Reply>> + Send + Sync + 'static,
) -> Disk {
    let observer = custom(every_op("observer", Class::Inspect), move |io, next| {
        if io.op.kind() != OpKind::Write {
            return Box::pin(next.submit(io));
        }
        let first = first(io, next);
        Box::pin(async move {
            first.await?;
            panic!("before the write");
        })
    });
    open_with(device, vec![observer], |_| {}).await
}

fn write_at(io: &Io, offset: u64, len: usize) -> Io {
    let Op::Write { data, .. } = &io.op else {
        panic!("only writes come here")
    };
    io.with_op(Op::Write {
        offset,
        data: data.slice(..len),
        fua: false,
    })
}

/// Found by reading: only the kind of operation was compared.
#[tokio::test]
async fn write_that_an_observer_never_forwarded_is_not_answered_with_a_write_elsewhere() {
    let disk = disk_with(TestDevice::native(), |io, next| {
        Box::pin(next.submit(write_at(&io, 4096, 512)))
    })
    .await;
    disk.submit(write_of(0, 7, 512)).await.unwrap();
    assert_eq!(read_all(&disk, 0, 512).await, vec![7; 512]);
}

#[tokio::test]
async fn write_that_an_observer_forwarded_in_part_is_not_answered_with_the_part() {
    let disk = disk_with(TestDevice::native(), |io, next| {
        Box::pin(next.submit(write_at(&io, 0, 512)))
    })
    .await;
    disk.submit(write_of(0, 7, 1024)).await.unwrap();
    assert_eq!(read_all(&disk, 0, 1024).await, vec![7; 1024]);
}

/// A part of an emulated IO (here: half of a write above the device's largest transfer) is an IO of
/// its own to the observers on its way.
#[tokio::test]
async fn recorded_success_of_a_part_is_used_for_the_part() {
    let mut info = native_info();
    info.transfer_max = 512;
    let device = TestDevice::new(info);
    let disk = disk_with(std::sync::Arc::clone(&device), |io, next| {
        Box::pin(next.submit(io))
    })
    .await;
    disk.submit(write_of(0, 7, 1024)).await.unwrap();
    assert_eq!(device.content(0, 1024), vec![7; 1024]);
    assert_eq!(device.count(OpKind::Write), 2, "neither is sent twice");
    assert!(device.violations().is_empty());
}

/// Found by reading: the answer of whatever an observer had let go of when it broke was the answer
/// to the guest's write.
#[tokio::test(start_paused = true)]
async fn write_that_an_observer_never_forwarded_is_not_answered_with_the_flush_it_let_go() {
    let device = TestDevice::native();
    device.slow(secs(1), |op| *op == Op::Flush);
    let disk = disk_with(std::sync::Arc::clone(&device), |_io, next| {
        Box::pin(async move {
            poll_once(&mut next.submit(Io::flush())).await;
            Ok(Reply::Done)
        })
    })
    .await;
    disk.submit(write_of(0, 7, 512)).await.unwrap();
    assert_eq!(device.content(0, 512), vec![7; 512]);
    let ended: Vec<_> = device.ended().iter().map(Op::kind).collect();
    let order = vec![OpKind::Flush, OpKind::Write];
    assert_eq!(ended, order, "what was let go ends first");
}

/// Found by reading: a write that the observer had sent down without its fua was acknowledged.
#[tokio::test]
async fn write_that_an_observer_forwarded_without_its_fua_is_flushed_before_it_is_answered() {
    let device = TestDevice::volatile();
    let disk = disk_with(std::sync::Arc::clone(&device), |io, next| {
        Box::pin(next.submit(write_at(&io, 0, 512)))
    })
    .await;
    disk.submit(write_of(0, 7, 512).with_fua()).await.unwrap();
    let ended: Vec<_> = device.ended().iter().map(Op::kind).collect();
    assert_eq!(ended, vec![OpKind::Write, OpKind::Flush]);
}
