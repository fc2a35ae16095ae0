//! Decisions about one key, case by case.

use super::*;
use crate::bridge::Pending;
use crate::store::KeyVersion;

const NOW: u64 = 1_000_000;

fn at(value: &str, revision: u64) -> Option<Entry> {
    let version = i64::try_from(revision).unwrap();
    Some(Entry {
        value: value.as_bytes().into(),
        stamp: KeyVersion { revision, version },
    })
}

fn noted(value: Option<&str>, etcd: u64, zookeeper: u64) -> Option<SyncState> {
    Some(SyncState {
        value: value.map(|value| content_hash(value.as_bytes())),
        revisions: Pair { etcd, zookeeper },
        pending: Vec::new(),
        at_ms: NOW,
        mark: 1,
    })
}

fn decided(
    etcd: Option<Entry>,
    zookeeper: Option<Entry>,
    note: Option<&SyncState>,
    fresh: bool,
) -> Decision {
    let at_100 = Pair::from_fn(|_| 100);
    decided_at(at_100, etcd, zookeeper, note, fresh)
}

fn decided_at(
    revisions: Pair<u64>,
    etcd: Option<Entry>,
    zookeeper: Option<Entry>,
    note: Option<&SyncState>,
    fresh: bool,
) -> Decision {
    let pair = PairRecord {
        mark: 1,
        trusted_from: Pair {
            etcd: 0,
            zookeeper: 1,
        },
        ..PairRecord::default()
    };
    decided_of(&pair, revisions, etcd, zookeeper, note, fresh)
}

fn decided_of(
    pair: &PairRecord,
    revisions: Pair<u64>,
    etcd: Option<Entry>,
    zookeeper: Option<Entry>,
    note: Option<&SyncState>,
    fresh: bool,
) -> Decision {
    decide(&KeyState {
        key: &ControlKey::Logging,
        places: &Pair::default(),
        entries: Pair {
            etcd: etcd.as_ref(),
            zookeeper: zookeeper.as_ref(),
        },
        revisions,
        deleted: Pair::default(),
        note,
        ages: &Ages::as_told(note, NOW),
        forget: false,
        pair,
        fresh,
        preferred_side: Side::Etcd,
        own: "me",
        now_ms: NOW,
    })
}

fn crosses(to: Side, conflict: bool) -> Decision {
    Decision::Copy { to, conflict }
}

#[test]
fn a_change_of_one_side_crosses() {
    let note = noted(Some("true"), 5, 7);
    let changed = decided(at("false", 6), at("true", 7), note.as_ref(), false);
    assert_eq!(changed, crosses(Side::ZooKeeper, false));
    let changed = decided(at("true", 5), at("false", 8), note.as_ref(), false);
    assert_eq!(changed, crosses(Side::Etcd, false));
    let same = decided(at("true", 5), at("true", 7), note.as_ref(), false);
    assert_eq!(same, Decision::NoOp);
}

#[test]
fn a_delete_crosses_once_it_is_confirmed() {
    let note = noted(Some("true"), 5, 7);
    let seen = |fresh| decided(None, at("true", 7), note.as_ref(), fresh);
    assert_eq!(seen(false), Decision::Confirm);
    assert_eq!(seen(true), crosses(Side::ZooKeeper, false));
}

#[test]
fn what_was_deleted_on_both_sides_is_deleted_again_where_a_side_went_back_to_it() {
    let went_back = |side: Side| PairRecord {
        mark: 2,
        trusted_from: Pair::from_fn(|one| if one == side { 2 } else { 0 }),
        went_back_at: Pair::from_fn(|one| if one == side { 50 } else { 0 }),
        ..PairRecord::default()
    };
    let deleted = noted(None, 5, 7);
    let at_100 = || Pair::from_fn(|_| 100);
    for side in Side::BOTH {
        let seen = |pair: &PairRecord, revision, fresh| {
            let there = |one| at("true", revision).filter(|_| one == side);
            let (etcd, zookeeper) = (there(Side::Etcd), there(Side::ZooKeeper));
            decided_of(pair, at_100(), etcd, zookeeper, deleted.as_ref(), fresh)
        };
        let noted_at = *deleted.as_ref().unwrap().revisions.of(side);
        let pair = went_back(side);
        assert_eq!(seen(&pair, noted_at, false), Decision::Confirm);
        assert_eq!(seen(&pair, noted_at, true), crosses(side, false));
        let written_since = seen(&pair, noted_at + 1, true);
        assert_eq!(written_since, crosses(side.other(), false));
        let earlier = PairRecord {
            went_back_at: Pair::from_fn(|_| noted_at - 1),
            ..pair.clone()
        };
        let made_anew = seen(&earlier, noted_at, true);
        assert_eq!(made_anew, crosses(side.other(), false));
        let another_store = PairRecord {
            taken_over: Pair::from_fn(|one| {
                (one == side).then_some(TakenOver {
                    at: 50,
                    mark: 2,
                    yields: true,
                })
            }),
            ..pair
        };
        let copied = seen(&another_store, noted_at, true);
        assert_eq!(copied, crosses(side.other(), false));
    }
}

