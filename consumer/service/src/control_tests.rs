//! The controller with pumps that are slow to apply a plan or fail to subscribe, and its reports during that.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use sluicegate_admin::ServiceView;
use sluicegate_config::service::read_service_config;
use sluicegate_config::{Environment, HandlerSpec, read_spec};
use sluicegate_engine::dispatch::HandlerIx;
use sluicegate_engine::engine::EngineSettings;
use sluicegate_engine::queue::{BUCKETS, Target};
use sluicegate_engine::source::{Source, SourceError, StartAt};
use sluicegate_engine::status::ProblemKind;
use sluicegate_kafka::RecordBuf;
use sluicegate_kit::engine_doubles::{HeldPool, NoEmitter, flow_settings};
use sluicegate_kit::log_capture::captured;
use sluicegate_kit::memory_source::MemoryKafka;
use sluicegate_plugins::{CodeOrigin, HandlerPlan, HandlerTable, HandlerTarget, RegistrySettings};
use sluicegate_pool::HungThreads;
use sluicegate_runtime::HandlerInfo;
use sluicegate_sync::source::{GateWrite, MemorySource, SpecSource};

use super::*;
use crate::pump::{JoinGate, Probe, Pump, PumpHandle, PumpSettings};

/// A controller with real pumps, which do not run before they are released.
struct Harness {
    controller: Controller,
    view: Arc<ServiceStatus>,
    gate: Arc<JoinGate>,
    held: Vec<Sender<()>>,
    _pumps: Vec<PumpHandle>,
    _folder: tempfile::TempDir,
}

impl Harness {
    fn with_pumps(count: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let registry = Registry::new(RegistrySettings {
            folder: folder.path().to_owned(),
            cache: folder.path().join("cache"),
            allow_unsigned: true,
            create_timeout: Duration::from_secs(1),
            health_interval: Duration::from_secs(1),
            health_timeout: Duration::from_secs(20),
            hung: HungThreads::default(),
            drain_timeout: Duration::from_secs(1),
            runtimes: Vec::new(),
            emitter: Arc::new(NoEmitter),
            trial: None,
            secrets: Arc::default(),
            provenance: false,
        });
        let registry = Arc::new(registry.expect("threads"));
        let gate = Arc::new(JoinGate::default());
        let (held, pumps): (Vec<_>, Vec<_>) = (0..count).map(|n| held_pump(n, &gate)).unzip();
        let addresses = pumps.iter().map(|pump| pump.address().clone()).collect();
        let text = "kafka: { bootstrap_servers: \"127.0.0.1:1\", group_id: g }\nhandlers: { file: { folder: h.d } }\n";
        let config = read_service_config(text, None, &Environment::default(), &[]);
        let config = config.unwrap_or_else(|problems| panic!("{problems}"));
        let (specs, _) = MemorySource::new(Vec::new());
        let group = Arc::new(Group::new("g", addresses));
        let view = Arc::new(ServiceStatus::new(
            &config,
            Arc::clone(&group),
            Arc::clone(&registry),
            specs.gates(),
        ));
        let client = ClientSettings {
            bootstrap_servers: String::new(),
            group_id: "g".into(),
            client: BTreeMap::new(),
            producer: Default::default(),
            prefetch_bytes: 0,
            request_timeout: Duration::ZERO,
        };
        let mut controller = Controller::new(registry, group, Arc::clone(&view), client);
        controller.pump_timeout = Duration::from_millis(20);
        Self {
            controller,
            view,
            gate,
            held,
            _pumps: pumps,
            _folder: folder,
        }
    }

    /// Releases the pumps, and waits until they run.
    fn release(&mut self) {
        self.held.clear();
        self.controller.pump_timeout = PUMP_TIMEOUT;
        let deadline = Instant::now() + PUMP_TIMEOUT;
        while !self.view.pumps_answer() {
            assert!(Instant::now() < deadline, "the pumps run");
        }
    }

    fn problems(&self) -> Vec<ProblemKind> {
        let report = self.view.report(Duration::from_millis(1));
        let problems = report.facts.problems.iter().map(|problem| problem.kind);
        problems.filter(|kind| *kind != ProblemKind::Pump).collect()
    }
}

/// A pump whose client is not created before the sender is dropped.
fn held_pump(number: u32, gate: &Arc<JoinGate>) -> (Sender<()>, PumpHandle) {
    let (sender, held) = channel::<()>();
    let held = Mutex::new(held);
    let make_source = move || -> Result<Box<dyn Source<Record = RecordBuf>>, SourceError> {
        // Returns when the sender is dropped.
        let _ = held.lock().expect("not poisoned").recv();
        Ok(Box::new(MemoryKafka::new(1).source()))
    };
    let settings = PumpSettings {
        number,
        engine: EngineSettings {
            flow: flow_settings(),
            start: StartAt::Earliest,
            offset_out_of_range: None,
        },
        join_gate: Arc::clone(gate),
        probe: Probe {
            ask: Arc::new(|| false),
            interval: Duration::from_secs(30),
        },
    };
    let pump = Pump::spawn(settings, Box::new(make_source), Arc::new(NoEmitter));
    (sender, pump.expect("a thread"))
}

