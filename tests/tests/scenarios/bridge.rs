//! Situation: two bridges between a real etcd and a real ZooKeeper; users edit both sides while both stores are killed and
//! restarted, and one bridge is stopped and another one started; ZooKeeper loses its data, or is restored from a backup.
//! Property: both sides converge; a key edited on one side has that side's last edit; no deleted key comes back;
//! the preferred side wins conflicts, which are counted. Keys that ZooKeeper lost are deleted nowhere, and the advice is right (G10).
//! Needs: Kafka, ZooKeeper and etcd of its own.
//! Command: `cargo xtask test --scenario bridge`; `--long` makes 10,000 edits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate_bridge::{Bridge, BridgeSettings, BridgeStores, DryRunStep, dry_run};
use sluicegate_config::control::{ControlKey, KeyKind, Pair, PathMap, Side};
use sluicegate_config::service::{BridgeConfig, EtcdSettings, ZooKeeperSettings};
use sluicegate_store::{Expected, Store, StoreError};

use crate::stores::put;
use e2e::client::Client;
use e2e::etcd::{Etcd, EtcdOptions};
use e2e::kafka::Kafka;
use e2e::service::Service;
use e2e::wait::{stays, wait_for};
use e2e::workdir::Workdir;
use e2e::zookeeper::{ZooKeeper, ZooKeeperOptions};
use e2e::{long, unique};

const DEADLINE: Duration = Duration::from_secs(20);
/// Time limit for the transfer of an edit, also on a busy machine (G10).
const TRANSFER_DEADLINE: Duration = Duration::from_secs(5);
/// Time limit for convergence after both stores are back and the edits are over.
const CONVERGENCE_DEADLINE: Duration = Duration::from_secs(90);

fn gate(name: &str) -> ControlKey {
    ControlKey::enabled(name).expect("a handler's name")
}

fn delete(store: &dyn Store, key: &ControlKey) {
    let deleted = store.write(key, None, Expected::Any);
    deleted.unwrap_or_else(|error| panic!("{error}"));
}

struct Harness {
    etcd: Etcd,
    zookeeper: ZooKeeper,
    config: BridgeConfig,
    sides: Pair<Arc<dyn Store>>,
}

impl Harness {
    fn start() -> Self {
        let etcd = Etcd::start_own(&EtcdOptions::default());
        let etcd = etcd.unwrap_or_else(|error| panic!("{error:#}"));
        let zookeeper = ZooKeeper::start_own(&ZooKeeperOptions::default());
        let zookeeper = zookeeper.unwrap_or_else(|error| panic!("{error:#}"));
        let mut config = BridgeConfig::new(
            EtcdSettings::new(&etcd.endpoints()),
            ZooKeeperSettings::new(zookeeper.connect()),
        );
        config.resync_interval = Duration::from_secs(5);
        let stores = BridgeStores::open(&config).unwrap_or_else(|error| panic!("{error}"));
        Self {
            etcd,
            zookeeper,
            config,
            sides: stores.sides,
        }
    }

