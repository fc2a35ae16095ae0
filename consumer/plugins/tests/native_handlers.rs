//! Situation: the registry runs real native plugins, one of which misbehaves deliberately. Property: a panic, a hang or a
//! failing drop costs at most one instance or thread (G14); a replaced file takes over atomically (G9, G11).

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use sluicegate_abi::view::RecordParts;
use sluicegate_config::spec::HandlerConfig;
use sluicegate_config::{Environment, HandlerSpec, Snapshot, read_spec};
use sluicegate_engine::dispatch::{Batch, PumpMessage};
use sluicegate_engine::status::HandlerState;
use sluicegate_kit::plugin_doubles::{Producer, Replies, batch_of, codes, until};
use sluicegate_kit::wait::wait_until;
use sluicegate_native::NativeRuntime;
use sluicegate_plugins::{HandlerPlan, Registry, RegistrySettings};
use sluicegate_pool::HungThreads;
use sluicegate_runtime::outcome_code::{ACK, NOT_RUN, PANICKED};

const DEADLINE: Duration = Duration::from_secs(30);

/// The library of the misbehaving plugin: prebuilt by `cargo xtask test`, or else built once.
fn misbehave() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(folder) = std::env::var_os("SLUICEGATE_PLUGINS_DIR") {
            return Path::new(&folder).join("libmisbehave.so");
        }
        let out = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--message-format=json-render-diagnostics"])
            .args(["--package", "misbehave"])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(out.status.success(), "cargo cannot build it");
        let messages = String::from_utf8(out.stdout).unwrap();
        let messages = messages.lines().map(serde_json::from_str::<Value>);
        let files = messages.flat_map(|line| line.unwrap()["filenames"].as_array().cloned());
        let mut files = files
            .flatten()
            .filter_map(|file| file.as_str().map(PathBuf::from));
        files
            .find(|file| file.ends_with("libmisbehave.so"))
            .unwrap()
    })
}

struct Service {
    folder: tempfile::TempDir,
    emitter: Arc<Producer>,
    registry: Registry,
    revision: u64,
}

impl Service {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("plugins")).unwrap();
        std::fs::copy(misbehave(), folder.path().join("plugins/libmisbehave.so")).unwrap();
        let emitter = Arc::new(Producer::default());
        let registry = Registry::new(RegistrySettings {
            folder: folder.path().join("plugins"),
            cache: folder.path().join("cache"),
            allow_unsigned: true,
            create_timeout: DEADLINE,
            health_interval: Duration::from_millis(50),
            health_timeout: Duration::from_secs(20),
            drain_timeout: DEADLINE,
            hung: HungThreads::default(),
            runtimes: vec![Arc::new(NativeRuntime)],
            emitter: Arc::clone(&emitter) as _,
            trial: None,
            secrets: Arc::default(),
            provenance: false,
        });
        Self {
            folder,
            emitter,
            registry: registry.unwrap(),
            revision: 0,
        }
    }

    fn serve(&mut self, spec: HandlerSpec) -> HandlerPlan {
        self.revision += 1;
        let snapshot = Snapshot::new(self.revision, [spec]);
        let applied = self.registry.apply(&snapshot);
        assert_eq!(applied.refusals, []);
        applied.plan.handlers[0].clone()
    }
}

fn spec(plugin: &str, config: Value) -> HandlerSpec {
    let text = format!(
        "name: bad\nplugin: {plugin}\nversion: \"*\"\nroute: {{ topics: [in] }}\nworkers: 1\ntimeout: 300ms\n"
    );
    HandlerSpec {
        config: HandlerConfig::new(config),
        ..read_spec(&text, None, &Environment::default()).unwrap()
    }
}

/// Applies `deed` to the records of partition 1.
fn rule(deed: &str) -> Value {
    json!({ "rules": [{ "when": { "partition": true, "equals": 1 }, "do": deed }], "emit_to": "out" })
}

/// One record per partition.
fn batch(flight: u32, partitions: &[i32]) -> Box<Batch> {
    let record = |(offset, &partition): (i64, &i32)| RecordParts {
        topic: "in".to_owned(),
        partition,
        offset,
        timestamp_ms: 1_000,
        value: Some(b"value".to_vec()),
        lane: offset as u64 + 1,
        epoch: 1,
        attempt: 1,
        ..RecordParts::default()
    };
    batch_of(flight, (0..).zip(partitions).map(record))
}

/// Submits the batch as soon as the pool accepts it.
fn give(replies: &Replies, plan: &HandlerPlan, batch: Box<Batch>) {
    let pool = &plan.targets[0].pool;
    let mut left = Some(batch);
    wait_until(
        DEADLINE,
        || {
            left = left
                .take()
                .and_then(|batch| pool.submit(batch, &replies.inbox).err());
            left.is_none()
        },
        || "the pool never accepts the batch".to_owned(),
    );
}

