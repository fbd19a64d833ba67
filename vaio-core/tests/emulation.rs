//! What the framework does itself: zeroes by writes, discard by nothing, fua by a flush, large IO
//! in pieces, small IO by read-modify-write.
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

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use proptest::prelude::*;
use support::*;
use vaio_core::*;

/// An observer that is fine until told; accepts fua.
fn panics_on(name: &'static str, kind: OpKind, after_next: Option<u64>) -> Custom {
    custom(every_op(name, Class::Inspect), move |io, next| {
        Box::pin(async move {
            if io.op.kind() != kind {
                return next.submit(io).await;
            }
            if let Some(wait) = after_next {
                let mut below = next.submit(io);
                for _ in 0..2 {
                    if let Some(result) = poll_once(&mut below).await {
                        return result;
                    }
                    tokio::task::yield_now().await;
                }
                tokio::time::sleep(ms(wait)).await;
                let _ = poll_once(&mut below).await;
            }
            panic!("on purpose")
        })
    })
}

/// The bug: the flush that stands for fua succeeded, and the write was acknowledged as durable,
/// although a flush that failed just before may have dropped it from the device's cache.
#[tokio::test(start_paused = true)]
async fn fua_by_flush_fails_when_another_flush_failed_meanwhile() {
    let device = TestDevice::volatile();
    let flushes = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&flushes);
    device.hook(move |io| {
        let kind = io.op.kind();
        let nth = match kind {
            OpKind::Flush => count.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        Box::pin(async move {
            match (kind, nth) {
                (OpKind::Write, _) => tokio::time::sleep(ms(10)).await,
                (OpKind::Flush, 0) => {
                    tokio::time::sleep(ms(20)).await;
                    return Err(Error::new(ErrorKind::Io, "dropped"));
                }
                (OpKind::Flush, _) => tokio::time::sleep(ms(20)).await,
                _ => {}
            }
            Ok(())
        })
    });
    let disk = open(Arc::clone(&device), vec![]).await;
    let write = || write_of(0, 7, 512).with_fua();
    let (flushed, written) = futures::join!(disk.submit(Io::flush()), disk.submit(write()));
    assert!(flushed.is_err());
    let error = written.unwrap_err();
    assert!(
        error.to_string().contains("another flush failed"),
        "{error}"
    );
    disk.submit(write()).await.expect("no flush fails any more");
}

/// The bug: each piece of a split IO told the failed observer's hop that the *whole* IO was done,
/// so the guest had a success for data that was never written.
#[tokio::test(start_paused = true)]
async fn observer_failing_above_a_split_write_does_not_ack_a_part_as_the_whole() {
    let mut info = native_info();
    info.transfer_max = 512;
    let device = TestDevice::new(info);
    device.slow(ms(10), |op| op.kind() == OpKind::Write);
    let disk = open(
        Arc::clone(&device),
        vec![panics_on("observer", OpKind::Write, Some(15))],
    )
    .await;
    disk.submit(write_of(0, 9, 32 << 10)).await.unwrap();
    assert_eq!(disk.state().layers[0].health, Health::Bypassed);
    assert_eq!(device.content(0, 32 << 10), vec![9; 32 << 10]);
    assert_eq!(
        device.count(OpKind::Write),
        64,
        "and nothing was written twice"
    );
}

/// The bug: a read in pieces under a failed observer was answered with one piece.
#[tokio::test(start_paused = true)]
async fn observer_failing_above_a_split_read_answers_with_all_of_it() {
    let mut info = native_info();
    info.transfer_max = 512;
    let device = TestDevice::new(info);
    let disk = open(
        Arc::clone(&device),
        vec![panics_on("observer", OpKind::Read, Some(15))],
    )
    .await;
    let data: Vec<u8> = (0..32u32 << 10).map(|i| (i / 512) as u8).collect();
    disk.submit(Io::write(0, data.clone().into()))
        .await
        .unwrap();
    device.slow(ms(10), |op| op.kind() == OpKind::Read);
    assert_eq!(read_all(&disk, 0, 32 << 10).await, data);
}

