//! Ordered targets: is the image of a target the source at some moment?
//!
//! Each version of a block is what the source may show during a span of moments: from its submission
//! until something after it was acknowledged ([`Promise::Ordered`]), or became guaranteed
//! ([`Promise::OrderedByFlush`]). An image is a cut iff one moment lies in the spans of all blocks.
//! Where every value names one version that is one pass: the latest beginning must not pass the
//! earliest end, and the two blocks that force them are the explanation. Zeroes and content that a
//! crash left have several spans: those blocks are swept afterwards.
//!
//! A cut cannot see whether source and target chose the same winner of overlapping writes: compare
//! their bytes when quiet.

use std::collections::BTreeMap;

use vaio_core::Promise;

use super::history::{History, Moment, NEVER};
use super::spans::{Content, Span, SpanTable};
use super::violation::{Detail, Rule, Violation};
use super::{Oracle, Value};
use crate::workload::GuestOp;

/// The moments at which the source was what a target shows. Both ends are included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The earliest that is not before an earlier target's cut.
    pub earliest: Moment,
    /// The latest; [`NEVER`] if the target lacks nothing.
    pub latest: Moment,
}

impl Cut {
    /// By how many events the target is behind.
    pub fn behind(&self, now: Moment) -> Moment {
        now.saturating_sub(self.latest)
    }
}

/// Checks the images of one target, one after the other: their cuts never go back.
#[derive(Clone, Debug)]
pub struct OrderedCheck {
    promise: Promise,
    run: u32,
    history: History,
    table: SpanTable,
    floor: Moment,
}

/// A moment and the block that forces it.
#[derive(Clone, Copy, Debug)]
struct Bound {
    moment: Moment,
    block: u64,
}

impl OrderedCheck {
    /// For targets of the source that `oracle` watches, as it is now.
    pub fn new(oracle: &Oracle) -> Self {
        Self::keeping(oracle, oracle.settings().promise)
    }

    /// For targets that keep another promise than the source makes to its guest.
    pub fn keeping(oracle: &Oracle, promise: Promise) -> Self {
        let mut settings = *oracle.settings();
        settings.promise = promise;
        Self {
            promise,
            run: settings.run,
            history: oracle.history().clone(),
            table: SpanTable::new(oracle.history(), &settings),
            floor: 0,
        }
    }

    /// The source has gone on.
    pub fn update(&mut self, oracle: &Oracle) {
        *self = Self {
            floor: self.floor,
            ..Self::keeping(oracle, self.promise)
        };
    }

    /// Check an image: the value of every block in order.
    ///
    /// # Errors
    /// It is the source at no moment, or only at moments before an earlier image.
    ///
    /// # Panics
    /// If it has another number of blocks than the source.
    pub fn check(&mut self, image: &[Value]) -> Result<Cut, Violation> {
        assert_eq!(
            image.len(),
            self.table.blocks(),
            "an image has every block of the source"
        );
        let (mut low, mut high) = (
            Bound {
                moment: 0,
                block: 0,
            },
            Bound {
                moment: NEVER,
                block: 0,
            },
        );
        let mut several = Vec::new();
        for (value, block) in image.iter().zip(0u64..) {
            if let Some(span) = self.table.only(block, value, self.run) {
                if span.low > low.moment {
                    low = Bound {
                        moment: span.low,
                        block,
                    };
                }
                if span.high < high.moment {
                    high = Bound {
                        moment: span.high,
                        block,
                    };
                }
                continue;
            }
            let union = self.table.union(block, value, self.run);
            if union.is_empty() {
                return Err(self.unknown(block, *value));
            }
            several.push((block, union));
        }
        let cut = if low.moment > high.moment {
            Err((low, high))
        } else if several.is_empty() {
            Ok(Cut {
                earliest: low.moment,
                latest: high.moment,
            })
        } else {
            sweep(low, high, &several)
        };
        let cut = cut.map_err(|(low, high)| self.no_cut(image, low, high))?;
        self.after_floor(cut, low, high, &several, image)
    }

    /// Successive cuts do not go back: the earliest possible is taken each time.
    fn after_floor(
        &mut self,
        cut: Cut,
        mut low: Bound,
        high: Bound,
        several: &[(u64, Vec<Span>)],
        image: &[Value],
    ) -> Result<Cut, Violation> {
        let cut = if cut.earliest >= self.floor {
            Some(cut)
        } else if self.floor > cut.latest {
            None
        } else {
            low.moment = self.floor;
            sweep(low, high, several).ok()
        };
        let cut = cut.ok_or_else(|| self.went_back(image, high))?;
        self.floor = cut.earliest;
        Ok(cut)
    }

    fn describe(&self, block: u64, value: &Value) -> String {
        self.history.describe_value(self.run, block, value)
    }

    fn no_cut(&self, image: &[Value], low: Bound, high: Bound) -> Violation {
        let show = |block: u64| {
            let index = usize::try_from(block).expect("the block is in the image");
            self.describe(block, &image[index])
        };
        let ended = self
            .history
            .ops()
            .find(|(_, record)| record.end == high.moment);
        let lacks = ended.map_or_else(String::new, |(id, record)| {
            let what = if record.op == GuestOp::Flush {
                "what was covered by "
            } else {
                ""
            };
            format!(", so it lacks {what}{}", self.history.describe(id))
        });
        self.violation(Rule::OutOfOrderCut, low.block, Some(image), format!(
            "block {} shows {}, which no cut before {} has; block {} shows {}, which no cut after {} has{lacks}",
            low.block, show(low.block), low.moment, high.block, show(high.block), high.moment,
        ))
    }

