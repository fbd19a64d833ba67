//! Metrics as Prometheus text, made anew at each question from the disks' own statistics.
//!
//! Counts are exact; times are sampled by the core, and given as quantiles, because the core's
//! histograms are finer than any fixed set of buckets.

pub(crate) mod http;

use std::{fmt, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, text::encode},
    metrics::MetricType,
    registry::Registry,
};
use vaio_core::{Disk, DiskState, DiskStats, Level, Quantiles};

/// How the name of a filter's value ends that only ever grows.
const TOTAL: &str = "_total";

/// The text for these disks.
pub(crate) fn text(disks: &[Disk], nbd_connections: usize) -> String {
    let seen = Seen {
        disks: disks
            .iter()
            .map(|disk| (disk.state(), disk.stats()))
            .collect(),
        ages: disks
            .iter()
            .map(|disk| disk.dirty(Level::BackingDurable).oldest_age)
            .collect(),
        nbd_connections,
    };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(seen));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

/// What was seen of the disks at one moment.
#[derive(Debug)]
struct Seen {
    disks: Vec<(DiskState, DiskStats)>,
    /// Of each disk, the oldest write that is not on the backing.
    ages: Vec<Duration>,
    nbd_connections: usize,
}

type Label<'a> = (&'static str, &'a str);

impl Collector for Seen {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        out.gauge(
            "vaio_nbd_connections",
            "NBD connections now",
            [(Vec::new(), as_f64(self.nbd_connections as u64))],
        )?;
        self.disks(&mut out)?;
        self.ops(&mut out)?;
        self.filters(&mut out)?;
        self.values(&mut out)?;
        self.times(&mut out)
    }
}

impl Seen {
    fn disks(&self, out: &mut Out<'_>) -> fmt::Result {
        let of = |value: fn(&DiskState, &DiskStats) -> u64| {
            self.disks
                .iter()
                .map(move |(state, stats)| (vec![disk(state)], value(state, stats)))
        };
        let gauge = |value| of(value).map(|(labels, value)| (labels, as_f64(value)));
        out.gauge(
            "vaio_disk_capacity_bytes",
            "size as clients see it",
            gauge(|state, _| state.info.capacity),
        )?;
        out.gauge(
            "vaio_disk_dirty_bytes",
            "bytes not yet on the backing",
            gauge(|state, _| state.dirty_bytes),
        )?;
        out.gauge(
            "vaio_disk_dirty_age_seconds",
            "age of the oldest write that is not yet on the backing",
            self.ages(),
        )?;
        out.gauge(
            "vaio_disk_in_flight",
            "IO and background steps in flight",
            gauge(|state, _| state.in_flight),
        )?;
        out.gauge(
            "vaio_disk_orphans",
            "IO in flight whose asker let go",
            gauge(|state, _| state.orphans),
        )?;
        out.counter(
            "vaio_disk_orphaned",
            "IO whose asker let go before it ended",
            of(|_, stats| stats.orphans),
        )?;
        out.counter(
            "vaio_disk_gate_closed",
            "times that the disk admitted no IO",
            of(|_, stats| stats.gate_closed.count),
        )
    }

    fn ops(&self, out: &mut Out<'_>) -> fmt::Result {
        let of = |value: fn(&vaio_core::OpStats) -> u64| {
            self.disks.iter().flat_map(move |(state, stats)| {
                stats
                    .ops
                    .iter()
                    .map(move |op| (vec![disk(state), ("op", op.op.name())], value(op)))
            })
        };
        out.counter("vaio_disk_ios", "IOs that ended", of(|op| op.ios))?;
        out.counter(
            "vaio_disk_bytes",
            "bytes of IOs that ended",
            of(|op| op.bytes),
        )?;
        out.counter("vaio_disk_errors", "IOs that failed", of(|op| op.errors))
    }

    fn filters(&self, out: &mut Out<'_>) -> fmt::Result {
        let layers = || {
            self.disks.iter().flat_map(|(state, stats)| {
                stats
                    .layers
                    .iter()
                    .map(move |layer| (vec![disk(state), ("filter", &*layer.name)], layer))
            })
        };
        out.counter(
            "vaio_filter_ios",
            "IOs that a filter, or the device below all, got",
            layers().flat_map(|(labels, layer)| {
                layer.ios.iter().map(move |(kind, ios)| {
                    let mut labels = labels.clone();
                    labels.push(("op", kind.name()));
                    (labels, *ios)
                })
            }),
        )?;
        out.counter(
            "vaio_filter_errors",
            "IOs that it answered with an error",
            layers().map(|(labels, layer)| (labels, layer.errors)),
        )?;
        out.counter(
            "vaio_filter_faults",
            "breaches of the contract",
            layers().map(|(labels, layer)| (labels, layer.faults)),
        )?;
        let states = || {
            self.disks.iter().flat_map(|(state, _)| {
                state
                    .layers
                    .iter()
                    .map(move |layer| (vec![disk(state), ("filter", &*layer.name)], layer))
            })
        };
        out.gauge(
            "vaio_filter_health",
            "0 active, 1 bypassed, 2 faulted",
            states().map(|(labels, layer)| (labels, f64::from(layer.health as u8))),
        )?;
        out.gauge(
            "vaio_filter_dirty_bytes",
            "bytes that it holds",
            states().map(|(labels, layer)| (labels, as_f64(layer.filter.dirty_bytes))),
        )?;
        out.gauge(
            "vaio_filter_lag_bytes",
            "bytes that its replica lacks",
            states().map(|(labels, layer)| (labels, as_f64(layer.filter.lag_bytes))),
        )?;
        out.gauge(
            "vaio_filter_lag_seconds",
            "age of the oldest write that its replica lacks",
            states().map(|(labels, layer)| (labels, layer.filter.lag.as_secs_f64())),
        )
    }

