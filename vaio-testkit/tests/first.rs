use vaio_core::Promise;
use vaio_testkit::{explore::enumerate::Space, explore::*, *};
fn tape(small: &explore::enumerate::Small) -> Tape {
    match small.seed {
        None => Tape::benign(),
        Some(seed) => {
            let t = Tape::random(seed);
            t
        }
    }
}
#[test]
fn write_back_is_clean() {
    for promise in [Promise::AtAck, Promise::AtFlush] {
        let lab = Lab::new(Subject::new(
            vaio_testkit::twins::write_back::WriteBackFactory::tiny(promise),
        ));
        let len: usize = std::env::var("LEN")
            .map(|x| x.parse().unwrap())
            .unwrap_or(2);
        let space = Space {
            ops_max: len,
            schedules: 2,
            ..Space::new("crash::all", 4)
        };
        let mut seen = Seen::default();
        let mut work = Work::default();
        let t = std::time::Instant::now();
        for small in space.runs() {
            let ran = run(&lab, &small.plan, &tape(&small), &mut seen);
            work += ran.work;
            if let Some(f) = ran.failure {
                println!("{:?} {}", small.seed, f.plan);
                println!("boundary {:?} {}", f.boundary, f.broken);
                panic!();
            }
        }
        println!("{work:?} in {:?}", t.elapsed());
    }
}

#[test]
fn bugs() {
    use vaio_testkit::zoo::Bug::*;
    let len: usize = std::env::var("LEN")
        .map(|x| x.parse().unwrap())
        .unwrap_or(2);
    for bug in [
        SecondWriteNotLogged,
        ZeroesNotLogged,
        DiscardInMemory,
        AckBeforeFlush,
        FuaIgnored,
        FlushDoesNothing,
        OverlapUnordered,
        MapsFirstBlockOnly,
        GapReadAtStart,
        SlotsHeldTogether,
        TailBeforeFlush,
        FlushBeforeWritesEnd,
        TailNotFlushed,
        SlotFreedBeforeTail,
        TailPassesSuperseded,
        ClearsNewerDirty,
        DestageUnordered,
        DestageWaitsForGate,
        NoDataChecksum,
        StaleLap,
        ReplayInSlotOrder,
        StopsAtGap,
        WrapNotScanned,
        SequenceReset,
        EpochKept,
        EpochNotDurable,
        DiscardDropsRecord,
        DiscardUnordered,
        WriteThroughPastLog,
        CleanMarkEarly,
        DirtyUnderReported,
        DrainBeforeFlush,
    ] {
        let mut hit = String::new(); let t0 = std::time::Instant::now();
        for promise in [Promise::AtAck, Promise::AtFlush] {
            let mut lab = Lab::new(Subject::new(
                vaio_testkit::twins::write_back::WriteBackFactory::tiny(promise).with_bug(bug),
            ));
            lab.checks.dirty = true;
            let space = Space {
                ops_max: len,
                schedules: 4,
                ..Space::new("crash::all", 4)
            };
            let mut seen = Seen::default();
            let mut n = 0;
            for small in space.runs() {
                n += 1; if t0.elapsed().as_secs() > 4 { hit += &format!(" timeout at {n}"); break; }
                let ran = run(&lab, &small.plan, &tape(&small), &mut seen);
                if let Some(f) = ran.failure {
                    hit += &format!(
                        " {promise:?}: {} L={} after {n} {:?};",
                        f.broken.rule,
                        f.plan.ops(),
                        small.seed
                    );
                    break;
                }
            }
        }
        println!(
            "{bug:?}{}",
            if hit.is_empty() {
                " SURVIVES".into()
            } else {
                hit
            }
        );
    }
}
