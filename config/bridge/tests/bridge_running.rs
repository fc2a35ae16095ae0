//! Situation: bridges over two in-memory stores, which become unreachable, recover and lose watch events while users edit.
//! Property: both sides converge, including deletes; invalid values are reported and not replicated.

#[path = "bridge_running/failed.rs"]
mod failed;
#[path = "bridge_running/foreign.rs"]
mod foreign;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sluicegate_bridge::{
    Bridge, BridgeSettings, BridgeStores, DryRunStep, PairRecord, SyncState, dry_run,
};
use sluicegate_config::control::{ControlKey, Pair, Side};
use sluicegate_kit::wait::{stays, wait_until};
use sluicegate_store::{Expected, MemoryStore, Store};

struct Harness {
    name: &'static str,
    sides: Pair<MemoryStore>,
    sync_state: MemoryStore,
    allow_mass_delete: bool,
    accept: Pair<bool>,
}

impl Harness {
    fn new() -> Self {
        Self {
            name: "pair",
            sides: Pair::from_fn(|_| MemoryStore::new()),
            sync_state: MemoryStore::new(),
            allow_mass_delete: false,
            accept: Pair::default(),
        }
    }

    fn stores(&self) -> BridgeStores {
        BridgeStores {
            name: self.name.to_owned(),
            sides: Pair::from_fn(|side| -> Arc<dyn Store> {
                Arc::new(self.sides.of(side).clone())
            }),
            state: Arc::new(self.sync_state.clone()),
        }
    }

    fn bridge(&self, id: &str, preferred_side: Side) -> Bridge {
        let settings = self.settings(id, preferred_side);
        Bridge::start(self.stores(), settings).expect("threads start")
    }

    fn settings(&self, id: &str, preferred_side: Side) -> BridgeSettings {
        BridgeSettings {
            id: id.to_owned(),
            preferred_side,
            resync_interval: Duration::from_millis(300),
            allow_mass_delete: self.allow_mass_delete,
            accept: self.accept,
        }
    }

    fn put(&self, side: Side, key: &ControlKey, value: &str) {
        let store = self.sides.of(side);
        let written = store.write(key, Some(value.as_bytes()), Expected::Any);
        written.expect("the store is reachable");
    }

    fn delete(&self, side: Side, key: &ControlKey) {
        let deleted = self.sides.of(side).write(key, None, Expected::Any);
        deleted.expect("the store is reachable");
    }

    fn values(&self, side: Side) -> BTreeMap<String, String> {
        let tree = self.sides.of(side).list().expect("the store is reachable");
        let entries = tree.entries.iter();
        let entries = entries.filter(|(key, _)| **key != ControlKey::Bridge);
        entries
            .map(|(key, entry)| {
                let value = String::from_utf8_lossy(&entry.value).into_owned();
                (key.to_string(), value)
            })
            .collect()
    }

    fn wait_until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let seen = || {
            let (etcd, zookeeper) = (self.values(Side::Etcd), self.values(Side::ZooKeeper));
            format!("{what}: {etcd:?} and {zookeeper:?}")
        };
        wait_until(Duration::from_secs(20), || holds(self), seen);
    }

    fn wait_for(&self, side: Side, key: &ControlKey, value: Option<&str>) {
        let what = format!("{key} = {value:?} on {side}");
        self.wait_until(&what, |harness| {
            harness
                .values(side)
                .get(&key.to_string())
                .map(String::as_str)
                == value
        });
    }
}

fn gate(name: &str) -> ControlKey {
    ControlKey::Enabled(name.to_owned())
}

