//! Situation: logs that end in what no consumer is given (control records, aborted data), and logs whose beginning goes
//! while the service is away.
//! Property: an idle partition has no lag and is committed to its end, so that retention finds nothing to take away from
//! it (G2, G12).
//! Needs: Kafka.
//! Command: `cargo xtask test --scenario positions`

use std::time::Duration;

use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::service::Service;
use e2e::unique;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;

const SOON: Duration = Duration::from_secs(60);

fn records(partition: i32, values: std::ops::Range<i32>) -> Vec<Outgoing> {
    values
        .map(|value| Outgoing::new(&format!("k{value}"), value.to_string()).partition(partition))
        .collect()
}

struct Scene {
    client: Client,
    topic: String,
    copies: String,
    group: String,
    workdir: Workdir,
}

impl Scene {
    fn new(partitions: i32) -> Self {
        let kafka = Kafka::shared();
        let client = Client::new(kafka.bootstrap());
        let (topic, copies, group) = (unique("source"), unique("copies"), unique("group"));
        client.create_topic(&topic, partitions);
        client.create_topic(&copies, 1);
        let workdir = Workdir::new(kafka.bootstrap(), &group, "");
        workdir.plugins(&["relay"]);
        workdir.spec(
            "copy",
            &format!(
                "plugin: relay\nversion: \"*\"\nroute: {{ topics: [{topic}] }}\nconfig: {{ topic: {copies} }}\n"
            ),
        );
        Self {
            client,
            topic,
            copies,
            group,
            workdir,
        }
    }

    fn copied(&self) -> usize {
        self.client.read(&self.copies).len()
    }

    fn ends(&self) -> Vec<i64> {
        let offsets = self.client.offsets(&self.topic);
        offsets.into_values().map(|(_, end)| end).collect()
    }

    fn committed(&self) -> Vec<i64> {
        let committed = self.client.committed(&self.group, &self.topic);
        committed.into_values().collect()
    }
}

#[test]
fn a_log_that_ends_in_control_records_and_aborted_data_has_no_lag_and_survives_retention() {
    let scene = Scene::new(4);
    let (client, topic) = (&scene.client, &scene.topic);
    let mut service = Service::ready(&scene.workdir, &[]);
    client.transact(topic, &records(0, 0..10), true);
    client.transact(topic, &records(1, 0..10), true);
    client.transact(topic, &records(1, 0..25), false);
    client.transact(topic, &records(2, 0..5), false);
    client.produce(topic, records(3, 0..5));
    client.transact(topic, &records(3, 5..8), true);
    client.transact(topic, &records(3, 0..4), false);
    client.transact(topic, &records(3, 8..9), true);
    assert_eq!(scene.ends(), [11, 37, 6, 16]);
    service.wait_outcomes("copy", "ack", 29, SOON);
    service.wait_caught_up(SOON);
    client.wait_committed(&scene.group, topic, SOON);
    assert_eq!(scene.copied(), 29, "nothing that was aborted");
    assert!(service.stop(SOON).success());

    // What is deleted was handled to the last offset: nothing is missing.
    client.delete_before(topic, (0..).zip(scene.ends()));
    let mut service = Service::ready(&scene.workdir, &[]);
    client.produce(topic, (0..4).flat_map(|partition| records(partition, 0..1)));
    wait_for("the new records to be copied", SOON, || {
        match service.outcomes("copy", "ack")? {
            4 => Ok(()),
            seen => Err(format!("{seen}, {:?}", service.partitions())),
        }
    });
    service.wait_caught_up(SOON);
    client.wait_committed(&scene.group, topic, SOON);
    for row in service.partitions().expect("partitions") {
        assert_eq!(row["state"], "running", "{row}");
    }
    assert!(service.stop(SOON).success());
}

#[test]
fn what_a_stop_finds_read_is_committed_with_control_records_and_all() {
    let scene = Scene::new(1);
    // Nothing is asked for or committed while it runs.
    let interval = ["--set", "processing.commit_interval=1h"];
    let mut service = Service::ready(&scene.workdir, &interval);
    scene
        .client
        .transact(&scene.topic, &records(0, 0..10), true);
    service.wait_outcomes("copy", "ack", 10, SOON);
    assert!(service.stop(SOON).success());
    assert_eq!(scene.committed(), [11]);
}