/// The bug: fua by a flush under an observer that failed between the two was acknowledged
/// without the flush.
#[tokio::test(start_paused = true)]
async fn observer_failing_above_fua_by_flush_keeps_the_flush() {
    for wait in [5, 15] {
        let device = TestDevice::volatile();
        device.slow(ms(10), |_| true);
        let observer = panics_on("observer", OpKind::Write, Some(wait));
        let disk = open(Arc::clone(&device), vec![observer]).await;
        disk.submit(write_of(0, 9, 512).with_fua()).await.unwrap();
        let kinds: Vec<_> = device.ended().iter().map(Op::kind).collect();
        assert_eq!(
            kinds,
            // Once more, because no one knows whether the observer kept the fua.
            [OpKind::Write, OpKind::Flush, OpKind::Flush],
            "both done before the ack, wait={wait}"
        );
    }
}

/// The bug: the write half of an emulated fua marked the IO as done, so an observer's panic in
/// the flush half was answered with success, and no flush was ever sent.
#[tokio::test(start_paused = true)]
async fn observer_failing_in_the_flush_half_of_a_fua_keeps_the_flush() {
    let device = TestDevice::volatile();
    let mut observer = panics_on("observer", OpKind::Flush, None);
    observer.descriptor = Descriptor::new("observer", "1", Class::Inspect).intercept(&OpKind::ALL);
    let disk = open(Arc::clone(&device), vec![observer]).await;
    disk.submit(write_of(0, 9, 512).with_fua()).await.unwrap();
    let kinds: Vec<_> = device.ended().iter().map(Op::kind).collect();
    assert_eq!(kinds, [OpKind::Write, OpKind::Flush]);
}

/// The bug: a slow device under a split write looked like a hung observer, because the first
/// piece that came back moved the IO "back into" the observer. It was bypassed, and with the bug
/// above the guest got a false success without any filter at fault.
#[tokio::test(start_paused = true)]
async fn slow_device_under_a_split_write_is_not_the_observers_fault() {
    let mut info = native_info();
    info.transfer_max = 512;
    let device = TestDevice::new(info);
    device.slow(secs(5), |op| {
        op.kind() == OpKind::Write && op.extent().offset() == 512
    });
    let disk = open(
        Arc::clone(&device),
        vec![passing(every_op("audit", Class::Inspect))],
    )
    .await;
    disk.submit(write_of(0, 9, 32 << 10)).await.unwrap();
    assert_eq!(disk.state().layers[0].health, Health::Active);
    assert_eq!(device.content(0, 32 << 10), vec![9; 32 << 10]);
    let stalled = events_of(&disk, EventKind::IoStalled);
    assert_eq!(stalled[0].filter.as_deref(), Some("device"), "{stalled:?}");
}

/// The bug: an observer that hung on a part of an emulated IO was bypassed, but that part was
/// never looked at again: the guest's IO hung for ever, past its time limit too.
#[tokio::test(start_paused = true)]
async fn observer_hanging_on_a_part_of_an_emulated_io_is_bypassed() {
    let device = TestDevice::volatile();
    let descriptor = Descriptor::new("hang", "1", Class::Inspect).intercept(&OpKind::ALL);
    let hang = custom(descriptor, |io, next| {
        Box::pin(async move {
            if io.op.kind() == OpKind::Write {
                futures::future::pending::<()>().await;
            }
            next.submit(io).await
        })
    });
    let disk = open(Arc::clone(&device), vec![hang]).await;
    within(60, disk.submit(write_of(0, 9, 512).with_fua()))
        .await
        .unwrap();
    assert_eq!(device.content(0, 512), vec![9; 512]);
    assert_eq!(device.count(OpKind::Flush), 1);
}

/// The bug: one failed piece cut its siblings at the device short, half polled.
#[tokio::test(start_paused = true)]
async fn failed_piece_of_a_split_write_lets_the_others_end() {
    let mut info = native_info();
    info.transfer_max = 512;
    let device = TestDevice::new(info);
    device.hook(|io| {
        let first = io.op.extent().offset() == 0;
        Box::pin(async move {
            if first {
                return Err(Error::new(ErrorKind::Io, "bad block"));
            }
            tokio::time::sleep(ms(10)).await;
            Ok(())
        })
    });
    let disk = open(Arc::clone(&device), vec![]).await;
    assert_eq!(
        disk.submit(write_of(0, 9, 2048)).await.unwrap_err().kind(),
        ErrorKind::Io
    );
    assert_eq!(device.started().len(), 4);
    assert_eq!(
        device.ended().len(),
        3,
        "an IO that the device began it may end"
    );
}

