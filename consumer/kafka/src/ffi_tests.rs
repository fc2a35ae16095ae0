//! Records from the mock cluster: both ways to read headers agree, nulls stay nulls, and a record outlives its batch.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sluicegate_abi::header_block::{self, Headers};
use sluicegate_abi::lend::Lent;
use sluicegate_abi::{RecordPlace, TopicName};

use super::headers::{MOST_PUBLIC_HEADERS, PublicHeaders, agree};
use super::*;
use crate::mock::MockKafka;
use crate::testing::consume_all;
use sluicegate_engine::source::Delivery;

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
        assert_eq!(LIVE.get(), 0, "every record was released");
        drop(source);
    }
}

/// A block with these headers.
fn block_of(headers: &[(&[u8], Option<&[u8]>)]) -> Vec<u8> {
    let mut block = Vec::new();
    header_block::write(&mut block, headers.iter().copied());
    block
}

#[test]
fn a_malformed_record_does_not_disable_reading_in_place() {
    use PublicHeaders::{Block, Malformed, None as Nothing};
    let good = block_of(&[(b"a", Some(b"1")), (b"b", None)]);
    let zero = block_of(&[(b"a\0b", Some(b"1"))]);
    let cut = block_of(&[(b"a", Some(b"1"))]);
    let other = block_of(&[(b"a", Some(b"2"))]);
    let many: Vec<(&[u8], Option<&[u8]>)> = vec![(b"", None); MOST_PUBLIC_HEADERS + 1];
    let table: [(&str, &[u8], PublicHeaders, bool); 16] = [
        ("the same", &good, Block(good.clone()), true),
        ("none", &[], Nothing, true),
        ("a count of none, written long", &[0x80, 0], Nothing, true),
        ("a negative count", &[1], Nothing, true),
        ("a zero byte in a name", &zero, Block(cut.clone()), true),
        ("a block that ends early", &good[..3], Malformed, true),
        (
            "a block with trailing bytes",
            &[&good[..], b"x"].concat(),
            Block(good.clone()),
            true,
        ),
        (
            "a length that is not a number",
            &[2, 0x80, 0x80],
            Malformed,
            true,
        ),
        (
            "more than the public call takes",
            &block_of(&many),
            Malformed,
            true,
        ),
        // The following differences are not caused by the record: the location is wrong.
        ("other values", &good, Block(other), false),
        ("fewer headers", &cut, Block(good.clone()), false),
        (
            "a cut that nothing explains",
            &good,
            Block(cut.clone()),
            false,
        ),
        ("something where nothing is", &good, Nothing, false),
        (
            "nothing where something is",
            &[],
            Block(good.clone()),
            false,
        ),
        ("good where the public call fails", &good, Malformed, false),
        ("bytes where nothing is", &[0; 11], Nothing, false),
    ];
    for (what, in_place, public, agreed) in table {
        assert_eq!(agree(in_place, &public), agreed, "{what}");
    }
}

#[test]
fn a_name_with_a_zero_byte_does_not_disable_reading_in_place() {
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("t", 1).unwrap();
    let name = "a\0b".to_owned();
    let mut records: Vec<Given> = vec![(None, None, vec![(name, Some(b"1".to_vec()))])];
    records.extend(given());
    produce(&kafka.bootstrap_servers(), "none", &records);
    let (source, got) = consume_all(&kafka.bootstrap_servers(), "t", records.len());
    let first: Vec<_> = Headers::new(got[0].lease.headers()).collect();
    assert_eq!(
        first,
        [(&b"a\0b"[..], Some(&b"1"[..]))],
        "byte for byte (G7)"
    );
    for delivery in &got {
        let in_place = delivery.lease.message();
        assert!(
            in_place.is_some(),
            "offset {} is re-encoded",
            delivery.offset
        );
    }
    drop(got);
    drop(source);
}

#[test]
fn a_record_without_headers_is_never_read_through_an_untrusted_shim() {
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("t", 1).unwrap();
    let given = given();
    produce(&kafka.bootstrap_servers(), "none", &given);
    let (source, got) = consume_all(&kafka.bootstrap_servers(), "t", given.len());
    for ((key, value, headers), delivery) in given.iter().zip(got) {
        let lease = delivery.lease.into_public();
        assert!(
            lease.message().is_none(),
            "nothing reads its headers in place"
        );
        assert_eq!(lease.key(), key.as_deref());
        assert_eq!(lease.value(), value.as_deref());
        let names: Vec<_> = Headers::new(lease.headers())
            .map(|(name, _)| name)
            .collect();
        let wanted: Vec<_> = headers.iter().map(|(name, _)| name.as_bytes()).collect();
        assert_eq!(names, wanted);
        assert!(lease.pins_client_memory());
    }
    drop(source);
}

#[test]
fn a_record_that_a_call_still_reads_outlives_its_client() {
    let kafka = MockKafka::start(1).unwrap();
    kafka.create_topic("t", 1).unwrap();
    let given = given();
    produce(&kafka.bootstrap_servers(), "none", &given);
    let (source, got) = consume_all(&kafka.bootstrap_servers(), "t", given.len());
    let mut lent: Vec<Lent<RecordBuf>> = got
        .into_iter()
        .map(|delivery| {
            let place = RecordPlace {
                topic: TopicName::plain("t"),
                partition: 0,
                offset: delivery.offset,
                timestamp_ms: 0,
                epoch: 1,
                fence: None,
            };
            Lent::new(delivery.lease, place)
        })
        .collect();
    let views: Vec<_> = lent.iter_mut().map(|lent| lent.lend(0, 1)).collect();
    let returned = lent[0].lend(0, 1);
    lent[0].return_view(returned);
    drop(lent);
    assert_eq!(LIVE.get(), given.len(), "nothing was freed");
    // The client is leaked with them, or this would wait forever.
    drop(source);
    for ((key, value, _), view) in given.iter().zip(&views) {
        assert_eq!(view.view().key(), key.as_deref());
        assert_eq!(view.view().value(), value.as_deref());
    }
}

/// What the budget counts as pinned: with all records of a buffer, about their bytes; with the last one, all of it.
#[test]
fn records_share_the_buffer_that_they_keep_alive() {
    for compression in ["none", "lz4"] {
        let kafka = MockKafka::start(1).unwrap();
        kafka.create_topic("t", 1).unwrap();
        let value = Some(vec![7; 1_000]);
        let given: Vec<Given> = (0..100).map(|_| (None, value.clone(), vec![])).collect();
        produce(&kafka.bootstrap_servers(), compression, &given);
        let (source, mut got) = consume_all(&kafka.bootstrap_servers(), "t", given.len());
        let pinned = |got: &[Delivery<RecordBuf>]| -> usize {
            got.iter().map(|one| one.lease.pinned_bytes()).sum()
        };
        let all = pinned(&got);
        assert!((100_000..130_000).contains(&all), "{compression}: {all}");
        let copy = got[50].lease.detach();
        assert_eq!(copy.pinned_bytes(), 0);
        // The producer may send the first records in a batch of their own.
        got.swap(0, 50);
        got.truncate(1);
        let one = pinned(&got);
        assert!(one > 2_000, "{compression}: {one} of {all}");
        drop(got);
        drop(source);
    }
}