fn spec(topics: &str) -> HandlerSpec {
    let text = format!("name: h\nplugin: p\nroute: {{ topics: [{topics}] }}\n");
    read_spec(&text, None, &Environment::default()).expect("a good spec")
}

/// A generation whose code has this digest.
fn target(sha256: &str) -> HandlerTarget {
    HandlerTarget {
        generation: 1,
        version: "1.0.0".into(),
        origin: Arc::new(CodeOrigin {
            plugin: "p".to_owned(),
            version: "1.0.0".parse().expect("a version"),
            path: "plugins/libp.so".into(),
            sha256: sha256.to_owned(),
        }),
        info: Arc::new(HandlerInfo::new("p", "{}")),
        pool: Arc::new(HeldPool::default()),
        buckets: BUCKETS,
    }
}

/// Revision 7 with one handler.
fn applied(spec: &HandlerSpec) -> (Arc<Snapshot>, Applied) {
    let plan = HandlerTable {
        revision: 7,
        handlers: vec![HandlerPlan {
            ix: HandlerIx(0),
            name: "h".into(),
            spec: Arc::new(spec.clone()),
            targets: Vec::new(),
        }],
    };
    let applied = Applied {
        plan,
        settled: 7,
        ..Applied::default()
    };
    (Arc::new(Snapshot::new(7, [spec.clone()])), applied)
}

fn topic_report(topics: &[&str]) -> TopicReport {
    let topics = topics.iter().map(|name| ((*name).to_owned(), 1));
    TopicReport {
        topics: Some(Arc::new(topics.collect())),
        problems: Vec::new(),
    }
}

#[test]
fn an_unconfirmed_plan_is_active_once_the_pump_answers() {
    let mut harness = Harness::with_pumps(1);
    let (snapshot, applied) = applied(&spec("t"));
    harness.controller.activate(snapshot, &applied);
    assert!(harness.controller.unanswered);
    assert_eq!(harness.controller.active.revision, 0);
    assert!(harness.controller.plan_log.0.is_none());
    harness.controller.recover();
    assert!(harness.controller.unanswered, "it does not answer yet");
    harness.release();
    harness.controller.recover();
    assert!(!harness.controller.unanswered);
    assert!(harness.controller.plan_log.0.is_some(), "a plan is active");
}

#[test]
fn unconfirmed_topics_are_sent_again() {
    let mut harness = Harness::with_pumps(1);
    let index = applied(&spec("\"a-*\"")).1.plan.routes().expect("routes");
    let plan = applied(&spec("\"a-*\"")).1.plan;
    harness.controller.topics.wanted = Some(Arc::new(Wanted::new(index, &plan)));
    harness.controller.topics(topic_report(&["a-1"]));
    assert!(harness.controller.unanswered, "no pump has applied them");
    harness.release();
    harness.controller.recover();
    assert!(!harness.controller.unanswered);
}

#[test]
fn a_failed_subscription_is_a_problem_until_it_succeeds() {
    let mut harness = Harness::with_pumps(1);
    harness.release();
    assert!(harness.gate.close());
    let (snapshot, applied) = applied(&spec("t"));
    harness.controller.activate(snapshot, &applied);
    assert_eq!(harness.problems(), [ProblemKind::Topic]);
    assert_eq!(harness.controller.active.revision, 0);
    harness.controller.topics(topic_report(&["t"]));
    assert_eq!(harness.problems(), [], "it was retried and succeeded");
    assert!(!harness.controller.refused_topics);
}

#[test]
fn a_plan_is_logged_once_however_often_it_is_sent() {
    let mut harness = Harness::with_pumps(1);
    harness.release();
    let (snapshot, applied) = applied(&spec("t"));
    let log = captured(|| {
        for _ in 0..3 {
            harness.controller.activate(Arc::clone(&snapshot), &applied);
        }
    });
    let told = log.lines().filter(|line| line.contains("plan applied"));
    assert_eq!(told.count(), 1, "{log}");
}

#[test]
fn the_line_about_a_plan_names_the_code_and_comes_again_when_it_changes() {
    let mut harness = Harness::with_pumps(1);
    harness.release();
    let (snapshot, mut applied) = applied(&spec("t"));
    for sha256 in ["9f86d081", "0b822cd1"] {
        applied.plan.handlers[0].targets = vec![target(sha256)];
        let log = captured(|| {
            for _ in 0..2 {
                harness.controller.activate(Arc::clone(&snapshot), &applied);
            }
        });
        let words = format!("p 1.0.0 from plugins/libp.so (SHA-256 {sha256})");
        assert_eq!(log.matches(&words).count(), 1, "{log}");
    }
}

