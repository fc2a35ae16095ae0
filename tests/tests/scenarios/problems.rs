//! Situation: everything that can keep records from progressing: revoked permissions, a group that is lost or refuses the
//! member, dead letters and emits that cannot be written, handlers that fail or are held, refused specs, missing topics,
//! an unavailable cluster; and an idle member.
//! Property: each problem is shown in `/readyz`, the status, the metrics and `explain` with cause, remedy, start and count; it makes
//! the service unready only before the first join, after `stall_timeout` without Kafka, without any running handler, and
//! during a stop; the log has few lines about it; and all of it disappears when the problem is solved (G7, G8, G12).
//! Needs: Kafka of its own.
//! Mostly waits: for problems to clear.
//! Takes: 127 s.
//! At once: 4
//! Command: `cargo xtask test --scenario problems`

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::showing::{Shown, heals, minute, readyz, shows, warnings};
use e2e::client::{Client, Outgoing};
use e2e::kafka::{Acl, Kafka, KafkaOptions};
use e2e::process::Signal;
use e2e::service::{Service, run_binary};
use e2e::unique;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;

const DEADLINE: Duration = Duration::from_secs(90);

/// A cluster with permissions that can be revoked.
fn guarded() -> &'static Kafka {
    static GUARDED: OnceLock<Kafka> = OnceLock::new();
    GUARDED.get_or_init(|| {
        let options = KafkaOptions {
            secured: true,
            authorizer: true,
            extra: vec![("group.min.session.timeout.ms".to_owned(), "1000".to_owned())],
            ..KafkaOptions::default()
        };
        Kafka::start(&options).unwrap_or_else(|error| panic!("{error:#}"))
    })
}

/// The user whose permissions are revoked; new topics are discovered soon.
const LOGIN: &str = "security.protocol: SASL_PLAINTEXT, sasl.mechanism: PLAIN, sasl.username: service, sasl.password: \
                     service-secret, topic.metadata.refresh.interval.ms: 2000";

struct Harness {
    client: Client,
    topic: String,
    group: String,
    workdir: Workdir,
}

impl Harness {
    /// A topic of three partitions on the guarded cluster, and a relay that copies it.
    fn new(client_keys: &str, more: &str) -> Self {
        let kafka = guarded();
        let client = Client::new(kafka.bootstrap());
        let (topic, group) = (unique("problems"), unique("group"));
        client.create_topic(&topic, 3);
        client.create_topic(&format!("{topic}.copy"), 3);
        let workdir = Workdir::empty();
        workdir.write(
            "sluicegate.yaml",
            &format!(
                "kafka:\n  bootstrap_servers: \"{}\"\n  group_id: {group}\n  client: {{ {client_keys}{LOGIN} }}\n\
                 handlers:\n  file: {{ folder: handlers.d }}\n\
                 plugins: {{ folder: plugins, cache: cache, allow_unsigned: true }}\n\
                 processing:\n  commit_interval: 200ms\n{more}",
                kafka.login(),
            ),
        );
        workdir.plugins(&["relay", "misbehave"]);
        let harness = Self {
            client,
            topic,
            group,
            workdir,
        };
        harness.spec(
            "copy",
            "relay",
            "",
            &format!("{{ topic: {}.copy }}", harness.topic),
        );
        harness
    }

    /// Members notice the loss of their group soon.
    fn with_short_timeouts() -> Self {
        Self::new("session.timeout.ms: 6000, heartbeat.interval.ms: 500, ", "")
    }

    fn spec(&self, name: &str, plugin: &str, more: &str, config: &str) {
        self.workdir.spec(
            name,
            &format!(
                "plugin: {plugin}\nversion: \"*\"\nroute: {{ topics: [{}] }}\n{more}config: {config}\n",
                self.topic
            ),
        );
    }

    fn produce(&self, count: u64) {
        self.client.produce(
            &self.topic,
            (0..count).map(|number| Outgoing::new(&format!("k{number}"), number.to_string())),
        );
    }

    fn settled(&self) {
        self.client
            .wait_committed(&self.group, &self.topic, DEADLINE);
    }
}

