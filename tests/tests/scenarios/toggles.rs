//! Situation: 20,000 records per second flow through a handler whose gate is toggled repeatedly by keys in etcd, in
//! ZooKeeper, and in etcd for a service on ZooKeeper with a bridge between them, next to a handler whose gate stays open.
//! Property: a toggle takes effect within 1 s of the write's acknowledgement, through the bridge within 1.5 s (p99); each toggle
//! switches each partition at one offset; every record is handled or counted as skipped, none is lost, and the other handler is
//! not affected (G10). The gate of an unhealthy handler opens once it is healthy.
//! Needs: Kafka, ZooKeeper and etcd of its own.
//! Command: `cargo xtask test --scenario toggles`; `--long` moves each gate 1,000 times.

use std::sync::Arc;
use std::time::Duration;

use sluicegate_bridge::{Bridge, BridgeSettings, BridgeStores};
use sluicegate_config::control::ControlKey;
use sluicegate_config::service::{BridgeConfig, EtcdSettings, ZooKeeperSettings};
use sluicegate_store::{OpenStore, Store};

use crate::toggling::{DEADLINE, Flow, put};
use e2e::client::{Client, Outgoing};
use e2e::etcd::{Etcd, EtcdOptions};
use e2e::kafka::Kafka;
use e2e::service::{Service, run_binary};
use e2e::wait::wait_for;
use e2e::workdir::Workdir;
use e2e::zookeeper::{ZooKeeper, ZooKeeperOptions};
use e2e::{control, long, unique};

fn own_etcd() -> Etcd {
    Etcd::start_own(&EtcdOptions::default()).unwrap_or_else(|error| panic!("{error:#}"))
}

fn own_zookeeper() -> ZooKeeper {
    ZooKeeper::start_own(&ZooKeeperOptions::default()).unwrap_or_else(|error| panic!("{error:#}"))
}

#[test]
fn a_gate_in_etcd_switches_each_partition_at_one_offset() {
    let etcd = own_etcd();
    let settings = EtcdSettings::new(&etcd.endpoints());
    let store = settings.open().unwrap_or_else(|error| panic!("{error}"));
    let handlers = format!("etcd: {{ endpoints: [\"{}\"] }}", etcd.endpoint());
    move_gate("etcd", &handlers, &*store, &*store, 1_000);
}

#[test]
fn a_gate_in_zookeeper_switches_each_partition_at_one_offset() {
    let zookeeper = own_zookeeper();
    let settings = ZooKeeperSettings::new(zookeeper.connect());
    let store = settings.open().unwrap_or_else(|error| panic!("{error}"));
    let handlers = format!("zookeeper: {{ servers: \"{}\" }}", zookeeper.connect());
    move_gate("ZooKeeper", &handlers, &*store, &*store, 1_000);
}

#[test]
fn a_gate_in_etcd_switches_a_service_on_zookeeper_through_a_bridge() {
    let (etcd, zookeeper) = (own_etcd(), own_zookeeper());
    let config = BridgeConfig::new(
        EtcdSettings::new(&etcd.endpoints()),
        ZooKeeperSettings::new(zookeeper.connect()),
    );
    let open = || BridgeStores::open(&config).unwrap_or_else(|error| panic!("{error}"));
    let bridge = Bridge::start(open(), BridgeSettings::new(&config));
    let _bridge = bridge.unwrap_or_else(|error| panic!("{error}"));
    let sides = open().sides;
    let handlers = format!("zookeeper: {{ servers: \"{}\" }}", zookeeper.connect());
    move_gate("bridge", &handlers, &*sides.etcd, &*sides.zookeeper, 1_500);
}

/// Toggles a gate repeatedly by keys in `written`, in a service that reads `read`.
fn move_gate(name: &str, handlers: &str, written: &dyn Store, read: &dyn Store, p99_ms: i64) {
    let mut flow = Flow::start(handlers, written, read);
    for _ in 0..if long() { 1_000 } else { 30 } {
        flow.toggle(written);
    }
    let reckoning = flow.reckon();
    let mut sorted = reckoning.latencies_ms;
    sorted.sort_unstable();
    let at = |share: usize| sorted[(sorted.len() * share / 100).min(sorted.len() - 1)];
    let (p50, p99, max) = (at(50), at(99), at(100));
    println!(
        "{name}: {} toggles over {} records: p50 {p50} ms, p99 {p99} ms, max {max} ms from the write's \
         acknowledgement until the last partition had switched; the other handler waited {} ms at most",
        sorted.len(),
        reckoning.sent,
        reckoning.longest_gap.as_millis()
    );
    assert!(p99 < p99_ms, "p99 {p99} ms");
    assert!(reckoning.longest_gap < Duration::from_secs(3));
}