#[tokio::test]
async fn fua_goes_down_natively_by_flush_or_not_at_all() {
    for (volatile, fua, expected) in [
        (true, Support::Native, "write+fua"),
        (true, Support::None, "write flush"),
        (false, Support::None, "write"),
    ] {
        let info = DeviceInfo::new(1 << 20, 512).with_caps(|caps| {
            caps.volatile_cache = volatile;
            caps.fua = fua;
        });
        for filters in [
            vec![],
            vec![passing(every_op("accepts", Class::Inspect))],
            vec![passing(
                Descriptor::new("plain", "1", Class::Inspect).intercept(&OpKind::ALL),
            )],
        ] {
            // A filter that does not know fua gets the write and the flush apart.
            let knows = filters
                .first()
                .is_none_or(|one| one.descriptor.ops.flags().fua);
            let expected = if !knows && volatile {
                "write flush"
            } else {
                expected
            };
            let device = TestDevice::new(info);
            let disk = open(Arc::clone(&device), filters).await;
            assert_ne!(
                disk.info().caps.fua,
                Support::None,
                "always there, emulated or native"
            );
            disk.submit(write_of(0, 1, 512).with_fua()).await.unwrap();
            let said: Vec<_> = device
                .started()
                .iter()
                .map(|op| format!("{}{}", op.kind(), if op.is_fua() { "+fua" } else { "" }))
                .collect();
            assert_eq!(
                said.join(" "),
                expected,
                "volatile={volatile} fua={fua:?} knows={knows}"
            );
            assert!(device.violations().is_empty());
        }
    }
}

#[tokio::test]
async fn fua_of_zeroes_and_discard_over_a_volatile_device_is_flushed_once() {
    let device = TestDevice::volatile();
    let disk = open(Arc::clone(&device), vec![]).await;
    let zeroes = Io::write_zeroes(Extent::new(0, 4 << 20 >> 2)).with_fua();
    disk.submit(zeroes).await.unwrap();
    let kinds: Vec<_> = device.started().iter().map(Op::kind).collect();
    assert_eq!(kinds, [OpKind::Write, OpKind::Flush]);
    device.forget();
    disk.submit(Io::discard(Extent::new(0, 512)).with_fua())
        .await
        .unwrap();
    assert_eq!(device.count(OpKind::Discard), 0, "discard by nothing");
}

