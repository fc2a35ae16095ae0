//! Situation: specs in etcd refer to secrets, in an environment variable and in a file, that the service config lists or does not
//! list; plugins refuse them, panic with them, log them, name metrics after them, and emit to topics of that name, which are
//! missing at first; a bridge transfers the keys to ZooKeeper.
//! Property: no secret appears in a log of either format, a response of the admin server, a metric, a member key, a dead letter, the
//! bridge, the cache on disk, or the output of a command (G15); an emitted record contains one only if the handler's own config
//! puts an allowed one there; unlisted references are not resolved.
//! Needs: Kafka, ZooKeeper and etcd of its own.
//! Command: `cargo xtask test --scenario secrets`

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use sluicegate_config::control::ControlKey;
use sluicegate_config::service::{EtcdSettings, ZooKeeperSettings};
use sluicegate_store::{Expected, OpenStore, Store};

use crate::stores::put;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::client::{Client, Outgoing, Read};
use e2e::etcd::{Etcd, EtcdOptions};
use e2e::kafka::Kafka;
use e2e::ports::free_port;
use e2e::process::{Guarded, Signal};
use e2e::service::{Service, run_binary_with};
use e2e::wait::wait_for;
use e2e::workdir::Workdir;
use e2e::zookeeper::{ZooKeeper, ZooKeeperOptions};
use e2e::{artefacts, unique};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

/// Secrets that are distinguishable, too long to occur by chance, and contain characters that escaping changes.
const LISTED: &str = "listed-Hunter2\"\\ä-7f3a";
const IN_FILE: &str = "filed-Hunter3-9c41\nsecond-line-of-it-55e0";
const UNLISTED: &str = "unlisted-Hunter4-1b77";
const FOR_KAFKA: &str = "kafka-Hunter5-d00d";
const TOPIC: &str = "topic-Hunter6-77aa";
const VARIABLES: [(&str, &str); 4] = [
    ("SECRETS_LISTED", LISTED),
    ("SECRETS_TOPIC", TOPIC),
    ("SECRETS_UNLISTED", UNLISTED),
    ("SECRETS_KAFKA", FOR_KAFKA),
];

/// Parts of the secrets that escaping does not change; no output may contain them.
const MARKS: [&str; 6] = [
    "topic-Hunter6",
    "listed-Hunter2",
    "filed-Hunter3-9c41",
    "second-line-of-it-55e0",
    "unlisted-Hunter4",
    "kafka-Hunter5",
];

/// Handlers that are refused, by their plugin or for their references.
const REFUSED: [&str; 5] = [
    "shows",
    "shows-file",
    "steals-env",
    "steals-config",
    "steals-file",
];
/// The number of those whose references are invalid in any key, so that a bridge does not transfer them.
const NOT_TRANSFERRED: usize = 2;

/// All outputs, by source.
#[derive(Default)]
struct Outputs(BTreeMap<String, String>);

impl Outputs {
    fn add(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.0.insert(place.into(), text.into());
    }

    /// Runs a command, ignoring its exit code.
    fn run(&mut self, workdir: &Workdir, arguments: &[&str]) -> String {
        let done = run_binary_with(workdir.path(), arguments, &VARIABLES);
        let text = String::from_utf8_lossy(&done.stdout).into_owned()
            + &String::from_utf8_lossy(&done.stderr);
        self.add(arguments.join(" "), &text);
        text
    }

    fn tree(&mut self, place: &str, store: &Arc<dyn Store>) {
        let tree = store.list().unwrap_or_else(|error| panic!("{error}"));
        for (key, entry) in &tree.entries {
            let value = String::from_utf8_lossy(&entry.value).into_owned();
            self.add(format!("{place} {key:?}"), value);
        }
    }
}

struct Harness {
    client: Client,
    workdir: Workdir,
    etcd: Etcd,
    store: Arc<dyn Store>,
    source: String,
    copies: String,
}

