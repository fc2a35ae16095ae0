//! The records in flight and the partitions in which they settle: what every handler's queue changes when a share of a
//! record is over.
//!
//! A record has one entry, however many handlers receive it; the last handler settles its offset (G1). Settling an offset
//! twice is a broken invariant (G13). An entry is freed only when no batch contains it, because a hung call may still read
//! its bytes (G14).

pub(crate) mod slab;

use std::ops::Range;
use std::sync::Arc;

use rapidhash::v3::rapidhash_v3;
use sluicegate_abi::lend::Lent;
use sluicegate_runtime::RawRecord;

use crate::dispatch::RecordId;
use crate::partition::table::Partitions;
use crate::record::Record;
use crate::source::{AssignmentId, Delivery, TopicPartition};
use slab::{NewRecord, RecordEntry, Slab};

/// All records in flight, and all partitions.
pub(crate) struct Records<R: Record> {
    pub(crate) slab: Slab<R>,
    pub(crate) partitions: Partitions<R>,
    /// Bytes charged for records: those in the slab, and those that wait for room in their partition.
    charged: u64,
    /// The violated invariant, if one was found.
    fault: Option<Arc<str>>,
}

impl<R: Record> Default for Records<R> {
    fn default() -> Self {
        Self {
            slab: Slab::default(),
            partitions: Partitions::default(),
            charged: 0,
            fault: None,
        }
    }
}

fn settled_twice(offset: i64, at: &TopicPartition) -> Arc<str> {
    format!("offset {offset} of {at} was settled twice (G13)").into()
}

/// Consecutive offsets of a partition that are over, and are settled there at once.
pub(crate) struct SettledRun {
    slot: AssignmentId,
    offsets: Range<i64>,
    bytes: u64,
}

impl Default for SettledRun {
    fn default() -> Self {
        Self {
            slot: AssignmentId(u32::MAX),
            offsets: 0..0,
            bytes: 0,
        }
    }
}

/// Bytes charged per record besides its own: librdkafka's operation and the slab entry.
const OVERHEAD: usize = 304 + 96;

impl<R: Record> Records<R> {
    /// Bytes charged for records: those in flight, and those that wait for room in their partition.
    pub(crate) fn charged(&self) -> u64 {
        self.charged
    }

    /// The violated invariant, if one was found.
    pub(crate) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Adds a record that `handlers` handlers have to settle, and charges it.
    #[inline]
    pub(crate) fn insert(&mut self, delivery: Delivery<R>, handlers: u16) -> RecordId {
        let assignment = &mut self.partitions[delivery.slot];
        let place = assignment.place_of(delivery.offset, delivery.timestamp_ms);
        let lease = delivery.lease;
        let key_hash = lease.key().map_or(0, |key| rapidhash_v3(key) | 1);
        let record = Lent::new(lease, place);
        let charge = (record.size() + OVERHEAD) as u32;
        self.charged += u64::from(charge);
        assignment.holdings_mut().insert(u64::from(charge));
        self.slab.insert(NewRecord {
            record,
            slot: delivery.slot,
            key_hash,
            charge,
            handlers,
        })
    }

    /// Charges a record that waits for room in its partition.
    pub(crate) fn push_overflow(&mut self, delivery: Delivery<R>, now_ms: u64) {
        let charge = (delivery.lease.size() + OVERHEAD) as u64;
        self.charged += charge;
        self.partitions[delivery.slot]
            .holdings_mut()
            .push_overflow(delivery, charge, now_ms);
    }

    /// Returns a record that has waited for room since `since_ms` to the front of its partition's queue.
    pub(crate) fn put_back(&mut self, delivery: Delivery<R>, since_ms: u64) {
        let charge = (delivery.lease.size() + OVERHEAD) as u64;
        self.charged += charge;
        self.partitions[delivery.slot]
            .holdings_mut()
            .put_back(delivery, charge, since_ms);
    }

    /// Takes the oldest record of a partition that waits for room; it is not charged any more.
    pub(crate) fn pop_overflow(&mut self, slot: AssignmentId) -> Option<Delivery<R>> {
        let (delivery, charge) = self.partitions[slot].holdings_mut().pop_overflow()?;
        self.charged -= charge;
        Some(delivery)
    }

    /// Drops the records of a partition that wait for room.
    pub(crate) fn drop_overflow(&mut self, slot: AssignmentId) {
        while self.pop_overflow(slot).is_some() {}
    }

    /// Settles a record for one handler; the last handler settles its offset.
    pub(crate) fn settle_share(&mut self, key: RecordId, now_ms: u64) {
        let Some(entry) = self.slab.get_mut(key) else {
            return;
        };
        if entry.unsettled == 0 {
            self.free_if_done(key);
            return;
        }
        entry.unsettled -= 1;
        if entry.unsettled > 0 {
            return;
        }
        let assignment = &mut self.partitions[entry.slot];
        if !assignment.settle(entry.offset(), now_ms) {
            self.fault = Some(settled_twice(entry.offset(), assignment.at()));
        }
        self.free_if_done(key);
    }

