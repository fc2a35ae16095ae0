//! Offered partitions: the group has assigned them, and their start offset and fencing token are not known yet.
//!
//! ```text
//!  Assigned ─ Find ─┬─► Found ─► token ─► flow.assign ─ Start ─► first commit: token and start
//!                   └─► NotFound: reported, retried; other partitions do not wait
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Engine;
use crate::clock::WallClock;
use crate::event::Effect;
use crate::partition::assignment::NewAssignment;
use crate::partition::commit::{CommitMetadata, TopicUuid, next_epoch};
use crate::partition::trouble::Trouble;
use crate::record::Record;
use crate::source::{Found, Membership, Origin, StartAt, StartPartition, TopicPartition};
use crate::status::{Explanation, PartitionReport, PartitionState, RecordStatus};

/// An assigned partition whose start offset is not known yet.
struct Pending {
    /// On the flow's clock.
    since_ms: u64,
    /// Why the offset is not known, once reported.
    trouble: Option<Trouble>,
}

/// A start offset not found within this time is reported, even if the source has not given a reason.
const LOOKUP_TIMEOUT_MS: u64 = 10_000;

/// Maximum ids remembered per topic, so that a topic that is re-created repeatedly does not use memory without bound.
const MAX_TOPIC_IDS: usize = 8;

/// Assigned partitions whose start offset is not known yet, and the topic ids seen so far.
#[derive(Default)]
pub(crate) struct Offers {
    pending: BTreeMap<TopicPartition, Pending>,
    /// The ids under which this process has seen each topic. Kafka deletes a topic's commits with it, so commits cannot
    /// distinguish a re-created topic from one never read.
    ids: BTreeMap<Arc<str>, Vec<TopicUuid>>,
}

impl Offers {
    /// Whether each partition has either a known start offset or a reported problem.
    pub(crate) fn is_reported(&self) -> bool {
        self.pending
            .values()
            .all(|pending| pending.trouble.is_some())
    }

    /// Marks partitions of a topic that was re-created since this process saw it: they start at the beginning, whatever
    /// `kafka.start` says. Returns those whose first offset is still to be found.
    fn mark_recreated(&mut self, found: &mut Vec<Found>) -> Vec<TopicPartition> {
        let mut again = Vec::new();
        found.retain_mut(|found| {
            let ids = self.ids.entry(found.at.topic.clone()).or_default();
            let earlier = ids
                .iter()
                .rev()
                .find(|id| id.contradicts(found.topic_id))
                .copied();
            if found.topic_id.is_known() && !ids.contains(&found.topic_id) {
                if ids.len() == MAX_TOPIC_IDS {
                    ids.remove(0);
                }
                ids.push(found.topic_id);
            }
            match (earlier, found.origin) {
                (Some(earlier), Origin::NewGroup) if found.oldest => {
                    found.origin = Origin::Recreated(earlier);
                    true
                }
                (Some(_), Origin::NewGroup) => {
                    again.push(found.at.clone());
                    false
                }
                _ => true,
            }
        });
        again
    }

    /// Whether the start offset of a partition is still unknown.
    pub(crate) fn is_pending(&self, at: &TopicPartition) -> bool {
        self.pending.contains_key(at)
    }

    pub(crate) fn forget_all(&mut self) {
        self.pending.clear();
    }

