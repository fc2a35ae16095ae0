//! Valid documents: every documented field is accepted and parsed into its setting.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use sluicegate_config::service::{
    ClientValue, Guarantee, HandlersFrom, LogFormat, OffsetOutOfRange, References, Start,
};
use sluicegate_config::spec::{OnFailure, Order, PartitionTest, TopicPattern};
use sluicegate_config::{
    Environment, HandlerSpec, Predicate, Problems, ServiceConfig, Test, read_spec,
};

fn service(text: &str) -> Result<ServiceConfig, Problems> {
    service_with(text, &[], &[])
}

fn service_with(
    text: &str,
    variables: &[(&str, &str)],
    sets: &[&str],
) -> Result<ServiceConfig, Problems> {
    let environment: Environment = variables.iter().copied().collect();
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    let file = Path::new("etc/sluicegate.yaml");
    sluicegate_config::service::read_service_config(text, Some(file), &environment, &sets)
}

fn spec(text: &str) -> HandlerSpec {
    read_spec(text, None, &Environment::default()).unwrap_or_else(|problems| panic!("{problems}"))
}

const FULL_SERVICE: &str = r#"
kafka:
  bootstrap_servers: 127.0.0.1:9092
  group_id: flights
  clients: 2                     # pumps
  start: 2026-01-31T12:00:00+01:00
  client: { session.timeout.ms: 6000, sasl.password: hunter2, ssl.ca.location: ca.pem }
processing:
  guarantee: at_least_once
  max_uncommitted: 500
  memory: 64MiB
  commit_interval: 250ms
  drain_timeout: 3s
  stall_timeout: 1m
  offset_out_of_range: latest
handlers:
  file: { folder: handlers.d }
plugins:
  folder: /opt/plugins
  cache: .sluicegate/cache
  allow_unsigned: true
admin: { listen: "[::1]:0" }
emit: { provenance: true }
logging: { format: json, level: "info,sluicegate_engine::flow=debug" }
"#;

#[test]
fn an_empty_document_has_the_documented_defaults() {
    let config = service("# nothing\n").unwrap();
    assert_eq!(config.kafka.bootstrap_servers, "127.0.0.1:9092");
    assert_eq!(config.kafka.clients, 1);
    assert_eq!(config.kafka.start, Start::Earliest);
    assert_eq!(config.processing.guarantee, Guarantee::AtLeastOnce);
    assert_eq!(config.processing.max_uncommitted, 10_000);
    assert_eq!(config.processing.memory, 256 << 20);
    assert_eq!(config.processing.commit_interval, Duration::from_secs(1));
    assert_eq!(config.processing.drain_timeout, Duration::from_secs(20));
    assert_eq!(config.processing.stall_timeout, Duration::from_secs(300));
    assert_eq!(
        config.processing.offset_out_of_range,
        OffsetOutOfRange::Stop
    );
    let folder = PathBuf::from("etc/handlers.d");
    let rescan = Duration::from_secs(5);
    assert_eq!(config.handlers.from, HandlersFrom::File { folder, rescan });
    assert_eq!(config.plugins.folder, Path::new("etc/plugins"));
    assert_eq!(config.plugins.cache, Path::new("etc/.sluicegate/cache"));
    assert_eq!(config.handlers.references, References::default());
    assert!(!config.emit.provenance && !config.plugins.allow_unsigned);
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9600");
    assert_eq!(
        (config.logging.format, config.logging.level.as_str()),
        (LogFormat::Text, "info")
    );
}

#[test]
fn every_value_of_a_full_service_config_is_parsed() {
    let config = service(FULL_SERVICE).unwrap();
    assert_eq!(config.kafka.group_id, "flights");
    assert_eq!(config.kafka.clients, 2);
    assert_eq!(
        config.kafka.start,
        Start::Time {
            unix_ms: 1_769_857_200_000
        }
    );
    assert_eq!(
        config.kafka.client["session.timeout.ms"],
        ClientValue::Plain("6000".to_owned())
    );
    assert_eq!(config.kafka.client["sasl.password"].expose(), "hunter2");
    assert_eq!(
        config.kafka.client["ssl.ca.location"].expose(),
        "etc/ca.pem"
    );
    assert_eq!(config.processing.guarantee, Guarantee::AtLeastOnce);
    assert_eq!(config.processing.max_uncommitted, 500);
    assert_eq!(config.processing.memory, 64 << 20);
    assert_eq!(
        config.processing.commit_interval,
        Duration::from_millis(250)
    );
    assert_eq!(
        config.processing.offset_out_of_range,
        OffsetOutOfRange::Latest
    );
    assert_eq!(config.plugins.folder, Path::new("/opt/plugins"));
    assert!(config.emit.provenance);
    assert!(config.plugins.allow_unsigned);
    assert_eq!(config.admin.listen.to_string(), "[::1]:0");
    assert_eq!(config.logging.format, LogFormat::Json);
}

