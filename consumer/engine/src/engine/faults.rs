//! Partitions that cannot be read at present: the error is kept with its cause until a record is read or the error expires.

use super::Engine;
use super::fault::ReadFault;
use crate::record::Record;
use crate::source::{AssignmentId, FetchState, PartitionFault, TopicPartition};

/// A partition without a leader is reported after this time: elections take a few seconds.
const ELECTION_TIMEOUT_MS: u64 = 5_000;

impl<R: Record> Engine<R> {
    /// Handles a read error of a partition.
    pub(crate) fn partition_error(
        &mut self,
        at: &TopicPartition,
        reason: &str,
        fault: PartitionFault,
    ) {
        let Some(slot) = self.read_slot(at) else {
            return;
        };
        let remedy = match fault {
            PartitionFault::Denied => "grant the service READ on the topic",
            PartitionFault::Damaged => {
                "the read is retried with increasing delays: another replica may have it intact; to skip it, commit an \
                 offset after it while the service is stopped"
            }
            PartitionFault::Passing => "the client keeps retrying; see the cause",
        };
        self.cannot_read(slot, reason, remedy);
        self.watch(slot, fault);
    }

    /// Whether the data at the next offset is known to be damaged. Error entries of damaged data move the client's position, at the
    /// end of a log even past it: an out-of-range error that follows is a consequence, not a cause.
    pub(crate) fn is_damaged(&self, slot: AssignmentId) -> bool {
        let fault = self.troubles.fault(slot);
        fault.is_some_and(|fault| fault.is_damage())
    }

    /// The assignment of an owned partition, unless it is draining or stopped.
    pub(crate) fn read_slot(&self, at: &TopicPartition) -> Option<AssignmentId> {
        let slot = self.flow.slot(at)?;
        self.flow.is_read(at, slot).then_some(slot)
    }

    /// Reports that a partition cannot be read. The first time is logged, then one line per minute and topic.
    pub(crate) fn cannot_read(&mut self, slot: AssignmentId, cause: &str, remedy: &str) {
        self.flow.unreadable(slot, cause, remedy);
        let at = self.flow.assignment(slot).at().clone();
        if let Some(times) = self.count_for_log(&at.topic, "unreadable") {
            tracing::warn!(
                topic = &*at.topic,
                partition = at.partition,
                cause,
                remedy,
                times,
                "partition cannot be read"
            );
        }
    }

    /// Watches for the end of a fault.
    pub(crate) fn watch(&mut self, slot: AssignmentId, kind: PartitionFault) {
        let next = self.flow.assignment(slot).ledger().next();
        let fault = ReadFault::new(kind, next, self.now_ms);
        self.troubles.set_fault(slot, fault);
    }

    /// Reports a partition without a leader: librdkafka raises no error for it, it only stops fetching.
    pub(crate) fn check_leader(&mut self, slot: AssignmentId, fetch: FetchState) {
        if fetch != FetchState::NoLeader {
            self.troubles.has_leader(slot);
            return;
        }
        let waited_ms = (self.now_ms).saturating_sub(self.troubles.leaderless(slot, self.now_ms));
        if waited_ms >= ELECTION_TIMEOUT_MS && self.flow.assignment(slot).admits() {
            let remedy = "restore the brokers that host it, or check their log directories; if its topic was deleted, remove it from the routes or create it again";
            self.cannot_read(slot, "the partition has no leader", remedy);
            // Cleared like a restored permission: once the client fetches again.
            self.watch(slot, PartitionFault::Denied);
        }
    }

    /// Clears the faults of partitions from which a record was read since.
    pub(crate) fn clear_read(&mut self) {
        if self.troubles.is_empty() {
            return;
        }
        for slot in self.troubles.slots() {
            let assignment = self.flow.assignment(slot);
            let (admits, next) = (assignment.admits(), assignment.ledger().next());
            if !admits {
                self.troubles.forget(slot);
                continue;
            }
            let fault = self.troubles.fault(slot);
            if fault.is_some_and(|fault| fault.is_passed(next)) {
                self.clear_fault(slot);
            }
        }
    }

    /// Clears the fault of a partition if it has expired.
    pub(crate) fn expire_fault(&mut self, slot: AssignmentId, fetch: FetchState) {
        let now_ms = self.now_ms;
        let fault = self.troubles.fault(slot);
        if fault.is_some_and(|fault| fault.is_over(now_ms, fetch)) {
            self.clear_fault(slot);
        }
    }

    fn clear_fault(&mut self, slot: AssignmentId) {
        self.troubles.end_fault(slot);
        let Some(trouble) = self.flow.readable(slot) else {
            return;
        };
        let at = self.flow.assignment(slot).at().clone();
        if let Some(times) = self.count_for_log(&at.topic, "readable") {
            tracing::info!(
                topic = &*at.topic,
                partition = at.partition,
                errors = trouble.count,
                seconds = self.now_ms.saturating_sub(trouble.since_ms) / 1_000,
                times,
                "partition can be read again"
            );
        }
    }
}
