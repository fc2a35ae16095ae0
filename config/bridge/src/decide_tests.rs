//! Decisions about one key, case by case.

use sluicegate_store::KeyVersion;

use super::*;
use crate::Pending;

const NOW: u64 = 1_000_000;

fn at(value: &str, revision: u64) -> Option<Entry> {
    let version = i64::try_from(revision).unwrap();
    Some(Entry {
        value: value.as_bytes().into(),
        stamp: KeyVersion { revision, version },
    })
}

fn recorded(value: Option<&str>, etcd: u64, zookeeper: u64) -> Option<SyncState> {
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
    sync: Option<&SyncState>,
    fresh: bool,
) -> Decision {
    let at_100 = Pair::from_fn(|_| 100);
    decided_at(at_100, etcd, zookeeper, sync, fresh)
}

fn decided_at(
    revisions: Pair<u64>,
    etcd: Option<Entry>,
    zookeeper: Option<Entry>,
    sync: Option<&SyncState>,
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
    decided_of(&pair, revisions, etcd, zookeeper, sync, fresh)
}

fn decided_of(
    pair: &PairRecord,
    revisions: Pair<u64>,
    etcd: Option<Entry>,
    zookeeper: Option<Entry>,
    sync: Option<&SyncState>,
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
        sync,
        ages: &Ages::as_recorded(sync, NOW),
        forget: false,
        pair,
        fresh,
        preferred_side: Side::Etcd,
        own: "me",
        now_ms: NOW,
    })
}

fn copies(to: Side, conflict: bool) -> Decision {
    Decision::Copy { to, conflict }
}

#[test]
fn a_change_on_one_side_is_copied() {
    let sync = recorded(Some("true"), 5, 7);
    let changed = decided(at("false", 6), at("true", 7), sync.as_ref(), false);
    assert_eq!(changed, copies(Side::ZooKeeper, false));
    let changed = decided(at("true", 5), at("false", 8), sync.as_ref(), false);
    assert_eq!(changed, copies(Side::Etcd, false));
    let same = decided(at("true", 5), at("true", 7), sync.as_ref(), false);
    assert_eq!(same, Decision::NoOp);
}

#[test]
fn a_delete_is_copied_after_confirmation() {
    let sync = recorded(Some("true"), 5, 7);
    let seen = |fresh| decided(None, at("true", 7), sync.as_ref(), fresh);
    assert_eq!(seen(false), Decision::Confirm);
    assert_eq!(seen(true), copies(Side::ZooKeeper, false));
}

#[test]
fn a_reverted_side_loses_keys_again_that_were_deleted_on_both_sides() {
    let went_back = |side: Side| PairRecord {
        mark: 2,
        trusted_from: Pair::from_fn(|one| if one == side { 2 } else { 0 }),
        went_back_at: Pair::from_fn(|one| if one == side { 50 } else { 0 }),
        ..PairRecord::default()
    };
    let deleted = recorded(None, 5, 7);
    let at_100 = || Pair::from_fn(|_| 100);
    for side in Side::BOTH {
        let seen = |pair: &PairRecord, revision, fresh| {
            let there = |one| at("true", revision).filter(|_| one == side);
            let (etcd, zookeeper) = (there(Side::Etcd), there(Side::ZooKeeper));
            decided_of(pair, at_100(), etcd, zookeeper, deleted.as_ref(), fresh)
        };
        let recorded_at = *deleted.as_ref().unwrap().revisions.of(side);
        let pair = went_back(side);
        assert_eq!(seen(&pair, recorded_at, false), Decision::Confirm);
        assert_eq!(seen(&pair, recorded_at, true), copies(side, false));
        let written_since = seen(&pair, recorded_at + 1, true);
        assert_eq!(written_since, copies(side.other(), false));
        let earlier = PairRecord {
            went_back_at: Pair::from_fn(|_| recorded_at - 1),
            ..pair.clone()
        };
        let recreated = seen(&earlier, recorded_at, true);
        assert_eq!(recreated, copies(side.other(), false));
        let other_store = PairRecord {
            taken_over: Pair::from_fn(|one| {
                (one == side).then_some(TakenOver {
                    at: 50,
                    mark: 2,
                    yields: true,
                })
            }),
            ..pair
        };
        let copied = seen(&other_store, recorded_at, true);
        assert_eq!(copied, copies(side.other(), false));
    }
}

