//! Situation: partitions start for the first time, again after a restart, in a re-created topic, without a leader,
//! and in another cluster.
//! Property: an offset is valid only in its own topic and no record of a new one is skipped (G2, G12); the starting offset of a
//! partition without a commit is decided once; a later owner's fencing token is higher (G4); no partition delays another (G8).
//! Needs: Kafka of its own.
//! Mostly waits: for leaders and rebalances.
//! Takes: 67 s.
//! Command: `cargo xtask test --scenario beginnings`

use std::collections::BTreeMap;
use std::time::Duration;

use e2e::client::{Client, Outgoing, Read};
use e2e::kafka::{Kafka, KafkaOptions};
use e2e::process::Signal;
use e2e::service::Service;
use e2e::unique;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;

const DEADLINE: Duration = Duration::from_secs(60);
/// Frequent metadata refreshes, so that new partitions and topics are discovered soon.
const OFTEN: &str = "  client: { topic.metadata.refresh.interval.ms: 1000 }";
/// Rare metadata refreshes, so that the client learns of a new topic from its fetches.
const SELDOM: &str = "  client: { topic.metadata.refresh.interval.ms: 300000 }";

struct Copied {
    client: Client,
    workdir: Workdir,
    source: String,
    copy: String,
}

/// A service that copies `source`, a topic with `partitions` partitions, with the provenance of each record.
fn copied(bootstrap: &str, partitions: i32, start: &str, client_keys: &str) -> Copied {
    let client = Client::new(bootstrap);
    let (source, copy, group) = (unique("source"), unique("copy"), unique("group"));
    client.create_topic(&source, partitions);
    client.create_topic(&copy, 1);
    let workdir = Workdir::empty();
    workdir.write(
        "sluicegate.yaml",
        &format!(
            "kafka:\n  bootstrap_servers: {bootstrap}\n  group_id: {group}\n  start: {start}\n{client_keys}\n\
             handlers:\n  file: {{ folder: handlers.d }}\n\
             plugins: {{ folder: plugins, cache: cache, allow_unsigned: true }}\n\
             processing: {{ commit_interval: 200ms }}\n"
        ),
    );
    workdir.plugins(&["relay"]);
    workdir.spec(
        "copy",
        &format!(
            "plugin: relay\nversion: \"*\"\nroute: {{ topics: [{source}] }}\n\
             config: {{ topic: {copy}, provenance: true }}\n"
        ),
    );
    Copied {
        client,
        workdir,
        source,
        copy,
    }
}

impl Copied {
    /// Writes `count` records to each of the partitions, with values prefixed by `name`.
    fn produce(&self, partitions: &[i32], name: &str, count: usize) {
        let records = partitions.iter().flat_map(|&partition| {
            (0..count).map(move |n| {
                Outgoing::new(&format!("k{n}"), format!("{name}-{partition}-{n}"))
                    .partition(partition)
            })
        });
        self.client.produce(&self.source, records);
    }

    /// The number of copies of each value with this prefix.
    fn copies(&self, name: &str) -> BTreeMap<String, usize> {
        let mut copies = BTreeMap::new();
        self.client.for_each(&self.copy, |copy: Read| {
            let value = copy.text();
            if value.starts_with(name) {
                *copies.entry(value).or_default() += 1;
            }
        });
        copies
    }

    /// Waits until `count` records with this prefix are copied, and checks that each is copied once.
    fn await_copies(&self, name: &str, count: usize) {
        wait_for(
            &format!("{count} copies of {name}"),
            DEADLINE,
            || match self.copies(name).len() {
                found if found == count => Ok(()),
                found => Err(format!("{found} copies")),
            },
        );
        let twice: Vec<_> = self
            .copies(name)
            .into_iter()
            .filter(|(_, n)| *n > 1)
            .collect();
        assert!(twice.is_empty(), "copied again: {twice:?}");
    }

    /// The fencing tokens under which a partition's records were handled, in the order of the copies.
    fn tokens(&self, partition: i32) -> Vec<u64> {
        let mut tokens = Vec::new();
        self.client.for_each(&self.copy, |copy: Read| {
            let source = copy.header("sluicegate.source").expect("a source");
            if source.contains(&format!("/{partition}/")) {
                let token = copy.header("sluicegate.epoch").expect("a token");
                tokens.push(token.parse().expect("a number"));
            }
        });
        tokens.dedup();
        tokens
    }
}

/// The client learns from its metadata that the topic was deleted, before the new one exists.
#[test]
fn a_re_created_topic_is_read_from_its_beginning() {
    created_again(OFTEN);
}

/// The client finds another topic under the same name.
#[test]
fn a_topic_replaced_during_use_is_read_from_its_beginning() {
    created_again(SELDOM);
}

