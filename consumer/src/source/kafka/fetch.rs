//! Taking records out of the application queue, and what error entries between them mean.

use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::message::{BorrowedMessage, Headers, Message as _};
use rdkafka::types::RDKafkaErrorCode;
use sluicegate_abi::header_block;

use super::super::callbacks::Callbacks;
use super::super::gap_detector::{GapDetector, Verdict};
use super::super::raw::{Connection, Message, TopicId, describe};
use super::super::record_buf::RecordBuf;
use super::super::{AssignmentId, Delivery, PartitionFault, SourceEvent, TopicPartition};
use super::KafkaSource;

impl KafkaSource {
    /// Takes one batch; returns how many messages there were.
    pub(super) fn take_batch(&mut self, max: usize, out: &mut Vec<Delivery>) -> usize {
        let Some(connection) = &mut self.connection else {
            return 0;
        };
        let admission = &mut self.admission;
        let topics = &mut self.topics;
        let first = out.len();
        let mut seeks: Vec<(AssignmentId, i64)> = Vec::new();
        let mut failures: Vec<Failure> = Vec::new();
        admission.begin_batch();
        let taken = connection.take(max, |message| {
            let (topic, partition) = (message.topic(), message.partition());
            topics.saw(topic);
            let code = message.error_code();
            if code != 0 {
                let now = Instant::now();
                let kind = FaultKind::of(code);
                let slot = admission.slot(topic, partition);
                let said = slot.is_none_or(|slot| match kind {
                    FaultKind::Missing => true,
                    FaultKind::Damaged => admission.damaged(slot, now).is_some(),
                    FaultKind::Denied | FaultKind::Other => {
                        admission.doubt(slot, now);
                        true
                    }
                });
                if said {
                    failures.push(Failure {
                        slot,
                        topic,
                        partition,
                        kind,
                        offset: message.offset(),
                        reason: message.error_text(),
                    });
                }
                return;
            }
            match admission.judge(topic, partition, message.offset()) {
                Verdict::Deliver(slot, check) => out.push(delivery(slot, message, check)),
                Verdict::Drop => {}
                Verdict::SeekBack(slot, to) => seeks.push((slot, to)),
            }
        });
        self.drop_recreated(first, out);
        for failure in failures {
            self.report(failure);
        }
        for (slot, to) in seeks {
            self.seek_back(slot, to);
        }
        taken
    }

    pub(super) fn seek_back(&mut self, slot: AssignmentId, to: i64) {
        let (Some(connection), Some(admitted)) = (&self.connection, self.admission.get(slot))
        else {
            return;
        };
        let at = admitted.at.clone();
        tracing::debug!(%at, offset = to, "an error entry made the position doubtful; reading again");
        let offset = Offset::Offset(to);
        let sought = connection
            .consumer()
            .seek(&at.topic, at.partition, offset, Duration::ZERO);
        match sought {
            Ok(()) => self.admission.sought(slot),
            Err(error) => {
                // Not believed yet: the next record above makes the next attempt.
                self.admission.doubt(slot, Instant::now());
                self.pending.push(SourceEvent::PartitionError {
                    at,
                    reason: format!("cannot read offset {to} again: {error}"),
                    fault: PartitionFault::Passing,
                });
            }
        }
    }

    fn report(&mut self, failure: Failure) {
        let Failure {
            slot,
            topic,
            partition,
            kind,
            offset,
            reason,
        } = failure;
        let name = self.connection.as_ref().and_then(|c| c.topic_name(topic));
        let Some(name) = name else {
            tracing::warn!(
                partition,
                reason,
                "an error of a partition that is not ours"
            );
            return;
        };
        let at = TopicPartition {
            topic: name.into(),
            partition,
        };
        if self.topics.is_gone(topic) {
            // An offset of the topic that was before means nothing in this one.
            return;
        }
        let event = match kind {
            FaultKind::Missing => SourceEvent::OffsetMissing {
                at,
                asked: slot.and_then(|slot| self.admission.missing(slot)),
                fetched: (offset >= 0).then_some(offset),
                truncated: reason.contains(&describe(RDKafkaErrorCode::LogTruncation as i32)),
                reason,
            },
            FaultKind::Damaged => {
                if let Some(slot) = slot {
                    self.rest_or_fetch(slot);
                }
                SourceEvent::PartitionError {
                    at,
                    reason: format!("data at offset {offset} cannot be read: {reason}"),
                    fault: PartitionFault::Damaged,
                }
            }
            FaultKind::Denied => SourceEvent::PartitionError {
                at,
                reason,
                fault: PartitionFault::Denied,
            },
            FaultKind::Other => SourceEvent::PartitionError {
                at,
                reason,
                fault: PartitionFault::Passing,
            },
        };
        self.pending.push(event);
    }
}

