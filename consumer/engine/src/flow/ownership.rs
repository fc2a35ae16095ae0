//! Announces to pools which partitions are owned, so that handlers with state know when to load and when to release it.

use super::Flow;
use crate::dispatch::OwnedPartition;
use crate::record::Record;
use crate::source::AssignmentId;

/// Time between two checks whether the last record of a partition that a new route excludes is settled.
const RECHECK_INTERVAL_MS: u64 = 1_000;

impl<R: Record> Flow<R> {
    /// Announces to every pool the partitions whose records its handler may receive. Revoked partitions stay until
    /// their last record is settled, and so do those that a new route excludes.
    pub(super) fn announce_ownership(&mut self) {
        let mut owned: Vec<Vec<(AssignmentId, OwnedPartition)>> =
            vec![Vec::new(); self.queues.len()];
        for (at, slot) in self.ctx.records.partitions.iter() {
            let assignment = &self.ctx.records.partitions[slot];
            for ix in self.router.candidates(assignment.plan()) {
                let Some(list) = owned.get_mut(ix.0 as usize) else {
                    continue;
                };
                if list.last().is_none_or(|(last, _)| *last != slot) {
                    let partition = OwnedPartition {
                        topic: at.topic.clone(),
                        partition: at.partition,
                        epoch: assignment.epoch(),
                        start: assignment.start(),
                        lost: assignment.lost().clone(),
                    };
                    list.push((slot, partition));
                }
            }
        }
        let mut lingering = false;
        for (queue, owned) in self.queues.iter_mut().zip(owned) {
            if let Some(queue) = queue {
                lingering |= queue.announce(&self.ctx, owned);
            }
        }
        self.ownership_due_ms = lingering.then_some(self.ctx.now_ms + RECHECK_INTERVAL_MS);
    }
}
