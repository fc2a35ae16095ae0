//! The service as the admin side sees it: reports of pumps and pools put together with what the specs declare.

mod gates;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use sluicegate_config::source::{GateWriter, WatchHandle};
use sluicegate_config::spec::{HandlerSpec, Route};
use sluicegate_config::{RejectionEffect, RuntimeSettings, ServiceConfig, Snapshot};

use super::control::{ControlCommand, named};
use crate::admin::view::now_ms;
use crate::admin::{
    DeclaredHandler, Explanation, Gate, GateError, ProblemKind, PumpReport, Restarted, ServiceInfo,
    ServiceProblem, ServiceReport, ServiceView,
};
use crate::handlers::{Applied, HandlerTable, Refusal, Registry, RestartRefusal, RestartState};
use crate::pump::PumpAddress;
use crate::source::TopicPartition;

/// What the pumps, the registry and the control side say, for whoever asks.
pub(super) struct ServiceStatus {
    pumps: Vec<PumpAddress>,
    registry: Arc<Registry>,
    gates: Arc<dyn GateWriter>,
    group_id: String,
    started_ms: i64,
    budget_bytes: u64,
    stall_timeout_ms: i64,
    allow_unsigned: bool,
    /// Which pumps have joined the group; a pump that does not answer just now has not left it for that.
    joined: Vec<AtomicBool>,
    stopping: AtomicBool,
    rejections: AtomicU64,
    repairs: AtomicU64,
    standing: Mutex<ControlStatus>,
    /// Where the control thread takes orders, once it runs.
    control: OnceLock<Sender<ControlCommand>>,
    /// The watch of specs, while it runs.
    watch: OnceLock<Weak<dyn WatchHandle>>,
}

/// What the last update left.
#[derive(Default)]
struct ControlStatus {
    revision: u64,
    /// The revision of the snapshot that was noted last, whatever of it is still being prepared.
    noted: u64,
    /// The same of the last one whose gates every pump runs by.
    gates_as_of: u64,
    declared: Vec<DeclaredHandler>,
    last_rejection: Option<String>,
    /// Each refusal that stands.
    refused: BTreeMap<String, RefusedSpec>,
    /// The last update that was refused as a whole, and when.
    refused_update: Option<(String, i64)>,
    /// Each text that is refused: the handlers that it concerns, and why.
    rejected: Vec<(Vec<String>, String)>,
    /// The handlers of the plan that every pump runs by, and whether their gates are open there.
    in_force: BTreeMap<Arc<str>, bool>,
    unreachable: Option<String>,
    /// Since when, in milliseconds since the epoch.
    unreachable_since_ms: Option<i64>,
    /// What stands in the control plane and is not applied.
    held: Option<ServiceProblem>,
    switches: RuntimeSettings,
    /// What is wrong with the own membership.
    member: Option<ServiceProblem>,
    /// What the watch of topics has found.
    of_topics: Vec<ServiceProblem>,
    /// The client does not take the topics that routes name.
    subscription: Option<ServiceProblem>,
}

/// A refusal that stands.
#[derive(Clone, Copy)]
struct RefusedSpec {
    /// Since when, in milliseconds since the epoch.
    since_ms: i64,
    /// It is about the spec, rather than about a handler that is not healthy.
    of_spec: bool,
}

impl ControlStatus {
    /// What the control side has to tell.
    fn problems(&self) -> Vec<ServiceProblem> {
        let refused = |what: &str, why: &String, since_ms: i64| {
            ServiceProblem {
            kind: ProblemKind::SpecRefused,
            what: what.to_owned(),
            since_ms,
            count: 1,
            cause: why.clone(),
            remedy: "correct it where it stands; what was in force before stays while the service runs, but a start with a \
                 declared handler that cannot be served is refused"
                .to_owned(),
        }
        };
        let specs = self
            .refused
            .iter()
            .filter(|(_, one)| one.of_spec)
            .map(|(why, one)| refused(&summary(why), why, one.since_ms));
        let update = self.refused_update.iter();
        let update = update.map(|(why, since_ms)| refused("an update is refused", why, *since_ms));
        let away = self.unreachable.as_ref().map(|why| ServiceProblem {
            kind: ProblemKind::SpecsUnreachable,
            what: "handler specs cannot be read".to_owned(),
            since_ms: self.unreachable_since_ms.unwrap_or_default(),
            count: 1,
            cause: why.clone(),
            remedy: "look after the store or folder; the last good specs stay in force".to_owned(),
        });
        let mut problems: Vec<ServiceProblem> = specs.chain(update).chain(away).collect();
        let told = self.held.iter().chain(&self.member).chain(&self.of_topics);
        let told = told.chain(&self.subscription);
        problems.extend(told.cloned());
        problems
    }
}

