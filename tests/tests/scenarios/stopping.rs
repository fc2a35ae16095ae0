//! Situation: a member of a group is stopped in the middle of its first join, alone and with others, with an eager and a
//! cooperative assignor, while it owns nothing, while its broker is down, while calls run longer than its drain timeout,
//! with one client and with two, twice, and while its plugins load.
//! Property: it leaves the group before it exits, so that no member waits for its session timeout, a stop ends by its deadline, and
//! records finished by a call until then are not handled again (G3). A stop that leaves anything behind reports it and fails; one
//! that leaves nothing succeeds. While plugins load the service is live and not ready.
//! Needs: Kafka of its own.
//! Mostly waits: for members that leave.
//! Takes: 160 s.
//! Command: `cargo xtask test --scenario stopping`

use std::time::{Duration, Instant};

use e2e::client::{Client, Outgoing};
use e2e::kafka::{Kafka, KafkaOptions};
use e2e::process::Signal;
use e2e::service::Service;
use e2e::wait::{stays, wait_for};
use e2e::workdir::Workdir;

const DEADLINE: Duration = Duration::from_secs(60);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// Time that a stop may take beyond the drain timeout, plus a margin for this machine.
const STOP_GRACE: Duration = Duration::from_secs(5 + 1);
/// How long a broker waits for the first members of a group.
const JOIN_WINDOW: Duration = Duration::from_secs(2);

