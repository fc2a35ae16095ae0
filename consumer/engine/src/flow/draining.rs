//! Draining revoked partitions: stop admission, finish the started records, fence the others (G3, G5).
//!
//! ```text
//!  start_drain ─► drop the records beyond the last started one ─► running calls end after their current record
//!                                                                 └─ the last has ended: drop unstarted records again
//!  started records finish in all handlers ─► is_drained ─► last commit ─► release
//!          └─ deadline ─► fence: calls are cancelled, nothing more starts or counts ─► last commit ─► release
//! ```
//!
//! A record that some handler has started is finished in all of them, or else its next owner would run it twice
//! (ADR 0007). To keep the order, everything up to the last such record is finished too; later records are left to the
//! next owner. A parked record that no handler has finished does not count as started: it had no effect yet.
//!
//! While stopped calls are running it is unknown which of their records they have started. Until the last of them has
//! returned, no batch with a record of a draining partition is dispatched: it would start records that could have been
//! left to the next owner, and prolong the drain. The fence precedes the last commit: an outcome that counted after it
//! would be handled here and again by the next owner.

use std::collections::{HashMap, HashSet};

use super::Flow;
use super::place::lane_of_key;
use super::slab::Entry;
use super::tasks::Stage;
use crate::dispatch::{EntryKey, FlightKey, HandlerIx};
use crate::partition::assignment::AssignmentState;
use crate::record::Record;
use crate::source::AssignmentId;

impl<R: Record> Flow<R> {
    /// Stops the admission of partitions; started records may finish until `deadline_ms` on the flow's clock. A
    /// partition that is draining already keeps an earlier deadline.
    pub fn start_drain(&mut self, slots: &[AssignmentId], deadline_ms: u64) {
        for &slot in slots {
            self.drop_overflow(slot);
            let state = &mut self.partitions[slot].state;
            let earlier = match *state {
                AssignmentState::Draining { deadline_ms } => deadline_ms,
                AssignmentState::Assigned | AssignmentState::Released => u64::MAX,
            };
            *state = AssignmentState::Draining {
                deadline_ms: deadline_ms.min(earlier),
            };
        }
        self.committer.start_drain(slots);
        self.leave_unstarted(slots);
        self.stop_calls(slots);
    }

    /// Ends running calls that contain records of these partitions, each after its current record: a slow handler may
    /// need longer for the rest of its batch than the drain may take.
    fn stop_calls(&mut self, slots: &[AssignmentId]) {
        let slab = &self.slab;
        let ours = |key: &EntryKey| {
            slab.get(*key)
                .is_some_and(|entry| entry.unsettled > 0 && slots.contains(&entry.slot))
        };
        let pools = self.flights.stop(|flight| flight.keys.iter().any(ours));
        self.recall_queued(pools);
    }

    /// Called when a call has ended. After the last `stopped` one, the records that they did not start are left to the
    /// next owner, or stop waiting.
    pub(super) fn call_ended(&mut self, stopped: bool) {
        if !stopped || self.flights.any_stopped() {
            return;
        }
        let slots: Vec<AssignmentId> = self.partitions.draining().collect();
        if !slots.is_empty() {
            self.leave_unstarted(&slots);
        }
        for place in 0..self.handlers.len() {
            self.mark_dirty(HandlerIx(place as u32));
        }
    }

    /// Whether a batch must not be dispatched yet: while stopped calls are running, it is unknown which records of a
    /// draining partition they have started, which must then be finished in all handlers.
    pub(super) fn waits_for_stopped_calls(&self, keys: &[EntryKey]) -> bool {
        self.flights.any_stopped()
            && keys.iter().any(|key| {
                self.slab
                    .get(*key)
                    .is_some_and(|entry| self.partitions[entry.slot].is_draining())
            })
    }

