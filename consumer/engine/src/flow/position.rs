//! Frontiers beyond the last delivered record: control records and aborted data, which the client reads and does not
//! deliver (G2).
//!
//! A transaction ends with a control record, so a partition with transactional producers never ends with a data record.
//! The client's consumed position passes such offsets; its fetch position and the log end offset pass them too early,
//! while records before them still wait in its queue.

use super::Flow;
use crate::record::Record;
use crate::source::AssignmentId;

impl<R: Record> Flow<R> {
    /// Partitions whose consumed position is to be queried now, once per commit interval: those with nothing unsettled.
    /// The others learn of skipped offsets from their next record.
    pub fn positions_due(&mut self) -> Vec<AssignmentId> {
        let since = self.ctx.now_ms.saturating_sub(self.positions_ms);
        if since < self.settings.commit_interval_ms {
            return Vec::new();
        }
        self.positions_ms = self.ctx.now_ms;
        let idle = |slot: &AssignmentId| self.ctx.records.partitions[*slot].ledger().is_settled();
        self.ctx.records.partitions.ids().filter(idle).collect()
    }

    /// The client has read everything before `position` and has passed all records of it to [`Flow::deliver`].
    pub fn consumed(&mut self, slot: AssignmentId, position: i64) {
        self.ctx.records.partitions[slot].consumed(position, self.ctx.now_ms);
    }
}