    pub(crate) fn forget(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            self.pending.remove(at);
        }
    }

    /// Reports of the pending partitions, each with what it waits for.
    pub(crate) fn reports(&self, clock: WallClock) -> impl Iterator<Item = PartitionReport> {
        self.pending.iter().map(move |(at, pending)| {
            let trouble = pending.trouble.as_ref();
            PartitionReport {
                topic: at.topic.to_string(),
                partition: at.partition,
                state: PartitionState::Starting,
                reason: Some(pending.describe()),
                remedy: trouble.map(|trouble| trouble.remedy.to_string()),
                since_ms: trouble.map(|_| clock.at(pending.since_ms)),
                count: trouble.map_or(0, |trouble| trouble.count),
                ..PartitionReport::default()
            }
        })
    }

    pub(crate) fn explain(&self, at: &TopicPartition, now_ms: u64) -> Option<Explanation> {
        let pending = self.pending.get(at)?;
        let seconds = now_ms.saturating_sub(pending.since_ms) / 1_000;
        let what = pending.describe();
        let reason = match &pending.trouble {
            None => format!("{what} (for {seconds} s)"),
            Some(trouble) => format!(
                "{what}; {} (for {seconds} s, seen {} times)",
                trouble.remedy, trouble.count
            ),
        };
        Some(Explanation {
            topic: at.topic.to_string(),
            partition: at.partition,
            offset: 0,
            frontier: 0,
            delivered: 0,
            status: RecordStatus::Starting,
            reason: Some(reason),
            held_by: Vec::new(),
        })
    }

    /// Partitions whose lookup has had no result for too long.
    fn overdue(&self, now_ms: u64) -> Vec<TopicPartition> {
        let overdue = |pending: &Pending| {
            pending.trouble.is_none()
                && now_ms.saturating_sub(pending.since_ms) >= LOOKUP_TIMEOUT_MS
        };
        let all = self.pending.iter().filter(|(_, pending)| overdue(pending));
        all.map(|(at, _)| at.clone()).collect()
    }
}

impl Pending {
    fn describe(&self) -> String {
        match &self.trouble {
            None => "its start offset is being queried".to_owned(),
            Some(trouble) => format!("its start offset is not known: {}", trouble.cause),
        }
    }
}

impl<R: Record> Engine<R> {
    /// The group has assigned partitions: queries their start offsets.
    pub(crate) fn offered(&mut self, partitions: &[TopicPartition]) {
        if self.stopping.has_begun() {
            return;
        }
        let since_ms = self.now_ms;
        let pending = partitions.iter().map(|at| {
            let pending = Pending {
                since_ms,
                trouble: None,
            };
            (at.clone(), pending)
        });
        self.offers.pending.extend(pending);
        self.effects.push_back(Effect::Find {
            partitions: partitions.to_vec(),
            start: self.settings.start,
        });
    }

    /// Records that a start offset is not known. The first time is logged, then one line per minute and topic.
    pub(crate) fn not_found(&mut self, at: &TopicPartition, reason: &str) {
        let now_ms = self.now_ms;
        let Some(pending) = self.offers.pending.get_mut(at) else {
            return;
        };
        let remedy = "the lookup is retried until the cluster answers; see the cause";
        Trouble::record(&mut pending.trouble, reason, remedy, now_ms);
        if let Some(times) = self.count_for_log(&at.topic, "not found") {
            tracing::warn!(
                topic = &*at.topic,
                partition = at.partition,
                reason,
                times,
                "start offset of the partition is not known; other partitions are read"
            );
        }
    }

    /// Reports partitions whose lookup has had no result for too long.
    pub(crate) fn report_overdue_lookups(&mut self) {
        for at in self.offers.overdue(self.now_ms) {
            self.not_found(&at, "the cluster has not answered yet");
        }
    }

    /// Starts to read the found partitions that are still assigned.
    pub(crate) fn found(&mut self, mut found: Vec<Found>, membership: Membership) {
        if self.stopping.has_begun() {
            return;
        }
        found.retain(|found| self.offers.is_pending(&found.at));
        let again = self.offers.mark_recreated(&mut found);
        if !again.is_empty() {
            self.effects.push_back(Effect::Find {
                partitions: again,
                start: StartAt::Earliest,
            });
        }
        for one in &found {
            self.offers.pending.remove(&one.at);
        }
        log_starts(&found);
        let starts: Vec<StartPartition> = found
            .into_iter()
            .map(|found| self.assign(found, membership))
            .collect();
        if !starts.is_empty() {
            self.effects.push_back(Effect::Start(starts));
        }
    }

