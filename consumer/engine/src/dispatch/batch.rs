//! The unit of work between the pump and a worker: records of one handler, in a structure that is reused.
//!
//! `records`, `keys` and `outcomes` are parallel: one index is one record. The records point to bytes that the pump's
//! slab owns, and are lent until the batch returns. The pump keeps its own copy of the keys, so that it can settle,
//! retry or abandon the records of a batch that a hung worker never returns (G14).
//!
//! Slab and batch table reuse their indexes; the serial in [`RecordId`] and [`BatchId`] makes a late batch
//! recognizable. Without it, its outcomes would be taken for those of the index's next user. `cancel` belongs to the
//! batch and not to an instance, so that it also applies before the call begins (G5); it is renewed with the batch,
//! because a worker may still hold the flag of an earlier use. Batches travel as boxes and keep their allocations: in a
//! steady state none is made.

use std::sync::Arc;

use crate::emit::{EmitCounts, EmitToken};
use sluicegate_runtime::{CallOutput, CancelFlag, RawOutcome, RawRecord};

/// Index of a handler in the pump's table; it belongs to the handler's name and survives its generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandlerIx(pub u32);

/// A record in the pump's slab: its index, and a serial that tells it from earlier users of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId {
    /// Index in the slab.
    pub index: u32,
    /// Serial number of the user of this index.
    pub serial: u32,
}

impl RecordId {
    /// A key that no record has.
    pub const NONE: Self = Self {
        index: u32::MAX,
        serial: 0,
    };
}

/// An in-flight batch: its index in the pump's table of batches, and a serial as in [`RecordId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId {
    /// Index in the table.
    pub index: u32,
    /// Serial number of the user of this index.
    pub serial: u32,
}

/// Records on their way to a worker, and its outcomes on their way back.
#[derive(Debug)]
pub struct Batch {
    /// The handler of these records.
    pub handler: HandlerIx,
    /// The pump's key of this batch.
    pub id: BatchId,
    /// Worker that must run it (a handler that keeps state per key); `None` means any.
    pub worker: Option<u32>,
    /// The records, in handling order.
    pub records: Vec<RawRecord>,
    /// Set by the pump when a partition of these records is revoked: none of them may be started any more (G5).
    pub cancel: CancelFlag,
    /// The slab keys of the records, one for one.
    pub keys: Vec<RecordId>,
    /// The outcomes, one for one.
    pub outcomes: Vec<RawOutcome>,
    /// Texts and emitted records of the call.
    pub output: CallOutput,
    /// The name of what the call emits, for the producer's answers.
    pub shipment: EmitToken,
    /// Counts the emitted records that are acknowledged; `None` if nothing was emitted.
    pub emitted: Option<Arc<EmitCounts>>,
    /// Places in `output.emits` of those that were not sent, because one before them was refused.
    pub unsent: Vec<u32>,
    /// Bytes of the records, as charged.
    pub bytes: u64,
    /// Duration of the call in microseconds; 0 if the batch was returned without a call.
    pub elapsed_us: u64,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self {
            handler: HandlerIx(0),
            id: BatchId {
                index: 0,
                serial: 0,
            },
            worker: None,
            records: Vec::new(),
            cancel: CancelFlag::default(),
            keys: Vec::new(),
            outcomes: Vec::new(),
            output: CallOutput::default(),
            shipment: EmitToken::default(),
            emitted: None,
            unsent: Vec::new(),
            bytes: 0,
            elapsed_us: 0,
        }
    }

    /// Marks all records as not run.
    pub fn not_run(&mut self) {
        self.output.clear();
        self.emitted = None;
        self.unsent.clear();
        self.outcomes.clear();
        self.outcomes
            .resize(self.records.len(), RawOutcome::default());
        self.elapsed_us = 0;
    }

    /// Clears it, keeping the allocations.
    pub fn clear(&mut self) {
        self.worker = None;
        self.records.clear();
        self.cancel.renew();
        self.keys.clear();
        self.outcomes.clear();
        self.output.clear();
        self.emitted = None;
        self.unsent.clear();
        self.bytes = 0;
        self.elapsed_us = 0;
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}
