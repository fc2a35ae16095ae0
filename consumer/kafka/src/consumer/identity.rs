//! Checks that topics and cluster are still the assigned ones (G2).
//!
//! librdkafka continues at the old offset when a topic was deleted and recreated, and stops receiving when another
//! cluster answers at its address. It does provide the topic id of its last metadata, and fetches by that id (Kafka 3.1
//! and later): records of a new topic entered the queue after the id had changed. So the id is checked after each
//! batch, before a record of it is trusted, and once per second for topics without records.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate_engine::partition::commit::TopicUuid;
use sluicegate_engine::source::{Delivery, SourceEvent};

use super::KafkaSource;
use crate::consumer::callbacks::Callbacks;
use crate::ffi::RecordBuf;
use crate::ffi::{Connection, TopicId, TopicState};

/// Time between two checks of topics without records.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

struct Known {
    topic: TopicId,
    name: Arc<str>,
    id: TopicUuid,
    /// Its partitions were assigned under different ids.
    mixed: bool,
    gone: bool,
}

/// The topics being read, each with its id at assignment.
#[derive(Default)]
pub(super) struct Topics {
    known: Vec<Known>,
    /// Topics of the current batch.
    seen: Vec<TopicId>,
    cluster: Option<String>,
    checked: Option<Instant>,
}

impl Topics {
    /// Notes that a partition of the topic was assigned. If the id differs from that of earlier partitions, the topic
    /// was recreated in between, whichever id is the current one; the earlier partitions must still be reported.
    pub(super) fn record(&mut self, topic: TopicId, name: &Arc<str>, id: TopicUuid) {
        match self.known.iter_mut().find(|known| known.topic == topic) {
            Some(known) if known.id.contradicts(id) => known.mixed = true,
            Some(known) if id.is_known() => known.id = id,
            Some(_) => {}
            None => self.known.push(Known {
                topic,
                name: name.clone(),
                id,
                mixed: false,
                gone: false,
            }),
        }
    }

    /// Notes that a message of the topic arrived; messages arrive in runs.
    pub(super) fn saw(&mut self, topic: TopicId) {
        if self.seen.last() != Some(&topic) && !self.seen.contains(&topic) {
            self.seen.push(topic);
        }
    }

    /// Whether the topic was found to be another one.
    pub(super) fn is_gone(&self, topic: TopicId) -> bool {
        self.known
            .iter()
            .any(|known| known.topic == topic && known.gone)
    }

    /// Marks topics among `which` whose id has changed; returns the newly marked ones.
    fn find_recreated(
        &mut self,
        which: impl Fn(TopicId) -> bool,
        id_now: impl Fn(TopicId) -> TopicUuid,
    ) -> Vec<(TopicId, Arc<str>)> {
        let mut found = Vec::new();
        for known in self.known.iter_mut().filter(|known| which(known.topic)) {
            let is_new = known.mixed || known.id.contradicts(id_now(known.topic));
            if is_new && !known.gone {
                known.gone = true;
                found.push((known.topic, known.name.clone()));
            }
        }
        found
    }
}

fn uuid_now(connection: &Connection<Callbacks>, topic: TopicId) -> TopicUuid {
    match connection.topic_state(topic) {
        TopicState::Exists { id, .. } => id,
        TopicState::Unknown | TopicState::Missing => TopicUuid::default(),
    }
}

impl KafkaSource {
    /// Removes from a batch the records of recreated topics.
    pub(super) fn drop_recreated(&mut self, first: usize, out: &mut Vec<Delivery<RecordBuf>>) {
        let Some(connection) = &self.connection else {
            return;
        };
        let seen = std::mem::take(&mut self.topics.seen);
        let found = self
            .topics
            .find_recreated(|topic| seen.contains(&topic), |id| uuid_now(connection, id));
        self.topics.seen = seen;
        self.topics.seen.clear();
        if found.is_empty() {
            return;
        }
        let kept: Vec<Delivery<RecordBuf>> = out
            .drain(first..)
            .filter(|delivery| {
                let admitted = self.gap_detector.get(delivery.slot);
                !admitted.is_some_and(|a| found.iter().any(|(topic, _)| *topic == a.topic))
            })
            .collect();
        out.extend(kept);
        // In another cluster every topic has another id.
        self.check_cluster();
        self.report_recreated(found);
    }

    /// Reports another cluster at the same address.
    fn check_cluster(&mut self) {
        let Some(is) = self.connection.as_ref().and_then(Connection::cluster_id) else {
            return;
        };
        let was = self.topics.cluster.get_or_insert_with(|| is.clone());
        if *was != is {
            let was = std::mem::replace(was, is.clone());
            self.pending.push(SourceEvent::ClusterChanged { was, is });
        }
    }

    /// Checks the topics without records, and the cluster.
    pub(super) fn check_identity(&mut self, now: Instant) {
        let due = self
            .topics
            .checked
            .is_none_or(|last| now - last >= POLL_INTERVAL);
        if !due {
            return;
        }
        self.topics.checked = Some(now);
        self.check_cluster();
        let Some(connection) = &self.connection else {
            return;
        };
        let found = self
            .topics
            .find_recreated(|_| true, |id| uuid_now(connection, id));
        self.report_recreated(found);
    }

    fn report_recreated(&mut self, found: Vec<(TopicId, Arc<str>)>) {
        for (topic, name) in found {
            let partitions: Vec<_> = self
                .gap_detector
                .opened()
                .filter(|(_, a)| a.topic == topic)
                .map(|(_, a)| a.at.clone())
                .collect();
            for at in &partitions {
                self.gap_detector.close(at);
            }
            self.main_queue_records
                .retain(|queued| self.gap_detector.get(queued.slot).is_some());
            self.pending
                .push(SourceEvent::TopicRecreated { topic: name });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_whose_id_changes_is_reported_once_and_an_unknown_id_is_ignored() {
        let mut topics = Topics::default();
        topics.record(TopicId(1), &"a".into(), TopicUuid(10));
        topics.record(TopicId(2), &"b".into(), TopicUuid(0));
        topics.record(TopicId(3), &"c".into(), TopicUuid(30));
        let now = |id: TopicId| match id.0 {
            1 => TopicUuid(11),
            2 => TopicUuid(21),
            _ => TopicUuid(0),
        };
        let found = topics.find_recreated(|_| true, now);
        assert_eq!(found, [(TopicId(1), Arc::from("a"))]);
        assert!(topics.is_gone(TopicId(1)) && !topics.is_gone(TopicId(2)));
        assert_eq!(topics.find_recreated(|_| true, now), []);
    }

    #[test]
    fn a_partition_with_a_new_id_does_not_hide_those_assigned_with_the_old_one() {
        for (first, second) in [(10, 11), (11, 10)] {
            let mut topics = Topics::default();
            topics.record(TopicId(1), &"a".into(), TopicUuid(first));
            topics.record(TopicId(1), &"a".into(), TopicUuid(0));
            assert_eq!(topics.find_recreated(|_| true, |_| TopicUuid(first)), []);
            topics.record(TopicId(1), &"a".into(), TopicUuid(second));
            let found = topics.find_recreated(|_| true, |_| TopicUuid(11));
            assert_eq!(
                found,
                [(TopicId(1), Arc::from("a"))],
                "{first}, then {second}"
            );
        }
    }

    #[test]
    fn the_topics_of_a_batch_are_each_noted_once() {
        let mut topics = Topics::default();
        for topic in [1, 1, 2, 1, 2, 3] {
            topics.saw(TopicId(topic));
        }
        assert_eq!(topics.seen, [TopicId(1), TopicId(2), TopicId(3)]);
    }
}
