//! `sluicegate produce` as a user runs it, against an in-process cluster: delivered records, and error messages.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

const PARTITIONS: i32 = 4;
const ROWS: usize = 2_000;

/// Key, headers and value of a record.
type Seen = (Option<String>, Vec<(String, String)>, serde_json::Value);

fn produce(arguments: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .arg("produce")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut input = child.stdin.take().expect("it is piped");
    // A child that rejects its arguments does not read; that does not fail the test.
    let _ = input.write_all(stdin.as_bytes());
    drop(input);
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads `count` records of `topic`, each partition in order.
fn read(brokers: &str, topic: &str, count: usize) -> Vec<Seen> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reader")
        .create()
        .expect("a consumer");
    let mut all = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        all.add_partition_offset(topic, partition, Offset::Beginning)
            .expect("an offset");
    }
    consumer.assign(&all).expect("an assignment");
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut seen = Vec::new();
    while seen.len() < count && Instant::now() < deadline {
        let Some(record) = consumer.poll(Duration::from_millis(200)) else {
            continue;
        };
        let record = record.expect("a record");
        let headers = record.headers().map_or(Vec::new(), |headers| {
            let pairs = headers.iter();
            pairs
                .map(|h| (h.key.to_owned(), text(h.value.unwrap_or_default())))
                .collect()
        });
        let value = serde_json::from_slice(record.payload().expect("a value")).expect("JSON");
        seen.push((record.key().map(text), headers, value));
    }
    seen
}

#[test]
fn rows_arrive_with_key_headers_and_numbers() {
    let cluster = MockCluster::new(1).expect("an in-process cluster");
    let brokers = cluster.bootstrap_servers();
    cluster
        .create_topic("flights", PARTITIONS, 1)
        .expect("a topic");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("flights.csv");
    let rows = (0..ROWS).map(|i| match i % 10 {
        0 => format!("{i},NA,UA,\n"),
        _ => format!("{i},N{},UA,-2.5\n", i % 37),
    });
    let csv = "id,tailnum,carrier,dep_delay\n".to_owned() + &rows.collect::<String>();
    std::fs::write(&file, csv).expect("room");

    let file = file.to_str().expect("UTF-8");
    let common = ["--topic", "flights", "--brokers", &brokers];
    let fields = [
        "--key",
        "tailnum",
        "--header",
        "carrier",
        "--header",
        "dep_delay",
    ];
    let output = produce(&[&[file], &common[..], &fields[..]].concat(), "");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let summary = text(&output.stdout);
    assert!(
        summary.starts_with("2000 records to `flights` in "),
        "{summary}"
    );
    assert!(
        summary.trim_end().ends_with("200 without a key"),
        "{summary}"
    );

    let mut seen = read(&brokers, "flights", ROWS);
    assert_eq!(seen.len(), ROWS);
    seen.sort_by_key(|(_, _, value)| value["id"].as_u64());
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        seen[0],
        (
            None,
            vec![pair("carrier", "UA")],
            serde_json::json!({ "id": 0, "tailnum": null, "carrier": "UA", "dep_delay": null })
        )
    );
    assert_eq!(
        seen[1],
        (
            Some("N1".to_owned()),
            vec![pair("carrier", "UA"), pair("dep_delay", "-2.5")],
            serde_json::json!({ "id": 1, "tailnum": "N1", "carrier": "UA", "dep_delay": -2.5 })
        )
    );
    assert_eq!(seen[ROWS - 1].2["id"], ROWS - 1);
}

#[test]
fn the_standard_input_is_limited_and_paced() {
    let cluster = MockCluster::new(1).expect("an in-process cluster");
    let brokers = cluster.bootstrap_servers();
    cluster.create_topic("t", PARTITIONS, 1).expect("a topic");
    let lines: String = (0..100)
        .map(|i| format!("{{\"id\": \"k{i}\"}}\n"))
        .collect();
    let started = Instant::now();
    let arguments = [
        "-",
        "--topic",
        "t",
        "--brokers",
        &brokers,
        "--limit",
        "30",
        "--rate",
        "100",
        "--key",
        "id",
    ];
    let output = produce(&arguments, &lines);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        started.elapsed() >= Duration::from_millis(280),
        "30 records at 100/s take 0.3 s"
    );
    assert!(
        text(&output.stdout).starts_with("30 records to `t`"),
        "{}",
        text(&output.stdout)
    );
    assert_eq!(read(&brokers, "t", 30).len(), 30);
}

#[test]
fn a_bad_row_ends_it_after_the_rows_before_it_are_written() {
    let cluster = MockCluster::new(1).expect("an in-process cluster");
    let brokers = cluster.bootstrap_servers();
    cluster.create_topic("t", PARTITIONS, 1).expect("a topic");
    let output = produce(
        &["-", "--topic", "t", "--brokers", &brokers],
        "a,b\n1,2\n3\n",
    );
    assert_eq!(output.status.code(), Some(1));
    let expected = "error: (standard input):3: 1 fields where the header line has 2; the 1 records before it are written\n";
    assert_eq!(text(&output.stderr), expected);
    assert_eq!(read(&brokers, "t", 1).len(), 1);
}

#[test]
fn an_error_is_reported_in_one_line() {
    let unreachable = ["--topic", "t", "--brokers", "127.0.0.1:1"];
    for (first, more, stdin, code, words) in [
        (
            "no-such.csv",
            &[][..],
            "",
            2,
            "cannot read `no-such.csv`: No such file",
        ),
        (
            "-",
            &["--key", "b"][..],
            "a\n1\n",
            2,
            "`(standard input)` has no field `b`; it has: a",
        ),
        (
            "-",
            &["--rate", "0"][..],
            "",
            2,
            "a number above 0 is needed",
        ),
        (
            "-",
            &[][..],
            "a\n1\n",
            1,
            "no broker answers at `127.0.0.1:1` within 10 s",
        ),
    ] {
        let output = produce(&[&[first], &unreachable[..], more].concat(), stdin);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.contains(words), "{message}");
    }
    let output = produce(&["-", "--topic", "t"], "");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("--brokers <B>"),
        "{}",
        text(&output.stderr)
    );
}
