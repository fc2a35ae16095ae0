//! Queries of the client's read position: at each commit interval, and before a partition is released.

use sluicegate_engine::source::AssignmentId;

use super::Pump;

impl Pump {
    /// Moves frontiers of idle partitions past control records and aborted data (G2). Call it only after everything that was
    /// polled has been delivered to the flow: the position covers polled records.
    pub(super) fn learn_positions(&mut self) {
        let slots = self.flow.positions_due();
        self.learn_positions_of(&slots);
    }

    /// As [`Self::learn_positions`], for `slots`. Must run before a drain starts: from then on, polled records are dropped, and
    /// the position would pass them.
    pub(super) fn learn_positions_of(&mut self, slots: &[AssignmentId]) {
        if slots.is_empty() {
            return;
        }
        let mut positions = Vec::new();
        self.source.consumed(slots, &mut positions);
        for (slot, position) in positions {
            self.flow.consumed(slot, position);
        }
    }
}
