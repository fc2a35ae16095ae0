//! Error messages of invalid handler specs, as snapshots. `cargo insta review` shows changes before they are accepted.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::fmt::Write;
use std::path::Path;

use sluicegate_config::{Environment, read_spec};
use sluicegate_sync::validate_everything;

/// Common prefix of most cases; the text of the case starts in line 4.
const HEAD: &str = "name: a\nplugin: relay\nroute: { topics: [t] }\n";

/// Situation, text after the head.
const FIELDS: &[(&str, &str)] = &[
    ("unknown field", "retries: { max_attempts: 3 }\n"),
    (
        "misspelt fields",
        "enbaled: false\ndeadLetter: {}\nmax_inflight: {}\n",
    ),
    ("field of another object", "max_attempts: 3\n"),
    (
        "fields that are not available yet",
        "cel: 'true'\ncanary: { version: \"1.3\" }\nrate_limit: { records_per_second: 5 }\n",
    ),
    (
        "choices that are not available yet",
        "group: dedicated\ngate_closed: hold\nretry: { overflow: topic }\n",
    ),
    (
        "unknown choices",
        "order: keys\non_failure: drop\ngroup: own\n",
    ),
    ("invalid version", "version: latest\n"),
    ("version with too many parts", "version: 1.2.3.4\n"),
    ("version as a list", "version: [1, 2]\n"),
    ("string for a boolean", "enabled: on\n"),
    ("no workers", "workers: 0\n"),
    ("too many workers", "workers: 100000\n"),
    ("zero limits", "max_in_flight: { records: 0, bytes: 0B }\n"),
    ("zero timeout", "timeout: 0s\n"),
    ("no attempts", "retry: { max_attempts: 0 }\n"),
    (
        "longest wait below the first",
        "retry: { backoff: { delay: 10s, max_delay: 1s } }\n",
    ),
    (
        "default wait above the longest",
        "retry:\n  backoff:\n    max_delay: 50ms\n",
    ),
    (
        "multiplier below one",
        "retry: { backoff: { multiplier: 0.5 } }\n",
    ),
    ("jitter above one", "retry: { backoff: { jitter: 20 } }\n"),
    (
        "jitter is not a number",
        "retry: { backoff: { jitter: .nan, multiplier: .inf } }\n",
    ),
    (
        "zero window",
        "restart: { max_restarts: -1, restart_window: 0ms }\n",
    ),
    ("pool with a space", "pool: My Pool\n"),
    (
        "dead letters back to their topic",
        "dead_letter: { topic: \"{topic}\" }\n",
    ),
    (
        "dead letters into the own route",
        "dead_letter: { topic: t }\n",
    ),
    (
        "unknown placeholder",
        "dead_letter: { topic: \"{group}.dlt\" }\n",
    ),
    (
        "invalid dead-letter topic",
        "dead_letter: { topic: \"a b\" }\n",
    ),
    ("config as a list", "config: [1, 2]\n"),
    (
        "config with a number that JSON cannot represent",
        "config: { a: { b: [.nan, 99999999999999999999999] } }\n",
    ),
    (
        "missing variable in the config",
        "config: { db: { url: \"postgres://u:${env:DB_PASSWORD}@db\" } }\n",
    ),
    (
        "missing file in the config",
        "config: { key: \"${file:no/such/file}\" }\n",
    ),
];

