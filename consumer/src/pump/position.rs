//! When the client is asked how far it has read: at each commit interval, and before a partition is given back.

use super::Pump;
use crate::source::AssignmentId;

impl Pump {
    /// Moves frontiers of idle partitions past control records and aborted data (G2). To be called when everything
    /// that was polled has been delivered to the flow.
    pub(super) fn learn_positions(&mut self) {
        let slots = self.flow.positions_due();
        self.learn_positions_of(&slots);
    }

    /// As [`Self::learn_positions`]; from the start of a drain on, what is read is dropped, and the position passes it.
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
