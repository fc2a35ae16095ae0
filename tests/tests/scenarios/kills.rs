//! Situation: records flow through two processes of one group as fast as these copy them, while processes are killed at random moments,
//! some of them while a broker of three is killed or frozen until others lead its partitions; or while processes are stopped; and a
//! broker revokes the Read permission for seconds while members join and leave.
//! Property: no record is lost or invented. The copies of a key are in order within each ownership, and the last ones in order for a
//! reader that keeps the highest epoch of each partition. An owner repeats at most `max_uncommitted` records of a partition after kills
//! and lost partitions, and none after stops (G1, G3, G4, G5).
//! Needs: Kafka of its own.
//! Takes: 80 s.
//! Command: `cargo xtask test --scenario kills`, and with `--long` 300,000 records with 20 kills, 6 of them with a broker, and 30 stops

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use e2e::client::{Client, Outgoing, Read};
use e2e::kafka::{Acl, Kafka, KafkaOptions, PASSWORD, USER};
use e2e::long;
use e2e::process::Signal;
use e2e::service::Service;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;

const PARTITIONS: i32 = 12;
const MAX_UNCOMMITTED: u64 = 500;
const DEADLINE: Duration = Duration::from_secs(120);

/// Dead members are detected quickly.
const CLIENT: &str = "  client: { session.timeout.ms: 3000, heartbeat.interval.ms: 500";

fn workdir(bootstrap: &str, group: &str, client: &str, source: &str, copy: &str) -> Workdir {
    let workdir = Workdir::empty();
    workdir.write(
        "sluicegate.yaml",
        &format!(
            "kafka:\n  bootstrap_servers: {bootstrap}\n  group_id: {group}\n{client} }}\n\
             handlers:\n  file: {{ folder: handlers.d }}\n\
             plugins: {{ folder: plugins, cache: cache, allow_unsigned: true }}\n\
             processing: {{ commit_interval: 200ms, max_uncommitted: {MAX_UNCOMMITTED} }}\n"
        ),
    );
    workdir.plugins(&["relay"]);
    workdir.spec(
        "copy",
        &format!(
            "plugin: relay\nversion: \"*\"\nworkers: 2\nroute: {{ topics: [{source}] }}\n\
             config: {{ topic: {copy}, provenance: true }}\n"
        ),
    );
    workdir
}

/// The partition, offset and epoch from which a copy was made.
fn origin(copy: &Read) -> (i32, i64, u64) {
    let source = copy.header("sluicegate.source").expect("a source");
    let mut parts = source.rsplit('/');
    let offset = parts
        .next()
        .and_then(|text| text.parse().ok())
        .expect("an offset");
    let partition = parts
        .next()
        .and_then(|text| text.parse().ok())
        .expect("a partition");
    let epoch = copy
        .header("sluicegate.epoch")
        .and_then(|text| text.parse().ok())
        .expect("an epoch");
    (partition, offset, epoch)
}

/// A copy of a record; copies are in the order of the output partitions, in which each key has one.
struct Copy {
    key: Vec<u8>,
    partition: i32,
    offset: i64,
    epoch: u64,
}

/// Reads the copies, each of which must be that of a record, and the places of the records.
fn copies_of(client: &Client, source: &str, copy: &str) -> (BTreeSet<(i32, i64)>, Vec<Copy>) {
    let written: BTreeMap<(i32, i64), Read> = client
        .read(source)
        .into_iter()
        .map(|record| ((record.partition, record.offset), record))
        .collect();
    let of = |record: Read| {
        let (partition, offset, epoch) = origin(&record);
        let Some(original) = written.get(&(partition, offset)) else {
            panic!("invented: {partition}/{offset}")
        };
        assert_eq!(
            (&record.key, &record.value),
            (&original.key, &original.value),
            "changed: {partition}/{offset}"
        );
        Copy {
            key: record.key.expect("a key"),
            partition,
            offset,
            epoch,
        }
    };
    let copies = client.read(copy).into_iter().map(of).collect();
    (written.into_keys().collect(), copies)
}

