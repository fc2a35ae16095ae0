//! Per-handler state of the flow: settings, lanes, queues and counters.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::dispatch::lanes::Lanes;
use crate::dispatch::{EntryKey, FlightKey, OwnedPartition, WorkerPool};
use crate::settlement::RetryPolicy;
use crate::source::AssignmentId;

/// Ordering guarantee of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Records with the same key in the same partition are handled in order.
    Key,
    /// Records of a partition are handled in order.
    Partition,
    /// No order.
    Unordered,
}

/// What happens to the records of a failed handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// They are held (G1).
    Hold,
    /// They go to the dead-letter topic.
    DeadLetter,
}

/// How a handler is run; replaced as a whole by each plan.
#[derive(Clone)]
pub struct HandlerSettings {
    /// The spec's name.
    pub name: Arc<str>,
    /// Its plugin's version.
    pub version: Arc<str>,
    /// Number of its generation.
    pub generation: u64,
    /// Identifies its config: instances may take a new config without a new generation.
    pub config_digest: u64,
    /// Its threads; `None` while its gate has been closed since it was declared.
    pub pool: Option<Arc<dyn WorkerPool>>,
    /// Whether its gate is open.
    pub gate_open: bool,
    /// Its ordering guarantee.
    pub order: Order,
    /// Its retry policy.
    pub retry: RetryPolicy,
    /// Its dead-letter topic; `{topic}` stands for the record's topic.
    pub dead_letter_topic: Arc<str>,
    /// What happens to its records while it is failed.
    pub on_failure: OnFailure,
    /// Maximum number of records in flight.
    pub max_in_flight_records: u32,
    /// Maximum number of bytes in flight.
    pub max_in_flight_bytes: u64,
    /// A key is always handled by the same worker.
    pub keeps_key_state: bool,
    /// It handles a batch as a whole: after a failed batch its records are retried one by one.
    pub takes_batches: bool,
}

/// Outcomes by kind, as counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutcomeCounts {
    /// Succeeded.
    pub ack: u64,
    /// Attempts that are followed by another one.
    pub retry: u64,
    /// Dead-lettered, with the dead letter acknowledged.
    pub dead_letter: u64,
    /// Dropped by the handler with a reason.
    pub drop: u64,
    /// Passed by a closed gate.
    pub skipped: u64,
    /// Attempts that ended in a panic.
    pub panics: u64,
    /// Calls that exceeded their timeout.
    pub timeouts: u64,
}

/// State of a handler that is switched off or removed and still has records.
#[derive(Clone, Copy, Debug)]
pub struct Closing {
    /// When its last record settled, or else when it was switched off; on the flow's clock.
    pub moved_ms: u64,
    /// Records that it had settled by then.
    pub(super) settled: u64,
}

/// A handler's state in the flow.
pub struct HandlerFlow {
    /// How it is run.
    pub settings: HandlerSettings,
    /// Retiring: finishes its in-flight records, then is removed.
    pub retiring: bool,
    /// Set while it is switched off or removed and still has records.
    pub closing: Option<Closing>,
    /// The order of the records that have left the backlog; the settings' order applies once these are over (G4).
    pub order: Order,
    /// Its lanes.
    pub lanes: Lanes,
    /// Batches being filled: one, or one per worker when keys stay with a worker.
    pub open: Vec<Option<FlightKey>>,
    /// Full batches that wait for a worker.
    pub ready: VecDeque<FlightKey>,
    /// Records that wait because its bound is reached, in order.
    pub backlog: VecDeque<EntryKey>,
    /// Parked records whose time has come while there was no room; some may be over.
    pub due: VecDeque<EntryKey>,
    /// Free lanes with waiting records for which there was no room.
    pub runnable: VecDeque<u64>,
    /// Records in flight.
    pub in_flight_records: u32,
    /// Bytes in flight.
    pub in_flight_bytes: u64,
    /// The pool refused a batch; wait for [`PumpMessage::PoolFree`](crate::dispatch::PumpMessage::PoolFree).
    pub blocked: bool,
    /// Consecutive calls that ran none of their records.
    pub fruitless_calls: u32,
    /// Backing off: nothing is submitted before this time, on the flow's clock.
    pub backoff_until_ms: Option<u64>,
    /// It is in the list of handlers with something to submit.
    pub dirty: bool,
    /// Its records hold their lanes beyond the call (emits, retries): one record of a lane per batch.
    pub exclusive: bool,
    /// Maximum number of records per call, so that calls stay short.
    pub batch_limit: u32,
    /// Parked, dead-lettering and producing records.
    pub held: u32,
    /// The counters of its present version.
    pub counts: OutcomeCounts,
    /// Those of versions before it, the latest last; a version that returns counts on.
    pub earlier: Vec<(Arc<str>, OutcomeCounts)>,
    /// The last error.
    pub last_error: Option<Arc<str>>,
    /// The partitions last announced to its pool.
    pub announced: Vec<(AssignmentId, OwnedPartition)>,
    cost_ns: u64,
}