impl Harness {
    fn new() -> Self {
        let kafka = Kafka::shared();
        let client = Client::new(kafka.bootstrap());
        let (source, copies, group) = (unique("source"), unique("copies"), unique("group"));
        client.create_topic(&source, 1);
        client.create_topic(&copies, 1);
        let etcd = Etcd::start_own(&EtcdOptions::default());
        let etcd = etcd.unwrap_or_else(|error| panic!("{error:#}"));
        let workdir = Workdir::empty();
        std::fs::create_dir(workdir.path().join("secrets.d")).expect("a folder");
        workdir.write("secrets.d/token", IN_FILE);
        workdir.write(
            "sluicegate.yaml",
            &format!(
                "kafka:\n  bootstrap_servers: \"{}\"\n  group_id: {group}\n  \
                 client: {{ ssl.key.password: \"${{env:SECRETS_KAFKA}}\" }}\n\
                 handlers:\n  etcd: {{ endpoints: [\"{}\"] }}\n  member_id: one\n  \
                 references: {{ env: [SECRETS_LISTED, SECRETS_TOPIC], folder: secrets.d }}\n\
                 plugins: {{ folder: plugins, cache: cache, allow_unsigned: true }}\n",
                kafka.bootstrap(),
                etcd.endpoint()
            ),
        );
        workdir.plugins(&["relay", "misbehave", "fraud-detector"]);
        let store = EtcdSettings::new(&etcd.endpoints()).open();
        Self {
            client,
            workdir,
            store: store.unwrap_or_else(|error| panic!("{error}")),
            etcd,
            source,
            copies,
        }
    }

    fn spec(&self, name: &str, plugin: &str, config: &Value) {
        let spec = json!({
            "name": name, "plugin": plugin, "route": { "topics": [self.source] }, "workers": 1,
            "retry": { "max_attempts": 1 }, "on_failure": "dead_letter",
            "restart": { "max_restarts": 2 }, "config": config,
            "dead_letter": { "topic": format!("{}.{name}.dlt", self.source) },
        });
        let key = ControlKey::spec(name).expect("a handler's name");
        put(&*self.store, &key, &spec.to_string());
    }

    /// Handlers that run and output their secrets.
    fn talkative(&self) {
        let says = "${env:SECRETS_LISTED} ${file:token}";
        for (name, deed, class) in [
            ("errs", "error", "terminal"),
            ("retries", "error", "retryable"),
            ("panics", "panic", "terminal"),
            ("drops", "drop", "terminal"),
        ] {
            let rules =
                json!([{ "when": { "key": true, "exists": true }, "do": deed, "class": class }]);
            self.spec(name, "misbehave", &json!({ "rules": rules, "says": says }));
        }
        let hidden = json!({ "rules": [], "emit_to": "${env:SECRETS_TOPIC}" });
        self.spec("hidden", "misbehave", &hidden);
        let headers = json!({ "token": "${env:SECRETS_LISTED}" });
        let relay = json!({ "topic": self.copies, "set_headers": headers });
        self.spec("copies", "relay", &relay);
    }

    /// Removes the refused specs, because a service does not start with them.
    fn withdraw(&self) {
        for name in REFUSED {
            let key = ControlKey::spec(name).expect("a handler's name");
            wait_for("the delete", DEADLINE, || {
                let deleted = self.store.write(&key, None, Expected::Any);
                deleted.map(drop).map_err(|error| error.to_string())
            });
        }
    }

    /// Handlers that are refused, by the plugin or before it is called.
    fn refused(&self) {
        let threshold = json!({ "topic": self.copies, "threshold": "${env:SECRETS_LISTED}" });
        self.spec("shows", "fraud-detector", &threshold);
        let file = json!({ "topic": self.copies, "threshold": "${file:token}" });
        self.spec("shows-file", "fraud-detector", &file);
        for (name, reference) in [
            ("steals-env", "${env:SECRETS_UNLISTED}"),
            ("steals-config", "${file:../sluicegate.yaml}"),
            ("steals-file", "${file:/etc/hostname}"),
        ] {
            let headers = json!({ "stolen": reference });
            self.spec(
                name,
                "relay",
                &json!({ "topic": self.copies, "set_headers": headers }),
            );
        }
    }
}

/// The responses to every GET in the service's OpenAPI document, with placeholders filled in.
fn answers(stage: &str, service: &Service, harness: &Harness, outputs: &mut Outputs) {
    let document = service
        .api("openapi.json")
        .unwrap_or_else(|error| panic!("{error}"));
    let paths = document["paths"].as_object().expect("paths");
    assert!(paths.len() > 8, "{paths:?}");
    for path in paths.keys() {
        for name in ["errs", "panics", "copies", "hidden", "shows", "steals-env"] {
            let filled = path
                .replace("{name}", name)
                .replace("{topic}", &harness.source)
                .replace("{partition}", "0")
                .replace("{offset}", "0");
            let (status, body) = service
                .get(&filled)
                .unwrap_or_else(|error| panic!("{error}"));
            outputs.add(
                format!("GET {filled} ({stage})"),
                format!("{status} {body}"),
            );
        }
    }
}

