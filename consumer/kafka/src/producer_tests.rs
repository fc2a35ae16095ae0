//! The emitter against the mock cluster: every record is answered exactly once, and bytes pass through unchanged.

use std::time::Instant;

use sluicegate_abi::header_block::{self, Headers};
use sluicegate_engine::dispatch::{Inbox, PumpMessage};
use sluicegate_engine::emit::{EmitFailure, FailureKind, answer_unsent};
use sluicegate_engine::record::Record;
use sluicegate_kit::wait::wait_for;

use super::*;
use crate::mock::MockKafka;
use crate::testing::{consume_all, settings};

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

/// The answers for records, in the order of sending.
fn send_all(
    emitter: &KafkaEmitter,
    way: Way,
    records: &[ProducerRecord<'_>],
) -> Vec<Option<Box<EmitFailure>>> {
    let inbox = Arc::new(Inbox::new());
    send(emitter, way, records, &inbox);
    received(&inbox, records.len())
}

/// Sends records, as a worker does.
fn send(emitter: &KafkaEmitter, way: Way, records: &[ProducerRecord<'_>], inbox: &Arc<Inbox>) {
    for (place, record) in records.iter().enumerate() {
        let token = EmitToken::default().at(place).unwrap();
        let sent = emitter.send(record, way, inbox, token);
        answer_unsent(sent, record.topic, inbox, token);
    }
}

/// Waits for the answers, of which each record has one.
fn received(inbox: &Inbox, records: usize) -> Vec<Option<Box<EmitFailure>>> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut answers: Vec<(u64, Option<Box<EmitFailure>>)> = Vec::new();
    while answers.len() < records {
        assert!(Instant::now() < deadline, "{} answers", answers.len());
        std::thread::yield_now();
        let mut messages = Vec::new();
        inbox.take(&mut messages);
        for message in messages {
            let PumpMessage::Delivered(deliveries) = message else {
                panic!("the pump received another message");
            };
            let deliveries = deliveries.into_iter();
            answers.extend(deliveries.map(|one| (one.token.bits(), one.failure)));
        }
    }
    answers.sort_by_key(|(token, _)| *token);
    let tokens: Vec<u64> = answers.iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens, (0..records as u64).collect::<Vec<_>>(), "one each");
    answers.into_iter().map(|(_, failure)| failure).collect()
}

/// The only answer, a failure.
fn refusal(mut answers: Vec<Option<Box<EmitFailure>>>) -> EmitFailure {
    assert_eq!(answers.len(), 1);
    *answers.remove(0).expect("it is refused")
}

/// Whether all are acknowledged.
fn all_acknowledged(answers: &[Option<Box<EmitFailure>>]) -> bool {
    answers.iter().all(Option::is_none)
}

#[test]
fn bytes_pass_through_unchanged_and_each_record_is_answered() {
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("out", 1).unwrap();
    let emitter =
        KafkaEmitter::new(&settings(&kafka.bootstrap_servers()), &Arc::default()).unwrap();
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
    assert!(all_acknowledged(&send_all(
        &emitter,
        Way::Batched,
        &records
    )));
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
    let emitter =
        KafkaEmitter::new(&settings(&kafka.bootstrap_servers()), &Arc::default()).unwrap();
    let large = vec![0; 10 << 20];
    let large = record(None, Some(&large), &[]);
    assert!(all_acknowledged(&send_all(
        &emitter,
        Way::Batched,
        &[large]
    )));
    assert!(all_acknowledged(&send_all(&emitter, Way::Alone, &[large])));

    let producer = [("message.max.bytes", "2000000")];
    let settings = with_producer(&kafka, &producer);
    let emitter = KafkaEmitter::new(&settings, &Arc::default()).unwrap();
    let refused = refusal(send_all(&emitter, Way::Batched, &[large]));
    assert_eq!(refused.kind, FailureKind::Record);
    let text = refused.to_string();
    assert!(text.contains("the record has 10485760 bytes"), "{text}");
    assert!(text.contains("the producer takes 2000000"), "{text}");
    assert!(
        text.contains("`message.max.bytes` under kafka.producer"),
        "{text}"
    );
    let queue = [("queue.buffering.max.kbytes", "1024")];
    let emitter = KafkaEmitter::new(&with_producer(&kafka, &queue), &Arc::default()).unwrap();
    let refused = refusal(send_all(&emitter, Way::Batched, &[large]));
    assert_eq!(refused.kind, FailureKind::Record);
    let text = refused.to_string();
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
    let emitter =
        KafkaEmitter::new(&settings(&kafka.bootstrap_servers()), &Arc::default()).unwrap();
    let cluster = kafka.cluster().unwrap();
    let too_large = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    let records = [record(None, Some(b"a"), &[]), record(None, Some(b"b"), &[])];
    for (way, kind) in [
        (Way::Batched, FailureKind::Batch),
        (Way::Alone, FailureKind::Record),
    ] {
        cluster.request_errors(rdkafka::types::RDKafkaApiKey::Produce, &[too_large]);
        let answers = send_all(&emitter, way, &records);
        let first = answers[0].as_ref().expect("it is refused");
        assert_eq!(first.kind, kind, "{way:?}");
        let again = send_all(&emitter, Way::Alone, &records);
        assert!(all_acknowledged(&again), "each alone succeeds");
    }
}