#[tokio::test]
async fn fast_zeroes_over_a_slow_device_are_refused_and_change_nothing() {
    let device = TestDevice::volatile();
    let disk = open(
        Arc::clone(&device),
        vec![passing(every_op("pass", Class::Inspect))],
    )
    .await;
    assert!(!disk.info().caps.fast_zeroes);
    let op = Op::WriteZeroes {
        extent: Extent::new(0, 512),
        may_unmap: true,
        fast_only: true,
        fua: false,
    };
    assert_eq!(
        disk.submit(Io::new(op)).await.unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    assert!(device.started().is_empty());
}

#[tokio::test]
async fn may_unmap_is_taken_off_above_a_filter_that_does_not_accept_it() {
    let device = TestDevice::native();
    let plain = passing(Descriptor::new("plain", "1", Class::Inspect).intercept(&OpKind::ALL));
    let disk = open(Arc::clone(&device), vec![plain]).await;
    disk.submit(Io::write_zeroes(Extent::new(0, 512)))
        .await
        .unwrap();
    assert!(matches!(
        device.started()[..],
        [Op::WriteZeroes {
            may_unmap: false,
            ..
        }]
    ));
}

#[tokio::test]
async fn refused_discard_is_masked_answered_and_keeps_content() {
    let device = TestDevice::native();
    let descriptor = Descriptor::new("no-discard", "1", Class::Inspect)
        .intercept(&[OpKind::Read, OpKind::Write])
        .pass(&[OpKind::Flush])
        .accept_fua();
    let disk = open(Arc::clone(&device), vec![passing(descriptor)]).await;
    let caps = disk.info().caps;
    assert_eq!(
        (caps.discard, caps.write_zeroes),
        (Support::Emulated, Support::Emulated)
    );
    assert_eq!(caps.discard_reads, DiscardReads::OldOrZero);
    assert!(!caps.fast_zeroes);
    disk.submit(write_of(0, 5, 512)).await.unwrap();
    disk.submit(Io::discard(Extent::new(0, 512))).await.unwrap();
    assert_eq!(read_all(&disk, 0, 512).await, vec![5; 512]);
    disk.submit(Io::write_zeroes(Extent::new(0, 512)))
        .await
        .unwrap();
    assert_eq!(read_all(&disk, 0, 512).await, vec![0; 512]);
    assert_eq!(
        (
            device.count(OpKind::Discard),
            device.count(OpKind::WriteZeroes)
        ),
        (0, 0)
    );
}

#[tokio::test]
async fn flush_refused_over_a_volatile_cache_fails_the_open() {
    let descriptor =
        Descriptor::new("no-flush", "1", Class::Inspect).intercept(&[OpKind::Read, OpKind::Write]);
    let (policy, registry) = registry(vec![passing(descriptor.clone())]);
    let opened = Disk::builder(TestDevice::volatile(), TokioRt::new())
        .policy(policy, registry)
        .open()
        .await;
    let error = opened.unwrap_err();
    assert_eq!(
        (error.kind(), error.filter()),
        (ErrorKind::Config, Some("no-flush"))
    );
    let disk = open(TestDevice::native(), vec![passing(descriptor)]).await;
    disk.submit(Io::flush()).await.unwrap();
}

#[tokio::test]
async fn read_only_disk_refuses_what_writes_and_says_so() {
    let disk = open(
        TestDevice::new(native_info().with_caps(|caps| caps.read_only = true)),
        vec![],
    )
    .await;
    let caps = disk.info().caps;
    assert_eq!(
        (caps.discard, caps.write_zeroes),
        (Support::None, Support::None)
    );
    for io in [
        write_of(0, 1, 512),
        Io::discard(Extent::new(0, 512)),
        Io::write_zeroes(Extent::new(0, 512)),
    ] {
        assert_eq!(
            disk.submit(io).await.unwrap_err().kind(),
            ErrorKind::ReadOnly
        );
    }
    read_all(&disk, 0, 512).await;
    disk.submit(Io::flush()).await.unwrap();
}

/// The bug: a device that cannot discard but says that discarded blocks read as zeroes (its
/// default for a field that does not matter to it) was advertised like that: emulated discard does
/// nothing, so what was discarded reads as its old content.
#[tokio::test]
async fn capabilities_of_an_operation_that_is_not_there_are_masked() {
    let info = DeviceInfo::new(1 << 20, 512).with_caps(|caps| {
        caps.discard_reads = DiscardReads::Zero;
        caps.fast_zeroes = true;
    });
    let disk = open(TestDevice::new(info), vec![]).await;
    assert_eq!(disk.info().caps.discard, Support::Emulated);
    assert_eq!(disk.info().caps.discard_reads, DiscardReads::OldOrZero);
    assert!(!disk.info().caps.fast_zeroes);
}

fn sub_block_info(transfer_max: u32) -> DeviceInfo {
    let mut info = DeviceInfo::new(1 << 20, 4096);
    info.caps = native_info().caps;
    info.sub_block = Some(512);
    info.transfer_max = transfer_max;
    info
}

/// The bug: a discard of less than a block does nothing, but the disk promised zeroes for it.
#[tokio::test]
async fn sub_block_disk_does_not_promise_zeroes_after_discard() {
    let disk = open(TestDevice::new(sub_block_info(1 << 20)), vec![]).await;
    assert_eq!(disk.info().logical_block, 512);
    disk.submit(write_of(0, 7, 4096)).await.unwrap();
    disk.submit(Io::discard(Extent::new(512, 512)))
        .await
        .unwrap();
    let read = read_all(&disk, 512, 512).await;
    assert!(disk.info().caps.discard_reads == DiscardReads::OldOrZero || read == vec![0; 512]);
}

/// The bug: fast zeroes in pieces over such a device changed the whole blocks before a partial one
/// was refused.
#[tokio::test]
async fn sub_block_disk_refuses_fast_zeroes_before_it_changes_anything() {
    let mut info = sub_block_info(1 << 20);
    info.zeroes_max = 8192;
    let device = TestDevice::new(info);
    let disk = open(Arc::clone(&device), vec![]).await;
    disk.submit(write_of(0, 7, 512)).await.unwrap();
    let op = Op::WriteZeroes {
        extent: Extent::new(0, 8704),
        may_unmap: true,
        fast_only: true,
        fua: false,
    };
    assert_eq!(
        disk.submit(Io::new(op)).await.unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    assert_eq!(device.content(0, 512), vec![7; 512]);
}

/// The bug: over a device whose largest transfer is one block, an unaligned IO of one block's
/// length became one of two blocks.
#[tokio::test]
async fn sub_block_io_never_exceeds_the_transfer_limit_of_the_device() {
    let device = TestDevice::new(sub_block_info(4096));
    let disk = open(Arc::clone(&device), vec![]).await;
    disk.submit(write_of(1024, 7, 3584)).await.unwrap();
    assert_eq!(read_all(&disk, 1024, 3584).await, vec![7; 3584]);
    assert!(device.violations().is_empty(), "{:?}", device.violations());
}

#[tokio::test(start_paused = true)]
async fn sub_block_writes_that_share_a_block_keep_each_others_bytes() {
    let device = TestDevice::new(sub_block_info(1 << 20));
    device.slow(ms(5), |_| true);
    let disk = open(Arc::clone(&device), vec![]).await;
    let mut port = disk.port(8).unwrap();
    for n in 0..8u64 {
        port.push(n, write_of(n * 512, n as u8 + 1, 512)).unwrap();
    }
    for _ in 0..8 {
        port.next().await.result.unwrap();
    }
    let expected: Vec<u8> = (0..8u8).flat_map(|n| vec![n + 1; 512]).collect();
    assert_eq!(device.content(0, 4096), expected);
}

#[derive(Clone, Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "a point in a space of switches"
)]
struct Setup {
    native: bool,
    volatile: bool,
    fua: bool,
    small: bool,
    sub_block: bool,
    /// Per filter: 0 pass, 1 intercept, 2 refuse, for zeroes, discard and flush; flags accepted.
    filters: Vec<(u8, u8, u8, bool)>,
}

