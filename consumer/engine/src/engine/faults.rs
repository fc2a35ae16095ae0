//! Partitions that cannot be read at present: the error is kept with its cause until a record is read or the error expires.

use super::Engine;
use crate::partition::fault::ReadFault;
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
        let fault = self.flow.assignment(slot).fault;
        fault.is_some_and(|fault| fault.kind == PartitionFault::Damaged)
    }

    /// The assignment of an owned partition, unless it is draining or stopped.
    pub(crate) fn read_slot(&self, at: &TopicPartition) -> Option<AssignmentId> {
        let slot = self.flow.slot(at)?;
        self.flow.is_read(at, slot).then_some(slot)
    }

    /// Reports that a partition cannot be read. The first time is logged, then one line per minute and topic.
    pub(crate) fn cannot_read(&mut self, slot: AssignmentId, cause: &str, remedy: &str) {
        self.flow.unreadable(slot, cause, remedy);
        let at = self.flow.assignment(slot).at.clone();
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
        let reported_ms = self.now_ms;
        let assignment = self.flow.assignment_mut(slot);
        assignment.fault = Some(ReadFault {
            next: assignment.ledger.next(),
            reported_ms,
            kind,
        });
        self.troubled.insert(slot);
    }

    /// Reports a partition without a leader: librdkafka raises no error for it, it only stops fetching.
    pub(crate) fn check_leader(&mut self, slot: AssignmentId, fetch: FetchState) {
        let now_ms = self.now_ms;
        let assignment = self.flow.assignment_mut(slot);
        if fetch != FetchState::NoLeader {
            assignment.leaderless_since_ms = None;
            return;
        }
        let since_ms = *assignment.leaderless_since_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since_ms) >= ELECTION_TIMEOUT_MS && assignment.admits() {
            let remedy = "restore the brokers that host it, or check their log directories; if its topic was deleted, remove it from the routes or create it again";
            self.cannot_read(slot, "the partition has no leader", remedy);
            // Cleared like a restored permission: once the client fetches again.
            self.watch(slot, PartitionFault::Denied);
        }
    }

    /// Clears the faults of partitions from which a record was read since.
    pub(crate) fn clear_read(&mut self) {
        if self.troubled.is_empty() {
            return;
        }
        let troubled: Vec<AssignmentId> = self.troubled.iter().copied().collect();
        for slot in troubled {
            let assignment = self.flow.assignment_mut(slot);
            if !assignment.admits() {
                assignment.fault = None;
                assignment.recovery = None;
            }
            let next = assignment.ledger.next();
            if assignment.fault.is_some_and(|fault| next > fault.next) {
                self.clear_fault(slot);
            }
            let assignment = self.flow.assignment(slot);
            if assignment.fault.is_none() && assignment.recovery.is_none() {
                self.troubled.remove(&slot);
            }
        }
    }

    /// Clears the fault of a partition if it has expired.
    pub(crate) fn expire_fault(&mut self, slot: AssignmentId, fetch: FetchState) {
        let now_ms = self.now_ms;
        let fault = self.flow.assignment(slot).fault;
        if fault.is_some_and(|fault| fault.is_over(now_ms, fetch)) {
            self.clear_fault(slot);
        }
    }

    fn clear_fault(&mut self, slot: AssignmentId) {
        self.flow.assignment_mut(slot).fault = None;
        let Some(trouble) = self.flow.readable(slot) else {
            return;
        };
        let at = self.flow.assignment(slot).at.clone();
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
