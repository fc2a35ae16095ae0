//! Situation: handlers emit records that a cluster accepts, accepts only later, or never accepts: records of 10 MB, a missing
//! topic, future timestamps; and they emit before they drop or dead-letter a record.
//! Property: a refusal by the cluster costs no attempt and no other record; it is explained, and clears when the cluster recovers.
//! A record that is refused by itself goes to its dead letter. The emits of every outcome are written (G1, G7).
//! Needs: Kafka.
//! Command: `cargo xtask test --scenario emits`

use std::collections::BTreeSet;
use std::time::Duration;

use e2e::client::{Client, Outgoing, Read};
use e2e::kafka::Kafka;
use e2e::service::Service;
use e2e::unique;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(120);
const LARGE: usize = 10 << 20;
/// Settings of topics for large records.
const ROOM: [(&str, &str); 1] = [("max.message.bytes", "20000000")];

struct Harness {
    client: Client,
    source: String,
    group: String,
    workdir: Workdir,
}

impl Harness {
    fn new(partitions: i32, settings: &[(&str, &str)]) -> Self {
        let kafka = Kafka::shared();
        let client = Client::new(kafka.bootstrap());
        let (source, group) = (unique("emitted"), unique("group"));
        client.create_topic_with(&source, partitions, 1, settings);
        let workdir = Workdir::new(kafka.bootstrap(), &group, "");
        workdir.plugins(&["relay", "misbehave"]);
        Self {
            client,
            source,
            group,
            workdir,
        }
    }

    fn spec(&self, name: &str, plugin: &str, config: &str) {
        let spec = format!(
            "plugin: {plugin}\nversion: \"*\"\nroute: {{ topics: [{}] }}\n\
             dead_letter: {{ topic: \"{{topic}}.{name}\", create: false }}\n\
             retry: {{ max_attempts: 3, backoff: {{ delay: 10ms }} }}\nconfig: {config}\n",
            self.source
        );
        self.workdir.spec(name, &spec);
    }

    fn topic(&self, name: &str, settings: &[(&str, &str)]) -> String {
        let topic = format!("{}.{name}", self.source);
        self.client.create_topic_with(&topic, 1, 1, settings);
        topic
    }

    /// Waits until everything is settled and committed.
    fn settled(&self) {
        self.client
            .wait_committed(&self.group, &self.source, DEADLINE);
    }
}

fn outcomes(service: &Service, handler: &str) -> [u64; 4] {
    ["ack", "retry", "dead_letter", "drop"].map(|outcome| {
        let counted = service.outcomes(handler, outcome);
        counted.unwrap_or_else(|error| panic!("{error}"))
    })
}

fn values(records: &[Read]) -> BTreeSet<String> {
    records.iter().map(Read::text).collect()
}

