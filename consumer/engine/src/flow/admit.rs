//! Admission: from the source through the ledger and routing, within the bounds on uncommitted records and memory.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::{Flow, TopicCounts};
use crate::dispatch::{HandlerIx, RecordId};
use crate::partition::ledger::Delivered;
use crate::queue::HandlerQueue;
use crate::queue::context::Context;
use crate::record::Record;
use crate::routing::Router;
use crate::source::{AssignmentId, Delivery};

/// Maximum number of handlers per record; validation rejects a configuration with more.
const MAX_FANOUT: usize = u16::MAX as usize;

/// Maximum number of records per run: their keys are prefetched at once.
const MAX_RUN: usize = 256;

/// Consecutive offsets of one partition, appended by one leader.
#[derive(Clone, Copy, Debug)]
struct Run {
    slot: AssignmentId,
    first: i64,
    count: usize,
    leader_epoch: i32,
}

impl Run {
    /// A run of one record.
    fn of<R>(delivery: &Delivery<R>) -> Self {
        Self {
            slot: delivery.slot,
            first: delivery.offset,
            count: 1,
            leader_epoch: delivery.leader_epoch,
        }
    }

    fn offsets(&self) -> Range<i64> {
        self.first..self.first + self.count as i64
    }

    /// The run with which these records begin; `None` if there are none.
    fn first_of<'d, R: 'd>(deliveries: impl Iterator<Item = &'d Delivery<R>>) -> Option<Self> {
        let mut deliveries = deliveries.take(MAX_RUN);
        let first = deliveries.next()?;
        let mut run = Self::of(first);
        let continues =
            |next: &&Delivery<R>| next.slot == run.slot && next.leader_epoch == run.leader_epoch;
        let offsets = deliveries.take_while(continues).zip(first.offset + 1..);
        run.count += offsets
            .take_while(|(next, offset)| next.offset == *offset)
            .count();
        Some(run)
    }
}

/// Whether a run has waited for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queued {
    /// It comes from the source: records that wait come first.
    No,
    /// It was first in its partition's queue.
    First,
}

/// Result of admitting a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admitted {
    /// All its records go to the same handlers.
    AtOnce,
    /// The handlers depend on the record.
    EachRouted,
    /// Not as a whole: nothing has changed.
    No,
}

/// Where admitted records go: to the queues of the handlers that want them, or past all of them.
struct Outlet<'f, R: Record> {
    queues: &'f mut [Option<HandlerQueue>],
    ctx: &'f mut Context<R>,
    topics: &'f mut HashMap<Arc<str>, TopicCounts>,
    keys: &'f mut Vec<RecordId>,
    /// Queues that records of the run have arrived at.
    arrived: &'f mut Vec<HandlerIx>,
}

impl<R: Record> Outlet<'_, R> {
    /// Visits the queues of the wanted handlers that exist.
    fn each_wanted(
        queues: &mut [Option<HandlerQueue>],
        wanted: &[HandlerIx],
        mut visit: impl FnMut(&mut HandlerQueue),
    ) {
        for ix in wanted {
            let queue = queues.get_mut(ix.0 as usize);
            if let Some(queue) = queue.and_then(Option::as_mut) {
                visit(queue);
            }
        }
    }

    /// How many of the handlers that want these records take them; the others, whose gates are closed, count them as skipped.
    fn takers(&mut self, wanted: &[HandlerIx], records: usize) -> u16 {
        let mut open = 0usize;
        Self::each_wanted(self.queues, wanted, |queue| match queue.takes_records() {
            true => open += 1,
            false => queue.count_skipped(records as u64),
        });
        debug_assert!(open <= MAX_FANOUT, "validation bounds their number");
        open as u16
    }

    /// Settles records that no handler takes, of which so many are wanted by none.
    fn pass_by(&mut self, slot: AssignmentId, offsets: Range<i64>, unrouted: usize) {
        if offsets.is_empty() {
            return;
        }
        let assignment = &mut self.ctx.records.partitions[slot];
        if unrouted > 0
            && let Some(counts) = self.topics.get_mut(&assignment.at().topic)
        {
            counts.unrouted += unrouted as u64;
        }
        assignment.pass_by(offsets, self.ctx.now_ms);
    }

    /// Routes records of a partition one by one, and hands each queue its own together.
    fn hand_out_each(
        &mut self,
        router: &mut Router,
        slot: AssignmentId,
        deliveries: impl Iterator<Item = Delivery<R>>,
    ) {
        let assignment = &self.ctx.records.partitions[slot];
        let (plan, partition) = (assignment.plan(), assignment.at().partition);
        let (mut passed, mut unrouted) = (0..0, 0);
        for delivery in deliveries {
            let (lease, offset) = (&delivery.lease, delivery.offset);
            let wanted = router.route(plan, partition, lease.key(), || lease.headers());
            let open = self.takers(wanted, 1);
            if open == 0 {
                if passed.end != offset {
                    self.pass_by(slot, passed, std::mem::take(&mut unrouted));
                    passed = offset..offset;
                }
                passed.end += 1;
                unrouted += usize::from(wanted.is_empty());
                continue;
            }
            let key = self.ctx.records.insert(delivery, open);
            for &ix in wanted {
                let queue = self.queues.get_mut(ix.0 as usize);
                if let Some(queue) = queue.and_then(Option::as_mut)
                    && queue.takes_records()
                    && queue.arrive(key)
                {
                    self.arrived.push(ix);
                }
            }
        }
        self.pass_by(slot, passed, unrouted);
        Self::each_wanted(self.queues, self.arrived, |queue| {
            queue.enqueue_arrived(self.ctx)
        });
        self.arrived.clear();
    }

    /// Hands out the records of a run, all of which `wanted` handlers want; those whose gates are closed count them as
    /// skipped.
    fn hand_out(
        &mut self,
        wanted: &[HandlerIx],
        run: &Run,
        deliveries: impl Iterator<Item = Delivery<R>>,
    ) {
        let open = self.takers(wanted, run.count);
        if open == 0 {
            let unrouted = if wanted.is_empty() { run.count } else { 0 };
            self.pass_by(run.slot, run.offsets(), unrouted);
            // Taken out of what is delivered, or they would be admitted again.
            deliveries.for_each(drop);
            return;
        }
        self.keys.clear();
        let entries = deliveries.map(|delivery| self.ctx.records.insert(delivery, open));
        self.keys.extend(entries);
        Self::each_wanted(self.queues, wanted, |queue| {
            if queue.takes_records() {
                queue.enqueue(self.ctx, self.keys);
            }
        });
    }
}

