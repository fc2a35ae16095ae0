//! Situation: 20,000 records a second flow through a handler whose gate is opened and shut again and again by keys in etcd, then
//! in ZooKeeper, beside a handler that nobody touches.
//! Property: a gate acts within 1 s of the write's acknowledgement (p99); each toggle switches over at one offset a partition;
//! every record is handled or counted as skipped, none is lost, and the other handler does not notice (G10).
//! Needs: Kafka, ZooKeeper and etcd of its own.
//! Command: `cargo xtask test --scenario toggles`

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use e2e::client::{Client, Outgoing};
use e2e::etcd::{Etcd, EtcdOptions};
use e2e::kafka::Kafka;
use e2e::service::Service;
use e2e::wait::wait_for;
use e2e::zookeeper::{ZooKeeper, ZooKeeperOptions};
use e2e::{control, long, unique};
use sluicegate_config::store::{ControlKey, EtcdSettings, Expected, Store, ZooKeeperSettings};

const PARTITIONS: i32 = 6;
const RATE: u64 = 20_000;
const SOON: Duration = Duration::from_secs(120);
/// What is treated in a new state before the next toggle: enough that every partition has some of it.
const SEEN: u64 = 2_000;
const P99_MS: i64 = 1_000;

#[test]
fn a_gate_in_etcd_switches_each_partition_at_one_offset() {
    let etcd = Etcd::start_own(&EtcdOptions::default()).unwrap_or_else(|error| panic!("{error:#}"));
    let settings = EtcdSettings::new(&etcd.endpoints());
    let store = settings.open().unwrap_or_else(|error| panic!("{error}"));
    let handlers = format!("etcd: {{ endpoints: [\"{}\"] }}", etcd.endpoint());
    toggle("etcd", &*store, &handlers);
}

#[test]
fn a_gate_in_zookeeper_switches_each_partition_at_one_offset() {
    let zookeeper = ZooKeeper::start_own(&ZooKeeperOptions::default())
        .unwrap_or_else(|error| panic!("{error:#}"));
    let settings = ZooKeeperSettings::new(zookeeper.connect());
    let store = settings.open().unwrap_or_else(|error| panic!("{error}"));
    let handlers = format!("zookeeper: {{ servers: \"{}\" }}", zookeeper.connect());
    toggle("ZooKeeper", &*store, &handlers);
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}