#[test]
fn secrets_are_never_shown() {
    let text = "kafka: { group_id: \"${env:GROUP}\", client: { sasl.password: hunter2, client.rack: \"${env:RACK}\" } }";
    let config = service_with(text, &[("GROUP", "g1"), ("RACK", "hidden-rack")], &[]).unwrap();
    assert_eq!(config.kafka.group_id, "g1");
    assert_eq!(config.kafka.client["client.rack"].expose(), "hidden-rack");
    let shown = format!(
        "{config:?} {}",
        serde_json::to_string(&config.kafka.client).unwrap()
    );
    assert!(
        !shown.contains("hunter2") && !shown.contains("hidden-rack"),
        "{shown}"
    );

    let variables: Environment = [("URL", "postgres://u:hunter2@db")].into_iter().collect();
    let text = "{ name: audit, plugin: auditor, route: { topics: [t] }, config: { url: \"${env:URL}\", code: \"$${x}\" } }";
    let spec = read_spec(text, None, &variables).unwrap();
    assert_eq!(spec.config.expose()["url"], "postgres://u:hunter2@db");
    assert_eq!(spec.config.expose()["code"], "${x}");
    let shown = format!("{spec:?} {}", serde_json::to_string(&spec).unwrap());
    assert!(
        !shown.contains("hunter2") && shown.contains("${env:URL}"),
        "{shown}"
    );
}

#[test]
fn overrides_take_precedence_in_order() {
    let text = "kafka: { group_id: from-file, clients: 1 }";
    let variables = [
        ("SLUICEGATE__KAFKA__GROUP_ID", "5"),
        ("SLUICEGATE__KAFKA__CLIENTS", "3"),
        ("SLUICEGATE__KAFKA__CLIENT__SESSION_TIMEOUT_MS", "6000"),
        ("SLUICEGATE__HANDLERS__REFERENCES__ENV", "[a, b]"),
        ("SLUICEGATE__LOGGING__LEVEL", "debug"),
        ("UNRELATED", "x"),
    ];
    let sets = [
        "kafka.clients=4",
        "kafka.client.fetch.min.bytes=10",
        "processing.memory=1GiB",
    ];
    let config = service_with(text, &variables, &sets).unwrap();
    assert_eq!(config.kafka.group_id, "5");
    assert_eq!(config.kafka.clients, 4);
    assert_eq!(config.kafka.client["session.timeout.ms"].expose(), "6000");
    assert_eq!(config.kafka.client["fetch.min.bytes"].expose(), "10");
    assert!(config.handlers.references.env.iter().eq(["a", "b"]));
    assert_eq!(config.logging.level, "debug");
    assert_eq!(config.processing.memory, 1 << 30);
}

const FULL_SPEC: &str = r#"
name: fraud-detector
plugin: fraud-detector
version: 1.10
enabled: false
route:
  topics: [user_events, "orders.*", "/^audit-[0-9]+$/"]
  when:
    all:
      - { header: processing_mode, equals: realtime }
      - { header: tenant, in: [acme, globex, 7] }
      - { header: trace, exists: true }
      - any:
          - { key: true, prefix: N }
          - { key: , exists: false }
          - not: { partition: true, ge: 3, lt: 9 }
      - { header: amount, gt: 1.5 }
order: unordered
workers: 2
pool: small
group: shared
gate_closed: skip
max_in_flight: { records: 10, bytes: 1KiB }
timeout: 7s
retry: { max_attempts: 3, backoff: { delay: 10ms, multiplier: 1.5, max_delay: 1m, jitter: 0 } }
dead_letter: { topic: "dead-{topic}", create: false }
on_failure: dead_letter
restart: { max_restarts: 0, restart_window: 10s }
config: { threshold: 0.95, nested: { list: [1, two, null, true] } }
"#;