#[test]
fn edits_and_deletes_are_replicated_both_ways() {
    let harness = Harness::new();
    harness.put(Side::Etcd, &gate("a"), "true");
    harness.put(Side::ZooKeeper, &gate("b"), "false");
    let bridge = harness.bridge("one", Side::Etcd);
    harness.wait_for(Side::ZooKeeper, &gate("a"), Some("true"));
    harness.wait_for(Side::Etcd, &gate("b"), Some("false"));
    harness.put(Side::ZooKeeper, &gate("a"), "false");
    harness.wait_for(Side::Etcd, &gate("a"), Some("false"));
    harness.delete(Side::Etcd, &gate("a"));
    harness.wait_for(Side::ZooKeeper, &gate("a"), None);
    harness.put(Side::Etcd, &gate("a"), "true");
    harness.wait_for(Side::ZooKeeper, &gate("a"), Some("true"));
    harness.wait_until("the report is complete", |_| {
        let report = bridge.report();
        report.unsettled == 0 && report.counts.writes.zookeeper == 2
    });
    let report = bridge.report();
    assert_eq!(report.counts.writes.etcd, 2);
    assert_eq!(report.counts.deletes.zookeeper, 1);
    assert_eq!(report.counts.conflicts, Pair::default());
    assert_eq!(report.keys, 2);
}

#[test]
fn a_key_deleted_while_no_bridge_ran_is_not_restored() {
    let harness = Harness::new();
    harness.put(Side::Etcd, &gate("a"), "true");
    let bridge = harness.bridge("one", Side::Etcd);
    harness.wait_for(Side::ZooKeeper, &gate("a"), Some("true"));
    harness.wait_until("the sync state is written", |_| {
        bridge.report().unsettled == 0
    });
    drop(bridge);
    harness.delete(Side::ZooKeeper, &gate("a"));
    let _bridge = harness.bridge("two", Side::Etcd);
    harness.wait_for(Side::Etcd, &gate("a"), None);
}

#[test]
fn an_initial_conflict_is_won_by_the_preferred_side_and_reported() {
    let harness = Harness::new();
    harness.put(Side::Etcd, &gate("a"), "true");
    harness.put(Side::ZooKeeper, &gate("a"), "false");
    let planned = dry_run(&harness.stores(), Side::ZooKeeper, Pair::default())
        .expect("both stores are reachable");
    assert_eq!(planned.halt, None);
    let planned = planned.steps;
    assert_eq!(planned.len(), 1);
    assert_eq!(planned[0].step, DryRunStep::Write);
    assert!(planned[0].conflict && planned[0].side == Side::Etcd);
    assert_eq!(
        harness.values(Side::Etcd)["a/enabled"],
        "true",
        "a dry run writes nothing"
    );
    let bridge = harness.bridge("one", Side::ZooKeeper);
    harness.wait_for(Side::Etcd, &gate("a"), Some("false"));
    harness.wait_until("the conflict is reported", |_| {
        bridge.report().conflicts.len() == 1
    });
    assert_eq!(bridge.report().counts.conflicts.etcd, 1);
    assert_eq!(bridge.report().conflicts[0].winner, Side::ZooKeeper);
}

#[test]
fn an_invalid_value_is_not_replicated() {
    let harness = Harness::new();
    harness.put(Side::Etcd, &gate("a"), "true");
    let bridge = harness.bridge("one", Side::Etcd);
    harness.wait_for(Side::ZooKeeper, &gate("a"), Some("true"));
    harness.put(Side::ZooKeeper, &gate("a"), "yes");
    harness.wait_until("the refusal is reported", |_| {
        bridge.report().refused.len() == 1
    });
    let refused = bridge.report().refused[0].clone();
    assert_eq!(
        (refused.key.as_str(), refused.side),
        ("a/enabled", Side::ZooKeeper)
    );
    assert!(refused.problems[0].contains("true or false"), "{refused:?}");
    assert_eq!(harness.values(Side::Etcd)["a/enabled"], "true");
    assert_eq!(bridge.report().counts.refusals.zookeeper, 1);
    harness.put(Side::ZooKeeper, &gate("a"), "false");
    harness.wait_for(Side::Etcd, &gate("a"), Some("false"));
    harness.wait_until("the refusal is cleared", |_| {
        bridge.report().refused.is_empty()
    });
}

