//! Situation: the registry runs real native plugins, one of which misbehaves deliberately. Property: a panic, a hang or a
//! failing drop costs at most one instance or thread (G14); a replaced file takes over atomically (G9, G11).

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use sluicegate_abi::view::RecordParts;
use sluicegate_config::spec::{
    Backoff, DeadLetter, HandlerConfig, InFlightLimit, OnFailure, Order, Predicate, Restart, Retry,
    Route, TopicPattern, VersionRequirement,
};
use sluicegate_config::{HandlerSpec, Snapshot};
use sluicegate_engine::dispatch::{Batch, EntryKey, FlightKey, Inbox, PumpMessage};
use sluicegate_engine::emit::{Emitter, ProducerRecord, Sent, Ticket, Way};
use sluicegate_engine::status::HandlerState;
use sluicegate_native::NativeRuntime;
use sluicegate_plugins::{HandlerPlan, Registry, RegistrySettings};
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

/// Acknowledges every record and keeps its topic.
#[derive(Default)]
struct Acknowledging(Mutex<Vec<String>>);

impl Emitter for Acknowledging {
    fn send(&self, record: &ProducerRecord<'_>, _way: Way, ticket: Ticket) -> Sent {
        self.0.lock().unwrap().push(record.topic.to_owned());
        ticket.acknowledged();
        Sent::Queued
    }
}

struct Service {
    folder: tempfile::TempDir,
    emitter: Arc<Acknowledging>,
    registry: Registry,
    revision: u64,
}

impl Service {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("plugins")).unwrap();
        std::fs::copy(misbehave(), folder.path().join("plugins/libmisbehave.so")).unwrap();
        let emitter = Arc::new(Acknowledging::default());
        let registry = Registry::new(RegistrySettings {
            folder: folder.path().join("plugins"),
            cache: folder.path().join("cache"),
            allow_unsigned: true,
            create_timeout: DEADLINE,
            health_interval: Duration::from_millis(50),
            drain_timeout: DEADLINE,
            runtimes: vec![Arc::new(NativeRuntime)],
            emitter: Arc::clone(&emitter) as _,
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
    HandlerSpec {
        name: "bad".to_owned(),
        plugin: plugin.to_owned(),
        version: VersionRequirement::any(),
        enabled: true,
        route: Route {
            topics: vec![TopicPattern::Exact("in".to_owned())],
            when: Predicate::always(),
        },
        order: Order::Key,
        workers: 1,
        pool: None,
        max_in_flight: InFlightLimit {
            records: 100,
            bytes: 100_000,
        },
        timeout: Duration::from_millis(300),
        retry: Retry {
            max_attempts: 1,
            backoff: Backoff {
                delay: Duration::ZERO,
                multiplier: 1.0,
                max_delay: Duration::ZERO,
                jitter: 0.0,
            },
        },
        dead_letter: DeadLetter {
            topic: "{topic}.dlt".to_owned(),
            create: true,
        },
        on_failure: OnFailure::Hold,
        restart: Restart {
            max_restarts: 10,
            restart_window: Duration::from_secs(60),
        },
        config: HandlerConfig::new(config),
    }
}

/// Applies `deed` to the records of partition 1.
fn rule(deed: &str) -> Value {
    json!({ "rules": [{ "when": { "partition": true, "equals": 1 }, "do": deed }], "emit_to": "out" })
}

/// One record per partition. The records are leaked, because a hung call may read them at any time.
fn batch(flight: u32, partitions: &[i32]) -> Box<Batch> {
    let mut batch = Box::new(Batch::new());
    batch.flight = FlightKey {
        index: flight,
        serial: 1,
    };
    for (index, &partition) in partitions.iter().enumerate() {
        let parts = RecordParts {
            topic: "in".to_owned(),
            partition,
            offset: index as i64,
            timestamp_ms: 1_000,
            value: Some(b"value".to_vec()),
            lane: index as u64 + 1,
            epoch: 1,
            attempt: 1,
            ..RecordParts::default()
        };
        batch.records.push(parts.leaked());
        batch.keys.push(EntryKey {
            index: index as u32,
            serial: 1,
        });
    }
    batch
}

/// A pump that submits batches and polls its inbox.
#[derive(Default)]
struct Pump {
    inbox: Arc<Inbox>,
    seen: Vec<PumpMessage>,
}

impl Pump {
    fn give(&self, plan: &HandlerPlan, mut batch: Box<Batch>) {
        let deadline = Instant::now() + DEADLINE;
        while let Err(refused) = plan.pool.as_ref().unwrap().submit(batch, &self.inbox) {
            assert!(
                Instant::now() < deadline,
                "the pool never accepts the batch"
            );
            std::thread::sleep(Duration::from_millis(1));
            batch = refused;
        }
    }

    fn next<T>(&mut self, what: &str, fits: impl Fn(&PumpMessage) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some((at, found)) = self
                .seen
                .iter()
                .enumerate()
                .find_map(|(at, message)| fits(message).map(|found| (at, found)))
            {
                self.seen.remove(at);
                return found;
            }
            assert!(Instant::now() < deadline, "no {what} arrived in time");
            std::thread::sleep(Duration::from_millis(1));
            let mut taken = Vec::new();
            self.inbox.take(&mut taken);
            self.seen.append(&mut taken);
        }
    }

    /// Codes and first detail of the next finished batch.
    fn finished(&mut self) -> (u32, Vec<u16>, String) {
        self.next("finished batch", |message| match message {
            PumpMessage::Finished(batch) => Some((
                batch.flight.index,
                batch.outcomes.iter().map(|outcome| outcome.code).collect(),
                batch.output.details.first().cloned().unwrap_or_default(),
            )),
            _ => None,
        })
    }
}