    /// Removes all records beyond the last one that some handler has started.
    fn leave_unstarted(&mut self, slots: &[AssignmentId]) {
        let started = self.started();
        let mut last: HashMap<AssignmentId, i64> =
            slots.iter().map(|slot| (*slot, i64::MIN)).collect();
        for key in &started {
            if let Some(entry) = self.slab.get(*key)
                && let Some(last) = last.get_mut(&entry.slot)
            {
                *last = entry.offset().max(*last);
            }
        }
        let beyond = |entry: &Entry<R>| {
            let last = last.get(&entry.slot);
            entry.unsettled > 0 && last.is_some_and(|last| entry.offset() > *last)
        };
        let held = self.slab.iter();
        let unstarted: Vec<EntryKey> = held
            .filter(|(_, entry)| beyond(entry))
            .map(|(key, _)| key)
            .collect();
        self.abandon(&unstarted);
    }

    /// Whether nothing of these partitions is in flight, or the deadline has passed.
    pub fn is_drained(&self, slots: &[AssignmentId]) -> bool {
        self.partitions.is_drained(slots, self.now_ms)
    }

    /// Releases partitions: none of their records starts, late outcomes are discarded, nothing is committed for them
    /// (G5).
    pub fn release(&mut self, slots: &[AssignmentId]) {
        let owned = |slot: &AssignmentId| {
            let known = self.partitions.get(*slot);
            known.is_some_and(|one| one.state != AssignmentState::Released)
        };
        // Another release would free a place that another partition may have by now.
        let slots: Vec<AssignmentId> = slots.iter().copied().filter(owned).collect();
        let slots = slots.as_slice();
        self.fence(slots);
        for &slot in slots {
            let assignment = &mut self.partitions[slot];
            if let Some(counts) = self.topics.get_mut(&assignment.at.topic) {
                counts.consumed += std::mem::take(&mut assignment.delivered);
                counts.repeats += std::mem::take(&mut assignment.repeats);
            }
            self.ownership_changed |= self.partitions.release(slot);
        }
        self.committer.release(slots);
        self.drop_retired();
    }

    /// Fences the partitions whose drain has timed out, before their last commit is sent: from then on none of their
    /// records starts or counts.
    pub(super) fn end_overdue_drains(&mut self) {
        let overdue: Vec<AssignmentId> = self
            .partitions
            .each()
            .filter(|(_, assignment)| {
                let AssignmentState::Draining { deadline_ms } = assignment.state else {
                    return false;
                };
                !assignment.fenced && self.now_ms >= deadline_ms
            })
            .map(|(slot, _)| slot)
            .collect();
        if !overdue.is_empty() {
            let started = self.started();
            let (records, handlers) = self.unfinished(&overdue, &started);
            let handlers = handlers.join(", ");
            self.unfinished_records += records as u64;
            if records > 0 {
                tracing::warn!(
                    records,
                    partitions = overdue.len(),
                    handlers,
                    "drain timed out: the next owner reprocesses the unfinished records; \
                     a longer processing.drain_timeout lets slow handlers finish"
                );
            }
            self.fence(&overdue);
        }
    }

    /// Takes the number of records that were started and unfinished when drains timed out.
    pub fn take_unfinished(&mut self) -> u64 {
        std::mem::take(&mut self.unfinished_records)
    }

    /// Counts the unfinished records of partitions that are lost during shutdown. Returns the number of partitions with
    /// handled records that are not known to be committed.
    pub fn count_lost(&mut self, slots: &[AssignmentId]) -> usize {
        let started = self.started();
        let (records, _) = self.unfinished(slots, &started);
        self.unfinished_records += records as u64;
        let left = |slot: &&AssignmentId| {
            let ledger = &self.partitions[**slot].ledger;
            let committed = self.partitions[**slot].committed;
            // An uncommitted token alone causes no reprocessing.
            let handled = ledger.frontier() > committed || !ledger.settled_ahead().is_empty();
            handled && self.committer.entry(self.now(), **slot).is_some()
        };
        slots.iter().filter(left).count()
    }