#[test]
fn three_bridges_converge_through_outages_and_deaf_watches() {
    let mut harness = Harness::new();
    // With six keys, more than half can be missing when a deaf watch relists.
    harness.allow_mass_delete = true;
    let bridges: Vec<Bridge> = ["one", "two", "three"]
        .iter()
        .map(|id| harness.bridge(id, Side::Etcd))
        .collect();
    let handles = [
        harness.sides.etcd.handle(),
        harness.sides.zookeeper.handle(),
        harness.sync_state.handle(),
    ];
    let mut random = fastrand::Rng::with_seed(4);
    let mut last: BTreeMap<(usize, bool), Option<&str>> = BTreeMap::new();
    for round in 0..1_500 {
        let name = random.usize(0..6);
        // Handlers 0 and 1 are edited on one side each, the others on both.
        let side = match name {
            0 => Side::Etcd,
            1 => Side::ZooKeeper,
            _ => Side::BOTH[random.usize(0..2)],
        };
        let value = [Some("true"), Some("false"), None][random.usize(0..3)];
        let bytes = value.map(str::as_bytes);
        let key = gate(&format!("h{name}"));
        if harness
            .sides
            .of(side)
            .write(&key, bytes, Expected::Any)
            .is_ok()
        {
            last.insert((name, side == Side::Etcd), value);
        }
        if round % 100 == 0 {
            let away = random.usize(0..3);
            handles[away].set_away(true);
            harness.wait_until("every bridge reports the outage", |_| {
                bridges.iter().all(|bridge| {
                    let report = bridge.report();
                    let stores = [
                        &report.sides.etcd,
                        &report.sides.zookeeper,
                        &report.sync_state,
                    ];
                    !stores[away].reachable
                })
            });
            handles[away].set_away(false);
            handles[random.usize(0..3)].set_deaf(true);
        }
        if round % 100 == 50 {
            for handle in &handles {
                handle.set_deaf(false);
                handle.relist();
            }
        }
    }
    for handle in &handles {
        handle.set_deaf(false);
        handle.relist();
    }
    harness.wait_until("both sides are equal", |harness| {
        let both = (harness.values(Side::Etcd), harness.values(Side::ZooKeeper));
        both.0 == both.1
            && last.iter().all(|((name, _), _)| {
                let now = both.0.get(&format!("h{name}/enabled")).map(String::as_str);
                let fits = |etcd| last.get(&(*name, etcd)).is_some_and(|last| *last == now);
                fits(true) || fits(false)
            })
    });
}

impl Harness {
    /// Gates on both sides, replicated by a bridge that keeps running.
    fn with_gates(names: impl Iterator<Item = usize>) -> (Self, Bridge) {
        let harness = Self::new();
        for name in names {
            harness.put(Side::Etcd, &gate(&format!("h{name}")), "true");
        }
        let bridge = harness.bridge("one", Side::Etcd);
        harness.settle(&bridge);
        (harness, bridge)
    }

    fn settle(&self, bridge: &Bridge) {
        self.wait_until(
            "both sides are equal and the sync state is written",
            |harness| {
                let report = bridge.report();
                let values = harness.values(Side::Etcd);
                let equal = values == harness.values(Side::ZooKeeper);
                let sync_state = harness.sync_state.list().expect("the store is reachable");
                let joined = PairRecord::of(&sync_state).is_some_and(|record| record.id.is_some());
                let noted = joined && sync_state.entries.len() > values.len();
                equal && noted && report.unsettled == 0 && report.halted.is_none()
            },
        );
    }

    /// Waits until the bridge halts, and returns the reason.
    fn await_halt(&self, bridge: &Bridge) -> String {
        self.wait_until("the bridge halts", |_| bridge.report().halted.is_some());
        bridge
            .report()
            .halted
            .expect("the bridge has halted")
            .reason
    }

    /// Checks that nothing is written during several resync intervals.
    fn stays(&self, etcd: usize, zookeeper: usize) {
        stays(Duration::from_millis(1_200), || {
            assert_eq!(self.values(Side::Etcd).len(), etcd);
            assert_eq!(self.values(Side::ZooKeeper).len(), zookeeper);
        });
    }
}

