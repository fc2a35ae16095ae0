//! A handler's in-flight batches: open (being filled), ready (waiting for a worker), or submitted.

use std::num::NonZeroU32;
use std::sync::{Arc, Weak};

use sluicegate_runtime::CancelFlag;

use super::targets::{GenerationId, Target};
use crate::dispatch::{Batch, BatchId, HandlerIx, Inbox, Published, RecordId, WorkerPool};

/// An in-flight batch.
#[derive(Default)]
pub(crate) struct InFlightBatch {
    /// [`ENDED`] once it has ended.
    serial: u32,
    /// The batch, until it is submitted.
    pub(crate) batch: Option<Box<Batch>>,
    /// The records that were submitted.
    pub(crate) keys: Vec<RecordId>,
    /// Its lanes in which other records wait.
    pub(crate) contended: Vec<u64>,
    /// It has not ended.
    used: bool,
    /// Its place among the open batches: its target and worker.
    place: usize,
    /// What runs it, once it is submitted.
    generation: Option<Arc<GenerationId>>,
    /// When it was submitted, on the flow's clock.
    pub(crate) submitted_ms: u64,
    /// The pool that has it, unless that is gone.
    pool: Option<Weak<dyn WorkerPool>>,
    /// Cancels it while a worker has it.
    cancel: Option<CancelFlag>,
    /// It was cancelled because of some of its records; the others are not charged an attempt.
    pub(crate) recalled: bool,
    /// The call ends after its current record, and draining partitions wait for that.
    pub(crate) stopped: bool,
}

impl InFlightBatch {
    /// Whether a worker has it.
    pub(crate) fn is_submitted(&self) -> bool {
        self.used && self.batch.is_none()
    }

    /// What runs it, once it is submitted.
    pub(super) fn ran_by(&self) -> Option<Arc<GenerationId>> {
        self.generation.clone()
    }

    /// Whether what runs it takes batches as a whole.
    pub(super) fn takes_batches(&self) -> bool {
        let generation = self.generation.as_ref();
        generation.is_some_and(|generation| generation.takes_batches)
    }

    /// What its call has published; `None` if that is not known.
    pub(super) fn published(&self, id: BatchId, reply_to: &Arc<Inbox>) -> Option<Published> {
        self.pool.as_ref()?.upgrade()?.published(reply_to, id)
    }

    /// Starts no further record of it, wherever it is, and abandons the current one.
    pub(crate) fn recall(&mut self) {
        if let Some(cancel) = &self.cancel {
            cancel.set();
            self.recalled = true;
        }
    }
}

/// What an ended batch leaves behind.
#[derive(Default)]
pub(crate) struct Ended {
    /// Its lanes in which other records wait.
    pub(crate) contended: Vec<u64>,
    /// As [`InFlightBatch::recalled`].
    pub(crate) recalled: bool,
    /// As [`InFlightBatch::stopped`].
    pub(crate) stopped: bool,
    /// What ran it, if it was submitted.
    pub(super) ran_by: Option<Arc<GenerationId>>,
}

/// All in-flight batches of a handler.
#[derive(Default)]
pub(crate) struct BatchTable {
    table: Vec<InFlightBatch>,
    spare: Vec<u32>,
    // Boxes, because batches travel between threads by pointer.
    #[allow(clippy::vec_box)]
    batches: Vec<Box<Batch>>,
}

/// The serial of no batch in flight.
const ENDED: u32 = 0;

/// Number of empty batches kept for reuse.
const SPARE_BATCHES: usize = 64;

impl BatchTable {
    /// Opens an empty batch. No other batch of the pump may have had this serial: a late one would be taken for this, also
    /// one of a handler that was removed and declared again.
    pub(crate) fn open(&mut self, handler: HandlerIx, place: usize, serial: NonZeroU32) -> BatchId {
        let index = self.spare.pop().unwrap_or_else(|| {
            self.table.push(InFlightBatch::default());
            (self.table.len() - 1) as u32
        });
        let mut batch = self.batches.pop().unwrap_or_default();
        let entry = &mut self.table[index as usize];
        let serial = serial.get();
        entry.serial = serial;
        let key = BatchId { index, serial };
        batch.handler = handler;
        batch.id = key;
        entry.used = true;
        entry.place = place;
        entry.batch = Some(batch);
        key
    }

    /// Whether this batch is still in flight.
    pub(crate) fn is_live(&self, key: BatchId) -> bool {
        let entry = self.table.get(key.index as usize);
        entry.is_some_and(|entry| entry.serial == key.serial && entry.used)
    }

    /// The batch's entry, if it is still in flight.
    pub(crate) fn get(&mut self, key: BatchId) -> Option<&mut InFlightBatch> {
        self.table
            .get_mut(key.index as usize)
            .filter(|entry| entry.serial == key.serial && entry.used)
    }