#[test]
fn a_missing_topic_is_a_target_failure_and_recovers_when_it_is_created() {
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("other", 1).unwrap();
    let quick = [("topic.metadata.propagation.max.ms", "100")];
    let emitter = KafkaEmitter::new(&with_producer(&kafka, &quick), &Arc::default()).unwrap();
    let cluster = kafka.cluster().unwrap();
    let unknown = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    cluster.topic_error("out", unknown).unwrap();
    let mut out = record(Some(b"k"), Some(b"v"), &[]);
    out.partition = None;
    let refused = refusal(send_all(&emitter, Way::Batched, &[out]));
    assert_eq!(refused.kind, FailureKind::Target);
    let text = refused.to_string();
    assert!(text.contains("cannot produce to out"), "{text}");
    assert!(text.contains("create the topic"), "{text}");
    let fine = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
    cluster.topic_error("out", fine).unwrap();
    let inbox = Arc::new(Inbox::new());
    let resend = || {
        send(&emitter, Way::Batched, &[out], &inbox);
        received(&inbox, 1).remove(0)
    };
    wait_for(Duration::from_secs(20), resend, Option::is_none, |last| {
        let why = last.as_ref().map(|refused| refused.to_string());
        format!("the topic exists again, and its record is still refused: {why:?}")
    });
}

/// A producer that has a record whose broker has gone.
fn unanswered() -> (MockKafka, KafkaEmitter, Arc<Inbox>) {
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("out", 1).unwrap();
    let emitter =
        KafkaEmitter::new(&settings(&kafka.bootstrap_servers()), &Arc::default()).unwrap();
    let one = [record(None, Some(b"a"), &[])];
    assert!(all_acknowledged(&send_all(&emitter, Way::Batched, &one)));
    kafka.cluster().unwrap().broker_down(1).unwrap();
    let inbox = Arc::new(Inbox::new());
    send(&emitter, Way::Batched, &one, &inbox);
    (kafka, emitter, inbox)
}

#[test]
fn unacknowledged_records_are_abandoned_at_the_deadline() {
    let (_kafka, emitter, inbox) = unanswered();
    emitter.flush(Duration::from_millis(100));
    let refused = refusal(received(&inbox, 1));
    assert_eq!(refused.kind, FailureKind::Cluster);
}

/// Counts the lines of librdkafka.
struct Lines(std::sync::atomic::AtomicUsize);

impl tracing::Subscriber for &'static Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "librdkafka"
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn lines_of_a_producer_are_logged() {
    use std::sync::atomic::Ordering;
    static LINES: Lines = Lines(std::sync::atomic::AtomicUsize::new(0));
    // The lines are written by the producer's own thread.
    let _ = tracing::subscriber::set_global_default(&LINES);
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("out", 1).unwrap();
    let emitter = KafkaEmitter::new(
        &with_producer(&kafka, &[("debug", "broker,msg")]),
        &Arc::default(),
    )
    .unwrap();
    let one = [record(None, Some(b"a"), &[])];
    assert!(all_acknowledged(&send_all(&emitter, Way::Batched, &one)));
    let lines = || LINES.0.load(Ordering::Relaxed);
    wait_for(
        Duration::from_secs(10),
        lines,
        |lines| *lines > 10,
        |last| format!("{last} lines"),
    );
}

#[test]
fn everything_is_answered_when_a_flush_returns() {
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("out", 1).unwrap();
    let emitter =
        KafkaEmitter::new(&settings(&kafka.bootstrap_servers()), &Arc::default()).unwrap();
    let many = vec![record(None, Some(b"a"), &[]); 200];
    let inbox = Arc::new(Inbox::new());
    for round in 0..100 {
        send(&emitter, Way::Batched, &many, &inbox);
        emitter.flush(Duration::from_secs(20));
        let mut messages = Vec::new();
        inbox.take(&mut messages);
        let answers = messages.iter().map(|message| match message {
            PumpMessage::Delivered(deliveries) => deliveries.len(),
            _ => 0,
        });
        assert_eq!(answers.sum::<usize>(), many.len(), "round {round}");
    }
}

#[test]
fn each_pump_gets_one_message_of_a_report() {
    use crate::ffi::{Reported, Reports};
    let pumps: Arc<Pumps> = Arc::default();
    let (errors, secrets) = (Arc::default(), Arc::default());
    let answers = answers::Answers::new(Way::Batched, Arc::clone(&pumps), errors, secrets);
    let inboxes = [Arc::new(Inbox::new()), Arc::new(Inbox::new())];
    let mut batch = answers::Batch::new(&answers);
    for place in 0..1_000 {
        let token = EmitToken::default().at(place).unwrap();
        batch.record(&Reported {
            opaque: pumps.opaque(&inboxes[place % 2], token).unwrap(),
            code: 0,
            topic: "",
            bytes: 1,
        });
    }
    batch.end();
    for inbox in inboxes {
        let mut messages = Vec::new();
        inbox.take(&mut messages);
        assert_eq!(messages.len(), 1);
    }
}

#[test]
fn what_a_broken_producer_has_is_answered_with_its_reason() {
    let (_kafka, emitter, inbox) = unanswered();
    let client = emitter.batched.get().unwrap();
    crate::ffi::break_for_test(client.native(), c"authorization is missing");
    let weak = Arc::downgrade(&client);
    drop(client);
    // The next record finds the producer broken, and has it replaced.
    let next = [record(None, Some(b"b"), &[])];
    let next = refusal(send_all(&emitter, Way::Batched, &next));
    let queued = refusal(received(&inbox, 1));
    for refused in [next, queued] {
        let text = refused.to_string();
        assert!(text.contains("authorization is missing"), "{text}");
        assert!(text.contains("grant the service Write"), "{text}");
    }
    let is_gone = || weak.upgrade().is_none();
    wait_for(
        Duration::from_secs(20),
        is_gone,
        |gone| *gone,
        |_| "the broken producer is still there".to_owned(),
    );
}
