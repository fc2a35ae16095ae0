//! Taking records out of the application queue, and what error entries between them mean.

use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::message::{BorrowedMessage, Headers, Message as _};
use rdkafka::types::RDKafkaErrorCode;
use sluicegate_abi::header_block;

use super::super::admission::{Admission, Verdict};
use super::super::callbacks::Callbacks;
use super::super::lease::Lease;
use super::super::raw::{Connection, Message, TopicId};
use super::super::{Delivery, Slot, SourceEvent, TopicPartition};
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
        let mut seeks: Vec<(Slot, i64)> = Vec::new();
        let mut failures: Vec<(TopicId, i32, i32, String)> = Vec::new();
        admission.begin_batch();
        let taken = connection.take(max, |message| {
            let (topic, partition) = (message.topic(), message.partition());
            topics.saw(topic);
            let code = message.error_code();
            if code != 0 {
                if let Some(slot) = admission.slot(topic, partition) {
                    admission.doubt(slot, Instant::now());
                }
                failures.push((topic, partition, code, message.error_text()));
                return;
            }
            match admission.judge(topic, partition, message.offset()) {
                Verdict::Deliver(slot, check) => out.push(delivery(slot, message, check)),
                Verdict::Drop => {}
                Verdict::SeekBack(slot, to) => seeks.push((slot, to)),
            }
        });
        self.drop_recreated(first, out);
        for (topic, partition, code, reason) in failures {
            self.report(topic, partition, code, reason);
        }
        for (slot, to) in seeks {
            self.seek_back(slot, to);
        }
        taken
    }

    pub(super) fn seek_back(&mut self, slot: Slot, to: i64) {
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
                });
            }
        }
    }

    fn report(&mut self, topic: TopicId, partition: i32, code: i32, reason: String) {
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
        let missing = [
            RDKafkaErrorCode::AutoOffsetReset as i32,
            RDKafkaErrorCode::OffsetOutOfRange as i32,
        ];
        self.pending.push(if missing.contains(&code) {
            SourceEvent::OffsetMissing { at, reason }
        } else {
            SourceEvent::PartitionError { at, reason }
        });
    }
}

impl Connection<Callbacks> {
    /// A record that came out of the consumer queue, copied; the same admission holds for it.
    pub(super) fn stray(
        &self,
        message: &BorrowedMessage<'_>,
        admission: &mut Admission,
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
            lease: Lease::owned(message.key(), message.payload(), &headers),
        })
    }
}

fn delivery(slot: Slot, message: Message, check_headers: bool) -> Delivery {
    Delivery {
        slot,
        offset: message.offset(),
        timestamp_ms: message.timestamp_ms(),
        leader_epoch: message.leader_epoch(),
        lease: Lease::of(message, check_headers),
    }
}