    fn went_back(&self, image: &[Value], high: Bound) -> Violation {
        let floor = self.floor;
        let why =
            format!("an earlier image was the source at {floor} or later, this one only before");
        self.violation(Rule::CutWentBack, high.block, Some(image), why)
    }

    fn unknown(&self, block: u64, value: Value) -> Violation {
        let rule = match value {
            Value::Torn { .. } => Rule::TornBlock,
            Value::Stamp(stamp) if stamp.run != self.run => Rule::Foreign,
            Value::Stamp(stamp) if stamp.block != block => Rule::Misdirected,
            Value::Fill(of) if of != block => Rule::Misdirected,
            _ if self.table.is_untouched(block) => Rule::UntouchedChanged,
            _ => Rule::Corrupt,
        };
        let mut violation =
            self.violation(rule, block, None, "the source never showed it".to_owned());
        violation.set_found(value, self.describe(block, &value));
        violation
    }

    fn violation(&self, rule: Rule, block: u64, image: Option<&[Value]>, why: String) -> Violation {
        let found = image
            .and_then(|image| image.get(usize::try_from(block).ok()?))
            .copied();
        Violation::new(Detail {
            rule,
            promise: self.promise,
            block,
            found,
            legal: Vec::new(),
            reads: found.map_or_else(String::new, |value| self.describe(block, &value)),
            expected: "what the source showed at one moment, the same for all blocks".to_owned(),
            why,
        })
    }
}

/// The moments within `low..=high` that lie in a span of each block, or the bounds that exclude it.
fn sweep(low: Bound, high: Bound, several: &[(u64, Vec<Span>)]) -> Result<Cut, (Bound, Bound)> {
    if low.moment > high.moment {
        return Err((low, high));
    }
    // How many more blocks fit from a moment on: spans of one block do not touch.
    let mut steps = BTreeMap::from([(low.moment, 0i64)]);
    for (_, union) in several {
        for span in union {
            let (from, to) = (span.low.max(low.moment), span.high.min(high.moment));
            if from <= to {
                *steps.entry(from).or_default() += 1;
            }
            if from <= to && to < high.moment {
                *steps.entry(to + 1).or_default() -= 1;
            }
        }
    }
    let all = i64::try_from(several.len()).expect("blocks fit");
    let ends = steps
        .keys()
        .skip(1)
        .map(|next| next - 1)
        .chain([high.moment]);
    let (mut depth, mut best, mut fullest) = (0, low.moment, -1);
    let mut cut: Option<Cut> = None;
    for ((moment, step), end) in steps.iter().zip(ends) {
        depth += step;
        if depth == all {
            cut = Some(Cut {
                earliest: cut.map_or(*moment, |cut| cut.earliest),
                latest: end,
            });
        }
        if depth > fullest {
            (fullest, best) = (depth, *moment);
        }
    }
    cut.ok_or_else(|| witness(best, low, high, several))
}

/// At the moment that fits most blocks: one that does not fit, and what forces the moment.
fn witness(best: Moment, low: Bound, high: Bound, several: &[(u64, Vec<Span>)]) -> (Bound, Bound) {
    let fits = |union: &[Span]| {
        union
            .iter()
            .any(|span| span.low <= best && best <= span.high)
    };
    let odd = several.iter().find(|(_, union)| !fits(union));
    let Some((block, union)) = odd else {
        return (low, high);
    };
    // Before its first span after `best`, or after its last one before.
    if let Some(next) = union.iter().find(|span| span.low > best) {
        return (
            Bound {
                moment: next.low,
                block: *block,
            },
            earliest_end(best, high, several),
        );
    }
    let last = union.last().map_or(low.moment, |span| span.high);
    (
        latest_start(best, low, several),
        Bound {
            moment: last,
            block: *block,
        },
    )
}

fn earliest_end(best: Moment, high: Bound, several: &[(u64, Vec<Span>)]) -> Bound {
    let ends = several.iter().filter_map(|(block, union)| {
        let span = union
            .iter()
            .find(|span| span.low <= best && best <= span.high)?;
        Some(Bound {
            moment: span.high,
            block: *block,
        })
    });
    ends.fold(high, |least, end| {
        if end.moment < least.moment {
            end
        } else {
            least
        }
    })
}

fn latest_start(best: Moment, low: Bound, several: &[(u64, Vec<Span>)]) -> Bound {
    let starts = several.iter().filter_map(|(block, union)| {
        let span = union
            .iter()
            .find(|span| span.low <= best && best <= span.high)?;
        Some(Bound {
            moment: span.low,
            block: *block,
        })
    });
    starts.fold(low, |most, start| {
        if start.moment > most.moment {
            start
        } else {
            most
        }
    })
}

impl Content {
    /// What a value names in a block's table; `None` if the source cannot have shown it there.
    pub(super) fn of(value: &Value, block: u64, run: u32) -> Option<Self> {
        match value {
            Value::Zero => Some(Self::Zero),
            Value::Fill(of) if *of == block => Some(Self::Fill),
            Value::Stamp(stamp) if stamp.run == run && stamp.block == block => {
                Some(Self::Op(stamp.op))
            }
            _ => None,
        }
    }
}
