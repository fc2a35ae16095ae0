//! Situation: a member of a group is told to stop in the middle of its first join, while it owns nothing, while its broker is
//! away, while calls run that last longer than its time to drain, and while its plugins load.
//! Property: it leaves the group before it ends, so that nobody waits for its session to end, a stop ends by its deadline, and
//! what a call has finished by then is not handled again (G3). While plugins load it says that it lives and is not ready.
//! Needs: Kafka of its own.
//! Command: `cargo xtask test --scenario stopping`

use std::time::{Duration, Instant};

use e2e::client::{Client, Outgoing};
use e2e::kafka::{Kafka, KafkaOptions};
use e2e::process::Signal;
use e2e::service::Service;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;

const SOON: Duration = Duration::from_secs(60);
const DRAIN: Duration = Duration::from_secs(3);
/// What a stop may take beyond the drain, and what this machine may add.
const GRACE: Duration = Duration::from_secs(5 + 1);
/// How long a broker collects the first members of a group.
const COLLECTS: Duration = Duration::from_secs(2);

fn start() -> (Kafka, Client) {
    let delay = COLLECTS.as_millis().to_string();
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
    let workdir = Workdir::empty();
    workdir.write(
        "sluicegate.yaml",
        &format!(
            "kafka:\n  bootstrap_servers: {}\n  group_id: {group}\n\
             handlers:\n  file: {{ folder: handlers.d }}\n\
             plugins: {{ folder: plugins, cache: cache, allow_unsigned: true }}\n\
             processing: {{ drain_timeout: {}s }}\n",
            kafka.bootstrap(),
            DRAIN.as_secs(),
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
    wait_for("the members of the group", SOON, || {
        match client.members(group) {
            now if now == count => Ok(()),
            now => Err(format!("{now} of {count}")),
        }
    });
}

/// Tells a member to stop and gives how long it took.
fn stop(member: &mut Service) -> Duration {
    let told = Instant::now();
    let status = member.stop(DRAIN + GRACE);
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

#[test]
fn a_member_without_partitions_leaves_the_group() {
    let (kafka, client) = start();
    client.create_topic("source", 1);
    client.create_topic("copy", 1);
    let workdir = workdir(&kafka, "idle");
    let owner = Service::ready(&workdir, &[]);
    wait_for("the owner", SOON, || owner.partitions().map(drop));
    let mut idle = Service::ready(&workdir, &[]);
    let took = stop(&mut idle);
    println!("a stop without partitions took {took:?}");
    assert_eq!(client.members("idle"), 1, "the member has not left");
}

#[test]
fn a_stop_ends_by_its_deadline_while_the_broker_is_away() {
    let (mut kafka, client) = start();
    client.create_topic("source", 4);
    client.create_topic("copy", 4);
    let workdir = workdir(&kafka, "cut");
    let mut member = Service::ready(&workdir, &[]);
    let records = |count: u64| (0..count).map(|number| Outgoing::new(&format!("k{number}"), "v"));
    client.produce("source", records(1_000));
    member.wait_outcomes("copy", "ack", 1_000, SOON);
    client.produce("source", records(20_000));
    kafka
        .stop_node(0, Signal::KILL)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let told = Instant::now();
    member.process().signal(Signal::TERM);
    let ended = member.process().wait(DRAIN + GRACE);
    let took = told.elapsed();
    println!("a stop without a broker took {took:?}");
    ended.unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn a_stop_ends_calls_between_two_records_and_nothing_is_handled_twice() {
    const RECORDS: u64 = 200;
    let (kafka, client) = start();
    client.create_topic("slow", 1);
    client.create_topic("done", 1);
    let workdir = workdir(&kafka, "slow");
    workdir.plugins(&["misbehave"]);
    // A worker is given dozens of records at once: its first call lasts longer than the drain.
    workdir.spec(
        "copy",
        "plugin: misbehave\nversion: \"*\"\nroute: { topics: [slow] }\nworkers: 4\n\
         config: { emit_to: done, rules: [{ when: { one_in: 1 }, do: sleep, for: 100ms }] }\n",
    );
    let records =
        (0..RECORDS).map(|number| Outgoing::new(&format!("k{number}"), number.to_string()));
    client.produce("slow", records);
    let mut member = Service::ready(&workdir, &[]);
    wait_for("the records to be handed out", SOON, || {
        match member.partitions()?.first() {
            Some(partition) if partition["delivered"] == RECORDS => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let took = stop(&mut member);
    println!("a stop within slow calls took {took:?}");
    let mut next = Service::ready(&workdir, &[]);
    client.wait_committed("slow", "slow", SOON);
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
fn a_service_whose_plugins_load_slowly_lives_and_stops() {
    let (kafka, _client) = start();
    let workdir = workdir(&kafka, "slow");
    workdir.plugins(&["misbehave"]);
    workdir.spec(
        "copy",
        "plugin: misbehave\nversion: \"*\"\nroute: { topics: [source] }\nconfig: { slow_start: 25s }\n",
    );
    let mut service = Service::start(&workdir, &[]);
    wait_for("the plugin to be found", SOON, || {
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
    assert!(service.stop(SOON).success());
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "{:?}",
        asked.elapsed()
    );
}