#[test]
fn the_note_of_a_deleted_key_stays_until_it_is_old() {
    let mut note = noted(None, 5, 7).unwrap();
    let seen = |note: &SyncState| decided(None, None, Some(note), true);
    assert!(matches!(seen(&note), Decision::Wait { .. }));
    note.at_ms = NOW - FORGET_MS;
    assert_eq!(seen(&note), Decision::NoOp);
    let forgotten = decide(&KeyState {
        key: &ControlKey::Logging,
        places: &Pair::default(),
        entries: Pair::default(),
        revisions: Pair::default(),
        deleted: Pair::default(),
        note: Some(&note),
        ages: &Ages::as_told(Some(&note), NOW),
        forget: true,
        pair: &PairRecord::default(),
        fresh: true,
        preferred_side: Side::Etcd,
        own: "me",
        now_ms: NOW,
    });
    assert_eq!(forgotten, Decision::RecordInSync(None));
}

#[test]
fn what_a_side_has_lost_is_no_delete() {
    let mut note = noted(Some("true"), 5, 7).unwrap();
    let at = |etcd, zookeeper| Pair { etcd, zookeeper };
    let emptied = |revisions, note: &SyncState| {
        decided_at(revisions, self::at("true", 5), None, Some(note), true)
    };
    let written_again = crosses(Side::ZooKeeper, false);
    assert_eq!(emptied(at(9, 6), &note), written_again, "it is older");
    assert_eq!(emptied(at(9, 8), &note), crosses(Side::Etcd, false));
    note.mark = 0;
    assert_eq!(emptied(at(9, 8), &note), written_again, "it went back");
    let gone = decided_at(at(4, 9), None, self::at("true", 7), Some(&note), true);
    assert_eq!(gone, crosses(Side::Etcd, false));
}

#[test]
fn a_conflict_goes_to_the_preferred_side() {
    let note = noted(Some("true"), 5, 7);
    let both = decided(at("false", 6), at(" true", 8), note.as_ref(), true);
    assert_eq!(both, crosses(Side::ZooKeeper, true));
    let first = decided(at("false", 6), at("true", 8), None, true);
    assert_eq!(first, crosses(Side::ZooKeeper, true));
}

#[test]
fn a_key_of_one_side_that_nobody_knows_is_copied() {
    let only = |fresh| decided(None, at("true", 7), None, fresh);
    assert_eq!(only(false), Decision::Confirm);
    assert_eq!(only(true), crosses(Side::Etcd, false));
}

#[test]
fn what_a_side_held_when_it_was_taken_over_gives_way_and_an_edit_since_does_not() {
    let taken = TakenOver {
        at: 50,
        mark: 2,
        yields: true,
    };
    let pair = PairRecord {
        mark: 2,
        trusted_from: Pair {
            etcd: 2,
            zookeeper: 0,
        },
        taken_over: Pair {
            etcd: Some(taken),
            zookeeper: None,
        },
        ..PairRecord::default()
    };
    let seen = |etcd: Option<Entry>, zookeeper: Option<Entry>, note: Option<&SyncState>| {
        let revisions = Pair::from_fn(|_| 100);
        decided_of(&pair, revisions, etcd, zookeeper, note, true)
    };
    let to_etcd = crosses(Side::Etcd, true);
    // etcd is the preferred side; its revisions have nothing to do with the noted ones.
    let note = noted(Some("true"), 5, 7);
    assert_eq!(seen(at("false", 40), at("true", 7), None), to_etcd);
    assert_eq!(seen(at("false", 5), at("true", 7), note.as_ref()), to_etcd);
    assert_eq!(
        seen(at("false", 40), at(" true", 8), note.as_ref()),
        to_etcd
    );
    let newer = seen(at("true", 40), at("false", 8), note.as_ref());
    assert_eq!(newer, crosses(Side::Etcd, false), "zookeeper changed it");
    let deleted = seen(at("true", 40), None, note.as_ref());
    assert_eq!(deleted, crosses(Side::Etcd, false), "zookeeper deleted it");
    let lost = seen(None, at("true", 7), note.as_ref());
    assert_eq!(lost, crosses(Side::Etcd, false), "written again");
    let extra = seen(at("false", 40), None, None);
    assert_eq!(extra, crosses(Side::ZooKeeper, false), "copied");
    let edited = seen(at("false", 51), at("true", 7), None);
    assert_eq!(
        edited,
        crosses(Side::ZooKeeper, true),
        "the preferred side's"
    );
}

#[test]
fn a_reading_that_is_older_than_the_note_decides_nothing() {
    let note = noted(Some("true"), 5, 7);
    let older = decided(at("false", 4), at("true", 7), note.as_ref(), false);
    assert_eq!(older, Decision::Stale);
}

#[test]
fn an_announced_write_is_left_alone_and_then_known_as_an_echo() {
    let mut note = noted(Some("true"), 5, 7).unwrap();
    note.pending.push(Pending {
        to: Side::ZooKeeper,
        value: Some(content_hash(b"false")),
        replaces: 7,
        read_at: 6,
        by: "another".to_owned(),
        at_ms: NOW,
    });
    // What the announcement says of the time does not count, only how long it is known here.
    let at_100 = Pair::from_fn(|_| 100);
    let echo =
        |note: &SyncState| decided_at(at_100, at("true", 9), at("false", 8), Some(note), true);
    let until_ms = NOW + PENDING_TIMEOUT_MS;
    assert_eq!(echo(&note), Decision::Wait { until_ms });
    note.pending[0].at_ms = NOW - PENDING_TIMEOUT_MS;
    assert_eq!(echo(&note), crosses(Side::ZooKeeper, false), "no conflict");
}

#[test]
fn a_value_that_is_not_valid_does_not_cross() {
    let note = noted(Some("true"), 5, 7);
    let refused = decided(at("yes", 6), at("true", 7), note.as_ref(), false);
    let Decision::Refuse(refusal) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(refusal.side, Side::Etcd);
    assert!(refusal.problems.to_string().contains("true or false"));
}