/// What is refused, in a few words: its cause follows.
fn summary(why: &str) -> String {
    let first = why.lines().next().unwrap_or(why);
    let place = first.split(": ").next().unwrap_or(first);
    format!("a handler's spec is refused: {place}")
}

/// The route as the spec writes it.
fn route_of(route: &Route) -> serde_json::Value {
    let topics: Vec<String> = route.topics.iter().map(ToString::to_string).collect();
    serde_json::json!({ "topics": topics, "when": route.when.to_document() })
}

/// What to do about a control plane that is held back.
pub(super) const HELD_REMEDY: &str = "bring the store back as it was, or take over what it holds with `sluicegate control-plane accept`";

/// Longest wait for a pump when readiness is asked.
const READY_ANSWER: Duration = Duration::from_millis(500);
/// What a pump has that answers at once.
const ANSWERS_NOW: Duration = Duration::from_millis(100);

impl ServiceStatus {
    pub(super) fn new(
        config: &ServiceConfig,
        pumps: Vec<PumpAddress>,
        registry: Arc<Registry>,
        gates: Arc<dyn GateWriter>,
    ) -> Self {
        let joined = pumps.iter().map(|_| AtomicBool::new(false)).collect();
        Self {
            joined,
            stall_timeout_ms: config.processing.stall_timeout.as_millis() as i64,
            stopping: AtomicBool::new(false),
            pumps,
            registry,
            gates,
            group_id: config.kafka.group_id.clone(),
            started_ms: now_ms(),
            budget_bytes: config.processing.memory,
            allow_unsigned: config.plugins.allow_unsigned,
            rejections: AtomicU64::new(0),
            repairs: AtomicU64::new(0),
            standing: Mutex::default(),
            control: OnceLock::new(),
            watch: OnceLock::new(),
        }
    }

    /// Says what watches the specs.
    pub(super) fn set_watch(&self, watch: &Arc<dyn WatchHandle>) {
        let _ = self.watch.set(Arc::downgrade(watch));
    }

    /// Says where the control thread takes orders.
    pub(super) fn set_control(&self, orders: Sender<ControlCommand>) {
        let _ = self.control.set(orders);
    }

    /// The service was told to stop.
    pub(super) fn note_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub(super) fn pumps(&self) -> &[PumpAddress] {
        &self.pumps
    }

    /// Takes note of a snapshot and of what became of it.
    pub(super) fn note_snapshot(&self, snapshot: &Snapshot, applied: &Applied) {
        let mut refused: Vec<String> = Vec::new();
        // Refused only for being ill: the handler's own problem says so.
        let mut ill: BTreeSet<String> = BTreeSet::new();
        let mut rejected = Vec::new();
        for rejection in &snapshot.rejections {
            let why = rejection.problems.to_string();
            if !rejection.handlers.is_empty() {
                rejected.push((rejection.handlers.clone(), why.clone()));
            }
            refused.push(why);
        }
        let newer = by_name(&rejected);
        let declared = snapshot
            .handlers
            .values()
            .map(|spec| {
                let refusal = applied
                    .refusals
                    .iter()
                    .find(|refusal| refusal.handler == spec.name);
                let rejected = refusal.map(|refusal| refusal.reason.clone());
                let gate = gate_of(spec, &applied.plan);
                let why = refusal.map(named);
                ill.extend(why.clone().filter(|_| gate == Gate::Held));
                refused.extend(why);
                DeclaredHandler {
                    name: spec.name.clone(),
                    plugin: spec.plugin.clone(),
                    gate,
                    route: route_of(&spec.route),
                    refused_spec: newer_spec(
                        &newer,
                        refusal.filter(|_| gate != Gate::Held),
                        &spec.name,
                    ),
                    rejected,
                }
            })
            .collect();
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        // What is refused stays so through many a gate's change, and is said once.
        for why in refused
            .iter()
            .filter(|&why| !standing.refused.contains_key(why))
        {
            tracing::error!(revision = snapshot.revision, "{why}");
        }
        standing.revision = applied.plan.revision;
        standing.noted = snapshot.revision;
        standing.switches = snapshot.switches;
        standing.rejected = rejected;
        standing.declared = declared;
        let last = (!refused.is_empty()).then(|| refused.join("\n"));
        if last.is_some() && last != standing.last_rejection {
            self.rejections.fetch_add(1, Ordering::Relaxed);
        }
        standing.last_rejection = last;
        let now = now_ms();
        let before = std::mem::take(&mut standing.refused);
        standing.refused = refused
            .into_iter()
            .map(|why| {
                let since_ms = before.get(&why).map_or(now, |known| known.since_ms);
                let of_spec = !ill.contains(&why);
                (why, RefusedSpec { since_ms, of_spec })
            })
            .collect();
        standing.refused_update = None;
    }

