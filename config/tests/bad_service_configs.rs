//! Bad service configs, and what each one is told. `cargo insta review` shows a change of words before it is accepted.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::fmt::Write;
use std::path::Path;

use sluicegate_config::{Environment, service::read_service_config};

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
    ("text for a map", "processing: fast\n", &[], &[]),
    (
        "map for a text",
        "kafka: { group_id: { a: b } }\n",
        &[],
        &[],
    ),
    ("number for a text", "kafka: { group_id: 17 }\n", &[], &[]),
    ("nothing for a text", "kafka:\n  group_id:\n", &[], &[]),
    ("text for a number", "kafka: { clients: many }\n", &[], &[]),
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
        "text for a flag",
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
        "duration of nothing",
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
        "unknown word",
        "processing: { guarantee: exactly-once, offset_out_of_range: skip }\n",
        &[],
        &[],
    ),
    (
        "start is no time",
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
        "text for a list",
        "handlers: { references: { env: TOKEN } }\n",
        &[],
        &[],
    ),
    (
        "owned Kafka keys",
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
        "sources that are not there yet",
        "handlers:\n  etcd: { endpoints: [a] }\n  zookeeper: { servers: a }\nbridge: {}\n",
        &[],
        &[],
    ),
    (
        "folder as text",
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
        "a secret that does not fit is not shown",
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
        "references that give away too much",
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
    ("text at the top", "hello\n", &[], &[]),
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

fn told(case: &Case) -> String {
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
fn each_bad_config_is_told_what_and_where_and_what_to_do() {
    let mut all = String::new();
    for case in CASES {
        let told = told(case);
        assert!(
            !told.contains("hunter2"),
            "{}: a secret shows: {told}",
            case.0
        );
        writeln!(all, "# {}\n{told}\n", case.0).unwrap();
    }
    assert!(CASES.len() >= 40);
    insta::assert_snapshot!(all);
}

#[test]
fn alias_bombs_deep_nesting_and_long_texts_are_refused_quickly() {
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
        let told = read_service_config(&text, None, &Environment::default(), &[])
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
            bounded.iter().any(|bound| told.contains(bound)),
            "{name}: {told}"
        );
        assert!(told.len() < 2000, "{name}: {told}");
    }
    assert!(
        begin.elapsed().as_secs() < 10,
        "it took {:?}",
        begin.elapsed()
    );
}

#[test]
fn files_that_are_missing_or_no_text_are_told_apart() {
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
