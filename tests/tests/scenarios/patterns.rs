//! Situation: routes with patterns, in a cluster with internal topics, dead-letter topics and topics created later.
//! Property: internal topics are not even assigned, a topic has its dead-letter topic before it is read, missing topics are
//! logged once and shown until they exist, and no record circulates endlessly (G1, G7).
//! Needs: Kafka of its own.
//! Mostly waits: for topics to be found.
//! Command: `cargo xtask test --scenario patterns`

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use e2e::client::{Client, Outgoing};
use e2e::kafka::{Kafka, KafkaOptions};
use e2e::ports::free_port;
use e2e::service::{Service, run_binary};
use e2e::unique;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Further settings of `processing`.
const MORE: &str = "  drain_timeout: 5s\n";

/// A cluster per test: `*` must not match topics of other tests.
fn cluster() -> (Kafka, Client) {
    let kafka = Kafka::start(&KafkaOptions::default()).unwrap_or_else(|error| panic!("{error:#}"));
    let client = Client::new(kafka.bootstrap());
    (kafka, client)
}

fn quick() -> [&'static str; 2] {
    [
        "--set",
        "kafka.client.topic.metadata.refresh.interval.ms=1000",
    ]
}

fn records(count: u64) -> impl Iterator<Item = Outgoing> {
    (0..count).map(|number| Outgoing::new(&format!("k{number}"), number.to_string()))
}

fn errs(topics: &str, more: &str) -> String {
    format!(
        "plugin: misbehave\nversion: \"*\"\nroute: {{ topics: [{topics}] }}\n{more}\
         config: {{ rules: [ {{ when: {{ one_in: 1 }}, do: error, class: terminal }} ] }}\n"
    )
}

fn topics_of(service: &Service) -> Result<BTreeSet<String>, String> {
    let topic = |row: &Value| row["topic"].as_str().unwrap_or_default().to_owned();
    Ok(service.partitions()?.iter().map(topic).collect())
}

fn problems(service: &Service) -> Result<Vec<String>, String> {
    let status = service.api("status")?;
    let problems = status["problems"].as_array().ok_or("no list of problems")?;
    Ok(problems.iter().map(ToString::to_string).collect())
}

fn wait_no_problems(service: &Service) {
    wait_for("every problem to be over", DEADLINE, || {
        let problems = problems(service)?;
        match problems.is_empty() {
            true => Ok(()),
            false => Err(problems.join("\n")),
        }
    });
}

/// The number of log lines that contain all of `parts`.
fn lines(service: &mut Service, parts: &[&str]) -> usize {
    let log = service.process().log();
    log.lines()
        .filter(|line| parts.iter().all(|part| line.contains(part)))
        .count()
}

/// Exit code and standard error of a command that ends at once.
fn refused(workdir: &Workdir, command: &str) -> (Option<i32>, String) {
    let listen = format!("admin.listen=127.0.0.1:{}", free_port());
    let arguments = [command, "-c", "sluicegate.yaml", "--set", &listen];
    let output = run_binary(workdir.path(), &arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text)
}

fn end_offsets(client: &Client, topic: &str) -> i64 {
    client.offsets(topic).values().map(|(_, end)| end).sum()
}

