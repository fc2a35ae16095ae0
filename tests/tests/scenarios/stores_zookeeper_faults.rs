//! Situation: a watch of a real ZooKeeper, through every known cause of silently failing watches.
//! Property: changes made during an outage are seen within 5 s of recovery, nothing is applied backwards (G10), and events that a
//! server silently lost are found by the re-list and counted. A store that is restored from a backup is followed again.
//! Needs: Kafka, ZooKeeper and etcd of its own.
//! At once: 2
//! Command: `cargo xtask test --scenario stores_zookeeper_faults`; `--long` pauses for 40 s and cuts for 60 s.

use std::sync::Arc;
use std::time::Duration;

use sluicegate_config::control::MemberReport;
use sluicegate_config::service::ZooKeeperSettings;
use sluicegate_store::{Cause, OpenStore, Store, StoreError};

use crate::stores::{
    DETECTION_DEADLINE, RECOVERY_DEADLINE, assert_recovered, change_during_outage, delete, gate,
    put, watched,
};
use e2e::long;
use e2e::process::Signal;
use e2e::proxy::{Protocol, Proxy, Traffic};
use e2e::wait::{stays, wait_for};
use e2e::zookeeper::{ZooKeeper, ZooKeeperOptions};

fn own() -> ZooKeeper {
    ZooKeeper::start_own(&ZooKeeperOptions::default()).unwrap_or_else(|error| panic!("{error:#}"))
}

fn open(servers: &str) -> Arc<dyn Store> {
    open_with(&ZooKeeperSettings::new(servers))
}

fn open_with(settings: &ZooKeeperSettings) -> Arc<dyn Store> {
    settings.open().unwrap_or_else(|error| panic!("{error}"))
}

fn proxy_of(zookeeper: &ZooKeeper) -> Proxy {
    Proxy::start(zookeeper.connect(), Protocol::ZooKeeper)
        .unwrap_or_else(|error| panic!("{error:#}"))
}

#[test]
fn a_restart_after_a_kill() {
    let mut zookeeper = own();
    let store = open(zookeeper.connect());
    let key = gate("auditor");
    let (record, _watch) = watched(&*store, &key);
    for _ in 0..2 {
        zookeeper
            .restart()
            .unwrap_or_else(|error| panic!("{error:#}"));
        change_during_outage(&*open(zookeeper.connect()), &key, "false");
        assert_recovered(&record, &key, "false");
    }
}

#[test]
fn a_paused_process() {
    let zookeeper = own();
    let store = open(zookeeper.connect());
    let key = gate("auditor");
    let (record, _watch) = watched(&*store, &key);
    zookeeper.signal(Signal::STOP);
    let span = Duration::from_secs(if long() { 40 } else { 10 });
    let last = record.tree().expect("a tree");
    stays("the last tree", span, || match record.tree() {
        Some(tree) if tree == last => Ok(()),
        other => Err(format!("{other:?}")),
    });
    record.until_away(DETECTION_DEADLINE);
    zookeeper.signal(Signal::CONT);
    change_during_outage(&*open(zookeeper.connect()), &key, "false");
    assert_recovered(&record, &key, "false");
}

#[test]
fn the_session_expires() {
    let zookeeper = own();
    let proxy = proxy_of(&zookeeper);
    let mut settings = ZooKeeperSettings::new(&proxy.address());
    settings.session_timeout = Duration::from_secs(2);
    settings.request_timeout = Duration::from_secs(1);
    let (reader, writer) = (open_with(&settings), open(zookeeper.connect()));
    let key = gate("auditor");
    let (record, _watch) = watched(&*reader, &key);
    let member = reader
        .join(crate::stores::report("host-1", 1))
        .unwrap_or_else(|error| panic!("{error}"));
    let until = |wanted: usize| {
        wait_for("the member's node", DETECTION_DEADLINE, || {
            match writer.members() {
                Ok(members) if members.len() == wanted => Ok(members),
                other => Err(format!("{other:?}")),
            }
        })
    };
    until(1);
    proxy.set(Traffic::Stalled);
    // The server removes the node with the session.
    until(0);
    record.until_away(DETECTION_DEADLINE);
    member.report(crate::stores::report("host-1", 2));
    change_during_outage(&*writer, &key, "false");
    proxy.set(Traffic::Flowing);
    assert_recovered(&record, &key, "false");
    let told = MemberReport::from_json(&until(1)[0].1).expect("a report");
    assert_eq!(told.applied_revision, 2, "the latest report is written");
    drop(member);
    until(0);
}

