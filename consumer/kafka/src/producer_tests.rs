//! The emitter against the mock cluster: every record is answered exactly once, and bytes pass through unchanged.

use std::time::Instant;

use sluicegate_abi::header_block::{self, Headers};
use sluicegate_engine::dispatch::{HandlerIx, Inbox, PumpMessage, RecordId};
use sluicegate_engine::emit::{AckGroup, FailureKind, RefusedEmits, send_from};
use sluicegate_engine::record::Record;
use sluicegate_kit::wait::wait_for;
use sluicegate_runtime::Emit;

use super::*;
use crate::mock::MockKafka;
use crate::testing::{consume_all, settings};

const ENTRY: RecordId = RecordId {
    index: 4,
    serial: 2,
};

fn record<'a>(
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: &'a [u8],
) -> ProducerRecord<'a> {
    ProducerRecord {
        topic: "out",
        partition: Some(0),
        timestamp_ms: Some(1_357_000_000_000),
        key,
        value,
        headers,
    }
}

fn emit(record: &ProducerRecord<'_>) -> Emit {
    Emit {
        record: 0,
        topic: record.topic.to_owned(),
        partition: record.partition,
        timestamp_ms: record.timestamp_ms,
        key: record.key.map(<[u8]>::to_vec),
        value: record.value.map(<[u8]>::to_vec),
        headers: record.headers.to_vec(),
    }
}

/// Sends `records` as one group and returns what the pump receives.
fn send_all(
    emitter: &KafkaEmitter,
    way: Way,
    records: &[ProducerRecord<'_>],
) -> Option<Box<RefusedEmits>> {
    let inbox = Arc::new(Inbox::new());
    let emits = records.iter().map(emit).collect();
    let group = AckGroup::new(inbox.clone(), HandlerIx(1), ENTRY, emits, None);
    send_from(&group, 0, way, emitter);
    group.seal();
    received(&inbox)
}

/// Resends refused records, as the pump does.
fn send_again(
    emitter: &KafkaEmitter,
    way: Way,
    refused: &RefusedEmits,
) -> Option<Box<RefusedEmits>> {
    let records: Vec<_> = refused
        .group
        .records()
        .iter()
        .map(ProducerRecord::from)
        .collect();
    send_all(emitter, way, &records[refused.first as usize..])
}

/// Waits for the one message to the pump.
fn received(inbox: &Inbox) -> Option<Box<RefusedEmits>> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut told = Vec::new();
    while told.is_empty() {
        assert!(Instant::now() < deadline, "the pump received nothing");
        std::thread::yield_now();
        inbox.take(&mut told);
    }
    assert_eq!(told.len(), 1, "one message");
    match told.remove(0) {
        PumpMessage::Produced {
            handler: HandlerIx(1),
            entry: ENTRY,
            refused,
        } => refused,
        _ => panic!("the pump received another message"),
    }
}

#[test]
fn bytes_pass_through_unchanged_and_the_pump_gets_one_message() {
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("out", 1).unwrap();
    let emitter = KafkaEmitter::new(&settings(&kafka.bootstrap_servers())).unwrap();
    let mut block = Vec::new();
    let odd: [(&[u8], Option<&[u8]>); 3] = [
        (b"not \xff text", Some(b"\x00\xfe")),
        (b"null", None),
        (b"", Some(b"")),
    ];
    header_block::write(&mut block, odd.iter().copied());
    let records = [
        record(Some(b"k"), Some(b"v"), &block),
        record(None, None, &[]),
        record(Some(b""), Some(b""), &[]),
    ];
    assert!(send_all(&emitter, Way::Batched, &records).is_none());
    let (_source, got) = consume_all(&kafka.bootstrap_servers(), "out", records.len());
    for (sent, got) in records.iter().zip(&got) {
        assert_eq!(got.lease.key(), sent.key);
        assert_eq!(got.lease.value(), sent.value);
        assert_eq!(got.timestamp_ms, 1_357_000_000_000);
        let (got, sent) = (got.lease.headers(), sent.headers);
        assert!(Headers::new(got).eq(Headers::new(sent)));
    }
    drop(got);
}

