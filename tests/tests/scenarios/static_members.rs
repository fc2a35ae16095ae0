//! Situation: a service with two clients whose config sets a `group.instance.id`, started and restarted.
//! Property: both clients are members of the group and read their partitions; neither fences the other.
//! Needs: Kafka
//! Mostly waits: for sessions.
//! Command: `cargo xtask test --scenario static_members`

use std::collections::BTreeSet;
use std::time::Duration;

use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::service::Service;
use e2e::unique;
use e2e::workdir::Workdir;

const RECORDS: u64 = 200;
const PARTITIONS: i32 = 4;
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn each_client_of_a_service_is_a_separate_static_member() {
    let bootstrap = Kafka::shared().bootstrap();
    let client = Client::new(bootstrap);
    let (topic, copy) = (unique("static"), unique("copy"));
    client.create_topic(&topic, PARTITIONS);
    client.create_topic(&copy, PARTITIONS);
    let workdir = Workdir::new(bootstrap, &topic, "");
    let config = std::fs::read_to_string(workdir.config()).expect("the config");
    let two = "  clients: 2\n  client: { group.instance.id: vm-1 }\nhandlers:\n";
    workdir.write("sluicegate.yaml", &config.replace("handlers:\n", two));
    workdir.plugins(&["relay"]);
    workdir.spec(
        "copy",
        &format!("plugin: relay\nversion: \"*\"\nroute: {{ topics: [{topic}] }}\nconfig: {{ topic: {copy} }}\n"),
    );
    for round in 1..=2 {
        let mut service = Service::ready(&workdir, &[]);
        assert_eq!(client.members(&topic), 2);
        for partition in 0..PARTITIONS {
            let record = |number: u64| Outgoing::new(&number.to_string(), "v").partition(partition);
            client.produce(&topic, (0..RECORDS / PARTITIONS as u64).map(record));
        }
        service.wait_outcomes("copy", "ack", RECORDS, DEADLINE);
        let assigned = service.partitions().expect("partitions");
        let assigned: BTreeSet<Option<i64>> = assigned
            .iter()
            .map(|row| row["partition"].as_i64())
            .collect();
        assert_eq!(assigned.len(), PARTITIONS as usize, "{assigned:?}");
        client.wait_committed(&topic, &topic, DEADLINE);
        assert!(service.stop(DEADLINE).success());
        assert_eq!(client.count(&copy), RECORDS * round);
    }
}
