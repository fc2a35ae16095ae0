//! Partitions that stand still although there are records: a frontier that does not move, and a log whose next record does
//! not come (G8).
//!
//! The second has no error of its own: an open transaction holds back what stands behind it, and librdkafka asks for data
//! that it cannot decode again and again without a word.

use super::Flow;
use crate::source::AssignmentId;

/// How long the next record may stay away before `explain` tells of it.
const TOLD_MS: u64 = 10_000;

/// Since when a partition stands, on the flow's clock, and why as far as that is known here.
pub(super) struct Standstill {
    pub(super) since_ms: u64,
    /// The log's next record does not come, in these words. `None`: the record at the frontier tells.
    pub(super) awaits: Option<String>,
}

impl Flow {
    /// What the client knows of the end of a partition's log. To be called about once a second.
    pub fn note_end(&mut self, slot: AssignmentId, end: Option<i64>) {
        let now_ms = self.now_ms;
        let assignment = &mut self.assignments[slot.0 as usize];
        assignment.end = end.or(assignment.end);
        let due = assignment.ledger.next();
        let awaits = assignment.admits()
            && assignment.unreadable.is_none()
            && !assignment.paused
            && assignment.overflow.is_empty()
            && assignment.ledger.is_settled()
            && assignment.end.is_some_and(|end| end > due);
        let since_ms = match assignment.awaited {
            Some((known, since_ms)) if known == due => since_ms,
            _ => now_ms,
        };
        assignment.awaited = awaits.then_some((due, since_ms));
    }

    /// Whether a partition has stood still for `stall_timeout`.
    pub(super) fn stalled(&self, slot: AssignmentId) -> Option<Standstill> {
        let assignment = self.assignment(slot);
        let stall_ms = self.settings.stall_timeout_ms;
        let waits = !assignment.ledger.is_settled() || !assignment.overflow.is_empty();
        if waits {
            // What waits in hand over a settled ledger came when there was no room.
            let in_hand_ms = assignment
                .full_since_ms
                .filter(|_| assignment.ledger.is_settled());
            let since_ms = assignment
                .waits_since_ms()
                .max(in_hand_ms.unwrap_or_default());
            let stalled = self.now_ms.saturating_sub(since_ms) >= stall_ms;
            return stalled.then_some(Standstill {
                since_ms,
                awaits: None,
            });
        }
        self.awaited_for(slot, stall_ms)
    }

    /// What is to be said of a record that is in the log and does not come.
    pub(super) fn awaited(&self, slot: AssignmentId) -> Option<String> {
        self.awaited_for(slot, TOLD_MS)?.awaits
    }

    fn awaited_for(&self, slot: AssignmentId, least_ms: u64) -> Option<Standstill> {
        let assignment = self.assignment(slot);
        let (due, since_ms) = assignment.awaited?;
        let waited_ms = self.now_ms.saturating_sub(since_ms);
        // What was noted a moment ago may have come since.
        if waited_ms < least_ms || due != assignment.ledger.next() {
            return None;
        }
        let end = assignment.end.unwrap_or(due);
        let awaits = format!("the log goes from offset {due} on to {end}, and none of it arrives");
        Some(Standstill {
            since_ms,
            awaits: Some(awaits),
        })
    }
}