#[test]
fn a_panic_costs_one_instance_and_emits_of_acknowledged_records_are_sent() {
    let mut service = Service::new();
    let plan = service.serve(spec("misbehave", rule("panic")));
    let mut pump = Pump::default();
    pump.give(&plan, batch(0, &[0, 1, 2]));
    let (_, codes, detail) = pump.finished();
    assert_eq!(codes, [ACK, PANICKED, NOT_RUN]);
    assert!(detail.contains("panic on purpose at in/1/1"), "{detail}");
    let entry = pump.next("answer of the producer", |message| match message {
        PumpMessage::Produced { entry, refused, .. } => Some((entry.index, refused.is_none())),
        _ => None,
    });
    assert_eq!(entry, (0, true));
    assert_eq!(*service.emitter.0.lock().unwrap(), ["out"]);
    pump.give(&plan, batch(1, &[0, 2]));
    assert_eq!(pump.finished().1, [ACK, ACK]);
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
    let mut pump = Pump::default();
    pump.give(&plan, batch(0, &[0, 2, 1, 0]));
    let (flight, completed) = pump.next("call timeout", |message| match message {
        PumpMessage::CallTimedOut { flight, completed } => Some((
            flight.index,
            completed
                .iter()
                .map(|outcome| outcome.code)
                .collect::<Vec<_>>(),
        )),
        _ => None,
    });
    assert_eq!((flight, completed), (0, vec![ACK, ACK]));
    pump.give(&plan, batch(1, &[0]));
    assert_eq!(pump.finished().0, 1, "a new thread serves");
    assert_eq!(pump.finished().0, 0, "the old call returned late");
    assert_eq!(service.registry.report()[0].quarantined, 1);
}

#[test]
fn instances_that_panic_when_dropped_or_built_are_contained() {
    let mut service = Service::new();
    let plan = service.serve(spec("misbehave-drop", json!({})));
    assert!(plan.keeps_key_state && !plan.takes_batches);
    let mut pump = Pump::default();
    pump.give(&plan, batch(0, &[0]));
    assert_eq!(pump.finished().1, [ACK]);
    let refused = Snapshot::new(2, [spec("misbehave-create", json!({}))]);
    let refused = service.registry.apply(&refused);
    let reason = &refused.refusals[0].reason;
    assert!(reason.contains("create on purpose"), "{reason}");
    assert_eq!(refused.plan.handlers[0].generation, plan.generation);
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
    assert!(service.registry.rescan() && service.registry.prepare_next());
    let applied = service.registry.current();
    let new = &applied.plan.handlers[0];
    assert!(new.generation > old.generation);
    let mut pump = Pump::default();
    for (flight, plan) in [&old, new].into_iter().enumerate() {
        pump.give(plan, batch(flight as u32, &[0]));
        assert_eq!(pump.finished().1, [ACK]);
    }
    drop((old, applied));
    assert!(service.registry.shutdown(Instant::now() + DEADLINE));
}
