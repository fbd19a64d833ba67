//! The images that a simulated medium may leave after a crash, against the IO contract itself.
//!
//! [`History`] is the contract of `docs/spec/io-semantics.md` word by word: a list of what
//! happened, and a formula that says what a block may hold. It shares nothing with the kit's
//! media, which keeps no history.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use vaio_core::{DeviceInfo, DiscardReads, Support};
use vaio_testkit::disk::{
    Change, Content, CrashPoint, CrashSpec, Fill, Image, Landing, Media, Moment, MutationId,
    PENDING_MAX, Tier,
};

const BLOCKS: u64 = 3;
const NEVER: Moment = u64::MAX;

/// What a block holds: the byte that fills it. 0 is zeroes.
type Value = u8;

/// What every block of a random run holds at first: not what a discard leaves.
const FIRST: Value = 200;

#[derive(Clone, Debug)]
struct Version {
    blocks: std::ops::Range<u64>,
    value: Value,
    is_discard: bool,
    is_fua: bool,
    submit: Moment,
    /// When it was answered.
    end: Moment,
    is_ok: bool,
}

#[derive(Clone, Debug, Default)]
struct History {
    /// Number 0 is what the disk held at first.
    versions: Vec<Version>,
    /// Flushes: submission, end, success.
    flushes: Vec<(Moment, Moment, bool)>,
    /// Reads: submission, block, version returned.
    reads: Vec<(Moment, u64, usize)>,
    is_stable: bool,
    is_discard_zero: bool,
}

impl History {
    /// A discard that is not yet as good as a write of zeroes on that block.
    fn may_be_undone(&self, version: usize, block: u64) -> bool {
        let was_read = |(_, b, v): &(Moment, u64, usize)| (*b, *v) == (block, version);
        self.versions[version].is_discard
            && !self.is_discard_zero
            && !self.reads.iter().any(was_read)
    }

    fn is_guaranteed(&self, version: usize) -> bool {
        let v = &self.versions[version];
        let covers = |&(submit, end, is_ok): &(Moment, Moment, bool)| {
            // After a failed flush no later flush covers what was acked before the failure.
            let loses =
                |&(_, failed, ok): &(Moment, Moment, bool)| !ok && v.end <= failed && failed < end;
            is_ok && v.end < submit && !self.flushes.iter().any(loses)
        };
        let is_acked = v.is_ok && v.end < NEVER;
        is_acked && (v.is_fua || self.is_stable || self.flushes.iter().any(covers))
    }

    /// The pairs "comes before" on a block, closed transitively.
    fn order(&self, block: u64) -> BTreeSet<(usize, usize)> {
        let on_block: Vec<usize> = (0..self.versions.len())
            .filter(|v| self.versions[*v].blocks.contains(&block))
            .collect();
        let mut pairs = BTreeSet::new();
        for &v in &on_block {
            for &w in &on_block {
                let one = &self.versions[v];
                let by_time = one.end < self.versions[w].submit;
                let by_read = one.is_ok
                    && !self.may_be_undone(v, block)
                    && self.reads.iter().any(|&(submit, b, returned)| {
                        (b, returned) == (block, w) && one.end < submit
                    });
                if v != w && (by_time || by_read) {
                    pairs.insert((v, w));
                }
            }
        }
        loop {
            let step = |&(a, b): &(usize, usize)| {
                let from_b = pairs.range((b, 0)..(b + 1, 0));
                from_b.map(move |&(_, c)| (a, c)).collect::<Vec<_>>()
            };
            let mut more: Vec<_> = pairs.iter().flat_map(step).collect();
            more.retain(|pair| !pairs.contains(pair));
            if more.is_empty() {
                return pairs;
            }
            pairs.extend(more);
        }
    }

    /// What the block may hold after a crash now.
    fn legal(&self, block: u64) -> BTreeSet<Value> {
        let order = self.order(block);
        let removes = |w: usize| self.is_guaranteed(w) && !self.may_be_undone(w, block);
        (0..self.versions.len())
            .filter(|v| self.versions[*v].blocks.contains(&block))
            .filter(|v| !order.iter().any(|(a, w)| a == v && removes(*w)))
            .map(|v| self.versions[v].value)
            .collect()
    }

