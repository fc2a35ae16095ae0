//! Situation: running bridges over two stores in memory, which go away, come back and go deaf while users edit.
//! Property: both sides end equal, deletes included; values that are not valid stay where they are and are reported.

#[path = "bridge_running/failed.rs"]
mod failed;
#[path = "bridge_running/foreign.rs"]
mod foreign;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate_config::bridge::{
    Bridge, BridgeSettings, BridgeStores, DryRunStep, Pair, PairRecord, Side, SyncState, dry_run,
};
use sluicegate_config::store::{ControlKey, Expected, MemoryStore, Store};

struct Scene {
    name: &'static str,
    sides: Pair<MemoryStore>,
    notes: MemoryStore,
    allow_mass_delete: bool,
    accept: Pair<bool>,
}

impl Scene {
    fn new() -> Self {
        Self {
            name: "pair",
            sides: Pair::from_fn(|_| MemoryStore::new()),
            notes: MemoryStore::new(),
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
            notes: Arc::new(self.notes.clone()),
        }
    }

    fn bridge(&self, id: &str, preferred_side: Side) -> Bridge {
        let settings = self.settings(id, preferred_side);
        Bridge::start(self.stores(), settings).expect("threads can be started")
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
        written.expect("the store is there");
    }

    fn delete(&self, side: Side, key: &ControlKey) {
        let deleted = self.sides.of(side).write(key, None, Expected::Any);
        deleted.expect("the store is there");
    }

