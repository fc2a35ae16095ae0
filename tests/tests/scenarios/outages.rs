//! Situation: 20,000 records per second flow through a service whose store becomes unavailable in every known way, while a gate
//! is toggled.
//! Property: a toggle during an outage takes effect within 5 s of recovery, each toggle switches each partition once and none is
//! applied backwards, the service stays ready, and records flow throughout (G10).
//! Needs: Kafka, ZooKeeper and etcd of its own.
//! Takes: 80 s.
//! Command: `cargo xtask test --scenario outages`; `--long` pauses for 40 s and cuts for 60 s.

use std::sync::Arc;
use std::time::Duration;

use sluicegate_config::control::ControlKey;
use sluicegate_config::service::{EtcdSettings, ZooKeeperSettings};
use sluicegate_store::{OpenStore, Store};

use crate::toggling::{DEADLINE, Flow, put};
use e2e::etcd::{Etcd, EtcdOptions};
use e2e::process::Signal;
use e2e::proxy::{Protocol, Proxy, Traffic};
use e2e::wait::{stays, wait_for};
use e2e::zookeeper::{ZooKeeper, ZooKeeperOptions};
use e2e::{long, now_ms};

/// Time limit for a toggle to take effect after recovery, in milliseconds.
const HEALED_MS: i64 = 5_000;
/// Longest time without a record through the handler whose gate is not toggled.
const MAX_GAP: Duration = Duration::from_secs(3);

/// Settings of both stores: requests fail soon, and the re-list is too rare to repair a missed toggle in time.
const TIMEOUTS: &str = "request_timeout: 2s, relist: 30s";

struct Outages {
    flow: Flow,
    names: Vec<&'static str>,
}

impl Outages {
    fn start(handlers: &str, store: &dyn Store) -> Self {
        Self {
            flow: Flow::start(handlers, store, store),
            names: Vec::new(),
        }
    }

    /// Waits until the service reports since when its store is unavailable.
    fn await_loss(&self) {
        wait_for("the loss of the store to show", DEADLINE, || {
            let metrics = self.flow.service.metrics()?;
            match metrics.sum("sluicegate_control_plane_unreachable_seconds", &[]) {
                away if away > 0.0 => Ok(()),
                away => Err(format!("away for {away} s")),
            }
        });
    }

    /// Lets the outage last for a while, in which the service must stay ready.
    fn endure(&self, long_form_s: u64) {
        let span = if long() { long_form_s } else { 3 };
        stays("the service", Duration::from_secs(span), || {
            match self.flow.service.get("/readyz")? {
                (200, _) => Ok(()),
                (status, text) => Err(format!("{status}: {text}")),
            }
        });
    }

    /// To call after an outage during which the gate was toggled.
    fn healed(&mut self, name: &'static str) {
        if let Some(last) = self.flow.toggles.last_mut() {
            last.since_ms = now_ms();
        }
        self.flow.await_switch();
        self.names.push(name);
    }

    /// Toggles the gate as soon as the store answers again.
    fn moved_at_once(&mut self, name: &'static str, store: &dyn Store) {
        self.flow.toggle(store);
        self.names.push(name);
    }

    fn reckon(self, store: &str) {
        let reckoning = self.flow.reckon();
        assert_eq!(self.names.len(), reckoning.latencies_ms.len());
        for (name, latency) in self.names.iter().zip(&reckoning.latencies_ms) {
            println!("    {store}: {name}: in effect {latency} ms after recovery");
            assert!(*latency < HEALED_MS, "{name}: {latency} ms");
        }
        println!(
            "    {store}: {} records, the steady handler waited {} ms at most",
            reckoning.sent,
            reckoning.longest_gap.as_millis()
        );
        assert!(reckoning.longest_gap < MAX_GAP);
    }
}