    fn legal_images(&self) -> BTreeSet<Vec<Value>> {
        let mut images = vec![Vec::new()];
        for block in 0..BLOCKS {
            let legal = self.legal(block);
            let with = |image: &Vec<Value>, value: &Value| [&image[..], &[*value]].concat();
            images = images
                .iter()
                .flat_map(|image| {
                    legal
                        .iter()
                        .map(|value| with(image, value))
                        .collect::<Vec<_>>()
                })
                .collect();
        }
        images.into_iter().collect()
    }
}

/// What a random run does next.
#[derive(Clone, Debug)]
enum Step {
    Submit {
        block: u64,
        count: u64,
        kind: u8,
        is_fua: bool,
    },
    /// Ends one in flight; the mask says per block whether it takes effect where that is free.
    End {
        which: usize,
        is_ok: bool,
        mask: u8,
    },
    FlushBegin,
    FlushEnd {
        is_ok: bool,
    },
    ReadBegin,
    ReadEnd {
        block: u64,
        count: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let blocks = || (0..BLOCKS, 1..=BLOCKS).prop_map(|(b, count)| (b, count.min(BLOCKS - b)));
    prop_oneof![
        4 => (blocks(), 0u8..4, prop::bool::weighted(0.2))
            .prop_map(|((block, count), kind, is_fua)| Step::Submit { block, count, kind, is_fua }),
        4 => (any::<usize>(), prop::bool::weighted(0.85), any::<u8>())
            .prop_map(|(which, is_ok, mask)| Step::End { which, is_ok, mask }),
        1 => Just(Step::FlushBegin),
        1 => prop::bool::weighted(0.8).prop_map(|is_ok| Step::FlushEnd { is_ok }),
        1 => Just(Step::ReadBegin),
        1 => blocks().prop_map(|(block, count)| Step::ReadEnd { block, count }),
    ]
}

/// Drives a medium and the history side by side.
struct Twin {
    media: Media,
    history: History,
    now: Moment,
    flying: Vec<(MutationId, usize)>,
    /// Which version each block shows.
    shown: BTreeMap<u64, usize>,
    flush: Option<Moment>,
    read: Option<Moment>,
    value: Value,
}

impl Twin {
    fn new(is_volatile: bool, reads: DiscardReads) -> Self {
        let info = DeviceInfo::new(BLOCKS * 512, 512).with_caps(|caps| {
            caps.volatile_cache = is_volatile;
            caps.fua = Support::Native;
            caps.discard_reads = reads;
        });
        let first = Version {
            blocks: 0..BLOCKS,
            value: FIRST,
            is_discard: false,
            is_fua: true,
            submit: 0,
            end: 0,
            is_ok: true,
        };
        let mut image = Image::new(BLOCKS, 512, Fill::Zero);
        for block in 0..BLOCKS {
            image.set(block, Content::of(Bytes::from(vec![FIRST; 512])));
        }
        Self {
            media: Media::of_image(info, image),
            history: History {
                versions: vec![first],
                is_stable: !is_volatile,
                is_discard_zero: reads == DiscardReads::Zero,
                ..History::default()
            },
            now: 0,
            flying: Vec::new(),
            shown: (0..BLOCKS).map(|block| (block, 0)).collect(),
            flush: None,
            read: None,
            value: 0,
        }
    }

    fn run(&mut self, steps: &[Step]) {
        for step in steps {
            self.now += 1;
            self.step(step);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Submit {
                block,
                count,
                kind,
                is_fua,
            } => self.submit(block, count, kind, is_fua),
            Step::End { which, is_ok, mask } => self.end(which, is_ok, mask),
            Step::FlushBegin => self.flush = self.flush.or(Some(self.now)),
            Step::FlushEnd { is_ok } => {
                let Some(submitted) = self.flush.take() else {
                    return;
                };
                if is_ok {
                    self.media.flush(submitted);
                } else {
                    self.media.fail_flush(self.now);
                }
                self.history.flushes.push((submitted, self.now, is_ok));
            }
            Step::ReadBegin => self.read = self.read.or(Some(self.now)),
            Step::ReadEnd { block, count } => {
                let Some(submitted) = self.read.take() else {
                    return;
                };
                let data = self.media.read(block, count, submitted);
                for (block, bytes) in (block..).zip(data.chunks(512)) {
                    let version = self.shown[&block];
                    self.history.reads.push((submitted, block, version));
                    assert_eq!(bytes[0], self.history.versions[version].value);
                }
            }
        }
    }