    /// Its batch, before submission.
    pub(crate) fn batch(&mut self, key: BatchId) -> Option<&mut Batch> {
        self.get(key)?.batch.as_deref_mut()
    }

    /// Takes an unsubmitted batch out, to fill it; it has to be put back at once.
    pub(crate) fn take(&mut self, key: BatchId) -> Option<Box<Batch>> {
        self.get(key)?.batch.take()
    }

    /// Puts a batch back that was taken, or that a pool has refused.
    pub(crate) fn put_back(&mut self, key: BatchId, batch: Box<Batch>) {
        if let Some(entry) = self.get(key) {
            entry.batch = Some(batch);
        }
    }

    /// Starts no further record of the submitted batches that `wanted` selects, wherever they are; their current record
    /// may finish. Returns their number.
    pub(crate) fn stop(&mut self, wanted: impl Fn(&InFlightBatch) -> bool) -> usize {
        let mut stopped = 0;
        for entry in &mut self.table {
            let running = entry.is_submitted() && !entry.stopped && !entry.recalled;
            if running
                && wanted(entry)
                && let Some(cancel) = &entry.cancel
            {
                cancel.stop();
                entry.stopped = true;
                stopped += 1;
            }
        }
        stopped
    }

    /// Stops waiting for stopped batches that `wanted` does not select. Returns their number.
    pub(crate) fn keep_stopped(&mut self, wanted: impl Fn(&InFlightBatch) -> bool) -> usize {
        let mut dropped = 0;
        for entry in &mut self.table {
            if entry.stopped && !wanted(entry) {
                entry.stopped = false;
                dropped += 1;
            }
        }
        dropped
    }

    /// The place of a batch among the open ones.
    pub(super) fn place(&mut self, key: BatchId) -> Option<usize> {
        Some(self.get(key)?.place)
    }

    /// Takes the batch out for submission.
    pub(super) fn submit(
        &mut self,
        key: BatchId,
        target: &Target,
        now_ms: u64,
    ) -> Option<Box<Batch>> {
        let entry = self.get(key)?;
        let batch = entry.batch.take()?;
        entry.generation = Some(target.generation.clone());
        entry.pool = Some(Arc::downgrade(&target.pool));
        entry.keys.clone_from(&batch.keys);
        entry.cancel = Some(batch.cancel.clone());
        entry.submitted_ms = now_ms;
        Some(batch)
    }

    /// Ends the batch: its lanes are free from now on.
    pub(crate) fn end(&mut self, key: BatchId) -> Ended {
        let Some(entry) = self.get(key) else {
            return Ended::default();
        };
        entry.serial = ENDED;
        entry.used = false;
        entry.cancel = None;
        entry.keys.clear();
        let ended = Ended {
            contended: std::mem::take(&mut entry.contended),
            recalled: std::mem::take(&mut entry.recalled),
            stopped: std::mem::take(&mut entry.stopped),
            ran_by: entry.generation.take(),
        };
        let batch = entry.batch.take();
        self.spare.push(key.index);
        if let Some(batch) = batch {
            self.recycle(batch);
        }
        ended
    }

    /// Keeps an empty batch for reuse.
    pub(crate) fn recycle(&mut self, mut batch: Box<Batch>) {
        if self.batches.len() < SPARE_BATCHES {
            batch.clear();
            self.batches.push(batch);
        }
    }

    /// All batches that no worker has.
    pub(crate) fn unsubmitted(&mut self) -> impl Iterator<Item = &mut Batch> {
        self.table
            .iter_mut()
            .filter_map(|entry| entry.batch.as_deref_mut())
    }

    /// All batches that a worker has.
    pub(crate) fn submitted(&mut self) -> impl Iterator<Item = &mut InFlightBatch> {
        self.table.iter_mut().filter(|entry| entry.is_submitted())
    }

    /// The batches that a worker has, by key.
    pub(crate) fn submitted_keys(&self) -> Vec<BatchId> {
        let table = self.table.iter().enumerate();
        table
            .filter(|(_, entry)| entry.is_submitted())
            .map(|(index, entry)| BatchId {
                index: index as u32,
                serial: entry.serial,
            })
            .collect()
    }

    /// The batch's entry, if it is still in flight, to read it.
    pub(crate) fn peek(&self, key: BatchId) -> Option<&InFlightBatch> {
        let entry = self.table.get(key.index as usize);
        entry.filter(|entry| entry.serial == key.serial && entry.used)
    }

    /// All in-flight batches.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &InFlightBatch> {
        self.table.iter().filter(|entry| entry.used)
    }
}
