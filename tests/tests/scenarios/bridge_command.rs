//! Situation: `sluicegate bridge` between a real etcd and a real ZooKeeper, as an operator runs it.
//! Property: the dry run shows what would be written and writes nothing; the running bridge transfers changes, reports its state by
//! HTTP, metrics and `bridge status`, and exits with 0 on a signal; a bad config exits with 2 and names the position.
//! Needs: Kafka, ZooKeeper and etcd of its own.
//! Command: `cargo xtask test --scenario bridge_command`

use std::process::Command;
use std::time::Duration;

use sluicegate_config::control::ControlKey;
use sluicegate_config::service::{EtcdSettings, ZooKeeperSettings};
use sluicegate_store::OpenStore;

use crate::stores::put;
use e2e::artefacts;
use e2e::etcd::{Etcd, EtcdOptions};
use e2e::metrics::Metrics;
use e2e::ports::free_port;
use e2e::process::{Guarded, Signal};
use e2e::service::run_binary;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;
use e2e::zookeeper::{ZooKeeper, ZooKeeperOptions};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(30);

fn gate(name: &str) -> ControlKey {
    ControlKey::enabled(name).expect("a handler's name")
}

fn get(admin: &str, path: &str) -> Result<String, String> {
    let mut answer = ureq::get(format!("{admin}{path}"))
        .call()
        .map_err(|error| error.to_string())?;
    let body = answer.body_mut().read_to_string();
    body.map_err(|error| error.to_string())
}

#[test]
fn a_bridge_runs_after_a_dry_run_and_reports_its_state() {
    let etcd = Etcd::start_own(&EtcdOptions::default()).unwrap_or_else(|error| panic!("{error:#}"));
    let zookeeper = ZooKeeper::start_own(&ZooKeeperOptions::default())
        .unwrap_or_else(|error| panic!("{error:#}"));
    let left = EtcdSettings::new(&etcd.endpoints()).open();
    let left = left.unwrap_or_else(|error| panic!("{error}"));
    let right = ZooKeeperSettings::new(zookeeper.connect()).open();
    let right = right.unwrap_or_else(|error| panic!("{error}"));
    put(&*left, &gate("auditor"), "true");
    put(&*left, &gate("relay"), "perhaps");

    let workdir = Workdir::empty();
    let port = free_port();
    let admin = format!("http://127.0.0.1:{port}");
    workdir.write(
        "bridge.yaml",
        &format!(
            "etcd: {{ endpoints: [\"{}\"] }}\nzookeeper: {{ servers: \"{}\" }}\n\
             admin: {{ listen: \"127.0.0.1:{port}\" }}\n",
            etcd.endpoint(),
            zookeeper.connect()
        ),
    );
    let planned = [
        "bridge",
        "-c",
        "bridge.yaml",
        "--dry-run",
        "--output",
        "json",
    ];
    let planned = run_binary(workdir.path(), &planned);
    assert!(planned.status.success(), "{planned:?}");
    let steps: Value = serde_json::from_slice(&planned.stdout).expect("JSON");
    assert_eq!(steps[0]["place"], "/plugins/auditor", "{steps}");
    assert_eq!(steps[0]["step"], "write", "{steps}");
    assert_eq!(steps[1]["step"], "refuse", "{steps}");
    let there = right.list().unwrap_or_else(|error| panic!("{error}"));
    assert!(there.entries.is_empty(), "a dry run writes nothing");

    let mut command = Command::new(artefacts::binary());
    command
        .current_dir(workdir.path())
        .args(["bridge", "-c", "bridge.yaml"]);
    let log = workdir.path().join("bridge.log");
    let mut bridge = Guarded::start("sluicegate bridge", &mut command, &log, None)
        .unwrap_or_else(|error| panic!("{error:#}"));
    wait_for("the bridge to be ready", DEADLINE, || {
        get(&admin, "/readyz").map(drop)
    });
    wait_for("the gate to be transferred", DEADLINE, || {
        let tree = right.list().map_err(|error| error.to_string())?;
        let there = tree.get(&gate("auditor"));
        there.map(drop).ok_or_else(|| format!("{tree:?}"))
    });
    wait_for("the report to be settled", DEADLINE, || {
        let metrics = Metrics::parse(&get(&admin, "/metrics")?);
        let wrote = metrics.sum("sluicegate_bridge_writes_total", &[("side", "zookeeper")]);
        let refused = metrics.sum("sluicegate_bridge_refused_values", &[]);
        match (wrote, refused) {
            (1.0, 1.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let status = ["bridge", "status", "--admin", &admin, "--output", "table"];
    let status = run_binary(workdir.path(), &status);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.status.success(), "{status:?}");
    assert!(text.contains("refused    /plugins/relay/enabled"), "{text}");
    assert!(text.contains("preferred side etcd"), "{text}");
    bridge.signal(Signal::TERM);
    let ended = bridge
        .wait(DEADLINE)
        .unwrap_or_else(|error| panic!("{error:#}"));
    assert!(ended.success(), "{ended}; {}", bridge.log_tail());

    let unreachable = run_binary(workdir.path(), &["bridge", "status", "--admin", &admin]);
    assert_eq!(unreachable.status.code(), Some(1));
    let why = String::from_utf8_lossy(&unreachable.stderr).into_owned();
    assert!(why.contains("start it with `sluicegate bridge`"), "{why}");
}

#[test]
fn a_bad_config_is_reported_with_its_position() {
    let workdir = Workdir::empty();
    workdir.write(
        "bridge.yaml",
        "etcd: { endpoints: [\"http://127.0.0.1:1\"] }\nprefered_side: etcd\n",
    );
    let refused = run_binary(workdir.path(), &["bridge", "-c", "bridge.yaml"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        why.contains("bridge.yaml:2:1") && why.contains("did you mean `preferred_side`"),
        "{why}"
    );
    assert!(why.contains("zookeeper: is missing"), "{why}");
}
