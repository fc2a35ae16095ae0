//! Situation: a watch of a real etcd, through every known cause of silently failing watches.
//! Property: changes made during an outage are seen within 5 s of recovery, nothing is applied backwards (G10), and events that a
//! server silently lost are found by the re-list and counted. A store that is restored from a backup is followed again.
//! Needs: Kafka, ZooKeeper and etcd of its own.
//! At once: 2
//! Command: `cargo xtask test --scenario stores_etcd_faults`; `--long` pauses for 40 s and cuts for 60 s.

use std::sync::Arc;
use std::time::Duration;

use sluicegate_config::control::MemberReport;
use sluicegate_config::service::EtcdSettings;
use sluicegate_kit::store_conformance::Record;
use sluicegate_store::{Cause, OpenStore, Store};

use crate::stores::{
    DETECTION_DEADLINE, RECOVERY_DEADLINE, assert_recovered, change_during_outage, delete, gate,
    put, watched,
};
use e2e::etcd::{Etcd, EtcdOptions};
use e2e::long;
use e2e::process::Signal;
use e2e::proxy::{Protocol, Proxy, Traffic};
use e2e::wait::{stays, wait_for};
use serde_json::json;

fn own(nodes: usize) -> Etcd {
    let options = EtcdOptions {
        nodes,
        ..EtcdOptions::default()
    };
    Etcd::start_own(&options).unwrap_or_else(|error| panic!("{error:#}"))
}

fn open(endpoints: &[&str]) -> Arc<dyn Store> {
    open_with(&EtcdSettings::new(endpoints))
}

fn open_with(settings: &EtcdSettings) -> Arc<dyn Store> {
    settings.open().unwrap_or_else(|error| panic!("{error}"))
}

/// A store behind a proxy, and one with a direct connection.
fn proxied(etcd: &Etcd) -> (Proxy, Arc<dyn Store>, Arc<dyn Store>) {
    let target = etcd.endpoint().trim_start_matches("http://");
    let proxy = Proxy::start(target, Protocol::Etcd).unwrap_or_else(|error| panic!("{error:#}"));
    let reader = open(&[&format!("http://{}", proxy.address())]);
    let direct = open(&[etcd.endpoint()]);
    let identity = |store: &Arc<dyn Store>| {
        let tree = store.list().unwrap_or_else(|error| panic!("{error}"));
        tree.identity
    };
    // The address is not part of the identity of a store.
    assert_eq!(identity(&reader), identity(&direct));
    (proxy, reader, direct)
}

#[test]
fn a_restart_after_a_kill() {
    let mut etcd = own(1);
    let store = open(&[etcd.endpoint()]);
    let key = gate("auditor");
    let (record, _watch) = watched(&*store, &key);
    for _ in 0..3 {
        etcd.kill(0);
        etcd.start_again(0)
            .unwrap_or_else(|error| panic!("{error:#}"));
        change_during_outage(&*open(&[etcd.endpoint()]), &key, "false");
        assert_recovered(&record, &key, "false");
    }
}

#[test]
fn a_paused_process() {
    let etcd = own(1);
    let store = open(&[etcd.endpoint()]);
    let key = gate("auditor");
    let (record, _watch) = watched(&*store, &key);
    etcd.signal(0, Signal::STOP);
    let span = Duration::from_secs(if long() { 40 } else { 10 });
    let last = record.tree().expect("a tree");
    stays("the last tree", span, || match record.tree() {
        Some(tree) if tree == last => Ok(()),
        other => Err(format!("{other:?}")),
    });
    record.until_away(DETECTION_DEADLINE);
    etcd.signal(0, Signal::CONT);
    change_during_outage(&*open(&[etcd.endpoint()]), &key, "false");
    assert_recovered(&record, &key, "false");
}

/// Cuts the connection; the following re-list is answered, and the watch after it is held back until traffic flows.
fn hold_the_watch_behind_the_re_list(proxy: &Proxy, record: &Record) {
    proxy.set(Traffic::Cut);
    record.until_away(DETECTION_DEADLINE);
    proxy.set(Traffic::HoldingRequests);
    wait_for("the re-list", DETECTION_DEADLINE, || {
        match proxy.answered() {
            0 => Err("no answer yet".to_owned()),
            _ => Ok(()),
        }
    });
}