#[test]
fn records_of_10_mb_are_copied_and_dead_lettered() {
    let harness = Harness::new(1, &ROOM);
    let copies = harness.topic("copies", &ROOM);
    let letters = harness.topic("fails", &ROOM);
    harness.topic("copy", &[]);
    harness.spec("copy", "relay", &format!("{{ topic: {copies} }}"));
    let fails = "{ rules: [ { when: { one_in: 1 }, do: error, class: terminal } ] }";
    harness.spec("fails", "misbehave", fails);
    let mut service = Service::ready(&harness.workdir, &[]);
    // The second one fits into the default limit of 1,000,000 bytes only without dead-letter headers.
    let sizes = [LARGE, 999_500, 10];
    let records = sizes.map(|size| Outgoing::new("k", vec![b'x'; size]));
    harness.client.produce(&harness.source, records);
    harness.settled();
    for topic in [&copies, &letters] {
        let read = harness.client.read(topic);
        let read: Vec<usize> = read
            .iter()
            .map(|record| record.value.as_ref().map_or(0, Vec::len))
            .collect();
        assert_eq!(read, sizes, "{topic}");
    }
    assert_eq!(outcomes(&service, "copy"), [3, 0, 0, 0]);
    assert_eq!(outcomes(&service, "fails"), [0, 0, 3, 0]);
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn a_missing_output_topic_holds_its_records_and_recovers_without_a_dead_letter() {
    const RECORDS: u64 = 2_000;
    let harness = Harness::new(3, &[]);
    let letters = harness.topic("copy", &[]);
    let missing = format!("{}.missing", harness.source);
    harness.spec("copy", "relay", &format!("{{ topic: {missing} }}"));
    let mut service = Service::ready(&harness.workdir, &[]);
    let record = |number: u64| Outgoing::new(&format!("k{}", number % 50), number.to_string());
    harness
        .client
        .produce(&harness.source, (0..RECORDS).map(record));
    let problem = wait_for("the missing topic to be a problem", DEADLINE, || {
        let status = service.api("status")?;
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        let emitting = |problem: &&Value| {
            problem["what"]
                .as_str()
                .is_some_and(|w| w.contains("emit to"))
        };
        let problem = problems.iter().find(emitting).cloned();
        problem.ok_or_else(|| status["problems"].to_string())
    });
    let what = problem["what"].to_string();
    assert!(
        what.contains("handler `copy` cannot emit to topic") && what.contains(&missing),
        "{problem}"
    );
    assert_eq!(problem["remedy"], "create the topic");
    let mut since = BTreeSet::new();
    let explained = wait_for("five refusals of the missing topic", DEADLINE, || {
        let explained = service.api(&format!("explain/{}/0", harness.source))?;
        let refused = &explained["held_by"][0]["waits_for"]["refused"];
        match refused["tries"].as_u64() {
            Some(tries) if tries > 1 => since.extend(refused["since_ms"].as_i64()),
            _ => return Err(explained.to_string()),
        }
        match refused["tries"].as_u64() {
            Some(5..) => Ok(refused.clone()),
            _ => Err(explained.to_string()),
        }
    });
    assert_eq!(since.len(), 1, "the start time does not change: {since:?}");
    assert_eq!(explained["topic"], missing.as_str());
    assert_eq!(explained["remedy"], "create the topic");
    let refused = service
        .metrics()
        .expect("metrics")
        .sum("sluicegate_handler_refused_records", &[("handler", "copy")]);
    assert!(refused > 0.0, "{refused}");
    let said = |service: &mut Service| {
        let log = service.process().log();
        log.lines().filter(|line| line.contains("refused")).count()
    };
    let lines = said(&mut service);
    assert!(
        (1..=5).contains(&lines),
        "{lines} lines: {}",
        service.process().log_tail()
    );

    harness.client.create_topic(&missing, 3);
    harness.settled();
    let copies = harness.client.read(&missing);
    let expected: BTreeSet<String> = (0..RECORDS).map(|number| number.to_string()).collect();
    assert_eq!(values(&copies), expected);
    assert_eq!(copies.len() as u64, RECORDS, "no copy twice");
    assert_eq!(harness.client.count(&letters), 0);
    assert_eq!(outcomes(&service, "copy"), [RECORDS, 0, 0, 0]);
    let status = service.api("status").expect("status");
    let problems = status["problems"].to_string();
    assert!(!problems.contains("emit to"), "{problems}");
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn a_refused_record_does_not_affect_its_batch() {
    const RECORDS: u64 = 2_000;
    let any_time = [("message.timestamp.after.max.ms", "9223372036854775807")];
    let harness = Harness::new(1, &any_time);
    let copies = harness.topic("copies", &[]);
    let letters = harness.topic("copy", &[]);
    harness.spec("copy", "relay", &format!("{{ topic: {copies} }}"));
    let now_ms = e2e::now_ms();
    let is_bad = |number: u64| number % 10 == 3;
    let record = |number: u64| {
        let ahead_ms = if is_bad(number) { 7_200_000 } else { 0 };
        Outgoing::new(&format!("k{number}"), number.to_string()).at(now_ms + ahead_ms)
    };
    harness
        .client
        .produce(&harness.source, (0..RECORDS).map(record));
    let mut service = Service::ready(&harness.workdir, &[]);
    harness.settled();
    let expected = |bad: bool| -> BTreeSet<String> {
        let numbers = (0..RECORDS).filter(|number| is_bad(*number) == bad);
        numbers.map(|number| number.to_string()).collect()
    };
    let dead_letters = harness.client.read(&letters);
    assert_eq!(values(&dead_letters), expected(true));
    assert_eq!(dead_letters.len(), 200, "each once");
    assert_eq!(values(&harness.client.read(&copies)), expected(false));
    assert_eq!(outcomes(&service, "copy"), [1_800, 0, 200, 0]);
    let header = |name: &str| dead_letters[0].header(name).unwrap_or_default();
    assert_eq!(header("__dlq.errors.reason"), "emit_refused");
    assert_eq!(header("__dlq.errors.delivery.count"), "1");
    let why = header("__dlq.errors.message");
    assert!(why.contains("message.timestamp.after.max.ms"), "{why}");
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn emits_before_a_drop_or_a_dead_letter_are_written() {
    let harness = Harness::new(1, &[]);
    let out = harness.topic("out", &[]);
    let letters = harness.topic("mixed", &[]);
    harness.spec(
        "mixed",
        "misbehave",
        &format!(
            "{{ emit_to: {out}, emit_first: true, rules: [ \
             {{ when: {{ header: kind, equals: drop }}, do: drop }}, \
             {{ when: {{ header: kind, equals: error }}, do: error, class: terminal }} ] }}"
        ),
    );
    let mut service = Service::ready(&harness.workdir, &[]);
    let record = |number: u64| {
        let kind = ["drop", "error", "plain"][number as usize % 3];
        Outgoing::new(&format!("k{}", number % 7), number.to_string()).header("kind", kind)
    };
    harness
        .client
        .produce(&harness.source, (0..300).map(record));
    harness.settled();
    assert_eq!(harness.client.read(&out).len(), 300);
    assert_eq!(harness.client.count(&letters), 100);
    assert_eq!(outcomes(&service, "mixed"), [100, 0, 100, 100]);
    assert!(service.stop(DEADLINE).success());
}
