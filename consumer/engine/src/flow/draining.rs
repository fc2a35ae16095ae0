//! Draining revoked partitions: stop admission, finish the started records, fence the others (G3, G5).
//!
//! ```text
//!  start_drain ─► drop the records beyond the last started one ─► running calls end after their current record
//!                                                                 └─ the last has ended: drop unstarted records again
//!  started records finish in all handlers ─► is_drained ─► last commit ─► release
//!          └─ deadline ─► what calls have finished counts ─► fence: calls are cancelled, nothing more starts or counts ─► last commit ─► release
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
use crate::dispatch::RecordId;
use crate::record::Record;
use crate::records::Records;
use crate::records::slab::RecordEntry;
use crate::source::AssignmentId;

impl<R: Record> Flow<R> {
    /// Stops the admission of partitions; started records may finish until `deadline_ms` on the flow's clock. A
    /// partition that is draining already keeps an earlier deadline.
    pub fn start_drain(&mut self, slots: &[AssignmentId], deadline_ms: u64) {
        for &slot in slots {
            self.ctx.records.drop_overflow(slot);
            self.ctx.records.partitions[slot].start_drain(deadline_ms);
        }
        self.committer.start_drain(slots);
        self.leave_unstarted(slots);
        self.stop_calls(slots);
    }

    /// Ends running calls that contain records of these partitions, each after its current record: a slow handler may
    /// need longer for the rest of its batch than the drain may take.
    fn stop_calls(&mut self, slots: &[AssignmentId]) {
        for queue in self.queues.iter_mut().flatten() {
            queue.stop_calls(&mut self.ctx, unsettled_of(slots));
        }
    }

    /// Called when a call has ended. After the last `stopped` one, the records that they did not start are left to the
    /// next owner, or stop waiting: while stopped calls are running, it is unknown which records of a draining partition
    /// they have started, and batches with such records are withheld.
    pub(super) fn call_ended(&mut self, stopped: bool) {
        if !stopped || self.ctx.agenda.waits_for_calls() {
            return;
        }
        let slots: Vec<AssignmentId> = self.ctx.records.partitions.draining().collect();
        if !slots.is_empty() {
            self.leave_unstarted(&slots);
        }
        for queue in self.queues.iter_mut().flatten() {
            queue.mark_dirty(&mut self.ctx);
        }
    }

    /// Removes all records beyond the last one that some handler has started.
    fn leave_unstarted(&mut self, slots: &[AssignmentId]) {
        let started = self.started();
        let mut last: HashMap<AssignmentId, i64> =
            slots.iter().map(|slot| (*slot, i64::MIN)).collect();
        for key in &started {
            if let Some(entry) = self.ctx.records.slab.get(*key)
                && let Some(last) = last.get_mut(&entry.slot)
            {
                *last = entry.offset().max(*last);
            }
        }
        let beyond = |entry: &RecordEntry<R>| {
            let last = last.get(&entry.slot);
            entry.unsettled > 0 && last.is_some_and(|last| entry.offset() > *last)
        };
        let held = self.ctx.records.slab.iter();
        let unstarted: Vec<RecordId> = held
            .filter(|(_, entry)| beyond(entry))
            .map(|(key, _)| key)
            .collect();
        self.abandon(&unstarted);
    }

    /// Whether nothing of these partitions is in flight, or the deadline has passed.
    pub fn is_drained(&self, slots: &[AssignmentId]) -> bool {
        self.ctx
            .records
            .partitions
            .is_drained(slots, self.ctx.now_ms)
    }

    /// The group has reassigned these partitions already: instances are told so when they are released.
    pub fn lose(&self, slots: &[AssignmentId]) {
        for slot in slots {
            self.ctx.records.partitions[*slot].lose();
        }
    }

    /// Releases partitions: none of their records starts, late outcomes are discarded, nothing is committed for them
    /// (G5).
    pub fn release(&mut self, slots: &[AssignmentId]) {
        let owned = |slot: &AssignmentId| {
            let known = self.ctx.records.partitions.get(*slot);
            known.is_some_and(|one| !one.is_released())
        };
        // Another release would free a place that another partition may have by now.
        let slots: Vec<AssignmentId> = slots.iter().copied().filter(owned).collect();
        let slots = slots.as_slice();
        self.fence(slots);
        for &slot in slots {
            let assignment = &mut self.ctx.records.partitions[slot];
            if let Some(counts) = self.topics.get_mut(&assignment.at().topic) {
                let (delivered, repeats) = assignment.take_counts();
                counts.consumed += delivered;
                counts.repeats += repeats;
            }
            self.ownership_changed |= self.ctx.records.partitions.release(slot);
        }
        self.committer.release(slots);
        self.drop_retired();
    }

