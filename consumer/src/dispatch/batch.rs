//! The unit of work between the pump and a worker: many records of one handler, reused when it comes back.

use sluicegate_runtime::{CallOutput, CancelFlag, RawOutcome, RawRecord};

/// Index of a handler in the pump's table; it belongs to the handler's name and survives its generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandlerIx(pub u32);

/// A record in the pump's slab: its place, and a serial that tells it from earlier users of the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryKey {
    /// Place in the slab.
    pub index: u32,
    /// Which user of the place.
    pub serial: u32,
}

/// A batch under way: its place in the pump's table of flights, and a serial as in [`EntryKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlightKey {
    /// Place in the table.
    pub index: u32,
    /// Which user of the place.
    pub serial: u32,
}

/// Records on their way to a worker, and its outcomes on their way back.
#[derive(Debug)]
pub struct Batch {
    /// Whose records these are.
    pub handler: HandlerIx,
    /// Which flight of the pump this is.
    pub flight: FlightKey,
    /// Worker that must take it (a handler that keeps state per key); `None` is any.
    pub worker: Option<u32>,
    /// The records, in the order in which they are handled.
    pub records: Vec<RawRecord>,
    /// Set by the pump when a partition of these records is no longer ours: no further one of them may start (G5).
    pub cancel: CancelFlag,
    /// The slab places of the records, one for one.
    pub keys: Vec<EntryKey>,
    /// What came of them, one for one.
    pub outcomes: Vec<RawOutcome>,
    /// Texts and emitted records of the call.
    pub output: CallOutput,
    /// How many of the outcomes have emits that are not acknowledged yet: `emits_pending[i]` is for `records[i]`.
    /// Empty when nothing was emitted.
    pub emits_pending: Vec<bool>,
    /// Bytes of the records, as charged.
    pub bytes: u64,
    /// Time that the call took, in microseconds; 0 when the batch was given back without a call.
    pub elapsed_us: u64,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self {
            handler: HandlerIx(0),
            flight: FlightKey {
                index: 0,
                serial: 0,
            },
            worker: None,
            records: Vec::new(),
            cancel: CancelFlag::default(),
            keys: Vec::new(),
            outcomes: Vec::new(),
            output: CallOutput::default(),
            emits_pending: Vec::new(),
            bytes: 0,
            elapsed_us: 0,
        }
    }

    /// Says that none of its records was run.
    pub fn not_run(&mut self) {
        self.output.clear();
        self.emits_pending.clear();
        self.outcomes.clear();
        self.outcomes
            .resize(self.records.len(), RawOutcome::default());
        self.elapsed_us = 0;
    }

    /// Empties it, keeping the memory.
    pub fn clear(&mut self) {
        self.worker = None;
        self.records.clear();
        self.cancel.renew();
        self.keys.clear();
        self.outcomes.clear();
        self.output.clear();
        self.emits_pending.clear();
        self.bytes = 0;
        self.elapsed_us = 0;
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}
