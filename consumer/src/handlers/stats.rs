//! What is counted of a handler's calls: a few atomics a batch, read whenever somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Upper bounds of the duration histogram's buckets, in microseconds; a last one without bound follows.
pub const DURATION_BOUNDS_US: [u64; 16] = [
    1, 5, 10, 50, 100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000,
    10_000_000, 60_000_000,
];

/// Counters of one handler and version; shared by its workers and by all its generations of that version.
#[derive(Debug, Default)]
pub struct HandlerStats {
    buckets: [AtomicU64; DURATION_BOUNDS_US.len() + 1],
    duration_sum_us: AtomicU64,
    batches: AtomicU64,
    panics: AtomicU64,
    restarts: AtomicU64,
    quarantined: AtomicU64,
    in_flight: AtomicU64,
    last_error: Mutex<Option<LastError>>,
}

/// The latest thing that went wrong.
#[derive(Clone, Debug)]
pub struct LastError {
    /// When.
    pub at: SystemTime,
    /// What, as a sentence.
    pub message: Arc<str>,
}

/// The counters at one time.
#[derive(Clone, Debug, Default)]
pub struct HandlerCounts {
    /// Records by duration: bucket `i` holds those of at most [`DURATION_BOUNDS_US`]`[i]`, the last one the rest.
    /// Not cumulative. A record's duration is its call's time divided by the records of the call.
    pub duration_buckets: [u64; DURATION_BOUNDS_US.len() + 1],
    /// Time in calls, in microseconds.
    pub duration_sum_us: u64,
    /// Calls.
    pub batches: u64,
    /// Panics of instances.
    pub panics: u64,
    /// Instances built in place of one that died.
    pub restarts: u64,
    /// Workers given up because of a call that hung, counted since start.
    pub quarantined: u64,
    /// Records that its workers hold now, queued ones too.
    pub in_flight: u64,
    /// The latest thing that went wrong.
    pub last_error: Option<LastError>,
}

impl HandlerStats {
    /// A call of `records` records took `elapsed_us`.
    pub fn called(&self, records: u64, elapsed_us: u64) {
        let each = elapsed_us / records.max(1);
        let bucket = DURATION_BOUNDS_US.partition_point(|&bound| bound < each);
        self.buckets[bucket].fetch_add(records, Ordering::Relaxed);
        self.duration_sum_us
            .fetch_add(elapsed_us, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    /// An instance panicked.
    pub fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// An instance was built in place of one that died.
    pub fn restarted(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// A worker was given up.
    pub fn quarantined(&self) {
        self.quarantined.fetch_add(1, Ordering::Relaxed);
    }

    /// The pool took `records`.
    pub fn took(&self, records: u64) {
        self.in_flight.fetch_add(records, Ordering::Relaxed);
    }

    /// The pool gave `records` back, or up.
    pub fn gave_back(&self, records: u64) {
        self.in_flight.fetch_sub(records, Ordering::Relaxed);
    }

    /// Something went wrong.
    pub fn failed(&self, message: &str) {
        let mut last = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = Some(LastError {
            at: SystemTime::now(),
            message: message.into(),
        });
    }

    /// The counters now; each is exact, together they may be a batch apart.
    pub fn counts(&self) -> HandlerCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut counts = HandlerCounts {
            duration_sum_us: load(&self.duration_sum_us),
            batches: load(&self.batches),
            panics: load(&self.panics),
            restarts: load(&self.restarts),
            quarantined: load(&self.quarantined),
            in_flight: load(&self.in_flight),
            ..HandlerCounts::default()
        };
        for (count, bucket) in counts.duration_buckets.iter_mut().zip(&self.buckets) {
            *count = load(bucket);
        }
        let last = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        counts.last_error.clone_from(&last);
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_fills_one_bucket_by_its_mean_and_bounds_are_inclusive() {
        let stats = HandlerStats::default();
        stats.called(10, 100);
        stats.called(1, 11);
        stats.called(2, 200_000_000);
        let counts = stats.counts();
        assert_eq!(counts.duration_buckets[2], 10, "10 us each");
        assert_eq!(counts.duration_buckets[3], 1);
        assert_eq!(counts.duration_buckets[DURATION_BOUNDS_US.len()], 2);
        assert_eq!((counts.batches, counts.duration_sum_us), (3, 200_000_111));
    }
}
