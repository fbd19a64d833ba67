use std::{sync::Mutex, time::Instant};

use vaio_testkit::{
    conformance::lab_of,
    disk::{Fault, Rule},
    explore::{Checks, CrashKind, FaultBelow, How, Lab, On, Seen, enumerate::{Space, Small}, run},
    zoo::{Need, Row, Twin, rows},
    GuestOp, Scale,
};

const NO_WORKLOAD: [&str; 5] = ["lifecycle", "dirty", "cancel", "bypass", "liveness"];

fn needs_crash(row: &Row) -> bool {
    ["crash", "power cut", "replica keeps"].iter().any(|word| row.exposes.contains(word))
        && !NO_WORKLOAD.contains(&row.expected_case)
}

const FAULT_CASES: &[&str] = &["fsyncgate::backing", "fsyncgate::beside", "faults::backing_write", "faults::backing_read",
  "faults::beside_write", "faults::beside_read", "faults::recovery_read"];

fn labs(row: &Row) -> Vec<Lab> {
    let subject = row.twin.subject(row.promise, Some(row.bug));
    let mut base = Lab::new(subject.clone());
    if row.needs.contains(&Need::Kill) { base.checks.kinds = vec![CrashKind::Kill]; }
    if row.expected_case == "recovery_crash" { base.checks.recovery_crash = true; }
    if !row.needs.contains(&Need::Fault) { return vec![base]; }
    let mut all = Vec::new();
    for case in FAULT_CASES {
        if !case.starts_with(row.expected_case) { continue; }
        for after in 0..5 {
            let mut lab = lab_of(&subject, case);
            for list in [&mut lab.checks.faults, &mut lab.checks.recovery_faults] {
                for f in list.iter_mut() { if let How::Rule(r) = &mut f.how { *r = r.after(after); } }
            }
            all.push(lab);
        }
    }
    all
}

fn space(row: &Row, len: usize) -> Space {
    let blocks = 4;
    let mut space = Space { ops_max: len, schedules: 4, ..Space::new("crash::any_moment", blocks) };
    if row.needs.contains(&Need::Fault) {
        let w = |block, count| GuestOp::Write { block, count, fua: false };
        space.alphabet = vec![w(0,1), GuestOp::Flush, GuestOp::Idle, GuestOp::Read{block:0,count:2}, w(0,2)];
    }
    if row.needs.contains(&Need::Concurrency) { space.depths = vec![2, 3]; space.schedules = 8; }
    space
}

#[test]
fn table() {
    let rows: Vec<Row> = rows().into_iter().filter(needs_crash).filter(|r| std::env::var("VAIO_ROW").map_or(true, |o| r.name == o)).collect();
    let next = Mutex::new(rows.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| loop {
                let Some(row) = next.lock().unwrap().next() else { break };
                one(&row);
            });
        }
    });
}

fn one(row: &Row) {
    let labs = labs(row);
    let start = Instant::now();
    let mut total = 0;
    for len in 1..=3 {
        for lab in &labs {
            let mut seen = Seen::default();
            for small in space(row, len).runs().filter(|s| s.plan.ops() == len) {
                total += 1;
                if let Some(f) = run(lab, &small.plan, &small.tape(), &mut seen).failure {
                    let ops: Vec<_> = f.plan.eras[0].ops.iter().map(|o| o.to_string()).collect();
                    println!("{} expected {} found {} : {} (depth {}, seed {:?}) rule {} runs {} {:?}", row.name, row.smallest, len, ops.join("; "), f.plan.depth, small.seed, f.broken.rule, total, start.elapsed());
                    return;
                }
            }
        }
    }
    println!("{} expected {} NOT FOUND runs {} {:?}", row.name, row.smallest, total, start.elapsed());
}