#[test]
fn a_record_that_a_consumer_can_read_is_produced_and_a_larger_one_is_refused() {
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("out", 1).unwrap();
    let emitter = KafkaEmitter::new(&settings(&kafka.bootstrap_servers())).unwrap();
    let large = vec![0; 10 << 20];
    let large = record(None, Some(&large), &[]);
    assert!(send_all(&emitter, Way::Batched, &[large]).is_none());
    assert!(send_all(&emitter, Way::Alone, &[large]).is_none());

    let producer = [("message.max.bytes", "2000000")];
    let settings = with_producer(&kafka, &producer);
    let emitter = KafkaEmitter::new(&settings).unwrap();
    let refused = send_all(&emitter, Way::Batched, &[large]).unwrap();
    assert_eq!(refused.failure.kind, FailureKind::Record);
    let text = refused.failure.to_string();
    assert!(text.contains("the record has 10485760 bytes"), "{text}");
    assert!(text.contains("the producer takes 2000000"), "{text}");
    assert!(
        text.contains("`message.max.bytes` under kafka.producer"),
        "{text}"
    );
    let queue = [("queue.buffering.max.kbytes", "1024")];
    let emitter = KafkaEmitter::new(&with_producer(&kafka, &queue)).unwrap();
    let refused = send_all(&emitter, Way::Batched, &[large]).unwrap();
    assert_eq!(refused.failure.kind, FailureKind::Record);
    let text = refused.failure.to_string();
    assert!(text.contains("`queue.buffering.max.kbytes`"), "{text}");
}

fn with_producer(kafka: &MockKafka, keys: &[(&str, &str)]) -> ClientSettings {
    let value = |text: &str| sluicegate_config::service::ClientValue::Plain(text.to_owned());
    ClientSettings {
        producer: keys
            .iter()
            .map(|(key, text)| ((*key).to_owned(), value(text)))
            .collect(),
        ..settings(&kafka.bootstrap_servers())
    }
}

#[test]
fn a_refused_batch_counts_against_a_record_only_if_it_was_alone() {
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("out", 1).unwrap();
    let emitter = KafkaEmitter::new(&settings(&kafka.bootstrap_servers())).unwrap();
    let cluster = kafka.cluster().unwrap();
    let too_large = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    let records = [record(None, Some(b"a"), &[]), record(None, Some(b"b"), &[])];
    for (way, kind) in [
        (Way::Batched, FailureKind::Batch),
        (Way::Alone, FailureKind::Record),
    ] {
        cluster.request_errors(rdkafka::types::RDKafkaApiKey::Produce, &[too_large]);
        let refused = send_all(&emitter, way, &records).unwrap();
        assert_eq!((refused.failure.kind, refused.first), (kind, 0), "{way:?}");
        assert_eq!(refused.group.records().len(), 2, "they are kept");
        let again = send_again(&emitter, Way::Alone, &refused);
        assert!(again.is_none(), "each alone succeeds");
    }
}

#[test]
fn a_missing_topic_is_a_target_failure_and_recovers_when_it_is_created() {
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("other", 1).unwrap();
    let quick = [("topic.metadata.propagation.max.ms", "100")];
    let emitter = KafkaEmitter::new(&with_producer(&kafka, &quick)).unwrap();
    let cluster = kafka.cluster().unwrap();
    let unknown = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    cluster.topic_error("out", unknown).unwrap();
    let mut out = record(Some(b"k"), Some(b"v"), &[]);
    out.partition = None;
    let refused = send_all(&emitter, Way::Batched, &[out]).unwrap();
    assert_eq!(refused.failure.kind, FailureKind::Target);
    let text = refused.failure.to_string();
    assert!(text.contains("cannot produce to out"), "{text}");
    assert!(text.contains("create the topic"), "{text}");
    let fine = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
    cluster.topic_error("out", fine).unwrap();
    let resend = || send_again(&emitter, Way::Batched, &refused);
    wait_for(Duration::from_secs(20), resend, Option::is_none, |last| {
        let why = last.as_ref().map(|refused| refused.failure.to_string());
        format!("the topic exists again, and its record is still refused: {why:?}")
    });
}

#[test]
fn unacknowledged_records_are_abandoned_at_the_deadline() {
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("out", 1).unwrap();
    let emitter = KafkaEmitter::new(&settings(&kafka.bootstrap_servers())).unwrap();
    let one = [record(None, Some(b"a"), &[])];
    assert!(send_all(&emitter, Way::Batched, &one).is_none());
    kafka.cluster().unwrap().broker_down(1).unwrap();
    let inbox = Arc::new(Inbox::new());
    let emits = one.iter().map(emit).collect();
    let group = AckGroup::new(inbox.clone(), HandlerIx(1), ENTRY, emits, None);
    send_from(&group, 0, Way::Batched, &emitter);
    group.seal();
    emitter.flush(Duration::from_millis(100));
    let refused = received(&inbox).expect("the group's record was failed");
    assert_eq!(refused.failure.kind, FailureKind::Cluster);
}
