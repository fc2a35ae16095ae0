//! Sides that are not those of the notes: the bridge stands still until an operator says which one is to be taken over.

use sluicegate_config::bridge::{
    Bridge, Pair, PairCheck, PairRecord, Progress, Side, check_pair, dry_run,
};
use sluicegate_config::store::{ControlKey, Expected, Store};

use super::{MemoryStore, Scene, gate};

/// An answer of an operator.
fn only(side: Side) -> Pair<bool> {
    Pair::from_fn(|one| one == side)
}

#[test]
fn another_store_stops_the_bridge_until_it_is_accepted_and_nothing_is_deleted() {
    for side in Side::BOTH {
        let (mut scene, bridge) = Scene::with_gates(0..6);
        drop(bridge);
        let handle = scene.sides.of(side).handle();
        let (backup, notes) = (handle.back_up(), scene.notes.handle().back_up());
        handle.wipe();
        // The notes stand in etcd, and go with it.
        let with_notes = side == Side::Etcd;
        if with_notes {
            scene.notes.handle().wipe();
        }
        let bridge = scene.bridge("two", side);
        let reason = scene.await_halt(&bridge);
        let differs = match side {
            Side::Etcd => "there are no notes of it in etcd",
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
        scene.stays(left.0, left.1);
        let planned = dry_run(&scene.stores(), side, Pair::default()).expect("both answer");
        assert!(planned.steps.is_empty());
        assert_eq!(planned.halt.expect("why").to_string(), reason);
        let planned = dry_run(&scene.stores(), side, only(side)).expect("both answer");
        assert!(planned.halt.is_none() && planned.steps.len() == 6);

        // The right store is there again: it goes on by itself.
        handle.restore(&backup);
        if with_notes {
            scene.notes.handle().restore(&notes);
        }
        scene.put(side, &gate("h0"), "false");
        scene.wait_for(side.other(), &gate("h0"), Some("false"));
        scene.settle(&bridge);

        // Or what is there is meant: then it gets what the other side has, whichever side is preferred.
        handle.wipe();
        if with_notes {
            scene.notes.handle().wipe();
        }
        scene.await_halt(&bridge);
        scene.put(side, &gate("h1"), "false");
        scene.put(side, &gate("more"), "true");
        scene.accept = only(side);
        let accepting = scene.bridge("three", side);
        scene.settle(&accepting);
        scene.settle(&bridge);
        let values = scene.values(side);
        assert_eq!(values.len(), 7);
        assert_eq!(values["h0/enabled"], "false");
        assert_eq!(values["h1/enabled"], "true", "the other side's");
        assert_eq!(accepting.report().counts.deletes, Pair::default());

        // That was an answer to what stood there then.
        handle.wipe();
        scene.await_halt(&accepting);
    }
}

/// Gates on both sides, and a bridge that stands still, since `side` has lost its mark, while it is emptied.
fn emptied_before_a_standing_bridge(side: Side, gates: usize) -> (Scene, Bridge) {
    let (scene, standing) = Scene::with_gates(0..gates);
    scene.delete(side, &ControlKey::Bridge);
    scene.await_halt(&standing);
    for name in 0..gates {
        scene.delete(side, &gate(&format!("h{name}")));
    }
    scene.wait_until("the watch has told", |_| {
        standing.report().sides.of(side).keys == 0
    });
    (scene, standing)
}

/// Bridges of the pair go on by themselves once one of them was told; what they saw while they stood still was no edit.
#[test]
fn what_a_standing_bridge_saw_being_emptied_is_not_deleted_once_the_side_is_accepted() {
    for side in Side::BOTH {
        let (mut scene, standing) = emptied_before_a_standing_bridge(side, 300);
        scene.accept = only(side);
        let accepting = scene.bridge("accepting", side.other());
        scene.settle(&accepting);
        scene.settle(&standing);
        for side in Side::BOTH {
            assert_eq!(scene.values(side).len(), 300, "{side}");
        }
        for bridge in [&accepting, &standing] {
            assert_eq!(bridge.report().counts.deletes, Pair::default());
        }
    }
}

/// As above, of a bridge that comes to the pair while nothing was given back yet.
#[test]
fn what_a_standing_bridge_saw_being_emptied_is_given_back_by_it() {
    for side in Side::BOTH {
        let (scene, standing) = emptied_before_a_standing_bridge(side, 30);
        let notes = scene.notes.list().expect("the store is there");
        let trees = Pair::from_fn(|side| scene.sides.of(side).list().expect("the store is there"));
        let both = Pair::from_fn(|side| trees.of(side));
        let PairCheck::Renew(mut renewal) =
            check_pair(scene.name, &notes, &both, false, only(side), 0)
        else {
            panic!("it is accepted");
        };
        let sides = Pair::from_fn(|side| scene.sides.of(side) as &dyn Store);
        while let Progress::Going = renewal.step(sides, &scene.notes, 0) {}
        scene.settle(&standing);
        for side in Side::BOTH {
            assert_eq!(scene.values(side).len(), 30, "{side}");
        }
        assert_eq!(standing.report().counts.deletes, Pair::default());
    }
}

/// A restore under a new cluster id keeps everything but the store's identity, with the notes of that time.
#[test]
fn an_etcd_that_was_restored_as_another_one_gets_what_is_newer_once_it_is_accepted() {
    let (mut scene, bridge) = Scene::with_gates(0..4);
    let backup = scene.sides.etcd.handle().back_up().as_another();
    let notes = scene.notes.handle().back_up();
    scene.put(Side::ZooKeeper, &gate("h0"), "false");
    scene.put(Side::Etcd, &gate("newer"), "true");
    scene.delete(Side::Etcd, &gate("h3"));
    scene.settle(&bridge);
    drop(bridge);
    scene.sides.etcd.handle().restore(&backup);
    scene.notes.handle().restore(&notes);

    let bridge = scene.bridge("two", Side::Etcd);
    let reason = scene.await_halt(&bridge);
    assert!(
        reason.contains("--accept-store etcd` in the place"),
        "{reason}"
    );
    scene.accept = only(Side::Etcd);
    let accepting = scene.bridge("three", Side::Etcd);
    scene.settle(&accepting);
    for side in Side::BOTH {
        let values = scene.values(side);
        assert_eq!(values["h0/enabled"], "false", "ZooKeeper's is newer");
        assert_eq!(values["newer/enabled"], "true", "etcd has lost it");
        assert!(!values.contains_key("h3/enabled"), "it was deleted since");
    }
}

#[test]
fn a_foreign_etcd_without_notes_overrules_nothing_though_it_is_the_preferred_side() {
    let (scene, bridge) = Scene::with_gates(0..6);
    drop(bridge);
    scene.sides.etcd.handle().wipe();
    scene.notes.handle().wipe();
    for name in 0..6 {
        scene.put(Side::Etcd, &gate(&format!("h{name}")), "false");
    }
    let bridge = scene.bridge("two", Side::Etcd);
    let reason = scene.await_halt(&bridge);
    assert!(reason.contains("do not belong together"), "{reason}");
    scene.stays(6, 6);
    let held = scene.values(Side::ZooKeeper);
    assert!(held.values().all(|value| value == "true"), "{held:?}");
}

#[test]
fn a_bridge_of_another_pair_at_the_same_zookeeper_stops_and_the_first_one_works_on() {
    let (scene, bridge) = Scene::with_gates(0..3);
    let mut another = Scene::new();
    another.sides.zookeeper = scene.sides.zookeeper.clone();
    another.put(Side::Etcd, &gate("h0"), "false");
    let stopped = another.bridge("another", Side::Etcd);
    let reason = another.await_halt(&stopped);
    assert!(reason.contains("do not belong together"), "{reason}");
    scene.put(Side::Etcd, &gate("h1"), "false");
    scene.wait_for(Side::ZooKeeper, &gate("h1"), Some("false"));
    scene.settle(&bridge);
    assert_eq!(another.values(Side::Etcd).len(), 1);

    // ZooKeeper changes hands: now the first one stops.
    another.accept = only(Side::ZooKeeper);
    let accepting = another.bridge("accepting", Side::Etcd);
    another.settle(&accepting);
    scene.await_halt(&bridge);
    assert_eq!(another.values(Side::ZooKeeper)["h0/enabled"], "false");
    assert_eq!(scene.values(Side::Etcd)["h0/enabled"], "true");
}

#[test]
fn an_etcd_can_be_a_side_of_two_pairs() {
    let (scene, bridge) = Scene::with_gates(0..3);
    let mut second = Scene::new();
    second.sides.etcd = scene.sides.etcd.clone();
    let other = second.bridge("other", Side::Etcd);
    second.settle(&other);
    second.put(Side::ZooKeeper, &gate("h1"), "false");
    scene.wait_for(Side::ZooKeeper, &gate("h1"), Some("false"));
    scene.settle(&bridge);
}

#[test]
fn a_bridge_with_another_name_between_bridged_stores_stops_and_the_first_one_works_on() {
    let (mut scene, bridge) = Scene::with_gates(0..3);
    let notes = std::mem::take(&mut scene.notes);
    scene.name = "renamed";
    let renamed = scene.bridge("two", Side::ZooKeeper);
    let reason = scene.await_halt(&renamed);
    assert!(reason.contains("notes stand below \"pair\""), "{reason}");
    let renamed_notes = std::mem::replace(&mut scene.notes, notes);
    assert_eq!(renamed_notes.list().expect("it is there").entries.len(), 0);
    scene.put(Side::Etcd, &gate("h1"), "false");
    scene.wait_for(Side::ZooKeeper, &gate("h1"), Some("false"));
    scene.settle(&bridge);

    // Told to, it takes the pair over.
    scene.notes = renamed_notes;
    scene.accept = only(Side::ZooKeeper);
    let accepting = scene.bridge("three", Side::Etcd);
    scene.settle(&accepting);
    scene.settle(&renamed);
    scene.await_halt(&bridge);
}

/// Whatever the mark of a pair says that the notes know, the name of the config is written to it.
#[test]
fn a_mark_without_its_pairs_name_gets_it() {
    let (mut scene, bridge) = Scene::with_gates(0..3);
    drop(bridge);
    let mark = scene.sides.etcd.handle().held(&ControlKey::Bridge);
    let mark = String::from_utf8(mark.expect("a mark").to_vec()).expect("a text");
    let id = mark.split(' ').next().expect("an id").to_owned();
    for before in [id.clone(), format!("{id} former")] {
        scene.put(Side::Etcd, &ControlKey::Bridge, &before);
        let bridge = scene.bridge("two", Side::Etcd);
        scene.wait_until("the mark has a name", |scene| {
            let mark = scene.sides.etcd.handle().held(&ControlKey::Bridge);
            mark.is_some_and(|mark| *mark == *format!("{id} pair").as_bytes())
        });
        scene.settle(&bridge);
    }
    scene.notes = MemoryStore::new();
    scene.name = "renamed";
    let renamed = scene.bridge("three", Side::Etcd);
    scene.await_halt(&renamed);
}

#[test]
fn what_is_wrong_with_both_sides_is_told_and_answered_at_once() {
    let (mut scene, bridge) = Scene::with_gates(0..4);
    for side in Side::BOTH {
        scene.delete(side, &ControlKey::Bridge);
    }
    scene.await_halt(&bridge);
    drop(bridge);
    let both = "--accept-store etcd --accept-store zookeeper`";
    for accepted in Side::BOTH {
        // Whoever answers one half is told of the whole again.
        let planned = dry_run(&scene.stores(), Side::Etcd, only(accepted)).expect("both answer");
        let reason = planned.halt.expect("why").to_string();
        assert!(reason.contains(both), "{reason}");
        let twice = reason.matches("does not carry the mark").count();
        assert_eq!(twice, 2, "{reason}");
    }
    scene.put(Side::ZooKeeper, &gate("h0"), "false");
    scene.delete(Side::ZooKeeper, &gate("h1"));
    scene.accept = Pair::from_fn(|_| true);
    let accepting = scene.bridge("two", Side::Etcd);
    scene.settle(&accepting);
    assert_eq!(scene.values(Side::ZooKeeper).len(), 4);
    assert_eq!(scene.values(Side::ZooKeeper)["h0/enabled"], "true");
}

#[test]
fn notes_that_were_deleted_are_made_anew_between_two_sides_that_belong_together() {
    let (scene, bridge) = Scene::with_gates(0..3);
    drop(bridge);
    scene.notes.handle().wipe();
    let bridge = scene.bridge("two", Side::Etcd);
    scene.settle(&bridge);
    scene.delete(Side::ZooKeeper, &gate("h1"));
    scene.wait_for(Side::Etcd, &gate("h1"), None);
}

#[test]
fn a_mark_from_before_pairs_had_ids_gets_one_and_a_side_that_loses_it_stops_the_bridge() {
    for side in Side::BOTH {
        let (scene, bridge) = Scene::with_gates(0..3);
        drop(bridge);
        scene.delete(Side::Etcd, &ControlKey::Bridge);
        let record = scene.notes.list().expect("it is there");
        let record = PairRecord::of(&record).expect("it was joined");
        let before = PairRecord {
            id: None,
            ..record.clone()
        };
        let json = serde_json::to_string(&before).expect("plain data");
        let written =
            (scene.notes).write(&ControlKey::Bridge, Some(json.as_bytes()), Expected::Any);
        written.expect("it is there");
        scene.put(
            Side::ZooKeeper,
            &ControlKey::Bridge,
            &record.mark.to_string(),
        );
        let bridge = scene.bridge("two", Side::Etcd);
        scene.settle(&bridge);

        scene.delete(side, &ControlKey::Bridge);
        let reason = scene.await_halt(&bridge);
        assert!(reason.contains("does not carry the mark"), "{reason}");
        assert!(
            reason.contains(&format!("--accept-store {side}`")),
            "{reason}"
        );
    }
}