#[test]
fn the_line_about_a_plan_counts_the_rejected_specs() {
    let mut harness = Harness::with_pumps(1);
    harness.release();
    let (snapshot, mut applied) = applied(&spec("t"));
    applied.refusals.push(sluicegate_plugins::Refusal {
        handler: "h".to_owned(),
        reason: "its config is invalid".to_owned(),
        effect: sluicegate_config::RejectionEffect::LastGoodSpec,
        may_heal: false,
    });
    let refused = captured(|| {
        for _ in 0..2 {
            harness.controller.activate(Arc::clone(&snapshot), &applied);
        }
    });
    let told = refused.matches("plan applied");
    assert_eq!(told.count(), 1, "{refused}");
    assert!(refused.contains("refused=1"), "{refused}");
    let mut declined = Snapshot::clone(&snapshot);
    declined.rejections.push(sluicegate_config::Rejection {
        origin: "handlers.d/h.yaml".to_owned(),
        handlers: vec!["h".to_owned()],
        effect: sluicegate_config::RejectionEffect::LastGoodSpec,
        problems: sluicegate_config::Problems::of_file(None, "it has no route".to_owned()),
    });
    let both = captured(|| harness.controller.activate(Arc::new(declined), &applied));
    assert!(both.contains("refused=2"), "{both}");
    applied.refusals.clear();
    let mended = captured(|| harness.controller.activate(snapshot, &applied));
    assert!(
        mended.contains("plan applied") && mended.contains("refused=0"),
        "{mended}"
    );
}

#[test]
fn probes_of_several_unresponsive_pumps_share_one_deadline() {
    let harness = Harness::with_pumps(6);
    let deadline = Duration::from_secs(1);
    let asked = Instant::now();
    let report = harness.view.report(deadline);
    assert_eq!(report.facts.unresponsive_pumps, [0, 1, 2, 3, 4, 5]);
    let took = asked.elapsed();
    assert!(took >= deadline && took < 4 * deadline, "{took:?}");
}

#[test]
fn an_inactive_gate_reports_the_store_that_is_held_back() {
    let harness = Harness::with_pumps(0);
    harness.view.record_held(Some("it is another store"));
    let written = |changed| GateWrite {
        origin: "etcd key /gates/h".to_owned(),
        changed,
        revision: Some(3),
    };
    let nothing_new = harness.view.why_not("h", &written(false));
    assert!(
        nothing_new.starts_with("etcd key /gates/h already says so, but has no effect: "),
        "{nothing_new}"
    );
    let why = harness.view.why_not("h", &written(true));
    for said in [
        "written to etcd key /gates/h",
        "has no effect",
        "it is another store",
        "sluicegate control-plane accept",
    ] {
        assert!(why.contains(said), "{why}");
    }
    harness.view.record_held(None);
    let why = harness.view.why_not("h", &written(true));
    assert!(!why.contains("another store"), "{why}");
}

#[test]
fn a_handler_without_a_spec_is_reported_as_deleted_while_it_is_still_listed() {
    let harness = Harness::with_pumps(0);
    let (snapshot, applied) = applied(&spec("t"));
    harness.view.record_snapshot(&snapshot, &applied);
    for refused in [
        harness.view.set_gate("h", false),
        harness.view.restart("h").map(drop),
    ] {
        let told = refused.expect_err("its spec is gone").to_string();
        assert!(told.contains("handler `h` is deleted"), "{told}");
    }
    // A store that is held back may lack the spec: the handler keeps running.
    harness.view.record_held(Some("it is another store"));
    let refused = harness.view.set_gate("h", false);
    let told = refused.expect_err("its spec does not exist").to_string();
    assert!(
        !told.contains("deleted") && told.contains("it is another store"),
        "{told}"
    );
    harness.view.record_held(None);
    let told = harness.view.restart("x").expect_err("no such handler");
    assert_eq!(told.to_string(), "no handler `x`; known handlers: h");
}

/// A plugin that takes batches has one timeout for a call; what it wishes for reaches the pumps.
#[test]
fn what_a_plugin_says_about_a_handler_reaches_the_pumps() {
    let mut running = target("00");
    let info = Arc::make_mut(&mut running.info);
    (info.takes_batches, info.max_batch) = (true, 7);
    (info.concurrency, info.keeps_key_state) = (3, true);
    let plan = HandlerPlan {
        targets: vec![running, target("01")],
        ..applied(&spec("t")).1.plan.handlers.remove(0)
    };
    let settings = crate::settings::handler(&plan);
    let [batches, records] = &settings.targets[..] else {
        panic!("{} targets", settings.targets.len());
    };
    let told = |target: &Target| {
        let generation = &target.generation;
        (
            generation.takes_batches,
            generation.concurrency,
            generation.max_batch.map(NonZeroU32::get),
            generation.call_timeout_ms,
            target.keeps_key_state,
        )
    };
    let timeout_ms = plan.spec.timeout.as_millis() as u64;
    assert_eq!(told(batches), (true, 3, Some(7), timeout_ms, true));
    assert_eq!(told(records), (false, 1, Some(u32::MAX), 0, false));
}
