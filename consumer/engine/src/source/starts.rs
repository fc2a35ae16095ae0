//! Where a partition starts: decided from its commit, the topic's id and the commits of the topic's other partitions.
//! Pure.
//!
//! ```text
//!  commit of this topic ─────────────► the committed offset, with the records settled beyond it
//!  commit of an earlier topic ───────► the beginning: its offset means nothing here (G2)
//!  none, but others of the topic ────► the beginning: the partition was added later
//!  none of the topic ────────────────► `kafka.start`
//! ```
//!
//! "Others" are commits of an earlier generation of the group, or of another application: the members of a new group
//! commit their start offsets at about the same time, and must not take each other's first commits for a history.

use crate::partition::commit::{CommitMetadata, CommitTarget, ReadMetadata, TopicUuid};

use super::{Found, Origin, StartAt, TopicPartition};

/// The group's commit of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Next offset to read.
    pub offset: i64,
    /// Leader epoch of the record before it.
    pub leader_epoch: Option<i32>,
    /// Its metadata, which any application may have written.
    pub metadata: String,
}

/// The facts that decide where a partition starts.
pub struct Evidence<'a> {
    /// The consumer group.
    pub group: &'a str,
    /// The topic's current id.
    pub topic_id: TopicUuid,
    /// The partition's commit, if there is one.
    pub commit: Option<&'a Commit>,
    /// Commits of the topic's other partitions.
    pub others: &'a [(TopicPartition, Commit)],
    /// The group's generation.
    pub generation: Option<i32>,
    /// Members are static: those that restart within a generation raise their tokens above it.
    pub is_static: bool,
    /// Where a new group starts.
    pub start: StartAt,
}

/// Where a partition starts, as far as it is known without querying offsets.
#[derive(Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where it starts.
    pub start: StartAt,
    /// Committed leader epoch of the record before it.
    pub leader_epoch: Option<i32>,
    /// Why it starts there.
    pub origin: Origin,
    /// The commit's metadata.
    pub read: ReadMetadata,
}

impl Decision {
    /// The result for the pump, once the offset is known.
    pub fn found(self, at: TopicPartition, topic_id: TopicUuid, offset: i64) -> Found {
        Found {
            at,
            topic_id,
            offset,
            oldest: self.start == StartAt::Earliest,
            leader_epoch: self.leader_epoch,
            origin: self.origin,
            read: self.read,
        }
    }
}

/// Decides where the partition `at` starts.
pub fn decide(at: &TopicPartition, evidence: &Evidence<'_>) -> Decision {
    let Some(commit) = evidence.commit else {
        let known = evidence.start != StartAt::Earliest && has_history(evidence);
        let (start, origin) = match known {
            true => (StartAt::Earliest, Origin::NewPartition),
            false => (evidence.start, Origin::NewGroup),
        };
        return Decision {
            start,
            leader_epoch: None,
            origin,
            read: ReadMetadata::default(),
        };
    };
    let mut read = CommitMetadata::decode(&commit.metadata, target(evidence, at, commit));
    if let Some(metadata) = &mut read.metadata
        && metadata.topic_id.contradicts(evidence.topic_id)
    {
        metadata.finished.clear();
        return Decision {
            start: StartAt::Earliest,
            leader_epoch: None,
            origin: Origin::Recreated(metadata.topic_id),
            read,
        };
    }
    Decision {
        start: StartAt::Offset(commit.offset),
        leader_epoch: commit.leader_epoch,
        origin: Origin::Committed,
        read,
    }
}

fn target<'a>(
    evidence: &'a Evidence<'_>,
    at: &'a TopicPartition,
    commit: &Commit,
) -> CommitTarget<'a> {
    CommitTarget {
        group: evidence.group,
        at,
        offset: commit.offset,
    }
}

/// Whether the group has read the topic before this generation.
fn has_history(evidence: &Evidence<'_>) -> bool {
    evidence.others.iter().any(|(at, commit)| {
        let read = CommitMetadata::decode(&commit.metadata, target(evidence, at, commit));
        match read.metadata {
            Some(metadata) if metadata.topic_id.contradicts(evidence.topic_id) => false,
            Some(metadata) => {
                let now = evidence.generation.and_then(|now| u64::try_from(now).ok());
                let raised = |now| evidence.is_static && metadata.epoch > now;
                now.is_none_or(|now| metadata.epoch < now || raised(now))
            }
            None => true,
        }
    })
}

