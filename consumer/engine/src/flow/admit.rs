//! Admission: from the source through the ledger and routing, within the bounds on uncommitted records and memory.

use rapidhash::v3::rapidhash_v3;
use sluicegate_abi::lend::Lent;

use super::Flow;
use crate::partition::assignment::OverflowRecord;
use crate::partition::ledger::Delivered;
use crate::record::Record;
use crate::records::slab::NewEntry;
use crate::source::{AssignmentId, Delivery};

/// Bytes charged per record besides its own: librdkafka's operation and the slab entry.
const OVERHEAD: usize = 304 + 96;
/// Maximum number of handlers per record; validation rejects a configuration with more.
const MAX_FANOUT: usize = u16::MAX as usize;

impl<R: Record> Flow<R> {
    /// Queues a record until its partition has room for it.
    fn defer_record(&mut self, delivery: Delivery<R>, in_front: bool) {
        let charge = (delivery.lease.size() + OVERHEAD) as u64;
        let kept = OverflowRecord { delivery, charge };
        self.ctx.records.charged += charge;
        let now_ms = self.ctx.now_ms;
        let assignment = &mut self.ctx.records.partitions[kept.delivery.slot];
        assignment.overflow_bytes += charge;
        assignment.full_since_ms.get_or_insert(now_ms);
        match in_front {
            true => assignment.overflow.push_front(kept),
            false => assignment.overflow.push_back(kept),
        }
    }

    /// Removes the oldest queued record of a partition.
    fn pop_overflow(&mut self, slot: AssignmentId) -> Option<Delivery<R>> {
        let assignment = &mut self.ctx.records.partitions[slot];
        let OverflowRecord { delivery, charge } = assignment.overflow.pop_front()?;
        assignment.overflow_bytes -= charge;
        if assignment.overflow.is_empty() {
            assignment.full_since_ms = None;
        }
        self.ctx.records.charged -= charge;
        Some(delivery)
    }

    /// Accepts one fetched record.
    pub fn deliver(&mut self, delivery: Delivery<R>) {
        // The source may deliver for a moment what was released: a client that is about to be replaced is not told.
        let known = self.ctx.records.partitions.get(delivery.slot);
        let Some(assignment) = known.filter(|assignment| assignment.admits()) else {
            return;
        };
        if !assignment.overflow.is_empty() || !assignment.has_room(self.settings.max_uncommitted) {
            self.defer_record(delivery, false);
            return;
        }
        if let Some(back) = self.admit(delivery) {
            self.defer_record(back, false);
        }
    }

    /// Admits one record; returns it if the ledger has no room for it yet.
    fn admit(&mut self, delivery: Delivery<R>) -> Option<Delivery<R>> {
        let assignment = &mut self.ctx.records.partitions[delivery.slot];
        if delivery.leader_epoch > assignment.finished_leader_epoch {
            let forgot = assignment.forget_inherited(delivery.offset);
            if forgot && let Some(counts) = self.topics.get_mut(&assignment.at.topic) {
                counts.metadata_dropped += 1;
            }
        }
        let was_settled = assignment.ledger.is_settled();
        match assignment.ledger.deliver(delivery.offset) {
            // Nothing was unsettled until now, so the wait of the frontier starts here.
            Delivered::New if was_settled => assignment.begun_ms = self.ctx.now_ms,
            Delivered::New => {}
            Delivered::Done => {
                assignment.delivered += 1;
                assignment
                    .leader_epochs
                    .record(delivery.offset, delivery.leader_epoch);
                return None;
            }
            Delivered::Repeat => {
                assignment.repeats += 1;
                return None;
            }
            Delivered::TooFar => return Some(delivery),
            Delivered::Fault => {
                let cause = format!(
                    "unexpected record at offset {} (next is {})",
                    delivery.offset,
                    assignment.ledger.next()
                );
                let remedy = "restart the service to resume from the committed offset";
                self.stop_partition(delivery.slot, &cause, remedy);
                return None;
            }
        }
        assignment.delivered += 1;
        assignment
            .leader_epochs
            .record(delivery.offset, delivery.leader_epoch);
        if let Some(log) = &mut self.record_log {
            log.record(&assignment.at, &delivery, self.ctx.now_ms);
        }
        self.route(delivery);
        None
    }

    fn route(&mut self, delivery: Delivery<R>) {
        let assignment = &mut self.ctx.records.partitions[delivery.slot];
        let lease = delivery.lease;
        let wanted = self.router.route(
            assignment.plan,
            assignment.at.partition,
            lease.key(),
            || lease.headers(),
        );
        let mut open = 0usize;
        for ix in wanted {
            let queue = self.queues.get_mut(ix.0 as usize);
            if let Some(queue) = queue.and_then(Option::as_mut) {
                if queue.takes_records() {
                    open += 1;
                } else {
                    queue.count_skipped();
                }
            }
        }
        if open == 0 {
            if wanted.is_empty()
                && let Some(counts) = self.topics.get_mut(&assignment.at.topic)
            {
                counts.unrouted += 1;
            }
            assignment.pass_by(delivery.offset, self.ctx.now_ms);
            return;
        }
        debug_assert!(open <= MAX_FANOUT, "validation bounds their number");
        let place = assignment.place_of(delivery.offset, delivery.timestamp_ms);
        let key_hash = lease.key().map_or(0, |key| rapidhash_v3(key) | 1);
        let record = Lent::new(lease, place);
        let charge = (record.size() + OVERHEAD) as u32;
        self.ctx.records.charged += u64::from(charge);
        assignment.entries += 1;
        assignment.unsettled += 1;
        assignment.usage.entry_bytes += u64::from(charge);
        let entry = self.ctx.records.slab.insert(NewEntry {
            record,
            slot: delivery.slot,
            key_hash,
            charge,
            handlers: open as u16,
        });
        for ix in wanted {
            let queue = self.queues.get_mut(ix.0 as usize);
            if let Some(queue) = queue.and_then(Option::as_mut)
                && queue.takes_records()
            {
                queue.enqueue(&mut self.ctx, entry);
            }
        }
    }

    /// Admits queued records, in order, as far as their partitions have room.
    pub(super) fn admit_overflow(&mut self) {
        let slots: smallvec::SmallVec<[AssignmentId; 16]> = self
            .ctx
            .records
            .partitions
            .each()
            .filter(|(_, assignment)| !assignment.overflow.is_empty())
            .map(|(slot, _)| slot)
            .collect();
        for slot in slots {
            loop {
                let assignment = &mut self.ctx.records.partitions[slot];
                if !assignment.admits() || !assignment.has_room(self.settings.max_uncommitted) {
                    break;
                }
                let Some(delivery) = self.pop_overflow(slot) else {
                    break;
                };
                if let Some(back) = self.admit(delivery) {
                    self.defer_record(back, true);
                    break;
                }
            }
        }
    }

    /// Drops the queued records of a partition that is revoked.
    pub(super) fn drop_overflow(&mut self, slot: AssignmentId) {
        while self.pop_overflow(slot).is_some() {}
    }
}
