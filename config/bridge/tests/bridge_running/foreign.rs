//! Sides that do not match the sync state: the bridge halts until an operator accepts a store.

use sluicegate_bridge::{Bridge, PairCheck, PairRecord, Progress, check_pair, dry_run};
use sluicegate_config::control::{ControlKey, Pair, Side};
use sluicegate_store::{Expected, Store};

use super::{Harness, MemoryStore, gate};

/// An operator's consent for one side.
fn only(side: Side) -> Pair<bool> {
    Pair::from_fn(|one| one == side)
}

#[test]
fn another_store_halts_the_bridge_until_it_is_accepted_and_nothing_is_deleted() {
    for side in Side::BOTH {
        let (mut harness, bridge) = Harness::with_gates(0..6);
        drop(bridge);
        let handle = harness.sides.of(side).handle();
        let (backup, sync_state) = (handle.back_up(), harness.sync_state.handle().back_up());
        handle.wipe();
        // The sync state is stored in etcd and is lost with it.
        let with_notes = side == Side::Etcd;
        if with_notes {
            harness.sync_state.handle().wipe();
        }
        let bridge = harness.bridge("two", side);
        let reason = harness.await_halt(&bridge);
        let differs = match side {
            Side::Etcd => "etcd holds no sync state of it",
            Side::ZooKeeper => "is not the store that this pair was bridged with",
        };
        assert!(reason.contains(differs), "{reason}");
        assert!(
            reason.contains(&format!("--accept-store {side}`")),
            "{reason}"
        );
        assert_eq!(bridge.report().problems(), std::slice::from_ref(&reason));
        let left = match side {
            Side::Etcd => (0, 6),
            Side::ZooKeeper => (6, 0),
        };
        harness.stays(left.0, left.1);
        let planned =
            dry_run(&harness.stores(), side, Pair::default()).expect("both stores are reachable");
        assert!(planned.steps.is_empty());
        assert_eq!(planned.halt.expect("why").to_string(), reason);
        let planned =
            dry_run(&harness.stores(), side, only(side)).expect("both stores are reachable");
        assert!(planned.halt.is_none() && planned.steps.len() == 6);

        // The original store is back: the bridge continues by itself.
        handle.restore(&backup);
        if with_notes {
            harness.sync_state.handle().restore(&sync_state);
        }
        harness.put(side, &gate("h0"), "false");
        harness.wait_for(side.other(), &gate("h0"), Some("false"));
        harness.settle(&bridge);

        // Or the new store is intended: then it receives the other side's keys, whichever side is preferred.
        handle.wipe();
        if with_notes {
            harness.sync_state.handle().wipe();
        }
        harness.await_halt(&bridge);
        harness.put(side, &gate("h1"), "false");
        harness.put(side, &gate("more"), "true");
        harness.accept = only(side);
        let accepting = harness.bridge("three", side);
        harness.settle(&accepting);
        harness.settle(&bridge);
        let values = harness.values(side);
        assert_eq!(values.len(), 7);
        assert_eq!(values["h0/enabled"], "false");
        assert_eq!(values["h1/enabled"], "true", "the other side's value wins");
        assert_eq!(accepting.report().counts.deletes, Pair::default());

        // The consent applied only to the store of that time.
        handle.wipe();
        harness.await_halt(&accepting);
    }
}

/// Gates on both sides, and a bridge that has halted because `side` lost its mark; then `side` is emptied.
fn emptied_before_a_halted_bridge(side: Side, gates: usize) -> (Harness, Bridge) {
    let (harness, standing) = Harness::with_gates(0..gates);
    harness.delete(side, &ControlKey::Bridge);
    harness.await_halt(&standing);
    for name in 0..gates {
        harness.delete(side, &gate(&format!("h{name}")));
    }
    harness.wait_until("the watch has seen the deletes", |_| {
        standing.report().sides.of(side).keys == 0
    });
    (harness, standing)
}

/// All bridges of the pair continue once one of them has the consent; changes seen while halted are not edits.
#[test]
fn deletes_seen_by_a_halted_bridge_are_not_replicated_once_the_side_is_accepted() {
    for side in Side::BOTH {
        let (mut harness, standing) = emptied_before_a_halted_bridge(side, 300);
        harness.accept = only(side);
        let accepting = harness.bridge("accepting", side.other());
        harness.settle(&accepting);
        harness.settle(&standing);
        for side in Side::BOTH {
            assert_eq!(harness.values(side).len(), 300, "{side}");
        }
        for bridge in [&accepting, &standing] {
            assert_eq!(bridge.report().counts.deletes, Pair::default());
        }
    }
}

