//! Situation: specs and gates are in a real etcd or ZooKeeper; malformed values are written, the store or the service is down at
//! the wrong time, the store is restored or replaced.
//! Property: malformed values are refused by key, path and reason in log, metrics, member key and API while the last good state
//! stays active; a start without the store uses the last good specs on disk, or fails (G10). A restored
//! store is followed again; the contents of a replaced one are held back, reported everywhere, and applied once accepted, also if it
//! has the same cluster id, and after a restart.
//! Needs: Kafka, ZooKeeper and etcd of its own.
//! Command: `cargo xtask test --scenario control_keys`

use std::sync::Arc;
use std::time::Duration;

use e2e::client::{Client, Outgoing};
use e2e::etcd::{Etcd, EtcdOptions};
use e2e::kafka::Kafka;
use e2e::service::{Service, run_binary};
use e2e::wait::wait_for;
use e2e::workdir::Workdir;
use e2e::zookeeper::{ZooKeeper, ZooKeeperOptions};
use e2e::{control, unique};
use sluicegate_config::control::{ControlKey, MemberReport};
use sluicegate_config::service::{EtcdSettings, ZooKeeperSettings};
use sluicegate_store::{Expected, OpenStore, Store};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn own_etcd() -> (Etcd, Arc<dyn Store>, String) {
    let etcd = Etcd::start_own(&EtcdOptions::default()).unwrap_or_else(|error| panic!("{error:#}"));
    let store = EtcdSettings::new(&etcd.endpoints()).open();
    let store = store.unwrap_or_else(|error| panic!("{error}"));
    let handlers = format!(
        "member_id: host-1\n  etcd: {{ endpoints: [\"{}\"], request_timeout: 2s, relist: 1s }}",
        etcd.endpoint()
    );
    (etcd, store, handlers)
}

pub(crate) fn write(store: &dyn Store, key: &ControlKey, value: impl AsRef<[u8]>) -> u64 {
    let written = store.write(key, Some(value.as_ref()), Expected::Any);
    written.unwrap_or_else(|error| panic!("{error}")).revision
}

fn delete(store: &dyn Store, key: &ControlKey) {
    store
        .write(key, None, Expected::Any)
        .unwrap_or_else(|error| panic!("{error}"));
}

/// The report of the only member.
pub(crate) fn member(store: &dyn Store) -> Result<MemberReport, String> {
    let members = store.members().map_err(|error| error.to_string())?;
    match &members[..] {
        [(id, report)] if id == "host-1" => {
            MemberReport::from_json(report).map_err(|error| error.to_string())
        }
        other => Err(format!("{} members", other.len())),
    }
}

fn spec(name: &str, source: &str) -> String {
    format!(
        "name: {name}\nplugin: misbehave\nversion: \"*\"\nroute: {{ topics: [{source}] }}\nconfig: {{ rules: [] }}\n"
    )
}

pub(crate) fn spec_key(name: &str) -> ControlKey {
    ControlKey::Spec(name.to_owned())
}

fn gate(name: &str) -> ControlKey {
    ControlKey::Enabled(name.to_owned())
}

/// Creates a topic, and a folder with the plugin.
pub(crate) fn set_up(handlers: &str) -> (Client, String, Workdir) {
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (source, group) = (unique("keys"), unique("group"));
    client.create_topic(&source, 2);
    let workdir = control::workdir(kafka.bootstrap(), &group, handlers);
    workdir.plugins(&["misbehave"]);
    (client, source, workdir)
}

fn key_of(kind: &str) -> ControlKey {
    match kind {
        "enabled" => gate("a"),
        "spec" => spec_key("a"),
        "config" => ControlKey::Config("a".to_owned()),
        "rollout" => ControlKey::Rollout("a".to_owned()),
        "logging" => ControlKey::Logging,
        "metrics" => ControlKey::MetricsLevel,
        other => panic!("no key is called {other}"),
    }
}

#[test]
fn malformed_values_in_etcd_are_refused_and_the_last_good_state_stays_active() {
    let (_etcd, store, handlers) = own_etcd();
    feed_garbage(&*store, &handlers, true);
}

