//! What a failure prints: three bugs of the zoo, found, shrunk, recorded and shown.

use vaio_core::Promise;
use vaio_testkit::{
    GuestOp, Scale, Schedule, Swarm, Tape,
    explore::{Failure, Lab, Plan, Seen, TRIES_MAX, enumerate::Space, replay, run, shrink},
    report::{Around, html, record, text},
    twins::write_back::WriteBackFactory,
    zoo::Bug,
};

fn lab(bug: Bug) -> Lab {
    Lab::new(vaio_testkit::Subject::new(
        WriteBackFactory::tiny(if bug == Bug::ClearsNewerDirty {
            Promise::AtFlush
        } else {
            Promise::AtAck
        })
        .with_bug(bug),
    ))
}

fn find(lab: &Lab) -> Option<Failure> {
    let mut space = Space::new("crash::found", 2);
    space.ops_max = 2;
    let mut seen = Seen::default();
    for small in space.runs() {
        let tape = match small.seed {
            None => Tape::benign(),
            Some(seed) => Tape::random(seed).with_swarm(Swarm::random(seed)),
        };
        if let Some(failure) = run(lab, &small.plan, &tape, &mut seen).failure {
            return Some(*failure);
        }
    }
    let w = |block, count| GuestOp::Write {
        block,
        count,
        fua: false,
    };
    for seed in 0..6000 {
        let ops = [
            vec![w(0, 1), w(0, 1), GuestOp::Flush],
            vec![
                w(0, 1),
                w(0, 1),
                w(1, 1),
                w(0, 1),
                w(0, 2),
                GuestOp::Idle,
                w(0, 1),
            ],
            vec![w(0, 2), w(1, 1), w(0, 1), w(1, 1)],
        ][seed as usize % 3]
            .clone();
        let mut plan = Plan::new(
            "crash::found",
            Scale::Tiny,
            2,
            1 + (seed as usize / 3) % 3,
            ops,
        );
        plan.schedule = if seed % 2 == 0 {
            Schedule::Random
        } else {
            Schedule::Fifo
        };
        let tape = Tape::random(seed).with_swarm(Swarm::random(seed));
        if let Some(failure) = run(lab, &plan, &tape, &mut seen).failure {
            return Some(*failure);
        }
    }
    None
}

/// As small as it gets, with its size before.
fn shrunk(lab: &Lab, failure: &Failure) -> Plan {
    let rule = failure.broken.rule.clone();
    shrink(failure.plan.clone(), TRIES_MAX, |plan| {
        let again = replay(lab, plan).failure?;
        (again.broken.rule == rule).then_some(again.plan)
    })
    .plan
}

#[test]
#[ignore = "for the eye"]
fn show() {
    let names = std::env::var("SHOW").unwrap_or_default();
    for bug in [
        Bug::SecondWriteNotLogged,
        Bug::SequenceReset,
        Bug::ClearsNewerDirty,
        Bug::NoDataChecksum,
        Bug::TailBeforeFlush,
        Bug::TailPassesSuperseded,
        Bug::AckBeforeFlush,
        Bug::SlotFreedBeforeTail,
        Bug::DestageUnordered,
    ] {
        if !names.contains(&format!("{bug:?}")) {
            continue;
        }
        let lab = lab(bug);
        let begin = std::time::Instant::now();
        let Some(failure) = find(&lab) else {
            println!("{bug:?} not found {:?}", begin.elapsed());
            continue;
        };
        println!("{bug:?} found after {:?} {}", begin.elapsed(), failure.plan);
        let plan = shrunk(&lab, &failure);
        println!("shrunk after {:?}", begin.elapsed());
        let recording = record(&lab, &plan).expect("the plan fails");
        let around = Around {
            before: Some((failure.plan.ops(), failure.plan.crashes())),
            replay: "VAIO_PLAN=x cargo test".into(),
            files: vec![],
        };
        println!("{}", text(&recording, &around));
        std::fs::write(format!("/tmp/wt/{bug:?}.html"), html(&recording, &around)).unwrap();
    }
}