/// As above, for a bridge that joins the pair before anything was restored.
#[test]
fn deletes_seen_by_a_halted_bridge_are_restored_by_it() {
    for side in Side::BOTH {
        let (harness, standing) = emptied_before_a_halted_bridge(side, 30);
        let sync_state = harness.sync_state.list().expect("the store is reachable");
        let trees = Pair::from_fn(|side| {
            harness
                .sides
                .of(side)
                .list()
                .expect("the store is reachable")
        });
        let both = Pair::from_fn(|side| trees.of(side));
        let PairCheck::Renew(mut renewal) =
            check_pair(harness.name, &sync_state, &both, false, only(side), 0)
        else {
            panic!("the store is accepted");
        };
        let sides = Pair::from_fn(|side| harness.sides.of(side) as &dyn Store);
        while let Progress::Going = renewal.step(sides, &harness.sync_state, 0) {}
        harness.settle(&standing);
        for side in Side::BOTH {
            assert_eq!(harness.values(side).len(), 30, "{side}");
        }
        assert_eq!(standing.report().counts.deletes, Pair::default());
    }
}

/// A restore under a new cluster id keeps everything except the store's identity, including the sync state of that time.
#[test]
fn an_etcd_restored_under_a_new_id_receives_newer_values_once_accepted() {
    let (mut harness, bridge) = Harness::with_gates(0..4);
    let backup = harness.sides.etcd.handle().back_up().as_another();
    let sync_state = harness.sync_state.handle().back_up();
    harness.put(Side::ZooKeeper, &gate("h0"), "false");
    harness.put(Side::Etcd, &gate("newer"), "true");
    harness.delete(Side::Etcd, &gate("h3"));
    harness.settle(&bridge);
    drop(bridge);
    harness.sides.etcd.handle().restore(&backup);
    harness.sync_state.handle().restore(&sync_state);

    let bridge = harness.bridge("two", Side::Etcd);
    let reason = harness.await_halt(&bridge);
    assert!(reason.contains("--accept-store etcd` instead"), "{reason}");
    harness.accept = only(Side::Etcd);
    let accepting = harness.bridge("three", Side::Etcd);
    harness.settle(&accepting);
    for side in Side::BOTH {
        let values = harness.values(side);
        assert_eq!(values["h0/enabled"], "false", "ZooKeeper's is newer");
        assert_eq!(values["newer/enabled"], "true", "etcd has lost it");
        assert!(
            !values.contains_key("h3/enabled"),
            "deleted after the backup"
        );
    }
}

#[test]
fn a_foreign_etcd_without_sync_state_overrules_nothing_although_preferred() {
    let (harness, bridge) = Harness::with_gates(0..6);
    drop(bridge);
    harness.sides.etcd.handle().wipe();
    harness.sync_state.handle().wipe();
    for name in 0..6 {
        harness.put(Side::Etcd, &gate(&format!("h{name}")), "false");
    }
    let bridge = harness.bridge("two", Side::Etcd);
    let reason = harness.await_halt(&bridge);
    assert!(reason.contains("do not belong together"), "{reason}");
    harness.stays(6, 6);
    let held = harness.values(Side::ZooKeeper);
    assert!(held.values().all(|value| value == "true"), "{held:?}");
}

#[test]
fn a_bridge_of_another_pair_on_the_same_zookeeper_halts_and_the_first_keeps_running() {
    let (harness, bridge) = Harness::with_gates(0..3);
    let mut another = Harness::new();
    another.sides.zookeeper = harness.sides.zookeeper.clone();
    another.put(Side::Etcd, &gate("h0"), "false");
    let stopped = another.bridge("another", Side::Etcd);
    let reason = another.await_halt(&stopped);
    assert!(reason.contains("do not belong together"), "{reason}");
    harness.put(Side::Etcd, &gate("h1"), "false");
    harness.wait_for(Side::ZooKeeper, &gate("h1"), Some("false"));
    harness.settle(&bridge);
    assert_eq!(another.values(Side::Etcd).len(), 1);

    // ZooKeeper is taken over by the other pair: now the first bridge halts.
    another.accept = only(Side::ZooKeeper);
    let accepting = another.bridge("accepting", Side::Etcd);
    another.settle(&accepting);
    harness.await_halt(&bridge);
    assert_eq!(another.values(Side::ZooKeeper)["h0/enabled"], "false");
    assert_eq!(harness.values(Side::Etcd)["h0/enabled"], "true");
}

#[test]
fn an_etcd_can_be_a_side_of_two_pairs() {
    let (harness, bridge) = Harness::with_gates(0..3);
    let mut second = Harness::new();
    second.sides.etcd = harness.sides.etcd.clone();
    let other = second.bridge("other", Side::Etcd);
    second.settle(&other);
    second.put(Side::ZooKeeper, &gate("h1"), "false");
    harness.wait_for(Side::ZooKeeper, &gate("h1"), Some("false"));
    harness.settle(&bridge);
}