    fn submit(&mut self, block: u64, count: u64, kind: u8, is_fua: bool) {
        self.value += 1;
        let (change, value) = match kind {
            0 => (Change::Discard { count }, 0),
            1 => (
                Change::WriteZeroes {
                    count,
                    may_unmap: true,
                },
                0,
            ),
            _ => {
                let len = usize::try_from(count * 512).unwrap();
                (
                    Change::Write(Bytes::from(vec![self.value; len])),
                    self.value,
                )
            }
        };
        let id = self.media.submit(block, change, is_fua, self.now);
        self.flying.push((id, self.history.versions.len()));
        self.history.versions.push(Version {
            blocks: block..block + count,
            value,
            is_discard: kind == 0,
            is_fua,
            submit: self.now,
            end: NEVER,
            is_ok: true,
        });
    }

    fn end(&mut self, which: usize, is_ok: bool, mask: u8) {
        if self.flying.is_empty() {
            return;
        }
        let (id, version) = self.flying.remove(which % self.flying.len());
        let shows = |block: u64| mask >> block & 1 == 1;
        if is_ok {
            self.media.complete_with(id, self.now, shows);
        } else {
            self.media.fail(id, self.now, shows);
        }
        let v = &mut self.history.versions[version];
        (v.end, v.is_ok) = (self.now, is_ok);
        let is_free = !is_ok || v.is_discard && !self.history.is_discard_zero;
        for block in v.blocks.clone().filter(|block| !is_free || shows(*block)) {
            self.shown.insert(block, version);
        }
    }

    fn point(&self) -> CrashPoint {
        CrashPoint::new([("disk", &self.media.snapshot())])
    }
}

fn values(image: &Image) -> Vec<Value> {
    (0..image.blocks())
        .map(|block| image.block(block)[0])
        .collect()
}

fn images(point: &CrashPoint, tiers: &[Tier]) -> BTreeSet<Vec<Value>> {
    let mut seed = 1u32;
    let mut choose = |n| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % n
    };
    let cases = point.cases(tiers, &mut choose, &mut |_| true);
    cases
        .iter()
        .map(|case| values(&point.images(case)[0]))
        .collect()
}

fn caps() -> impl Strategy<Value = (bool, DiscardReads)> {
    let reads = prop_oneof![Just(DiscardReads::Zero), Just(DiscardReads::OldOrZero)];
    (prop::bool::weighted(0.9), reads)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn crash_images_are_exactly_what_the_contract_allows(
        caps in caps(),
        steps in prop::collection::vec(step(), 1..24),
    ) {
        let mut twin = Twin::new(caps.0, caps.1);
        twin.run(&steps);
        let point = twin.point();
        let legal = twin.history.legal_images();
        let found = images(&point, &[Tier::Exhaustive]);
        prop_assert_eq!(&found, &legal, "history {:#?}", twin.history);
        let tiers = [&Tier::USUAL[..], &[Tier::Pairs, Tier::Random(16)]].concat();
        let others = images(&point, &tiers);
        prop_assert!(others.is_subset(&legal), "{:?}", others.difference(&legal));
        let snapshot = twin.media.snapshot();
        prop_assert!(images(&point, &[Tier::None]).contains(&values(snapshot.durable())));
        prop_assert!(images(&point, &[Tier::Acked]).contains(&values(snapshot.live())));
    }

    #[test]
    fn spec_of_a_case_in_words_makes_the_same_image(
        caps in caps(),
        steps in prop::collection::vec(step(), 1..24),
    ) {
        let mut twin = Twin::new(caps.0, caps.1);
        twin.run(&steps);
        let point = twin.point();
        let mut hashes = BTreeMap::new();
        let tiers = [Tier::Exhaustive, Tier::Torn, Tier::Pairs];
        for case in point.cases(&tiers, &mut |_| 0, &mut |_| true) {
            let image = point.images(&case).remove(0);
            let text = point.spec(&case).to_string();
            let again = point.case(&text.parse::<CrashSpec>().unwrap());
            prop_assert_eq!(again.hash, case.hash, "{}", text);
            prop_assert_eq!(image.hash(), point.images(&again)[0].hash());
            let values = values(&image);
            prop_assert_eq!(hashes.entry(case.hash).or_insert_with(|| values.clone()), &values);
        }
        let distinct: BTreeSet<_> = hashes.values().collect();
        prop_assert_eq!(distinct.len(), hashes.len(), "two hashes of one image");
    }
}