fn setups() -> impl Strategy<Value = Setup> {
    let filter = (0..3u8, 0..3u8, 0..2u8, any::<bool>());
    (any::<[bool; 5]>(), prop::collection::vec(filter, 0..4)).prop_map(
        |([native, volatile, fua, small, sub_block], filters)| Setup {
            native,
            volatile,
            fua,
            small,
            sub_block,
            filters,
        },
    )
}

const NAMES: [&str; 4] = ["f0", "f1", "f2", "f3"];

impl Setup {
    fn device(&self) -> Arc<TestDevice> {
        let block = if self.sub_block { 4096 } else { 512 };
        let mut info = DeviceInfo::new(64 << 10, block);
        if self.native {
            info.caps = native_info().caps;
        }
        info.caps.volatile_cache = self.volatile;
        info.caps.fua = if self.fua {
            Support::Native
        } else {
            Support::None
        };
        info.sub_block = self.sub_block.then_some(512);
        if self.small {
            info.transfer_max = 4096;
            info.zeroes_max = 8192;
        }
        TestDevice::new(info)
    }

    fn stack(&self) -> Vec<Custom> {
        let stack = self
            .filters
            .iter()
            .enumerate()
            .map(|(n, (zeroes, discard, flush, flags))| {
                let mut descriptor = Descriptor::new(NAMES[n], "1", Class::Inspect)
                    .intercept(&[OpKind::Read, OpKind::Write]);
                for (kind, how) in [
                    (OpKind::WriteZeroes, zeroes),
                    (OpKind::Discard, discard),
                    (OpKind::Flush, flush),
                ] {
                    descriptor = match how {
                        0 => descriptor.pass(&[kind]),
                        1 => descriptor.intercept(&[kind]),
                        _ => descriptor,
                    };
                }
                if *flags {
                    descriptor = descriptor.accept_fua().accept_zeroes_flags();
                }
                passing(descriptor)
            });
        stack.collect()
    }
}

