//! Situation: logs that end in offsets that are never delivered (control records, aborted data), logs whose beginning is deleted
//! while their records are in flight, and one that is corrupt on the broker's disk.
//! Property: an idle partition has no lag and is committed to its end (G2); missing offsets are reported, counted and skipped only
//! as the policy says; corrupt data holds its partition until it can be read (G12).
//! Needs: Kafka.
//! Mostly waits: for stall timeouts.
//! Takes: 73 s.
//! Command: `cargo xtask test --scenario positions`

use std::time::Duration;

use e2e::client::{Client, Outgoing};
use e2e::kafka::{Kafka, KafkaOptions};
use e2e::process::Signal;
use e2e::service::Service;
use e2e::unique;
use e2e::wait::{stays, wait_for};
use e2e::workdir::Workdir;

const DEADLINE: Duration = Duration::from_secs(60);

fn records(partition: i32, values: std::ops::Range<i32>) -> Vec<Outgoing> {
    values
        .map(|value| Outgoing::new(&format!("k{value}"), value.to_string()).partition(partition))
        .collect()
}

struct Harness {
    client: Client,
    topic: String,
    copies: String,
    group: String,
    workdir: Workdir,
}

impl Harness {
    fn new(partitions: i32) -> Self {
        Self::on(Kafka::shared().bootstrap(), partitions)
    }

