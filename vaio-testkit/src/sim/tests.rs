//! The executor, its clock, events and hosts, in one process and without a disk.

use std::sync::atomic::{AtomicBool, AtomicU32};

use vaio_core::{RuntimeExt, sync::Notify};

use super::*;
use crate::tape::Choices;

fn world() -> Sim {
    Sim::new(Tape::benign(), Schedule::Fifo)
}

fn planned(plan: &str, schedule: Schedule) -> Sim {
    Sim::new(Tape::replay(plan.parse::<Choices>().unwrap()), schedule)
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn say(&self, text: impl Into<String>) {
        lock(&self.0).push(text.into());
    }

    fn said(&self) -> Vec<String> {
        lock(&self.0).clone()
    }
}

/// Says so when it is dropped.
struct Dropped(Arc<AtomicU32>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

async fn yield_now() {
    let mut has_yielded = false;
    std::future::poll_fn(|cx| {
        if has_yielded {
            return Poll::Ready(());
        }
        has_yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn tasks_run_in_turn_and_survive_to_the_next_run() {
    let sim = world();
    let host = sim.host("a");
    let log = Log::default();
    for name in ["x", "y"] {
        let log = log.clone();
        host.spawn(name, async move {
            for turn in 0..2 {
                log.say(format!("{name}{turn}"));
                yield_now().await;
            }
        });
    }
    sim.run(async {}).unwrap();
    sim.run(yield_now()).unwrap();
    sim.run(sim.sleep(ms(1))).unwrap();
    assert_eq!(log.said(), ["x0", "y0", "x1", "y1"]);
}

#[test]
fn deadlock_names_who_waits_and_since_when() {
    let sim = world();
    let host = sim.host("vm1");
    let sleep = host.rt().sleep(ms(3));
    host.spawn("destage", async move {
        sleep.await;
        std::future::pending::<()>().await;
    });
    let stuck = sim.run(std::future::pending::<()>()).unwrap_err();
    assert_eq!(stuck.cause, Cause::Deadlock);
    assert_eq!(
        stuck.to_string(),
        "deadlock: no task can run, no event is pending and no timer is set (or a task waits for \
         a thread of its own), at=3ms\n  waits: task=main since=0ns\n  waits: host=vm1 \
         task=destage since=3ms"
    );
}

#[test]
fn spin_names_the_task_that_ran_most() {
    let sim = world();
    sim.set_limits(Limits {
        drain_polls: 1000,
        ..Limits::default()
    });
    let host = sim.host("vm1");
    host.spawn("innocent", async {
        for _ in 0..100 {
            yield_now().await;
        }
    });
    host.spawn("spinner", async {
        loop {
            yield_now().await;
        }
    });
    let stuck = sim.run(std::future::pending::<()>()).unwrap_err();
    let text = stuck.to_string();
    assert!(text.contains("host=vm1 task=spinner polls=899"), "{text}");
    assert!(matches!(stuck.cause, Cause::Spin { .. }));
}

#[test]
fn time_and_steps_have_limits() {
    let sim = world();
    let hour = Duration::from_hours(1);
    sim.run(sim.sleep(hour)).unwrap();
    let stuck = sim.run(sim.sleep(ms(1))).unwrap_err();
    assert_eq!(stuck.cause, Cause::TimeLimit);

    sim.set_limits(Limits {
        time: hour * 2,
        steps: 100,
        ..Limits::default()
    });
    let endless = async {
        loop {
            sim.event(None, "retry").await;
        }
    };
    assert_eq!(sim.run(endless).unwrap_err().cause, Cause::StepLimit);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the thread is what is reported")]
fn wake_from_another_thread_is_reported() {
    let sim = world();
    let host = sim.host("vm1");
    host.spawn("threaded", async {
        let mut is_begun = false;
        std::future::poll_fn(move |cx| {
            if !is_begun {
                is_begun = true;
                let waker = cx.waker().clone();
                std::thread::spawn(move || waker.wake()).join().unwrap();
            }
            Poll::<()>::Pending
        })
        .await;
    });
    let stuck = sim.run(sim.sleep(ms(1))).unwrap_err();
    assert!(
        matches!(&stuck.cause, Cause::ForeignThread { task } if task.task == "threaded"),
        "{stuck}"
    );
}

#[test]
fn panic_of_a_task_is_reported_with_its_name() {
    let sim = world();
    sim.host("vm1")
        .spawn("broken", async { panic!("boom {}", 1) });
    let stuck = sim.run(sim.sleep(ms(1))).unwrap_err();
    assert!(
        stuck
            .to_string()
            .starts_with("a task panicked: boom 1, host=vm1 task=broken, at=0ns"),
        "{stuck}"
    );
}

/// Three events are pending; in which order do they happen, and when?
fn order_of_events(plan: &str) -> Vec<String> {
    let sim = planned(plan, Schedule::Fifo);
    let log = Log::default();
    for name in ["one", "two", "three"] {
        let (log, handle) = (log.clone(), sim.clone());
        sim.spawn(name, async move {
            handle.event(None, name).await;
            log.say(format!("{name}@{}", handle.now().as_nanos()));
        });
    }
    sim.run(sim.sleep(ms(1))).unwrap();
    log.said()
}

#[test]
fn oldest_event_happens_first_unless_the_tape_says_otherwise() {
    assert_eq!(order_of_events(""), ["one@1000", "two@2000", "three@3000"]);
    assert_eq!(
        order_of_events("choose event one#0 = 2"),
        ["three@1000", "one@2000", "two@3000"]
    );
}

#[test]
fn kick_fires_the_next_timer_with_events_pending() {
    let run = |plan| {
        let sim = planned(plan, Schedule::Fifo);
        let log = Log::default();
        let (timer_log, timer) = (log.clone(), sim.sleep(ms(50)));
        sim.spawn("timer", async move {
            timer.await;
            timer_log.say("timer");
        });
        sim.run(async {
            sim.event(None, "io").await;
            log.say("io");
            sim.sleep(ms(100)).await;
        })
        .unwrap();
        log.said()
    };
    assert_eq!(run(""), ["io", "timer"]);
    assert_eq!(run("choose kick timer#0 = 1"), ["timer", "io"]);
}

#[test]
fn kicks_alone_do_not_pass_the_time_limit() {
    let sim = planned(
        &(0..9999).fold(String::new(), |plan, nth| {
            plan + &format!("choose kick timer#{nth} = 1\n")
        }),
        Schedule::Fifo,
    );
    let mut io = sim.event(None, "io");
    let ticks = async {
        loop {
            sim.sleep(Duration::from_secs(30)).await;
            if futures::future::poll_immediate(&mut io).await.is_some() {
                break;
            }
        }
    };
    sim.run(ticks).unwrap();
    assert!(sim.now().as_nanos() <= 1_830_000_000_000);
}

#[test]
fn timers_fire_in_order_and_before_the_event_of_their_moment() {
    let sim = world();
    let log = Log::default();
    for (name, nanos) in [("late", 900), ("tie1", 500), ("tie2", 500), ("after", 1001)] {
        let timer = sim.sleep_until(Instant::from_nanos(nanos));
        let log = log.clone();
        sim.spawn(name, async move {
            timer.await;
            log.say(name);
        });
    }
    sim.run(async {
        sim.event(None, "io").await;
        log.say("io");
        sim.sleep(ms(1)).await;
    })
    .unwrap();
    assert_eq!(log.said(), ["tie1", "tie2", "late", "io", "after"]);
}

#[test]
fn event_of_a_dropped_future_is_cancelled_unless_detached() {
    let sim = world();
    let happened = Arc::new(AtomicU32::new(0));
    for detaches in [false, true] {
        let count = Arc::clone(&happened);
        let event = sim.event_with(None, "io", move || {
            count.fetch_add(1, Relaxed);
        });
        drop(if detaches { event.detach() } else { event });
    }
    sim.run(sim.sleep(ms(1))).unwrap();
    assert_eq!(happened.load(Relaxed), 1);
}

#[test]
fn observer_sees_an_event_after_its_action_and_before_who_waits() {
    let sim = world();
    let log = Log::default();
    let (seen, handle) = (log.clone(), sim.clone());
    sim.on_event(move |boundary| {
        handle.boundary("within an observer");
        seen.say(format!("{} {}", boundary.kind, boundary.name));
    });
    sim.run(async {
        let acted = log.clone();
        sim.event_with(None, "disk.write", move || acted.say("lands"))
            .await;
        log.say("acked");
        sim.boundary("ack");
    })
    .unwrap();
    assert_eq!(log.said(), ["lands", "event disk.write", "acked", "ack "]);
}

#[test]
fn kill_makes_the_host_dead_before_its_tasks_are_dropped() {
    struct Looks(Host, Log);
    impl Drop for Looks {
        fn drop(&mut self) {
            self.1.say(format!("alive={}", self.0.is_alive()));
            let dropped = Dropped(Arc::default());
            let count = Arc::clone(&dropped.0);
            self.0.spawn("too late", async move { drop(dropped) });
            self.1.say(format!("refused={}", count.load(Relaxed)));
        }
    }
    let sim = world();
    let (host, log) = (sim.host("a"), Log::default());
    let looks = Looks(host.clone(), log.clone());
    let timer = host.rt().sleep(ms(1));
    let other = log.clone();
    host.spawn("task", async move {
        let _looks = looks;
        timer.await;
        other.say("never");
    });
    sim.run(yield_now()).unwrap();
    let mut event = sim.event(Some(&host), "io");
    host.kill();
    host.kill();
    assert_eq!(log.said(), ["alive=false", "refused=1"]);
    let (mut sleep, mut offload) = (host.rt().sleep(ms(1)), {
        let log = log.clone();
        host.rt().offload(Box::new(move || log.say("never")))
    });
    sim.run(async {
        sim.sleep(ms(10)).await;
        assert!(futures::future::poll_immediate(&mut event).await.is_none());
        assert!(futures::future::poll_immediate(&mut sleep).await.is_none());
        assert!(
            futures::future::poll_immediate(&mut offload)
                .await
                .is_none()
        );
    })
    .unwrap();
    assert_eq!(log.said().len(), 2);
}

#[test]
fn task_that_kills_its_own_host_runs_to_its_next_wait() {
    let sim = world();
    let (host, log) = (sim.host("a"), Log::default());
    let drops = Arc::new(AtomicU32::new(0));
    let (inner, dropped, said) = (host.clone(), Dropped(Arc::clone(&drops)), log.clone());
    host.spawn("suicide", async move {
        let _dropped = dropped;
        inner.kill();
        said.say("still here");
        yield_now().await;
        said.say("never");
    });
    sim.run(async {
        yield_now().await;
        assert_eq!(drops.load(Relaxed), 1);
        // Its place is free again.
        for _ in 0..3 {
            sim.spawn("other", yield_now());
            sim.sleep(ms(1)).await;
        }
    })
    .unwrap();
    assert_eq!(log.said(), ["still here"]);
}

#[test]
fn panic_in_a_drop_at_kill_is_reported_and_the_rest_is_dropped() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }
    let sim = world();
    let host = sim.host("a");
    let bomb = Bomb;
    host.spawn("bomb", async move {
        let _bomb = bomb;
        std::future::pending::<()>().await;
    });
    let drops = Arc::new(AtomicU32::new(0));
    let dropped = Dropped(Arc::clone(&drops));
    host.spawn("next", async move {
        let _dropped = dropped;
        std::future::pending::<()>().await;
    });
    let stuck = sim
        .run(async {
            yield_now().await;
            host.kill();
        })
        .unwrap_err();
    assert!(
        stuck.to_string().contains("in drop, host=a task=bomb"),
        "{stuck}"
    );
    assert_eq!(drops.load(Relaxed), 1);
}

#[test]
fn paused_host_is_not_polled_until_it_resumes() {
    let sim = world();
    let (host, log) = (sim.host("a"), Log::default());
    let said = log.clone();
    let timer = host.rt().sleep(ms(1));
    host.spawn("task", async move {
        timer.await;
        said.say("ran");
    });
    sim.run(async {
        yield_now().await;
        host.pause();
        sim.sleep(ms(5)).await;
        assert!(log.said().is_empty());
        host.resume();
        sim.sleep(ms(5)).await;
    })
    .unwrap();
    assert_eq!(log.said(), ["ran"]);

    host.spawn("parked", std::future::pending());
    host.pause();
    let stuck = sim.run(std::future::pending::<()>()).unwrap_err();
    assert!(stuck.to_string().contains("task=parked"), "{stuck}");
    assert!(stuck.waiting.iter().any(|waiting| waiting.is_paused));
    host.kill();
    sim.spawn("new", yield_now());
    sim.run(sim.sleep(ms(1))).unwrap();
}

#[test]
fn restart_gives_a_new_incarnation_and_the_old_one_stays_dead() {
    let sim = world();
    let old = sim.host("a");
    let new = old.restart();
    assert!(!old.is_alive() && new.is_alive());
    assert_eq!((new.name(), new.incarnation()), ("a", 1));
    let ran = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ran);
    new.spawn("task", async move { flag.store(true, Relaxed) });
    sim.run(yield_now()).unwrap();
    assert!(ran.load(Relaxed));
}

#[test]
fn dropping_the_world_frees_every_cycle() {
    let drops = Arc::new(AtomicU32::new(0));
    let dropped = || Dropped(Arc::clone(&drops));
    let sim = world();
    let host = sim.host("a");
    let (rt, clone, held, again) = (host.rt(), sim.clone(), dropped(), host.clone());
    host.spawn("cycle", async move {
        let _held = (&rt, &clone, held);
        rt.sleep(ms(9)).await;
        drop(again);
    });
    let (held, clone) = (dropped(), sim.clone());
    sim.spawn("environment", async move {
        let _held = held;
        clone.event(None, "never").await;
    });
    let held = dropped();
    drop(sim.event_with(None, "io", move || drop(held)).detach());
    let (held, clone) = (dropped(), sim.clone());
    sim.on_event(move |_| {
        let _held = (&held, &clone);
    });
    sim.run(async {}).unwrap();
    sim.run(yield_now()).unwrap();
    let weak = Arc::downgrade(&sim.shared);
    let kept = sim.clone();
    drop(sim);
    assert_eq!(drops.load(Relaxed), 4);
    assert!(!host.is_alive());
    drop((kept, host));
    assert_eq!(weak.strong_count(), 0);
}

#[test]
fn runtime_of_a_host_gives_time_chance_and_marks() {
    let sim = planned("choose kick early#1 = 1", Schedule::Fifo);
    let host = sim.host("a");
    let rt = host.rt();
    let wall = rt.wall();
    host.set_skew(-5_000_000_000);
    assert_eq!(wall.0 - rt.wall().0, 5_000_000_000);

    let numbers: std::collections::BTreeSet<_> = (0..1000).map(|_| rt.entropy()).collect();
    let ones: u32 = numbers.iter().map(|number| number.count_ones()).sum();
    assert_eq!(numbers.len(), 1000);
    assert!((31_000..33_000).contains(&ones), "{ones}");
    assert_ne!(
        sim.host("b").rt().entropy(),
        world().host("a").rt().entropy()
    );

    assert_eq!((rt.buggify("early"), rt.buggify("early")), (false, true));
    rt.probe("wrap");
    rt.probe("wrap");
    assert_eq!(sim.marks(), BTreeMap::from([("early", 1), ("wrap", 2)]));

    let (sum, panicked) = sim
        .run(async {
            let sum = rt.offload_with(|| 1 + 1).await;
            (sum, rt.offload_with(|| -> u32 { panic!("work") }).await)
        })
        .unwrap();
    assert_eq!((sum, panicked), (Some(2), None));
    assert_eq!(rt.now(), Instant::from_nanos(2_000));
}

#[test]
fn notes_are_hashed_always_and_written_only_when_the_trace_is_on() {
    let quiet = world();
    quiet.note(None, "disk", 7, || unreachable!("off"));
    let loud = world();
    loud.trace().start(10);
    loud.note(Some(&loud.host("a")), "disk", 7, || "block=7".into());
    assert_eq!(quiet.trace().hash(), loud.trace().hash());
    assert_eq!(
        loud.trace().events()[0].to_string(),
        "at=0ns host=a disk block=7"
    );
    quiet.note(None, "disk", 8, String::new);
    loud.note(None, "disk", 9, String::new);
    assert_ne!(quiet.trace().hash(), loud.trace().hash());
}

#[test]
fn waker_of_an_ended_task_wakes_no_other() {
    let sim = world();
    let old: Arc<Mutex<Option<std::task::Waker>>> = Arc::default();
    let keep = Arc::clone(&old);
    sim.spawn(
        "old",
        std::future::poll_fn(move |cx| {
            *lock(&keep) = Some(cx.waker().clone());
            Poll::Ready(())
        }),
    );
    sim.run(yield_now()).unwrap();
    let polls = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&polls);
    sim.spawn(
        "new",
        std::future::poll_fn(move |_| {
            count.fetch_add(1, Relaxed);
            Poll::Pending
        }),
    );
    let places = sim.shared.lock().places();
    assert_eq!(places, 2, "the new task has the old one's place");
    sim.run(yield_now()).unwrap();
    lock(&old).as_ref().unwrap().wake_by_ref();
    sim.run(sim.sleep(ms(1))).unwrap();
    assert_eq!(polls.load(Relaxed), 1);
}

#[test]
fn places_of_tasks_killed_while_parked_are_used_again() {
    let sim = world();
    let mut host = sim.host("a");
    for _ in 0..10 {
        host.pause();
        host.spawn("parked", yield_now());
        sim.run(sim.sleep(ms(1))).unwrap();
        host = host.restart();
    }
    assert_eq!(sim.shared.lock().places(), 2);
}

#[test]
fn timer_of_a_dead_host_does_not_move_the_clock() {
    let sim = world();
    let host = sim.host("a");
    let mut timer = host.rt().sleep(ms(7));
    sim.run(async {
        assert!(futures::future::poll_immediate(&mut timer).await.is_none());
    })
    .unwrap();
    host.kill();
    let stuck = sim.run(timer).unwrap_err();
    assert_eq!(
        (stuck.cause, stuck.at),
        (Cause::Deadlock, Instant::default())
    );
}

#[test]
fn choice_that_changes_no_step_changes_the_hash() {
    let (a, b) = (world(), world());
    a.tape().choose(2, crate::Family::Fault, "eio");
    assert_ne!(a.trace().hash(), b.trace().hash());
}

/// A few tasks on two hosts that wait for each other, timers and events.
fn busy(tape: Tape, schedule: Schedule, records: bool, odd: bool) -> Sim {
    let sim = Sim::new(tape, schedule);
    if records {
        sim.trace().start(TRACE_EVENTS_MAX);
    }
    let turn = Arc::new((Mutex::new(0u32), Notify::default()));
    for host in ["a", "b"] {
        let host = sim.host(host);
        for name in ["read", "write", "destage"] {
            let (rt, handle, turn, own) = (host.rt(), sim.clone(), Arc::clone(&turn), host.clone());
            host.spawn(name, async move {
                for round in 0..3 {
                    handle.event(Some(&own), name).await;
                    let number = {
                        let mut number = lock(&turn.0);
                        *number += 1;
                        *number
                    };
                    turn.1.notify_all();
                    handle.note(Some(&own), "turn", u64::from(number), || {
                        format!("{number}")
                    });
                    let extra = u64::from(odd && round == 1 && name == "write");
                    rt.sleep(Duration::from_micros(u64::from(1 + number % 4) + extra))
                        .await;
                    if rt.buggify("again") {
                        yield_now().await;
                    }
                }
            });
        }
    }
    sim.run(async {
        loop {
            let listener = turn.1.listen();
            if *lock(&turn.0) == 18 {
                break;
            }
            listener.await;
        }
    })
    .unwrap();
    sim
}

#[test]
fn thousand_seeds_run_twice_are_equal() {
    let mut different = std::collections::BTreeSet::new();
    for seed in 0..1000 {
        let schedule = match seed % 3 {
            0 => Schedule::Fifo,
            1 => Schedule::Random,
            _ => Schedule::Pct { depth: 3 },
        };
        let first = busy(Tape::random(seed), schedule, false, false);
        let second = busy(Tape::random(seed), schedule, false, false);
        assert_eq!(first.trace().hash(), second.trace().hash(), "seed {seed}");
        assert_eq!(first.trace().steps(), second.trace().steps());
        different.insert(first.trace().hash());
        if seed < 30 {
            let again = busy(Tape::replay(first.tape().taken()), schedule, true, false);
            assert_eq!(again.tape().taken(), first.tape().taken(), "replay {seed}");
            assert_eq!(again.trace().hash(), first.trace().hash(), "replay {seed}");
        }
    }
    assert!(different.len() > 990, "seeds differ: {}", different.len());
}

#[test]
fn first_event_that_differs_is_named() {
    let first = busy(Tape::benign(), Schedule::Fifo, true, false);
    let second = busy(Tape::benign(), Schedule::Fifo, true, true);
    assert_eq!(first_difference(first.trace(), first.trace()), None);
    let difference = first_difference(first.trace(), second.trace()).unwrap();
    let text = difference.to_string();
    assert!(text.contains("the runs differ at event"), "{text}");
    assert!(text.contains("timer due="), "{text}");
    assert_ne!(difference.first, difference.second);
}