#[test]
fn a_restored_zookeeper_receives_its_lost_keys() {
    let (harness, bridge) = Harness::with_gates(0..3);
    let handle = harness.sides.zookeeper.handle();
    let backup = handle.back_up();
    drop(bridge);
    // Writes a new mark, which shows that the backup is older.
    let bridge = harness.bridge("two", Side::Etcd);
    for name in 3..30 {
        harness.put(Side::Etcd, &gate(&format!("h{name}")), "true");
    }
    harness.settle(&bridge);
    drop(bridge);
    handle.restore(&backup);
    // Its revision passes the recorded one.
    for round in 0..100 {
        let value = if round % 2 == 0 { "false" } else { "true" };
        harness.put(Side::ZooKeeper, &gate("h0"), value);
    }
    let bridge = harness.bridge("three", Side::Etcd);
    harness.settle(&bridge);
    assert_eq!(harness.values(Side::Etcd).len(), 30);
    assert_eq!(bridge.report().counts.deletes, Pair::default());
    harness.delete(Side::ZooKeeper, &gate("h7"));
    harness.wait_for(Side::Etcd, &gate("h7"), None);
}

/// Also if the backup is newer than the last mark, and with many keys.
#[test]
fn keys_deleted_since_the_backup_are_not_restored_by_zookeeper() {
    for marked_since in [false, true] {
        let (harness, mut bridge) = Harness::with_gates(0..40);
        let handle = harness.sides.zookeeper.handle();
        let backup = handle.back_up();
        if marked_since {
            drop(bridge);
            bridge = harness.bridge("two", Side::Etcd);
            harness.settle(&bridge);
        }
        for name in 10..40 {
            harness.delete(Side::BOTH[name % 2], &gate(&format!("h{name}")));
        }
        harness.settle(&bridge);
        drop(bridge);
        handle.restore(&backup);
        // A key written after the restore is an edit, whatever its earlier state.
        for _ in 0..100 {
            harness.put(Side::ZooKeeper, &gate("h39"), "false");
        }
        let planned = dry_run(&harness.stores(), Side::Etcd, Pair::default())
            .expect("both stores are reachable");
        let deletes = |one: &&sluicegate_bridge::DryRun| {
            one.step == DryRunStep::Delete && one.side == Side::ZooKeeper
        };
        assert_eq!(planned.halt, None);
        assert_eq!(planned.steps.iter().filter(deletes).count(), 29);
        let bridge = harness.bridge("three", Side::Etcd);
        harness.settle(&bridge);
        for side in Side::BOTH {
            let values = harness.values(side);
            assert_eq!(values.len(), 11, "{side}: {values:?}");
            assert_eq!(values["h39/enabled"], "false");
        }
        assert_eq!(bridge.report().counts.deletes.zookeeper, 29);
        assert_eq!(bridge.report().counts.deletes.etcd, 0);
    }
}

/// Its revisions continue from the backup and stay below the recorded ones for a while.
#[test]
fn a_key_created_in_a_restored_zookeeper_is_kept_whatever_its_earlier_state() {
    let (harness, bridge) = Harness::with_gates(0..4);
    let handle = harness.sides.zookeeper.handle();
    let backup = handle.back_up();
    for _ in 0..500 {
        harness.put(Side::ZooKeeper, &gate("h0"), "true");
    }
    harness.put(Side::ZooKeeper, &gate("late"), "true");
    harness.settle(&bridge);
    harness.delete(Side::ZooKeeper, &gate("late"));
    harness.settle(&bridge);
    drop(bridge);
    handle.restore(&backup);
    let bridge = harness.bridge("two", Side::Etcd);
    harness.wait_until("the bridge has recorded the restore", |harness| {
        let sync_state = harness.sync_state.list().expect("the store is reachable");
        let record = PairRecord::of(&sync_state).expect("a pair record");
        record.next.is_none() && record.went_back_at.zookeeper > 0
    });
    for value in ["false", "true"] {
        harness.put(Side::ZooKeeper, &gate("late"), value);
        harness.wait_for(Side::Etcd, &gate("late"), Some(value));
        harness.settle(&bridge);
        harness.delete(Side::Etcd, &gate("late"));
        harness.wait_for(Side::ZooKeeper, &gate("late"), None);
        harness.settle(&bridge);
    }
    assert_eq!(bridge.report().counts.deletes.etcd, 0);
    assert_eq!(harness.values(Side::Etcd).len(), 4);
}