    /// Returns a record of a call in which it succeeded, and settles it for that handler; `false`: it was over before. What
    /// concerns its partition follows for a run of records at once, at the latest with [`Self::end_run`].
    #[inline]
    pub(crate) fn return_settled(
        &mut self,
        run: &mut SettledRun,
        key: RecordId,
        view: RawRecord,
        now_ms: u64,
    ) -> bool {
        let Some(entry) = self.slab.get_mut(key) else {
            return false;
        };
        entry.return_record(view);
        if entry.unsettled > 1 {
            entry.unsettled -= 1;
            return true;
        }
        if entry.unsettled == 0 || entry.is_lent() {
            let counts = entry.unsettled > 0;
            self.settle_share(key, now_ms);
            return counts;
        }
        let (slot, offset, charge) = (entry.slot, entry.offset(), u64::from(entry.charge));
        if run.slot != slot || run.offsets.end != offset {
            self.end_run(run, now_ms);
            run.slot = slot;
            run.offsets = offset..offset;
        }
        run.offsets.end += 1;
        run.bytes += charge;
        self.slab.remove(key);
        true
    }

    /// Settles and frees a run in its partition.
    pub(crate) fn end_run(&mut self, run: &mut SettledRun, now_ms: u64) {
        let SettledRun {
            slot,
            offsets,
            bytes,
        } = std::mem::take(run);
        if offsets.is_empty() {
            return;
        }
        self.charged -= bytes;
        let assignment = &mut self.partitions[slot];
        if let Some(offset) = assignment.settle_run(offsets, bytes, now_ms) {
            self.fault = Some(settled_twice(offset, assignment.at()));
        }
        if assignment.is_released() {
            self.partitions.free_if_over(slot);
        }
    }

    /// Whether nothing more is expected of a record: it is settled, or its partition was revoked (G5).
    pub(crate) fn is_over(&self, key: RecordId) -> bool {
        self.slab.get(key).is_none_or(|entry| entry.unsettled == 0)
    }

    /// Frees a record that all handlers have settled and no batch points to.
    pub(crate) fn free_if_done(&mut self, key: RecordId) {
        let Some(entry) = self.slab.get_mut(key) else {
            return;
        };
        if entry.unsettled > 0 {
            return;
        }
        let charge = u64::from(entry.charge);
        let assignment = &mut self.partitions[entry.slot];
        if !entry.stranded {
            assignment.holdings_mut().uncharge(charge);
        }
        if entry.is_lent() {
            entry.stranded = true;
            return;
        }
        self.charged -= charge;
        assignment.holdings_mut().free(charge);
        let slot = entry.slot;
        let released = assignment.is_released();
        self.slab.remove(key);
        if released {
            self.partitions.free_if_over(slot);
        }
    }

    /// Returns what was lent to a batch.
    pub(crate) fn return_record(&mut self, key: RecordId, record: RawRecord) {
        if let Some(entry) = self.slab.get_mut(key) {
            entry.return_record(record);
        }
    }

    /// Copies a record that will wait, so that it does not keep a whole fetch buffer alive.
    pub(crate) fn detach(&mut self, key: RecordId) {
        if let Some(entry) = self.slab.get_mut(key) {
            entry.detach();
        }
    }

    /// The assignment of a record.
    pub(crate) fn slot_of(&self, key: RecordId) -> AssignmentId {
        let entry = self.slab.get(key);
        entry.map_or(AssignmentId(u32::MAX), |entry| entry.slot)
    }

    /// Counts parked shares of a partition's records.
    pub(crate) fn count_parked(&mut self, slot: AssignmentId, by: i64) {
        if by != 0
            && let Some(assignment) = self.partitions.get_mut(slot)
        {
            assignment.holdings_mut().count_parked(by);
        }
    }

    /// Bytes charged for these records.
    pub(crate) fn charge_of(&self, keys: &[RecordId]) -> u64 {
        let entries = keys.iter().filter_map(|key| self.slab.get(*key));
        entries.map(|entry| u64::from(entry.charge)).sum()
    }

    /// Drops records that their partition leaves to its next owner: no handler settles them here.
    pub(crate) fn abandon(&mut self, keys: &[RecordId]) {
        for &key in keys {
            if let Some(entry) = self.slab.get_mut(key)
                && std::mem::take(&mut entry.unsettled) > 0
            {
                self.partitions[entry.slot].holdings_mut().settle();
            }
            self.free_if_done(key);
        }
    }

    /// The live records of a partition, for reports.
    pub(crate) fn entries_of(
        &self,
        slot: AssignmentId,
    ) -> impl Iterator<Item = (RecordId, &RecordEntry<R>)> {
        self.slab
            .iter()
            .filter(move |(_, entry)| entry.slot == slot)
    }
}