fn write(media: &mut Media, block: u64, value: u8, at: Moment) -> MutationId {
    media.submit(
        block,
        Change::Write(Bytes::from(vec![value; 512])),
        false,
        at,
    )
}

/// A discard that failed, one that was sent after it, and a write beside both that the guest read
/// afterwards: the write came after the second discard, and so after the first.
#[test]
fn what_is_before_a_version_that_a_read_ruled_out_is_ruled_out_too() {
    let discard = |count| Step::Submit {
        block: 0,
        count,
        kind: 0,
        is_fua: false,
    };
    let write = Step::Submit {
        block: 0,
        count: 3,
        kind: 2,
        is_fua: true,
    };
    let end = |which, is_ok| Step::End {
        which,
        is_ok,
        mask: 0,
    };
    let read = [Step::ReadBegin, Step::ReadEnd { block: 0, count: 1 }];
    let steps = [
        discard(1),
        write,
        end(0, false),
        discard(3),
        end(1, true),
        end(0, true),
    ];
    let mut twin = Twin::new(true, DiscardReads::Zero);
    twin.run(&[&steps[..], &read].concat());
    let found = images(&twin.point(), &[Tier::Exhaustive]);
    assert_eq!(found, twin.history.legal_images());
    assert!(found.iter().all(|image| image[0] != 0), "{found:?}");
}

#[test]
fn equal_images_are_found_once() {
    let mut twin = Twin::new(true, DiscardReads::Zero);
    for at in 1..=4 {
        let id = write(&mut twin.media, 0, 7, at * 2);
        twin.media.complete(id, at * 2 + 1);
    }
    let mut seen = BTreeSet::new();
    let mut generated = 0;
    let cases = twin.point().cases(&Tier::USUAL, &mut |_| 0, &mut |hash| {
        generated += 1;
        seen.insert(hash)
    });
    assert_eq!(cases.len(), 2, "old or new");
    assert!(generated > 10, "generated {generated}");
}

#[test]
fn killed_process_leaves_what_was_acknowledged_and_power_cut_need_not() {
    let mut twin = Twin::new(true, DiscardReads::Zero);
    let acked = write(&mut twin.media, 0, 1, 1);
    twin.media.complete(acked, 2);
    write(&mut twin.media, 1, 2, 3);
    write(&mut twin.media, 2, 3, 4);
    twin.media.kill(5, |m| {
        if m.block() == 1 {
            Landing::Lands
        } else {
            Landing::Lost
        }
    });
    assert_eq!(values(twin.media.live()), [1, 2, FIRST]);
    assert_eq!(values(twin.media.durable()), [FIRST, FIRST, FIRST]);
    assert_eq!(
        images(&twin.point(), &[Tier::Exhaustive]).len(),
        4,
        "both still volatile"
    );
    twin.media.flush(6);
    assert_eq!(
        values(twin.media.durable()),
        [1, 2, FIRST],
        "a flush covers what landed"
    );
}

#[test]
fn what_failed_or_was_undecided_is_what_the_next_process_reads() {
    let what: [fn(&mut Media, bool); 3] = [
        |media, is_shown| {
            let discard = media.submit(0, Change::Discard { count: 1 }, false, 1);
            media.complete_with(discard, 2, |_| is_shown);
        },
        |media, is_shown| {
            let failed = write(media, 0, 7, 1);
            media.fail(failed, 2, |_| is_shown);
        },
        |media, _| {
            let dropped = write(media, 0, 7, 1);
            media.complete(dropped, 2);
            media.fail_flush(3);
        },
    ];
    for leave_undecided in what {
        for is_shown in [true, false] {
            let mut twin = Twin::new(true, DiscardReads::OldOrZero);
            leave_undecided(&mut twin.media, is_shown);
            twin.media.flush(4);
            let images_now = |twin: &Twin| images(&twin.point(), &[Tier::Exhaustive]).len();
            assert_eq!(images_now(&twin), 2, "a flush does not decide it");
            twin.media.hand_over();
            twin.media.flush(5);
            assert_eq!(images_now(&twin), 1, "the next owner's flush does");
            assert_eq!(twin.media.live().block(0), twin.media.durable().block(0));
        }
    }
}