    /// Takes note of a plan that every pump runs by.
    pub(super) fn note_in_force(&self, plan: &HandlerTable) {
        let gates = plan.handlers.iter();
        let gates = gates.map(|one| (Arc::clone(&one.name), one.spec.enabled));
        let gates = gates.collect();
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.in_force = gates;
        standing.gates_as_of = standing.noted;
    }

    /// Takes note of an update that was refused as a whole.
    pub(super) fn note_rejection(&self, why: &str) {
        self.rejections.fetch_add(1, Ordering::Relaxed);
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.last_rejection = Some(why.to_owned());
        standing.refused_update = Some((why.to_owned(), now_ms()));
    }

    /// Takes note of whether specs can be read. Gives since when they could not, if that is over.
    pub(super) fn note_unreachable(&self, why: Option<String>) -> Option<Duration> {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = standing.unreachable_since_ms;
        standing.unreachable_since_ms = why.is_some().then(|| before.unwrap_or_else(now_ms));
        standing.unreachable = why;
        let over = before.filter(|_| standing.unreachable.is_none())?;
        Some(Duration::from_millis(now_ms().abs_diff(over)))
    }

    /// Takes note of why what stands in the control plane is not applied, or that nothing is held back any more.
    pub(super) fn note_held(&self, why: Option<&str>) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let since_ms = standing.held.as_ref().map(|held| held.since_ms);
        standing.held = why.map(|why| ServiceProblem {
            kind: ProblemKind::SpecsHeld,
            count: 1,
            what: "what stands in the control plane is not applied; the last specs stay in force"
                .to_owned(),
            since_ms: since_ms.unwrap_or_else(now_ms),
            cause: why.to_owned(),
            remedy: HELD_REMEDY.to_owned(),
        });
    }

    /// Takes note of what the watch of topics has found wrong.
    pub(super) fn note_problems(&self, problems: Vec<ServiceProblem>) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.of_topics = problems;
    }

    /// Takes note of why a client does not take the topics that it is to read, or that all of them have.
    pub(super) fn note_subscription(&self, refused: Option<&str>) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = standing.subscription.take();
        let Some(why) = refused else {
            return;
        };
        if before.is_none() {
            self.rejections.fetch_add(1, Ordering::Relaxed);
        }
        let (since_ms, count) = before.map_or((now_ms(), 0), |one| (one.since_ms, one.count));
        standing.subscription = Some(ServiceProblem {
            kind: ProblemKind::Topic,
            what: "the topics of the routes are not subscribed to; those of before are read"
                .to_owned(),
            since_ms,
            count: count + 1,
            cause: why.to_owned(),
            remedy: "see the cause; it is tried again with each look at the cluster's topics"
                .to_owned(),
        });
    }

    /// Takes note of what is wrong with the own membership.
    pub(super) fn note_member(&self, problem: Option<ServiceProblem>) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.member = problem;
    }

    /// Takes note of keys whose change the watch had missed.
    pub(super) fn note_repairs(&self, keys: u64) {
        self.repairs.fetch_add(keys, Ordering::Relaxed);
    }
}