    fn assign(&mut self, found: Found, membership: Membership) -> StartPartition {
        let kept = found.read.metadata.as_ref().map(|metadata| metadata.epoch);
        let token = next_epoch(membership.generation, kept, membership.is_static);
        let (epoch, token_first) = token.unwrap_or((u64::MAX, true));
        let start = match found.oldest {
            true => StartAt::Earliest,
            false => StartAt::Offset(found.offset),
        };
        let inherited = match found.origin {
            Origin::Committed => found.read.metadata.unwrap_or_default(),
            _ => CommitMetadata::default(),
        };
        let recreated = matches!(found.origin, Origin::Recreated(_));
        self.flow
            .count_start(&found.at.topic, recreated, found.read.dropped.is_some());
        let slot = self.flow.assign(NewAssignment {
            at: found.at.clone(),
            topic_id: found.topic_id,
            start: found.offset,
            epoch,
            token_first,
            leader_epoch: found.leader_epoch,
            inherited,
        });
        if let Err(exhausted) = token {
            let remedy = "use another group_id";
            self.flow
                .stop_partition(slot, &exhausted.to_string(), remedy);
        }
        StartPartition {
            slot,
            at: found.at,
            start,
            due: Some(found.offset),
            leader_epoch: found.leader_epoch,
            topic_id: found.topic_id,
        }
    }
}

/// Logs one line per topic and cause, with its partitions.
fn log_starts(found: &[Found]) {
    let mut lines: BTreeMap<(&str, String), Vec<i32>> = BTreeMap::new();
    for one in found {
        tracing::debug!(at = %one.at, offset = one.offset, origin = ?one.origin, "partition starts");
        let origin = match one.origin {
            Origin::Committed => "committed offset".into(),
            Origin::NewGroup => "no commit: kafka.start".into(),
            Origin::NewPartition => "new partition of a known topic: its beginning".into(),
            Origin::Recreated(_) => "recreated topic: its beginning".into(),
        };
        let mut add = |cause| {
            let group = (&*one.at.topic, cause);
            lines.entry(group).or_default().push(one.at.partition);
        };
        add(origin);
        if let Some(dropped) = one.read.dropped {
            add(format!("commit metadata not used: {dropped}"));
        }
        if let Origin::Recreated(was) = one.origin {
            add(format!(
                "the topic was {was} at the last commit, it is {} now",
                one.topic_id
            ));
        }
    }
    for ((topic, cause), partitions) in lines {
        let unusual = cause.starts_with("commit metadata") || cause.starts_with("the topic was");
        if unusual {
            tracing::warn!(topic, ?partitions, cause, "partitions start");
        } else {
            tracing::info!(topic, ?partitions, cause, "partitions start");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::partition::commit::ReadMetadata;

    use super::*;

    fn found(partition: i32, topic_id: u128, origin: Origin, oldest: bool) -> Found {
        Found {
            at: TopicPartition {
                topic: "t".into(),
                partition,
            },
            topic_id: TopicUuid(topic_id),
            offset: 5,
            oldest,
            leader_epoch: None,
            origin,
            read: ReadMetadata::default(),
        }
    }

    #[test]
    fn a_recreated_topic_starts_at_its_beginning_even_without_commits() {
        let mut offers = Offers::default();
        let mut first = vec![found(0, 1, Origin::NewGroup, false)];
        assert_eq!(offers.mark_recreated(&mut first), []);
        assert_eq!(
            first.len(),
            1,
            "kafka.start applies to a topic seen for the first time"
        );

        let mut latest = vec![
            found(0, 2, Origin::NewGroup, false),
            found(1, 2, Origin::NewGroup, false),
            found(2, 2, Origin::Committed, false),
        ];
        let again = offers.mark_recreated(&mut latest);
        assert_eq!(again.len(), 2, "their first offset is queried");
        assert_eq!(latest.len(), 1, "a commit in the new topic is used");
        let mut found_starts = vec![found(1, 2, Origin::NewGroup, true)];
        assert_eq!(offers.mark_recreated(&mut found_starts), []);
        assert_eq!(found_starts[0].origin, Origin::Recreated(TopicUuid(1)));
    }

    #[test]
    fn unknown_ids_are_ignored_and_known_ids_are_bounded() {
        let mut offers = Offers::default();
        for id in [1, 0, 1] {
            let mut one = vec![found(0, id, Origin::NewGroup, false)];
            assert_eq!(offers.mark_recreated(&mut one), []);
        }
        for id in 1..100 {
            offers.mark_recreated(&mut vec![found(0, id, Origin::NewGroup, true)]);
        }
        assert!(offers.ids.values().all(|ids| ids.len() == MAX_TOPIC_IDS));
    }
}