/// The key is deleted twice: with the state that ZooKeeper lost, and in etcd.
#[test]
fn a_re_created_key_is_kept_if_the_restored_zookeeper_never_had_it() {
    let (harness, bridge) = Harness::with_gates(0..4);
    let handle = harness.sides.zookeeper.handle();
    let backup = handle.back_up();
    for _ in 0..500 {
        harness.put(Side::ZooKeeper, &gate("h0"), "true");
    }
    harness.put(Side::ZooKeeper, &gate("late"), "true");
    harness.settle(&bridge);
    harness.wait_for(Side::Etcd, &gate("late"), Some("true"));
    harness.settle(&bridge);
    drop(bridge);
    handle.restore(&backup);
    harness.delete(Side::Etcd, &gate("late"));
    let bridge = harness.bridge("two", Side::Etcd);
    let record = |harness: &Harness| {
        let sync_state = harness.sync_state.list().expect("the store is reachable");
        PairRecord::of(&sync_state).expect("a pair record")
    };
    let recorded_as_deleted = |harness: &Harness| {
        let sync_state = harness.sync_state.list().expect("the store is reachable");
        let state = sync_state.get(&gate("late"));
        let state = state.and_then(|state| SyncState::from_json(&state.value));
        state.is_some_and(|state| state.value.is_none() && state.pending.is_empty())
    };
    harness.wait_until("the bridge has recorded the delete", |harness| {
        record(harness).went_back_at.zookeeper > 0 && recorded_as_deleted(harness)
    });
    let known = record(&harness);
    harness.put(Side::ZooKeeper, &gate("late"), "true");
    harness.wait_for(Side::Etcd, &gate("late"), Some("true"));
    // The next bridge does not take ZooKeeper for restored once more.
    drop(bridge);
    let bridge = harness.bridge("three", Side::Etcd);
    harness.wait_until("the next bridge has checked the pair", |harness| {
        record(harness).mark > known.mark
    });
    harness.settle(&bridge);
    assert_eq!(record(&harness).went_back_at, known.went_back_at);
    assert_eq!(harness.values(Side::ZooKeeper).len(), 5);
}

#[test]
fn many_keys_missing_in_a_listing_halt_the_bridge_until_allowed() {
    for side in Side::BOTH {
        let (mut harness, bridge) = Harness::with_gates(0..50);
        let handle = harness.sides.of(side).handle();
        let delete = |harness: &Harness, names: std::ops::Range<usize>| {
            for name in names {
                harness.delete(side, &gate(&format!("h{name}")));
            }
        };
        // Deletes that the watch sees are intended, however many.
        delete(&harness, 0..30);
        harness.settle(&bridge);
        // So are a few deletes found by a listing.
        handle.set_deaf(true);
        delete(&harness, 30..36);
        handle.set_deaf(false);
        handle.relist();
        harness.settle(&bridge);
        assert_eq!(harness.values(side.other()).len(), 14);

        drop(bridge);
        delete(&harness, 36..44);
        let planned = dry_run(&harness.stores(), Side::Etcd, Pair::default())
            .expect("both stores are reachable");
        assert!(planned.halt.is_some() && planned.steps.len() == 8);
        let bridge = harness.bridge("two", Side::Etcd);
        let reason = harness.await_halt(&bridge);
        assert!(reason.starts_with("8 of 14 keys"), "{reason}");
        assert!(reason.contains("--allow-mass-delete"), "{reason}");
        let left = |here: usize, there: usize| match side {
            Side::Etcd => (here, there),
            Side::ZooKeeper => (there, here),
        };
        let (etcd, zookeeper) = left(6, 14);
        harness.stays(etcd, zookeeper);
        // Some are written again: the others still do not count as deleted.
        harness.put(side, &gate("h36"), "true");
        harness.put(side, &gate("h37"), "true");
        let (etcd, zookeeper) = left(8, 14);
        harness.stays(etcd, zookeeper);
        drop(bridge);

        harness.allow_mass_delete = true;
        let bridge = harness.bridge("three", Side::Etcd);
        harness.settle(&bridge);
        assert_eq!(harness.values(Side::Etcd).len(), 8);
    }
}