fn change(acl: &Acl, deny: bool) {
    let changed = guarded().change_acl(acl, deny);
    changed.unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn a_missing_read_permission_is_shown_and_clears_without_a_record() {
    let harness = Harness::with_short_timeouts();
    let mut service = Service::ready(&harness.workdir, &[]);
    harness.produce(90);
    harness.settled();
    heals(&mut service);
    let lag = |service: &Service| {
        let metrics = service.metrics().expect("metrics");
        let of_topic = [("topic", harness.topic.as_str())];
        metrics
            .matching("sluicegate_partition_lag_records", &of_topic)
            .count()
    };
    assert_eq!(lag(&service), 3);
    // The topic can still be described: the response to a fetch decides, not the first response.
    let described = Acl::AllowTopic {
        topic: harness.topic.clone(),
    };
    change(&described, true);
    let (began, before) = (Instant::now(), warnings(&mut service));
    let rule = Acl::DenyRead {
        topic: harness.topic.clone(),
    };
    change(&rule, true);
    let place = format!("{}/0", harness.topic);
    shows(
        &mut service,
        before,
        &Shown {
            kind: "partition_unreadable",
            status: 200,
            words: &["authorization failed", "grant the service READ", &place],
            explain: (&place, "authorization failed"),
        },
    );
    let unreadable = [("topic", harness.topic.as_str()), ("state", "unreadable")];
    let metrics = service.metrics().expect("metrics");
    assert_eq!(metrics.sum("sluicegate_partition_state", &unreadable), 3.0);
    assert_eq!(lag(&service), 3, "the time series stay");
    minute(&mut service, began, before, "a read permission");
    change(&rule, false);
    heals(&mut service);
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn a_group_that_refuses_the_member_is_shown_and_clears() {
    let harness = Harness::with_short_timeouts();
    let mut service = Service::ready(&harness.workdir, &[]);
    harness.produce(30);
    harness.settled();
    let (began, before) = (Instant::now(), warnings(&mut service));
    let rule = Acl::DenyGroup {
        group: harness.group.clone(),
    };
    change(&rule, true);
    harness.produce(30);
    let place = format!("{}/0", harness.topic);
    let group = format!("group {}", harness.group);
    shows(
        &mut service,
        before,
        &Shown {
            kind: "group",
            status: 200,
            words: &[
                &group,
                "group authorization failed",
                "grant the service READ on the group",
            ],
            explain: (&place, "authorization failed"),
        },
    );
    minute(&mut service, began, before, "a group permission");
    change(&rule, false);
    heals(&mut service);
    harness.settled();
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn dead_letters_without_permission_and_emits_without_a_topic_are_shown_and_clear() {
    let harness = Harness::with_short_timeouts();
    let letters = format!("{}.dlt", harness.topic);
    harness.client.create_topic(&letters, 3);
    let more = "retry: { max_attempts: 1 }\ndead_letter: { create: false }\n";
    harness.spec(
        "bad",
        "misbehave",
        more,
        "{ rules: [ { when: { one_in: 1 }, do: error, class: terminal } ] }",
    );
    let rule = Acl::DenyWrite { topic: letters };
    change(&rule, true);
    let mut service = Service::ready(&harness.workdir, &[]);
    let before = warnings(&mut service);
    harness.produce(30);
    let place = format!("{}/0", harness.topic);
    shows(
        &mut service,
        before,
        &Shown {
            kind: "dead_letters_refused",
            status: 200,
            words: &[
                "handler `bad` cannot write dead letters",
                "authorization failed",
                "grant",
            ],
            explain: (&place, "authorization failed"),
        },
    );
    change(&rule, false);
    harness.settled();
    heals(&mut service);

    let missing = format!("{}.missing", harness.topic);
    harness.spec("bad", "relay", more, &format!("{{ topic: {missing} }}"));
    let before = warnings(&mut service);
    wait_for("the spec to be applied", DEADLINE, || {
        let handler = service.api("handlers/bad")?;
        match handler["plugin"] == "relay" && handler["state"] == "ACTIVE" {
            true => Ok(()),
            false => Err(handler.to_string()),
        }
    });
    harness.produce(30);
    shows(
        &mut service,
        before,
        &Shown {
            kind: "emits_refused",
            status: 200,
            words: &["handler `bad` cannot emit to", &missing, "create the topic"],
            explain: (&place, &missing),
        },
    );
    harness.client.create_topic(&missing, 1);
    harness.settled();
    heals(&mut service);
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn one_handler_of_several_does_not_make_the_service_unready() {
    let harness = Harness::new("", "  max_uncommitted: 1000\n");
    let flag = harness.workdir.path().join("unhealthy");
    let config = format!("{{ unhealthy_while: {} }}", flag.display());
    harness.spec("unwell", "misbehave", "", &config);
    harness.spec(
        "bad",
        "misbehave",
        // One worker: a later successful call on another one would reset the failure count.
        "workers: 1\nrestart: { max_restarts: 2, restart_window: 1m }\nretry: { max_attempts: 100, backoff: { delay: 10ms } }\n",
        "{ rules: [ { when: { one_in: 1 }, do: panic, times: 3 } ] }",
    );
    let mut service = Service::ready(&harness.workdir, &[]);
    let before = warnings(&mut service);
    harness.produce(30);
    let place = format!("{}/0", harness.topic);
    let explained = |words| (place.as_str(), words);
    shows(
        &mut service,
        before,
        &Shown {
            kind: "handler_failed",
            status: 200,
            words: &["handler `bad` has failed", "handlers restart bad"],
            explain: explained("failed_handler"),
        },
    );
    let restart = |service: &Service| {
        let arguments = ["handlers", "restart", "bad", "--admin", service.admin()];
        run_binary(harness.workdir.path(), &arguments)
            .status
            .success()
    };
    assert!(restart(&service));
    harness.settled();
    heals(&mut service);

    std::fs::write(&flag, "").expect("a file");
    let healthy = |kind, words| Shown {
        kind,
        status: 200,
        words,
        explain: (place.as_str(), "idle"),
    };
    let unhealthy = healthy(
        "handler_unhealthy",
        &["handler `unwell`", "unhealthy on purpose"],
    );
    shows(&mut service, before, &unhealthy);
    let gate = |to: &str| {
        let arguments = ["handlers", to, "unwell", "--admin", service.admin()];
        run_binary(harness.workdir.path(), &arguments)
            .status
            .success()
    };
    assert!(gate("off"));
    assert!(!gate("on"), "the gate is held");
    let held = healthy(
        "handler_held",
        &[
            "the gate of handler `unwell` is held",
            "unhealthy on purpose",
        ],
    );
    shows(&mut service, before, &held);
    std::fs::remove_file(&flag).expect("the file exists");
    heals(&mut service);

    // One team's mistake, and a topic that does not exist yet.
    let bad = format!(
        "plugin: relay\nversion: \"*\"\nroute: {{ topics: [{}] }}\nworkers: many\n",
        harness.topic
    );
    harness.workdir.spec("mistyped", &bad);
    let refused = healthy("spec_refused", &["mistyped.yaml", "workers"]);
    shows(&mut service, before, &refused);
    harness.workdir.remove("handlers.d/mistyped.yaml");
    heals(&mut service);
    let later = format!("{}.later", harness.topic);
    harness.workdir.spec(
        "later",
        &format!("plugin: relay\nversion: \"*\"\nroute: {{ topics: [{later}] }}\nconfig: {{ topic: {}.copy }}\n", harness.topic),
    );
    let missing = healthy(
        "topic_missing",
        &["handler `later` reads topic", "create the topic"],
    );
    shows(&mut service, before, &missing);
    harness.client.create_topic(&later, 1);
    heals(&mut service);
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn a_service_without_a_running_handler_or_during_a_stop_is_not_ready() {
    let harness = Harness::new("", "  drain_timeout: 30s\n");
    harness.spec(
        "copy",
        "misbehave",
        "timeout: 1m\nrestart: { max_restarts: 2, restart_window: 1m }\n\
         retry: { max_attempts: 100, backoff: { delay: 10ms } }\n",
        "{ rules: [ { when: { one_in: 1 }, do: panic, times: 3 }, { when: { one_in: 1 }, do: sleep, for: 15s } ] }",
    );
    let mut service = Service::ready(&harness.workdir, &[]);
    harness.produce(1);
    let unready = |service: &Service, words: &str| {
        wait_for(words, DEADLINE, || {
            let (status, body) = readyz(service)?;
            let reason = body["error"]["message"].as_str().unwrap_or_default();
            match status == 503 && reason.contains(words) {
                true => Ok(()),
                false => Err(format!("{status}: {body}")),
            }
        });
    };
    unready(
        &service,
        "no enabled handler takes records; handler `copy` is FAILED",
    );
    let arguments = ["handlers", "restart", "copy", "--admin", service.admin()];
    assert!(
        run_binary(harness.workdir.path(), &arguments)
            .status
            .success()
    );
    wait_for("the record to be in a call", DEADLINE, || {
        let (status, body) = readyz(&service)?;
        let busy = service.api("handlers/copy")?["busy"].as_u64();
        match status == 200 && busy == Some(1) {
            true => Ok(()),
            false => Err(format!("{busy:?} busy, {status}: {body}")),
        }
    });
    service.process().signal(Signal::TERM);
    unready(&service, "the service is shutting down");
    let ended = service.process().wait(DEADLINE);
    assert!(ended.unwrap_or_else(|error| panic!("{error:#}")).success());
}

#[test]
fn an_unavailable_cluster_is_shown_and_makes_unready_after_the_stall_timeout() {
    let mut kafka =
        Kafka::start(&KafkaOptions::default()).unwrap_or_else(|error| panic!("{error:#}"));
    let client = Client::new(kafka.bootstrap());
    let (topic, group) = (unique("away"), unique("group"));
    client.create_topic(&topic, 3);
    let workdir = Workdir::new(kafka.bootstrap(), &group, "  stall_timeout: 20s\n");
    workdir.plugins(&["misbehave"]);
    workdir.spec(
        "quiet",
        &format!("plugin: misbehave\nversion: \"*\"\nroute: {{ topics: [{topic}] }}\nconfig: {{ rules: [] }}\n"),
    );
    let mut service = Service::ready(&workdir, &[]);
    let records = || (0..30).map(|number| Outgoing::new(&format!("k{number}"), "v"));
    client.produce(&topic, records());
    client.wait_committed(&group, &topic, DEADLINE);
    heals(&mut service);
    let (began, before) = (Instant::now(), warnings(&mut service));
    kafka
        .stop_node(0, Signal::KILL)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let place = format!("{topic}/0");
    shows(
        &mut service,
        before,
        &Shown {
            kind: "kafka_unreachable",
            status: 200,
            words: &[
                "no Kafka broker answers",
                "refused",
                "check that the broker",
            ],
            explain: (&place, "no Kafka broker answers"),
        },
    );
    wait_for("the service to be unready", DEADLINE, || {
        let (status, body) = readyz(&service)?;
        match status {
            503 => Ok(()),
            _ => Err(body.to_string()),
        }
    });
    assert!(
        began.elapsed() >= Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    let away = service.metrics().expect("metrics");
    assert!(away.sum("sluicegate_kafka_unreachable_seconds", &[]) >= 20.0);
    minute(&mut service, began, before, "an unavailable cluster");
    kafka
        .start_node(0)
        .unwrap_or_else(|error| panic!("{error:#}"));
    heals(&mut service);
    client.produce(&topic, records());
    client.wait_committed(&group, &topic, DEADLINE);
    heals(&mut service);
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn a_group_with_another_assignor_keeps_the_service_unready_with_the_reason() {
    let first = Harness::new("partition.assignment.strategy: range, ", "");
    let mut other = Service::ready(&first.workdir, &[]);
    let config = std::fs::read_to_string(first.workdir.config()).expect("a config");
    let config = config.replace("partition.assignment.strategy: range, ", "");
    first.workdir.write("sluicegate.yaml", &config);
    let mut service = Service::start(&first.workdir, &[]);
    let reason = wait_for("the reason to be reported", DEADLINE, || {
        let (status, body) = readyz(&service)?;
        let reason = body["error"]["message"].as_str().unwrap_or_default();
        match status == 503 && reason.contains("nconsistent group protocol") {
            true => Ok(reason.to_owned()),
            false => Err(format!("{status}: {body}")),
        }
    });
    assert!(
        reason.contains(&first.group) && reason.contains("kafka.group_id"),
        "{reason}"
    );
    println!("    {reason}");
    assert!(other.stop(DEADLINE).success());
    service.wait_ready();
    heals(&mut service);
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn a_member_without_partitions_is_ready_under_either_protocol() {
    for protocol in ["classic", "consumer"] {
        let harness = Harness::new(&format!("group.protocol: {protocol}, "), "");
        // The consumer protocol has no client-side assignor.
        let mut members = vec![Service::ready(&harness.workdir, &[])];
        for _ in 0..4 {
            let began = Instant::now();
            members.push(Service::ready(&harness.workdir, &[]));
            let took = began.elapsed();
            assert!(
                took < Duration::from_secs(30),
                "{protocol}: ready after {took:?}"
            );
        }
        let owned = wait_for("the partitions to be spread", DEADLINE, || {
            let counts: Result<Vec<u64>, String> = members
                .iter()
                .map(|member| Ok(member.api("status")?["partitions"].as_u64().unwrap_or(0)))
                .collect();
            let counts = counts?;
            match counts.iter().sum::<u64>() == 3 && counts.contains(&0) {
                true => Ok(counts),
                false => Err(format!("{counts:?}")),
            }
        });
        println!("    {protocol}: partitions by member {owned:?}");
        for member in &mut members {
            heals(member);
        }
        for mut member in members {
            assert!(member.stop(DEADLINE).success());
        }
    }
}
