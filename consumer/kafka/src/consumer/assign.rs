//! Answers to rebalances, and where an assignment starts.

use std::time::Instant;

use rdkafka::consumer::{Consumer, RebalanceProtocol};
use rdkafka::{Offset, TopicPartitionList};
use sluicegate_engine::source::{
    AssignmentId, ClientErrorKind, SourceError, SourceEvent, StartAt, StartPartition,
    TopicPartition,
};

use super::{KafkaSource, START_RETRY_DELAY, list_of};
use crate::consumer::rebalance::{Answer, Begin};
use crate::ffi::{describe, list_entries, set_leader_epochs};

impl KafkaSource {
    /// Answers a rebalance without partitions, for which the pump has nothing to decide.
    pub(super) fn answer_empty(&mut self) {
        if let Err(error) = self.answer_rebalance() {
            tracing::warn!(%error, "cannot answer an empty rebalance");
        }
    }

    /// Answers the pending rebalance once every partition is resolved.
    pub(super) fn answer_rebalance(&mut self) -> Result<(), SourceError> {
        match self.rebalance.answer() {
            None => return Ok(()),
            Some(Answer::Assign(partitions)) => self.assign(&partitions)?,
            Some(Answer::Unassign(partitions)) => {
                // Whether or not librdkafka reports an error, the partitions are gone.
                self.rebalance.answered();
                return self.unassign(&partitions);
            }
        }
        self.rebalance.answered();
        Ok(())
    }

