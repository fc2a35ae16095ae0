//! The emitter against the mock cluster: every record is answered exactly once, and bytes go through untouched.

use std::time::Instant;

use sluicegate_abi::header_block::{self, Headers};

use super::*;
use crate::dispatch::{EntryKey, HandlerIx, Inbox, PumpMessage};
use crate::source::mock::MockKafka;
use crate::source::testing::{consume_all, settings};

const ENTRY: EntryKey = EntryKey {
    index: 4,
    serial: 2,
};

fn record<'a>(key: Option<&'a [u8]>, value: Option<&'a [u8]>, headers: &'a [u8]) -> Outgoing<'a> {
    Outgoing {
        topic: "out",
        partition: Some(0),
        timestamp_ms: Some(1_357_000_000_000),
        key,
        value,
        headers,
    }
}

/// Sends `records` as one group and returns what the pump is told.
fn send_all(emitter: &KafkaEmitter, records: &[Outgoing<'_>]) -> Option<Arc<str>> {
    let inbox = Arc::new(Inbox::new());
    let group = EmitGroup::new(Arc::clone(&inbox), HandlerIx(1), ENTRY);
    for record in records {
        group.expect_one();
        if let Err(error) = emitter.send(record, &group) {
            group.answered(Some(&error.to_string()));
        }
    }
    group.arm();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut told = Vec::new();
    while told.is_empty() {
        assert!(Instant::now() < deadline, "the pump was told nothing");
        std::thread::yield_now();
        inbox.take(&mut told);
    }
    assert_eq!(told.len(), 1, "told once");
    match told.remove(0) {
        PumpMessage::Produced {
            handler: HandlerIx(1),
            entry: ENTRY,
            error,
        } => error,
        _ => panic!("the pump was told something else"),
    }
}

#[test]
fn bytes_go_through_untouched_and_the_pump_hears_once() {
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("out", 1).unwrap();
    let emitter = KafkaEmitter::new(settings(&kafka.bootstrap_servers())).unwrap();
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
    assert_eq!(send_all(&emitter, &records), None);
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
fn a_refusal_at_once_and_one_by_the_broker_are_both_told() {
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("out", 1).unwrap();
    let emitter = KafkaEmitter::new(settings(&kafka.bootstrap_servers())).unwrap();
    let huge = vec![0; 2_000_000];
    let error = send_all(&emitter, &[record(None, Some(&huge), &[])]).unwrap();
    assert!(error.contains("cannot produce to out"), "{error}");
    let cluster = kafka.cluster().unwrap();
    let too_large = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    cluster.request_errors(rdkafka::types::RDKafkaApiKey::Produce, &[too_large]);
    let good_and_bad = [record(None, Some(b"a"), &[])];
    let error = send_all(&emitter, &good_and_bad).unwrap();
    assert!(error.contains("too large"), "{error}");
    assert_eq!(
        send_all(&emitter, &good_and_bad),
        None,
        "the next one passes"
    );
}

#[test]
fn what_cannot_be_acknowledged_is_given_up_at_the_deadline() {
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("out", 1).unwrap();
    let emitter = KafkaEmitter::new(settings(&kafka.bootstrap_servers())).unwrap();
    assert_eq!(send_all(&emitter, &[record(None, Some(b"a"), &[])]), None);
    kafka.cluster().unwrap().broker_down(1).unwrap();
    let inbox = Arc::new(Inbox::new());
    let group = EmitGroup::new(Arc::clone(&inbox), HandlerIx(1), ENTRY);
    group.expect_one();
    emitter
        .send(&record(None, Some(b"b"), &[]), &group)
        .unwrap();
    group.arm();
    emitter.flush(Duration::from_millis(100));
    let mut told = Vec::new();
    inbox.take(&mut told);
    assert!(
        matches!(told[..], [PumpMessage::Produced { error: Some(_), .. }]),
        "the group was told that its record is given up"
    );
}
