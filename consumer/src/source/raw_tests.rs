//! Records out of the mock cluster: both ways to the headers agree, nulls stay nulls, and a record outlives its batch.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sluicegate_abi::header_block::Headers;

use super::super::mock::MockKafka;
use super::super::testing::consume_all;
use super::*;

type Given = (
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Vec<(String, Option<Vec<u8>>)>,
);

fn given() -> Vec<Given> {
    let bytes = |text: &str| Some(text.as_bytes().to_vec());
    let mut all: Vec<Given> = vec![
        (None, None, Vec::new()),
        (bytes(""), bytes(""), Vec::new()),
        (bytes("k"), None, vec![("a".into(), None)]),
        (None, bytes("v"), vec![(String::new(), bytes(""))]),
        (
            bytes("k"),
            bytes("v"),
            vec![("a".into(), bytes("1")), ("a".into(), bytes("2"))],
        ),
    ];
    for size in [0usize, 1, 63, 64, 65, 127, 128, 300, 9_000] {
        let headers = (0..size.min(70)).map(|n| (format!("name-{n}"), Some(vec![n as u8; size])));
        all.push((bytes("sized"), Some(vec![7; size]), headers.collect()));
    }
    all
}

fn produce(bootstrap: &str, compression: &str, records: &[Given]) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("compression.type", compression)
        .create()
        .unwrap();
    for (key, value, headers) in records {
        let mut list = OwnedHeaders::new();
        for (key, value) in headers {
            list = list.insert(Header {
                key,
                value: value.as_deref(),
            });
        }
        let mut record = BaseRecord::<[u8], [u8]>::to("t").partition(0);
        record.key = key.as_deref();
        record.payload = value.as_deref();
        if !headers.is_empty() {
            record = record.headers(list);
        }
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(10)).unwrap();
}

#[test]
fn both_ways_to_the_headers_agree_on_every_record() {
    for compression in ["none", "lz4", "gzip", "zstd"] {
        let kafka = MockKafka::start(1).unwrap();
        kafka.create_topic("t", 1).unwrap();
        let given = given();
        produce(&kafka.bootstrap_servers(), compression, &given);
        let (source, got) = consume_all(&kafka.bootstrap_servers(), "t", given.len());
        for ((key, value, headers), delivery) in given.iter().zip(&got) {
            let lease = &delivery.lease;
            assert_eq!(lease.key(), key.as_deref());
            assert_eq!(lease.value(), value.as_deref());
            let read: Vec<_> = Headers::new(lease.headers())
                .map(|(name, value)| {
                    let name = String::from_utf8(name.to_vec()).unwrap();
                    (name, value.map(<[u8]>::to_vec))
                })
                .collect();
            assert_eq!(&read, headers);
            let message = lease
                .message()
                .expect("the shim is in use: nothing is re-encoded");
            assert_eq!(message.header_block(), message.public_header_block());
            let copy = lease.detach();
            assert!(lease.pins_client_memory() && !copy.pins_client_memory());
            assert_eq!(copy.headers(), lease.headers());
            assert_eq!(copy.size(), lease.size());
        }
        drop(got);
        assert_eq!(LIVE.get(), 0, "every record was given back");
        drop(source);
    }
}
