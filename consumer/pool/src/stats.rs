//! Counters of a handler's calls: a few atomic operations per batch, readable at any time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sluicegate_engine::emit::EmitCounts;
use sluicegate_engine::status::{DurationCounts, Durations, LastError};

use crate::clock::now_ms;

/// Counters of one handler and version; shared by its workers and by all its generations of that version.
#[derive(Debug, Default)]
pub struct HandlerStats {
    durations: Durations,
    batches: AtomicU64,
    panics: AtomicU64,
    restarts: AtomicU64,
    quarantined: AtomicU64,
    in_flight: AtomicU64,
    last_error: Mutex<Option<LastError>>,
    emitted: Arc<EmitCounts>,
}

/// A snapshot of the counters.
#[derive(Clone, Debug, Default)]
pub struct HandlerCounts {
    /// Time per record: the duration of its call divided by the records of the call.
    pub durations: DurationCounts,
    /// Number of calls.
    pub batches: u64,
    /// Number of instance panics.
    pub panics: u64,
    /// Number of instances built to replace a failed one.
    pub restarts: u64,
    /// Number of workers abandoned because of a call that hung, since the start of the process.
    pub quarantined: u64,
    /// Records currently held by its workers, including queued ones.
    pub in_flight: u64,
    /// The most recent failure.
    pub last_error: Option<LastError>,
}

impl HandlerStats {
    /// Counters of its emitted records.
    pub fn emitted(&self) -> &Arc<EmitCounts> {
        &self.emitted
    }

    /// Records a call with `records` records that took `elapsed_ns`.
    pub fn called(&self, records: u64, elapsed_ns: u64) {
        self.durations.observe(elapsed_ns, records);
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    /// Records a panic of an instance.
    pub fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that an instance was built to replace a failed one.
    pub fn restarted(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that a worker was abandoned.
    pub fn quarantined(&self) {
        self.quarantined.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that the pool accepted `records`.
    pub fn accepted(&self, records: u64) {
        self.in_flight.fetch_add(records, Ordering::Relaxed);
    }

    /// Records that the pool returned `records`, or abandoned them with a hung call.
    pub fn returned(&self, records: u64) {
        self.in_flight.fetch_sub(records, Ordering::Relaxed);
    }

    /// Records a failure.
    pub fn failed(&self, message: &str) {
        let mut last = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = Some(LastError {
            at_ms: now_ms(),
            message: message.into(),
        });
    }

    /// The current counters. Each is exact, but they may differ from each other by one batch.
    pub fn counts(&self) -> HandlerCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut counts = HandlerCounts {
            durations: self.durations.counts(),
            batches: load(&self.batches),
            panics: load(&self.panics),
            restarts: load(&self.restarts),
            quarantined: load(&self.quarantined),
            in_flight: load(&self.in_flight),
            last_error: None,
        };
        let last = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        counts.last_error.clone_from(&last);
        counts
    }
}
