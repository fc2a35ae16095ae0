//! Start of assigned partitions: looks up each start offset and fencing token.
//!
//! ```text
//!  Assigned ─► find ─┬─► Found ─► token ─► flow.assign ─► source.start ─► first commit: token and start
//!                    └─► NotFound: reported, retried; other partitions do not wait
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use sluicegate_engine::flow::report::WallClock;
use sluicegate_engine::partition::assignment::NewAssignment;
use sluicegate_engine::partition::commit::{CommitMetadata, TopicUuid, next_epoch};
use sluicegate_engine::partition::trouble::Trouble;
use sluicegate_engine::source::{
    Found, Membership, Origin, StartAt, StartPartition, TopicPartition,
};
use sluicegate_engine::status::{Explanation, PartitionReport, PartitionState, RecordStatus};

use super::Pump;

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
pub(super) struct Starting {
    pending: BTreeMap<TopicPartition, Pending>,
    /// The ids under which this process has seen each topic. Kafka deletes a topic's commits with it, so commits cannot
    /// distinguish a re-created topic from one never read.
    ids: BTreeMap<Arc<str>, Vec<TopicUuid>>,
}

impl Starting {
    /// Whether each partition has either a known start offset or a reported problem.
    pub(super) fn is_reported(&self) -> bool {
        self.pending
            .values()
            .all(|pending| pending.trouble.is_some())
    }

    /// Marks partitions of a topic that was re-created since this process saw it: they start at the beginning, whatever
    /// `kafka.start` says. Returns those whose first offset is still to be looked up.
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
    pub(super) fn is_pending(&self, at: &TopicPartition) -> bool {
        self.pending.contains_key(at)
    }

    pub(super) fn forget_all(&mut self) {
        self.pending.clear();
    }

    pub(super) fn forget(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            self.pending.remove(at);
        }
    }

    /// Reports of the pending partitions, each with what it waits for.
    pub(super) fn reports(&self, clock: WallClock) -> impl Iterator<Item = PartitionReport> {
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

    pub(super) fn explain(&self, at: &TopicPartition) -> Option<Explanation> {
        let pending = self.pending.get(at)?;
        Some(Explanation {
            topic: at.topic.to_string(),
            partition: at.partition,
            offset: 0,
            frontier: 0,
            delivered: 0,
            status: RecordStatus::Starting,
            reason: Some(pending.describe()),
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
            None => "its start offset is being looked up".to_owned(),
            Some(trouble) => format!("its start offset is not known: {}", trouble.cause),
        }
    }
}

impl Pump {
    /// The group has assigned partitions: looks up their start offsets.
    pub(super) fn assigned(&mut self, partitions: &[TopicPartition]) {
        if self.stopping.is_some() {
            return;
        }
        let since_ms = self.now_ms();
        let pending = partitions.iter().map(|at| {
            let pending = Pending {
                since_ms,
                trouble: None,
            };
            (at.clone(), pending)
        });
        self.starting.pending.extend(pending);
        self.source.find(partitions, self.settings.start);
    }

    /// Records that a start offset is not known. The first time is logged, then one line per minute and topic.
    pub(super) fn not_found(&mut self, at: &TopicPartition, reason: &str) {
        let now_ms = self.now_ms();
        let Some(pending) = self.starting.pending.get_mut(at) else {
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
    pub(super) fn report_overdue_starts(&mut self, now_ms: u64) {
        for at in self.starting.overdue(now_ms) {
            self.not_found(&at, "the cluster has not answered yet");
        }
    }

    /// Starts to read the found partitions that are still assigned.
    pub(super) fn found(&mut self, mut found: Vec<Found>) {
        if self.stopping.is_some() {
            return;
        }
        found.retain(|found| self.starting.is_pending(&found.at));
        let again = self.starting.mark_recreated(&mut found);
        self.source.find(&again, StartAt::Earliest);
        for one in &found {
            self.starting.pending.remove(&one.at);
        }
        log_starts(&found);
        let membership = self.source.membership();
        let starts: Vec<StartPartition> = found
            .into_iter()
            .map(|found| self.assign(found, membership))
            .collect();
        if let Err(error) = self.source.start(&starts) {
            self.failed = Some(format!("cannot start the assigned partitions: {error}"));
        }
    }

    fn assign(&mut self, found: Found, membership: Membership) -> StartPartition {
        let kept = found.read.metadata.as_ref().map(|metadata| metadata.epoch);
        let token = next_epoch(membership.generation, kept, membership.is_static);
        let (epoch, token_first) = token.unwrap_or((u32::MAX, true));
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

    /// What blocks a partition, or one of its records.
    pub(super) fn explain(
        &self,
        at: &TopicPartition,
        offset: Option<i64>,
        clock: WallClock,
    ) -> Option<Explanation> {
        let running = self.flow.explain(at, offset, clock);
        let mut explanation = running.or_else(|| self.starting.explain(at))?;
        let of_client = self.client.problems(self.now_ms(), clock);
        let reasons = explanation.reason.into_iter();
        let present_ms = clock.at(self.now_ms());
        let all = reasons.chain(of_client.iter().map(|problem| problem.sentence(present_ms)));
        explanation.reason = all.reduce(|all, more| format!("{all}\n{more}"));
        Some(explanation)
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
    use sluicegate_engine::partition::commit::ReadMetadata;

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
        let mut starting = Starting::default();
        let mut first = vec![found(0, 1, Origin::NewGroup, false)];
        assert_eq!(starting.mark_recreated(&mut first), []);
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
        let again = starting.mark_recreated(&mut latest);
        assert_eq!(again.len(), 2, "their first offset is looked up");
        assert_eq!(latest.len(), 1, "a commit in the new topic is used");
        let mut looked_up = vec![found(1, 2, Origin::NewGroup, true)];
        assert_eq!(starting.mark_recreated(&mut looked_up), []);
        assert_eq!(looked_up[0].origin, Origin::Recreated(TopicUuid(1)));
    }

    #[test]
    fn unknown_ids_are_ignored_and_known_ids_are_bounded() {
        let mut starting = Starting::default();
        for id in [1, 0, 1] {
            let mut one = vec![found(0, id, Origin::NewGroup, false)];
            assert_eq!(starting.mark_recreated(&mut one), []);
        }
        for id in 1..100 {
            starting.mark_recreated(&mut vec![found(0, id, Origin::NewGroup, true)]);
        }
        assert!(starting.ids.values().all(|ids| ids.len() == MAX_TOPIC_IDS));
    }
}