fn write(store: &dyn Store, key: &ControlKey, value: &str) {
    store
        .write(key, Some(value.as_bytes()), Expected::Any)
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Records numbered from 0 at the rate, until told to stop; each carries its number, and when it was made.
fn records(stop: Arc<AtomicBool>) -> impl Iterator<Item = Outgoing> {
    let begun = Instant::now();
    (0u64..)
        .take_while(move |_| !stop.load(Ordering::Relaxed))
        .map(move |number| {
            let due = Duration::from_micros(number * 1_000_000 / RATE);
            // Pacing is the load of this scenario; nothing waits for it.
            if number % 100 == 0 {
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
            let partition = i32::try_from(number % PARTITIONS as u64).expect("it is small");
            let value = format!("{number}:{}", now_ms());
            Outgoing::new(&format!("k{}", number % 1_009), value).partition(partition)
        })
}

struct Toggle {
    open: bool,
    acknowledged_ms: i64,
}

fn toggle(name: &str, store: &dyn Store, handlers: &str) {
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (source, copy, group) = (unique("toggled"), unique("copy"), unique("group"));
    client.create_topic(&source, PARTITIONS);
    // The broker's clock says when a copy came; the handler keeps the record's own time.
    let append_time = [("message.timestamp.type", "LogAppendTime")];
    client.create_topic_with(&copy, PARTITIONS, 1, &append_time);
    let workdir = control::workdir(kafka.bootstrap(), &group, handlers);
    workdir.plugins(&["relay", "misbehave"]);
    let relay = format!(
        "name: relayed\nplugin: relay\nversion: \"*\"\nroute: {{ topics: [{source}] }}\nconfig: {{ topic: {copy} }}\n"
    );
    let steady = format!(
        "name: steady\nplugin: misbehave\nversion: \"*\"\nroute: {{ topics: [{source}] }}\nconfig: {{ rules: [] }}\n"
    );
    write(store, &ControlKey::Spec("relayed".into()), &relay);
    write(store, &ControlKey::Spec("steady".into()), &steady);
    let mut service = Service::ready(&workdir, &[]);

    let stop = Arc::new(AtomicBool::new(false));
    let producer = {
        let (stop, source) = (Arc::clone(&stop), source.clone());
        let client = Client::new(kafka.bootstrap());
        std::thread::spawn(move || client.produce(&source, records(stop)))
    };
    service.wait_outcomes("relayed", "ack", SEEN, SOON);
    let toggles = toggles(store, &service, if long() { 1_000 } else { 30 });
    stop.store(true, Ordering::Relaxed);
    let sent = producer.join().expect("the producer ends");
    client.wait_committed(&group, &source, SOON);
    let counted = |handler: &str, outcome: &str| {
        let counted = service.outcomes(handler, outcome);
        counted.unwrap_or_else(|error| panic!("{error}"))
    };
    assert_eq!(counted("steady", "ack"), sent);
    let (acked, skipped) = (counted("relayed", "ack"), counted("relayed", "skipped"));
    assert_eq!(acked + skipped, sent, "handled {acked}, skipped {skipped}");
    assert!(service.stop(SOON).success());

    let latencies = latencies(&client, &source, &copy, &toggles, sent, acked);
    report(name, sent, &latencies);
}

/// Moves the gate; each time both states have been seen at work before the next.
fn toggles(store: &dyn Store, service: &Service, count: usize) -> Vec<Toggle> {
    let key = ControlKey::Enabled("relayed".into());
    let mut done = Vec::new();
    for number in 0..count {
        let open = number % 2 == 1;
        let outcome = if open { "ack" } else { "skipped" };
        let before = service.outcomes("relayed", outcome).unwrap_or(0);
        write(store, &key, if open { "true" } else { "false" });
        done.push(Toggle {
            open,
            acknowledged_ms: now_ms(),
        });
        service.wait_outcomes("relayed", outcome, before + SEEN, SOON);
    }
    done
}

/// For each toggle, how long after its acknowledgement the last partition had switched.
fn latencies(
    client: &Client,
    source: &str,
    copy: &str,
    toggles: &[Toggle],
    sent: u64,
    acked: u64,
) -> Vec<i64> {
    let mut made_ms: BTreeMap<i32, Vec<(u64, i64)>> = BTreeMap::new();
    client.for_each(source, |record| {
        let (number, made) = parts(&record.text());
        made_ms
            .entry(record.partition)
            .or_default()
            .push((number, made));
    });
    let mut copied_ms: BTreeMap<u64, i64> = BTreeMap::new();
    client.for_each(copy, |record| {
        let (number, _) = parts(&record.text());
        let twice = copied_ms.insert(number, record.timestamp_ms);
        assert!(twice.is_none(), "record {number} was handled twice");
    });
    assert_eq!(copied_ms.len() as u64, acked, "a copy an ack");
    assert_eq!(made_ms.values().map(Vec::len).sum::<usize>() as u64, sent);
    let mut worst = vec![i64::MIN; toggles.len()];
    for (partition, records) in &made_ms {
        // Where the state changes, in offset order: one place a toggle.
        let handled = |at: usize| copied_ms.get(&records[at].0);
        let switches: Vec<usize> = (1..records.len())
            .filter(|&at| handled(at).is_some() != handled(at - 1).is_some())
            .collect();
        assert_eq!(switches.len(), toggles.len(), "switch-overs of {partition}");
        for ((at, toggle), worst) in switches.iter().zip(toggles).zip(&mut worst) {
            let switched_ms = match (handled(*at), handled(at - 1)) {
                (Some(first), _) => *first,
                // The last one of before was still under way, or the first one of after was not made yet.
                (None, before) => records[*at].1.max(before.copied().unwrap_or_default()),
            };
            assert_eq!(handled(*at).is_some(), toggle.open);
            *worst = (*worst).max(switched_ms - toggle.acknowledged_ms);
        }
    }
    worst
}

fn parts(text: &str) -> (u64, i64) {
    let parts = text.split_once(':');
    let parts = parts.and_then(|(number, made)| Some((number.parse().ok()?, made.parse().ok()?)));
    parts.unwrap_or_else(|| panic!("{text} is no record of ours"))
}

fn report(name: &str, sent: u64, latencies: &[i64]) {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    let at = |share: usize| sorted[(sorted.len() * share / 100).min(sorted.len() - 1)];
    let (p50, p99, max) = (at(50), at(99), at(100));
    println!(
        "{name}: {} toggles over {sent} records: p50 {p50} ms, p99 {p99} ms, max {max} ms from the write's \
         acknowledgement until the last partition had switched",
        sorted.len()
    );
    assert!(p99 < P99_MS, "p99 {p99} ms");
}

#[test]
fn a_gate_written_before_its_spec_ships_the_handler_dark() {
    let etcd = Etcd::start_own(&EtcdOptions::default()).unwrap_or_else(|error| panic!("{error:#}"));
    let store = EtcdSettings::new(&etcd.endpoints())
        .open()
        .unwrap_or_else(|error| panic!("{error}"));
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (source, group) = (unique("dark"), unique("group"));
    client.create_topic(&source, 1);
    let handlers = format!("etcd: {{ endpoints: [\"{}\"] }}", etcd.endpoint());
    let workdir = control::workdir(kafka.bootstrap(), &group, &handlers);
    workdir.plugins(&["misbehave"]);
    write(&*store, &ControlKey::Enabled("dark".into()), "false");
    let service = Service::ready(&workdir, &[]);
    let spec = format!(
        "name: dark\nplugin: misbehave\nversion: \"*\"\nroute: {{ topics: [{source}] }}\nconfig: {{ rules: [] }}\n"
    );
    write(&*store, &ControlKey::Spec("dark".into()), &spec);
    let gate = || -> Result<(), String> {
        let handler = service.api("handlers/dark")?;
        match handler["gate"].as_str() {
            Some("shut") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    wait_for("the handler behind its gate", SOON, gate);
    client.produce(&source, [Outgoing::new("k", "v")]);
    service.wait_outcomes("dark", "skipped", 1, SOON);
}