fn start() -> (Kafka, Client) {
    let delay = JOIN_WINDOW.as_millis().to_string();
    let extra = vec![("group.initial.rebalance.delay.ms".to_owned(), delay)];
    let kafka = Kafka::start(&KafkaOptions {
        extra,
        ..KafkaOptions::default()
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
    let client = Client::new(kafka.bootstrap());
    (kafka, client)
}

fn workdir(kafka: &Kafka, group: &str) -> Workdir {
    workdir_with(kafka, group, "cooperative-sticky")
}

fn workdir_with(kafka: &Kafka, group: &str, assignor: &str) -> Workdir {
    let workdir = Workdir::empty();
    workdir.write(
        "sluicegate.yaml",
        &format!(
            "kafka:\n  bootstrap_servers: {}\n  group_id: {group}\n  \
             client: {{ partition.assignment.strategy: {assignor} }}\n\
             handlers:\n  file: {{ folder: handlers.d }}\n\
             plugins: {{ folder: plugins, cache: cache, allow_unsigned: true }}\n\
             processing: {{ drain_timeout: {}s }}\n",
            kafka.bootstrap(),
            DRAIN_TIMEOUT.as_secs(),
        ),
    );
    workdir.plugins(&["relay"]);
    workdir.spec(
        "copy",
        "plugin: relay\nversion: \"*\"\nroute: { topics: [source] }\nconfig: { topic: copy }\n",
    );
    workdir
}

fn await_members(client: &Client, group: &str, count: usize) {
    wait_for("the members of the group", DEADLINE, || {
        match client.members(group) {
            now if now == count => Ok(()),
            now => Err(format!("{now} of {count}")),
        }
    });
}

/// Stops a member and returns how long it took.
fn stop(member: &mut Service) -> Duration {
    let told = Instant::now();
    let status = member.stop(DRAIN_TIMEOUT + STOP_GRACE);
    assert!(status.success(), "a stop ended with {status}");
    told.elapsed()
}

#[test]
fn a_member_that_stops_while_it_joins_leaves_the_group() {
    let (kafka, client) = start();
    client.create_topic("source", 1);
    client.create_topic("copy", 1);
    let workdir = workdir(&kafka, "joined");
    let mut member = Service::start(&workdir, &[]);
    await_members(&client, "joined", 1);
    let took = stop(&mut member);
    println!("a stop in the middle of a join took {took:?}");
    assert_eq!(client.members("joined"), 0, "the member has not left");
}

/// Stops three members at the same moment of their first join, as when a deployment is rolled back at once.
fn stop_three_within_their_join(kafka: &Kafka, client: &Client, assignor: &str, after: Duration) {
    let group = format!("{assignor}-{}", after.as_millis());
    let workdir = workdir_with(kafka, &group, assignor);
    let mut members: Vec<Service> = (0..3).map(|_| Service::start(&workdir, &[])).collect();
    await_members(client, &group, 3);
    stays("three members", after, || {
        let ended = members.iter_mut().find_map(|one| one.process().exited());
        ended.map_or(Ok(()), |status| Err(format!("one has ended with {status}")))
    });
    let told = Instant::now();
    for member in &mut members {
        member.process().signal(Signal::TERM);
    }
    for member in &mut members {
        let ended = member.process().wait(DRAIN_TIMEOUT + STOP_GRACE);
        let status = ended.unwrap_or_else(|error| panic!("{error:#}"));
        let took = told.elapsed();
        println!("{group}: ended with {status} after {took:?}");
        let log = member.process().log();
        assert!(status.success(), "a stop ended with {status}:\n{log}");
        assert!(log.contains("graceful=true"), "{log}");
        assert!(!log.contains("left behind"), "{log}");
        // Every joining member prolongs the join once.
        assert!(
            took < 2 * JOIN_WINDOW + DRAIN_TIMEOUT / 3,
            "after {took:?}:\n{log}"
        );
    }
    assert_eq!(client.members(&group), 0, "{group}: a member has not left");
}

#[test]
fn members_that_stop_within_their_first_join_leave_the_group() {
    let (kafka, client) = start();
    client.create_topic("source", 6);
    client.create_topic("copy", 1);
    for assignor in ["range", "cooperative-sticky"] {
        for ms in [0, 300, 600, 1_000, 1_500, 1_900] {
            stop_three_within_their_join(&kafka, &client, assignor, Duration::from_millis(ms));
        }
    }
}

#[test]
fn a_member_without_partitions_leaves_the_group() {
    let (kafka, client) = start();
    client.create_topic("source", 1);
    client.create_topic("copy", 1);
    let workdir = workdir(&kafka, "idle");
    let owner = Service::ready(&workdir, &[]);
    wait_for("the owner", DEADLINE, || owner.partitions().map(drop));
    let mut idle = Service::ready(&workdir, &[]);
    let took = stop(&mut idle);
    println!("a stop without partitions took {took:?}");
    assert_eq!(client.members("idle"), 1, "the member has not left");
}

#[test]
fn a_stop_ends_by_its_deadline_while_the_broker_is_down() {
    let (mut kafka, client) = start();
    client.create_topic("source", 4);
    client.create_topic("copy", 4);
    let workdir = workdir(&kafka, "cut");
    let mut member = Service::ready(&workdir, &[]);
    let records = |count: u64| (0..count).map(|number| Outgoing::new(&format!("k{number}"), "v"));
    client.produce("source", records(1_000));
    member.wait_outcomes("copy", "ack", 1_000, DEADLINE);
    client.produce("source", records(20_000));
    kafka
        .stop_node(0, Signal::KILL)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let told = Instant::now();
    member.process().signal(Signal::TERM);
    let ended = member.process().wait(DRAIN_TIMEOUT + STOP_GRACE);
    let took = told.elapsed();
    println!("a stop without a broker took {took:?}");
    let status = ended.unwrap_or_else(|error| panic!("{error:#}"));
    let log = member.process().log();
    assert_eq!(status.code(), Some(1), "{log}");
    let told = "members without a confirmed leave: 1;";
    assert!(error_of(&log).contains(told), "{log}");
}

/// A member that has read and committed everything leaves only its membership behind.
#[test]
fn a_stop_without_a_broker_fails_for_an_idle_member_too() {
    let (mut kafka, client) = start();
    client.create_topic("source", 1);
    client.create_topic("copy", 1);
    let workdir = workdir(&kafka, "quiet");
    let mut member = Service::ready(&workdir, &[]);
    wait_for("the partition", DEADLINE, || member.partitions().map(drop));
    kafka
        .stop_node(0, Signal::KILL)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let status = member.stop(DRAIN_TIMEOUT + STOP_GRACE);
    let log = member.process().log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(error_of(&log).contains("confirmed leave: 1;"), "{log}");
}

/// The final log line of a stop that left something behind.
fn error_of(log: &str) -> String {
    let line = log
        .lines()
        .find(|line| line.contains("ERROR") && line.contains("service stopped"));
    line.unwrap_or_default().to_owned()
}

/// Starts a handler whose calls last longer than the drain timeout and ignore cancellation; each client has such a call.
fn within_long_calls(
    kafka: &Kafka,
    client: &Client,
    group: &str,
    clients: u64,
) -> (Workdir, Service) {
    let topic = format!("long-{group}");
    client.create_topic(&topic, 2);
    let workdir = workdir(kafka, group);
    workdir.plugins(&["misbehave"]);
    let spec = "plugin: misbehave\nversion: \"*\"\nworkers: 4\ntimeout: 1m\n\
         config: { rules: [{ when: { one_in: 1 }, do: sleep, for: 30s }] }\n";
    workdir.spec("copy", &format!("route: {{ topics: [{topic}] }}\n{spec}"));
    let service = Service::ready(&workdir, &["--set", &format!("kafka.clients={clients}")]);
    wait_for("both partitions", DEADLINE, || {
        match service.partitions()?.len() {
            2 => Ok(()),
            some => Err(some.to_string()),
        }
    });
    let records = (0..2).map(|at| Outgoing::new("k", "v").partition(at));
    client.produce(&topic, records);
    wait_for("both calls", DEADLINE, || {
        let running = |row: &serde_json::Value| row["in_flight"] == 1;
        match service.partitions()?.iter().all(running) {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        }
    });
    (workdir, service)
}

#[test]
fn a_stop_that_leaves_calls_unfinished_reports_it_fails_and_leaves_the_group() {
    let (kafka, client) = start();
    for clients in [1, 2] {
        let group = format!("clients-{clients}");
        let (_workdir, mut member) = within_long_calls(&kafka, &client, &group, clients);
        let told = Instant::now();
        let status = member.stop(DRAIN_TIMEOUT + STOP_GRACE);
        println!("a stop with {clients} clients took {:?}", told.elapsed());
        let log = member.process().log();
        assert_eq!(status.code(), Some(1), "{log}");
        let left = "unfinished records: 2, partitions whose last commit failed: 0;";
        let line = error_of(&log);
        assert!(
            line.contains(left) && line.contains("graceful=false"),
            "{log}"
        );
        assert!(!line.contains("members without"), "{line}");
        assert_eq!(client.members(&group), 0, "{log}");
    }
}

#[test]
fn another_signal_ends_a_stop_that_waits_for_a_call_at_once() {
    let (kafka, client) = start();
    let (_workdir, mut member) = within_long_calls(&kafka, &client, "twice", 1);
    member.process().signal(Signal::TERM);
    wait_for("the stop", DEADLINE, || match member.process().log() {
        log if log.contains("shutting down: draining") => Ok(()),
        log => Err(log),
    });
    // Within one second it counts as the same request, so it is sent until it counts as another one.
    let told = Instant::now();
    let status = wait_for("the second signal to take effect", DRAIN_TIMEOUT, || {
        member.process().signal(Signal::TERM);
        let ended = member.process().exited();
        ended.ok_or_else(|| "it is still running".to_owned())
    });
    assert!(
        told.elapsed() < Duration::from_secs(2),
        "{:?}",
        told.elapsed()
    );
    let log = member.process().log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.contains("stopped immediately by another signal"),
        "{log}"
    );
}

#[test]
fn a_stop_ends_calls_between_two_records_and_nothing_is_handled_twice() {
    const RECORDS: u64 = 200;
    let (kafka, client) = start();
    client.create_topic("slow", 1);
    client.create_topic("done", 1);
    let workdir = workdir(&kafka, "slow");
    workdir.plugins(&["misbehave"]);
    // A worker receives dozens of records at once: its first call lasts longer than the drain timeout.
    workdir.spec(
        "copy",
        "plugin: misbehave\nversion: \"*\"\nroute: { topics: [slow] }\nworkers: 4\n\
         config: { emit_to: done, rules: [{ when: { one_in: 1 }, do: sleep, for: 100ms }] }\n",
    );
    let records =
        (0..RECORDS).map(|number| Outgoing::new(&format!("k{number}"), number.to_string()));
    client.produce("slow", records);
    let mut member = Service::ready(&workdir, &[]);
    wait_for("the records to be dispatched", DEADLINE, || {
        match member.partitions()?.first() {
            Some(partition) if partition["delivered"] == RECORDS => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let took = stop(&mut member);
    println!("a stop within slow calls took {took:?}");
    let mut next = Service::ready(&workdir, &[]);
    client.wait_committed("slow", "slow", DEADLINE);
    let mut done: Vec<u64> = client
        .read("done")
        .iter()
        .map(|copy| copy.text().parse().expect("a number"))
        .collect();
    done.sort_unstable();
    assert!(done.iter().copied().eq(0..RECORDS), "each once: {done:?}");
    stop(&mut next);
}

#[test]
fn a_service_with_slowly_loading_plugins_is_live_and_stops() {
    let (kafka, _client) = start();
    let workdir = workdir(&kafka, "slow");
    workdir.plugins(&["misbehave"]);
    workdir.spec(
        "copy",
        "plugin: misbehave\nversion: \"*\"\nroute: { topics: [source] }\nconfig: { slow_start: 25s }\n",
    );
    let mut service = Service::start(&workdir, &[]);
    wait_for("the plugin to be found", DEADLINE, || {
        match service.process().log().contains("plugin found") {
            true => Ok(()),
            false => Err("not in the log".to_owned()),
        }
    });
    assert_eq!(service.get("/livez").expect("an answer").0, 200);
    let (status, body) = service.get("/readyz").expect("an answer");
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("starting"), "{body}");
    let asked = Instant::now();
    assert!(service.stop(DEADLINE).success());
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "{:?}",
        asked.elapsed()
    );
}