/// Emits to a topic whose name is a secret: first while it is missing, then once it exists.
fn hidden_topic(harness: &Harness, service: &Service, outputs: &mut Outputs) {
    let missing = "cannot emit to topic ***";
    wait_for("a refused emit", DEADLINE, || match service.api("status") {
        Ok(status) if status.to_string().contains(missing) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    answers("while a topic is missing", service, harness, outputs);
    let explain = format!("{}/0/0", harness.source);
    let arguments = [
        "explain",
        &explain,
        "--admin",
        service.admin(),
        "--output",
        "table",
    ];
    let said = outputs.run(&harness.workdir, &arguments);
    assert!(said.contains("*** has refused it for"), "{said}");
    harness.client.create_topic(TOPIC, 1);
    let counted = "handler=\"hidden\",topic=\"***\"";
    wait_for("the emitted records", DEADLINE, || {
        let (_, metrics) = service.get("/metrics")?;
        let line = metrics.lines().find(|line| line.contains(counted));
        line.map(drop).ok_or(metrics.clone())
    });
}

/// Whole records: dead letters of every handler, and copies. The header that an allowed reference sets is checked separately.
fn records(harness: &Harness, outputs: &mut Outputs) {
    for name in ["errs", "retries", "panics"] {
        let topic = format!("{}.{name}.dlt", harness.source);
        wait_for(
            &format!("dead letters of {name}"),
            DEADLINE,
            || match harness.client.count(&topic) {
                0 => Err("none".to_owned()),
                _ => Ok(()),
            },
        );
        let letters = harness.client.read(&topic);
        let message = |record: &Read| record.header("__dlq.errors.message").unwrap_or_default();
        // Once the panicking handler has failed, the reason of the dead letters comes from the service.
        let says = letters.iter().any(|record| message(record).contains("***"));
        let messages: Vec<String> = letters.iter().map(message).collect();
        assert!(says, "{name} outputs none of its secrets: {messages:?}");
        for (at, record) in letters.iter().enumerate() {
            outputs.add(format!("{topic} {at}"), shown(record, ""));
        }
    }
    for (at, record) in harness.client.read(&harness.copies).iter().enumerate() {
        assert_eq!(record.header("token").as_deref(), Some(LISTED));
        assert_eq!(record.header("stolen"), None);
        outputs.add(format!("copy {at}"), shown(record, "token"));
    }
}

/// A record as text, except for one header.
fn shown(record: &Read, but: &str) -> String {
    let headers = record.headers.iter().filter(|(name, _)| name != but);
    let headers =
        headers.map(|(name, value)| format!("{name}={}\n", String::from_utf8_lossy(value)));
    let (key, value) = (record.key_text(), record.text());
    headers.fold(format!("{key}\n{value}\n"), |all, header| all + &header)
}

/// Runs a bridge until everything is transferred, and collects its outputs.
fn bridge(harness: &Harness, outputs: &mut Outputs) {
    let zookeeper = ZooKeeper::start_own(&ZooKeeperOptions::default())
        .unwrap_or_else(|error| panic!("{error:#}"));
    let right = ZooKeeperSettings::new(zookeeper.connect()).open();
    let right = right.unwrap_or_else(|error| panic!("{error}"));
    let port = free_port();
    let admin = format!("http://127.0.0.1:{port}");
    harness.workdir.write(
        "bridge.yaml",
        &format!(
            "etcd: {{ endpoints: [\"{}\"] }}\nzookeeper: {{ servers: \"{}\" }}\n\
             admin: {{ listen: \"127.0.0.1:{port}\" }}\n",
            harness.etcd.endpoint(),
            zookeeper.connect()
        ),
    );
    outputs.run(
        &harness.workdir,
        &[
            "bridge",
            "-c",
            "bridge.yaml",
            "--dry-run",
            "--output",
            "json",
        ],
    );
    let mut command = Command::new(artefacts::binary());
    command
        .envs(VARIABLES)
        .current_dir(harness.workdir.path())
        .args(["bridge", "-c", "bridge.yaml"]);
    let log = harness.workdir.path().join("bridge.log");
    let mut bridge = Guarded::start("sluicegate bridge", &mut command, &log, None)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let here = harness
        .store
        .list()
        .unwrap_or_else(|error| panic!("{error}"));
    wait_for("the specs to be transferred", DEADLINE, || {
        let there = right.list().map_err(|error| error.to_string())?;
        match there.entries.len() {
            all if all + NOT_TRANSFERRED >= here.entries.len() => Ok(()),
            some => Err(format!("{some} of {}", here.entries.len())),
        }
    });
    outputs.run(&harness.workdir, &["bridge", "status", "--admin", &admin]);
    outputs.tree("ZooKeeper", &right);
    bridge.signal(Signal::TERM);
    let ended = bridge
        .wait(DEADLINE)
        .unwrap_or_else(|error| panic!("{error:#}"));
    assert!(ended.success(), "{ended}");
    outputs.add("bridge's log", bridge.log());
}

/// Runs the service once and collects its outputs and files.
fn service(harness: &Harness, format: &str, outputs: &mut Outputs) {
    harness.withdraw();
    let set = format!("logging.format={format}");
    let mut service = Service::start_with(&harness.workdir, &["--set", &set], &VARIABLES);
    wait_for("the admin server", DEADLINE, || {
        service.api("status").map(drop)
    });
    harness.refused();
    let copied = harness.client.count(&harness.copies);
    let produced = (0..5).map(|n| Outgoing::new(&format!("k{n}"), "{\"amount\": 1}"));
    harness.client.produce(&harness.source, produced);
    wait_for("copies", DEADLINE, || {
        match harness.client.count(&harness.copies) {
            count if count >= copied + 5 => Ok(()),
            count => Err(format!("{count}")),
        }
    });
    wait_for("every refusal in the member's key", DEADLINE, || {
        let keys = all_keys(&harness.etcd);
        let member = keys.get(MEMBER).cloned().unwrap_or_default();
        match REFUSED.iter().find(|name| !member.contains(*name)) {
            None if member.contains("***") => Ok(()),
            _ => Err(member),
        }
    });
    records(harness, outputs);
    if format == "json" {
        hidden_topic(harness, &service, outputs);
    }
    answers(format, &service, harness, outputs);
    let admin = service.admin().to_owned();
    for output in ["table", "json"] {
        for command in [
            &["handlers", "list"][..],
            &["handlers", "show", "errs"],
            &["handlers", "show", "shows"],
            &["handlers", "show", "panics"],
            &["explain", &format!("{}/0", harness.source)],
            &["explain", &format!("{}/0/0", harness.source)],
        ] {
            outputs.run(
                &harness.workdir,
                &[command, &["--admin", &admin, "--output", output][..]].concat(),
            );
        }
        let validate = ["validate", "-c", "sluicegate.yaml", "--output", output];
        let said = outputs.run(&harness.workdir, &validate);
        assert!(said.contains("is not allowed in a store's keys"), "{said}");
    }
    outputs.run(&harness.workdir, &["handlers", "history", "errs"]);
    outputs.tree("etcd", &harness.store);
    for (key, value) in all_keys(&harness.etcd) {
        outputs.add(format!("etcd's {key}"), value);
    }
    assert!(service.stop(DEADLINE).success());
    let log = service.process().log();
    for said in ["shows", "steals-env", "it says ***"] {
        assert!(log.contains(said), "no `{said}` in the log: {log}");
    }
    outputs.add(format!("log as {format}"), log);
    let cache = harness.workdir.path().join(".sluicegate/handlers.cache");
    outputs.add(
        "cache",
        std::fs::read_to_string(cache).expect("the cache of specs"),
    );
}

const MEMBER: &str = "/sluicegate/members/one";

/// Every key of the server with its value, including member keys and the sync state of bridges.
fn all_keys(etcd: &Etcd) -> BTreeMap<String, String> {
    let everything = json!({ "key": "AA==", "range_end": "AA==" });
    let answer = etcd.ask(0, "/v3/kv/range", &everything, None);
    let answer = answer.unwrap_or_else(|error| panic!("{error:#}"));
    let pairs = answer["kvs"].as_array().expect("keys").iter();
    let text = |pair: &Value, name: &str| decoded(pair[name].as_str().unwrap_or_default());
    pairs
        .map(|pair| (text(pair, "key"), text(pair, "value")))
        .collect()
}

/// A text in base64, as etcd's gateway writes it.
fn decoded(text: &str) -> String {
    let bytes = STANDARD.decode(text).expect("base64");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn no_secret_appears_in_any_output() {
    let harness = Harness::new();
    harness.talkative();
    let mut outputs = Outputs::default();
    for format in ["json", "text"] {
        service(&harness, format, &mut outputs);
    }
    bridge(&harness, &mut outputs);
    assert!(outputs.0.len() > 60, "{:?}", outputs.0.keys());
    let mut leaks = Vec::new();
    for (place, text) in &outputs.0 {
        for mark in MARKS {
            if let Some(at) = text.find(mark) {
                let from = text.floor_char_boundary(at.saturating_sub(80));
                let to = text.floor_char_boundary((at + 80).min(text.len()));
                leaks.push(format!("{place}: …{}…", &text[from..to]));
            }
        }
    }
    assert!(leaks.is_empty(), "leaked secrets:\n{}", leaks.join("\n"));
}
