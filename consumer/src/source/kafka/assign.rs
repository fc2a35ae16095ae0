//! Answers to rebalances, and where an assignment starts.

use std::time::Instant;

use rdkafka::consumer::{Consumer, RebalanceProtocol};
use rdkafka::{Offset, TopicPartitionList};

use super::super::raw::{describe, list_entries};
use super::super::rebalance::Answer;
use super::super::{
    Slot, Source, SourceError, SourceEvent, StartAt, StartPartition, TopicPartition,
};
use super::{KafkaSource, list_of};

impl KafkaSource {
    /// A rebalance without partitions needs nobody's decision.
    pub(super) fn answer_empty(&mut self) {
        if let Err(error) = self.answer_rebalance() {
            tracing::warn!(%error, "could not answer an empty rebalance");
        }
    }

    /// Tells librdkafka what it waits for, once everything is known.
    pub(super) fn answer_rebalance(&mut self) -> Result<(), SourceError> {
        match self.rebalance.answer() {
            None => return Ok(()),
            Some(Answer::Assign(partitions)) => self.assign(&partitions)?,
            Some(Answer::Unassign(partitions)) => {
                // Whatever librdkafka says, the partitions are gone.
                self.rebalance.answered();
                return self.unassign(&partitions);
            }
        }
        self.rebalance.answered();
        Ok(())
    }

