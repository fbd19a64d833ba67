use std::time::Instant;

use vaio_testkit::{
    conformance::lab_of,
    explore::{Seen, campaign::smallest, random::Large, run, replay},
    zoo::rows,
};

#[test]
fn explore_shrinks() {
    let case = std::env::var("CASE").unwrap_or("crash::several".into());
    for row in rows().into_iter().filter(|r| std::env::var("VAIO_ROW").map_or(true, |o| r.name == o)) {
        let lab = {
            let subject = row.twin.subject(row.promise, Some(row.bug));
            lab_of(&subject, &case)
        };
        let large = Large { ops: (30, 120), crashes_max: 5, ..Large::new(&case, &lab.subject) };
        let start = Instant::now();
        let n: u64 = std::env::var("SEEDS").map_or(300, |t| t.parse().unwrap());
        let mut shown = 0;
        for seed in 0..n {
            let r = large.run(seed);
            if r.plan.crashes() < 2 || r.plan.ops() < 30 { continue; }
            let Some(f) = run(&lab, &r.plan, &r.tape, &mut Seen::default()).failure else { continue };
            let found = start.elapsed();
            let s = Instant::now();
            let small = smallest(&lab, &f, 20000);
            let t = s.elapsed();
            let again = replay(&lab, &small.plan.to_string().parse().unwrap()).failure.map(|f| f.broken.rule);
            println!("=== {} seed {seed} found {found:?} rule {} {} ops {} crashes {} choices -> {} ops {} crashes {} choices in {t:?} again {:?}", row.name, f.broken.rule, f.plan.ops(), f.plan.crashes(), f.plan.choices.len(), small.plan.ops(), small.plan.crashes(), small.plan.choices.len(), again);
            if std::env::var("SHOW").is_ok() || small.plan.ops() > 5 || small.plan.crashes() > 1 { println!("{}", small.plan); }
            shown += 1;
            if shown == 3 { break; }
        }
        if shown == 0 { println!("=== {} none in {n} {:?}", row.name, start.elapsed()); }
    }
}

#[test]
fn explore_alarm() {
    use vaio_core::Promise;
    use vaio_testkit::zoo::Twin;
    let subject = Twin::Observer.subject(Promise::AtFlush, None);
    let lab = lab_of(&subject, "crash::several");
    let plan = "vaio-plan 1\ncase crash::several\nscale small\nblocks 29\ndepth 1\nschedule fifo\nop discard 13 16\nop write 23 1 fua\ncrash kill 68\ncrash power 28\n".parse().unwrap();
    let sim = vaio_testkit::Sim::new(vaio_testkit::Tape::benign(), vaio_testkit::sim::Schedule::Fifo);
    sim.trace().start(2000);
    let f = vaio_testkit::explore::run_in(&lab, &plan, &sim, &mut Seen::default()).failure;
    for e in sim.trace().events() { println!("{e:?}"); }
    if let Some(f) = f { println!("{}\n{}", f.broken, f.plan); } else { println!("ok"); }
}