/// Situation, name, plugin, topics, the rest of the route.
const WHOLE: &[(&str, &str)] = &[
    ("nothing at all", ""),
    ("comments only", "# later\n"),
    ("name missing", "plugin: relay\nroute: { topics: [t] }\n"),
    (
        "name in capitals",
        "name: Fraud_Detector\nplugin: relay\nroute: { topics: [t] }\n",
    ),
    (
        "reserved name",
        "name: metrics\nplugin: relay\nroute: { topics: [t] }\n",
    ),
    (
        "long name",
        "name: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\nplugin: relay\nroute: { topics: [t] }\n",
    ),
    (
        "plugin by path",
        "name: a\nplugin: ../librelay.so\nroute: { topics: [t] }\n",
    ),
    (
        "plugin by URL",
        "name: a\nplugin: https://example.org/relay\nroute: { topics: [t] }\n",
    ),
    (
        "plugin with two handlers",
        "name: a\nplugin: orders/audit/more\nroute: { topics: [t] }\n",
    ),
    (
        "plugin with an empty handler",
        "name: a\nplugin: orders/\nroute: { topics: [t] }\n",
    ),
    (
        "no topics",
        "name: a\nplugin: relay\nroute: { topics: [] }\n",
    ),
    (
        "topics missing",
        "name: a\nplugin: relay\nroute: { when: { key: true, exists: true } }\n",
    ),
    (
        "topic as string",
        "name: a\nplugin: relay\nroute: { topics: orders }\n",
    ),
    ("route as list", "name: a\nplugin: relay\nroute: [orders]\n"),
    (
        "invalid topics",
        "name: a\nplugin: relay\nroute: { topics: [\"a b\", \"\", \"..\", 7, t, t] }\n",
    ),
    (
        "regex without slashes",
        "name: a\nplugin: relay\nroute: { topics: [\"^orders-[0-9]+$\"] }\n",
    ),
    (
        "regex that does not compile",
        "name: a\nplugin: relay\nroute: { topics: [\"/orders-[0-9/\", \"/(/\", \"//\", \"/a\"] }\n",
    ),
    (
        "regex too large",
        "name: a\nplugin: relay\nroute: { topics: [\"/(a{1000}){1000}/\"] }\n",
    ),
    (
        "several problems at once",
        "name: A\nplugin: a/b/c\nversion: x\nworkers: 0\nroute:\n  topics: []\n  when: { header: x }\ncolour: red\n",
    ),
];

/// Situation, `when` tree; it is in line 5.
const PREDICATES: &[(&str, &str)] = &[
    ("empty condition", "{}"),
    ("condition as list", "[{ key: true, exists: true }]"),
    ("condition as string", "always"),
    ("header without test", "{ header: tenant }"),
    ("test without subject", "{ equals: acme }"),
    ("misspelt test", "{ header: tenant, equal: acme }"),
    ("misspelt subject", "{ heder: tenant, equals: acme }"),
    (
        "two subjects",
        "{ header: tenant, key: true, equals: acme }",
    ),
    (
        "branches in one condition",
        "{ all: [{ key: true, exists: true }], any: [{ key: true, exists: true }] }",
    ),
    (
        "test in a branch",
        "{ all: [{ key: true, exists: true }], equals: x }",
    ),
    ("empty branch", "{ any: [] }"),
    (
        "branch that is not a list",
        "{ all: { key: true, exists: true } }",
    ),
    ("not of a list", "{ not: [{ key: true, exists: true }] }"),
    (
        "bad regex deep inside",
        "{ all: [{ any: [{ not: { header: h, regex: \"a(b\" } }] }] }",
    ),
    ("invalid number", "{ header: amount, lt: ten, ge: .nan }"),
    ("invalid boolean", "{ header: trace, exists: maybe }"),
    ("invalid list", "{ header: tenant, in: acme }"),
    ("empty list", "{ header: tenant, in: [] }"),
    (
        "nothing to compare with",
        "{ header: tenant, equals: , prefix: [a] }",
    ),
    (
        "contradiction",
        "{ header: tenant, exists: false, equals: acme }",
    ),
    ("key with a value", "{ key: N123, prefix: N }"),
    ("key with its test inside", "{ key: { equals: N123 } }"),
    (
        "string test on the partition",
        "{ partition: true, prefix: 1, equals: -1, in: [0, x] }",
    ),
    ("nameless header", "{ header: , exists: true }"),
];

fn problems_of(situation: &str, text: &str) -> String {
    match read_spec(
        text,
        Some(Path::new("handlers.d/a.yaml")),
        &Environment::default(),
    ) {
        Ok(spec) => panic!("{situation} was accepted: {spec:?}"),
        Err(problems) => problems.to_string(),
    }
}

fn all_problems<'a>(cases: impl Iterator<Item = (&'a str, String)>) -> String {
    let mut all = String::new();
    for (situation, text) in cases {
        writeln!(all, "# {situation}\n{}\n", problems_of(situation, &text)).unwrap();
    }
    all
}

#[test]
fn bad_fields() {
    let cases = FIELDS
        .iter()
        .map(|(situation, text)| (*situation, format!("{HEAD}{text}")));
    insta::assert_snapshot!(all_problems(cases));
}