#[test]
fn a_pattern_for_everything_does_not_read_the_offsets_topic() {
    let (kafka, client) = cluster();
    let (source, group) = (unique("in"), unique("group"));
    client.create_topic(&source, 2);
    client.create_topic("given.dlt", 1);
    client.produce(&source, records(100));
    // The first group creates the topic for commits.
    let workdir = Workdir::new(kafka.bootstrap(), &group, MORE);
    workdir.plugins(&["misbehave"]);
    workdir.spec(
        "first",
        &format!("plugin: misbehave\nversion: \"*\"\nroute: {{ topics: [{source}] }}\n"),
    );
    let mut first = Service::ready(&workdir, &[]);
    client.wait_committed(&group, &source, DEADLINE);
    assert!(first.stop(DEADLINE).success());
    for protocol in ["classic", "consumer"] {
        let group = format!("{group}-{protocol}");
        let workdir = Workdir::new(kafka.bootstrap(), &group, MORE);
        workdir.plugins(&["misbehave"]);
        workdir.spec(
            "all",
            "plugin: misbehave\nversion: \"*\"\nroute: { topics: [\"*\", \"/.*/\", \"*offsets\"] }\nconfig: {}\n",
        );
        let protocol = format!("kafka.client.group.protocol={protocol}");
        let mut service = Service::ready(&workdir, &["--set", &protocol]);
        service.wait_outcomes("all", "ack", 100, DEADLINE);
        client.wait_committed(&group, &source, DEADLINE);
        // Commits are written to `__consumer_offsets`: if that were assigned, each would cause the next.
        let assigned = topics_of(&service).expect("partitions");
        assert!(
            assigned
                .iter()
                .all(|topic| !topic.starts_with("__") && !topic.ends_with(".dlt")),
            "{assigned:?}"
        );
        let before = end_offsets(&client, "__consumer_offsets");
        let started = Instant::now();
        wait_for("five commit intervals", DEADLINE, || {
            match started.elapsed() > Duration::from_secs(2) {
                true => Ok(()),
                false => Err("not yet".to_owned()),
            }
        });
        let written = end_offsets(&client, "__consumer_offsets") - before;
        assert!(written < 5, "{written} commits of an idle service");
        assert_eq!(service.consumed().expect("metrics"), 100);
        assert_eq!(
            lines(
                &mut service,
                &["exclude topics", "internal topic", "__consumer_offsets"]
            ),
            1
        );
        assert_eq!(
            lines(
                &mut service,
                &["exclude topics", "dead-letter topic", "given.dlt"]
            ),
            1
        );
        assert_eq!(
            lines(&mut service, &["patterns include topics", &source]),
            1
        );
        let stopped = Instant::now();
        assert!(service.stop(DEADLINE).success());
        assert!(
            stopped.elapsed() < DRAIN_TIMEOUT,
            "the stop took {:?}",
            stopped.elapsed()
        );
    }

    // An internal topic that is named exactly is read.
    let workdir = Workdir::new(kafka.bootstrap(), &unique("group"), MORE);
    workdir.plugins(&["misbehave"]);
    workdir.spec(
        "offsets",
        "plugin: misbehave\nversion: \"*\"\nroute: { topics: [__consumer_offsets] }\ndead_letter: { create: false, topic: given.dlt }\nconfig: {}\n",
    );
    let service = Service::ready(&workdir, &[]);
    wait_for("the internal topic to be assigned", DEADLINE, || {
        let topics = topics_of(&service)?;
        match topics.contains("__consumer_offsets") {
            true => Ok(()),
            false => Err(format!("{topics:?}")),
        }
    });
}

