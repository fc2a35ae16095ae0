//! Error messages of invalid service configs, as snapshots. `cargo insta review` shows changes before they are accepted.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::fmt::Write;
use std::path::Path;

use sluicegate_config::Environment;
use sluicegate_config::service::read_service_config;

/// Situation, text, environment, `--set`.
type Case = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
);

const CASES: &[Case] = &[
    ("unknown key at the top", "kafak: {}\n", &[], &[]),
    (
        "unknown key in a section",
        "kafka:\n  groupId: x\n  group_idd: y\n",
        &[],
        &[],
    ),
    (
        "a key of another section",
        "group_id: x\nlevel: debug\n",
        &[],
        &[],
    ),
    ("a key unlike any other", "xylophone: 1\n", &[], &[]),
    (
        "a key without a colon",
        "kafka:\n  group_id x\n  clients: 2\n",
        &[],
        &[],
    ),
    (
        "a bracket that is not closed for lines",
        "kafka:\n  group_id: [x\n\n  clients: 2\n",
        &[],
        &[],
    ),
    (
        "key twice",
        "kafka:\n  group_id: a\n  clients: 2\n  group_id: b\n",
        &[],
        &[],
    ),
    (
        "section twice",
        "kafka: {}\nadmin: {}\nkafka: {}\n",
        &[],
        &[],
    ),
    ("list for a map", "kafka: [a, b]\n", &[], &[]),
    ("string for a map", "processing: fast\n", &[], &[]),
    (
        "map for a string",
        "kafka: { group_id: { a: b } }\n",
        &[],
        &[],
    ),
    ("number for a string", "kafka: { group_id: 17 }\n", &[], &[]),
    ("nothing for a string", "kafka:\n  group_id:\n", &[], &[]),
    (
        "string for a number",
        "kafka: { clients: many }\n",
        &[],
        &[],
    ),
    ("quoted number", "kafka: { clients: \"2\" }\n", &[], &[]),
    (
        "fraction for a count",
        "kafka: { clients: 1.5 }\n",
        &[],
        &[],
    ),
    ("zero clients", "kafka: { clients: 0 }\n", &[], &[]),
    (
        "negative count",
        "processing: { max_uncommitted: -1 }\n",
        &[],
        &[],
    ),
    (
        "count beyond its bound",
        "processing: { max_uncommitted: 99999999999999999999 }\n",
        &[],
        &[],
    ),
    (
        "string for a boolean",
        "plugins: { allow_unsigned: yes }\n",
        &[],
        &[],
    ),
    (
        "duration without unit",
        "processing: { commit_interval: 5 }\n",
        &[],
        &[],
    ),
    (
        "duration with a wrong unit",
        "processing: { drain_timeout: 20 seconds }\n",
        &[],
        &[],
    ),
    (
        "zero duration",
        "processing: { commit_interval: 0s, stall_timeout: -1s }\n",
        &[],
        &[],
    ),
    (
        "size with a wrong unit",
        "processing: { memory: 256Mo }\n",
        &[],
        &[],
    ),
    ("size too small", "processing: { memory: 10kB }\n", &[], &[]),
    (
        "unknown choice",
        "processing: { guarantee: exactly-once, offset_out_of_range: skip }\n",
        &[],
        &[],
    ),
    (
        "start is not a time",
        "kafka: { start: yesterday }\n",
        &[],
        &[],
    ),
    (
        "start without offset",
        "kafka: { start: \"2026-01-31 12:00\" }\n",
        &[],
        &[],
    ),
    (
        "broker without port number",
        "kafka: { bootstrap_servers: \"a:9092,b:kafka\" }\n",
        &[],
        &[],
    ),
    (
        "brokers as a list",
        "kafka: { bootstrap_servers: [a:9092] }\n",
        &[],
        &[],
    ),
    (
        "group with a space",
        "kafka: { group_id: \"my group\" }\n",
        &[],
        &[],
    ),
    (
        "address without port",
        "admin: { listen: localhost }\n",
        &[],
        &[],
    ),
    (
        "unknown log level",
        "logging: { level: verbose, format: yaml }\n",
        &[],
        &[],
    ),
    (
        "string for a list",
        "handlers: { references: { env: TOKEN } }\n",
        &[],
        &[],
    ),
    (
        "managed Kafka keys",
        "kafka:\n  client:\n    auto.offset.reset: earliest\n    enable.auto.commit: true\n    enable.auto.offset.store: true\n    enable.partition.eof: true\n    group.id: x\n    bootstrap.servers: a:9092\n    metadata.broker.list: a:9092\n    auto.commit.interval.ms: 100\n    enable.idempotence: false\n    acks: 1\n    transactional.id: t\n    session.timeout.ms: 6000\n",
        &[],
        &[],
    ),
    (
        "Kafka keys that load code or run commands",
        "kafka:\n  client:\n    plugin.library.paths: x.so\n    ssl.engine.location: x.so\n    ssl.providers: legacy\n    sasl.kerberos.kinit.cmd: rm -rf\n    interceptors: x\n    opaque: 1\n    rebalance_cb: 1\n    default_topic_conf: 1\n",
        &[],
        &[],
    ),
    (
        "misspelt Kafka keys",
        "kafka: { client: { sesion.timeout.ms: 1, linger: 5, nothing.like.it.at.all: 1 } }\n",
        &[],
        &[],
    ),
    (
        "Kafka key with a list",
        "kafka: { client: { debug: [consumer, cgrp], sasl.password: [hunter2] } }\n",
        &[],
        &[],
    ),
    (
        "Kafka keys as a list",
        "kafka: { client: [debug=all] }\n",
        &[],
        &[],
    ),
    (
        "invalid and conflicting sources",
        "handlers:\n  etcd: { endpoints: [a] }\n  zookeeper: { servers: a }\nbridge: {}\n",
        &[],
        &[],
    ),
    (
        "folder as string",
        "handlers: { file: handlers.d }\n",
        &[],
        &[],
    ),
    (
        "missing environment variable",
        "kafka:\n  group_id: ${env:GROUP}\n  client: { sasl.password: \"${env:KAFKA_PASSWORD}\" }\n",
        &[],
        &[],
    ),
    (
        "missing secret file",
        "kafka: { client: { sasl.password: \"${file:no/such/file}\" } }\n",
        &[],
        &[],
    ),
    (
        "reference of another kind",
        "kafka: { group_id: \"${HOME}-x\", start: \"${vault:a}\", bootstrap_servers: \"${env:X\" }\n",
        &[],
        &[],
    ),
    (
        "an invalid secret is not shown",
        "kafka: { clients: \"${env:SECRET}\", start: \"${env:SECRET}\" }\nprocessing: { memory: \"${env:SECRET}\", guarantee: \"${env:SECRET}\" }\nadmin: { listen: \"${env:SECRET}\" }\n",
        &[("SECRET", "hunter2")],
        &[],
    ),
    (
        "signatures are not checked yet",
        "plugins: { trusted_keys: [RWQabc] }\n",
        &[],
        &["plugins.trusted_keys=[RWQabc]"],
    ),
    (
        "references that expose too much",
        "handlers:\n  references: { env: [\"${env:A}\", B], folder: . }\n",
        &[],
        &[],
    ),
    (
        "secrets on the command line",
        "kafka: {}\n",
        &[],
        &[
            "kafka.client.sasl.password=hunter2",
            "kafka.client={ssl.key.pem: hunter2, linger.ms: 1}",
            "handlers.etcd.password=hunter2",
            "handlers.zookeeper={digest: {user: u, password: hunter2}}",
            "kafka.client.ssl.key.password=${env:NOT_SET}",
        ],
    ),
    (
        "bad overrides",
        "kafka: {}\n",
        &[
            ("SLUICEGATE__KAFKA__CLIENTS", "none"),
            ("SLUICEGATE__KAFKA__GROPU_ID", "x"),
            ("SLUICEGATE__KAFKA__GROUP_ID__X", "x"),
        ],
        &[
            "kafka.clients",
            "kafka.start=never",
            "kafka.strat=never",
            "admin=[x",
            "handlers.etcd.prefix=/p",
            "kafka.client.group.id=x",
        ],
    ),
    (
        "several problems at once",
        "kafka:\n  clients: 0\n  start: x\nadmin:\n  listen: x\n  port: 1\nlogging: 7\n",
        &[],
        &[],
    ),
    ("two documents", "kafka: {}\n---\nadmin: {}\n", &[], &[]),
    ("list at the top", "- kafka\n", &[], &[]),
    ("string at the top", "hello\n", &[], &[]),
    (
        "bracket that does not close",
        "kafka: { group_id: x\nadmin: {}\n",
        &[],
        &[],
    ),
    (
        "wrong indentation",
        "kafka:\n  group_id: x\n clients: 1\n",
        &[],
        &[],
    ),
    ("tab for indentation", "kafka:\n\tgroup_id: x\n", &[], &[]),
    ("tag", "kafka: !secret { group_id: !!str 5 }\n", &[], &[]),
    ("map as a key", "kafka: { { a: b }: c }\n", &[], &[]),
    ("alias of nothing", "kafka: *nothing\n", &[], &[]),
    ("alias of itself", "kafka: &k { client: *k }\n", &[], &[]),
];