    /// Fences the partitions whose drain has timed out, before their last commit is sent: from then on none of their
    /// records starts or counts.
    pub(super) fn end_overdue_drains(&mut self) {
        let overdue: Vec<AssignmentId> = self
            .ctx
            .records
            .partitions
            .each()
            .filter(|(_, assignment)| {
                let deadline_ms = assignment.drains_until_ms();
                !assignment.is_fenced() && deadline_ms.is_some_and(|ms| self.ctx.now_ms >= ms)
            })
            .map(|(slot, _)| slot)
            .collect();
        if !overdue.is_empty() {
            self.settle_published(&overdue);
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

    /// Settles the records of these partitions that running calls have finished: nothing of a call counts after the fence.
    fn settle_published(&mut self, slots: &[AssignmentId]) {
        for queue in self.queues.iter_mut().flatten() {
            queue.settle_published(&mut self.ctx, unsettled_of(slots));
        }
    }

    /// Takes the number of records that were started and unfinished when drains timed out, or whose calls timed out while they
    /// were drained.
    pub fn take_unfinished(&mut self) -> u64 {
        std::mem::take(&mut self.unfinished_records) + self.ctx.take_unfinished()
    }

    /// Counts the unfinished records of partitions that are lost during shutdown. Returns the number of partitions with
    /// handled records that are not known to be committed.
    pub fn count_lost(&mut self, slots: &[AssignmentId]) -> usize {
        let started = self.started();
        let (records, _) = self.unfinished(slots, &started);
        self.unfinished_records += records as u64;
        let left = |slot: &&AssignmentId| {
            let assignment = &self.ctx.records.partitions[**slot];
            let ledger = assignment.ledger();
            // An uncommitted token alone causes no reprocessing.
            let handled =
                ledger.frontier() > assignment.committed() || !ledger.settled_ahead().is_empty();
            handled && self.committer.entry(self.now(), **slot).is_some()
        };
        slots.iter().filter(left).count()
    }

    /// How many started records of these partitions are unsettled, and in which handlers.
    fn unfinished(
        &self,
        slots: &[AssignmentId],
        started: &HashSet<RecordId>,
    ) -> (usize, Vec<&str>) {
        let left = |key: &RecordId| {
            self.ctx
                .records
                .slab
                .get(*key)
                .is_some_and(|entry| entry.unsettled > 0 && slots.contains(&entry.slot))
        };
        let queues = self.queues.iter().flatten();
        let busy = queues.filter(|queue| queue.has_unfinished(&self.ctx.outbox, left));
        let names = busy.map(|queue| &*queue.settings().name);
        (
            started.iter().filter(|key| left(key)).count(),
            names.collect(),
        )
    }

    /// Removes all records of partitions: those that no worker has started do not start, calls that contain some of
    /// them stop after their current record.
    fn fence(&mut self, slots: &[AssignmentId]) {
        for &slot in slots {
            self.ctx.records.drop_overflow(slot);
            self.ctx.records.partitions[slot].fence();
        }
        let fenced = |records: &Records<R>, key: &RecordId| {
            let entry = records.slab.get(*key);
            entry.is_some_and(|entry| records.partitions[entry.slot].is_fenced())
        };
        let mut cancelled = Vec::new();
        for (place, queue) in self.queues.iter_mut().enumerate() {
            if let Some(queue) = queue
                && queue.cancel_calls(&self.ctx, fenced)
            {
                cancelled.push(place);
            }
        }
        let records = &self.ctx.records;
        let held = records.slab.iter();
        let left: Vec<RecordId> = held
            .filter(|(key, entry)| entry.unsettled > 0 && fenced(records, key))
            .map(|(key, _)| key)
            .collect();
        self.abandon(&left);
        for place in cancelled {
            if let Some(queue) = &self.queues[place] {
                queue.recall_queued();
            }
        }
        self.forget_stopped_calls();
    }

    /// Stops waiting for stopped calls without records of a draining partition: a hung one would block every later
    /// drain.
    fn forget_stopped_calls(&mut self) {
        if !self.ctx.agenda.waits_for_calls() {
            return;
        }
        let drains = |records: &Records<R>, key: &RecordId| {
            let entry = records.slab.get(*key);
            entry.is_some_and(|entry| {
                entry.unsettled > 0 && records.partitions[entry.slot].is_draining()
            })
        };
        for queue in self.queues.iter_mut().flatten() {
            queue.keep_stopped(&mut self.ctx, drains);
        }
        self.call_ended(true);
    }

    /// Records that some handler has started: settled by one, waiting for the producer, or with a worker.
    fn started(&self) -> HashSet<RecordId> {
        let mut started: HashSet<RecordId> = self
            .ctx
            .records
            .slab
            .iter()
            .filter(|(_, entry)| entry.unsettled < entry.wanted)
            .map(|(key, _)| key)
            .collect();
        // A parked record that no other handler has finished has had no effect: it can run elsewhere.
        let queues = self.queues.iter().flatten();
        started.extend(queues.flat_map(|queue| queue.started(&self.ctx.outbox)));
        started
    }

    /// Removes records from all queues; they are never settled here.
    fn abandon(&mut self, keys: &[RecordId]) {
        let gone: HashSet<RecordId> = keys.iter().copied().collect();
        let mut freed = Vec::new();
        for (place, queue) in self.queues.iter_mut().enumerate() {
            if let Some(queue) = queue {
                freed.push((place, queue.abandon(&mut self.ctx, &gone)));
            }
        }
        self.ctx.records.abandon(keys);
        for (place, lanes) in freed {
            if let Some(queue) = self.queues[place].as_mut() {
                for lane in lanes {
                    queue.release_lane(&mut self.ctx, lane);
                }
            }
        }
    }
}

/// Whether a record belongs to one of these partitions and some handler has not settled it.
fn unsettled_of<R: Record>(slots: &[AssignmentId]) -> impl Fn(&Records<R>, &RecordId) -> bool + '_ {
    |records, key| {
        let entry = records.slab.get(*key);
        entry.is_some_and(|entry| entry.unsettled > 0 && slots.contains(&entry.slot))
    }
}