fn assert_none<T: std::fmt::Debug>(what: &str, found: &[T]) {
    let first = &found[..found.len().min(10)];
    assert!(found.is_empty(), "{} {what}, first {first:?}", found.len());
}

/// Nothing is refused, so each owner copies each record once, and those of a key in their order.
fn assert_order_within_owners(copies: &[Copy]) {
    let mut last: BTreeMap<(&[u8], u64), i64> = BTreeMap::new();
    let mut faults = Vec::new();
    for copy in copies {
        let (partition, offset, epoch) = (copy.partition, copy.offset, copy.epoch);
        let before = last.insert((&copy.key, epoch), offset);
        if let Some(before) = before.filter(|before| *before >= offset) {
            faults.push(format!(
                "{partition}/{offset} after {before} in epoch {epoch}"
            ));
        }
    }
    assert_none("out of order", &faults);
}

/// The last copies of each key are in the order of its records.
fn assert_last_copies_in_order(copies: &[&Copy]) {
    let places = copies.iter().enumerate();
    let last: BTreeMap<(&[u8], i64), usize> = places
        .map(|(place, copy)| ((&*copy.key, copy.offset), place))
        .collect();
    let rows: Vec<_> = last.into_iter().collect();
    let pairs = rows
        .iter()
        .zip(rows.iter().skip(1))
        .filter(|(before, after)| before.0.0 == after.0.0 && before.1 > after.1);
    let faults: Vec<String> = pairs
        .map(|(before, after)| {
            let (before, after) = (copies[before.1], copies[after.1]);
            let (partition, epoch) = (after.partition, after.epoch);
            format!(
                "{partition}/{} in epoch {epoch}, then {} in epoch {}",
                after.offset, before.offset, before.epoch
            )
        })
        .collect();
    assert_none("last copies out of order", &faults);
}

/// The copies that remain if those of an owner behind those of a later one are skipped: an owner that was cut off still writes what
/// its producer has.
fn highest_epochs(copies: &[Copy]) -> Vec<&Copy> {
    let mut highest: BTreeMap<i32, u64> = BTreeMap::new();
    let kept = copies.iter().filter(|copy| {
        let highest = highest.entry(copy.partition).or_default();
        *highest = copy.epoch.max(*highest);
        copy.epoch == *highest
    });
    kept.collect()
}

/// Checks the copies against the source, and returns the number of those that repeat others.
fn check(client: &Client, source: &str, copy: &str) -> u64 {
    let (written, copies) = copies_of(client, source, copy);
    let kept = highest_epochs(&copies);
    let found: BTreeSet<_> = kept
        .iter()
        .map(|copy| (copy.partition, copy.offset))
        .collect();
    assert_none("lost", &written.difference(&found).collect::<Vec<_>>());
    assert_order_within_owners(&copies);
    assert_last_copies_in_order(&kept);
    let mut epochs: BTreeMap<(i32, i64), BTreeSet<u64>> = BTreeMap::new();
    for copy in &copies {
        let place = (copy.partition, copy.offset);
        epochs.entry(place).or_default().insert(copy.epoch);
    }
    let mut repeats: BTreeMap<(i32, u64), u64> = BTreeMap::new();
    for ((partition, _), epochs) in &epochs {
        for epoch in epochs.iter().skip(1) {
            *repeats.entry((*partition, *epoch)).or_default() += 1;
        }
    }
    let most = repeats.values().max().copied().unwrap_or_default();
    println!(
        "{} records, {} copies: {} by earlier owners behind later ones, at most {most} of a partition repeated by an owner",
        written.len(),
        copies.len(),
        copies.len() - kept.len(),
    );
    assert!(most <= MAX_UNCOMMITTED, "{most} repeated by an owner");
    (copies.len() - epochs.len()) as u64
}

fn record(number: u64) -> Outgoing {
    Outgoing::new(&format!("k{}", number % 1000), number.to_string())
}