/// With `kafka.start: latest`, which must not apply to the new topic.
fn created_again(client_keys: &str) {
    let kafka = Kafka::shared();
    let run = copied(kafka.bootstrap(), 2, "latest", client_keys);
    let mut service = Service::ready(&run.workdir, &[]);
    service.wait_caught_up(DEADLINE);
    run.produce(&[0, 1], "first", 30);
    run.await_copies("first", 60);
    service.wait_caught_up(DEADLINE);

    // Longer than the old log was read, so that the old offset exists in it.
    run.client.delete_topic(&run.source);
    run.client.create_topic(&run.source, 2);
    run.produce(&[0, 1], "second", 60);
    run.await_copies("second", 120);
    wait_for("the metric", DEADLINE, || {
        let recreated = service.metrics()?.sum(
            "sluicegate_topic_recreated_total",
            &[("topic", &run.source)],
        );
        if recreated == 2.0 {
            Ok(())
        } else {
            Err(format!("{recreated} partitions"))
        }
    });
    run.produce(&[0, 1], "third", 10);
    run.await_copies("third", 20);
    let log = service.process().log();
    assert_eq!(log.matches("recreated topic").count(), 1, "{log}");

    // Tokens keep increasing across a restart.
    assert!(service.stop(DEADLINE).success());
    let mut service = Service::ready(&run.workdir, &[]);
    run.produce(&[0, 1], "fourth", 10);
    run.await_copies("fourth", 20);
    assert!(service.stop(DEADLINE).success());
    for partition in [0, 1] {
        let tokens = run.tokens(partition);
        let ascending = tokens.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(tokens.len() >= 3 && ascending, "{tokens:?} (G4)");
    }
}

#[test]
fn latest_is_resolved_once_and_later_partitions_start_at_their_beginning() {
    let kafka = Kafka::shared();
    let run = copied(kafka.bootstrap(), 2, "latest", OFTEN);
    run.produce(&[0, 1], "before", 5);
    let mut service = Service::ready(&run.workdir, &[]);
    service.wait_caught_up(DEADLINE);
    run.produce(&[0], "seen", 5);
    run.await_copies("seen", 5);
    assert!(service.stop(DEADLINE).success());
    // Partition 1 has not had a record yet.
    run.produce(&[0, 1], "between", 10);
    let mut service = Service::ready(&run.workdir, &[]);
    run.await_copies("between", 20);

    run.client.add_partitions(&run.source, 4);
    run.produce(&[2, 3], "added", 20);
    run.await_copies("added", 40);
    assert!(service.stop(DEADLINE).success());
    assert!(
        run.copies("before").is_empty(),
        "`latest` starts after these"
    );
}

#[test]
fn a_partition_without_a_leader_delays_no_other_one() {
    let mut kafka = Kafka::start(&KafkaOptions {
        nodes: 3,
        heap_mb: 320,
        ..KafkaOptions::default()
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
    let run = copied(kafka.bootstrap(), 6, "earliest", OFTEN);
    let all: Vec<i32> = (0..6).collect();
    run.produce(&all, "waiting", 10);
    // The topics have one replica: the stopped node must not lead a partition of `copy`, or writes would fail.
    let leads_copies = run.client.leader(&run.copy, 0);
    let (index, gone) = (1..=3)
        .enumerate()
        .find(|(_, node)| *node != leads_copies)
        .expect("three nodes, one leads the copies");
    let lost = all
        .iter()
        .copied()
        .filter(|partition| run.client.leader(&run.source, *partition) == gone)
        .collect::<Vec<_>>();
    assert!(!lost.is_empty() && lost.len() < all.len(), "{lost:?}");
    kafka
        .stop_node(index, Signal::TERM)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let mut service = Service::start(&run.workdir, &[]);
    let there = all.len() - lost.len();
    wait_for(
        "the partitions that have a leader",
        DEADLINE,
        || match run.copies("waiting").len() {
            found if found == there * 10 => Ok(()),
            found => Err(format!("{found} copies")),
        },
    );
    wait_for("the records of the others", DEADLINE, || {
        let partitions = service.partitions()?;
        let starting = partitions
            .iter()
            .filter(|partition| partition["state"] == "starting")
            .count();
        if starting == lost.len() {
            Ok(())
        } else {
            Err(format!("{partitions:?}"))
        }
    });
    kafka
        .start_node(index)
        .unwrap_or_else(|error| panic!("{error:#}"));
    run.await_copies("waiting", 60);
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn another_cluster_at_the_same_address_stops_the_service_with_a_reason() {
    let options = KafkaOptions::default();
    let mut kafka = Kafka::start(&options).unwrap_or_else(|error| panic!("{error:#}"));
    let run = copied(kafka.bootstrap(), 1, "earliest", OFTEN);
    let mut service = Service::ready(&run.workdir, &[]);
    run.produce(&[0], "first", 10);
    run.await_copies("first", 10);
    kafka
        .replace_cluster(&options)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let status = service
        .process()
        .wait(DEADLINE)
        .unwrap_or_else(|error| panic!("{error:#}"));
    assert!(!status.success(), "{status}");
    let log = service.process().log();
    assert!(log.contains("another Kafka cluster answers"), "{log}");
}