    /// How many started records of these partitions are unsettled, and in which handlers.
    fn unfinished(
        &self,
        slots: &[AssignmentId],
        started: &HashSet<EntryKey>,
    ) -> (usize, Vec<&str>) {
        let left = |key: &EntryKey| {
            self.slab
                .get(*key)
                .is_some_and(|entry| entry.unsettled > 0 && slots.contains(&entry.slot))
        };
        let busy = self
            .flights
            .iter()
            .filter(|flight| flight.is_submitted() && flight.keys.iter().any(left));
        let waiting = self.tasks.iter().filter(|(_, key, _)| left(key));
        let mut places: Vec<HandlerIx> = busy
            .filter_map(|flight| flight.handler)
            .chain(waiting.map(|(ix, ..)| ix))
            .collect();
        places.sort_unstable();
        places.dedup();
        let names = places.iter().filter_map(|ix| {
            let handler = self.handlers[ix.0 as usize].as_ref()?;
            Some(&*handler.settings.name)
        });
        (
            started.iter().filter(|key| left(key)).count(),
            names.collect(),
        )
    }

    /// Removes all records of partitions: those that no worker has started do not start, calls that contain some of
    /// them stop after their current record.
    fn fence(&mut self, slots: &[AssignmentId]) {
        for &slot in slots {
            self.drop_overflow(slot);
            self.partitions[slot].fenced = true;
        }
        let assignments = &self.partitions;
        let fenced = |entry: &Entry<R>| assignments[entry.slot].fenced;
        let mut pools: Vec<HandlerIx> = Vec::new();
        for flight in self.flights.submitted() {
            let hit = |key: &EntryKey| self.slab.get(*key).is_some_and(fenced);
            if !flight.recalled && flight.keys.iter().any(hit) {
                flight.recall();
                pools.extend(flight.handler);
            }
        }
        let left: Vec<EntryKey> = self
            .slab
            .iter()
            .filter(|(_, entry)| entry.unsettled > 0 && fenced(entry))
            .map(|(key, _)| key)
            .collect();
        self.abandon(&left);
        self.recall_queued(pools);
        self.forget_stopped_calls();
    }

    /// Stops waiting for stopped calls without records of a draining partition: a hung one would block every later
    /// drain.
    fn forget_stopped_calls(&mut self) {
        if !self.flights.any_stopped() {
            return;
        }
        let (slab, assignments) = (&self.slab, &self.partitions);
        let drains = |key: &EntryKey| {
            slab.get(*key)
                .is_some_and(|entry| entry.unsettled > 0 && assignments[entry.slot].is_draining())
        };
        self.flights
            .keep_stopped(|flight| flight.keys.iter().any(drains));
        self.call_ended(true);
    }

    /// Makes pools return the queued batches that were stopped.
    fn recall_queued(&self, mut pools: Vec<HandlerIx>) {
        pools.sort_unstable();
        pools.dedup();
        for ix in pools {
            // A pool of an earlier generation returned its queue when it was replaced.
            if let Some(handler) = &self.handlers[ix.0 as usize]
                && let Some(pool) = &handler.settings.pool
            {
                pool.recall();
            }
        }
    }

    /// Records that some handler has started: settled by one, waiting for the producer, or with a worker.
    fn started(&self) -> HashSet<EntryKey> {
        let mut started: HashSet<EntryKey> = self
            .slab
            .iter()
            .filter(|(_, entry)| entry.unsettled < entry.wanted)
            .map(|(key, _)| key)
            .collect();
        started.extend(
            self.flights
                .iter()
                .filter(|flight| flight.is_submitted())
                .flat_map(|f| f.keys.iter().copied()),
        );
        // A parked record that no other handler has finished has had no effect: it may as well run elsewhere.
        started.extend(
            self.tasks
                .iter()
                .filter(|(.., task)| !matches!(task.stage, Stage::Parked { .. }))
                .map(|(_, key, _)| key),
        );
        started
    }

