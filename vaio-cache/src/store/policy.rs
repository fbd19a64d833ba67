//! What is kept when there is no room for everything. Pure.
//!
//! The shelf is written in order, region after region, so a policy decides about queues and
//! survivors, not about places: where a unit goes when it comes, which queue's oldest region goes,
//! and which of its units are written once more.

use std::fmt::Debug;

/// The two queues of regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// For what is new.
    Small,
    /// For what was asked for again.
    Main,
}

/// Decides what is kept.
pub(crate) trait Policy: Debug + Send {
    /// Where a unit that was missed goes; `None`: it is not kept this time.
    fn admit(&mut self, unit: u32, is_nearly_full: bool) -> Option<Queue>;

    /// The queue whose oldest region goes, of so many regions each.
    fn victim(&self, small: usize, main: usize) -> Queue;

    /// Whether a unit of a region that goes is kept, in the main queue. `is_hit`: it was read since
    /// it was written there.
    fn is_kept(&mut self, unit: u32, from: Queue, is_hit: bool) -> bool;
}

/// S3-FIFO with one hit bit: what is new stays only for a short queue unless it is asked for again;
/// what goes from there is remembered for a while, and on its return goes to the main queue. When
/// the shelf is nearly full, only what was missed before is taken at all.
#[derive(Debug)]
pub(crate) struct S3Fifo {
    /// Fingerprints of what went, or was not taken, by hash; each takes the place of an older one.
    ghost: Vec<u16>,
}

/// One of so many regions is the small queue's.
const SMALL_SHARE: usize = 10;

impl S3Fifo {
    /// For a shelf of so many units.
    pub(crate) fn new(units: usize) -> Self {
        Self {
            ghost: vec![0; units],
        }
    }

    /// Place and fingerprint of a unit; 0 is no fingerprint.
    fn ghost_of(&self, unit: u32) -> (usize, u16) {
        let hash = u64::from(unit).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let [a, b, ..] = hash.to_le_bytes();
        let place = (hash >> 16) % (self.ghost.len() as u64).max(1);
        let place = usize::try_from(place).expect("an index of the table");
        (place, u16::from_le_bytes([a, b]).max(1))
    }

    fn remember(&mut self, unit: u32) {
        let (place, mark) = self.ghost_of(unit);
        if let Some(slot) = self.ghost.get_mut(place) {
            *slot = mark;
        }
    }

    /// Whether it was remembered; it no longer is.
    fn recall(&mut self, unit: u32) -> bool {
        let (place, mark) = self.ghost_of(unit);
        let slot = self.ghost.get_mut(place);
        slot.is_some_and(|slot| *slot == mark && std::mem::take(slot) == mark)
    }
}

impl Policy for S3Fifo {
    fn admit(&mut self, unit: u32, is_nearly_full: bool) -> Option<Queue> {
        if self.recall(unit) {
            return Some(Queue::Main);
        }
        if is_nearly_full {
            self.remember(unit);
            return None;
        }
        Some(Queue::Small)
    }

    fn victim(&self, small: usize, main: usize) -> Queue {
        if small > 0 && (main == 0 || small * SMALL_SHARE > small + main) {
            Queue::Small
        } else {
            Queue::Main
        }
    }

    fn is_kept(&mut self, unit: u32, from: Queue, is_hit: bool) -> bool {
        if !is_hit && from == Queue::Small {
            self.remember(unit);
        }
        is_hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_without_a_hit_comes_back_to_the_main_queue() {
        let mut policy = S3Fifo::new(64);
        assert_eq!(policy.admit(7, false), Some(Queue::Small));
        assert!(!policy.is_kept(7, Queue::Small, false));
        assert_eq!(policy.admit(7, false), Some(Queue::Main));
        assert!(policy.is_kept(7, Queue::Main, true));
        assert_eq!(policy.admit(7, false), Some(Queue::Small), "recalled once");
    }

    #[test]
    fn nearly_full_shelf_takes_what_was_missed_twice() {
        let mut policy = S3Fifo::new(64);
        assert_eq!(policy.admit(9, true), None);
        assert_eq!(policy.admit(9, true), Some(Queue::Main));
    }

    #[test]
    fn small_queue_is_a_tenth() {
        let policy = S3Fifo::new(1);
        assert_eq!(policy.victim(2, 8), Queue::Small);
        assert_eq!(policy.victim(1, 9), Queue::Main);
        assert_eq!(policy.victim(1, 0), Queue::Small);
        assert_eq!(policy.victim(0, 1), Queue::Main);
    }
}