#[test]
fn discard_that_was_written_over_does_not_come_back_when_the_disk_is_taken_over() {
    let mut twin = Twin::new(true, DiscardReads::OldOrZero);
    let discard = twin.media.submit(0, Change::Discard { count: 2 }, false, 1);
    twin.media.complete_with(discard, 2, |_| true);
    let change = Change::Write(Bytes::from(vec![7; 512]));
    let over = twin.media.submit(0, change, true, 3);
    twin.media.complete(over, 4);
    twin.media.hand_over();
    twin.media.flush(5);
    assert_eq!(twin.media.durable().block(0), twin.media.live().block(0));
    assert_eq!(images(&twin.point(), &[Tier::Exhaustive]).len(), 1);
}

#[test]
fn orphan_lands_after_newer_data() {
    let mut twin = Twin::new(true, DiscardReads::Zero);
    let orphan = write(&mut twin.media, 0, 1, 1);
    twin.media.kill(2, |_| Landing::Orphaned);
    let newer = write(&mut twin.media, 0, 2, 3);
    twin.media.complete(newer, 4);
    twin.media.complete(orphan, 5);
    assert_eq!(values(twin.media.live()), [1, FIRST, FIRST]);
}

#[test]
fn failed_flush_drops_what_it_should_have_covered() {
    let mut twin = Twin::new(true, DiscardReads::Zero);
    let lost = write(&mut twin.media, 0, 1, 1);
    twin.media.complete(lost, 2);
    twin.media.fail_flush(4);
    let kept = write(&mut twin.media, 1, 2, 5);
    twin.media.complete(kept, 6);
    twin.media.flush(7);
    assert_eq!(
        values(twin.media.live()),
        [1, 2, FIRST],
        "readers still see it"
    );
    assert_eq!(values(twin.media.durable()), [FIRST, 2, FIRST]);
    twin.media.flush(8);
    assert!(
        images(&twin.point(), &[Tier::None]).contains(&vec![FIRST, 2, FIRST]),
        "for ever"
    );
}

#[test]
fn torn_tier_cuts_inside_one_write() {
    let mut twin = Twin::new(true, DiscardReads::Zero);
    let data = Bytes::from(vec![9; 1536]);
    let id = twin.media.submit(0, Change::Write(data), false, 1);
    twin.media.complete(id, 2);
    let torn = images(&twin.point(), &[Tier::Torn]);
    let expected = [
        [9, FIRST, FIRST],
        [9, 9, FIRST],
        [FIRST, 9, 9],
        [FIRST, FIRST, 9],
    ];
    assert_eq!(torn, expected.into_iter().map(Vec::from).collect());
}

#[test]
fn disks_that_fail_together_share_one_order() {
    let mut cache = Twin::new(true, DiscardReads::Zero);
    let mut backing = Twin::new(true, DiscardReads::Zero);
    write(&mut cache.media, 0, 1, 1);
    write(&mut backing.media, 0, 2, 2);
    write(&mut cache.media, 1, 3, 3);
    let (cache, backing) = (cache.media.snapshot(), backing.media.snapshot());
    let point = CrashPoint::new([("cache", &cache), ("backing", &backing)]);
    let cases = point.cases(&[Tier::Prefix], &mut |_| 0, &mut |_| true);
    let found: Vec<_> = cases
        .iter()
        .map(|case| {
            let images = point.images(case);
            (
                point.spec(case).to_string(),
                values(&images[0]),
                values(&images[1]),
            )
        })
        .collect();
    let expected = [
        (
            "cache: keep w1; backing: keep none",
            vec![1, FIRST, FIRST],
            vec![FIRST, FIRST, FIRST],
        ),
        (
            "cache: keep w1; backing: keep all",
            vec![1, FIRST, FIRST],
            vec![2, FIRST, FIRST],
        ),
        (
            "cache: keep all; backing: keep all",
            vec![1, 3, FIRST],
            vec![2, FIRST, FIRST],
        ),
    ];
    let expected: Vec<_> = expected.map(|(s, a, b)| (s.to_owned(), a, b)).into();
    assert_eq!(found, expected);
}