/// Health checks run every 5 s and held gates are checked every second; a refused change is retried only after 30 s.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(20);

/// The environment of a service on etcd with one handler, `one`, for a topic with one partition; tests write its spec.
struct Stage {
    client: Client,
    store: Arc<dyn Store>,
    source: String,
    workdir: Workdir,
    _etcd: Etcd,
}

impl Stage {
    fn new() -> Self {
        let etcd = own_etcd();
        let store = EtcdSettings::new(&etcd.endpoints()).open();
        let kafka = Kafka::shared();
        let client = Client::new(kafka.bootstrap());
        let source = unique("source");
        client.create_topic(&source, 1);
        let handlers = format!("etcd: {{ endpoints: [\"{}\"] }}", etcd.endpoint());
        let workdir = control::workdir(kafka.bootstrap(), &unique("group"), &handlers);
        workdir.plugins(&["misbehave"]);
        Self {
            client,
            store: store.unwrap_or_else(|error| panic!("{error}")),
            source,
            workdir,
            _etcd: etcd,
        }
    }

    fn write_spec(&self, config: &str) {
        let source = &self.source;
        let spec = format!(
            "name: one\nplugin: misbehave\nversion: \"*\"\nroute: {{ topics: [{source}] }}\nconfig: {config}\n"
        );
        put(&*self.store, &ControlKey::Spec("one".into()), &spec);
    }

    fn produce(&self) {
        self.client.produce(&self.source, [Outgoing::new("k", "v")]);
    }
}

/// Whether the service reports this value for its handler.
fn says(service: &Service, field: &str, expected: &str) -> Result<(), String> {
    let handler = service.api("handlers/one")?;
    match handler[field].as_str() {
        Some(value) if value == expected => Ok(()),
        other => Err(format!("{field}: {other:?}")),
    }
}

#[test]
fn a_gate_written_before_its_spec_deploys_the_handler_disabled() {
    let stage = Stage::new();
    put(&*stage.store, &ControlKey::Enabled("one".into()), "false");
    let service = Service::ready(&stage.workdir, &[]);
    stage.write_spec("{ rules: [] }");
    wait_for("the handler with a closed gate", DEADLINE, || {
        says(&service, "gate", "closed")
    });
    stage.produce();
    service.wait_outcomes("one", "skipped", 1, DEADLINE);
}

#[test]
fn the_gate_of_an_unhealthy_handler_opens_once_it_is_healthy() {
    let stage = Stage::new();
    let flag = stage.workdir.path().join("unhealthy");
    stage.write_spec(&format!("{{ unhealthy_while: {} }}", flag.display()));
    let service = Service::ready(&stage.workdir, &[]);
    let switch = |to: &str| {
        let switched = run_binary(stage.workdir.path(), &["handlers", to, "one", "--wait"]);
        let told = String::from_utf8_lossy(&switched.stderr).into_owned();
        (switched.status.success(), told)
    };
    let (closed, told) = switch("off");
    assert!(closed, "{told}");
    std::fs::write(&flag, "").expect("a file");
    wait_for("the handler to be unhealthy", DEADLINE, || {
        says(&service, "state", "UNHEALTHY")
    });
    let (opened, told) = switch("on");
    assert!(!opened && told.contains("unhealthy on purpose"), "{told}");
    stage.produce();
    service.wait_outcomes("one", "skipped", 1, DEADLINE);
    assert_eq!(says(&service, "gate", "held"), Ok(()));
    let (status, why) = service.get("/readyz").expect("an answer");
    assert!(
        status == 503 && why.contains("unhealthy on purpose"),
        "{status} {why}"
    );
    std::fs::remove_file(&flag).expect("the file exists");
    // Sooner than the retry of a refused change.
    wait_for("the gate to open", RECOVERY_DEADLINE, || {
        says(&service, "gate", "open")
    });
    stage.produce();
    service.wait_outcomes("one", "ack", 1, DEADLINE);
    assert_eq!(service.outcomes("one", "skipped"), Ok(1));
}