#[test]
fn bad_whole_specs() {
    let cases = WHOLE
        .iter()
        .map(|(situation, text)| (*situation, (*text).to_owned()));
    insta::assert_snapshot!(all_problems(cases));
}

#[test]
fn bad_predicates() {
    let cases = PREDICATES.iter().map(|(situation, when)| {
        let text = format!("name: a\nplugin: relay\nroute:\n  topics: [t]\n  when: {when}\n");
        (*situation, text)
    });
    insta::assert_snapshot!(all_problems(cases));
}

#[test]
fn predicates_are_bounded_in_depth_and_number() {
    let deep = format!(
        "{}{{ key: true, exists: true }}{}",
        "{ not: ".repeat(20),
        " }".repeat(20)
    );
    let wide = format!(
        "{{ any: [{}] }}",
        "{ key: true, exists: true },".repeat(2000)
    );
    for when in [deep, wide] {
        let text = format!("name: a\nplugin: relay\nroute:\n  topics: [t]\n  when: {when}\n");
        let problems = problems_of("too much", &text);
        assert_eq!(problems.lines().count(), 1, "{problems}");
        assert!(
            problems.contains("more than 16 levels or 1024 conditions"),
            "{problems}"
        );
    }
}

#[test]
fn a_service_config_and_its_specs_are_validated_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text).unwrap();
    std::fs::create_dir(folder.path().join("handlers.d")).unwrap();
    write(
        "sluicegate.yaml",
        "kafka: { clients: 0 }\nhandlers: { file: { folder: handlers.d } }\n",
    );
    write(
        "handlers.d/a.yaml",
        &format!("{HEAD}workers: 0\ncolor: red\n"),
    );
    write("handlers.d/b.yaml", HEAD);
    write("handlers.d/c.yaml", HEAD);
    let file = folder.path().join("sluicegate.yaml");
    let problems = validate_everything(&file, &Environment::default(), &[]);
    let prefix = format!("{}/", folder.path().display());
    insta::assert_snapshot!(problems.to_string().replace(&prefix, ""));
    let json = serde_json::to_value(&problems).unwrap();
    assert_eq!(json[0]["path"], "workers");
    assert_eq!(
        (&json[0]["line"], &json[0]["column"]),
        (&4.into(), &10.into())
    );
    assert!(
        json[0]["file"]
            .as_str()
            .unwrap()
            .ends_with("handlers.d/a.yaml")
    );

    write(
        "handlers.d/a.yaml",
        "name: z\nplugin: relay\nroute: { topics: [t] }\n",
    );
    std::fs::remove_file(folder.path().join("handlers.d/c.yaml")).unwrap();
    write("sluicegate.yaml", "{}\n");
    let none = validate_everything(&file, &Environment::default(), &[]);
    assert!(none.is_empty(), "{none}");
}

#[test]
fn dead_letter_topics_that_are_too_long_or_cyclic_are_rejected() {
    let long = "c".repeat(247);
    let table = [
        (
            long.as_str(),
            "{topic}.dlt",
            Some("would have 251 characters"),
        ),
        (long.as_str(), "{topic}.d", None),
        (
            "a, a.dlt",
            "{topic}.dlt",
            Some("`a.dlt` is in this handler's own route"),
        ),
        (
            "\"orders-*\", orders-1.dlt",
            "{topic}.dlt",
            Some("`orders-1.dlt` is in this"),
        ),
        ("\"orders-*\", clicks.dlt", "{topic}.dlt", None),
        ("\"dead*\"", "dead", None),
        ("\"dead*\", dead", "dead", Some("`dead` is in this")),
        ("/^__/, __x.dlt", "{topic}.dlt", None),
    ];
    for (topics, template, expected) in table {
        let text = format!(
            "name: a\nplugin: p\nroute: {{ topics: [{topics}] }}\ndead_letter: {{ topic: \"{template}\" }}\n"
        );
        let read = read_spec(&text, None, &Environment::default());
        let problems = read.err().map(|problems| problems.to_string());
        let problems = problems.unwrap_or_default();
        match expected {
            None => assert_eq!(problems, "", "{topics} {template}"),
            Some(part) => assert!(problems.contains(part), "{topics} {template}: {problems}"),
        }
    }
}