#[test]
fn every_value_of_a_full_spec_is_parsed() {
    let spec = spec(FULL_SPEC);
    assert_eq!(
        (spec.name.as_str(), spec.plugin.as_str()),
        ("fraud-detector", "fraud-detector")
    );
    assert_eq!(spec.version.as_str(), "1.10");
    assert!(!spec.enabled);
    assert_eq!(
        spec.route.topics,
        [
            TopicPattern::Exact("user_events".to_owned()),
            TopicPattern::Glob("orders.*".to_owned()),
            TopicPattern::Regex("^audit-[0-9]+$".to_owned()),
        ]
    );
    let header = |name: &str, test| Predicate::Header {
        name: name.to_owned(),
        test,
    };
    let texts = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    let partition = Predicate::All(vec![
        Predicate::Partition(PartitionTest::Ge(3)),
        Predicate::Partition(PartitionTest::Lt(9)),
    ]);
    let expected = Predicate::All(vec![
        header("processing_mode", Test::Equals(b"realtime".to_vec())),
        header("tenant", Test::In(texts(&["acme", "globex", "7"]))),
        header("trace", Test::Exists(true)),
        Predicate::Any(vec![
            Predicate::Key(Test::Prefix(b"N".to_vec())),
            Predicate::Key(Test::Exists(false)),
            Predicate::Not(Box::new(partition)),
        ]),
        header("amount", Test::Gt(1.5)),
    ]);
    assert_eq!(spec.route.when, expected);
    assert_eq!(spec.order, Order::Unordered);
    assert_eq!((spec.workers, spec.pool.as_deref()), (2, Some("small")));
    assert_eq!(
        (spec.max_in_flight.records, spec.max_in_flight.bytes),
        (10, 1024)
    );
    assert_eq!(spec.timeout, Duration::from_secs(7));
    assert_eq!(spec.retry.max_attempts, 3);
    assert_eq!(spec.retry.backoff.max_delay, Duration::from_secs(60));
    assert_eq!(spec.dead_letter.topic_for("orders"), "dead-orders");
    assert!(!spec.dead_letter.create);
    assert_eq!(spec.on_failure, OnFailure::DeadLetter);
    assert_eq!(spec.restart.max_restarts, 0);
    assert_eq!(
        *spec.config.expose(),
        serde_json::json!({ "threshold": 0.95, "nested": { "list": [1, "two", null, true] } })
    );
}

#[test]
fn a_short_spec_has_the_documented_defaults() {
    let spec = spec("name: a\nplugin: relay\nroute: { topics: [t] }\n");
    assert_eq!(spec.version.as_str(), "*");
    assert!(spec.enabled);
    assert_eq!(spec.route.when, Predicate::always());
    assert_eq!(
        (spec.order, spec.workers, spec.pool.as_deref()),
        (Order::Key, 4, None)
    );
    assert_eq!(
        (spec.max_in_flight.records, spec.max_in_flight.bytes),
        (4096, 16 << 20)
    );
    assert_eq!(spec.timeout, Duration::from_secs(5));
    assert_eq!(spec.retry.max_attempts, 5);
    let backoff = spec.retry.backoff;
    assert_eq!(
        (backoff.delay, backoff.max_delay),
        (Duration::from_millis(100), Duration::from_secs(30))
    );
    assert_eq!((backoff.multiplier, backoff.jitter), (2.0, 0.2));
    assert_eq!(spec.dead_letter.topic_for("t"), "t.dlt");
    assert_eq!(spec.on_failure, OnFailure::Hold);
    assert_eq!(
        (
            spec.restart.max_restarts,
            spec.restart.restart_window.as_secs()
        ),
        (10, 60)
    );
    assert_eq!(*spec.config.expose(), serde_json::json!({}));
}

#[test]
fn json_is_accepted_and_a_serialised_spec_parses_to_the_same_spec() {
    let first = spec(FULL_SPEC);
    for text in [
        serde_json::to_string(&first).unwrap(),
        serde_json::to_string_pretty(&first)
            .unwrap()
            .replace("  ", "\t"),
    ] {
        assert_eq!(spec(&text), first, "{text}");
    }
}

#[test]
fn aliases_are_expanded_within_bounds() {
    let text = "name: a\nplugin: relay\nroute: { topics: &t [one, two] }\nconfig: { again: *t }\n";
    assert_eq!(
        spec(text).config.expose()["again"],
        serde_json::json!(["one", "two"])
    );
}
