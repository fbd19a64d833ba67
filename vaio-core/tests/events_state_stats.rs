//! Events are edges, state is levels, and statistics count exactly.
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

use std::sync::{Arc, Mutex, OnceLock};

use support::*;
use vaio_core::*;

fn keeping(cx: &Arc<OnceLock<AttachContext>>, name: &'static str) -> Custom {
    let keep = Arc::clone(cx);
    passing(every_op(name, Class::Inspect)).on_open(move |cx| {
        let _ = keep.set(cx.clone());
        Ok(())
    })
}

#[tokio::test(start_paused = true)]
async fn flood_of_one_kind_is_limited_and_the_next_says_how_many() {
    let cx = Arc::default();
    let disk = open(TestDevice::native(), vec![keeping(&cx, "noisy")]).await;
    let cx = cx.get().unwrap();
    for n in 0..100 {
        cx.event(Notice::new(Severity::Info, format!("n={n}")));
    }
    assert_eq!(events_of(&disk, EventKind::Filter).len(), 20);
    disk.event_bus()
        .send(Notice::new(Severity::Info, "another's"));
    assert_eq!(
        events_of(&disk, EventKind::Filter).len(),
        21,
        "limits are per filter"
    );
    sleep(secs(10)).await;
    cx.event(Notice::new(Severity::Info, "after"));
    cx.event(Notice::new(Severity::Info, "and again"));
    let events = events_of(&disk, EventKind::Filter);
    assert_eq!((events[21].suppressed, events[22].suppressed), (80, 0));
    assert!(events[21].to_string().contains("suppressed=80"));
    assert!(
        events.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1),
        "numbers have no gaps"
    );
}

#[tokio::test(start_paused = true)]
async fn slow_reader_loses_the_oldest_and_is_told_how_many() {
    let cx = Arc::default();
    let disk = open(TestDevice::native(), vec![keeping(&cx, "noisy")]).await;
    let mut slow = disk.events();
    let mut fast = disk.events();
    assert_eq!(slow.try_next().unwrap().kind, EventKind::Opened);
    let mut sent = 1;
    while sent < 1_500 {
        for _ in 0..20 {
            cx.get().unwrap().event(Notice::new(Severity::Info, "x"));
            sent += 1;
        }
        while fast.try_next().is_some() {}
        sleep(secs(10)).await;
    }
    let first = slow.try_next().unwrap();
    assert_eq!(slow.missed(), sent - 1024 - 1, "all but what is kept");
    assert_eq!(first.seq, slow.missed() + 2);
    assert_eq!(fast.missed(), 0);
    let mut late = disk.events();
    assert_eq!(
        late.try_next().unwrap().seq,
        first.seq,
        "a new reader starts at the oldest kept"
    );
    assert_eq!(late.missed(), 0);
}

#[tokio::test]
async fn waiting_reader_is_woken() {
    let cx = Arc::default();
    let disk = open(TestDevice::native(), vec![keeping(&cx, "noisy")]).await;
    let mut events = disk.events();
    while events.try_next().is_some() {}
    let mut next = Box::pin(events.next());
    assert!(poll_once(&mut next).await.is_none());
    cx.get()
        .unwrap()
        .event(Notice::new(Severity::Warning, "hello").with_next_step("wave"));
    let event = next.await;
    assert_eq!(
        (event.text.as_str(), event.filter.as_deref(), event.severity),
        ("hello", Some("noisy"), Severity::Warning)
    );
    assert!(event.to_string().ends_with("; wave"));
}

#[tokio::test]
async fn stream_of_states_skips_to_the_newest() {
    let cx = Arc::default();
    let (policy, registry) = registry(vec![
        keeping(&cx, "a"),
        passing(every_op("b", Class::Cache)),
    ]);
    let disk = Disk::builder(TestDevice::native(), TokioRt::new())
        .policy(policy, registry)
        .open()
        .await
        .unwrap();
    let mut states = disk.watch_state();
    assert_eq!(states.next().await.layers.len(), 2);
    assert!(poll_once(&mut Box::pin(states.next())).await.is_none());
    disk.detach("a", DirtyDisposition::Refuse).await.unwrap();
    disk.detach("b", DirtyDisposition::Refuse).await.unwrap();
    disk.set_dirty_policy(DirtyPolicy::WriteThrough)
        .await
        .unwrap();
    let state = states.next().await;
    assert_eq!(
        (state.layers.len(), state.dirty_policy, state.running),
        (0, DirtyPolicy::WriteThrough, None)
    );
    assert!(
        poll_once(&mut Box::pin(states.next())).await.is_none(),
        "states between are skipped"
    );
    disk.close().await.unwrap();
    assert_eq!(states.next().await.phase, DiskPhase::Closed);
}

