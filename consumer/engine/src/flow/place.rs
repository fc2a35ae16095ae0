//! From a routed record to a worker: bound, lane, open batch, submission.

use std::collections::VecDeque;

use super::Flow;
use super::flights::Flights;
use super::handler::{HandlerFlow, MAX_BATCH_BYTES, OnFailure, Order};
use super::slab::{Entry, Slab};
use crate::dispatch::lanes::{Claim, NO_FLIGHT};
use crate::dispatch::{Batch, EntryKey, FlightKey, HandlerIx, PoolState};
use crate::record::Record;

impl<R: Record> Flow<R> {
    /// Queues a record for a handler.
    pub(super) fn enqueue(&mut self, ix: HandlerIx, key: EntryKey) {
        let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
            return;
        };
        if handler.backlog.is_empty() && handler.has_room() && !handler.changes_order() {
            self.add_to_batch(ix, key);
        } else {
            handler.backlog.push_back(key);
        }
        self.mark_dirty(ix);
    }

    /// Claims the record's lane: adds it to the open batch if the lane is free, else queues it in the lane.
    pub(super) fn add_to_batch(&mut self, ix: HandlerIx, key: EntryKey) {
        let Some(entry) = self.slab.get(key) else {
            return;
        };
        let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
            return;
        };
        let lane = lane_of(handler.order, entry);
        let flight = open_flight(handler, &mut self.flights, ix, entry);
        if lane != 0 {
            let flights = &self.flights;
            let claim = handler
                .lanes
                .claim(lane, key, flight, !handler.exclusive, |other| {
                    flights.is_live(other)
                });
            if let Claim::Waits { behind, first } = claim {
                if first
                    && behind != NO_FLIGHT
                    && let Some(flight) = self.flights.get(behind)
                {
                    flight.contended.push(lane);
                }
                return;
            }
        }
        self.push_record(ix, key, flight, lane, 1);
    }

    /// Adds a record that has waited (retry, resend) to a batch again; it already holds its lane.
    pub(super) fn requeue(&mut self, ix: HandlerIx, key: EntryKey, lane: u64, attempt: u32) {
        let Some(entry) = self.slab.get(key) else {
            return;
        };
        let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
            return;
        };
        if handler.settings.takes_batches {
            // A record that failed in a batch is retried alone, so that one bad record does not fail its neighbours
            // again.
            close_open(handler, &mut self.flights);
        }
        let flight = open_flight(handler, &mut self.flights, ix, entry);
        if lane != 0 {
            handler.lanes.unhold(lane);
            handler.lanes.give(lane, flight);
        }
        self.push_record(ix, key, flight, lane, attempt);
        if let Some(handler) = self.handlers[ix.0 as usize].as_mut()
            && handler.settings.takes_batches
        {
            close_open(handler, &mut self.flights);
        }
        self.mark_dirty(ix);
    }

    fn push_record(
        &mut self,
        ix: HandlerIx,
        key: EntryKey,
        flight: FlightKey,
        lane: u64,
        attempt: u32,
    ) {
        let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
            return;
        };
        let Some(batch) = self.flights.batch(flight) else {
            return;
        };
        let Some(entry) = self.slab.get_mut(key) else {
            return;
        };
        let charge = u64::from(entry.charge);
        let Some(record) = entry.lend(lane, attempt) else {
            return;
        };
        batch.records.push(record);
        batch.keys.push(key);
        batch.bytes += charge;
        handler.in_flight_records += 1;
        handler.in_flight_bytes += charge;
    }

    /// Submits ready batches, handler by handler.
    pub fn dispatch(&mut self) {
        if std::mem::take(&mut self.ownership_changed) {
            self.announce_ownership();
        }
        for ix in std::mem::take(&mut self.dirty) {
            if let Some(handler) = self.handlers[ix.0 as usize].as_mut() {
                handler.dirty = false;
                self.dispatch_handler(ix);
            }
        }
    }

    fn dispatch_handler(&mut self, ix: HandlerIx) {
        loop {
            self.fill_from_backlog(ix);
            let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
                return;
            };
            if let Some(pool) = &handler.settings.pool
                && pool.state() == PoolState::Failed
                && handler.settings.on_failure == OnFailure::DeadLetter
            {
                if !self.dead_letter_queued(ix) {
                    return;
                }
                continue;
            }
            if handler.blocked || handler.backoff_until_ms.is_some() {
                return;
            }
            close_open(handler, &mut self.flights);
            let mut submitted = false;
            let mut refused = VecDeque::new();
            let mut freed = Vec::new();
            let mut withheld = self.withhold(ix);
            let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
                return;
            };
            while let Some(flight) = handler.ready.pop_front() {
                let Some(batch) = self.flights.submit(flight, self.now_ms) else {
                    continue;
                };
                if batch.records.is_empty() {
                    // Its records were taken out when their partition was revoked.
                    self.flights.recycle(batch);
                    freed.append(&mut self.flights.end(flight));
                    continue;
                }
                let Some(pool) = &handler.settings.pool else {
                    put_back(&mut self.flights, flight, batch);
                    refused.push_back(flight);
                    continue;
                };
                match pool.submit(batch, &self.inbox) {
                    Ok(()) => submitted = true,
                    Err(batch) => {
                        put_back(&mut self.flights, flight, batch);
                        refused.push_back(flight);
                        if !handler.settings.keeps_key_state {
                            break;
                        }
                    }
                }
            }
            handler.blocked = !refused.is_empty();
            refused.append(&mut handler.ready);
            refused.append(&mut withheld);
            handler.ready = refused;
            let queued = !handler.backlog.is_empty()
                || !handler.runnable.is_empty()
                || !handler.due.is_empty();
            let done = freed.is_empty() && (!submitted || !queued);
            for lane in freed {
                self.release_lane(ix, lane);
            }
            if done {
                return;
            }
        }
    }

    /// Sets aside the ready batches that wait for stopped calls.
    fn withhold(&mut self, ix: HandlerIx) -> VecDeque<FlightKey> {
        let mut withheld = VecDeque::new();
        if !self.flights.any_stopped() {
            return withheld;
        }
        let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
            return withheld;
        };
        let mut ready = std::mem::take(&mut handler.ready);
        ready.retain(|&flight| {
            let Some(batch) = self.flights.batch(flight) else {
                return true;
            };
            let keys = std::mem::take(&mut batch.keys);
            let waits = self.waits_for_stopped_calls(&keys);
            if let Some(batch) = self.flights.batch(flight) {
                batch.keys = keys;
            }
            if waits {
                withheld.push_back(flight);
            }
            !waits
        });
        if let Some(handler) = self.handlers[ix.0 as usize].as_mut() {
            handler.ready = ready;
        }
        withheld
    }

    fn fill_from_backlog(&mut self, ix: HandlerIx) {
        self.run_queued_due(ix);
        while let Some(handler) = self.handlers[ix.0 as usize].as_mut()
            && handler.has_room()
            && let Some(lane) = handler.runnable.pop_front()
        {
            self.release_lane(ix, lane);
        }
        if let Some(handler) = self.handlers[ix.0 as usize].as_mut() {
            handler.follow_order();
        }
        while let Some(handler) = self.handlers[ix.0 as usize].as_mut()
            && handler.has_room()
            && !handler.changes_order()
            && let Some(key) = handler.backlog.pop_front()
        {
            self.add_to_batch(ix, key);
        }
    }

    /// Fills unsubmitted batches again, after the number of workers has changed: a batch is for one worker, and a key would
    /// otherwise be handled by two of them.
    pub(super) fn place_again(&mut self, ix: HandlerIx) {
        let mut taken = self.take_queued(ix, |_| true);
        taken.sort_unstable_by_key(|(key, _)| self.slab.get(*key).map(Entry::offset));
        let again = |flow: &Self, key| flow.tasks.get(ix, key).map(|task| task.attempt);
        // They hold their lanes before others claim these.
        for &(key, lane) in &taken {
            if let Some(attempt) = again(self, key) {
                self.park_now(ix, key, lane, attempt);
            }
        }
        for &(key, _) in &taken {
            if again(self, key).is_none() {
                self.enqueue(ix, key);
            }
        }
    }

    /// Adds the records waiting in a lane to a batch, if no batch has and no record holds the lane.
    pub(super) fn release_lane(&mut self, ix: HandlerIx, lane: u64) {
        if lane == 0 {
            return;
        }
        let mut placed = false;
        while let Some(handler) = self.handlers[ix.0 as usize].as_mut() {
            let flights = &self.flights;
            let first = match placed {
                true => handler.lanes.first(lane),
                false => handler.lanes.next(lane, |flight| flights.is_live(flight)),
            };
            let Some(entry) = first.and_then(|key| self.slab.get(key)) else {
                break;
            };
            if !placed && !handler.has_room() {
                handler.runnable.push_back(lane);
                break;
            }
            let open = open_flight(handler, &mut self.flights, ix, entry);
            let flights = &self.flights;
            let several = !handler.exclusive && handler.has_room();
            let Some(key) = handler
                .lanes
                .advance(lane, open, several, |flight| flights.is_live(flight))
            else {
                break;
            };
            placed = true;
            self.push_record(ix, key, open, lane, 1);
        }
        if placed
            && let Some(handler) = self.handlers[ix.0 as usize].as_ref()
            && let Some(flight) = handler.lanes.waited_for(lane)
            && let Some(flight) = self.flights.get(flight)
        {
            flight.contended.push(lane);
        }
        self.mark_dirty(ix);
    }

    /// Marks that a handler may have something to submit.
    pub(super) fn mark_dirty(&mut self, ix: HandlerIx) {
        if let Some(handler) = self.handlers[ix.0 as usize].as_mut()
            && !handler.dirty
        {
            handler.dirty = true;
            self.dirty.push(ix);
        }
    }

    pub(super) fn unblock_all(&mut self) {
        for place in 0..self.handlers.len() {
            if let Some(handler) = self.handlers[place].as_mut()
                && handler.blocked
            {
                handler.blocked = false;
                self.mark_dirty(HandlerIx(place as u32));
            }
        }
    }
}

