//! Tells pools which partitions are ours, so that handlers with state know when to load and when to let go.

use super::Flow;
use crate::dispatch::OwnedPartition;

impl Flow {
    /// Tells every pool of the partitions whose records its handler may want. Those that are being given back stay until
    /// their last record is finished.
    pub(super) fn tell_ownership(&mut self) {
        let mut owned: Vec<Vec<OwnedPartition>> = vec![Vec::new(); self.handlers.len()];
        for (at, slot) in &self.current {
            let assignment = &self.assignments[slot.0 as usize];
            for ix in self.router.candidates(assignment.plan) {
                let Some(list) = owned.get_mut(ix.0 as usize) else {
                    continue;
                };
                let partition = OwnedPartition {
                    topic: at.topic.clone(),
                    partition: at.partition,
                    epoch: assignment.epoch,
                };
                if list.last() != Some(&partition) {
                    list.push(partition);
                }
            }
        }
        for (handler, owned) in self.handlers.iter().zip(&owned) {
            if let Some(pool) = handler.as_ref().and_then(|h| h.settings.pool.as_ref()) {
                pool.own(&self.inbox, owned);
            }
        }
    }
}