#[test]
fn malformed_values_in_zookeeper_are_refused_and_the_last_good_state_stays_active() {
    let zookeeper = ZooKeeper::start_own(&ZooKeeperOptions::default())
        .unwrap_or_else(|error| panic!("{error:#}"));
    let store = ZooKeeperSettings::new(zookeeper.connect()).open();
    let store = store.unwrap_or_else(|error| panic!("{error}"));
    let handlers = format!(
        "member_id: host-1\n  zookeeper: {{ servers: \"{}\" }}",
        zookeeper.connect()
    );
    // In ZooKeeper, a node without data has no value.
    feed_garbage(&*store, &handlers, false);
}

fn feed_garbage(store: &dyn Store, handlers: &str, empty_is_a_value: bool) {
    // The tests of the config read the same values: a path out of a listed folder is refused for that reason.
    let (client, source, workdir) =
        set_up(&format!("references: {{ folder: plugins }}\n  {handlers}"));
    write(store, &spec_key("a"), spec("a", &source));
    let mut service = Service::ready(&workdir, &[]);
    let rejections = || -> Result<f64, String> {
        Ok(service
            .metrics()?
            .sum("sluicegate_snapshot_rejections_total", &[]))
    };
    let mut fed = 0;
    for (kind, value, reason) in sluicegate_kit::garbage::GARBAGE {
        if value.is_empty() && !empty_is_a_value {
            continue;
        }
        let key = key_of(kind);
        let shown = format!("{kind} {:?}", String::from_utf8_lossy(value));
        let place = store.locate(&key);
        let before = rejections().unwrap_or_default();
        write(store, &key, value);
        wait_for(&format!("{shown} in the member key"), DEADLINE, || {
            let report = member(store)?;
            let told = report.rejections.iter().find(|told| told.key == place);
            let told = told.ok_or_else(|| format!("{:?}", report.rejections))?;
            let text = format!(
                "{}: {}",
                told.path.as_deref().unwrap_or_default(),
                told.reason
            );
            let said = text.contains(reason) || *reason == ":";
            said.then_some(()).ok_or(text)
        });
        let status = service
            .api("status")
            .unwrap_or_else(|error| panic!("{error}"));
        let last = status["last_rejection"].as_str().unwrap_or_default();
        assert!(last.contains(&place), "{shown}: the API says {last}");
        let counted = rejections().unwrap_or_default();
        assert!(counted > before, "{shown}: not counted");
        if *kind == "spec" {
            write(store, &key, spec("a", &source));
        } else {
            delete(store, &key);
        }
        wait_for(&format!("the end of {shown}"), DEADLINE, || {
            let report = member(store)?;
            let over = report.rejections.is_empty();
            over.then_some(())
                .ok_or_else(|| format!("{:?}", report.rejections))
        });
        fed += 1;
    }
    println!("    {fed} malformed values were refused");
    assert!(fed >= 60, "{fed} values were fed");
    client.produce(
        &source,
        (0..100).map(|n| Outgoing::new(&format!("k{n}"), "v")),
    );
    service.wait_outcomes("a", "ack", 100, DEADLINE);
    let log = service.process().log();
    for place in [store.locate(&spec_key("a")), store.locate(&gate("a"))] {
        assert!(log.contains(&place), "{place} is not in the log");
    }
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn writes_during_downtime_are_applied_at_the_next_start() {
    let (_etcd, store, handlers) = own_etcd();
    let (client, source, workdir) = set_up(&handlers);
    write(&*store, &spec_key("a"), spec("a", &source));
    let mut service = Service::ready(&workdir, &[]);
    client.produce(&source, [Outgoing::new("k", "v")]);
    service.wait_outcomes("a", "ack", 1, DEADLINE);
    assert!(service.stop(DEADLINE).success());
    wait_for("the member key to go", DEADLINE, || match store.members() {
        Ok(members) if members.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    write(&*store, &gate("a"), "false");
    let mut service = Service::ready(&workdir, &[]);
    client.produce(&source, [Outgoing::new("k", "v")]);
    service.wait_outcomes("a", "skipped", 1, DEADLINE);
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn without_the_store_a_service_keeps_running_and_starts_from_its_cache_or_fails() {
    let (mut etcd, store, handlers) = own_etcd();
    let (client, source, workdir) = set_up(&handlers);
    write(&*store, &spec_key("a"), spec("a", &source));
    write(&*store, &gate("a"), "false");
    let mut service = Service::ready(&workdir, &[]);
    let cache = workdir.path().join("handlers.cache");
    wait_for("the gate in the cache", DEADLINE, || {
        let text = std::fs::read_to_string(&cache).map_err(|error| error.to_string())?;
        text.contains("\"enabled\"").then_some(()).ok_or(text)
    });
    etcd.kill(0);
    wait_for("the loss of the store to show", DEADLINE, || {
        let away = service
            .metrics()?
            .sum("sluicegate_control_plane_unreachable_seconds", &[]);
        let (ready, _) = service.get("/readyz")?;
        (away > 0.0 && ready == 200)
            .then_some(())
            .ok_or(format!("away for {away} s, readyz {ready}"))
    });
    client.produce(&source, [Outgoing::new("k", "v")]);
    service.wait_outcomes("a", "skipped", 1, DEADLINE);
    assert!(service.stop(DEADLINE).success());

    start_is_refused(&workdir, "handlers.require_fresh=true", "require_fresh");
    start_is_refused(
        &workdir,
        "handlers.cache=none.cache",
        "no usable cache of an earlier run",
    );

    let mut service = Service::ready(&workdir, &[]);
    client.produce(&source, [Outgoing::new("k", "v")]);
    service.wait_outcomes("a", "skipped", 1, DEADLINE);
    let log = service.process().log();
    let said = "starting from the last good specs on disk";
    assert!(log.contains(said), "{log}");
    etcd.start_again(0)
        .unwrap_or_else(|error| panic!("{error:#}"));
    write(&*store, &gate("a"), "true");
    wait_for("the gate to open once the store is back", DEADLINE, || {
        client.produce(&source, [Outgoing::new("k", "v")]);
        let acked = service.outcomes("a", "ack")?;
        (acked > 0).then_some(()).ok_or("nothing acked".to_owned())
    });
    assert!(service.stop(DEADLINE).success());
}

/// Runs the service with an additional setting and expects exit code 1 and the reason.
fn start_is_refused(workdir: &Workdir, set: &str, reason: &str) {
    let any_port = "admin.listen=127.0.0.1:0";
    let arguments = [
        "run",
        "-c",
        "sluicegate.yaml",
        "--set",
        any_port,
        "--set",
        set,
    ];
    let output = run_binary(workdir.path(), &arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(reason), "{said}");
}

#[test]
fn a_restored_store_is_followed_and_a_replaced_one_only_once_accepted() {
    let (mut etcd, store, handlers) = own_etcd();
    let (client, source, workdir) = set_up(&handlers);
    for name in ["a", "b", "c"] {
        write(&*store, &spec_key(name), spec(name, &source));
    }
    let mut service = Service::ready(&workdir, &[]);
    let backup = etcd.back_up().unwrap_or_else(|error| panic!("{error:#}"));
    write(&*store, &gate("a"), "false");
    let counted = |outcome: &str| -> u64 {
        client.produce(&source, [Outgoing::new("k", "v")]);
        service.outcomes("a", outcome).unwrap_or_default()
    };
    wait_for("the gate to close", DEADLINE, || match counted("skipped") {
        0 => Err("nothing skipped".to_owned()),
        _ => Ok(()),
    });
    let acked = service.outcomes("a", "ack").unwrap_or_default();
    etcd.restore(Some(&backup))
        .unwrap_or_else(|error| panic!("{error:#}"));
    wait_for("the restored state to be active", DEADLINE, || {
        let now = counted("ack");
        (now > acked).then_some(()).ok_or(format!("{now} acked"))
    });

    // An empty store that is another cluster.
    etcd.restore(None)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let said = "is another store than before";
    wait_for("the other store to be held back", DEADLINE, || {
        let (status, text) = service.get("/readyz")?;
        let held = service
            .metrics()?
            .sum("sluicegate_control_plane_held_seconds", &[]);
        let shows = status == 200 && text.contains(said) && held > 0.0;
        shows
            .then_some(())
            .ok_or(format!("{status}: {text}, {held} s"))
    });
    wait_for("the member key to say so", DEADLINE, || {
        let report = member(&*store)?;
        let says = report
            .held
            .as_deref()
            .is_some_and(|held| held.contains(said));
        says.then_some(()).ok_or(format!("{report:?}"))
    });
    let before = service.outcomes("a", "ack").unwrap_or_default();
    wait_for("records to flow with the last specs", DEADLINE, || {
        let now = counted("ack");
        (now > before).then_some(()).ok_or(format!("{now} acked"))
    });
    assert_eq!(service.process().log().matches(said).count(), 1);

    write(&*store, &spec_key("a"), spec("a", &source));
    let accept = ["control-plane", "accept", "--admin", service.admin()];
    let accepted = run_binary(workdir.path(), &accept);
    assert!(accepted.status.success(), "{accepted:?}");
    let printed = String::from_utf8_lossy(&accepted.stdout).into_owned();
    assert!(printed.contains("\"accepted\": true"), "{printed}");
    wait_for("the accepted contents to be active", DEADLINE, || {
        let handlers = service.api("handlers")?;
        let listed = handlers.as_array().map_or(0, Vec::len);
        let (_, text) = service.get("/readyz")?;
        let over = listed == 1 && !text.contains(said);
        over.then_some(())
            .ok_or(format!("{listed} handlers, {text}"))
    });
    assert!(service.stop(DEADLINE).success());
}

/// etcd derives its cluster id from the first members' flags.
#[test]
fn a_new_etcd_with_the_same_flags_is_held_back_also_after_a_restart() {
    let (mut etcd, store, handlers) = own_etcd();
    let (_, source, workdir) = set_up(&handlers);
    for name in ["a", "b", "c"] {
        write(&*store, &spec_key(name), spec(name, &source));
    }
    let mut service = Service::ready(&workdir, &[]);
    etcd.recreate_with_same_id()
        .unwrap_or_else(|error| panic!("{error:#}"));
    let shows = |service: &Service, said: &str| {
        wait_for("the store to be held back", DEADLINE, || {
            let (status, text) = service.get("/readyz")?;
            let handlers = service.api("handlers")?;
            let listed = handlers.as_array().map_or(0, Vec::len);
            let shows = status == 200 && text.contains(said) && listed == 3;
            shows
                .then_some(())
                .ok_or(format!("{status}, {listed} handlers: {text}"))
        });
    };
    shows(&service, "3 of 3 handler specs are missing");
    // The store is refilled, and its revision passes the known one.
    for name in ["a", "b"] {
        write(&*store, &spec_key(name), spec(name, &source));
    }
    for open in ["false", "true", "false", "true", "false", "true"] {
        write(&*store, &gate("a"), open);
    }
    shows(&service, "went back behind revision");
    assert!(service.stop(DEADLINE).success());

    let mut service = Service::ready(&workdir, &[]);
    shows(&service, "went back behind revision");
    let accept = ["control-plane", "accept", "--admin", service.admin()];
    let accepted = run_binary(workdir.path(), &accept);
    assert!(accepted.status.success(), "{accepted:?}");
    wait_for("the accepted contents to be active", DEADLINE, || {
        let handlers = service.api("handlers")?;
        let listed = handlers.as_array().map_or(0, Vec::len);
        let (_, text) = service.get("/readyz")?;
        let over = listed == 2 && !text.contains("went back");
        over.then_some(())
            .ok_or(format!("{listed} handlers, {text}"))
    });
    assert!(service.stop(DEADLINE).success());
}