#[test]
fn a_topic_that_a_pattern_matches_has_its_dead_letter_topic() {
    let (kafka, client) = cluster();
    let (base, group) = (unique("patx"), unique("group"));
    let first = format!("{base}-first");
    client.create_topic(&first, 3);
    client.produce(&first, records(20));
    let workdir = Workdir::new(kafka.bootstrap(), &group, MORE);
    workdir.plugins(&["misbehave"]);
    workdir.spec("errs", &errs(&format!("\"{base}-*\""), ""));
    let mut service = Service::ready(&workdir, &quick());
    service.wait_outcomes("errs", "dead_letter", 20, DEADLINE);
    client.wait_committed(&group, &first, DEADLINE);
    assert_eq!(client.partitions(&format!("{first}.dlt")).len(), 3);

    // A topic created later gets its dead-letter topic before it is read.
    let later = format!("{base}-later");
    client.create_topic(&later, 2);
    client.produce(&later, records(20));
    service.wait_outcomes("errs", "dead_letter", 40, DEADLINE);
    client.wait_committed(&group, &later, DEADLINE);
    assert_eq!(client.partitions(&format!("{later}.dlt")).len(), 2);
    assert_eq!(lines(&mut service, &["include topics", &later]), 1);
    assert_eq!(lines(&mut service, &["dead-letter topics missing"]), 0);
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn every_missing_dead_letter_topic_is_logged_once_and_shown_until_it_exists() {
    let (kafka, client) = cluster();
    let (base, group) = (unique("wish"), unique("group"));
    let name = |part: &str| format!("{base}-{part}");
    let long = format!("{base}-{}", "c".repeat(245 - base.len()));
    for topic in [
        &name("b_x"),
        &name("d"),
        &long,
        &format!("{}_dlt", name("b_x")),
    ] {
        client.create_topic(topic, 1);
    }
    let workdir = Workdir::new(kafka.bootstrap(), &group, MORE);
    workdir.plugins(&["misbehave"]);
    workdir.spec("errs", &errs(&format!("\"{base}-b?x\", \"{base}-c*\""), ""));
    workdir.spec(
        "strict",
        &errs(&format!("\"{base}-d\""), "dead_letter: { create: false }\n"),
    );
    // A topic named by a route must have its dead-letter topic: the start lists those without one.
    let (status, text) = refused(&workdir, "run");
    assert_eq!(status, Some(1), "{text}");
    assert!(
        text.contains(&format!(
            "handler `strict`: topic {}.dlt is missing",
            name("d")
        )),
        "{text}"
    );

    // The running service shows all problems, and the rest continues.
    client.create_topic(&format!("{}.dlt", name("d")), 1);
    let mut service = Service::ready(&workdir, &quick());
    workdir.spec("absent", &errs(&name("absent"), ""));
    workdir.spec(
        "strict",
        &errs(
            &format!("\"{base}-d\""),
            "dead_letter: { create: false, topic: \"{topic}.gone\" }\n",
        ),
    );
    let wanted = [
        (name("b_x.dlt"), "collides with topic"),
        (format!("{long}.dlt"), "it has 250 characters"),
        (name("d.gone"), "dead_letter.create is false"),
        (name("absent"), "the cluster has no such topic"),
    ];
    let wanted = &wanted[..];
    wait_for("the problems to be shown", DEADLINE, || {
        let problems = problems(&service)?;
        let shown = |(topic, cause): &(String, &str)| {
            problems
                .iter()
                .any(|one| one.contains(topic) && one.contains(cause))
        };
        let missing = wanted.iter().find(|one| !shown(one));
        missing.map_or(Ok(()), |one| Err(format!("{one:?} is not in {problems:?}")))
    });
    client.create_topic(&name("d.gone"), 1);
    client.create_topic(&name("absent"), 1);
    workdir.spec("errs", &errs(&format!("\"{base}-b?x\""), ""));
    client.delete_topic(&format!("{}_dlt", name("b_x")));
    wait_no_problems(&service);
    for topic in [name("b_x.dlt"), format!("{long}.dlt"), name("d.gone")] {
        assert_eq!(
            lines(&mut service, &["dead-letter topics missing", &topic]),
            1,
            "{topic}"
        );
    }
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn the_brokers_reason_against_a_dead_letter_topic_is_reported() {
    let kafka = Kafka::start(&KafkaOptions {
        extra: vec![("default.replication.factor".to_owned(), "3".to_owned())],
        ..KafkaOptions::default()
    });
    let kafka = kafka.unwrap_or_else(|error| panic!("{error:#}"));
    let client = Client::new(kafka.bootstrap());
    client.create_topic("orders", 1);
    client.produce("orders", records(5));
    let group = unique("group");
    let workdir = Workdir::new(kafka.bootstrap(), &group, MORE);
    workdir.plugins(&["misbehave"]);
    workdir.spec("errs", &errs("\"order*\"", ""));
    let mut service = Service::ready(&workdir, &quick());
    let shown = problems(&service).expect("a status").join("\n");
    for part in [
        "`errs` has no dead-letter topic orders.dlt",
        "only 1 broker(s) are registered",
    ] {
        assert!(shown.contains(part), "{shown}");
    }
    client.create_topic("orders.dlt", 1);
    client.wait_committed(&group, "orders", DEADLINE);
    wait_no_problems(&service);
    assert_eq!(
        lines(
            &mut service,
            &["dead-letter topics missing", "only 1 broker"]
        ),
        1
    );
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn dead_letter_cycles_are_refused_when_applied() {
    let (kafka, client) = cluster();
    for topic in ["a", "x.dead", "y.dead", "copy"] {
        client.create_topic(topic, 1);
    }
    let group = unique("group");
    let workdir = Workdir::new(kafka.bootstrap(), &group, MORE);
    workdir.plugins(&["misbehave", "relay"]);
    let y = errs("x.dead", "dead_letter: { topic: y.dead }\n");
    workdir.spec("x", &errs("a, y.dead", "dead_letter: { topic: x.dead }\n"));
    workdir.spec("y", &y);
    for command in ["validate", "run"] {
        let (status, text) = refused(&workdir, command);
        assert_eq!(status, Some(2), "{command}: {text}");
        assert!(
            text.contains("x.dead -> `y` -> y.dead -> `x` -> x.dead"),
            "{command}: {text}"
        );
    }

    // A running service refuses it too, and so it does a route that matches what its handler emits.
    workdir.remove("handlers.d/y.yaml");
    let relay = |topics: &str| {
        format!(
            "plugin: relay\nversion: \"*\"\nroute: {{ topics: [{topics}] }}\nconfig: {{ topic: copy }}\n"
        )
    };
    workdir.spec("relay", &relay("a"));
    let mut service = Service::ready(&workdir, &quick());
    workdir.spec("y", &y);
    let refusal = |part: &'static str| {
        let service = &service;
        wait_for(part, DEADLINE, move || {
            let status = service.api("status")?;
            let why = status["last_rejection"].as_str().unwrap_or_default();
            match why.contains(part) {
                true => Ok(()),
                false => Err(why.to_owned()),
            }
        });
    };
    refusal("dead letters would cycle endlessly");
    workdir.remove("handlers.d/y.yaml");
    workdir.spec("relay", &relay("\"*\""));
    refusal("it emits to `copy`, which `*` of its own route matches");
    client.produce("a", records(20));
    service.wait_outcomes("relay", "ack", 20, DEADLINE);
    assert_eq!(client.count("copy"), 20);
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn a_record_that_circulates_through_copies_is_held_after_some_rounds() {
    let (kafka, client) = cluster();
    client.create_topic("a", 1);
    client.create_topic("a.dlt", 1);
    client.produce(
        "a",
        [Outgoing::new("k", "poison"), Outgoing::new("other", "fine")],
    );
    let group = unique("group");
    let workdir = Workdir::new(kafka.bootstrap(), &group, MORE);
    workdir.plugins(&["misbehave", "relay"]);
    workdir.spec(
        "errs",
        "plugin: misbehave\nversion: \"*\"\nroute: { topics: [a] }\n\
         config: { rules: [ { when: { key: true, equals: k }, do: error, class: terminal } ] }\n",
    );
    workdir.spec(
        "redrive",
        "plugin: relay\nversion: \"*\"\nroute: { topics: [a.dlt] }\nconfig: { topic: a }\n",
    );
    let mut service = Service::ready(&workdir, &[]);
    wait_for("the record to be held", DEADLINE, || {
        let handler = service.api("handlers/errs")?;
        let why = handler["last_error"].as_str().unwrap_or_default();
        match why.contains("written to a.dlt 16 times") {
            true => Ok(()),
            false => Err(handler.to_string()),
        }
    });
    assert_eq!(client.count("a.dlt"), 16);
    assert_eq!(client.count("a"), 2 + 16);
    // It stays at the frontier, and records with other keys pass it.
    client.produce("a", [Outgoing::new("other", "fine too")]);
    service.wait_outcomes("errs", "ack", 2, DEADLINE);
    let explained = service.api("explain/a/0").expect("an explanation");
    assert_eq!(explained["held_by"][0]["offset"], 17, "{explained}");

    // Another dead-letter topic releases it.
    client.create_topic("a.poison", 1);
    workdir.spec(
        "errs",
        "plugin: misbehave\nversion: \"*\"\nroute: { topics: [a] }\ndead_letter: { topic: \"{topic}.poison\" }\n\
         config: { rules: [ { when: { key: true, equals: k }, do: error, class: terminal } ] }\n",
    );
    client.wait_committed(&group, "a", DEADLINE);
    let letters = client.read("a.poison");
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].text(), "poison");
    assert!(service.stop(DEADLINE).success());
}
