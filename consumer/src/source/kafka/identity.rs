//! Whether what is read is still what was assigned: the same topics, of the same cluster (G2).
//!
//! librdkafka goes on at the old offset when a topic was deleted and created again, and stays deaf when another cluster
//! answers at its address. It does say what id a topic has by its last metadata, and fetches by that id (Kafka 3.1 and
//! later): what was fetched from a new topic came into the queue after the id had changed. So the id is looked at after
//! each batch, before a record of it is believed, and once a second for the topics of which nothing comes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::callbacks::Callbacks;
use super::super::raw::{Connection, TopicId, TopicState};
use super::super::{Delivery, SourceEvent};
use super::KafkaSource;
use crate::commit::TopicUuid;

/// Time between two looks at topics of which nothing comes.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

struct Known {
    topic: TopicId,
    name: Arc<str>,
    id: TopicUuid,
    /// Partitions of it began under different ids.
    mixed: bool,
    gone: bool,
}

/// The topics that are read, each with the id that it had when it was assigned.
#[derive(Default)]
pub(super) struct Topics {
    known: Vec<Known>,
    /// Topics of the batch that is being taken.
    seen: Vec<TopicId>,
    cluster: Option<String>,
    looked: Option<Instant>,
}

impl Topics {
    /// A partition of the topic begins. Under another id than those before it, it does not hide what has become of these:
    /// the topic was created again since, whichever of the two is the present one.
    pub(super) fn note(&mut self, topic: TopicId, name: &Arc<str>, id: TopicUuid) {
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

    /// A message of the topic came; messages come in runs.
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

    /// Marks topics among `which` whose id is not the noted one any more; gives those that are new among them.
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
    /// Takes the records of topics out of a batch that are not the ones that were assigned.
    pub(super) fn drop_recreated(&mut self, first: usize, out: &mut Vec<Delivery>) {
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
        let kept: Vec<Delivery> = out
            .drain(first..)
            .filter(|delivery| {
                let admitted = self.admission.get(delivery.slot);
                !admitted.is_some_and(|a| found.iter().any(|(topic, _)| *topic == a.topic))
            })
            .collect();
        out.extend(kept);
        self.say_recreated(found);
    }

    /// Looks at the topics of which nothing comes, and at the cluster.
    pub(super) fn check_identity(&mut self, now: Instant) {
        let Some(connection) = &self.connection else {
            return;
        };
        let due = self
            .topics
            .looked
            .is_none_or(|last| now - last >= POLL_INTERVAL);
        if !due {
            return;
        }
        self.topics.looked = Some(now);
        if let Some(is) = connection.cluster_id() {
            let was = self.topics.cluster.get_or_insert_with(|| is.clone());
            if *was != is {
                let was = std::mem::replace(was, is.clone());
                self.pending.push(SourceEvent::ClusterChanged { was, is });
            }
        }
        let found = self
            .topics
            .find_recreated(|_| true, |id| uuid_now(connection, id));
        self.say_recreated(found);
    }

    fn say_recreated(&mut self, found: Vec<(TopicId, Arc<str>)>) {
        for (topic, name) in found {
            let partitions: Vec<_> = self
                .admission
                .opened()
                .filter(|(_, a)| a.topic == topic)
                .map(|(_, a)| a.at.clone())
                .collect();
            for at in &partitions {
                self.admission.close(at);
            }
            self.main_queue_records
                .retain(|stray| self.admission.get(stray.slot).is_some());
            self.pending
                .push(SourceEvent::TopicRecreated { topic: name });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_whose_id_changes_is_told_once_and_an_unknown_id_says_nothing() {
        let mut topics = Topics::default();
        topics.note(TopicId(1), &"a".into(), TopicUuid(10));
        topics.note(TopicId(2), &"b".into(), TopicUuid(0));
        topics.note(TopicId(3), &"c".into(), TopicUuid(30));
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
    fn a_partition_that_begins_under_another_id_does_not_hide_those_that_began_before() {
        for (first, second) in [(10, 11), (11, 10)] {
            let mut topics = Topics::default();
            topics.note(TopicId(1), &"a".into(), TopicUuid(first));
            topics.note(TopicId(1), &"a".into(), TopicUuid(0));
            assert_eq!(topics.find_recreated(|_| true, |_| TopicUuid(first)), []);
            topics.note(TopicId(1), &"a".into(), TopicUuid(second));
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