#[test]
fn compacted_behind_the_watchs_back() {
    let etcd = own(1);
    let (proxy, reader, writer) = proxied(&etcd);
    let key = gate("auditor");
    let (record, _watch) = watched(&*reader, &key);
    // The watch after the re-list arrives when its start revision is already compacted.
    hold_the_watch_behind_the_re_list(&proxy, &record);
    change_during_outage(&*writer, &key, "true");
    let stamp = put(&*writer, &key, "false");
    etcd.compact(stamp.revision);
    proxy.set(Traffic::Flowing);
    assert_recovered(&record, &key, "false");
    put(&*writer, &key, "true");
    record.until_value(&key, Some("true"), RECOVERY_DEADLINE);
    assert_eq!(
        record.count(Cause::MissedUpdate),
        0,
        "it did not wait for the re-list"
    );

    let history = writer
        .history(&key, 10)
        .unwrap_or_else(|error| panic!("{error}"));
    let kept: Vec<Option<Vec<u8>>> = history.into_iter().map(|past| past.value).collect();
    assert_eq!(kept, [Some(b"true".to_vec()), Some(b"false".to_vec())]);
}

#[test]
fn a_delete_and_a_put_behind_the_watchs_back() {
    let etcd = own(1);
    let (proxy, reader, writer) = proxied(&etcd);
    let key = gate("auditor");
    let (record, _watch) = watched(&*reader, &key);
    // The watch after the re-list arrives long after its start revision: etcd sends the missed events in one response,
    // whose header has the current revision.
    hold_the_watch_behind_the_re_list(&proxy, &record);
    for _ in 0..3 {
        delete(&*writer, &key);
        put(&*writer, &key, "false");
        put(&*writer, &gate("busy"), "true");
    }
    proxy.set(Traffic::Flowing);
    record.until_value(&gate("busy"), Some("true"), RECOVERY_DEADLINE);
    record.until_value(&key, Some("false"), RECOVERY_DEADLINE);
    assert_eq!(
        record.count(Cause::MissedUpdate),
        0,
        "it did not wait for the re-list"
    );
}

#[test]
fn a_member_is_removed() {
    let etcd = own(3);
    let endpoints = etcd.endpoints();
    let key = gate("auditor");
    // Each starts with a random member: some of them use the removed one.
    let stores: Vec<Arc<dyn Store>> = (0..8).map(|_| open(&endpoints)).collect();
    let watches: Vec<_> = stores.iter().map(|store| watched(&**store, &key)).collect();
    etcd.remove_member("node-2", DETECTION_DEADLINE);
    change_during_outage(&*open(&endpoints[..2]), &key, "false");
    for (record, _watch) in &watches {
        assert_recovered(record, &key, "false");
    }
}

#[test]
fn the_majority_is_lost() {
    let etcd = own(3);
    let reader = open(&etcd.endpoints()[..1]);
    let key = gate("auditor");
    let (record, _watch) = watched(&*reader, &key);
    for node in [1, 2] {
        etcd.signal(node, Signal::STOP);
    }
    record.until_away(DETECTION_DEADLINE);
    for node in [1, 2] {
        etcd.signal(node, Signal::CONT);
    }
    change_during_outage(&*open(&etcd.endpoints()[1..]), &key, "false");
    assert_recovered(&record, &key, "false");
}

#[test]
fn an_idle_watch_keeps_its_connection() {
    let etcd = own(1);
    let (proxy, reader, writer) = proxied(&etcd);
    crate::stores::faults::stay_idle(&proxy, &*reader, &*writer);
}

#[test]
fn the_network_is_cut() {
    let etcd = own(1);
    let (proxy, reader, writer) = proxied(&etcd);
    crate::stores::faults::cut_the_network(&proxy, &*reader, &*writer);
}

#[test]
fn events_are_swallowed() {
    let etcd = own(1);
    let target = etcd.endpoint().trim_start_matches("http://");
    let proxy = Proxy::start(target, Protocol::Etcd).unwrap_or_else(|error| panic!("{error:#}"));
    let mut settings = EtcdSettings::new(&[&format!("http://{}", proxy.address())]);
    settings.relist = crate::stores::faults::RELIST_INTERVAL;
    crate::stores::faults::swallow_events(
        &proxy,
        &*open_with(&settings),
        &*open(&[etcd.endpoint()]),
    );
}

