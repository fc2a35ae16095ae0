//! Announces to pools which partitions are owned, so that handlers with state know when to load and when to release it.

use std::collections::BTreeSet;

use super::Flow;
use crate::dispatch::{HandlerIx, OwnedPartition};
use crate::record::Record;
use crate::source::AssignmentId;

/// Time between two checks whether the last record of a partition that a new route excludes is settled.
const RECHECK_INTERVAL_MS: u64 = 1_000;

impl<R: Record> Flow<R> {
    /// Announces to every pool the partitions whose records its handler may receive. Revoked partitions stay until
    /// their last record is settled, and so do those that a new route excludes.
    pub(super) fn announce_ownership(&mut self) {
        let mut owned: Vec<Vec<(AssignmentId, OwnedPartition)>> =
            vec![Vec::new(); self.handlers.len()];
        for (at, slot) in self.partitions.iter() {
            let assignment = &self.partitions[slot];
            for ix in self.router.candidates(assignment.plan) {
                let Some(list) = owned.get_mut(ix.0 as usize) else {
                    continue;
                };
                if list.last().is_none_or(|(last, _)| *last != slot) {
                    let partition = OwnedPartition {
                        topic: at.topic.clone(),
                        partition: at.partition,
                        epoch: assignment.epoch,
                    };
                    list.push((slot, partition));
                }
            }
        }
        let mut lingering = false;
        for (place, mut owned) in owned.into_iter().enumerate() {
            let ix = HandlerIx(place as u32);
            lingering |= self.add_lingering(ix, &mut owned);
            let Some(handler) = self.handlers[place].as_mut() else {
                continue;
            };
            let partitions: Vec<OwnedPartition> = owned.iter().map(|(_, at)| at.clone()).collect();
            handler.announced = owned;
            if let Some(pool) = &handler.settings.pool {
                pool.own(&self.inbox, &partitions);
            }
        }
        self.ownership_due_ms = lingering.then_some(self.now_ms + RECHECK_INTERVAL_MS);
    }

    /// Adds the announced partitions that the handler's route now excludes but of which it still has records.
    fn add_lingering(
        &self,
        ix: HandlerIx,
        owned: &mut Vec<(AssignmentId, OwnedPartition)>,
    ) -> bool {
        let Some(handler) = &self.handlers[ix.0 as usize] else {
            return false;
        };
        let left_out = |(slot, _): &&(AssignmentId, OwnedPartition)| {
            let assignment = self.partitions.get(*slot);
            assignment.is_some_and(|assignment| !assignment.fenced)
                && !owned.iter().any(|(new, _)| new == slot)
        };
        let mut lingering: Vec<_> = handler.announced.iter().filter(left_out).cloned().collect();
        if lingering.is_empty() {
            return false;
        }
        let held = self.slots_of(ix);
        lingering.retain(|(slot, _)| held.contains(slot));
        let some = !lingering.is_empty();
        owned.append(&mut lingering);
        owned.sort_by(|(_, one), (_, other)| one.cmp(other));
        some
    }

    /// The partitions of a handler's records: queued, with a worker, parked, or with the producer.
    fn slots_of(&self, ix: HandlerIx) -> BTreeSet<AssignmentId> {
        let mut held = BTreeSet::new();
        let Some(handler) = &self.handlers[ix.0 as usize] else {
            return held;
        };
        let mut hold = |key| held.extend(self.slab.get(key).map(|entry| entry.slot));
        handler.backlog.iter().copied().for_each(&mut hold);
        handler.lanes.waiting().for_each(&mut hold);
        for flight in self.flights.iter().filter(|f| f.handler == Some(ix)) {
            let keys = flight.batch.as_ref().map_or(&flight.keys, |b| &b.keys);
            keys.iter().copied().for_each(&mut hold);
        }
        let tasks = self.tasks.iter().filter(|(of, ..)| *of == ix);
        tasks.map(|(_, key, _)| key).for_each(&mut hold);
        held
    }
}