#[cfg(test)]
// Single-range lists are intended.
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    fn at(partition: i32) -> TopicPartition {
        TopicPartition {
            topic: "t".into(),
            partition,
        }
    }

    const OLD: TopicUuid = TopicUuid(1);
    const NEW: TopicUuid = TopicUuid(2);
    const UNKNOWN: TopicUuid = TopicUuid(0);

    fn commit(partition: i32, topic_id: TopicUuid, epoch: u64) -> Commit {
        let metadata = CommitMetadata {
            topic_id,
            epoch,
            leader_epoch: None,
            finished: std::iter::once(12..20).collect(),
        };
        let target = CommitTarget {
            group: "g",
            at: &at(partition),
            offset: 10,
        };
        Commit {
            offset: 10,
            leader_epoch: Some(4),
            metadata: metadata.encode(target),
        }
    }

    fn decision(
        topic_id: TopicUuid,
        commit: Option<&Commit>,
        others: &[(TopicPartition, Commit)],
        start: StartAt,
    ) -> Decision {
        let evidence = Evidence {
            group: "g",
            topic_id,
            commit,
            others,
            generation: Some(6),
            is_static: false,
            start,
        };
        decide(&at(0), &evidence)
    }

    /// A static member that restarts within generation 6, where its token was 6, takes the token 7.
    #[test]
    fn a_token_above_the_generation_is_a_history_where_members_are_static() {
        for (epoch, is_static, known) in [(6, true, false), (7, true, true), (7, false, false)] {
            let evidence = Evidence {
                group: "g",
                topic_id: OLD,
                commit: None,
                others: &[(at(1), commit(1, OLD, epoch))],
                generation: Some(6),
                is_static,
                start: StartAt::Latest,
            };
            let found = decide(&at(0), &evidence);
            let expected = match known {
                true => StartAt::Earliest,
                false => StartAt::Latest,
            };
            assert_eq!(found.start, expected, "{epoch} {is_static}");
        }
    }

    #[test]
    fn a_commit_counts_in_its_own_topic_alone() {
        let committed = commit(0, OLD, 5);
        for topic_id in [OLD, UNKNOWN] {
            let same = decision(topic_id, Some(&committed), &[], StartAt::Latest);
            assert_eq!(same.start, StartAt::Offset(10));
            assert_eq!(
                (same.origin, same.leader_epoch),
                (Origin::Committed, Some(4))
            );
            assert_eq!(same.read.metadata.unwrap().finished, [12..20]);
        }
        let recreated = decision(NEW, Some(&committed), &[], StartAt::Latest);
        assert_eq!(recreated.start, StartAt::Earliest);
        assert_eq!(recreated.origin, Origin::Recreated(OLD));
        assert_eq!(recreated.leader_epoch, None);
        let metadata = recreated.read.metadata.unwrap();
        assert_eq!((metadata.finished, metadata.epoch), (Vec::new(), 5));
    }

    #[test]
    fn a_commit_of_another_application_counts_with_its_offset_alone() {
        let foreign = Commit {
            offset: 10,
            leader_epoch: None,
            metadata: "connect".into(),
        };
        let found = decision(NEW, Some(&foreign), &[], StartAt::Latest);
        assert_eq!(found.start, StartAt::Offset(10));
        assert!(found.read.metadata.is_none() && found.read.dropped.is_some());
    }

    #[test]
    fn a_partition_without_a_commit_is_new_if_its_topic_is_known() {
        let plain = Commit {
            offset: 3,
            leader_epoch: None,
            metadata: String::new(),
        };
        // Whose commit another partition has, and whether that is a history.
        let table = [
            (commit(1, OLD, 5), true),
            (commit(1, OLD, 6), false),
            (commit(1, OLD, 7), false),
            (commit(1, NEW, 5), false),
            (plain, true),
        ];
        for (other, known) in table {
            let others = [(at(1), other)];
            for start in [StartAt::Latest, StartAt::Time(5)] {
                let found = decision(OLD, None, &others, start);
                let expected = match known {
                    true => (StartAt::Earliest, Origin::NewPartition),
                    false => (start, Origin::NewGroup),
                };
                assert_eq!((found.start, found.origin), expected, "{others:?}");
            }
        }
    }
}
