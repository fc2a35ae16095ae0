//! What keeps a partition from being read or handled, and how it restarts from another offset (G12, G13).

use super::Flow;
use crate::partition::trouble::Trouble;
use crate::record::Record;
use crate::source::{AssignmentId, TopicPartition};

impl<R: Record> Flow<R> {
    /// Stops a partition: none of its records starts, its frontier stays (G12, G13).
    pub fn stop_partition(&mut self, slot: AssignmentId, cause: &str, remedy: &str) {
        let now_ms = self.ctx.now_ms;
        let assignment = &mut self.ctx.records.partitions[slot];
        if assignment.stop(cause, remedy, now_ms) {
            tracing::error!(
                topic = &*assignment.at().topic,
                partition = assignment.at().partition,
                frontier = assignment.ledger().frontier(),
                cause,
                remedy,
                "partition stopped"
            );
            // They would never be admitted, and hold memory that others need.
            self.ctx.records.drop_overflow(slot);
        }
    }

    /// Records that a partition cannot be read at present. Returns whether that is new or has another cause than
    /// before.
    pub fn unreadable(&mut self, slot: AssignmentId, cause: &str, remedy: &str) -> bool {
        self.ctx.records.partitions[slot].set_unreadable(cause, remedy, self.ctx.now_ms)
    }

    /// Records that a partition can be read again. Returns the previous trouble, if there was any.
    pub fn readable(&mut self, slot: AssignmentId) -> Option<Trouble> {
        self.ctx.records.partitions[slot].set_readable()
    }

    /// Whether a partition is owned, and neither draining nor stopped.
    pub fn is_read(&self, at: &TopicPartition, slot: AssignmentId) -> bool {
        let assignment = &self.ctx.records.partitions[slot];
        self.slot(at) == Some(slot) && assignment.admits()
    }

    /// Whether the client fetches a partition: it is neither draining, stopped nor paused.
    pub fn is_fetched(&self, slot: AssignmentId) -> bool {
        self.ctx.records.partitions[slot].is_read()
    }

    /// Whether nothing of a partition is in flight: it may restart from any offset. Records whose memory an abandoned call
    /// still has are settled, and do not count.
    pub fn is_unused(&self, slot: AssignmentId) -> bool {
        !self.ctx.records.partitions[slot].waits()
    }

    /// Restarts a partition from `to` under the same epoch, skipping `gone` offsets. The new start is committed,
    /// whether it is below or above the frontier. The partition must be unused. `another_log`: the log was replaced, so
    /// offsets settled beyond `to` say nothing about the records there now.
    pub fn restart(&mut self, slot: AssignmentId, to: i64, gone: u64, another_log: bool) {
        debug_assert!(self.is_unused(slot), "in-flight records would be lost");
        let now_ms = self.ctx.now_ms;
        let assignment = &mut self.ctx.records.partitions[slot];
        *self.gone.entry(assignment.at().clone()).or_default() += gone;
        if assignment.restart(to, another_log, now_ms) {
            // The result of a commit in flight would be taken for a result about the new start.
            self.committer.release(&[slot]);
        }
    }

    /// Offsets of a partition skipped since process start because they have left the log.
    pub fn gone(&self, at: &TopicPartition) -> u64 {
        self.gone.get(at).copied().unwrap_or(0)
    }
}