impl<R: Record> Flow<R> {
    /// Accepts fetched records, in order: a run (consecutive offsets of one partition) as a whole, if nothing distinguishes
    /// its records.
    pub fn deliver_all(&mut self, deliveries: &mut Vec<Delivery<R>>) {
        let mut rest = deliveries.drain(..);
        while let Some(run) = Run::first_of(rest.as_slice().iter()) {
            for delivery in &rest.as_slice()[..run.count] {
                delivery.lease.prefetch_key();
            }
            let taken = rest.by_ref().take(run.count);
            match self.admit_run(&run, Queued::No) {
                Admitted::AtOnce => self.route_run(&run, taken),
                Admitted::EachRouted => self.route_each(run.slot, taken),
                Admitted::No => taken.for_each(|delivery| self.deliver(delivery)),
            }
        }
    }

    /// Admits a run if each of its records is new and has room, and none is queued before it.
    fn admit_run(&mut self, run: &Run, queued: Queued) -> Admitted {
        let max_uncommitted = self.settings.max_uncommitted;
        let Some(assignment) = self.ctx.records.partitions.get_mut(run.slot) else {
            return Admitted::No;
        };
        let free = max_uncommitted - assignment.uncommitted();
        let skipped = run.first - assignment.ledger().next();
        let is_next = queued == Queued::First || assignment.overflow().is_empty();
        let has_room =
            is_next && assignment.has_room(max_uncommitted) && skipped + run.count as i64 <= free;
        if !has_room || !assignment.admits() || self.record_log.is_some() {
            return Admitted::No;
        }
        let now_ms = self.ctx.now_ms;
        if !assignment.deliver_run(run.first, run.count, run.leader_epoch, now_ms) {
            return Admitted::No;
        }
        match self.router.constant(assignment.plan()) {
            Some(_) => Admitted::AtOnce,
            None => Admitted::EachRouted,
        }
    }

    /// Where admitted records go, and what decides that.
    fn outlet(&mut self) -> (Outlet<'_, R>, &mut Router) {
        let outlet = Outlet {
            queues: &mut self.queues,
            ctx: &mut self.ctx,
            topics: &mut self.topics,
            keys: &mut self.keys,
            arrived: &mut self.arrived,
        };
        (outlet, &mut self.router)
    }

    /// Routes an admitted run, whose records go to the same handlers.
    fn route_run(&mut self, run: &Run, deliveries: impl Iterator<Item = Delivery<R>>) {
        let plan = self.ctx.records.partitions[run.slot].plan();
        let (mut outlet, router) = self.outlet();
        let wanted = router.constant(plan).unwrap_or_default();
        outlet.hand_out(wanted, run, deliveries);
    }

    /// Routes admitted records of a partition, in order.
    fn route_each(&mut self, slot: AssignmentId, deliveries: impl Iterator<Item = Delivery<R>>) {
        let (mut outlet, router) = self.outlet();
        outlet.hand_out_each(router, slot, deliveries);
    }

