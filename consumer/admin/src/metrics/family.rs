//! Metric families, in order of first use, and their encoding.

use std::collections::HashMap;

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{Encoder, TextEncoder};
use sluicegate_engine::status::{BOUNDS_US, DurationCounts};

/// Label names and values.
pub(super) type Labels<'a> = [(&'a str, &'a str)];

/// Families under construction.
#[derive(Default)]
pub(super) struct Families {
    families: Vec<MetricFamily>,
    places: HashMap<String, usize>,
}

impl Families {
    /// Adds a counter sample.
    pub(super) fn counter(&mut self, name: &str, help: &str, labels: &Labels<'_>, value: u64) {
        self.counter_f64(name, help, labels, value as f64);
    }

    /// Adds a counter sample. Returns `false` without adding it if the name already has another type.
    pub(super) fn counter_f64(
        &mut self,
        name: &str,
        help: &str,
        labels: &Labels<'_>,
        value: f64,
    ) -> bool {
        let mut counter = Counter::default();
        counter.set_value(value);
        let mut metric = labelled(labels);
        metric.set_counter(counter);
        self.add(name, help, MetricType::COUNTER, metric)
    }

    /// Adds a gauge sample. Returns `false` without adding it if the name already has another type.
    pub(super) fn gauge(
        &mut self,
        name: &str,
        help: &str,
        labels: &Labels<'_>,
        value: f64,
    ) -> bool {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = labelled(labels);
        metric.set_gauge(gauge);
        self.add(name, help, MetricType::GAUGE, metric)
    }

    /// Adds a histogram. Returns `false` without adding it if the name already has another type.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        help: &str,
        labels: &Labels<'_>,
        value: Histogram,
    ) -> bool {
        let mut metric = labelled(labels);
        metric.set_histogram(value);
        self.add(name, help, MetricType::HISTOGRAM, metric)
    }

    fn add(&mut self, name: &str, help: &str, kind: MetricType, metric: Metric) -> bool {
        let place = match self.places.get(name) {
            Some(place) => *place,
            None => {
                let mut family = MetricFamily::default();
                family.set_name(name.to_owned());
                family.set_help(help.to_owned());
                family.set_field_type(kind);
                self.places.insert(name.to_owned(), self.families.len());
                self.families.push(family);
                self.families.len() - 1
            }
        };
        let family = &mut self.families[place];
        let same_kind = family.get_field_type() == kind;
        if same_kind {
            family.mut_metric().push(metric);
        }
        same_kind
    }

    /// Encodes all families.
    pub(super) fn encode(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.families, &mut text) {
            tracing::error!(%error, "metrics cannot be encoded");
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

fn labelled(labels: &Labels<'_>) -> Metric {
    let pairs = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    Metric::from_label(pairs.collect())
}

/// A histogram of seconds.
pub(super) fn seconds_histogram(counts: &DurationCounts) -> Histogram {
    let bounds = BOUNDS_US.iter().map(|bound| *bound as f64 / 1e6);
    let buckets: Vec<(f64, u64)> = bounds.zip(counts.buckets).collect();
    histogram(&buckets, counts.count(), counts.sum_ns as f64 / 1e9)
}

/// A histogram from non-cumulative bucket counts; `count` includes observations above the last bound.
pub(super) fn histogram(buckets: &[(f64, u64)], count: u64, sum: f64) -> Histogram {
    let mut cumulative = 0;
    let buckets = buckets.iter().map(|(bound, within)| {
        cumulative += within;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(cumulative);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(count);
    histogram.set_sample_sum(sum);
    histogram
}