    /// Rule 1: forward before the assign, at every assign, and put the start offset in the list.
    fn assign(&self, partitions: &[(TopicPartition, StartAt)]) -> Result<(), SourceError> {
        let connection = self.connection()?;
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for (at, start) in partitions {
            let offset = match start {
                StartAt::Earliest => Offset::Beginning,
                StartAt::Latest => Offset::End,
                StartAt::Offset(offset) | StartAt::Time(offset) => Offset::Offset(*offset),
            };
            list.add_partition_offset(&at.topic, at.partition, offset)
                .map_err(|error| self.failed("cannot assign", &error))?;
            if !connection.forward(&at.topic, at.partition) {
                return Err(SourceError::Retryable(format!("{at} has no queue")));
            }
        }
        let consumer = connection.consumer();
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(&list),
            RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.assign(&list),
        }
        .map_err(|error| self.failed("cannot assign", &error))
    }

    fn unassign(&self, partitions: &[TopicPartition]) -> Result<(), SourceError> {
        let consumer = self.connection()?.consumer();
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(&list_of(partitions)),
            RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
        }
        .map_err(|error| self.failed("cannot unassign", &error))
    }

    pub(super) fn try_start(&mut self, partitions: &[StartPartition]) -> Result<(), SourceError> {
        let offsets = self.resolve(partitions)?;
        for (wanted, offset) in partitions.iter().zip(offsets) {
            let running = self.admission.get(wanted.slot).map(|a| &a.at) == Some(&wanted.at);
            if !self.rebalance.waits_for_start(&wanted.at) {
                if !running {
                    return Err(SourceError::Terminal(format!(
                        "{} is not assigned to this client",
                        wanted.at
                    )));
                }
                self.reposition(wanted.slot, offset)?;
                continue;
            }
            let connection = self
                .connection
                .as_mut()
                .ok_or_else(|| SourceError::Terminal("the Kafka client is closed".into()))?;
            let topic = connection.topic_id(&wanted.at.topic).ok_or_else(|| {
                SourceError::Retryable(format!("no handle for topic {}", wanted.at.topic))
            })?;
            // The oldest record can be deleted between look-up and fetch: librdkafka asks again for it.
            let start = match wanted.start {
                StartAt::Earliest => StartAt::Earliest,
                _ => StartAt::Offset(offset),
            };
            self.admission
                .open(wanted.slot, wanted.at.clone(), topic, start, Some(offset));
            self.rebalance.start(&wanted.at, start);
        }
        let begun: Vec<Slot> = partitions.iter().map(|wanted| wanted.slot).collect();
        self.see_reset(&begun);
        self.answer_rebalance()
    }

    /// Tries again to start what could not be started.
    pub(super) fn start_again(&mut self) {
        if !matches!(&self.unstarted, Some((_, due)) if *due <= Instant::now()) {
            return;
        }
        if let Some((partitions, _)) = self.unstarted.take()
            && let Err(error) = self.start(&partitions)
        {
            self.pending.push(SourceEvent::ClientError {
                reason: format!("the assignment was refused: {error}"),
                fatal: true,
            });
        }
    }

    /// The offsets behind `starts`: the doubt guard must know which record is due first (rule 2).
    pub(super) fn resolve(&self, starts: &[StartPartition]) -> Result<Vec<i64>, SourceError> {
        let mut offsets: Vec<Option<i64>> = starts.iter().map(|s| offset_of(s.start)).collect();
        self.look_up(starts, &mut offsets, |start| match start {
            StartAt::Earliest => Offset::Beginning,
            StartAt::Latest => Offset::End,
            StartAt::Time(time) | StartAt::Offset(time) => Offset::Offset(time),
        })?;
        // There is no record at or after that time yet: begin at the end.
        self.look_up(starts, &mut offsets, |_| Offset::End)?;
        Ok(offsets
            .into_iter()
            .map(|offset| offset.unwrap_or(0))
            .collect())
    }

    fn look_up(
        &self,
        starts: &[StartPartition],
        offsets: &mut [Option<i64>],
        wanted: impl Fn(StartAt) -> Offset,
    ) -> Result<(), SourceError> {
        let mut list = TopicPartitionList::new();
        let open = starts.iter().zip(&*offsets).filter(|(_, o)| o.is_none());
        for (start, _) in open {
            list.add_partition_offset(&start.at.topic, start.at.partition, wanted(start.start))
                .map_err(|error| self.failed("cannot look up offsets", &error))?;
        }
        if list.count() == 0 {
            return Ok(());
        }
        let consumer = self.connection()?.consumer();
        let found = consumer
            .offsets_for_times(list, self.request_timeout)
            .map_err(|error| self.failed("cannot look up offsets", &error))?;
        for entry in list_entries(&found) {
            let place = starts.iter().position(|start| {
                *start.at.topic == *entry.topic && start.at.partition == entry.partition
            });
            if entry.error_code != 0 {
                return Err(SourceError::Retryable(format!(
                    "cannot look up offsets of {}/{}: {}",
                    entry.topic,
                    entry.partition,
                    describe(entry.error_code)
                )));
            }
            if let Some(place) = place
                && entry.offset >= 0
            {
                offsets[place] = Some(entry.offset);
            }
        }
        Ok(())
    }

    /// Moves an assignment that runs already: by assigning it anew, since a partition whose offset went missing does
    /// not fetch and cannot be sought.
    pub(super) fn reposition(&mut self, slot: Slot, to: i64) -> Result<(), SourceError> {
        if self.rebalance.is_owed() {
            return Err(SourceError::Retryable(
                "cannot move a partition while the group rebalances".into(),
            ));
        }
        let from = StartAt::Offset(to);
        let consumer = self.connection()?.consumer();
        let moved: Vec<_> = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => {
                let only = self.admission.get(slot).map(|a| (a.at.clone(), from));
                let only: Vec<_> = only.into_iter().collect();
                if let Some((at, _)) = only.first() {
                    self.unassign(std::slice::from_ref(at))?;
                }
                only
            }
            // An eager assign replaces everything: the others go on where they are.
            RebalanceProtocol::Eager | RebalanceProtocol::None => self
                .admission
                .opened()
                .map(|(other, a)| {
                    let goes_on = a.next.map_or(a.start, StartAt::Offset);
                    (a.at.clone(), if other == slot { from } else { goes_on })
                })
                .collect(),
        };
        self.assign(&moved)?;
        if let Some(a) = self.admission.get(slot) {
            let (at, topic) = (a.at.clone(), a.topic);
            self.admission.open(slot, at, topic, from, Some(to));
        }
        let due = |(at, _): &(TopicPartition, StartAt)| {
            let (slot, admitted) = self.admission.opened().find(|(_, a)| a.at == *at)?;
            Some((slot, admitted.next?))
        };
        self.moved = moved.iter().filter_map(due).collect();
        Ok(())
    }

    /// The fetch stop of a moved partition takes its forward away, and may come after the forward that precedes the
    /// assign (rule 1): so it is forwarded again until something comes.
    pub(super) fn forward_moved(&mut self) {
        let Some(connection) = &self.connection else {
            return;
        };
        let admission = &self.admission;
        self.moved.retain(|(slot, due)| {
            let waits = admission.get(*slot).filter(|a| a.next == Some(*due));
            waits.is_some_and(|a| connection.forward(&a.at.topic, a.at.partition))
        });
        let waiting: Vec<Slot> = self.moved.iter().map(|(slot, _)| *slot).collect();
        self.see_reset(&waiting);
    }
}

fn offset_of(start: StartAt) -> Option<i64> {
    match start {
        StartAt::Offset(offset) => Some(offset),
        _ => None,
    }
}