    /// Accepts one fetched record.
    pub fn deliver(&mut self, delivery: Delivery<R>) {
        // The source may deliver for a moment what was released: a client that is about to be replaced is not told.
        let known = self.ctx.records.partitions.get(delivery.slot);
        let Some(assignment) = known.filter(|assignment| assignment.admits()) else {
            return;
        };
        let now_ms = self.ctx.now_ms;
        if !assignment.overflow().is_empty() || !assignment.has_room(self.settings.max_uncommitted)
        {
            self.ctx.records.push_overflow(delivery, now_ms);
            return;
        }
        if let Some(back) = self.admit(delivery) {
            self.ctx.records.push_overflow(back, now_ms);
        }
    }

    /// Admits one record; returns it if the ledger has no room for it yet.
    fn admit(&mut self, delivery: Delivery<R>) -> Option<Delivery<R>> {
        let assignment = &mut self.ctx.records.partitions[delivery.slot];
        let (offset, leader_epoch) = (delivery.offset, delivery.leader_epoch);
        if assignment.check_inherited(offset, leader_epoch)
            && let Some(counts) = self.topics.get_mut(&assignment.at().topic)
        {
            counts.metadata_dropped += 1;
        }
        match assignment.deliver(offset, leader_epoch, self.ctx.now_ms) {
            Delivered::New => {}
            Delivered::Done | Delivered::Repeat => return None,
            Delivered::TooFar => return Some(delivery),
            Delivered::Fault => {
                let cause = format!(
                    "unexpected record at offset {offset} (next is {})",
                    assignment.ledger().next()
                );
                let remedy = "restart the service to resume from the committed offset";
                self.stop_partition(delivery.slot, &cause, remedy);
                return None;
            }
        }
        if let Some(log) = &mut self.record_log {
            log.record(assignment.at(), &delivery, self.ctx.now_ms);
        }
        self.route_each(delivery.slot, std::iter::once(delivery));
        None
    }

    /// Admits queued records, in order, as far as their partitions have room.
    pub(super) fn admit_overflow(&mut self) {
        let slots: smallvec::SmallVec<[AssignmentId; 16]> = self
            .ctx
            .records
            .partitions
            .each()
            .filter(|(_, assignment)| !assignment.overflow().is_empty())
            .map(|(slot, _)| slot)
            .collect();
        for slot in slots {
            while self.admit_queued_run(slot) {}
        }
    }

    /// Admits the first queued run of a partition as far as it has room; `false`: it has none, or nothing is queued.
    fn admit_queued_run(&mut self, slot: AssignmentId) -> bool {
        let max_uncommitted = self.settings.max_uncommitted;
        let assignment = &self.ctx.records.partitions[slot];
        if !assignment.admits() || !assignment.has_room(max_uncommitted) {
            return false;
        }
        let full_since_ms = assignment.overflow().full_since_ms();
        let since_ms = full_since_ms.unwrap_or(self.ctx.now_ms);
        let room = (max_uncommitted - assignment.uncommitted()) as usize;
        let Some(run) = Run::first_of(assignment.overflow().iter().take(room)) else {
            return false;
        };
        let mut taken = std::mem::take(&mut self.queued);
        let queued = (0..run.count).map_while(|_| self.ctx.records.pop_overflow(slot));
        taken.extend(queued);
        let admits_more = match self.admit_run(&run, Queued::First) {
            Admitted::AtOnce => {
                self.route_run(&run, taken.drain(..));
                true
            }
            Admitted::EachRouted => {
                self.route_each(slot, taken.drain(..));
                true
            }
            Admitted::No => self.admit_each(&mut taken, since_ms),
        };
        self.queued = taken;
        admits_more
    }

    /// Admits records that left the queue of their partition, one by one; queues those again, in front, for which it has no
    /// room: they have waited since `since_ms`. `false`: there were some.
    fn admit_each(&mut self, taken: &mut Vec<Delivery<R>>, since_ms: u64) -> bool {
        let max_uncommitted = self.settings.max_uncommitted;
        let mut rest = taken.drain(..);
        let mut back = None;
        while back.is_none()
            && let Some(delivery) = rest.next()
        {
            let assignment = &self.ctx.records.partitions[delivery.slot];
            // A record that is a fault stops the partition.
            if !assignment.admits() {
                return false;
            }
            back = match assignment.has_room(max_uncommitted) {
                true => self.admit(delivery),
                false => Some(delivery),
            };
        }
        let Some(back) = back else { return true };
        let rest: Vec<Delivery<R>> = rest.collect();
        for delivery in rest.into_iter().rev().chain([back]) {
            self.ctx.records.put_back(delivery, since_ms);
        }
        false
    }
}