#[test]
fn a_panic_costs_one_instance_and_emits_of_acknowledged_records_are_sent() {
    let mut service = Service::new();
    let plan = service.serve(spec("misbehave", rule("panic")));
    let mut replies = Replies::new();
    give(&replies, &plan, batch(0, &[0, 1, 2]));
    let finished = replies.finished();
    assert_eq!(codes(&finished), [ACK, PANICKED, NOT_RUN]);
    let detail = &finished.output.details[0];
    assert!(detail.contains("panic on purpose at in/1/1"), "{detail}");
    let emits = finished.output.emits.records();
    assert_eq!(emits.collect::<Vec<_>>(), [0]);
    let answers = replies.next("answer of the producer", |message| match message {
        PumpMessage::Delivered(deliveries) => Ok(deliveries),
        other => Err(other),
    });
    let failures = answers.iter().map(|one| one.failure.is_some());
    assert_eq!(failures.collect::<Vec<_>>(), [false]);
    assert_eq!(*service.emitter.topics.lock().unwrap(), ["out"]);
    give(&replies, &plan, batch(1, &[0, 2]));
    assert_eq!(codes(&replies.finished()), [ACK, ACK]);
    let report = &service.registry.report()[0];
    assert_eq!((report.panics, report.restarts), (1, 1));
    assert_eq!(report.state, HandlerState::Active);
}

#[test]
fn a_hang_costs_its_thread_and_only_the_record_that_hangs() {
    let mut service = Service::new();
    let mut config = rule("hang");
    config["emit_to"] = Value::Null;
    config["rules"][0]["for"] = json!("2s");
    let plan = service.serve(spec("misbehave", config));
    let mut replies = Replies::new();
    give(&replies, &plan, batch(0, &[0, 2, 1, 0]));
    let (number, completed) = replies.next("call timeout", |message| match message {
        PumpMessage::CallTimedOut {
            batch, published, ..
        } => Ok((
            batch.index,
            published.outcomes[..published.current]
                .iter()
                .map(|outcome| outcome.code)
                .collect::<Vec<_>>(),
        )),
        other => Err(other),
    });
    assert_eq!((number, completed), (0, vec![ACK, ACK]));
    assert_eq!(service.registry.report()[0].hung, 1);
    give(&replies, &plan, batch(1, &[0]));
    assert_eq!(replies.finished().id.index, 1, "a new thread serves");
    assert_eq!(replies.finished().id.index, 0, "the old call returned late");
    until("its thread has ended", || {
        let report = &service.registry.report()[0];
        (report.quarantined, report.hung) == (1, 0)
    });
}

#[test]
fn instances_that_panic_when_dropped_or_built_are_contained() {
    let mut service = Service::new();
    let plan = service.serve(spec("misbehave/misbehave-drop", json!({})));
    let info = &plan.targets[0].info;
    assert!(info.keeps_key_state && !info.takes_batches);
    let mut replies = Replies::new();
    give(&replies, &plan, batch(0, &[0]));
    assert_eq!(codes(&replies.finished()), [ACK]);
    let refused = Snapshot::new(2, [spec("misbehave/misbehave-create", json!({}))]);
    let refused = service.registry.apply(&refused);
    let reason = &refused.refusals[0].reason;
    assert!(reason.contains("create on purpose"), "{reason}");
    assert_eq!(refused.plan.handlers[0].generation(), plan.generation());
    let wrong = Snapshot::new(3, [spec("misbehave", json!({ "rulez": [] }))]);
    let reason = service.registry.apply(&wrong).refusals[0].reason.clone();
    assert!(reason.contains("rulez"), "{reason}");
    drop((plan, refused));
    assert!(service.registry.shutdown(Instant::now() + DEADLINE));
}

#[test]
fn a_replaced_file_takes_over_and_the_old_code_runs_until_it_is_released() {
    let mut service = Service::new();
    let old = service.serve(spec("misbehave", json!({})));
    let file = service.folder.path().join("plugins/libmisbehave.so");
    let mut bytes = std::fs::read(&file).unwrap();
    // A byte after the end of the image: a different file with the same code.
    bytes.push(0);
    let next = service.folder.path().join("next");
    std::fs::write(&next, bytes).unwrap();
    let settled = SystemTime::now() - Duration::from_secs(1);
    let handle = std::fs::File::options().write(true).open(&next).unwrap();
    handle.set_modified(settled).unwrap();
    std::fs::rename(&next, &file).unwrap();
    let changed = service.registry.catalogue().scan().changed;
    assert!(service.registry.follow_scan(changed) && service.registry.prepare_next());
    let applied = service.registry.current();
    let new = &applied.plan.handlers[0];
    assert!(new.generation() > old.generation());
    let mut replies = Replies::new();
    for (flight, plan) in [&old, new].into_iter().enumerate() {
        give(&replies, plan, batch(flight as u32, &[0]));
        assert_eq!(codes(&replies.finished()), [ACK]);
    }
    drop((old, applied));
    assert!(service.registry.shutdown(Instant::now() + DEADLINE));
}