fn io_of(step: (u8, u64, u64, u8, bool)) -> Io {
    let (kind, block, len, byte, flag) = step;
    let extent = Extent::new(block * 512, len * 512);
    let io = match kind {
        0 | 1 => write_of(
            extent.offset(),
            byte,
            usize::try_from(extent.len()).unwrap(),
        ),
        2 => Io::new(Op::WriteZeroes {
            extent,
            may_unmap: flag,
            fast_only: byte % 2 == 0,
            fua: false,
        }),
        3 => Io::discard(extent),
        4 => Io::new(Op::Prefetch { extent }),
        5 => return Io::flush(),
        _ => return Io::read(extent),
    };
    if flag && kind != 4 { io.with_fua() } else { io }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Over any device and stack of filters that pass everything on, a disk is an array of bytes.
    #[test]
    fn any_stack_over_any_device_equals_a_byte_array(
        setup in setups(),
        steps in prop::collection::vec((0..8u8, 0..100u64, 1..28u64, any::<u8>(), any::<bool>()), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let device = setup.device();
            let disk = open(Arc::clone(&device), setup.stack()).await;
            let mut model = vec![0u8; 64 << 10];
            for step in steps {
                let io = io_of(step);
                let range = usize::try_from(io.op.extent().offset()).unwrap()..usize::try_from(io.op.extent().end()).unwrap();
                let flushes = device.count(OpKind::Flush);
                let result = disk.submit(io.clone()).await;
                match (&io.op, result) {
                    (Op::Read { .. }, Ok(reply)) => assert!(reply.into_data() == model[range], "read"),
                    (Op::Write { data, .. }, Ok(_)) => model[range].copy_from_slice(data),
                    (Op::WriteZeroes { .. }, Ok(_)) => model[range].fill(0),
                    (Op::WriteZeroes { fast_only: true, .. }, Err(error)) => {
                        assert_eq!(error.kind(), ErrorKind::Unsupported);
                    }
                    (Op::Discard { .. }, Ok(_)) => {
                        let extent = io.op.extent();
                        let now = disk.submit(Io::read(extent)).await.unwrap().into_data();
                        for (at, (new, old)) in now.iter().zip(&model[range.clone()]).enumerate() {
                            assert!(new == old || *new == 0, "old or zero, at={at}");
                            assert!(*new == 0 || disk.info().caps.discard_reads == DiscardReads::OldOrZero);
                        }
                        model[range].copy_from_slice(&now);
                    }
                    (Op::Flush | Op::Prefetch { .. }, Ok(_)) => {}
                    (op, Err(error)) => panic!("{op:?}: {}", error.to_line()),
                    (op, Ok(_)) => panic!("{op:?}"),
                }
                if io.op.is_fua() && setup.volatile && io.op.kind() == OpKind::Write {
                    let native = device.started().iter().rev().take(40).any(Op::is_fua);
                    assert!(native || device.count(OpKind::Flush) == flushes + 1, "fua by exactly one flush");
                }
            }
            assert!(device.content(0, 64 << 10) == model, "below as above");
            assert!(device.violations().is_empty(), "{:?}", device.violations());
            for event in [EventKind::FilterLied, EventKind::FilterPanicked, EventKind::IoOrphaned] {
                assert!(events_of(&disk, event).is_empty());
            }
        });
    }
}

#[tokio::test]
async fn info_folds_shapes_of_all_filters() {
    let device = TestDevice::native();
    let seen = Arc::new(AtomicUsize::new(0));
    let mut narrow = passing(every_op("narrow", Class::Cache));
    narrow.shape = |below| {
        let mut info = *below;
        info.logical_block = 4096;
        info.caps.volatile_cache = true;
        Ok(info)
    };
    let count = Arc::clone(&seen);
    let top = custom(every_op("top", Class::Inspect), move |io, next| {
        assert_eq!(next.info().logical_block, 4096);
        count.fetch_add(1, Ordering::Relaxed);
        Box::pin(next.submit(io))
    });
    let disk = open(device, vec![top, narrow]).await;
    let info = disk.info();
    assert_eq!((info.logical_block, info.caps.volatile_cache), (4096, true));
    assert_eq!(
        disk.submit(write_of(512, 1, 512)).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
    read_all(&disk, 0, 4096).await;
    assert_eq!(seen.load(Ordering::Relaxed), 1);
}