fn open_etcd(endpoints: &[&str]) -> Arc<dyn Store> {
    let store = EtcdSettings::new(endpoints).open();
    store.unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn records_flow_while_etcd_is_restarted_paused_compacted_and_cut_off() {
    let mut etcd =
        Etcd::start_own(&EtcdOptions::default()).unwrap_or_else(|error| panic!("{error:#}"));
    let target = etcd.endpoint().trim_start_matches("http://");
    let proxy = Proxy::start(target, Protocol::Etcd).unwrap_or_else(|error| panic!("{error:#}"));
    let store = open_etcd(&[etcd.endpoint()]);
    let handlers = format!(
        "etcd: {{ endpoints: [\"http://{}\"], {TIMEOUTS} }}",
        proxy.address()
    );
    let mut outages = Outages::start(&handlers, &*store);

    etcd.kill(0);
    outages.await_loss();
    outages.endure(10);
    etcd.start_again(0)
        .unwrap_or_else(|error| panic!("{error:#}"));
    outages.moved_at_once("restarted", &*store);

    etcd.signal(0, Signal::STOP);
    outages.await_loss();
    outages.endure(40);
    etcd.signal(0, Signal::CONT);
    outages.moved_at_once("paused", &*store);

    proxy.set(Traffic::Cut);
    outages.await_loss();
    outages.flow.move_gate(&*store);
    let newer = ControlKey::Enabled("another".into());
    put(&*store, &newer, "false");
    let tree = store.list().unwrap_or_else(|error| panic!("{error}"));
    etcd.compact(tree.revision);
    proxy.set(Traffic::Flowing);
    outages.healed("compacted");

    proxy.set(Traffic::Stalled);
    outages.await_loss();
    outages.flow.move_gate(&*store);
    outages.endure(60);
    proxy.set(Traffic::Flowing);
    outages.healed("network cut");
    outages.reckon("etcd");
}

#[test]
fn records_flow_while_members_of_etcd_are_removed() {
    let etcd = Etcd::start_own(&EtcdOptions {
        nodes: 3,
        ..EtcdOptions::default()
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
    let endpoints = etcd.endpoints();
    let store = open_etcd(&endpoints[..1]);
    // The service starts with a random one, most probably one that is removed.
    let handlers = format!("etcd: {{ endpoints: {endpoints:?}, {TIMEOUTS} }}");
    let mut outages = Outages::start(&handlers, &*store);
    for (node, name) in [
        ("node-2", "a member removed"),
        ("node-1", "another one removed"),
    ] {
        etcd.remove_member(node, DEADLINE);
        outages.moved_at_once(name, &*store);
    }
    outages.reckon("etcd of three");
}

#[test]
fn records_flow_while_zookeeper_is_restarted_paused_and_cut_off_until_its_session_expires() {
    let mut zookeeper = ZooKeeper::start_own(&ZooKeeperOptions::default())
        .unwrap_or_else(|error| panic!("{error:#}"));
    let proxy = Proxy::start(zookeeper.connect(), Protocol::ZooKeeper)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let store = ZooKeeperSettings::new(zookeeper.connect()).open();
    let store = store.unwrap_or_else(|error| panic!("{error}"));
    let handlers = format!(
        "zookeeper: {{ servers: \"{}\", session_timeout: 4s, {TIMEOUTS} }}",
        proxy.address()
    );
    let mut outages = Outages::start(&handlers, &*store);
    let members = |wanted: usize| {
        wait_for("the member's node", DEADLINE, || match store.members() {
            Ok(members) if members.len() == wanted => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };

    zookeeper
        .restart()
        .unwrap_or_else(|error| panic!("{error:#}"));
    outages.moved_at_once("restarted", &*store);

    zookeeper.signal(Signal::STOP);
    outages.await_loss();
    outages.endure(40);
    zookeeper.signal(Signal::CONT);
    outages.moved_at_once("paused", &*store);

    members(1);
    proxy.set(Traffic::Stalled);
    outages.await_loss();
    // The server removes the node with the session.
    members(0);
    outages.flow.move_gate(&*store);
    proxy.set(Traffic::Flowing);
    outages.healed("session expired");

    members(1);
    proxy.set(Traffic::Stalled);
    outages.await_loss();
    outages.flow.move_gate(&*store);
    outages.endure(60);
    proxy.set(Traffic::Flowing);
    outages.healed("network cut");
    outages.reckon("ZooKeeper");
}