#[test]
fn too_many_outcomes_are_not_made_exhaustively() {
    let info = DeviceInfo::new(64 * 512, 512).with_caps(|caps| caps.volatile_cache = true);
    let mut media = Media::new(info, Fill::Zero);
    let count = |media: &Media| {
        let point = CrashPoint::new([("disk", &media.snapshot())]);
        point
            .cases(&[Tier::Exhaustive], &mut |_| 0, &mut |_| true)
            .len()
    };
    for block in 0..14 {
        write(&mut media, block, 1, 1);
    }
    assert_eq!(count(&media), 1 << 14);
    write(&mut media, 14, 1, 1);
    assert_eq!(count(&media), 0);
}

#[test]
fn power_cut_leaves_nothing_pending() {
    let mut twin = Twin::new(true, DiscardReads::Zero);
    let acked = write(&mut twin.media, 0, 1, 1);
    twin.media.complete(acked, 2);
    write(&mut twin.media, 1, 2, 3);
    let image = twin.media.durable().clone();
    twin.media.lose_power(image);
    assert_eq!(twin.media.pending().count(), 0);
    assert_eq!(
        images(&twin.point(), &[Tier::Exhaustive]),
        BTreeSet::from([vec![FIRST; 3]]),
        "what was lost does not come back in the next crash"
    );
}

#[test]
fn full_cache_writes_its_oldest_back_by_itself() {
    let mut twin = Twin::new(true, DiscardReads::Zero);
    let mut at = 0;
    let mut one_more = |media: &mut Media, block, value| {
        at += 2;
        let id = write(media, block, value, at);
        media.complete(id, at + 1);
    };
    one_more(&mut twin.media, 0, 1);
    for _ in 1..PENDING_MAX {
        one_more(&mut twin.media, 1, 2);
    }
    assert_eq!(values(twin.media.durable()), [FIRST, FIRST, FIRST]);
    one_more(&mut twin.media, 1, 3);
    assert_eq!(values(twin.media.durable()), [1, FIRST, FIRST]);
    assert_eq!(twin.media.pending().count(), PENDING_MAX);
}

#[test]
fn failed_write_stays_possible_after_a_read_of_what_was_in_flight_with_it() {
    let mut twin = Twin::new(true, DiscardReads::Zero);
    let failed = write(&mut twin.media, 0, 1, 1);
    let other = write(&mut twin.media, 0, 2, 2);
    twin.media.fail(failed, 3, |_| false);
    twin.media.complete(other, 4);
    assert_eq!(twin.media.read(0, 1, 5)[0], 2);
    twin.media.flush(6);
    let left = images(&twin.point(), &[Tier::Exhaustive]);
    assert!(left.contains(&vec![1, FIRST, FIRST]), "{left:?}");
    assert_eq!(left.len(), 2, "the old content is gone");
}

#[test]
fn crash_does_not_decide_on_what_is_durable() {
    let mut twin = Twin::new(true, DiscardReads::Zero);
    let durable = write(&mut twin.media, 0, 1, 1);
    write(&mut twin.media, 0, 2, 2);
    twin.media.complete(durable, 3);
    twin.media.flush(4);
    assert_eq!(twin.media.pending().count(), 2, "in flight together");
    assert_eq!(twin.point().mutations(), 1);
}

#[test]
fn all_but_one_and_one_only_are_just_that() {
    let mut twin = Twin::new(true, DiscardReads::Zero);
    for block in 0..3 {
        let id = write(&mut twin.media, block, 9, 1 + block * 2);
        twin.media.complete(id, 2 + block * 2);
    }
    let each = |one: u8, rest: u8| {
        (0..3).map(move |at| (0..3).map(|b| if b == at { one } else { rest }).collect())
    };
    let only: BTreeSet<Vec<Value>> = each(9, FIRST).collect();
    let but: BTreeSet<Vec<Value>> = each(FIRST, 9).collect();
    assert_eq!(images(&twin.point(), &[Tier::KeepOne]), only);
    assert_eq!(images(&twin.point(), &[Tier::DropOne]), but);
}