#[test]
fn the_connection_is_lost_for_a_moment() {
    let zookeeper = own();
    let proxy = proxy_of(&zookeeper);
    let (reader, writer) = (open(&proxy.address()), open(zookeeper.connect()));
    let key = gate("auditor");
    let (record, _watch) = watched(&*reader, &key);
    for round in 0..6 {
        let last = if round % 2 == 0 { "false" } else { "true" };
        let written = put(&*writer, &gate("removed"), "true");
        // Half of the cuts meet a watch that has read everything: only the client's session notice tells that it has ended. The others
        // may also fail the reading of this write.
        if round % 2 == 0 {
            record.until_version(&gate("removed"), written, RECOVERY_DEADLINE);
        }
        proxy.set(Traffic::Cut);
        change_during_outage(&*writer, &key, last);
        proxy.set(Traffic::Flowing);
        assert_recovered(&record, &key, last);
        // The watch continues to deliver later changes.
        put(&*writer, &key, "later");
        record.until_value(&key, Some("later"), RECOVERY_DEADLINE);
    }
    assert_eq!(
        record.count(Cause::MissedUpdate),
        0,
        "it did not wait for the re-list"
    );
}

#[test]
fn an_idle_watch_keeps_its_connection() {
    let zookeeper = own();
    let proxy = proxy_of(&zookeeper);
    let (reader, writer) = (open(&proxy.address()), open(zookeeper.connect()));
    crate::stores::faults::stay_idle(&proxy, &*reader, &*writer);
}

#[test]
fn the_network_is_cut() {
    let zookeeper = own();
    let proxy = proxy_of(&zookeeper);
    let (reader, writer) = (open(&proxy.address()), open(zookeeper.connect()));
    crate::stores::faults::cut_the_network(&proxy, &*reader, &*writer);
}

#[test]
fn events_are_swallowed() {
    let zookeeper = own();
    let proxy = proxy_of(&zookeeper);
    let mut settings = ZooKeeperSettings::new(&proxy.address());
    settings.relist = crate::stores::faults::RELIST_INTERVAL;
    crate::stores::faults::swallow_events(
        &proxy,
        &*open_with(&settings),
        &*open(zookeeper.connect()),
    );
}

#[test]
fn deleting_a_gate_with_a_spec_clears_it_and_no_history_is_kept() {
    let zookeeper = own();
    let store = open(zookeeper.connect());
    let key = gate("auditor");
    let spec = sluicegate_config::control::ControlKey::spec("auditor").expect("a name");
    put(&*store, &spec, "name: auditor");
    put(&*store, &key, "true");
    assert!(store.locate(&key).ends_with("/plugins/auditor"));
    delete(&*store, &key);
    let tree = store.list().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(tree.entries.keys().collect::<Vec<_>>(), [&spec]);
    let refused = store.history(&key, 5);
    assert!(
        matches!(refused, Err(StoreError::NotKept { .. })),
        "{refused:?}"
    );
}

/// Other applications keep nodes below the keys of handlers.
#[test]
fn nodes_below_the_depth_of_keys_are_ignored() {
    let zookeeper = own();
    let mut settings = ZooKeeperSettings::new(zookeeper.connect());
    settings.relist = Duration::from_millis(500);
    let store = open_with(&settings);
    let key = gate("auditor");
    let (record, _watch) = watched(&*store, &key);
    let mut below = ZooKeeperSettings::new(zookeeper.connect());
    below.root = "/plugins/auditor/state".to_owned();
    let below = open_with(&below);
    let told = record.updates().len();
    let mut rounds = 0;
    stays("the watch", Duration::from_secs(6), || {
        rounds += 1;
        put(
            &*below,
            &gate("cursor"),
            if rounds % 2 == 0 { "true" } else { "false" },
        );
        match record.updates().split_off(told) {
            none if none.is_empty() => Ok(()),
            told => Err(format!("{told:?}")),
        }
    });
    delete(&*below, &gate("cursor"));
    put(&*store, &key, "false");
    record.until_value(&key, Some("false"), RECOVERY_DEADLINE);
}

#[test]
fn restored_from_a_backup() {
    let mut zookeeper = own();
    let store = open(zookeeper.connect());
    let key = gate("auditor");
    let (record, _watch) = watched(&*store, &key);
    let backup = zookeeper.back_up();
    let backup = backup.unwrap_or_else(|error| panic!("{error:#}"));
    let writer = open(zookeeper.connect());
    change_during_outage(&*writer, &key, "false");
    record.until_value(&key, Some("false"), RECOVERY_DEADLINE);
    let restored = zookeeper.restore(Some(&backup));
    restored.unwrap_or_else(|error| panic!("{error:#}"));
    record.until_value(&key, Some("true"), RECOVERY_DEADLINE);
    put(&*open(zookeeper.connect()), &key, "false");
    record.until_value(&key, Some("false"), RECOVERY_DEADLINE);
}
