//! Taking records from the application queue, and handling the error entries between them.

use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::message::{BorrowedMessage, Headers, Message as _};
use rdkafka::types::RDKafkaErrorCode;
use sluicegate_abi::header_block;
use sluicegate_engine::record::Record;
use sluicegate_engine::source::{
    AssignmentId, Delivery, PartitionFault, SourceEvent, TopicPartition,
};

use super::KafkaSource;
use crate::consumer::callbacks::Callbacks;
use crate::consumer::gap_detector::{GapDetector, Verdict};
use crate::ffi::RecordBuf;
use crate::ffi::{Connection, Message, TopicId, describe};

impl KafkaSource {
    /// Takes one batch; returns the number of messages.
    pub(super) fn take_batch(&mut self, max: usize, out: &mut Vec<Delivery<RecordBuf>>) -> usize {
        let Some(connection) = &mut self.connection else {
            return 0;
        };
        let detector = &mut self.gap_detector;
        let topics = &mut self.topics;
        let first = out.len();
        let mut seeks: Vec<(AssignmentId, i64)> = Vec::new();
        let mut failures: Vec<Failure> = Vec::new();
        detector.begin_batch();
        let taken = connection.take(max, |message| {
            let (topic, partition) = (message.topic(), message.partition());
            topics.saw(topic);
            let code = message.error_code();
            if code != 0 {
                let now = Instant::now();
                let kind = FaultKind::of(code);
                let slot = detector.slot(topic, partition);
                let said = slot.is_none_or(|slot| match kind {
                    FaultKind::Missing => true,
                    FaultKind::Damaged => detector.damaged(slot, now).is_some(),
                    FaultKind::Denied | FaultKind::Other => {
                        detector.suspect(slot, now);
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
            match detector.judge(topic, partition, message.offset()) {
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
        let (Some(connection), Some(admitted)) = (&self.connection, self.gap_detector.get(slot))
        else {
            return;
        };
        let at = admitted.at.clone();
        tracing::debug!(%at, offset = to, "position is suspect after an error entry; seeking back");
        let offset = Offset::Offset(to);
        let sought = connection
            .consumer()
            .seek(&at.topic, at.partition, offset, Duration::ZERO);
        match sought {
            Ok(()) => self.gap_detector.sought(slot),
            Err(error) => {
                // Still suspect: the next record above the expected offset triggers another seek.
                self.gap_detector.suspect(slot, Instant::now());
                self.pending.push(SourceEvent::PartitionError {
                    at,
                    reason: format!("cannot seek back to offset {to}: {error}"),
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
                "error of a partition that is not assigned"
            );
            return;
        };
        let at = TopicPartition {
            topic: name.into(),
            partition,
        };
        if self.topics.is_gone(topic) {
            // An offset of the deleted topic has no meaning in the new one.
            return;
        }
        let event = match kind {
            FaultKind::Missing => SourceEvent::OffsetMissing {
                at,
                asked: slot.and_then(|slot| self.gap_detector.missing(slot)),
                fetched: (offset >= 0).then_some(offset),
                truncated: reason.contains(&describe(RDKafkaErrorCode::LogTruncation as i32)),
                reason,
            },
            FaultKind::Damaged => {
                if let Some(slot) = slot {
                    self.update_client_pause(slot);
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
    /// librdkafka has stopped fetching because it considers the offset missing.
    Missing,
    /// A record in the log cannot be read; librdkafka continues after it, or fetches it in a tight loop.
    Damaged,
    /// The client is not authorized to read it; librdkafka reports this once.
    Denied,
    /// Any other error: librdkafka retries.
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
    /// A copy of a record from the consumer queue, admitted by the same rules.
    pub(super) fn main_queue_record(
        &self,
        message: &BorrowedMessage<'_>,
        detector: &mut GapDetector,
    ) -> Option<Delivery<RecordBuf>> {
        let (slot, topic) = detector
            .opened()
            .find(|(_, a)| *a.at.topic == *message.topic() && a.at.partition == message.partition())
            .map(|(slot, a)| (slot, a.topic))?;
        detector.begin_batch();
        match detector.judge(topic, message.partition(), message.offset()) {
            Verdict::Deliver(..) => {}
            Verdict::Drop | Verdict::SeekBack(..) => {
                // The gap stays suspect: the queue's next record triggers the seek.
                detector.suspect(slot, Instant::now());
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
            // The bindings do not provide it; the partition's next record does.
            leader_epoch: -1,
            lease: RecordBuf::copied(message.key(), message.payload(), &headers),
        })
    }
}

fn delivery(slot: AssignmentId, message: Message, check_headers: bool) -> Delivery<RecordBuf> {
    Delivery {
        slot,
        offset: message.offset(),
        timestamp_ms: message.timestamp_ms(),
        leader_epoch: message.leader_epoch(),
        lease: RecordBuf::of(message, check_headers),
    }
}