/// Why what the source says of a handler is refused, by the handler's name.
fn by_name(rejected: &[(Vec<String>, String)]) -> BTreeMap<&str, &str> {
    let mut by_name = BTreeMap::new();
    for (names, why) in rejected {
        by_name.extend(names.iter().map(|name| (name.as_str(), why.as_str())));
    }
    by_name
}

/// Why what the source says of a handler is not what serves: its text is refused, or its plugin does not take it. A gate that
/// is held is no such thing: the spec is in force.
fn newer_spec(
    texts: &BTreeMap<&str, &str>,
    refusal: Option<&Refusal>,
    name: &str,
) -> Option<String> {
    let refusal = refusal.filter(|one| one.effect == RejectionEffect::LastGoodSpec);
    let text = texts.get(name).copied();
    let why = text.or_else(|| refusal.map(|one| one.reason.as_str()));
    why.map(str::to_owned)
}

/// What records meet at a handler: the spec says what is wanted, the plan what is so.
fn gate_of(spec: &HandlerSpec, plan: &HandlerTable) -> Gate {
    let in_force = plan.handler(&spec.name);
    match (spec.enabled, in_force) {
        (false, _) => Gate::Shut,
        (true, Some(handler)) if !handler.spec.enabled => Gate::Held,
        (true, _) => Gate::Open,
    }
}

/// How long whoever restarts a handler waits for its new generation.
const RESTARTS_WITHIN: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// Pumps that do not answer.
fn silent(pumps: &[u32]) -> impl Iterator<Item = ServiceProblem> {
    pumps.iter().map(|pump| ServiceProblem {
        kind: ProblemKind::Pump,
        what: format!("pump {pump} does not answer"),
        since_ms: now_ms(),
        count: 1,
        cause: "its thread was busy or did not get to run; what its partitions do is not known".to_owned(),
        remedy: "look after the processor time of the process; if it lasts, take a stack trace and restart it"
            .to_owned(),
    })
}

impl ServiceStatus {
    /// Whether every pump answers just now.
    pub(super) fn pumps_answer(&self) -> bool {
        self.ask_pumps(ANSWERS_NOW).1.is_empty()
    }

    /// The pumps' reports, and the pumps that did not answer by the deadline, which is one for all.
    fn ask_pumps(&self, deadline: Duration) -> (Vec<PumpReport>, Vec<u32>) {
        let mut silent = Vec::new();
        let mut reports = Vec::new();
        let end = Instant::now() + deadline;
        for (pump, joined) in self.pumps.iter().zip(&self.joined) {
            match pump.report(end.saturating_duration_since(Instant::now())) {
                Some(report) => {
                    // A service that has nothing to join for now may have later.
                    joined.store(report.joined, Ordering::Relaxed);
                    reports.push(report);
                }
                None => silent.push((reports.len() + silent.len()) as u32),
            }
        }
        (reports, silent)
    }

    /// Why a handler of this name cannot be told anything: what the store says is held back, or it is deleted and finishes
    /// what it has, or there is none.
    fn unknown(&self, name: String) -> GateError {
        let handlers = self.report(READY_ANSWER).handlers;
        let held = {
            let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
            standing.held.as_ref().map(ServiceProblem::sentence)
        };
        if let Some(reason) = held
            && handlers.iter().any(|one| one.name == name && !one.removed)
        {
            // It goes on without a spec in the store.
            return GateError::NotWritten { name, reason };
        }
        // One whose spec is gone is listed as before until that has come round.
        if let Some(removed) = handlers.iter().find(|one| one.name == name) {
            let in_flight = removed.in_flight;
            return GateError::Removed { name, in_flight };
        }
        let declared = handlers.iter().filter(|handler| !handler.removed);
        let known: Vec<&str> = declared.map(|handler| handler.name.as_str()).collect();
        let known = match known.is_empty() {
            true => "none".to_owned(),
            false => known.join(", "),
        };
        GateError::Unknown { name, known }
    }
}