fn problems_of(case: &Case) -> String {
    let (_, text, variables, sets) = case;
    let environment: Environment = variables.iter().copied().collect();
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    let file = Some(Path::new("sluicegate.yaml"));
    match read_service_config(text, file, &environment, &sets) {
        Ok(config) => panic!("{} was accepted: {config:?}", case.0),
        Err(problems) => problems.to_string(),
    }
}

#[test]
fn each_invalid_config_is_reported_with_position_and_remedy() {
    let mut all = String::new();
    for case in CASES {
        let problems = problems_of(case);
        assert!(
            !problems.contains("hunter2"),
            "{}: a secret is shown: {problems}",
            case.0
        );
        writeln!(all, "# {}\n{problems}\n", case.0).unwrap();
    }
    assert!(CASES.len() >= 40);
    insta::assert_snapshot!(all);
}

#[test]
fn alias_bombs_deep_nesting_and_long_texts_are_rejected_quickly() {
    let mut bomb = String::from("a: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
        writeln!(bomb, "b{level}: &a{level} [{aliases}]").unwrap();
    }
    let texts = [
        ("bomb", bomb),
        ("flow nesting", format!("kafka: {}", "[".repeat(100_000))),
        ("map nesting", "{a: ".repeat(100_000)),
        ("block nesting", "- ".repeat(100_000)),
        (
            "long",
            format!("kafka: {{ group_id: {} }}", "x".repeat(1 << 20)),
        ),
        ("many values", format!("kafka: [{}]", "1,".repeat(100_000))),
    ];
    let begin = std::time::Instant::now();
    for (name, text) in texts {
        let problems = read_service_config(&text, None, &Environment::default(), &[])
            .unwrap_err()
            .to_string();
        let bounded = [
            "expand beyond",
            "levels deep",
            "at most",
            "more than",
            "recursion",
        ];
        assert!(
            bounded.iter().any(|bound| problems.contains(bound)),
            "{name}: {problems}"
        );
        assert!(problems.len() < 2000, "{name}: {problems}");
    }
    assert!(
        begin.elapsed().as_secs() < 10,
        "it took {:?}",
        begin.elapsed()
    );
}

#[test]
fn missing_and_non_text_files_have_distinct_errors() {
    let folder = tempfile::tempdir().unwrap();
    let none = Environment::default();
    let load = |file: &str| {
        sluicegate_config::load_service_config(&folder.path().join(file), &none, &[])
            .unwrap_err()
            .to_string()
    };
    assert!(load("missing.yaml").contains("missing.yaml: cannot be read: No such file"));
    std::fs::write(folder.path().join("latin.yaml"), b"kafka: {}\n# caf\xe9\n").unwrap();
    assert!(load("latin.yaml").contains("is not UTF-8 text: line 2"));
    std::fs::write(folder.path().join("big.yaml"), vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(load("big.yaml").contains("at most 1048576"));
}