#[test]
fn the_sync_state_of_a_deleted_key_is_kept_until_it_expires() {
    let mut sync = recorded(None, 5, 7).unwrap();
    let seen = |sync: &SyncState| decided(None, None, Some(sync), true);
    assert!(matches!(seen(&sync), Decision::Wait { .. }));
    sync.at_ms = NOW - FORGET_MS;
    assert_eq!(seen(&sync), Decision::NoOp);
    let forgotten = decide(&KeyState {
        key: &ControlKey::Logging,
        places: &Pair::default(),
        entries: Pair::default(),
        revisions: Pair::default(),
        deleted: Pair::default(),
        sync: Some(&sync),
        ages: &Ages::as_recorded(Some(&sync), NOW),
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
fn a_key_lost_by_a_side_is_not_a_delete() {
    let mut sync = recorded(Some("true"), 5, 7).unwrap();
    let at = |etcd, zookeeper| Pair { etcd, zookeeper };
    let emptied = |revisions, sync: &SyncState| {
        decided_at(revisions, self::at("true", 5), None, Some(sync), true)
    };
    let written_again = copies(Side::ZooKeeper, false);
    assert_eq!(emptied(at(9, 6), &sync), written_again, "it is older");
    assert_eq!(emptied(at(9, 8), &sync), copies(Side::Etcd, false));
    sync.mark = 0;
    assert_eq!(emptied(at(9, 8), &sync), written_again, "it reverted");
    let gone = decided_at(at(4, 9), None, self::at("true", 7), Some(&sync), true);
    assert_eq!(gone, copies(Side::Etcd, false));
}

#[test]
fn the_preferred_side_wins_a_conflict() {
    let sync = recorded(Some("true"), 5, 7);
    let both = decided(at("false", 6), at(" true", 8), sync.as_ref(), true);
    assert_eq!(both, copies(Side::ZooKeeper, true));
    let first = decided(at("false", 6), at("true", 8), None, true);
    assert_eq!(first, copies(Side::ZooKeeper, true));
}

#[test]
fn a_key_without_sync_state_on_one_side_is_copied() {
    let only = |fresh| decided(None, at("true", 7), None, fresh);
    assert_eq!(only(false), Decision::Confirm);
    assert_eq!(only(true), copies(Side::Etcd, false));
}

#[test]
fn an_accepted_side_yields_what_it_held_but_not_later_edits() {
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
    let seen = |etcd: Option<Entry>, zookeeper: Option<Entry>, sync: Option<&SyncState>| {
        let revisions = Pair::from_fn(|_| 100);
        decided_of(&pair, revisions, etcd, zookeeper, sync, true)
    };
    let to_etcd = copies(Side::Etcd, true);
    // etcd is the preferred side; its revisions are unrelated to the recorded ones.
    let sync = recorded(Some("true"), 5, 7);
    assert_eq!(seen(at("false", 40), at("true", 7), None), to_etcd);
    assert_eq!(seen(at("false", 5), at("true", 7), sync.as_ref()), to_etcd);
    assert_eq!(
        seen(at("false", 40), at(" true", 8), sync.as_ref()),
        to_etcd
    );
    let newer = seen(at("true", 40), at("false", 8), sync.as_ref());
    assert_eq!(newer, copies(Side::Etcd, false), "zookeeper changed it");
    let deleted = seen(at("true", 40), None, sync.as_ref());
    assert_eq!(deleted, copies(Side::Etcd, false), "zookeeper deleted it");
    let lost = seen(None, at("true", 7), sync.as_ref());
    assert_eq!(lost, copies(Side::Etcd, false), "written again");
    let extra = seen(at("false", 40), None, None);
    assert_eq!(extra, copies(Side::ZooKeeper, false), "copied");
    let edited = seen(at("false", 51), at("true", 7), None);
    assert_eq!(
        edited,
        copies(Side::ZooKeeper, true),
        "the preferred side's"
    );
}

#[test]
fn a_reading_older_than_the_sync_state_decides_nothing() {
    let sync = recorded(Some("true"), 5, 7);
    let older = decided(at("false", 4), at("true", 7), sync.as_ref(), false);
    assert_eq!(older, Decision::Stale);
}

#[test]
fn an_announced_write_blocks_other_bridges_and_is_then_an_echo() {
    let mut sync = recorded(Some("true"), 5, 7).unwrap();
    sync.pending.push(Pending {
        to: Side::ZooKeeper,
        value: Some(content_hash(b"false")),
        replaces: 7,
        read_at: 6,
        by: "another".to_owned(),
        at_ms: NOW,
    });
    // The time in the announcement does not count, only how long it has been known here.
    let at_100 = Pair::from_fn(|_| 100);
    let echo =
        |sync: &SyncState| decided_at(at_100, at("true", 9), at("false", 8), Some(sync), true);
    let until_ms = NOW + PENDING_TIMEOUT_MS;
    assert_eq!(echo(&sync), Decision::Wait { until_ms });
    sync.pending[0].at_ms = NOW - PENDING_TIMEOUT_MS;
    assert_eq!(echo(&sync), copies(Side::ZooKeeper, false), "no conflict");
}

#[test]
fn an_invalid_value_is_not_copied() {
    let sync = recorded(Some("true"), 5, 7);
    let refused = decided(at("yes", 6), at("true", 7), sync.as_ref(), false);
    let Decision::Refuse(refusal) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(refusal.side, Side::Etcd);
    assert!(refusal.problems.to_string().contains("true or false"));
}
