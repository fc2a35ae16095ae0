//! How much one commit contains. The broker writes a request as one batch to `__consumer_offsets`, and refuses it as a whole if
//! that is too large (`message.max.bytes`, 1 MiB unless configured); it refuses metadata over `offset.metadata.max.bytes`,
//! partition by partition.

use std::collections::BTreeSet;

use crate::source::{AssignmentId, CommitEntry, Rejection, TopicPartition};

/// Maximum bytes per request at first; half of what a broker accepts unless configured otherwise.
const MAX_BYTES: usize = 512 * 1024;
/// Minimum to which refusals reduce it.
const MIN_BYTES: usize = 1024;
/// Bytes of an entry besides topic and metadata, generously: offset, epochs, and the record's framing.
const ENTRY_BYTES: usize = 128;

/// The size of a pump's commits.
#[derive(Debug)]
pub(super) struct CommitSize {
    /// Maximum bytes per request.
    limit: usize,
    /// The last partition of the previous request, if there was no room for those behind it.
    after: Option<TopicPartition>,
    /// Partitions whose metadata was too long: theirs omits the records that are finished beyond the frontier.
    short: BTreeSet<AssignmentId>,
}

impl Default for CommitSize {
    fn default() -> Self {
        Self {
            limit: MAX_BYTES,
            after: None,
            short: BTreeSet::new(),
        }
    }
}

impl CommitSize {
    /// Whether the previous request had no room for all that was due.
    pub(super) fn left_some(&self) -> bool {
        self.after.is_some()
    }

    /// Whether the metadata of a partition omits what it can.
    pub(super) fn is_short(&self, slot: AssignmentId) -> bool {
        self.short.contains(&slot)
    }

    /// Forgets partitions that are not owned any more.
    pub(super) fn release(&mut self, slots: &[AssignmentId]) {
        self.short.retain(|slot| !slots.contains(slot));
    }

    /// The part of what is due that fits into one request, at least one partition. `due` is in the order of partitions; the
    /// request begins where the previous one ended, and the last one of a round at the end.
    pub(super) fn fitting(
        &mut self,
        mut due: Vec<(AssignmentId, CommitEntry)>,
    ) -> Vec<(AssignmentId, CommitEntry)> {
        if let Some(after) = self.after.take() {
            let first = due.partition_point(|(_, entry)| entry.at <= after);
            if first < due.len() {
                due.drain(..first);
            }
        }
        let mut bytes = 0;
        let fits = |(_, entry): &&(AssignmentId, CommitEntry)| {
            bytes += entry.at.topic.len() + entry.metadata.len() + ENTRY_BYTES;
            bytes <= self.limit
        };
        let count = due.iter().take_while(fits).count().max(1);
        if count < due.len() {
            due.truncate(count);
            self.after = due.last().map(|(_, entry)| entry.at.clone());
        }
        due
    }

    /// Learns from a refusal of a partition in a request of `partitions`. `true`: the next commit is smaller because of it, so
    /// it may be accepted.
    pub(super) fn refused(
        &mut self,
        slot: AssignmentId,
        rejection: Rejection,
        partitions: usize,
    ) -> bool {
        match rejection {
            Rejection::RequestSize if partitions > 1 && self.limit > MIN_BYTES => true,
            Rejection::RequestSize | Rejection::MetadataSize => self.short.insert(slot),
            Rejection::Right | Rejection::NoTopic | Rejection::Other => false,
        }
    }

    /// A request was refused for its size.
    pub(super) fn halve(&mut self) {
        self.limit = (self.limit / 2).max(MIN_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(partitions: i32, metadata: usize) -> Vec<(AssignmentId, CommitEntry)> {
        let one = |partition: i32| {
            let entry = CommitEntry {
                at: TopicPartition {
                    topic: "t".into(),
                    partition,
                },
                offset: 1,
                leader_epoch: None,
                metadata: "m".repeat(metadata),
            };
            (AssignmentId(partition as u32), entry)
        };
        (0..partitions).map(one).collect()
    }

    #[test]
    fn requests_are_bounded_and_reach_every_partition_in_turn() {
        let mut size = CommitSize::default();
        let mut sent = BTreeSet::new();
        let mut requests = 0;
        while requests == 0 || size.left_some() {
            let part = size.fitting(due(1_000, 4_000));
            let bytes: usize = part.iter().map(|(_, entry)| entry.metadata.len()).sum();
            assert!(bytes <= MAX_BYTES && !part.is_empty(), "{bytes}");
            sent.extend(part.iter().map(|(slot, _)| slot.0));
            requests += 1;
        }
        assert_eq!((sent.len(), requests), (1_000, 8));
        assert_eq!(size.fitting(due(100, 10)).len(), 100, "all of them fit");
        assert_eq!(size.fitting(due(1, 2 * MAX_BYTES)).len(), 1);
    }

    #[test]
    fn a_refused_size_makes_the_next_commit_smaller_until_that_cannot_help() {
        let mut size = CommitSize::default();
        let slot = AssignmentId(1);
        let mut requests = 0;
        while size.refused(slot, Rejection::RequestSize, 2) && !size.is_short(slot) {
            size.halve();
            requests += 1;
        }
        assert_eq!((requests, size.limit), (9, MIN_BYTES));
        assert!(size.is_short(slot));
        for rejection in [Rejection::RequestSize, Rejection::MetadataSize] {
            assert!(!size.refused(slot, rejection, 1), "nothing is left to omit");
        }
        size.release(&[slot]);
        assert!(size.refused(slot, Rejection::MetadataSize, 1));
        assert!(!size.refused(AssignmentId(2), Rejection::Right, 1));
    }
}