/// The batch that the record would join; a full one is closed first.
fn open_flight<R: Record>(
    handler: &mut HandlerFlow,
    flights: &mut Flights,
    ix: HandlerIx,
    entry: &Entry<R>,
) -> FlightKey {
    let place = if handler.open.len() == 1 {
        0
    } else {
        (entry.key_hash >> 32) as usize % handler.open.len()
    };
    if let Some(flight) = handler.open[place] {
        match flights.batch(flight) {
            Some(batch)
                if (batch.records.len() as u32) < handler.batch_limit
                    && batch.bytes < MAX_BATCH_BYTES =>
            {
                return flight;
            }
            Some(_) => handler.ready.push_back(flight),
            None => {}
        }
    }
    let flight = flights.open(ix);
    if handler.settings.keeps_key_state
        && let Some(batch) = flights.batch(flight)
    {
        batch.worker = Some(place as u32);
    }
    handler.open[place] = Some(flight);
    flight
}

/// Moves the open batches that have records to the ready queue.
fn close_open(handler: &mut HandlerFlow, flights: &mut Flights) {
    for place in &mut handler.open {
        if let Some(flight) = *place
            && flights
                .batch(flight)
                .is_none_or(|batch| !batch.records.is_empty())
        {
            handler.ready.push_back(flight);
            *place = None;
        }
    }
}

fn put_back(flights: &mut Flights, flight: FlightKey, batch: Box<Batch>) {
    if let Some(flight) = flights.get(flight) {
        flight.batch = Some(batch);
    }
}

/// The lane of a record; 0 means none.
pub(super) fn lane_of<R: Record>(order: Order, entry: &Entry<R>) -> u64 {
    // The slot is part of it: the same key in another partition, or after a revoke, is another lane.
    let slot = u64::from(entry.slot.0 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    match order {
        Order::Key if entry.key_hash != 0 => (entry.key_hash ^ slot) | 1,
        Order::Partition => slot | 1,
        Order::Key | Order::Unordered => 0,
    }
}

/// Lane of the record behind `key`, if it still exists.
pub(super) fn lane_of_key<R: Record>(slab: &Slab<R>, order: Order, key: EntryKey) -> u64 {
    slab.get(key).map_or(0, |entry| lane_of(order, entry))
}
