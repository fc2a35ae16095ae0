//! Situation: a broker that coordinates a group is restarted, as in a rolling restart of the cluster; after that, a member gets
//! partitions of another one.
//! Property: the member reads them on, from where the other one stopped (G1, G8).
//! Needs: Kafka of its own.
//! Mostly waits: for brokers that restart.
//! Command: `cargo xtask test --scenario coordinators`

use std::time::Duration;

use e2e::client::{Client, Outgoing};
use e2e::kafka::{Kafka, KafkaOptions};
use e2e::process::Signal;
use e2e::service::Service;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;

const GROUP: &str = "moved";
const PARTITIONS: i32 = 6;
const DEADLINE: Duration = Duration::from_secs(60);

/// The broker that coordinates the group, which is the leader of its partition of `__consumer_offsets`.
fn coordinator(client: &Client) -> i32 {
    let hash = GROUP.bytes().fold(0_i32, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(i32::from(byte))
    });
    let leaders = client.leaders("__consumer_offsets");
    leaders[&((hash & i32::MAX) % leaders.len() as i32)]
}

fn await_partitions(service: &Service, count: usize) {
    wait_for("partitions that run", DEADLINE, || {
        let partitions = service.partitions()?;
        let running = |row: &&serde_json::Value| row["state"] == "running";
        match partitions.iter().filter(running).count() {
            now if now == count => Ok(()),
            _ => Err(format!("{partitions:?}")),
        }
    });
}

#[test]
fn partitions_are_taken_over_after_the_coordinator_has_moved() {
    let mut kafka =
        Kafka::start(&KafkaOptions::three_nodes()).unwrap_or_else(|error| panic!("{error:#}"));
    let client = Client::new(kafka.bootstrap());
    for topic in ["source", "copy"] {
        client.create_topic_with(topic, PARTITIONS, 3, &[]);
    }
    let workdir = Workdir::new(kafka.bootstrap(), GROUP, "");
    workdir.plugins(&["relay"]);
    workdir.spec(
        "copy",
        "plugin: relay\nversion: \"*\"\nroute: { topics: [source] }\nconfig: { topic: copy }\n",
    );
    let mut first = Service::ready(&workdir, &[]);
    await_partitions(&first, PARTITIONS as usize);
    let before = coordinator(&client);
    client.await_in_sync("__consumer_offsets");
    let node = before as usize - 1;
    kafka
        .stop_node(node, Signal::TERM)
        .and_then(|()| kafka.start_node(node))
        .unwrap_or_else(|error| panic!("{error:#}"));
    let after = coordinator(&client);
    println!("coordinator {before}, then {after}");
    assert_ne!(before, after, "the coordinator has not moved");
    let mut second = Service::ready(&workdir, &[]);
    await_partitions(&second, PARTITIONS as usize / 2);
    assert!(second.stop(DEADLINE).success());
    await_partitions(&first, PARTITIONS as usize);
    let records = (0..600).map(|number| Outgoing::new(&format!("k{number}"), "v"));
    client.produce("source", records);
    client.wait_committed(GROUP, "source", DEADLINE);
    assert_eq!(client.count("copy"), 600);
    assert!(first.stop(DEADLINE).success());
}
