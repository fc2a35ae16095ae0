//! What keeps a partition from being read or handled, and how it goes on from another offset (G12, G13).

use super::Flow;
use crate::assignment::{AssignmentState, LeaderEpochs};
use crate::ledger::Ledger;
use crate::source::{AssignmentId, TopicPartition};
use crate::trouble::Trouble;

impl Flow {
    /// Stops a partition: nothing more of it starts, its frontier stays (G12, G13).
    pub fn stop_partition(&mut self, slot: AssignmentId, cause: &str, remedy: &str) {
        let now_ms = self.now_ms;
        let assignment = &mut self.assignments[slot.0 as usize];
        if assignment.stopped.is_none() {
            tracing::error!(
                topic = &*assignment.at.topic,
                partition = assignment.at.partition,
                frontier = assignment.ledger.frontier(),
                cause,
                remedy,
                "partition stopped"
            );
            assignment.stopped = Some(Trouble::new(cause, remedy, now_ms));
            assignment.unreadable = None;
            // They are never let in, and would take up memory that others need.
            self.drop_overflow(slot);
        }
    }

    /// A partition cannot be read at present. `true`: that is news, or has another cause than before.
    pub fn unreadable(&mut self, slot: AssignmentId, cause: &str, remedy: &str) -> bool {
        let unreadable = &mut self.assignments[slot.0 as usize].unreadable;
        Trouble::note(unreadable, cause, remedy, self.now_ms)
    }

    /// A partition can be read again. Gives what was in the way, if anything was.
    pub fn readable(&mut self, slot: AssignmentId) -> Option<Trouble> {
        self.assignments[slot.0 as usize].unreadable.take()
    }

    /// Whether a partition is ours, and neither given back nor stopped.
    pub fn is_read(&self, at: &TopicPartition, slot: AssignmentId) -> bool {
        let assignment = &self.assignments[slot.0 as usize];
        self.slot(at) == Some(slot)
            && assignment.state == AssignmentState::Assigned
            && assignment.stopped.is_none()
    }

    /// Whether the client fetches a partition: it is neither given back, stopped nor paused.
    pub fn is_fetched(&self, slot: AssignmentId) -> bool {
        self.assignments[slot.0 as usize].is_read()
    }

    /// Whether nothing of a partition is under way: it may go on from anywhere.
    pub fn is_unused(&self, slot: AssignmentId) -> bool {
        let assignment = &self.assignments[slot.0 as usize];
        assignment.entries == 0 && assignment.overflow.is_empty() && assignment.ledger.is_settled()
    }

    /// Lets a partition go on from `to` under the same epoch; `gone` offsets are passed over by that. The new beginning
    /// is committed, whether it is before or behind the frontier. To be called while the partition is unused.
    /// `another_log`: what was finished beyond `to` says nothing of what stands there now.
    pub fn restart(&mut self, slot: AssignmentId, to: i64, gone: u64, another_log: bool) {
        debug_assert!(self.is_unused(slot), "what is in flight would be lost");
        let now_ms = self.now_ms;
        let assignment = &mut self.assignments[slot.0 as usize];
        if another_log || to < assignment.ledger.next() {
            assignment.ledger = Ledger::new(to, Vec::new());
            assignment.leader_epochs = LeaderEpochs::default();
            assignment.finished_leader_epoch = i32::MAX;
            assignment.committed = to - 1;
            assignment.committed_metadata.clear();
            // Its answer would be taken for one about the new beginning.
            self.commits.release(&[slot]);
        } else {
            assignment.ledger.pass(to);
        }
        assignment.unreadable = None;
        assignment.moved_ms = now_ms;
        *self.gone.entry(assignment.at.clone()).or_default() += gone;
    }

    /// Offsets of a partition that were passed over because they are not in the log any more, since the start.
    pub fn gone(&self, at: &TopicPartition) -> u64 {
        self.gone.get(at).copied().unwrap_or(0)
    }
}