#[test]
fn a_bridge_with_another_name_on_bridged_stores_halts_and_the_first_keeps_running() {
    let (mut harness, bridge) = Harness::with_gates(0..3);
    let sync_state = std::mem::take(&mut harness.sync_state);
    harness.name = "renamed";
    let renamed = harness.bridge("two", Side::ZooKeeper);
    let reason = harness.await_halt(&renamed);
    assert!(
        reason.contains("sync state is stored below \"pair\""),
        "{reason}"
    );
    let renamed_notes = std::mem::replace(&mut harness.sync_state, sync_state);
    assert_eq!(
        renamed_notes
            .list()
            .expect("the store is reachable")
            .entries
            .len(),
        0
    );
    harness.put(Side::Etcd, &gate("h1"), "false");
    harness.wait_for(Side::ZooKeeper, &gate("h1"), Some("false"));
    harness.settle(&bridge);

    // With consent it takes the pair over.
    harness.sync_state = renamed_notes;
    harness.accept = only(Side::ZooKeeper);
    let accepting = harness.bridge("three", Side::Etcd);
    harness.settle(&accepting);
    harness.settle(&renamed);
    harness.await_halt(&bridge);
}

/// The configured name is written to the mark of a known pair, whatever name the mark has.
#[test]
fn a_mark_without_its_pairs_name_receives_it() {
    let (mut harness, bridge) = Harness::with_gates(0..3);
    drop(bridge);
    let mark = harness.sides.etcd.handle().held(&ControlKey::Bridge);
    let mark = String::from_utf8(mark.expect("a mark").to_vec()).expect("UTF-8");
    let id = mark.split(' ').next().expect("an id").to_owned();
    for before in [id.clone(), format!("{id} former")] {
        harness.put(Side::Etcd, &ControlKey::Bridge, &before);
        let bridge = harness.bridge("two", Side::Etcd);
        harness.wait_until("the mark has a name", |harness| {
            let mark = harness.sides.etcd.handle().held(&ControlKey::Bridge);
            mark.is_some_and(|mark| *mark == *format!("{id} pair").as_bytes())
        });
        harness.settle(&bridge);
    }
    harness.sync_state = MemoryStore::new();
    harness.name = "renamed";
    let renamed = harness.bridge("three", Side::Etcd);
    harness.await_halt(&renamed);
}

#[test]
fn problems_of_both_sides_are_reported_and_accepted_together() {
    let (mut harness, bridge) = Harness::with_gates(0..4);
    for side in Side::BOTH {
        harness.delete(side, &ControlKey::Bridge);
    }
    harness.await_halt(&bridge);
    drop(bridge);
    let both = "--accept-store etcd --accept-store zookeeper`";
    for accepted in Side::BOTH {
        // Consent for one side is not enough: both are reported again.
        let planned = dry_run(&harness.stores(), Side::Etcd, only(accepted))
            .expect("both stores are reachable");
        let reason = planned.halt.expect("why").to_string();
        assert!(reason.contains(both), "{reason}");
        let twice = reason.matches("does not carry the mark").count();
        assert_eq!(twice, 2, "{reason}");
    }
    harness.put(Side::ZooKeeper, &gate("h0"), "false");
    harness.delete(Side::ZooKeeper, &gate("h1"));
    harness.accept = Pair::from_fn(|_| true);
    let accepting = harness.bridge("two", Side::Etcd);
    harness.settle(&accepting);
    assert_eq!(harness.values(Side::ZooKeeper).len(), 4);
    assert_eq!(harness.values(Side::ZooKeeper)["h0/enabled"], "true");
}

#[test]
fn deleted_sync_state_is_rebuilt_between_sides_of_one_pair() {
    let (harness, bridge) = Harness::with_gates(0..3);
    drop(bridge);
    harness.sync_state.handle().wipe();
    let bridge = harness.bridge("two", Side::Etcd);
    harness.settle(&bridge);
    harness.delete(Side::ZooKeeper, &gate("h1"));
    harness.wait_for(Side::Etcd, &gate("h1"), None);
}

#[test]
fn a_mark_without_an_id_receives_one_and_a_side_that_loses_it_halts_the_bridge() {
    for side in Side::BOTH {
        let (harness, bridge) = Harness::with_gates(0..3);
        drop(bridge);
        harness.delete(Side::Etcd, &ControlKey::Bridge);
        let record = harness.sync_state.list().expect("the store is reachable");
        let record = PairRecord::of(&record).expect("a pair record");
        let before = PairRecord {
            id: None,
            ..record.clone()
        };
        let json = serde_json::to_string(&before).expect("plain data");
        let written =
            (harness.sync_state).write(&ControlKey::Bridge, Some(json.as_bytes()), Expected::Any);
        written.expect("the store is reachable");
        harness.put(
            Side::ZooKeeper,
            &ControlKey::Bridge,
            &record.mark.to_string(),
        );
        let bridge = harness.bridge("two", Side::Etcd);
        harness.settle(&bridge);

        harness.delete(side, &ControlKey::Bridge);
        let reason = harness.await_halt(&bridge);
        assert!(reason.contains("does not carry the mark"), "{reason}");
        assert!(
            reason.contains(&format!("--accept-store {side}`")),
            "{reason}"
        );
    }
}
