//! In-flight batches: open (being filled), ready (waiting for a worker), or submitted.

use sluicegate_runtime::CancelFlag;

use crate::dispatch::lanes::NO_FLIGHT;
use crate::dispatch::{Batch, EntryKey, FlightKey, HandlerIx};

/// An in-flight batch.
#[derive(Default)]
pub struct Flight {
    serial: u32,
    /// The batch, until it is submitted.
    pub batch: Option<Box<Batch>>,
    /// The records that were submitted.
    pub keys: Vec<EntryKey>,
    /// Its lanes in which other records wait.
    pub contended: Vec<u64>,
    /// The handler that it belongs to.
    pub handler: Option<HandlerIx>,
    /// When it was submitted, on the flow's clock.
    pub submitted_ms: u64,
    /// Cancels it while a worker has it.
    cancel: Option<CancelFlag>,
    /// It was cancelled because of some of its records; the others are not charged an attempt.
    pub recalled: bool,
    /// The call ends after its current record, and draining partitions wait for that.
    pub stopped: bool,
}

impl Flight {
    /// Whether a worker has it.
    pub fn is_submitted(&self) -> bool {
        self.handler.is_some() && self.batch.is_none()
    }

    /// Starts no further record of it, wherever it is, and abandons the current one.
    pub fn recall(&mut self) {
        if let Some(cancel) = &self.cancel {
            cancel.set();
            self.recalled = true;
        }
    }
}

/// All in-flight batches of a pump.
#[derive(Default)]
pub struct Flights {
    table: Vec<Flight>,
    /// Number of stopped batches still in flight.
    stopped: usize,
    spare: Vec<u32>,
    // Boxes, because batches travel between threads by pointer.
    #[allow(clippy::vec_box)]
    batches: Vec<Box<Batch>>,
}

/// Number of empty batches kept for reuse.
const SPARE_BATCHES: usize = 64;

impl Flights {
    /// Opens an empty batch.
    pub fn open(&mut self, handler: HandlerIx) -> FlightKey {
        let index = self.spare.pop().unwrap_or_else(|| {
            self.table.push(Flight {
                serial: 1,
                ..Flight::default()
            });
            (self.table.len() - 1) as u32
        });
        let mut batch = self.batches.pop().unwrap_or_default();
        let flight = &mut self.table[index as usize];
        let key = FlightKey {
            index,
            serial: flight.serial,
        };
        batch.handler = handler;
        batch.flight = key;
        flight.handler = Some(handler);
        flight.batch = Some(batch);
        key
    }

    /// Whether this batch is still in flight.
    pub fn is_live(&self, key: FlightKey) -> bool {
        key != NO_FLIGHT
            && self
                .table
                .get(key.index as usize)
                .is_some_and(|flight| flight.serial == key.serial)
    }

    /// The batch's entry, if it is still in flight.
    pub fn get(&mut self, key: FlightKey) -> Option<&mut Flight> {
        self.table
            .get_mut(key.index as usize)
            .filter(|flight| flight.serial == key.serial)
    }

    /// Its batch, before submission.
    pub fn batch(&mut self, key: FlightKey) -> Option<&mut Batch> {
        self.get(key)?.batch.as_deref_mut()
    }

    /// Starts no further record of the submitted batches that `wanted` selects, wherever they are; their current record
    /// may finish. Returns their handlers.
    pub fn stop(&mut self, wanted: impl Fn(&Flight) -> bool) -> Vec<HandlerIx> {
        let mut handlers = Vec::new();
        for flight in &mut self.table {
            let running = flight.is_submitted() && !flight.stopped && !flight.recalled;
            if running
                && wanted(flight)
                && let Some(cancel) = &flight.cancel
            {
                cancel.stop();
                flight.stopped = true;
                self.stopped += 1;
                handlers.extend(flight.handler);
            }
        }
        handlers
    }

    /// Stops waiting for stopped batches that `wanted` does not select.
    pub fn keep_stopped(&mut self, wanted: impl Fn(&Flight) -> bool) {
        for flight in &mut self.table {
            if flight.stopped && !wanted(flight) {
                flight.stopped = false;
                self.stopped -= 1;
            }
        }
    }

    /// Whether a stopped batch that is waited for is still in flight.
    pub fn any_stopped(&self) -> bool {
        self.stopped > 0
    }

    /// Takes the batch out for submission.
    pub fn submit(&mut self, key: FlightKey, now_ms: u64) -> Option<Box<Batch>> {
        let flight = self.get(key)?;
        let batch = flight.batch.take()?;
        flight.keys.clone_from(&batch.keys);
        flight.cancel = Some(batch.cancel.clone());
        flight.submitted_ms = now_ms;
        Some(batch)
    }

    /// Ends the batch: its lanes are free from now on. Returns the lanes in which records wait.
    pub fn end(&mut self, key: FlightKey) -> Vec<u64> {
        let Some(flight) = self.get(key) else {
            return Vec::new();
        };
        flight.serial = flight.serial.wrapping_add(1);
        flight.handler = None;
        flight.cancel = None;
        flight.recalled = false;
        let stopped = std::mem::take(&mut flight.stopped);
        flight.keys.clear();
        let contended = std::mem::take(&mut flight.contended);
        let batch = flight.batch.take();
        self.stopped -= usize::from(stopped);
        self.spare.push(key.index);
        if let Some(batch) = batch {
            self.recycle(batch);
        }
        contended
    }

    /// Keeps an empty batch for reuse.
    pub fn recycle(&mut self, mut batch: Box<Batch>) {
        if self.batches.len() < SPARE_BATCHES {
            batch.clear();
            self.batches.push(batch);
        }
    }

    /// All batches that no worker has.
    pub fn unsubmitted(&mut self) -> impl Iterator<Item = &mut Batch> {
        self.table
            .iter_mut()
            .filter_map(|flight| flight.batch.as_deref_mut())
    }

    /// All batches that a worker has.
    pub fn submitted(&mut self) -> impl Iterator<Item = &mut Flight> {
        self.table.iter_mut().filter(|flight| flight.is_submitted())
    }

    /// The batches of a handler that a worker has.
    pub fn submitted_of(&self, handler: HandlerIx) -> Vec<FlightKey> {
        let mine = |flight: &Flight| flight.is_submitted() && flight.handler == Some(handler);
        self.table
            .iter()
            .enumerate()
            .filter(|(_, flight)| mine(flight))
            .map(|(index, flight)| FlightKey {
                index: index as u32,
                serial: flight.serial,
            })
            .collect()
    }

    /// All in-flight batches.
    pub fn iter(&self) -> impl Iterator<Item = &Flight> {
        self.table.iter().filter(|flight| flight.handler.is_some())
    }
}
