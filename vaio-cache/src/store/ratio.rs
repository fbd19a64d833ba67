//! How often the shelf has what is asked for, beside an exact LRU of as many units, on two synthetic
//! traces of a public shape. Prints `figure` lines.

use std::collections::{BTreeMap, HashMap};

use super::{
    policy::S3Fifo,
    shelf::{Leaving, Shelf},
};
use crate::geometry::{Geometry, Sizes, Span, index};

/// Units of the disk, and of the cache: a tenth.
const DISK_UNITS: u32 = 200_000;
const REGIONS: u64 = 80;
const ACCESSES: usize = 600_000;

/// A seeded generator: the same traces everywhere.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From 0 to before 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits")]
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Units in the order of how often they are asked for: the probability of rank n falls as n to the
/// power of `skew`.
struct Zipf {
    sums: Vec<f64>,
}

impl Zipf {
    fn new(skew: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=DISK_UNITS).map(|rank| {
            sum += f64::from(rank).powf(-skew);
            sum
        });
        Self {
            sums: sums.collect(),
        }
    }

    fn unit(&self, chance: &mut Chance) -> u32 {
        let at = chance.fraction() * self.sums[self.sums.len() - 1];
        let rank = self.sums.partition_point(|sum| *sum < at);
        // Spread over the disk.
        let rank = u64::try_from(rank).expect("a rank");
        u32::try_from(rank * 73_939_133 % u64::from(DISK_UNITS)).expect("a unit")
    }
}

/// One of a hundred accesses begins to read a stretch of the disk, in order.
fn trace(zipf: &Zipf, with_scans: bool) -> Vec<u32> {
    let mut chance = Chance(0x5eed);
    let mut trace = Vec::with_capacity(ACCESSES);
    while trace.len() < ACCESSES {
        trace.push(zipf.unit(&mut chance));
        if with_scans && chance.next().is_multiple_of(100) {
            let start = u32::try_from(chance.next() % u64::from(DISK_UNITS)).expect("a unit");
            trace.extend((start..start + 100).map(|unit| unit % DISK_UNITS));
        }
    }
    trace
}

struct Lru {
    units: usize,
    by_unit: HashMap<u32, usize>,
    by_time: BTreeMap<usize, u32>,
}

impl Lru {
    fn is_hit(&mut self, unit: u32, now: usize) -> bool {
        let before = self.by_unit.insert(unit, now);
        self.by_time.insert(now, unit);
        if let Some(before) = before {
            self.by_time.remove(&before);
            return true;
        }
        if self.by_unit.len() > self.units
            && let Some((_, unit)) = self.by_time.pop_first()
        {
            self.by_unit.remove(&unit);
        }
        false
    }
}

/// Survivors are written again, as the task does that fills.
fn save(shelf: &mut Shelf, leaving: &Leaving) {
    for (unit, from, crc) in &leaving.kept {
        let room = shelf
            .take(super::policy::Queue::Main, 1)
            .expect("a spare region");
        shelf.moved(*from, (*unit, room.place, *crc));
        shelf.unpin(room.region);
    }
    shelf.left(leaving);
}

fn is_hit(shelf: &mut Shelf, unit: u32) -> bool {
    if shelf.find(unit).is_some() {
        return true;
    }
    let Some(queue) = shelf.admit(unit) else {
        return false;
    };
    while shelf.is_full() {
        let leaving = shelf.leave().expect("regions are full");
        save(shelf, &leaving);
    }
    let span = Span {
        start: unit.into(),
        count: 1,
    };
    let token = shelf.permit(span).expect("nothing changes");
    let room = shelf.take(queue, 1).expect("there is room");
    shelf.publish(token, &[(unit, room.place, 0)]);
    shelf.unpin(room.region);
    false
}

/// Hits of a hundred accesses of the second half: ours, and those of an LRU.
fn ratios(trace: &[u32]) -> (f64, f64) {
    let sizes = Sizes::default().with_read_percent(90);
    let capacity = 4096 * (2 + 3 * 1024 + REGIONS * 256 + 1023);
    let mut geometry = Geometry::new(4096, capacity, &sizes).expect("a layout");
    geometry.regions = u32::try_from(REGIONS).expect("few");
    let units = index(geometry.store_units());
    let mut shelf = Shelf::new(geometry, Box::new(S3Fifo::new(units)));
    let mut lru = Lru {
        units,
        by_unit: HashMap::new(),
        by_time: BTreeMap::new(),
    };
    let (mut ours, mut theirs) = (0u32, 0u32);
    for (now, unit) in trace.iter().enumerate() {
        let (one, other) = (is_hit(&mut shelf, *unit), lru.is_hit(*unit, now));
        if now >= trace.len() / 2 {
            ours += u32::from(one);
            theirs += u32::from(other);
        }
    }
    let counted = u32::try_from(trace.len() - trace.len() / 2).expect("few");
    let percent = |hits: u32| f64::from(hits) * 100.0 / f64::from(counted);
    (percent(ours), percent(theirs))
}

#[test]
fn shelf_hits_more_often_than_an_lru_of_as_many_units() {
    let zipf = Zipf::new(0.9);
    let (ours, theirs) = ratios(&trace(&zipf, false));
    println!("figure hit_ratio_zipf_s3fifo {ours:.1} %");
    println!("figure hit_ratio_zipf_lru {theirs:.1} %");
    assert!(ours > theirs, "zipf: {ours} {theirs}");
    let (ours, theirs) = ratios(&trace(&zipf, true));
    println!("figure hit_ratio_scan_zipf_s3fifo {ours:.1} %");
    println!("figure hit_ratio_scan_zipf_lru {theirs:.1} %");
    assert!(ours > theirs * 1.05, "scans: {ours} {theirs}");
}