    fn bridge(&self) -> Bridge {
        let stores = BridgeStores::open(&self.config).unwrap_or_else(|error| panic!("{error}"));
        Bridge::start(stores, BridgeSettings::new(&self.config))
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// A bridge that accepts `side`.
    fn accepting_bridge(&self, side: Side) -> Bridge {
        let stores = BridgeStores::open(&self.config).unwrap_or_else(|error| panic!("{error}"));
        let settings = BridgeSettings {
            accept: Pair::from_fn(|one| one == side),
            ..BridgeSettings::new(&self.config)
        };
        Bridge::start(stores, settings).unwrap_or_else(|error| panic!("{error}"))
    }

    fn store(&self, side: Side) -> &dyn Store {
        &**self.sides.of(side)
    }

    fn values(&self, side: Side) -> Result<BTreeMap<ControlKey, String>, String> {
        let tree = self.store(side).list().map_err(|error| error.to_string())?;
        let entries = tree.entries.into_iter();
        let entries = entries.filter(|(key, _)| *key != ControlKey::Bridge);
        Ok(entries
            .map(|(key, entry)| (key, String::from_utf8_lossy(&entry.value).into_owned()))
            .collect())
    }

    fn wait_value(&self, side: Side, key: &ControlKey, value: Option<&str>) {
        wait_for(&format!("{key} = {value:?} on {side}"), DEADLINE, || {
            let now = self.values(side)?.get(key).cloned();
            match now.as_deref() == value {
                true => Ok(()),
                false => Err(format!("{now:?}")),
            }
        });
    }

    /// Kills a store and restarts it.
    fn bounce(&mut self, side: Side) {
        match side {
            Side::Etcd => {
                self.etcd.kill(0);
                let again = self.etcd.start_again(0);
                again.unwrap_or_else(|error| panic!("{error:#}"));
            }
            Side::ZooKeeper => {
                let again = self.zookeeper.restart();
                again.unwrap_or_else(|error| panic!("{error:#}"));
            }
        }
    }
}

#[test]
fn edits_and_deletes_are_transferred_soon_and_as_the_dry_run_says() {
    let harness = Harness::start();
    put(harness.store(Side::Etcd), &gate("auditor"), "true");
    put(harness.store(Side::ZooKeeper), &gate("relay"), "false");
    put(harness.store(Side::ZooKeeper), &gate("broken"), "perhaps");
    let stores = BridgeStores::open(&harness.config).unwrap_or_else(|error| panic!("{error}"));
    let planned =
        dry_run(&stores, Side::Etcd, Pair::default()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(planned.halt, None);
    let planned = planned.steps;
    let steps: Vec<(&str, Side, DryRunStep)> = planned
        .iter()
        .map(|one| (one.key.as_str(), one.side, one.step))
        .collect();
    assert_eq!(
        steps,
        [
            ("auditor/enabled", Side::ZooKeeper, DryRunStep::Write),
            ("broken/enabled", Side::ZooKeeper, DryRunStep::Refuse),
            ("relay/enabled", Side::Etcd, DryRunStep::Write),
        ]
    );
    let bridge = harness.bridge();
    harness.wait_value(Side::ZooKeeper, &gate("auditor"), Some("true"));
    harness.wait_value(Side::Etcd, &gate("relay"), Some("false"));
    wait_for("the refusal to be reported", DEADLINE, || {
        match bridge.report().refused.as_slice() {
            [refused] if refused.place == "/plugins/broken" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let mut times = Vec::new();
    for round in 0..20 {
        let value = if round % 2 == 0 { "false" } else { "true" };
        put(harness.store(Side::Etcd), &gate("auditor"), value);
        let written = Instant::now();
        harness.wait_value(Side::ZooKeeper, &gate("auditor"), Some(value));
        times.push(written.elapsed());
    }
    times.sort();
    let (half, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "    20 edits transferred: half within {:.0} ms, the slowest {:.0} ms",
        half.as_secs_f64() * 1e3,
        slowest.as_secs_f64() * 1e3
    );
    assert!(slowest < TRANSFER_DEADLINE, "{slowest:?}");
    delete(harness.store(Side::ZooKeeper), &gate("auditor"));
    harness.wait_value(Side::Etcd, &gate("auditor"), None);
    drop(bridge);
    delete(harness.store(Side::Etcd), &gate("relay"));
    let _again = harness.bridge();
    harness.wait_value(Side::ZooKeeper, &gate("relay"), None);
}

impl Harness {
    /// Gates that are in sync on both sides.
    fn put_gates(&self, bridge: &Bridge, names: std::ops::Range<usize>) {
        for name in names {
            put(self.store(Side::Etcd), &gate(&format!("h{name}")), "true");
        }
        self.settle(bridge);
    }

    fn settle(&self, bridge: &Bridge) {
        wait_for("both sides to be equal", CONVERGENCE_DEADLINE, || {
            let (etcd, zookeeper) = (self.values(Side::Etcd)?, self.values(Side::ZooKeeper)?);
            let report = bridge.report();
            match etcd == zookeeper && report.unsettled == 0 && report.halted.is_none() {
                true => Ok(()),
                false => Err(format!("{} {report:?}", difference(&etcd, &zookeeper))),
            }
        });
    }
}

#[test]
fn a_zookeeper_that_was_wiped_takes_nothing_from_etcd() {
    let mut harness = Harness::start();
    let bridge = harness.bridge();
    harness.put_gates(&bridge, 0..6);
    drop(bridge);
    let wiped = harness.zookeeper.restore(None);
    wiped.unwrap_or_else(|error| panic!("{error:#}"));

    let bridge = harness.bridge();
    let reason = wait_for("the bridge to halt", DEADLINE, || {
        let report = bridge.report();
        let halted = report.halted.as_ref().map(|halted| halted.reason.clone());
        halted.ok_or_else(|| format!("{report:?}"))
    });
    println!("    {reason}");
    assert!(reason.contains("is not the store that this pair was bridged with"));
    assert!(reason.contains("--accept-store zookeeper` instead of this bridge"));
    stays("both sides", Duration::from_secs(6), || {
        let counts = (
            harness.values(Side::Etcd)?.len(),
            harness.values(Side::ZooKeeper)?.len(),
        );
        match counts {
            (6, 0) => Ok(()),
            other => Err(format!("{other:?} keys")),
        }
    });
    assert_eq!(bridge.report().counts.deletes, Pair::default());

    // Follows the advice; then ZooKeeper gets everything, and the first bridge resumes.
    let accepting = harness.accepting_bridge(Side::ZooKeeper);
    harness.settle(&accepting);
    harness.settle(&bridge);
    assert_eq!(
        harness.values(Side::ZooKeeper).map(|keys| keys.len()),
        Ok(6)
    );
}

/// With another map the same store has other keys: those that are not seen any more were not deleted.
#[test]
fn a_halted_bridge_inside_a_service_is_a_problem_of_the_service() {
    let harness = Harness::start();
    let bridge = harness.bridge();
    put(harness.store(Side::Etcd), &gate("a"), "false");
    harness.settle(&bridge);
    drop(bridge);
    let kafka = Kafka::shared();
    let topic = unique("source");
    Client::new(kafka.bootstrap()).create_topic(&topic, 1);
    let block = format!(
        "bridge:\n  etcd: {{ endpoints: {:?}, paths: {{ enabled: \"{{name}}/gate\" }} }}\n  \
         zookeeper: {{ servers: \"{}\" }}\n  admin: {{ listen: \"127.0.0.1:0\" }}\n",
        harness.etcd.endpoints(),
        harness.zookeeper.connect()
    );
    let workdir = Workdir::new(kafka.bootstrap(), &unique("group"), &block);
    workdir.plugins(&["relay"]);
    workdir.spec(
        "copy",
        &format!("plugin: relay\nversion: \"*\"\nroute: {{ topics: [{topic}] }}\nconfig: {{ topic: {topic}.copy }}\n"),
    );
    let mut service = Service::ready(&workdir, &[]);
    let problem = wait_for("the problem to show", DEADLINE, || {
        let (status, body) = service.get("/readyz")?;
        let found: serde_json::Value =
            serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        let mut all = found["problems"].as_array().into_iter().flatten();
        let halted = all.find(|one| one["kind"] == "bridge_halted").cloned();
        halted
            .filter(|_| status == 200)
            .ok_or_else(|| format!("{status}: {body}"))
    });
    let cause = problem["cause"].as_str().unwrap_or_default();
    assert!(cause.contains("enabled={name}/gate"), "{problem}");
    assert!(
        problem["since_ms"].as_i64() > Some(1_700_000_000_000),
        "{problem}"
    );
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn a_bridge_with_other_paths_deletes_nothing_until_they_are_accepted() {
    for side in Side::BOTH {
        let mut harness = Harness::start();
        let bridge = harness.bridge();
        for name in 0..3 {
            let gate = gate(&format!("h{name}"));
            put(harness.store(Side::Etcd), &gate, "false");
        }
        harness.settle(&bridge);
        let moved = PathMap::new(|kind| match kind {
            KeyKind::Enabled => "{name}/gate",
            KeyKind::Spec => "{name}/spec",
            KeyKind::Config => "{name}/config",
            KeyKind::Canary => "{name}/canary",
            KeyKind::Rollout => "{name}/rollout",
            KeyKind::Logging => "~logging",
            _ => "~metrics",
        });
        let moved = moved.unwrap_or_else(|error| panic!("{error}"));
        match side {
            Side::Etcd => harness.config.etcd.paths = moved,
            Side::ZooKeeper => harness.config.zookeeper.paths = moved,
        }
        // As during the rollout of a config: one bridge already has it.
        let other = harness.bridge();
        let reason = wait_for("the bridge to halt", DEADLINE, || {
            let report = other.report();
            let halted = report.halted.as_ref().map(|halted| halted.reason.clone());
            halted.ok_or_else(|| format!("{report:?}"))
        });
        println!("    {reason}");
        assert!(reason.contains("enabled={name}/gate"), "{reason}");
        assert!(
            reason.contains("`paths` were changed on purpose"),
            "{reason}"
        );
        let kept = |harness: &Harness| {
            let gates = Pair::from_fn(|side| harness.values(side).map(|keys| keys.len()));
            match (gates.etcd?, gates.zookeeper?) {
                (3, 3) => Ok(()),
                other => Err(format!("{other:?} gates")),
            }
        };
        stays("both sides", Duration::from_secs(6), || kept(&harness));
        assert_eq!(other.report().counts.deletes, Pair::default());
        drop(other);

        let accepting = harness.accepting_bridge(side);
        let stores = BridgeStores::open(&harness.config).unwrap_or_else(|error| panic!("{error}"));
        wait_for("the gates at their new paths", DEADLINE, || {
            let tree = stores.sides.of(side).list();
            let tree = tree.map_err(|error| error.to_string())?;
            let closed = |name| {
                let entry = tree.get(&gate(name));
                entry.is_some_and(|entry| &*entry.value == b"false")
            };
            match ["h0", "h1", "h2"].into_iter().all(closed) {
                true => Ok(()),
                false => Err(format!("{:?}", tree.entries.keys())),
            }
        });
        stays("both sides", Duration::from_secs(3), || kept(&harness));
        for bridge in [&bridge, &accepting] {
            assert_eq!(bridge.report().counts.deletes, Pair::default());
        }
    }
}

#[test]
fn a_zookeeper_that_was_restored_gets_back_what_it_lost() {
    let mut harness = Harness::start();
    let bridge = harness.bridge();
    harness.put_gates(&bridge, 0..3);
    let backup = harness.zookeeper.back_up();
    let backup = backup.unwrap_or_else(|error| panic!("{error:#}"));
    // The start of a bridge writes a new marker to ZooKeeper, which the backup does not have.
    drop(bridge);
    let bridge = harness.bridge();
    harness.put_gates(&bridge, 3..30);
    let restored = harness.zookeeper.restore(Some(&backup));
    restored.unwrap_or_else(|error| panic!("{error:#}"));
    harness.settle(&bridge);
    assert_eq!(harness.values(Side::Etcd).map(|keys| keys.len()), Ok(30));

    // Again while no bridge runs, with other writes before one starts.
    drop(bridge);
    let restored = harness.zookeeper.restore(Some(&backup));
    restored.unwrap_or_else(|error| panic!("{error:#}"));
    for round in 0..200 {
        let value = if round % 2 == 0 { "false" } else { "true" };
        put(harness.store(Side::ZooKeeper), &gate("h0"), value);
    }
    let bridge = harness.bridge();
    harness.settle(&bridge);
    assert_eq!(harness.values(Side::Etcd).map(|keys| keys.len()), Ok(30));
    assert_eq!(bridge.report().counts.deletes, Pair::default());
    delete(harness.store(Side::ZooKeeper), &gate("h7"));
    harness.wait_value(Side::Etcd, &gate("h7"), None);
}

/// The last edits of a key on each side that the store acknowledged, or may have applied.
#[derive(Default)]
struct Edits {
    /// By side: the values that the last edit may have written.
    last: Pair<Vec<Option<String>>>,
}

#[test]
fn two_bridges_converge_through_store_restarts() {
    let mut harness = Harness::start();
    let mut bridges = vec![harness.bridge(), harness.bridge()];
    let edits = if long() { 10_000 } else { 600 };
    let mut random = fastrand::Rng::with_seed(0x5eed);
    let mut known: BTreeMap<ControlKey, Edits> = BTreeMap::new();
    let mut conflicts = 0;
    for number in 0..edits {
        if number % (edits / 4) == edits / 8 {
            let side = Side::BOTH[(number / (edits / 4)) % 2];
            println!("    {number} edits: {side} is killed and restarted");
            harness.bounce(side);
        }
        if number == edits / 2 {
            conflicts += conflicts_of(&bridges[0]);
            bridges[0] = harness.bridge();
        }
        edit(&harness, &mut random, &mut known);
    }
    wait_for("both sides to be equal", CONVERGENCE_DEADLINE, || {
        let (etcd, zookeeper) = (
            harness.values(Side::Etcd)?,
            harness.values(Side::ZooKeeper)?,
        );
        if etcd != zookeeper {
            return Err(difference(&etcd, &zookeeper));
        }
        for (key, edits) in &known {
            let now = etcd.get(key).cloned();
            if !Side::BOTH
                .iter()
                .any(|side| edits.last.of(*side).contains(&now))
            {
                return Err(format!("{key} has {now:?}, which is not a last edit"));
            }
        }
        Ok(())
    });
    conflicts += bridges.iter().map(conflicts_of).sum::<u64>();
    println!(
        "    {edits} edits, {} keys, {conflicts} conflicts",
        known.len()
    );
    for bridge in &bridges {
        let report = bridge.report();
        assert_eq!(
            report.counts.conflicts.etcd, 0,
            "etcd is the preferred side"
        );
        println!("    {:?}", report.counts);
    }
}

fn conflicts_of(bridge: &Bridge) -> u64 {
    let conflicts = bridge.report().counts.conflicts;
    conflicts.etcd + conflicts.zookeeper
}

fn difference(
    etcd: &BTreeMap<ControlKey, String>,
    zookeeper: &BTreeMap<ControlKey, String>,
) -> String {
    let keys = etcd.keys().chain(zookeeper.keys());
    let odd = keys.filter(|key| etcd.get(*key) != zookeeper.get(*key));
    let odd: Vec<String> = odd
        .map(|key| format!("{key}: {:?} and {:?}", etcd.get(key), zookeeper.get(key)))
        .collect();
    odd.join(", ")
}

/// A random edit. Handlers a and b are edited on one side each, the others on both.
fn edit(harness: &Harness, random: &mut fastrand::Rng, known: &mut BTreeMap<ControlKey, Edits>) {
    let name = ["a", "b", "c", "d", "e", "f", "g", "h"][random.usize(..8)];
    let side = match name {
        "a" => Side::Etcd,
        "b" => Side::ZooKeeper,
        _ => Side::BOTH[random.usize(..2)],
    };
    let (key, value) = match random.usize(..2) {
        0 => (gate(name), ["true", "false"][random.usize(..2)].to_owned()),
        _ => (
            ControlKey::config(name).expect("a handler's name"),
            format!("{{\"value\": {}}}", random.usize(..1_000)),
        ),
    };
    let value = (random.usize(..4) > 0).then_some(value);
    let last = known.entry(key.clone()).or_default().last.of_mut(side);
    match harness
        .store(side)
        .write(&key, value.as_ref().map(String::as_bytes), Expected::Any)
    {
        Ok(_) => *last = vec![value],
        // It is unknown whether the write was applied.
        Err(error) if error.is_retryable() => last.push(value),
        // A bridge was faster; ZooKeeper may report this even for an unconditional write.
        Err(StoreError::Conflict { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}