    /// Rule 1: forward before the assign, at every assign, and put the start offset in the list. The leader epoch lets
    /// librdkafka detect a log that was truncated below the offset (KIP-320).
    fn assign(&self, partitions: &[Begin]) -> Result<(), SourceError> {
        let connection = self.connection()?;
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for Begin { at, from, .. } in partitions {
            let offset = match from {
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
        set_leader_epochs(&mut list, partitions.iter().map(|begin| begin.leader_epoch));
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

    pub(super) fn begin(&mut self, wanted: &StartPartition) -> Result<(), SourceError> {
        let at = &wanted.at;
        if !self.rebalance.waits_for_start(at) && !self.rebalance.is_deferred(at) {
            if self.gap_detector.get(wanted.slot).map(|a| &a.at) != Some(at) {
                return Err(SourceError::Terminal(format!(
                    "{at} is not assigned to this client"
                )));
            }
            let offset = self.resolve(wanted)?;
            return self.reposition(wanted.slot, offset);
        }
        let connection = self
            .connection
            .as_mut()
            .ok_or_else(|| SourceError::Terminal("the Kafka client is closed".into()))?;
        let topic = connection
            .topic_id(&at.topic)
            .ok_or_else(|| SourceError::Retryable(format!("no handle for topic {}", at.topic)))?;
        self.topics.record(topic, &at.topic, wanted.topic_id);
        let due = offset_of(wanted.start).or(wanted.due);
        self.gap_detector
            .open(wanted.slot, at.clone(), topic, wanted.start, due);
        let begin = Begin {
            at: at.clone(),
            from: wanted.start,
            leader_epoch: wanted.leader_epoch,
        };
        self.late.extend(self.rebalance.start(begin));
        Ok(())
    }

    /// Assigns partitions whose start was found after the rebalance was answered.
    pub(super) fn assign_late(&mut self) -> Result<(), SourceError> {
        if self.late.is_empty() || self.rebalance.is_pending() {
            return Ok(());
        }
        let late = std::mem::take(&mut self.late);
        let all = match self.connection()?.consumer().rebalance_protocol() {
            RebalanceProtocol::Cooperative => late.clone(),
            RebalanceProtocol::Eager | RebalanceProtocol::None => self.with_running(late.clone()),
        };
        if let Err(error) = self.assign(&all) {
            self.late = late;
            return Err(error);
        }
        self.forward_again(&all);
        Ok(())
    }

    /// An eager assign replaces the whole assignment: the other partitions continue at their current offsets.
    fn with_running(&self, mut begins: Vec<Begin>) -> Vec<Begin> {
        let running: Vec<_> = self
            .gap_detector
            .opened()
            .filter(|(_, a)| !begins.iter().any(|begin| begin.at == a.at))
            .map(|(_, a)| Begin {
                at: a.at.clone(),
                from: a.next.map_or(a.start, StartAt::Offset),
                leader_epoch: None,
            })
            .collect();
        begins.extend(running);
        begins
    }

    fn forward_again(&mut self, begins: &[Begin]) {
        let due = |begin: &Begin| {
            let (slot, admitted) = self.gap_detector.opened().find(|(_, a)| a.at == begin.at)?;
            Some((slot, admitted.next?))
        };
        let moved: Vec<_> = begins.iter().filter_map(due).collect();
        self.moved
            .retain(|(slot, _)| moved.iter().all(|(other, _)| other != slot));
        self.moved.extend(moved);
    }

    /// Retries what librdkafka temporarily refused.
    pub(super) fn retry_answer(&mut self) {
        if self.answer_due.is_none_or(|due| Instant::now() < due) {
            return;
        }
        self.answer_due = None;
        let done = self.answer_rebalance().and_then(|()| self.assign_late());
        self.retry_if_refused(done);
    }

    /// The group waits for the answer, so a temporary refusal must not cost the assignment.
    pub(super) fn retry_if_refused(&mut self, done: Result<(), SourceError>) {
        match done {
            Ok(()) => {}
            Err(SourceError::Retryable(reason)) => {
                let now_ms = self.made.elapsed().as_millis() as u64;
                if let Some(times) = self.unassigned_log.count(now_ms) {
                    tracing::warn!(reason, times, "partitions cannot be assigned yet; retrying");
                }
                self.answer_due = Some(Instant::now() + START_RETRY_DELAY);
            }
            Err(SourceError::Terminal(reason)) => {
                self.pending.push(SourceEvent::ClientError {
                    kind: ClientErrorKind::Other,
                    reason: format!("the assignment was refused: {reason}"),
                    remedy: "restart the service",
                    fatal: true,
                });
            }
        }
    }

    /// Resolves a start to an offset: the gap detector must know the first expected record (rule 2).
    fn resolve(&self, wanted: &StartPartition) -> Result<i64, SourceError> {
        let asked = match wanted.start {
            StartAt::Offset(offset) => return Ok(offset),
            StartAt::Earliest => Offset::Beginning,
            StartAt::Latest => Offset::End,
            StartAt::Time(time) => Offset::Offset(time),
        };
        match self.query(&wanted.at, asked)? {
            Some(offset) => Ok(offset),
            // No record at or after that time yet: start at the end.
            None => Ok(self.query(&wanted.at, Offset::End)?.unwrap_or(0)),
        }
    }

    fn query(&self, at: &TopicPartition, wanted: Offset) -> Result<Option<i64>, SourceError> {
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition_offset(&at.topic, at.partition, wanted)
            .map_err(|error| self.failed("cannot query offsets", &error))?;
        let found = self
            .connection()?
            .consumer()
            .offsets_for_times(list, self.request_timeout)
            .map_err(|error| self.failed("cannot query offsets", &error))?;
        match list_entries(&found).first() {
            Some(entry) if entry.error_code != 0 => Err(SourceError::Retryable(format!(
                "cannot query offsets of {at}: {}",
                describe(entry.error_code)
            ))),
            Some(entry) => Ok((entry.offset >= 0).then_some(entry.offset)),
            None => Ok(None),
        }
    }

    /// Repositions a running assignment by assigning it again, because a partition whose offset went missing does not
    /// fetch and cannot be sought.
    pub(super) fn reposition(&mut self, slot: AssignmentId, to: i64) -> Result<(), SourceError> {
        if self.rebalance.is_pending() {
            return Err(SourceError::Retryable(
                "cannot reposition a partition during a rebalance".into(),
            ));
        }
        let from = StartAt::Offset(to);
        let Some((at, topic)) = self.gap_detector.get(slot).map(|a| (a.at.clone(), a.topic)) else {
            return Ok(());
        };
        let mut moved = vec![Begin {
            at: at.clone(),
            from,
            leader_epoch: None,
        }];
        match self.connection()?.consumer().rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.unassign(std::slice::from_ref(&at))?,
            RebalanceProtocol::Eager | RebalanceProtocol::None => {
                moved = self.with_running(moved);
            }
        }
        self.assign(&moved)?;
        self.gap_detector.open(slot, at, topic, from, Some(to));
        self.update_client_pause(slot);
        self.forward_again(&moved);
        Ok(())
    }

    /// Stopping the fetch of a repositioned partition removes its forward, possibly after the forward that precedes the
    /// assign (rule 1): so it is forwarded again until a record arrives.
    pub(super) fn forward_moved(&mut self) {
        let Some(connection) = &self.connection else {
            return;
        };
        let gap_detector = &self.gap_detector;
        self.moved.retain(|(slot, due)| {
            let waits = gap_detector.get(*slot).filter(|a| a.next == Some(*due));
            waits.is_some_and(|a| connection.forward(&a.at.topic, a.at.partition))
        });
        let waiting: Vec<AssignmentId> = self.moved.iter().map(|(slot, _)| *slot).collect();
        self.see_reset(&waiting);
    }
}

fn offset_of(start: StartAt) -> Option<i64> {
    match start {
        StartAt::Offset(offset) => Some(offset),
        _ => None,
    }
}