#[test]
fn a_members_lease_expires() {
    let etcd = own(1);
    let (proxy, _, other) = proxied(&etcd);
    let mut settings = EtcdSettings::new(&[&format!("http://{}", proxy.address())]);
    settings.member_ttl = Duration::from_secs(2);
    let store = open_with(&settings);
    let member = store
        .join(crate::stores::report("host-1", 1))
        .unwrap_or_else(|error| panic!("{error}"));
    let until = |wanted: usize| {
        wait_for("the member's key", DETECTION_DEADLINE, || {
            match other.members() {
                Ok(members) if members.len() == wanted => Ok(members),
                other => Err(format!("{other:?}")),
            }
        })
    };
    until(1);
    proxy.set(Traffic::Cut);
    until(0);
    member.report(crate::stores::report("host-1", 2));
    proxy.set(Traffic::Flowing);
    let told = MemberReport::from_json(&until(1)[0].1).expect("a report");
    assert_eq!(told.applied_revision, 2, "the latest report is written");
}

#[test]
fn a_frequently_reporting_member_keeps_its_key_and_restores_it_after_a_delete() {
    let etcd = own(1);
    let mut settings = EtcdSettings::new(&[etcd.endpoint()]);
    settings.member_ttl = Duration::from_secs(2);
    let store = open_with(&settings);
    let member = store
        .join(crate::stores::report("host-1", 1))
        .unwrap_or_else(|error| panic!("{error}"));
    let listed = || {
        let members = store.members().unwrap_or_else(|error| panic!("{error}"));
        members.len()
    };
    let key_is = |wanted: usize| {
        wait_for("the member's key", settings.member_ttl, || match listed() {
            listed if listed == wanted => Ok(()),
            listed => Err(format!("{listed} members")),
        });
    };
    key_is(1);
    // Each change of the control plane causes a report: a gate written ten times per second causes ten.
    let mut revision = 1;
    stays("the member's key", 4 * settings.member_ttl, || {
        revision += 1;
        member.report(crate::stores::report("host-1", revision));
        match listed() {
            1 => Ok(()),
            listed => Err(format!("{listed} members after {revision} reports")),
        }
    });
    let deleted = json!({ "key": base64(b"/sluicegate/members/host-1") });
    for _ in 0..3 {
        etcd.ask(0, "/v3/kv/deleterange", &deleted, None)
            .unwrap_or_else(|error| panic!("{error:#}"));
        key_is(1);
    }
    drop(member);
    key_is(0);
}

#[test]
fn more_keys_than_a_page_and_an_unrecognized_key() {
    const KEYS: usize = 300;
    let etcd = own(1);
    let store = open(&[etcd.endpoint()]);
    for at in 0..KEYS {
        put(&*store, &gate(&format!("many-{at}")), "true");
    }
    let tree = store.list().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(tree.entries.len(), KEYS);
    // Values of 1 MiB are accepted, and so is a page of them.
    let long = "x".repeat(1024 * 1024);
    for at in 0..12 {
        put(&*store, &gate(&format!("many-{at}")), &long);
    }
    let (record, _watch) = Record::watch(&*store);
    record.until("all keys", DETECTION_DEADLINE, |record| {
        record.tree().is_some_and(|tree| tree.entries.len() == KEYS)
    });
    let unrecognized =
        json!({ "key": base64(b"/plugins/auditor/enable"), "value": base64(b"true") });
    etcd.ask(0, "/v3/kv/put", &unrecognized, None)
        .unwrap_or_else(|error| panic!("{error:#}"));
    record.until(
        "the report of the unrecognized key",
        RECOVERY_DEADLINE,
        |record| {
            let tree = record.tree().expect("a tree");
            tree.unrecognized_keys
                .get("auditor/enable")
                .is_some_and(|reason| reason.contains("known paths: {name}/enabled"))
        },
    );
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn restored_from_a_backup() {
    let mut etcd = own(1);
    let store = open(&[etcd.endpoint()]);
    let key = gate("auditor");
    let (record, _watch) = watched(&*store, &key);
    let backup = etcd.back_up();
    let backup = backup.unwrap_or_else(|error| panic!("{error:#}"));
    change_during_outage(&*open(&[etcd.endpoint()]), &key, "false");
    record.until_value(&key, Some("false"), RECOVERY_DEADLINE);
    let restored = etcd.restore(Some(&backup));
    restored.unwrap_or_else(|error| panic!("{error:#}"));
    record.until_value(&key, Some("true"), RECOVERY_DEADLINE);
    put(&*open(&[etcd.endpoint()]), &key, "false");
    record.until_value(&key, Some("false"), RECOVERY_DEADLINE);
}
