//! Partitions that make no progress although there are records: a frontier that does not move, and a log whose next
//! record does not arrive (G8).
//!
//! The latter has no error of its own: an open transaction holds back the records behind it, and librdkafka refetches
//! data that it cannot decode without reporting an error.

use super::Flow;
use crate::record::Record;
use crate::source::AssignmentId;

/// How long the next record may be missing before `explain` reports it.
const REPORT_AFTER_MS: u64 = 10_000;

/// Since when a partition has made no progress, on the flow's clock, and why, if the flow knows.
pub(super) struct Standstill {
    pub(super) since_ms: u64,
    /// Set if the log's next record does not arrive. `None`: the record at the frontier explains it.
    pub(super) awaits: Option<String>,
}

impl<R: Record> Flow<R> {
    /// Records the log end offset that the client knows. To be called about once per second.
    pub fn record_end(&mut self, slot: AssignmentId, end: Option<i64>) {
        self.ctx.records.partitions[slot].record_end(end, self.ctx.now_ms);
    }

    /// Whether a partition has made no progress for `stall_timeout`.
    pub(super) fn stalled(&self, slot: AssignmentId) -> Option<Standstill> {
        let assignment = self.assignment(slot);
        let stall_ms = self.settings.stall_timeout_ms;
        if assignment.waits() {
            // If everything admitted is settled, the queued records wait since the partition became full.
            let full_since_ms = assignment.overflow().full_since_ms();
            let overflow_since_ms = full_since_ms.filter(|_| assignment.ledger().is_settled());
            let since_ms = assignment
                .waits_since_ms()
                .max(overflow_since_ms.unwrap_or_default());
            let stalled = self.ctx.now_ms.saturating_sub(since_ms) >= stall_ms;
            return stalled.then_some(Standstill {
                since_ms,
                awaits: None,
            });
        }
        self.awaited_for(slot, stall_ms)
    }

    /// Describes a record that is in the log and does not arrive.
    pub(super) fn awaited(&self, slot: AssignmentId) -> Option<String> {
        self.awaited_for(slot, REPORT_AFTER_MS)?.awaits
    }

    fn awaited_for(&self, slot: AssignmentId, least_ms: u64) -> Option<Standstill> {
        let assignment = self.assignment(slot);
        let (due, since_ms) = assignment.awaited()?;
        let waited_ms = self.ctx.now_ms.saturating_sub(since_ms);
        // The record may have arrived since the last check.
        if waited_ms < least_ms || due != assignment.ledger().next() {
            return None;
        }
        let end = assignment.log_end().unwrap_or(due);
        let awaits =
            format!("the log continues from offset {due} to {end}, but no record of it arrives");
        Some(Standstill {
            since_ms,
            awaits: Some(awaits),
        })
    }
}
