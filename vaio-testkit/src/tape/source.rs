//! Where the values of a tape come from.

use super::{FAMILIES, Family, odometer::Wheel};

/// One of the five origins of choices.
#[derive(Debug)]
pub(super) enum Source {
    /// Always 0.
    Benign,
    /// One stream of random numbers per family, so that a draw more in one moves no other.
    Random([SplitMix; FAMILIES]),
    /// A fuzzer's bytes, then 0.
    Bytes { data: Box<[u8]>, at: usize },
    /// What a plan says; kept with each name.
    Replay,
    /// An odometer's path; it grows as choices are asked.
    Wheels {
        path: Vec<Wheel>,
        at: usize,
        depth_max: usize,
        has_diverged: bool,
    },
}

impl Source {
    pub(super) fn random(seed: u64) -> Self {
        Self::Random(std::array::from_fn(|family| {
            SplitMix(mix(seed ^ mix(family as u64 + 1)))
        }))
    }

    pub(super) fn wheels(path: Vec<Wheel>, depth_max: usize) -> Self {
        Self::Wheels {
            path,
            at: 0,
            depth_max,
            has_diverged: false,
        }
    }

    /// The next value below `options`, which is at least 2. `one_in`: how rare a draw is; only
    /// random numbers heed it. `planned`: what a plan says.
    pub(super) fn draw(&mut self, options: u32, family: Family, one_in: u32, planned: u32) -> u32 {
        match self {
            Self::Benign => 0,
            Self::Random(streams) => {
                let stream = &mut streams[family as usize];
                if one_in > 1 && stream.below(one_in) != 0 {
                    return 0;
                }
                stream.below(options)
            }
            Self::Bytes { data, at } => draw_bytes(data, at, options),
            // The code may offer fewer options than when the plan was made.
            Self::Replay => planned.min(options - 1),
            Self::Wheels {
                path,
                at,
                depth_max,
                has_diverged,
            } => {
                let here = *at;
                if here >= *depth_max {
                    return 0;
                }
                *at += 1;
                if path.get(here).is_some_and(|wheel| wheel.options != options) {
                    *has_diverged = true;
                    path.truncate(here);
                }
                if here == path.len() {
                    path.push(Wheel { value: 0, options });
                }
                path[here].value
            }
        }
    }
}

/// One byte for a small choice, four for one with more than 256 options; no byte left means 0.
fn draw_bytes(data: &[u8], at: &mut usize, options: u32) -> u32 {
    let width = if options <= 256 { 1 } else { 4 };
    let rest = &data[(*at).min(data.len())..];
    let taken = &rest[..width.min(rest.len())];
    *at += taken.len();
    let value = taken
        .iter()
        .rev()
        .fold(0, |sum, byte| (sum << 8) | u32::from(*byte));
    value % options
}

/// A small generator of random numbers: a counter with an odd step, well mixed.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl SplitMix {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A number below `limit`, by multiplication: the bias is below 2^-32.
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        let high = self.next() >> 32;
        u32::try_from((high * u64::from(limit)) >> 32).expect("the product is below the limit")
    }
}

/// Spreads every bit of `value` over the result; a bijection.
pub(crate) const fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_consumed_in_order_then_zero() {
        let mut source = Source::Bytes {
            data: [5, 1, 2, 0, 0, 9].into(),
            at: 0,
        };
        let mut draw = |options| source.draw(options, Family::Op, 1, 0);
        assert_eq!(draw(4), 1);
        assert_eq!(draw(1000), 0x201);
        assert_eq!(draw(256), 9);
        assert_eq!((draw(256), draw(1000)), (0, 0));
    }

    #[test]
    fn numbers_below_a_limit_reach_all_of_it() {
        let mut random = SplitMix::new(7);
        let mut counts = [0u32; 5];
        for _ in 0..5000 {
            counts[random.below(5) as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (800..1200).contains(count)),
            "{counts:?}"
        );
    }
}