fn start(options: KafkaOptions) -> Kafka {
    // Members are considered dead early, and so are brokers.
    let extra = [
        ("group.min.session.timeout.ms", "1000"),
        ("broker.session.timeout.ms", "3000"),
        ("broker.heartbeat.interval.ms", "500"),
    ];
    let extra = extra.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let options = KafkaOptions {
        extra: extra.into(),
        ..options
    };
    Kafka::start(&options).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Two processes that copy what flows.
struct Flow {
    // Dropped first: the processes end, and report their logs, before their folder is removed.
    services: [Service; 2],
    client: Client,
    workdir: Workdir,
    random: fastrand::Rng,
}

impl Flow {
    fn start(kafka: &Kafka, group: &str, replicas: i32) -> Self {
        let client = Client::new(kafka.bootstrap());
        let in_sync = (replicas - 1).max(1).to_string();
        for topic in ["source", "copy"] {
            let settings = [("min.insync.replicas", &*in_sync)];
            client.create_topic_with(topic, PARTITIONS, replicas, &settings);
        }
        let workdir = workdir(kafka.bootstrap(), group, CLIENT, "source", "copy");
        let services = [Service::ready(&workdir, &[]), Service::ready(&workdir, &[])];
        Self {
            services,
            client,
            workdir,
            random: e2e::random(),
        }
    }

    /// Writes `records` in as many parts as there are to be `events`, each of which happens at a random moment of its part's copying.
    fn run(&mut self, records: u64, events: u64, mut event: impl FnMut(&mut Self, u64)) {
        let share = records / events;
        for at in 0..events {
            let begin = at * share;
            let moment = begin + self.random.u64(..share);
            let client = self.client.clone();
            std::thread::scope(|scope| {
                scope.spawn(|| client.produce("source", (begin..begin + share).map(record)));
                wait_for("the copies", DEADLINE, || match self.client.count("copy") {
                    now if now >= moment => Ok(()),
                    now => Err(format!("{now} of {moment}")),
                });
                event(self, at);
            });
        }
    }

    /// A random process.
    fn victim(&mut self) -> usize {
        self.random.usize(..2)
    }

    /// Waits until everything is committed, stops the processes, and returns the number of copies that repeat others.
    fn end(&mut self, group: &str, records: u64) -> u64 {
        self.client.wait_committed(group, "source", DEADLINE);
        for service in &mut self.services {
            assert!(service.stop(DEADLINE).success());
        }
        assert_eq!(self.client.count("source"), records);
        check(&self.client, "source", "copy")
    }
}

/// Kills or freezes a broker, and waits until others lead its partitions.
fn take_away(kafka: &mut Kafka, client: &Client, node: usize, how: Signal) {
    match how {
        Signal::STOP => kafka.signal_node(node, how),
        _ => kafka
            .stop_node(node, how)
            .unwrap_or_else(|error| panic!("{error:#}")),
    }
    for topic in ["source", "copy"] {
        wait_for("other leaders", DEADLINE, || {
            let leaders = client.leaders(topic);
            let away = |leader: &i32| *leader < 0 || *leader == node as i32 + 1;
            match leaders.values().any(away) {
                true => Err(format!("{leaders:?}")),
                false => Ok(()),
            }
        });
    }
}

fn bring_back(kafka: &mut Kafka, client: &Client, node: usize, how: Signal) {
    match how {
        Signal::STOP => kafka.signal_node(node, Signal::CONT),
        _ => kafka
            .start_node(node)
            .unwrap_or_else(|error| panic!("{error:#}")),
    }
    for topic in ["source", "copy"] {
        client.await_in_sync(topic);
    }
}

#[test]
fn kills_of_processes_and_brokers_lose_nothing() {
    let (records, kills, bounces) = if long() {
        (300_000, 20, 6)
    } else {
        (60_000, 5, 2)
    };
    let mut kafka = start(KafkaOptions::three_nodes());
    let mut flow = Flow::start(&kafka, "killed", 3);
    let mut bounced = 0;
    flow.run(records, kills, |flow, kill| {
        let how = [Signal::KILL, Signal::STOP][bounced % 2];
        let node = flow.random.usize(..3);
        let with_broker = (kill + 1) * bounces / kills > kill * bounces / kills;
        if with_broker {
            take_away(&mut kafka, &flow.client, node, how);
        }
        let victim = flow.victim();
        flow.services[victim].process().kill();
        flow.services[victim] = Service::start(&flow.workdir, &[]);
        if with_broker {
            bring_back(&mut kafka, &flow.client, node, how);
            bounced += 1;
        }
    });
    let repeated = flow.end("killed", records);
    let bound = (kills + bounces) * MAX_UNCOMMITTED * PARTITIONS as u64;
    println!("{kills} kills, {bounced} bounces, {repeated} handled again (bound {bound})");
    assert!(
        repeated <= bound,
        "{repeated} handled again, the bound is {bound}"
    );
}

#[test]
fn stops_at_random_moments_repeat_nothing() {
    let (records, stops) = if long() { (300_000, 30) } else { (40_000, 4) };
    let kafka = start(KafkaOptions::default());
    let mut flow = Flow::start(&kafka, "stopped", 1);
    flow.run(records, stops, |flow, _| {
        let victim = flow.victim();
        let status = flow.services[victim].stop(DEADLINE);
        let log = flow.services[victim].process().log();
        assert!(status.success(), "a stop ended with {status}:\n{log}");
        flow.services[victim] = Service::ready(&flow.workdir, &[]);
    });
    let repeated = flow.end("stopped", records);
    println!("{stops} stops, {repeated} handled again");
    assert_eq!(repeated, 0, "handled again");
}

#[test]
fn a_read_permission_that_is_revoked_and_restored_loses_nothing() {
    let kafka = start(KafkaOptions {
        secured: true,
        authorizer: true,
        ..KafkaOptions::default()
    });
    let client = Client::new(kafka.bootstrap());
    client.create_topic("source", PARTITIONS);
    client.create_topic("copy", PARTITIONS);
    let login = format!(
        "{CLIENT}, security.protocol: SASL_PLAINTEXT, sasl.mechanism: PLAIN, sasl.username: {USER}, sasl.password: {PASSWORD}"
    );
    let workdir = workdir(&kafka.login(), "denied", &login, "source", "copy");
    let mut first = Service::ready(&workdir, &[]);
    let rule = Acl::DenyRead {
        topic: "source".to_owned(),
    };
    let mut written = 0;
    let mut produce = |count: u64| {
        client.produce("source", (written..written + count).map(record));
        written += count;
        written
    };
    for round in 0..3 {
        produce(2_000);
        kafka
            .change_acl(&rule, true)
            .unwrap_or_else(|error| panic!("{error:#}"));
        produce(1_000);
        // A member joins and leaves while reading is denied: each rebalance pauses the others.
        let mut other = Service::start(&workdir, &[]);
        wait_for("the other member to start", DEADLINE, || {
            other.api("status").map(drop)
        });
        wait_for("the denial to be seen", DEADLINE, || {
            let log = first.process().log().to_lowercase();
            if log.contains("authoriz") || log.contains("denied") {
                Ok(())
            } else {
                Err("nothing in the log".to_owned())
            }
        });
        if round % 2 == 0 {
            assert!(other.stop(DEADLINE).success());
        } else {
            other.process().signal(Signal::KILL);
        }
        kafka
            .change_acl(&rule, false)
            .unwrap_or_else(|error| panic!("{error:#}"));
        produce(500);
    }
    client.wait_committed("denied", "source", DEADLINE);
    assert!(first.stop(DEADLINE).success());
    assert_eq!(client.count("source"), written);
    let repeated = check(&client, "source", "copy");
    println!("{written} records, {repeated} handled again");
    assert!(
        repeated <= MAX_UNCOMMITTED * PARTITIONS as u64,
        "{repeated} handled again"
    );
}