    fn on(bootstrap: &str, partitions: i32) -> Self {
        let client = Client::new(bootstrap);
        let (topic, copies, group) = (unique("source"), unique("copies"), unique("group"));
        client.create_topic(&topic, partitions);
        client.create_topic(&copies, 1);
        let workdir = Workdir::new(bootstrap, &group, "");
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
    let harness = Harness::new(4);
    let (client, topic) = (&harness.client, &harness.topic);
    let mut service = Service::ready(&harness.workdir, &[]);
    client.transact(topic, &records(0, 0..10), true);
    client.transact(topic, &records(1, 0..10), true);
    client.transact(topic, &records(1, 0..25), false);
    client.transact(topic, &records(2, 0..5), false);
    client.produce(topic, records(3, 0..5));
    client.transact(topic, &records(3, 5..8), true);
    client.transact(topic, &records(3, 0..4), false);
    client.transact(topic, &records(3, 8..9), true);
    assert_eq!(harness.ends(), [11, 37, 6, 16]);
    service.wait_outcomes("copy", "ack", 29, DEADLINE);
    service.wait_caught_up(DEADLINE);
    client.wait_committed(&harness.group, topic, DEADLINE);
    assert_eq!(harness.copied(), 29, "no aborted record");
    assert!(service.stop(DEADLINE).success());

    // Everything deleted was handled: no offset is missing.
    client.delete_before(topic, (0..).zip(harness.ends()));
    let mut service = Service::ready(&harness.workdir, &[]);
    client.produce(topic, (0..4).flat_map(|partition| records(partition, 0..1)));
    wait_for("the new records to be copied", DEADLINE, || {
        match service.outcomes("copy", "ack")? {
            4 => Ok(()),
            seen => Err(format!("{seen}, {:?}", service.partitions())),
        }
    });
    service.wait_caught_up(DEADLINE);
    client.wait_committed(&harness.group, topic, DEADLINE);
    for row in service.partitions().expect("partitions") {
        assert_eq!(row["state"], "running", "{row}");
    }
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn a_stop_commits_past_control_records_that_it_has_read() {
    let harness = Harness::new(1);
    // Commits are too rare to happen while it runs.
    let interval = ["--set", "processing.commit_interval=1h"];
    let mut service = Service::ready(&harness.workdir, &interval);
    harness
        .client
        .transact(&harness.topic, &records(0, 0..10), true);
    service.wait_outcomes("copy", "ack", 10, DEADLINE);
    assert!(service.stop(DEADLINE).success());
    assert_eq!(harness.committed(), [11]);
}

/// A service with a slow handler and little memory, whose log is being deleted while it reads.
fn overtaken(policy: &str) -> (Harness, Service, u64) {
    let harness = Harness::new(1);
    let kafka = Kafka::shared().bootstrap();
    let group = &harness.group;
    harness.workdir.write(
        "sluicegate.yaml",
        &format!(
            "kafka:\n  bootstrap_servers: {kafka}\n  group_id: {group}\n  client: {{ queued.max.messages.kbytes: 1024, \
             fetch.message.max.bytes: 200000 }}\nhandlers:\n  file: {{ folder: handlers.d }}\n\
             plugins: {{ folder: plugins, cache: cache, allow_unsigned: true }}\nprocessing:\n  \
             commit_interval: 200ms\n  memory: 1MiB\n  offset_out_of_range: {policy}\n"
        ),
    );
    harness.workdir.plugins(&["misbehave"]);
    harness.workdir.spec(
        "copy",
        &format!(
            "plugin: misbehave\nversion: \"*\"\nroute: {{ topics: [{}] }}\nworkers: 1\n\
             config: {{ rules: [ {{ when: {{ one_in: 1 }}, do: sleep, for: 400ms }} ] }}\n",
            harness.topic
        ),
    );
    let large = (0..100).map(|n| Outgoing::new(&format!("k{n}"), vec![b'x'; 150_000]).partition(0));
    harness.client.produce(&harness.topic, large);
    let service = Service::ready(&harness.workdir, &[]);
    service.wait_outcomes("copy", "ack", 2, DEADLINE);
    harness.client.delete_before(&harness.topic, [(0, 90)]);
    let gone = || {
        let metrics = service.metrics()?;
        let labels = [("topic", harness.topic.as_str()), ("partition", "0")];
        Ok::<u64, String>(metrics.sum("sluicegate_records_gone_total", &labels) as u64)
    };
    let gone = match policy {
        "stop" => 0,
        _ => wait_for("offsets to be counted as gone", DEADLINE, || {
            match gone()? {
                0 => Err("none".to_owned()),
                gone => Ok(gone),
            }
        }),
    };
    (harness, service, gone)
}

#[test]
fn retention_during_processing_continues_at_the_beginning_if_configured() {
    let (harness, mut service, gone) = overtaken("earliest");
    harness
        .client
        .wait_committed(&harness.group, &harness.topic, DEADLINE);
    service.wait_caught_up(DEADLINE);
    assert!((60..90).contains(&gone), "{gone} offsets");
    assert_eq!(service.outcomes("copy", "ack"), Ok(100 - gone));
    let row = &service.partitions().expect("partitions")[0];
    assert_eq!(
        (&row["state"], row["gone"].as_u64()),
        (&"running".into(), Some(gone))
    );
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn retention_during_processing_continues_at_the_end_if_configured() {
    let (harness, mut service, gone) = overtaken("latest");
    harness
        .client
        .wait_committed(&harness.group, &harness.topic, DEADLINE);
    assert_eq!(service.outcomes("copy", "ack"), Ok(100 - gone));
    harness.client.produce(&harness.topic, records(0, 0..3));
    service.wait_outcomes("copy", "ack", 103 - gone, DEADLINE);
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn retention_during_processing_stops_the_partition_visibly() {
    let (harness, mut service, _) = overtaken("stop");
    let row = wait_for("the partition to stop", DEADLINE, || {
        let row = service.partitions()?.remove(0);
        match row["state"].as_str() {
            Some("stopped") if row["in_flight"] == 0 => Ok(row),
            _ => Err(row.to_string()),
        }
    });
    let frontier = row["frontier"].as_i64().expect("a frontier");
    let reason = row["reason"].as_str().expect("a reason");
    let words = format!(
        "offset {frontier} has left the log, which begins at 90 and ends at 100: {} offsets are gone",
        90 - frontier
    );
    assert_eq!(reason, words);
    assert_eq!(row["lag"].as_i64(), Some(100 - frontier));
    let (ready, body) = service.get("/readyz").expect("an answer");
    let place = format!("partition {}/0 is stopped", harness.topic);
    assert!(ready == 200 && body.contains(&place), "{ready}: {body}");
    let status = service.api("status").expect("a status");
    assert!(status["problems"].to_string().contains(&place), "{status}");
    let metrics = service.metrics().expect("metrics");
    let stopped = [("topic", harness.topic.as_str()), ("state", "stopped")];
    assert_eq!(metrics.sum("sluicegate_partition_state", &stopped), 1.0);
    let lag = metrics.sum("sluicegate_partition_lag_records", &stopped[..1]);
    assert_eq!(lag as i64, 100 - frontier);
    assert!(service.stop(DEADLINE).success());
    assert_eq!(harness.committed(), [frontier], "no offset was skipped");

    // The operator accepts the loss.
    let accepted = ["--set", "processing.offset_out_of_range=earliest"];
    let mut service = Service::ready(&harness.workdir, &accepted);
    harness
        .client
        .wait_committed(&harness.group, &harness.topic, DEADLINE);
    assert_eq!(service.outcomes("copy", "ack"), Ok(10));
    assert!(service.stop(DEADLINE).success());
}

/// Flips one byte in the middle of the second batch of a partition's log; another call restores it.
fn damage(folder: &std::path::Path) {
    let log = folder.join("00000000000000000000.log");
    let mut bytes = std::fs::read(&log).expect("a log");
    let length = |at: usize| {
        let field = bytes[at + 8..at + 12].try_into().expect("four bytes");
        12 + i32::from_be_bytes(field) as usize
    };
    let second = length(0);
    let place = second + length(second) - 5;
    bytes[place] ^= 0x40;
    std::fs::write(&log, bytes).expect("the log is written");
}

#[test]
fn corrupt_data_holds_its_partition_until_it_can_be_read() {
    let mut kafka =
        Kafka::start(&KafkaOptions::default()).unwrap_or_else(|error| panic!("{error:#}"));
    let harness = Harness::on(kafka.bootstrap(), 1);
    for batch in 0..3 {
        let ten = batch * 10..(batch + 1) * 10;
        harness.client.produce(&harness.topic, records(0, ten));
    }
    let folder = kafka.log_folder(0, &harness.topic, 0);
    let restart = |kafka: &mut Kafka| {
        kafka
            .stop_node(0, Signal::TERM)
            .and_then(|()| {
                damage(&folder);
                kafka.start_node(0)
            })
            .unwrap_or_else(|error| panic!("{error:#}"));
    };
    restart(&mut kafka);
    let mut service = Service::ready(&harness.workdir, &[]);
    service.wait_outcomes("copy", "ack", 10, DEADLINE);
    let reason = wait_for("the damage to show", DEADLINE, || {
        let row = service.partitions()?.remove(0);
        match row["state"].as_str() {
            Some("unreadable") => Ok(row["reason"].to_string()),
            _ => Err(row.to_string()),
        }
    });
    assert!(
        reason.contains("data at offset 10 cannot be read"),
        "{reason}"
    );
    let explained = service.api(&format!("explain/{}/0", harness.topic));
    let explained = explained.expect("an explanation");
    assert_eq!(explained["status"], "unreadable", "{explained}");
    stays("the hold", Duration::from_secs(4), || {
        match service.consumed()? {
            10 => Ok(()),
            more => Err(format!("{more} records")),
        }
    });
    restart(&mut kafka);
    harness
        .client
        .wait_committed(&harness.group, &harness.topic, DEADLINE * 2);
    service.wait_caught_up(DEADLINE);
    let mut copies: Vec<String> = harness
        .client
        .read(&harness.copies)
        .iter()
        .map(|copy| copy.text())
        .collect();
    copies.sort_by_key(|text| text.parse::<i32>().unwrap_or(-1));
    let all: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    assert_eq!(copies, all);
    assert!(service.stop(DEADLINE).success());
}
