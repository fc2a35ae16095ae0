//! What is counted of a handler's calls: a few atomics a batch, read whenever somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::admin::durations::{DurationCounts, Durations};
use crate::emit::EmitCounts;

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
    /// Time a record: its call's time divided by the records of the call.
    pub durations: DurationCounts,
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
    /// Where its acknowledged records are counted.
    pub fn emitted(&self) -> &Arc<EmitCounts> {
        &self.emitted
    }

    /// A call of `records` records took `elapsed_ns`.
    pub fn called(&self, records: u64, elapsed_ns: u64) {
        self.durations.observe(elapsed_ns, records);
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
