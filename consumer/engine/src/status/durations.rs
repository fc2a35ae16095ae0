//! Handler processing times: a histogram updated once per batch.

use std::sync::atomic::{AtomicU64, Ordering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets in microseconds; longer times fall into one more, unbounded bucket.
pub const BOUNDS_US: [u64; 16] = [
    1, 2, 5, 10, 25, 50, 100, 250, 1_000, 5_000, 10_000, 50_000, 250_000, 1_000_000, 5_000_000,
    30_000_000,
];

/// Number of buckets, including the unbounded one.
pub const BUCKETS: usize = BOUNDS_US.len() + 1;

/// A histogram of time per record, shared by the threads of a pool. A batch costs two relaxed additions.
#[derive(Debug, Default)]
pub struct Durations {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Durations {
    /// An empty histogram.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a batch of `records` records that took `elapsed_ns` in total; the time is divided evenly among them.
    pub fn observe(&self, elapsed_ns: u64, records: u64) {
        if records == 0 {
            return;
        }
        let each_ns = elapsed_ns / records;
        let bucket = BOUNDS_US.partition_point(|bound| bound * 1_000 < each_ns);
        self.buckets[bucket].fetch_add(records, Ordering::Relaxed);
        self.sum_ns.fetch_add(elapsed_ns, Ordering::Relaxed);
    }

    /// The counts so far.
    pub fn counts(&self) -> DurationCounts {
        DurationCounts {
            buckets: std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed)),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        }
    }
}

/// A snapshot of a [`Durations`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DurationCounts {
    /// Records per bucket of [`BOUNDS_US`]; not cumulative.
    pub buckets: [u64; BUCKETS],
    /// Total time of all records, in nanoseconds.
    pub sum_ns: u64,
}

impl DurationCounts {
    /// Adds another histogram's counts.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.sum_ns += other.sum_ns;
    }

    /// Number of records.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Upper bound in microseconds of the bucket that contains the quantile `share` (0 to 1). `None` without records, and
    /// for the unbounded bucket.
    pub fn quantile_us(&self, share: f64) -> Option<u64> {
        let count = self.count();
        let wanted = (count as f64 * share).ceil() as u64;
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|n| {
            seen += n;
            seen >= wanted.max(1)
        })?;
        BOUNDS_US.get(bucket).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_batch_is_divided_evenly_among_its_records() {
        let durations = Durations::new();
        durations.observe(256_000, 256);
        durations.observe(40_000_000_000, 1);
        durations.observe(5, 0);
        let counts = durations.counts();
        assert_eq!(counts.count(), 257);
        assert_eq!(counts.buckets[0], 256, "1 µs is within the first bound");
        assert_eq!(counts.buckets[BUCKETS - 1], 1);
        assert_eq!(counts.sum_ns, 40_000_256_000);
        assert_eq!(counts.quantile_us(0.5), Some(1));
        assert_eq!(counts.quantile_us(1.0), None);
        assert_eq!(DurationCounts::default().quantile_us(0.5), None);
    }
}