    /// What filters tell of themselves by name.
    fn values(&self, out: &mut Out<'_>) -> fmt::Result {
        let layers = || {
            let disks = self.disks.iter();
            disks.flat_map(|(state, _)| state.layers.iter().map(move |layer| (state, layer)))
        };
        let values = || {
            layers().flat_map(|(state, layer)| {
                layer.filter.values.iter().map(move |(name, value)| {
                    let labels = vec![disk(state), ("filter", &*layer.name), ("name", *name)];
                    (labels, name.ends_with(TOTAL), *value)
                })
            })
        };
        let gauges = values().filter(|(_, is_count, _)| !is_count);
        out.gauge(
            "vaio_filter_value",
            "what a filter tells of itself by name; the unit is in the name",
            gauges.map(|(labels, _, value)| (labels, as_f64(value))),
        )?;
        let counts = values().filter(|(_, is_count, _)| *is_count);
        out.counter(
            "vaio_filter_count",
            "what a filter counts by name",
            counts.map(|(labels, _, value)| (labels, value)),
        )
    }

    fn ages(&self) -> impl Iterator<Item = (Vec<Label<'_>>, f64)> {
        let seen = self.disks.iter().zip(&self.ages);
        seen.map(|((state, _), age)| (vec![disk(state)], age.as_secs_f64()))
    }

    fn times(&self, out: &mut Out<'_>) -> fmt::Result {
        let ops = self.disks.iter().flat_map(|(state, stats)| {
            stats
                .ops
                .iter()
                .map(move |op| (vec![disk(state), ("op", op.op.name())], op.latency))
        });
        out.gauge(
            "vaio_disk_latency_seconds",
            "from submission to answer (sampled)",
            quantiles(ops),
        )?;
        let closed = self
            .disks
            .iter()
            .map(|(state, stats)| (vec![disk(state)], stats.gate_closed));
        out.gauge(
            "vaio_disk_gate_closed_seconds",
            "how long the disk admitted no IO, each time",
            quantiles(closed),
        )?;
        let layers = || {
            self.disks.iter().flat_map(|(state, stats)| {
                stats
                    .layers
                    .iter()
                    .map(move |layer| (vec![disk(state), ("filter", &*layer.name)], layer))
            })
        };
        let total = layers().map(|(labels, layer)| (labels, layer.total));
        out.gauge(
            "vaio_filter_total_seconds",
            "from the call to the answer (sampled)",
            quantiles(total),
        )?;
        let own = layers().map(|(labels, layer)| (labels, layer.own));
        out.gauge(
            "vaio_filter_own_seconds",
            "the same less the time below it (sampled)",
            quantiles(own),
        )
    }
}

fn disk(state: &DiskState) -> Label<'_> {
    ("disk", &state.name)
}

/// Each histogram as its quantiles; one without values is left out.
fn quantiles<'a>(
    all: impl Iterator<Item = (Vec<Label<'a>>, Quantiles)>,
) -> impl Iterator<Item = (Vec<Label<'a>>, f64)> {
    all.filter(|(_, seen)| seen.count > 0)
        .flat_map(|(labels, seen)| {
            [
                ("0.5", seen.p50_ns),
                ("0.9", seen.p90_ns),
                ("0.99", seen.p99_ns),
                ("0.999", seen.p999_ns),
                ("1", seen.max_ns),
            ]
            .map(|(quantile, nanos)| {
                let mut labels = labels.clone();
                labels.push(("quantile", quantile));
                (labels, Duration::from_nanos(nanos).as_secs_f64())
            })
        })
}

#[expect(
    clippy::cast_precision_loss,
    reason = "metrics are floating point; 53 bits are enough"
)]
fn as_f64(value: u64) -> f64 {
    value as f64
}

/// Writes families.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Vec<Label<'l>>, f64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            if labels.is_empty() {
                family.encode_gauge(&value)?;
                continue;
            }
            family
                .encode_family(&Labels(labels))?
                .encode_gauge(&value)?;
        }
        Ok(())
    }

    fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Vec<Label<'l>>, u64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            family
                .encode_family(&Labels(labels))?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }
}

struct Labels<'a>(Vec<Label<'a>>);

impl EncodeLabelSet for Labels<'_> {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelSetEncoder<'_>,
    ) -> fmt::Result {
        use prometheus_client::encoding::EncodeLabel;
        for label in &self.0 {
            label.encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::HostRuntime;
    use std::sync::Arc;
    use vaio_core::{Io, Policy, RamDisk};

    #[test]
    fn text_tells_of_every_disk_and_filter() {
        let text = HostRuntime::run(|rt| async move {
            let policy = Policy::empty().with(crate::testing::spec("test"));
            let disk = Disk::builder(Arc::new(RamDisk::new(1 << 20)), rt)
                .name("a\"b")
                .policy(policy, crate::testing::registry())
                .open()
                .await
                .unwrap();
            disk.submit(Io::write(0, vec![1; 4096].into()))
                .await
                .unwrap();
            text(&[disk], 3)
        })
        .unwrap();
        for line in [
            "vaio_nbd_connections 3.0",
            r#"vaio_disk_capacity_bytes{disk="a\"b"} 1048576.0"#,
            r#"vaio_disk_ios_total{disk="a\"b",op="write"} 1"#,
            r#"vaio_disk_bytes_total{disk="a\"b",op="write"} 4096"#,
            r#"vaio_filter_health{disk="a\"b",filter="test"} 0.0"#,
            r#"vaio_filter_ios_total{disk="a\"b",filter="device",op="write"} 1"#,
            "# EOF",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} in:\n{text}"
            );
        }
    }
}
