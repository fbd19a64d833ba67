//! What a failure prints: three bugs of the zoo, found, shrunk, recorded and shown.

use vaio_core::Promise;
use vaio_testkit::{
    Swarm, Tape,
    explore::{
        Failure, Lab, Plan, Seen, TRIES_MAX, enumerate::Space, replay, run, shrink,
    },
    report::{Around, Recording, record, text},
    twins::write_back::WriteBackFactory,
    zoo::Bug,
};

fn lab(bug: Bug) -> Lab {
    Lab::new(vaio_testkit::Subject::new(
        WriteBackFactory::tiny(Promise::AtAck).with_bug(bug),
    ))
}

/// The first run of the small space that fails.
fn find(lab: &Lab, ops_max: usize) -> Failure {
    let mut space = Space::new("crash::found", 2);
    space.ops_max = ops_max;
    let mut seen = Seen::default();
    for small in space.runs() {
        let tape = match small.seed {
            None => Tape::benign(),
            Some(seed) => Tape::random(seed).with_swarm(Swarm::random(seed)),
        };
        if let Some(failure) = run(lab, &small.plan, &tape, &mut seen).failure {
            return *failure;
        }
    }
    panic!("no failure in {} runs", space.len());
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
    for bug in [
        Bug::SecondWriteNotLogged,
        Bug::SequenceReset,
        Bug::ClearsNewerDirty,
    ] {
        let lab = lab(bug);
        let begin = std::time::Instant::now();
        let failure = find(&lab, 3);
        eprintln!("{bug:?} found after {:?}", begin.elapsed());
        let plan = shrunk(&lab, &failure);
        eprintln!("shrunk after {:?}", begin.elapsed());
        let recording = record(&lab, &plan).expect("the plan fails");
        println!("{}", text(&recording, &Around::default()));
    }
}
