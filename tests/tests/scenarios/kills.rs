//! Situation: two processes in one group are killed at random moments while records flow; and a broker revokes the Read
//! permission for seconds while members join and leave.
//! Property: no record is lost or invented, the records of a key start in order within each ownership, and the number of duplicates
//! stays within the bound of G3 (G1, G3, G4, G5).
//! Needs: Kafka of its own.
//! Takes: 80 s.
//! Command: `cargo xtask test --scenario kills`, and with `--long` 300,000 records and 20 kills

use std::collections::BTreeMap;
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

/// Checks the copies against the source, and returns the number of duplicates.
fn check(client: &Client, source: &str, copy: &str) -> u64 {
    let written: BTreeMap<(i32, i64), Read> = client
        .read(source)
        .into_iter()
        .map(|record| ((record.partition, record.offset), record))
        .collect();
    let mut copies: BTreeMap<(i32, i64), u64> = BTreeMap::new();
    // The last offset of each key in the order of the copies: a lower one means a new ownership or an error.
    let mut last: BTreeMap<Vec<u8>, (i64, u64)> = BTreeMap::new();
    let mut faults = Vec::new();
    for record in client.read(copy) {
        let (partition, offset, epoch) = origin(&record);
        let Some(original) = written.get(&(partition, offset)) else {
            panic!("invented: {partition}/{offset}")
        };
        assert_eq!(
            (&record.key, &record.value),
            (&original.key, &original.value),
            "changed: {partition}/{offset}"
        );
        *copies.entry((partition, offset)).or_default() += 1;
        let key = record.key.clone().expect("a key");
        if let Some((before, in_epoch)) = last.insert(key, (offset, epoch))
            && offset <= before
            && in_epoch == epoch
            && copies[&(partition, offset)] == 1
        {
            faults.push(format!(
                "{partition}/{offset} after {before} in epoch {epoch}"
            ));
        }
    }
    let lost: Vec<_> = written
        .keys()
        .filter(|place| !copies.contains_key(place))
        .collect();
    assert!(
        lost.is_empty(),
        "{} lost, first {:?}",
        lost.len(),
        lost.iter().take(10).collect::<Vec<_>>()
    );
    assert!(
        faults.is_empty(),
        "{} out of order, first {:?}",
        faults.len(),
        faults.iter().take(10).collect::<Vec<_>>()
    );
    copies.values().map(|count| count - 1).sum()
}

fn record(number: u64) -> Outgoing {
    Outgoing::new(&format!("k{}", number % 1000), number.to_string())
}

/// A random seed, which a failure reports.
fn seed() -> u64 {
    let clock = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a clock after 1970");
    clock.as_nanos() as u64 | 1
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn kills_at_random_moments_lose_nothing() {
    let (records, kills) = if long() {
        (300_000_u64, 20_u64)
    } else {
        (60_000, 5)
    };
    let extra = vec![("group.min.session.timeout.ms".to_owned(), "1000".to_owned())];
    let kafka = Kafka::start(&KafkaOptions {
        extra,
        ..KafkaOptions::default()
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
    let client = Client::new(kafka.bootstrap());
    client.create_topic("source", PARTITIONS);
    client.create_topic("copy", PARTITIONS);
    let workdir = workdir(kafka.bootstrap(), "killed", CLIENT, "source", "copy");
    let mut services = [Service::ready(&workdir, &[]), Service::ready(&workdir, &[])];
    let mut state = seed();
    println!("seed {state:#x}");
    let copied = |count: u64| {
        wait_for("the copies", DEADLINE, || match client.count("copy") {
            now if now >= count => Ok(()),
            now => Err(format!("{now} of {count}")),
        });
    };
    std::thread::scope(|scope| {
        let produced = scope.spawn(|| {
            // Only slightly ahead of the copies, so that the load lasts as long as the kills.
            let part = records / (kills * 10);
            for start in (0..records).step_by(part as usize) {
                client.produce("source", (start..(start + part).min(records)).map(record));
                copied(start);
            }
        });
        let share = records / (kills + 1);
        for kill in 0..kills {
            copied(kill * share + next(&mut state) % share);
            let victim = (next(&mut state) % 2) as usize;
            services[victim].process().kill();
            services[victim] = Service::start(&workdir, &[]);
        }
        produced.join().expect("the producer");
    });
    client.wait_committed("killed", "source", DEADLINE);
    for service in &mut services {
        assert!(service.stop(DEADLINE).success());
    }
    assert_eq!(client.count("source"), records);
    let repeated = check(&client, "source", "copy");
    let bound = kills * MAX_UNCOMMITTED * PARTITIONS as u64;
    println!("{kills} kills, {records} records, {repeated} handled again (bound {bound})");
    assert!(
        repeated <= bound,
        "{repeated} handled again, the bound is {bound}"
    );
}

#[test]
fn a_read_permission_that_is_revoked_and_restored_loses_nothing() {
    let extra = vec![("group.min.session.timeout.ms".to_owned(), "1000".to_owned())];
    let options = KafkaOptions {
        secured: true,
        authorizer: true,
        extra,
        ..KafkaOptions::default()
    };
    let kafka = Kafka::start(&options).unwrap_or_else(|error| panic!("{error:#}"));
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