impl ServiceView for ServiceStatus {
    fn report(&self, deadline: Duration) -> ServiceReport {
        let (pumps, unresponsive_pumps) = self.ask_pumps(deadline);
        let not_joined = (0..).zip(&self.joined);
        let not_joined = not_joined.filter(|(_, joined)| !joined.load(Ordering::Relaxed));
        let stopping = self.stopping.load(Ordering::Relaxed);
        let (facts, declared) = {
            let unread = self.registry.catalogue().problems();
            let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
            let facts = ServiceInfo {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                group_id: self.group_id.clone(),
                started_ms: self.started_ms,
                revision: standing.revision,
                rejections: self.rejections.load(Ordering::Relaxed),
                repairs: self.repairs.load(Ordering::Relaxed),
                unreachable_since_ms: standing.unreachable_since_ms,
                held_since_ms: standing.held.as_ref().map(|held| held.since_ms),
                metrics_level: standing.switches.metrics,
                last_rejection: standing
                    .last_rejection
                    .clone()
                    .or_else(|| standing.unreachable.clone()),
                budget_bytes: self.budget_bytes,
                problems: silent(&unresponsive_pumps)
                    // One that drains or leaves has no time for questions.
                    .filter(|_| !stopping)
                    .chain(standing.problems())
                    .chain(unread)
                    .collect(),
                unresponsive_pumps,
                allow_unsigned: self.allow_unsigned,
                not_joined: not_joined.map(|(pump, _)| pump).collect(),
                // The pumps tell.
                kafka_unreachable_since_ms: None,
                stall_timeout_ms: self.stall_timeout_ms,
                stopping,
            };
            (facts, standing.declared.clone())
        };
        ServiceReport::assemble(facts, pumps, self.registry.report(), declared)
    }

    fn explain(
        &self,
        topic: &str,
        partition: i32,
        offset: Option<i64>,
        deadline: Duration,
    ) -> Option<Explanation> {
        let at = TopicPartition {
            topic: topic.into(),
            partition,
        };
        let mut found = self
            .pumps
            .iter()
            .find_map(|pump| pump.explain(at.clone(), offset, deadline))?;
        // The pump may not have heard yet that there is nothing to read any more.
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        for problem in &standing.of_topics {
            if problem.is_missing_topic(topic) {
                let told = found.reason.into_iter().chain([problem.sentence()]);
                found.reason = Some(told.collect::<Vec<_>>().join("\n"));
            }
        }
        Some(found)
    }

    fn set_gate(&self, handler: &str, open: bool) -> Result<(), GateError> {
        use sluicegate_config::source::GateError as Refused;
        match self.gates.set_gate(handler, open) {
            Ok(written) if open => self.await_open(handler, &written),
            Ok(written) => self.await_shut(handler, &written),
            Err(Refused::UnknownHandler { name, .. }) => Err(self.unknown(name)),
            Err(refused) => Err(GateError::NotWritten {
                name: handler.to_owned(),
                reason: refused.to_string(),
            }),
        }
    }

    fn accept_control_plane(&self) -> bool {
        let watch = self.watch.get().and_then(Weak::upgrade);
        watch.is_some_and(|watch| watch.accept())
    }

    fn restart(&self, handler: &str) -> Result<Restarted, GateError> {
        let not_serving = |reason: String| GateError::NotServing {
            name: handler.to_owned(),
            reason,
        };
        let before = match self.registry.restart(handler) {
            Ok(before) => before,
            Err(RestartRefusal::Unknown(name)) => return Err(self.unknown(name)),
            Err(refusal @ RestartRefusal::NothingRuns) => {
                return Err(not_serving(refusal.to_string()));
            }
        };
        if let Some(control) = self.control.get() {
            // After the stop nobody takes orders any more; the state below says so.
            let _ = control.send(ControlCommand::Prepare);
        }
        let deadline = Instant::now() + RESTARTS_WITHIN;
        loop {
            match self.registry.restart_state(handler, before) {
                RestartState::Done(generation) => {
                    return Ok(Restarted {
                        generation,
                        rebuilt: generation != before,
                    });
                }
                RestartState::Refused(reason) => return Err(not_serving(reason)),
                RestartState::UnderWay if Instant::now() >= deadline => {
                    let reason = format!(
                        "its new instances are still being built and checked after {} s; `sluicegate handlers show {handler}` tells how it goes on",
                        RESTARTS_WITHIN.as_secs()
                    );
                    return Err(not_serving(reason));
                }
                RestartState::UnderWay => std::thread::sleep(POLL_INTERVAL),
            }
        }
    }
}
