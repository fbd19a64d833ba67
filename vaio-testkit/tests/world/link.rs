//! What a link may do, and what it may not.

use std::{collections::BTreeSet, time::Duration};

use vaio_core::RuntimeExt;
use vaio_testkit::{
    Schedule, Sim, Tape,
    world::{Caller, Frame, LATE, Link, Lost, Mode, Side, serve, swizzle},
};

fn world(seed: u64) -> Sim {
    Sim::new(Tape::random(seed), Schedule::Random)
}

/// What arrives of ten datagrams, in order of arrival.
fn datagrams(seed: u64) -> Vec<u32> {
    let sim = world(seed);
    let link = Link::new(&sim, "net", Mode::Datagram);
    let (a, b) = (sim.host("a"), sim.host("b"));
    let (left, right) = (link.end(Side::Left, &a), link.end(Side::Right, &b));
    let mut seen = Vec::new();
    sim.run(async {
        for n in 0..10u32 {
            left.send(n).expect("a datagram is always sent");
        }
        let rt = b.rt();
        let end = rt.now() + Duration::from_secs(1);
        while let Some(Ok(n)) = rt.timeout_at(end, right.recv()).await {
            seen.push(n);
        }
    })
    .expect("runs");
    seen
}

#[test]
fn datagrams_are_lost_doubled_and_reordered() {
    let runs: Vec<_> = (0..40).map(datagrams).collect();
    let has = |what: fn(&Vec<u32>) -> bool| runs.iter().any(what);
    let distinct = |seen: &Vec<u32>| seen.iter().collect::<BTreeSet<_>>().len();
    assert!(has(|seen| !seen.is_sorted()), "reordered");
    assert!(runs.iter().any(|seen| distinct(seen) < 10), "lost");
    assert!(
        runs.iter().any(|seen| distinct(seen) < seen.len()),
        "doubled"
    );
    assert!(runs.iter().all(|seen| seen.iter().all(|n| *n < 10)));
}

#[test]
fn stream_delivers_a_prefix_in_order() {
    let mut shorter = 0;
    for seed in 0..60 {
        let sim = world(seed);
        let link = Link::new(&sim, "net", Mode::Stream);
        let (a, b) = (sim.host("a"), sim.host("b"));
        let left = link.dial(&a);
        let sent = (0..10u32).take_while(|n| left.send(*n).is_ok()).count();
        let seen = sim
            .run(async {
                let right = link.accept(&b).await;
                if sent == 10 {
                    left.break_off();
                }
                let mut seen = Vec::new();
                while let Ok(n) = right.recv().await {
                    seen.push(n);
                }
                seen
            })
            .expect("runs");
        let expected: Vec<u32> = (0..).take(seen.len()).collect();
        assert_eq!(seen, expected, "seed {seed}");
        shorter += usize::from(seen.len() < sent);
    }
    assert!(shorter > 0, "something was cut off");
}

#[test]
fn cut_holds_a_stream_and_loses_datagrams() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let (a, b) = (sim.host("a"), sim.host("b"));
    let stream = Link::new(&sim, "stream", Mode::Stream);
    let net = Link::new(&sim, "net", Mode::Datagram);
    let (left, right) = (net.end(Side::Left, &a), net.end(Side::Right, &b));
    sim.run(async {
        let (dialled, accepted) = (stream.dial(&a), stream.accept(&b).await);
        for n in [1, 2] {
            stream.cut_from(Side::Left);
            net.cut_from(Side::Left);
            dialled.send(n).expect("it is not broken");
            left.send(n).expect("a datagram");
            sim.sleep(LATE).await;
            stream.heal();
            net.heal();
            left.send(n + 10).expect("a datagram");
            assert_eq!(accepted.recv().await, Ok(n));
            assert_eq!(right.recv().await, Ok(n + 10));
        }
        assert!(stream.is_whole());
    })
    .expect("runs");
}

#[test]
fn dead_host_neither_sends_nor_receives() {
    let sim = Sim::new(Tape::benign(), Schedule::Fifo);
    let (a, b) = (sim.host("a"), sim.host("b"));
    let link = Link::new(&sim, "net", Mode::Stream);
    sim.run(async {
        let left = link.dial(&a);
        left.send(1).expect("alive");
        let right = link.accept(&b).await;
        a.kill();
        assert_eq!(left.send(2), Err(Lost));
        // What it sent before is under way.
        assert_eq!(right.recv().await, Ok(1));
        let rt = b.rt();
        let soon = rt.now() + Duration::from_secs(1);
        let next = rt.timeout_at(soon, right.recv()).await;
        assert_eq!(next, None, "a dead peer is silent");
    })
    .expect("runs");
}

#[test]
fn request_that_is_doubled_is_done_once() {
    for seed in 0..40 {
        let sim = world(seed);
        let (a, b) = (sim.host("a"), sim.host("b"));
        let link: Link<Frame<u32, u32>> = Link::new(&sim, "net", Mode::Datagram);
        let done = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let server = {
            let done = std::sync::Arc::clone(&done);
            serve(link.end(Side::Right, &b), move |n| {
                done.lock().unwrap().push(n);
                async move { n + 1 }
            })
        };
        b.spawn("serve", server);
        sim.run(async {
            let caller = Caller::new(link.end(Side::Left, &a));
            let rt = a.rt();
            for n in 0..6 {
                let soon = rt.now() + Duration::from_secs(1);
                let reply = rt.timeout_at(soon, caller.ask(n)).await;
                assert!(matches!(reply, None | Some(Ok(_))));
                assert!(reply.is_none_or(|reply| reply == Ok(n + 1)));
            }
        })
        .expect("runs");
        let done = done.lock().unwrap();
        let distinct: BTreeSet<_> = done.iter().collect();
        assert_eq!(distinct.len(), done.len(), "seed {seed}: {done:?}");
    }
}

#[test]
fn swizzled_links_are_whole_again() {
    for seed in 0..20 {
        let sim = world(seed);
        let links: Vec<Link<u8>> = (0..3)
            .map(|n| Link::new(&sim, &format!("net{n}"), Mode::Stream))
            .collect();
        sim.run(swizzle(&sim, &links)).expect("runs");
        assert!(links.iter().all(Link::is_whole));
    }
}
