//! How fast crash images are found, recognised and made. Run it with `--release`.
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::{collections::BTreeSet, time::Instant};

use bytes::Bytes;
use vaio_core::DeviceInfo;
use vaio_testkit::disk::{Change, CrashPoint, Fill, Media, Moments, Tier};

fn media(blocks: u64, mutations: u64, moments: &Moments) -> Media {
    let info = DeviceInfo::new(blocks * 512, 512).with_caps(|caps| caps.volatile_cache = true);
    let mut media = Media::new(info, Fill::Zero);
    for number in 0..mutations {
        let (block, count) = (number * 3 % blocks, 1 + number % 3);
        let block = block.min(blocks - count);
        let fill = u8::try_from(number + 1).unwrap_or(255);
        let data = Bytes::from(vec![fill; usize::try_from(count * 512).unwrap_or(512)]);
        let id = media.submit(block, Change::Write(data), false, moments.next());
        if number % 4 != 3 {
            media.complete(id, moments.next());
        }
    }
    media
}

fn main() {
    let tiers = [&Tier::USUAL[..], &[Tier::Pairs]].concat();
    for (blocks, mutations) in [(4, 5), (8, 8)] {
        let moments = Moments::default();
        let cache = media(blocks, mutations, &moments);
        let backing = media(blocks, 2, &moments);
        let (mut generated, mut unique, mut check) = (0u64, 0u64, 0u64);
        let start = Instant::now();
        while start.elapsed().as_millis() < 1000 {
            let (cache, backing) = (cache.snapshot(), backing.snapshot());
            let point = CrashPoint::new([("cache", &cache), ("backing", &backing)]);
            let mut seen = BTreeSet::new();
            let cases = point.cases(&tiers, &mut |_| 0, &mut |hash| {
                generated += 1;
                seen.insert(hash)
            });
            for case in &cases {
                unique += 1;
                for image in point.images(case) {
                    check ^= image.hash();
                }
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "figure crash_images_per_second_{blocks}_blocks {:.0} (unique and made {:.0}, check {check:x})",
            generated as f64 / seconds,
            unique as f64 / seconds
        );
    }
}