    fn values(&self, side: Side) -> BTreeMap<String, String> {
        let tree = self.sides.of(side).list().expect("the store is there");
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
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(
                Instant::now() < deadline,
                "{what}: {:?} and {:?}",
                self.values(Side::Etcd),
                self.values(Side::ZooKeeper)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_for(&self, side: Side, key: &ControlKey, value: Option<&str>) {
        let what = format!("{key} = {value:?} on {side}");
        self.wait_until(&what, |scene| {
            scene.values(side).get(&key.to_string()).map(String::as_str) == value
        });
    }
}

fn gate(name: &str) -> ControlKey {
    ControlKey::Enabled(name.to_owned())
}

#[test]
fn edits_and_deletes_cross_both_ways() {
    let scene = Scene::new();
    scene.put(Side::Etcd, &gate("a"), "true");
    scene.put(Side::ZooKeeper, &gate("b"), "false");
    let bridge = scene.bridge("one", Side::Etcd);
    scene.wait_for(Side::ZooKeeper, &gate("a"), Some("true"));
    scene.wait_for(Side::Etcd, &gate("b"), Some("false"));
    scene.put(Side::ZooKeeper, &gate("a"), "false");
    scene.wait_for(Side::Etcd, &gate("a"), Some("false"));
    scene.delete(Side::Etcd, &gate("a"));
    scene.wait_for(Side::ZooKeeper, &gate("a"), None);
    scene.put(Side::Etcd, &gate("a"), "true");
    scene.wait_for(Side::ZooKeeper, &gate("a"), Some("true"));
    scene.wait_until("the report says so", |_| {
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
fn what_was_deleted_while_no_bridge_ran_does_not_come_back() {
    let scene = Scene::new();
    scene.put(Side::Etcd, &gate("a"), "true");
    let bridge = scene.bridge("one", Side::Etcd);
    scene.wait_for(Side::ZooKeeper, &gate("a"), Some("true"));
    scene.wait_until("it is noted", |_| bridge.report().unsettled == 0);
    drop(bridge);
    scene.delete(Side::ZooKeeper, &gate("a"));
    let _bridge = scene.bridge("two", Side::Etcd);
    scene.wait_for(Side::Etcd, &gate("a"), None);
}

#[test]
fn a_first_conflict_goes_to_the_preferred_side_and_is_told() {
    let scene = Scene::new();
    scene.put(Side::Etcd, &gate("a"), "true");
    scene.put(Side::ZooKeeper, &gate("a"), "false");
    let planned = dry_run(&scene.stores(), Side::ZooKeeper, Pair::default()).expect("both answer");
    assert_eq!(planned.halt, None);
    let planned = planned.steps;
    assert_eq!(planned.len(), 1);
    assert_eq!(planned[0].step, DryRunStep::Write);
    assert!(planned[0].conflict && planned[0].side == Side::Etcd);
    assert_eq!(scene.values(Side::Etcd)["a/enabled"], "true", "only said");
    let bridge = scene.bridge("one", Side::ZooKeeper);
    scene.wait_for(Side::Etcd, &gate("a"), Some("false"));
    scene.wait_until("it is told", |_| bridge.report().conflicts.len() == 1);
    assert_eq!(bridge.report().counts.conflicts.etcd, 1);
    assert_eq!(bridge.report().conflicts[0].winner, Side::ZooKeeper);
}

#[test]
fn a_value_that_is_not_valid_stays_where_it_is() {
    let scene = Scene::new();
    scene.put(Side::Etcd, &gate("a"), "true");
    let bridge = scene.bridge("one", Side::Etcd);
    scene.wait_for(Side::ZooKeeper, &gate("a"), Some("true"));
    scene.put(Side::ZooKeeper, &gate("a"), "yes");
    scene.wait_until("it is told", |_| bridge.report().refused.len() == 1);
    let refused = bridge.report().refused[0].clone();
    assert_eq!(
        (refused.key.as_str(), refused.side),
        ("a/enabled", Side::ZooKeeper)
    );
    assert!(refused.problems[0].contains("true or false"), "{refused:?}");
    assert_eq!(scene.values(Side::Etcd)["a/enabled"], "true");
    assert_eq!(bridge.report().counts.refusals.zookeeper, 1);
    scene.put(Side::ZooKeeper, &gate("a"), "false");
    scene.wait_for(Side::Etcd, &gate("a"), Some("false"));
    scene.wait_until("it is clear", |_| bridge.report().refused.is_empty());
}

#[test]
fn three_bridges_agree_through_outages_and_deaf_watches() {
    let mut scene = Scene::new();
    // Of six keys more than half are soon missing when a deaf watch hears again.
    scene.allow_mass_delete = true;
    let bridges: Vec<Bridge> = ["one", "two", "three"]
        .iter()
        .map(|id| scene.bridge(id, Side::Etcd))
        .collect();
    let handles = [
        scene.sides.etcd.handle(),
        scene.sides.zookeeper.handle(),
        scene.notes.handle(),
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
        if scene
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
            scene.wait_until("every bridge misses it", |_| {
                bridges.iter().all(|bridge| {
                    let report = bridge.report();
                    let stores = [&report.sides.etcd, &report.sides.zookeeper, &report.notes];
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
    scene.wait_until("both are equal", |scene| {
        let both = (scene.values(Side::Etcd), scene.values(Side::ZooKeeper));
        both.0 == both.1
            && last.iter().all(|((name, _), _)| {
                let now = both.0.get(&format!("h{name}/enabled")).map(String::as_str);
                let fits = |etcd| last.get(&(*name, etcd)).is_some_and(|last| *last == now);
                fits(true) || fits(false)
            })
    });
}

impl Scene {
    /// Gates on both sides, carried across by a bridge that then runs on.
    fn with_gates(names: impl Iterator<Item = usize>) -> (Self, Bridge) {
        let scene = Self::new();
        for name in names {
            scene.put(Side::Etcd, &gate(&format!("h{name}")), "true");
        }
        let bridge = scene.bridge("one", Side::Etcd);
        scene.settle(&bridge);
        (scene, bridge)
    }

    fn settle(&self, bridge: &Bridge) {
        self.wait_until("both are equal and noted", |scene| {
            let report = bridge.report();
            let values = scene.values(Side::Etcd);
            let equal = values == scene.values(Side::ZooKeeper);
            let notes = scene.notes.list().expect("the store is there");
            let joined = PairRecord::of(&notes).is_some_and(|record| record.id.is_some());
            let noted = joined && notes.entries.len() > values.len();
            equal && noted && report.unsettled == 0 && report.halted.is_none()
        });
    }

    /// Waits until the bridge stands still, and gives the reason.
    fn await_halt(&self, bridge: &Bridge) -> String {
        self.wait_until("the bridge stands still", |_| {
            bridge.report().halted.is_some()
        });
        bridge.report().halted.expect("it stands still").reason
    }

    /// For some looks of the bridge nothing is written.
    fn stays(&self, etcd: usize, zookeeper: usize) {
        let until = Instant::now() + Duration::from_millis(1_200);
        while Instant::now() < until {
            assert_eq!(self.values(Side::Etcd).len(), etcd);
            assert_eq!(self.values(Side::ZooKeeper).len(), zookeeper);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_zookeeper_that_was_restored_gets_back_what_it_lost() {
    let (scene, bridge) = Scene::with_gates(0..3);
    let handle = scene.sides.zookeeper.handle();
    let backup = handle.back_up();
    drop(bridge);
    // Marks the store anew, and so shows that the backup is older.
    let bridge = scene.bridge("two", Side::Etcd);
    for name in 3..30 {
        scene.put(Side::Etcd, &gate(&format!("h{name}")), "true");
    }
    scene.settle(&bridge);
    drop(bridge);
    handle.restore(&backup);
    // Its revision passes what was noted.
    for round in 0..100 {
        let value = if round % 2 == 0 { "false" } else { "true" };
        scene.put(Side::ZooKeeper, &gate("h0"), value);
    }
    let bridge = scene.bridge("three", Side::Etcd);
    scene.settle(&bridge);
    assert_eq!(scene.values(Side::Etcd).len(), 30);
    assert_eq!(bridge.report().counts.deletes, Pair::default());
    scene.delete(Side::ZooKeeper, &gate("h7"));
    scene.wait_for(Side::Etcd, &gate("h7"), None);
}

/// Also when the backup is younger than the last mark, and when the keys were many.
#[test]
fn what_was_deleted_since_the_backup_does_not_come_back_with_a_restored_zookeeper() {
    for marked_since in [false, true] {
        let (scene, mut bridge) = Scene::with_gates(0..40);
        let handle = scene.sides.zookeeper.handle();
        let backup = handle.back_up();
        if marked_since {
            drop(bridge);
            bridge = scene.bridge("two", Side::Etcd);
            scene.settle(&bridge);
        }
        for name in 10..40 {
            scene.delete(Side::BOTH[name % 2], &gate(&format!("h{name}")));
        }
        scene.settle(&bridge);
        drop(bridge);
        handle.restore(&backup);
        // A key that is written there since is an edit, whatever it was before.
        for _ in 0..100 {
            scene.put(Side::ZooKeeper, &gate("h39"), "false");
        }
        let planned = dry_run(&scene.stores(), Side::Etcd, Pair::default()).expect("both answer");
        let deletes = |one: &&sluicegate_config::bridge::DryRun| {
            one.step == DryRunStep::Delete && one.side == Side::ZooKeeper
        };
        assert_eq!(planned.halt, None);
        assert_eq!(planned.steps.iter().filter(deletes).count(), 29);
        let bridge = scene.bridge("three", Side::Etcd);
        scene.settle(&bridge);
        for side in Side::BOTH {
            let values = scene.values(side);
            assert_eq!(values.len(), 11, "{side}: {values:?}");
            assert_eq!(values["h39/enabled"], "false");
        }
        assert_eq!(bridge.report().counts.deletes.zookeeper, 29);
        assert_eq!(bridge.report().counts.deletes.etcd, 0);
    }
}

/// Its revisions count on from the backup, and are below what was noted for long.
#[test]
fn what_is_made_anew_in_a_restored_zookeeper_stays_whatever_it_was_before() {
    let (scene, bridge) = Scene::with_gates(0..4);
    let handle = scene.sides.zookeeper.handle();
    let backup = handle.back_up();
    for _ in 0..500 {
        scene.put(Side::ZooKeeper, &gate("h0"), "true");
    }
    scene.put(Side::ZooKeeper, &gate("late"), "true");
    scene.settle(&bridge);
    scene.delete(Side::ZooKeeper, &gate("late"));
    scene.settle(&bridge);
    drop(bridge);
    handle.restore(&backup);
    let bridge = scene.bridge("two", Side::Etcd);
    scene.wait_until("the bridge has seen it", |scene| {
        let notes = scene.notes.list().expect("the store is there");
        let record = PairRecord::of(&notes).expect("it was joined");
        record.next.is_none() && record.went_back_at.zookeeper > 0
    });
    for value in ["false", "true"] {
        scene.put(Side::ZooKeeper, &gate("late"), value);
        scene.wait_for(Side::Etcd, &gate("late"), Some(value));
        scene.settle(&bridge);
        scene.delete(Side::Etcd, &gate("late"));
        scene.wait_for(Side::ZooKeeper, &gate("late"), None);
        scene.settle(&bridge);
    }
    assert_eq!(bridge.report().counts.deletes.etcd, 0);
    assert_eq!(scene.values(Side::Etcd).len(), 4);
}

/// Deleted by two: with the state that ZooKeeper lost, and in etcd.
#[test]
fn what_is_made_anew_stays_also_if_the_restored_zookeeper_never_had_it() {
    let (scene, bridge) = Scene::with_gates(0..4);
    let handle = scene.sides.zookeeper.handle();
    let backup = handle.back_up();
    for _ in 0..500 {
        scene.put(Side::ZooKeeper, &gate("h0"), "true");
    }
    scene.put(Side::ZooKeeper, &gate("late"), "true");
    scene.settle(&bridge);
    scene.wait_for(Side::Etcd, &gate("late"), Some("true"));
    scene.settle(&bridge);
    drop(bridge);
    handle.restore(&backup);
    scene.delete(Side::Etcd, &gate("late"));
    let bridge = scene.bridge("two", Side::Etcd);
    let record = |scene: &Scene| {
        let notes = scene.notes.list().expect("the store is there");
        PairRecord::of(&notes).expect("it was joined")
    };
    let noted_as_gone = |scene: &Scene| {
        let notes = scene.notes.list().expect("the store is there");
        let note = notes.get(&gate("late"));
        let note = note.and_then(|note| SyncState::from_json(&note.value));
        note.is_some_and(|note| note.value.is_none() && note.pending.is_empty())
    };
    scene.wait_until("the bridge has noted it", |scene| {
        record(scene).went_back_at.zookeeper > 0 && noted_as_gone(scene)
    });
    let known = record(&scene);
    scene.put(Side::ZooKeeper, &gate("late"), "true");
    scene.wait_for(Side::Etcd, &gate("late"), Some("true"));
    // Whoever comes next does not take ZooKeeper for one that went back once more.
    drop(bridge);
    let bridge = scene.bridge("three", Side::Etcd);
    scene.wait_until("the next one has looked", |scene| {
        record(scene).mark > known.mark
    });
    scene.settle(&bridge);
    assert_eq!(record(&scene).went_back_at, known.went_back_at);
    assert_eq!(scene.values(Side::ZooKeeper).len(), 5);
}

#[test]
fn many_keys_that_a_listing_finds_missing_stop_the_bridge_until_it_is_allowed() {
    for side in Side::BOTH {
        let (mut scene, bridge) = Scene::with_gates(0..50);
        let handle = scene.sides.of(side).handle();
        let delete = |scene: &Scene, names: std::ops::Range<usize>| {
            for name in names {
                scene.delete(side, &gate(&format!("h{name}")));
            }
        };
        // What the watch sees is meant, however much it is.
        delete(&scene, 0..30);
        scene.settle(&bridge);
        // As is what a listing finds, as long as it is little.
        handle.set_deaf(true);
        delete(&scene, 30..36);
        handle.set_deaf(false);
        handle.relist();
        scene.settle(&bridge);
        assert_eq!(scene.values(side.other()).len(), 14);

        drop(bridge);
        delete(&scene, 36..44);
        let planned = dry_run(&scene.stores(), Side::Etcd, Pair::default()).expect("both answer");
        assert!(planned.halt.is_some() && planned.steps.len() == 8);
        let bridge = scene.bridge("two", Side::Etcd);
        let reason = scene.await_halt(&bridge);
        assert!(reason.starts_with("8 of 14 keys"), "{reason}");
        assert!(reason.contains("--allow-mass-delete"), "{reason}");
        let left = |here: usize, there: usize| match side {
            Side::Etcd => (here, there),
            Side::ZooKeeper => (there, here),
        };
        let (etcd, zookeeper) = left(6, 14);
        scene.stays(etcd, zookeeper);
        // Some are put back: the others are still not taken for deleted.
        scene.put(side, &gate("h36"), "true");
        scene.put(side, &gate("h37"), "true");
        let (etcd, zookeeper) = left(8, 14);
        scene.stays(etcd, zookeeper);
        drop(bridge);

        scene.allow_mass_delete = true;
        let bridge = scene.bridge("three", Side::Etcd);
        scene.settle(&bridge);
        assert_eq!(scene.values(Side::Etcd).len(), 8);
    }
}