/// An error entry.
struct Failure {
    slot: Option<AssignmentId>,
    topic: TopicId,
    partition: i32,
    kind: FaultKind,
    offset: i64,
    reason: String,
}

/// What an error entry means for its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FaultKind {
    /// librdkafka has stopped fetching: its offset is missing, as far as it knows.
    Missing,
    /// What stands in the log cannot be read as it is; librdkafka goes on behind it, or asks for it in a tight loop.
    Damaged,
    /// The client may not read it; librdkafka says so once.
    Denied,
    /// Anything else: librdkafka tries again.
    Other,
}

impl FaultKind {
    fn of(code: i32) -> Self {
        const MISSING: [RDKafkaErrorCode; 3] = [
            RDKafkaErrorCode::AutoOffsetReset,
            RDKafkaErrorCode::OffsetOutOfRange,
            RDKafkaErrorCode::LogTruncation,
        ];
        const DAMAGED: [RDKafkaErrorCode; 5] = [
            RDKafkaErrorCode::BadMessage,
            RDKafkaErrorCode::BadCompression,
            RDKafkaErrorCode::InvalidMessage,
            RDKafkaErrorCode::MessageSizeTooLarge,
            RDKafkaErrorCode::NotImplemented,
        ];
        let is = |codes: &[RDKafkaErrorCode]| codes.iter().any(|known| *known as i32 == code);
        if is(&MISSING) {
            Self::Missing
        } else if is(&DAMAGED) {
            Self::Damaged
        } else if is(&[RDKafkaErrorCode::TopicAuthorizationFailed]) {
            Self::Denied
        } else {
            Self::Other
        }
    }
}

impl Connection<Callbacks> {
    /// A record that came out of the consumer queue, copied; the same admission holds for it.
    pub(super) fn stray(
        &self,
        message: &BorrowedMessage<'_>,
        admission: &mut GapDetector,
    ) -> Option<Delivery> {
        let (slot, topic) = admission
            .opened()
            .find(|(_, a)| *a.at.topic == *message.topic() && a.at.partition == message.partition())
            .map(|(slot, a)| (slot, a.topic))?;
        admission.begin_batch();
        match admission.judge(topic, message.partition(), message.offset()) {
            Verdict::Deliver(..) => {}
            Verdict::Drop | Verdict::SeekBack(..) => {
                // The jump stays in doubt: the queue's next record makes the seek.
                admission.doubt(slot, Instant::now());
                return None;
            }
        }
        let mut headers = Vec::new();
        if let Some(list) = message.headers() {
            let all: Vec<_> = list.iter().collect();
            let pairs = all
                .iter()
                .map(|header| (header.key.as_bytes(), header.value));
            header_block::write(&mut headers, pairs);
        }
        Some(Delivery {
            slot,
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
            // The bindings do not say; the next record of the partition does.
            leader_epoch: -1,
            lease: RecordBuf::owned(message.key(), message.payload(), &headers),
        })
    }
}

fn delivery(slot: AssignmentId, message: Message, check_headers: bool) -> Delivery {
    Delivery {
        slot,
        offset: message.offset(),
        timestamp_ms: message.timestamp_ms(),
        leader_epoch: message.leader_epoch(),
        lease: RecordBuf::of(message, check_headers),
    }
}