    /// Removes records from all queues; they are never settled here.
    fn abandon(&mut self, keys: &[EntryKey]) {
        let gone: HashSet<EntryKey> = keys.iter().copied().collect();
        for place in 0..self.handlers.len() {
            self.take_queued(HandlerIx(place as u32), |key| gone.contains(&key));
        }
        let tasks: Vec<(HandlerIx, EntryKey)> = self
            .tasks
            .iter()
            .filter(|(_, key, _)| gone.contains(key))
            .map(|(ix, key, _)| (ix, key))
            .collect();
        let mut freed = Vec::new();
        for (ix, key) in tasks {
            if let Some(task) = self.tasks.remove(ix, key) {
                self.end_refusal(ix, &task);
                if task.stage != Stage::Running {
                    self.unhold(ix, task.lane);
                    freed.push((ix, task.lane));
                }
            }
        }
        for &key in keys {
            if let Some(entry) = self.slab.get_mut(key)
                && std::mem::take(&mut entry.unsettled) > 0
            {
                self.partitions[entry.slot].unsettled -= 1;
            }
            self.free_if_done(key);
        }
        for (ix, lane) in freed {
            self.release_lane(ix, lane);
        }
    }

    /// Removes the records that `wanted` selects from where no worker has them: backlog, lanes, open and ready batches.
    pub(super) fn take_queued(
        &mut self,
        ix: HandlerIx,
        wanted: impl Fn(EntryKey) -> bool,
    ) -> Vec<(EntryKey, u64)> {
        let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
            return Vec::new();
        };
        let order = handler.order;
        let mut taken = Vec::new();
        let mut emptied = Vec::new();
        for flight in handler.open.iter().flatten().chain(&handler.ready) {
            let Some(batch) = self.flights.batch(*flight) else {
                continue;
            };
            let before = taken.len();
            let mut kept = 0;
            for i in 0..batch.keys.len() {
                let key = batch.keys[i];
                if wanted(key) {
                    taken.push((key, batch.records[i].lane));
                    continue;
                }
                batch.keys.swap(kept, i);
                batch.records.swap(kept, i);
                kept += 1;
            }
            let out = batch.keys.drain(kept..).zip(batch.records.drain(kept..));
            for (key, record) in out {
                if let Some(entry) = self.slab.get_mut(key) {
                    entry.return_record(record);
                    batch.bytes -= u64::from(entry.charge);
                    handler.in_flight_bytes -= u64::from(entry.charge);
                }
                handler.in_flight_records -= 1;
            }
            if kept == 0 && taken.len() > before {
                emptied.push(*flight);
            }
        }
        let slab = &self.slab;
        let from_lanes = handler.lanes.retain(|key| !wanted(key));
        taken.extend(
            from_lanes
                .into_iter()
                .map(|key| (key, lane_of_key(slab, order, key))),
        );
        handler.backlog.retain(|&key| {
            let take = wanted(key);
            if take {
                taken.push((key, lane_of_key(slab, order, key)));
            }
            !take
        });
        self.end_emptied(ix, &emptied);
        self.mark_dirty(ix);
        taken
    }

    /// Ends batches that have lost all their records: they are never submitted, so their lanes would stay occupied.
    fn end_emptied(&mut self, ix: HandlerIx, emptied: &[FlightKey]) {
        let mut freed = Vec::new();
        if let Some(handler) = self.handlers[ix.0 as usize].as_mut() {
            for place in &mut handler.open {
                *place = place.filter(|flight| !emptied.contains(flight));
            }
            handler.ready.retain(|flight| !emptied.contains(flight));
            for &flight in emptied {
                freed.append(&mut self.flights.end(flight));
            }
        }
        for lane in freed {
            self.release_lane(ix, lane);
        }
    }

    /// The live records of a partition, for reports.
    pub(super) fn entries_of(
        &self,
        slot: AssignmentId,
    ) -> impl Iterator<Item = (EntryKey, &Entry<R>)> {
        self.slab
            .iter()
            .filter(move |(_, entry)| entry.slot == slot)
    }
}
