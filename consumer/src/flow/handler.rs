//! One handler as the flow sees it: its settings, its lanes, what waits for it and what it has done.

use std::collections::VecDeque;
use std::sync::Arc;

use super::closing::Closing;
use crate::dispatch::lanes::Lanes;
use crate::dispatch::{EntryKey, FlightKey, OwnedPartition, WorkerPool};
use crate::settlement::RetryPolicy;
use crate::source::AssignmentId;

/// Which records of a handler may not overtake each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Records of one key of one partition.
    Key,
    /// Records of one partition.
    Partition,
    /// None.
    Unordered,
}

/// What happens to the records of a handler whose instances died too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// They wait (G1).
    Hold,
    /// They go to the dead-letter topic.
    DeadLetter,
}

/// How a handler is to be run; comes with a plan and replaces the earlier settings whole.
#[derive(Clone)]
pub struct HandlerSettings {
    /// The spec's name.
    pub name: Arc<str>,
    /// Version of its plugin.
    pub version: Arc<str>,
    /// Number of its generation.
    pub generation: u64,
    /// Tells its config from another one: instances may take a new config without a new generation.
    pub config_digest: u64,
    /// Its threads; `None` while its gate has been shut since it was declared.
    pub pool: Option<Arc<dyn WorkerPool>>,
    /// Whether its gate is open.
    pub gate_open: bool,
    /// Its order.
    pub order: Order,
    /// Its retries.
    pub retry: RetryPolicy,
    /// Its dead-letter topic; `{topic}` stands for the record's topic.
    pub dead_letter_topic: Arc<str>,
    /// What a tripped handler's records do.
    pub on_failure: OnFailure,
    /// Bound of records in batches.
    pub max_in_flight_records: u32,
    /// Bound of bytes in batches.
    pub max_in_flight_bytes: u64,
    /// A key always goes to the same worker.
    pub keeps_key_state: bool,
    /// It takes a batch as a whole: after a failed batch its records are tried one by one.
    pub takes_batches: bool,
}

/// Outcomes by kind, as counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutcomeCounts {
    /// Succeeded.
    pub ack: u64,
    /// Attempts that are followed by another.
    pub retry: u64,
    /// Given up, and in the dead-letter topic.
    pub dead_letter: u64,
    /// Dropped by the handler with a reason.
    pub drop: u64,
    /// Passed by a shut gate.
    pub skipped: u64,
    /// Attempts that ended in a panic.
    pub panics: u64,
    /// Calls that overran their timeout.
    pub overruns: u64,
}

/// A handler's state in the flow.
pub struct HandlerFlow {
    /// How it is run.
    pub settings: HandlerSettings,
    /// It is not wanted any more; what it has is finished, then it goes.
    pub retiring: bool,
    /// Set while it is switched off or removed and still has records.
    pub closing: Option<Closing>,
    /// Its lanes.
    pub lanes: Lanes,
    /// Flights being filled: one, or one a worker when keys stay with a worker.
    pub open: Vec<Option<FlightKey>>,
    /// Full flights that wait for a worker.
    pub ready: VecDeque<FlightKey>,
    /// Records that wait since its bound is reached, in order.
    pub backlog: VecDeque<EntryKey>,
    /// Lanes that are free and have waiting records, for which there was no room.
    pub runnable: VecDeque<u64>,
    /// Records in flights.
    pub in_flight_records: u32,
    /// Bytes in flights.
    pub in_flight_bytes: u64,
    /// The pool refused; wait until it says that it is free.
    pub blocked: bool,
    /// Calls in a row that have run none of their records.
    pub fruitless_calls: u32,
    /// Nothing is submitted before this time, on the flow's clock.
    pub rests_until_ms: Option<u64>,
    /// It stands in the list of handlers with something to submit.
    pub listed: bool,
    /// Its records hold their lanes beyond the call (emits, retries): one record of a lane a flight.
    pub exclusive: bool,
    /// Records that one call may get, so that a call stays short.
    pub batch_limit: u32,
    /// Parked, dead-lettering and producing records.
    pub held: u32,
    /// What it has done.
    pub counts: OutcomeCounts,
    /// The last thing that went wrong.
    pub last_error: Option<Arc<str>>,
    /// The partitions that its pool was told of last.
    pub told: Vec<(AssignmentId, OwnedPartition)>,
    cost_ns: u64,
}

/// Calls are sized to take about this long.
const CALL_TARGET_NS: u64 = 2_000_000;
const MIN_BATCH: u32 = 1;
/// Most records of one call. Cheap handlers need this many to be worth a wake-up: 512 gave half the records a second.
pub const MAX_BATCH: u32 = 4096;
const FIRST_BATCH: u32 = 32;
/// Most bytes of one call.
pub const MAX_BATCH_BYTES: u64 = 4 << 20;

impl HandlerFlow {
    /// A handler with nothing to do yet.
    pub fn new(settings: HandlerSettings) -> Self {
        let mut this = Self {
            settings,
            retiring: false,
            closing: None,
            lanes: Lanes::default(),
            open: Vec::new(),
            ready: VecDeque::new(),
            backlog: VecDeque::new(),
            runnable: VecDeque::new(),
            in_flight_records: 0,
            in_flight_bytes: 0,
            blocked: false,
            fruitless_calls: 0,
            rests_until_ms: None,
            listed: false,
            exclusive: false,
            batch_limit: FIRST_BATCH,
            held: 0,
            counts: OutcomeCounts::default(),
            last_error: None,
            told: Vec::new(),
            cost_ns: 0,
        };
        this.size_open();
        this
    }

    /// Takes new settings; what is open is closed, so that a batch keeps to one set of settings.
    pub fn replace(&mut self, settings: HandlerSettings) {
        self.settings = settings;
        self.retiring = false;
        self.blocked = false;
        self.fruitless_calls = 0;
        self.rests_until_ms = None;
        for flight in std::mem::take(&mut self.open).into_iter().flatten() {
            self.ready.push_back(flight);
        }
        self.size_open();
    }

    fn size_open(&mut self) {
        let workers = self
            .settings
            .pool
            .as_ref()
            .map_or(1, |pool| pool.workers().max(1));
        let places = if self.settings.keeps_key_state {
            workers as usize
        } else {
            1
        };
        self.open.resize(places, None);
    }

    /// Whether its bound lets another record into a flight.
    pub fn has_room(&self) -> bool {
        self.in_flight_records < self.settings.max_in_flight_records
            && self.in_flight_bytes < self.settings.max_in_flight_bytes
    }

    /// Whether nothing of it is left.
    pub fn is_idle(&self) -> bool {
        self.in_flight_records == 0
            && self.backlog.is_empty()
            && self.held == 0
            && self.lanes.waiters() == 0
    }

    /// Learns from a call how many records the next ones may get.
    pub fn learn_cost(&mut self, records: u32, elapsed_us: u64) {
        if records == 0 {
            return;
        }
        let cost_ns = elapsed_us.saturating_mul(1_000) / u64::from(records);
        self.cost_ns = if self.cost_ns == 0 {
            cost_ns
        } else {
            (self.cost_ns * 7 + cost_ns) / 8
        };
        let wanted = (CALL_TARGET_NS / self.cost_ns.max(1))
            .clamp(u64::from(MIN_BATCH), u64::from(MAX_BATCH)) as u32;
        // Growing by doubling keeps one odd measurement from sending hundreds of slow records to one worker.
        self.batch_limit = wanted
            .min(self.batch_limit.saturating_mul(2))
            .max(MIN_BATCH);
    }
}
