//! The client's two positions: the fetch position runs ahead of the delivered one by the contents of its queue.

use sluicegate_engine::source::AssignmentId;

use super::world::World;

/// Maximum entries of one fetch.
const MAX_FETCH: usize = 20;

impl World {
    /// The client fetches, sometimes far ahead of what it has delivered.
    pub fn fetch_ahead(&mut self, epoch: u32) {
        let entries = self.random.between(1, MAX_FETCH);
        let Some(owned) = self.model.owned.get_mut(&epoch) else {
            return;
        };
        let log = &self.script.logs[owned.log];
        owned.fetched = owned.fetched.max(owned.position);
        for _ in 0..entries {
            if let Some(offset) = log.next_read(owned.fetched) {
                owned.fetched = offset + 1;
            }
        }
    }

    /// Reports delivered positions to the flow, for the partitions that it queries.
    pub fn tell_positions(&mut self) {
        let slots = self.flow.positions_due();
        self.tell_positions_of(&slots);
    }

    /// As [`Self::tell_positions`], before a drain.
    pub fn tell_positions_of(&mut self, slots: &[AssignmentId]) {
        for owned in self.model.owned.values() {
            if owned.released || !slots.contains(&owned.slot) {
                continue;
            }
            let controls = &self.script.logs[owned.log].controls;
            let ahead = owned.position..owned.fetched;
            if controls.iter().any(|offset| ahead.contains(offset)) {
                self.model.coverage.fetched_past_control += 1;
            }
            if let Some(position) = owned.consumed {
                let frontier = self.flow.assignment(owned.slot).ledger.frontier();
                self.flow.consumed(owned.slot, position);
                let moved = self.flow.assignment(owned.slot).ledger.frontier() > frontier;
                self.model.coverage.passed_control += u64::from(moved);
            }
        }
    }
}