/// Batch sizes aim at this duration of a call.
const CALL_TARGET_NS: u64 = 2_000_000;
const MIN_BATCH: u32 = 1;
/// Maximum number of records per call. Cheap handlers need this many to amortize a wake-up: 512 halved the throughput.
pub const MAX_BATCH: u32 = 4096;
const FIRST_BATCH: u32 = 32;
/// Versions whose counters are kept besides the present one's.
const MAX_EARLIER_VERSIONS: usize = 16;
/// Maximum number of bytes per call.
pub const MAX_BATCH_BYTES: u64 = 4 << 20;

impl HandlerFlow {
    /// A handler without records.
    pub fn new(settings: HandlerSettings) -> Self {
        let mut this = Self {
            order: settings.order,
            settings,
            retiring: false,
            closing: None,
            lanes: Lanes::default(),
            open: Vec::new(),
            ready: VecDeque::new(),
            backlog: VecDeque::new(),
            due: VecDeque::new(),
            runnable: VecDeque::new(),
            in_flight_records: 0,
            in_flight_bytes: 0,
            blocked: false,
            fruitless_calls: 0,
            backoff_until_ms: None,
            dirty: false,
            exclusive: false,
            batch_limit: FIRST_BATCH,
            held: 0,
            counts: OutcomeCounts::default(),
            earlier: Vec::new(),
            last_error: None,
            announced: Vec::new(),
            cost_ns: 0,
        };
        this.size_open();
        this
    }

    /// Applies new settings; open batches are closed, so that a batch has one set of settings.
    ///
    /// Returns whether keys belong to other workers from now on: unsubmitted batches have to be filled again.
    pub fn replace(&mut self, settings: HandlerSettings) -> bool {
        if settings.version != self.settings.version {
            self.count_for(&settings.version);
        }
        self.settings = settings;
        self.follow_order();
        self.retiring = false;
        self.blocked = false;
        self.fruitless_calls = 0;
        self.backoff_until_ms = None;
        for flight in std::mem::take(&mut self.open).into_iter().flatten() {
            self.ready.push_back(flight);
        }
        let places = self.open.len();
        self.size_open();
        self.open.len() != places
    }

    /// Counts for another version from now on: a counter belongs to the code that ran.
    fn count_for(&mut self, version: &str) {
        let known = self
            .earlier
            .iter()
            .position(|(known, _)| **known == *version);
        let next = known.map_or_else(OutcomeCounts::default, |place| self.earlier.remove(place).1);
        let before = std::mem::replace(&mut self.counts, next);
        if self.earlier.len() == MAX_EARLIER_VERSIONS {
            self.earlier.remove(0);
        }
        self.earlier.push((self.settings.version.clone(), before));
    }

    /// Applies another order once no record is left that was started under the one before: lanes of two orders do not
    /// exclude each other, so a record of the new one could overtake.
    pub fn follow_order(&mut self) {
        if self.in_flight_records == 0 && self.held == 0 && self.lanes.waiters() == 0 {
            self.order = self.settings.order;
        }
    }

    /// Whether records under way have another order than the next ones.
    pub fn changes_order(&self) -> bool {
        self.order != self.settings.order
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

    /// Whether its bounds admit another record.
    pub fn has_room(&self) -> bool {
        self.in_flight_records < self.settings.max_in_flight_records
            && self.in_flight_bytes < self.settings.max_in_flight_bytes
    }

    /// Whether it has no record left.
    pub fn is_idle(&self) -> bool {
        self.in_flight_records == 0
            && self.backlog.is_empty()
            && self.held == 0
            && self.lanes.waiters() == 0
    }

    /// Updates the batch limit from the measured cost of a call.
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
        // Growth is limited to doubling, so that one outlier does not send hundreds of slow records to one worker.
        self.batch_limit = wanted
            .min(self.batch_limit.saturating_mul(2))
            .max(MIN_BATCH);
    }
}
