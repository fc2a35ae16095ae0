//! Maps librdkafka's error codes to failure kinds, and to remedies that name the setting.

use rdkafka::types::RDKafkaErrorCode as Code;
use sluicegate_engine::emit::{EmitFailure, FailureKind, Way};

/// A producer's limits; the names of the settings are kept with the numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// `message.max.bytes`.
    pub(super) record: u64,
    /// `queue.buffering.max.kbytes`, in bytes.
    pub(super) queue: u64,
}

/// The refused record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused<'a> {
    /// Its topic.
    pub(super) topic: &'a str,
    /// Bytes of its key, value and headers.
    pub(super) bytes: u64,
}

impl Refused<'_> {
    fn failure(&self, kind: FailureKind, error: String, remedy: &str) -> EmitFailure {
        EmitFailure {
            kind,
            topic: self.topic.into(),
            error: error.into(),
            remedy: remedy.into(),
        }
    }
}

/// Failure of a record that the producer did not accept.
pub(super) fn at_once(code: Code, record: Refused<'_>, limits: Limits) -> EmitFailure {
    let too_large = |most: u64, key: &str| {
        record.failure(
            FailureKind::Record,
            format!(
                "the record has {} bytes, the producer takes {most}",
                record.bytes
            ),
            &format!("raise `{key}` under kafka.producer"),
        )
    };
    match code {
        Code::MessageSizeTooLarge => too_large(limits.record, "message.max.bytes"),
        Code::QueueFull => too_large(limits.queue, "queue.buffering.max.kbytes"),
        code => answered(code, record, Way::Alone),
    }
}

/// Failure while the client has no producer, or a broken one.
pub(super) fn no_producer(topic: &str, why: &str) -> EmitFailure {
    let record = Refused { topic, bytes: 0 };
    record.failure(FailureKind::Cluster, why.to_owned(), remedy_of_rights(why))
}

/// A producer without the right to any topic gets no producer id and fails permanently.
fn remedy_of_rights(why: &str) -> &'static str {
    if why.to_lowercase().contains("authoriz") {
        "grant the service Write on the topic (and IdempotentWrite on the cluster, where brokers are older than 3.0)"
    } else {
        "the producer is recreated automatically, with backoff"
    }
}

/// Failure of a record that was queued and not acknowledged.
pub(super) fn answered(code: Code, record: Refused<'_>, way: Way) -> EmitFailure {
    let (kind, remedy) = judge(code, way);
    let error = match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
            format!("{code}; the record has {} bytes", record.bytes)
        }
        code => code.to_string(),
    };
    record.failure(kind, error, remedy)
}

fn judge(code: Code, way: Way) -> (FailureKind, &'static str) {
    let by_batch = way == Way::Batched;
    match code {
        Code::InvalidDifferentRecord => (FailureKind::Batch, "it is resent in a batch of its own"),
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => (
            own_fault(by_batch),
            "raise the topic's max.message.bytes (or the broker's message.max.bytes); if only batches are too large, \
             lower `batch.size` under kafka.producer",
        ),
        Code::InvalidTimestamp => (
            own_fault(by_batch),
            "the topic's message.timestamp.before.max.ms and message.timestamp.after.max.ms bound timestamps: raise \
             them, or let the handler emit without a timestamp",
        ),
        Code::InvalidRecord => (
            own_fault(by_batch),
            "the broker failed to validate the record: a compacted topic takes none without a key, and a topic's \
             message.timestamp.* settings bound timestamps",
        ),
        Code::UnknownTopic | Code::UnknownTopicOrPartition => {
            (FailureKind::Target, "create the topic")
        }
        Code::UnknownPartition => (
            FailureKind::Target,
            "the topic has no such partition; a deleted topic has none: create it or add partitions; a handler that names the \
             partition of its emits can also leave it open",
        ),
        Code::InvalidTopic | Code::InvalidArgument => (
            FailureKind::Target,
            "invalid topic name: correct the handler or its config",
        ),
        Code::TopicAuthorizationFailed => {
            (FailureKind::Target, "grant the service Write on the topic")
        }
        Code::ClusterAuthorizationFailed => {
            (FailureKind::Target, remedy_of_rights("authorization"))
        }
        Code::PolicyViolation => (
            FailureKind::Target,
            "a policy of the cluster forbids it: the broker's log says which",
        ),
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => (
            FailureKind::Cluster,
            "fewer replicas are in sync than the topic's min.insync.replicas: restore brokers",
        ),
        Code::MessageTimedOut => (
            FailureKind::Cluster,
            "no acknowledgement within `message.timeout.ms`: check the brokers of the topic",
        ),
        _ => (
            FailureKind::Cluster,
            "it is resent automatically; if that does not help, check the cluster",
        ),
    }
}

/// A broker's response to a batch applies to a record only if the record was alone in it.
fn own_fault(by_batch: bool) -> FailureKind {
    if by_batch {
        FailureKind::Batch
    } else {
        FailureKind::Record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code, way: Way) -> EmitFailure {
        let record = Refused {
            topic: "out",
            bytes: 10_485_760,
        };
        answered(code, record, way)
    }

    #[test]
    fn a_batch_failure_counts_against_a_record_only_if_it_was_alone() {
        for code in [
            Code::MessageSizeTooLarge,
            Code::InvalidRecord,
            Code::InvalidTimestamp,
        ] {
            assert_eq!(of(code, Way::Batched).kind, FailureKind::Batch, "{code:?}");
            assert_eq!(of(code, Way::Alone).kind, FailureKind::Record, "{code:?}");
        }
        let neighbour = of(Code::InvalidDifferentRecord, Way::Batched);
        assert_eq!(neighbour.kind, FailureKind::Batch);
    }

    #[test]
    fn a_refusal_by_the_cluster_is_never_a_record_failure() {
        for way in [Way::Batched, Way::Alone] {
            for code in [
                Code::UnknownTopic,
                Code::UnknownTopicOrPartition,
                Code::UnknownPartition,
                Code::TopicAuthorizationFailed,
                Code::InvalidTopic,
            ] {
                assert_eq!(of(code, way).kind, FailureKind::Target, "{code:?}");
            }
            for code in [
                Code::MessageTimedOut,
                Code::NotEnoughReplicas,
                Code::PurgeQueue,
                Code::Fatal,
                Code::OutOfOrderSequenceNumber,
            ] {
                assert_eq!(of(code, way).kind, FailureKind::Cluster, "{code:?}");
            }
        }
    }

    #[test]
    fn sizes_and_settings_are_named() {
        let by_topic = of(Code::MessageSizeTooLarge, Way::Alone).to_string();
        assert!(by_topic.contains("10485760 bytes"), "{by_topic}");
        assert!(by_topic.contains("max.message.bytes"), "{by_topic}");
        let limits = Limits {
            record: 1_000_000,
            queue: 64 << 20,
        };
        let record = Refused {
            topic: "out",
            bytes: 2_000_000,
        };
        let by_client = at_once(Code::MessageSizeTooLarge, record, limits);
        assert_eq!(by_client.kind, FailureKind::Record);
        let text = by_client.to_string();
        assert!(
            text.contains("2000000 bytes") && text.contains("takes 1000000"),
            "{text}"
        );
        assert!(text.contains("kafka.producer"), "{text}");
        let rights = no_producer("out", "Cluster authorization failed").to_string();
        assert!(rights.contains("grant the service Write"), "{rights}");
    }
}