/// The IO whose number is a multiple of 64 is timed: push until one was.
async fn run_sampled(disk: &Disk, io: Io) {
    let mut port = disk.port(1).unwrap();
    for tag in 0..SAMPLE_EVERY {
        port.push(tag, io.clone()).unwrap();
        port.next().await.result.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn own_time_of_a_layer_is_apart_from_the_time_below_it() {
    for fua in [false, true] {
        let device = TestDevice::volatile();
        device.slow(ms(40), |op| op.kind() == OpKind::Write);
        let thinking = |name, class, time| {
            custom(every_op(name, class), move |io, next| {
                Box::pin(async move {
                    tokio::time::sleep(ms(time)).await;
                    next.submit(io).await
                })
            })
        };
        let disk = open(
            device,
            vec![
                thinking("a", Class::Inspect, 10),
                thinking("b", Class::Cache, 20),
            ],
        )
        .await;
        let io = if fua {
            write_of(0, 1, 512).with_fua()
        } else {
            write_of(0, 1, 512)
        };
        run_sampled(&disk, io).await;
        let stats = disk.stats();
        let took: Vec<_> = stats
            .layers
            .iter()
            .map(|layer| {
                (
                    layer.total.count > 0,
                    layer.total.max_ns / 1_000_000,
                    layer.own.max_ns / 1_000_000,
                )
            })
            .collect();
        assert_eq!(
            took,
            [(true, 70, 10), (true, 60, 20), (true, 40, 40)],
            "fua={fua}"
        );
        assert_eq!(stats.ops[1].latency.max_ns / 1_000_000, 70);
    }
}

#[tokio::test]
async fn counters_are_exact() {
    let failing = custom(every_op("picky", Class::Cache), |io, next| {
        Box::pin(async move {
            if io.op.extent().offset() == 4096 {
                return Err(Error::new(ErrorKind::Io, "no"));
            }
            next.submit(io).await
        })
    });
    let disk = open(TestDevice::native(), vec![failing]).await;
    let mut port = disk.port(4).unwrap();
    for _ in 0..10 {
        port.push(0, write_of(0, 1, 1024)).unwrap();
        port.next().await.result.unwrap();
        port.push(0, write_of(4096, 1, 512)).unwrap();
        port.next().await.result.unwrap_err();
        disk.submit(Io::read(Extent::new(0, 512))).await.unwrap();
    }
    port.push(0, Io::read(Extent::new(1 << 20, 512))).unwrap();
    port.next().await.result.unwrap_err();
    for drop_port in [false, true] {
        if drop_port {
            drop(disk.port(1).unwrap());
        }
        let stats = disk.stats();
        let (read, write) = (&stats.ops[0], &stats.ops[1]);
        assert_eq!((write.ios, write.bytes, write.errors), (20, 10 * 1536, 10));
        assert_eq!((read.ios, read.bytes, read.errors), (11, 10 * 512, 1));
        assert_eq!((stats.layers[0].ios[1].1, stats.layers[0].errors), (20, 10));
        assert_eq!((stats.layers[1].ios[1].1, stats.layers[1].errors), (10, 0));
        assert_eq!(&*stats.layers[1].name, "device");
    }
    drop(port);
    assert_eq!(
        disk.stats().ops[1].ios,
        20,
        "a port that is gone still counts"
    );
}

#[tokio::test]
async fn filter_that_does_not_intercept_sees_and_counts_nothing() {
    let seen: Arc<Mutex<u32>> = Arc::default();
    let count = Arc::clone(&seen);
    let descriptor = Descriptor::new("writes-only", "1", Class::Inspect)
        .intercept(&[OpKind::Write])
        .pass(&[
            OpKind::Read,
            OpKind::Flush,
            OpKind::WriteZeroes,
            OpKind::Discard,
            OpKind::Prefetch,
        ])
        .accept_fua();
    let filter = custom(descriptor, move |io, next| {
        *count.lock().unwrap() += 1;
        Box::pin(next.submit(io))
    });
    let disk = open(TestDevice::native(), vec![filter]).await;
    for io in [
        Io::flush(),
        Io::read(Extent::new(0, 512)),
        Io::discard(Extent::new(0, 512)),
        Io::write_zeroes(Extent::new(0, 512)),
        write_of(0, 1, 512),
    ] {
        disk.submit(io).await.unwrap();
    }
    assert_eq!(*seen.lock().unwrap(), 1);
    assert_eq!(
        disk.stats().layers[0]
            .ios
            .iter()
            .map(|(_, n)| n)
            .sum::<u64>(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn io_in_flight_is_counted_and_the_polled_filter_is_named() {
    let own: Arc<OnceLock<Disk>> = Arc::default();
    let (disk_of, named) = (Arc::clone(&own), Arc::<Mutex<Vec<String>>>::default());
    let names = Arc::clone(&named);
    let filter = custom(every_op("curious", Class::Cache), move |io, next| {
        let disk = disk_of.get().expect("opened");
        names
            .lock()
            .unwrap()
            .push(disk.polling().unwrap().to_string());
        disk.report_blocked(secs(2));
        Box::pin(next.submit(io))
    });
    let disk = open(TestDevice::native(), vec![filter]).await;
    own.set(disk.clone()).unwrap();
    disk.submit(Io::flush()).await.unwrap();
    assert_eq!(*named.lock().unwrap(), ["curious"]);
    assert_eq!(disk.polling(), None);
    let event = &events_of(&disk, EventKind::ThreadBlocked)[0];
    assert_eq!(event.filter.as_deref(), Some("curious"));
}
