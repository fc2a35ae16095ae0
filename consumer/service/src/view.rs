//! The service's status for the admin interface: combines the reports of pumps and pools with the declared specs.
//!
//! ```text
//!  control thread ── record_* ──► ControlStatus ─┐
//!  pumps ◄── report, by one deadline ────────────┼─► ServiceReport ─► /readyz, /api/v1, /metrics
//!  registry ── pools ────────────────────────────┘
//! ```
//!
//! Counters live where the work is done and are read on request, so that the record path pays nothing for being
//! observed. One deadline covers all pumps, and a pump that misses it is listed as unresponsive instead of delaying the
//! answer: a probe must not fail because one thread is busy. Requests that change something return only once it has
//! taken effect, or with the reason why it has not (`gates`): they wait for a status that includes their own write,
//! because while the watch lags, the status from before an earlier write can be identical.

mod bridge;
mod gates;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use sluicegate_admin::http::BridgeReporter;
use sluicegate_admin::{GateError, Restarted, ServiceView};
use sluicegate_config::spec::{HandlerSpec, Route};
use sluicegate_config::{RejectionEffect, RuntimeSettings, ServiceConfig, Snapshot};
use sluicegate_engine::source::TopicPartition;
use sluicegate_engine::status::{
    DeclaredHandler, Explanation, Gate, ProblemKind, ServiceInfo, ServiceProblem, ServiceReport,
};
use sluicegate_plugins::{Applied, HandlerTable, Refusal, Registry, RestartRefusal, RestartState};
use sluicegate_pool::clock::now_ms;
use sluicegate_sync::source::{GateWriter, WatchHandle};

use super::commands::{ControlCommand, named};
use super::group::Group;

/// Status of the pumps, the registry and the controller, readable from any thread.
pub(super) struct ServiceStatus {
    group: Arc<Group>,
    registry: Arc<Registry>,
    gates: Arc<dyn GateWriter>,
    started_ms: i64,
    budget_bytes: u64,
    stall_timeout_ms: i64,
    allow_unsigned: bool,
    stopping: AtomicBool,
    rejections: AtomicU64,
    repairs: AtomicU64,
    status: Mutex<ControlStatus>,
    /// Command channel of the control thread, once it runs.
    control: OnceLock<Sender<ControlCommand>>,
    /// The spec watch, while it runs.
    watch: OnceLock<Weak<dyn WatchHandle>>,
    bridge: OnceLock<BridgeReporter>,
}

/// State recorded by the control thread.
#[derive(Default)]
struct ControlStatus {
    revision: u64,
    /// The revision of the snapshot recorded last, even if parts of it are still being prepared.
    recorded: u64,
    /// The revision of the last snapshot whose gates every pump has applied.
    gates_revision: u64,
    declared: Vec<DeclaredHandler>,
    last_rejection: Option<String>,
    /// Active rejections, by their text.
    refused: BTreeMap<String, RefusedSpec>,
    /// The last update that was rejected as a whole, and when.
    refused_update: Option<(String, i64)>,
    /// Rejected specs: the handlers that each one concerns, and the reason.
    rejected: Vec<(Vec<String>, String)>,
    /// Handlers of the plan applied by every pump, with the state of their gates in it.
    active: BTreeMap<Arc<str>, bool>,
    unreachable: Option<String>,
    /// Since when, in milliseconds since the epoch.
    unreachable_since_ms: Option<i64>,
    /// The problem of a control plane that is held back.
    held: Option<ServiceProblem>,
    switches: RuntimeSettings,
    /// The problem of this process's member id.
    member: Option<ServiceProblem>,
    /// Problems found by the topic watch.
    topic_problems: Vec<ServiceProblem>,
    /// The problem of a failed subscription.
    subscription: Option<ServiceProblem>,
}

/// An active rejection.
#[derive(Clone, Copy)]
struct RefusedSpec {
    /// Since when, in milliseconds since the epoch.
    since_ms: i64,
    /// Whether it concerns the spec, not an unhealthy handler.
    of_spec: bool,
}

impl ControlStatus {
    /// Problems recorded by the control thread.
    fn problems(&self) -> Vec<ServiceProblem> {
        let refused = |what: &str, why: &String, since_ms: i64| {
            ServiceProblem {
            kind: ProblemKind::SpecRefused,
            what: what.to_owned(),
            since_ms,
            count: 1,
            cause: why.clone(),
            remedy: "correct it at its source; the previous state stays active while the service runs, but a start fails with a \
                 declared handler that cannot run"
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
            remedy: "check the store or folder; the last good specs stay active".to_owned(),
        });
        let mut problems: Vec<ServiceProblem> = specs.chain(update).chain(away).collect();
        let told = self
            .held
            .iter()
            .chain(&self.member)
            .chain(&self.topic_problems);
        let told = told.chain(&self.subscription);
        problems.extend(told.cloned());
        problems
    }
}

/// A short description of what is rejected; the cause is reported separately.
fn summary(why: &str) -> String {
    let first = why.lines().next().unwrap_or(why);
    let place = first.split(": ").next().unwrap_or(first);
    format!("a handler's spec is refused: {place}")
}

/// The route in the spec's format.
fn route_of(route: &Route) -> serde_json::Value {
    let topics: Vec<String> = route.topics.iter().map(ToString::to_string).collect();
    serde_json::json!({ "topics": topics, "when": route.when.to_document() })
}

/// Remedy for a control plane that is held back.
pub(super) const HELD_REMEDY: &str =
    "restore the store as it was, or accept its content with `sluicegate control-plane accept`";

/// Maximum wait for the pumps' reports in a readiness probe.
const READY_TIMEOUT: Duration = Duration::from_millis(500);
/// Maximum wait for the reports of pumps that are expected to respond immediately.
const PROBE_TIMEOUT: Duration = Duration::from_millis(100);

impl ServiceStatus {
    pub(super) fn new(
        config: &ServiceConfig,
        group: Arc<Group>,
        registry: Arc<Registry>,
        gates: Arc<dyn GateWriter>,
    ) -> Self {
        Self {
            stall_timeout_ms: config.processing.stall_timeout.as_millis() as i64,
            stopping: AtomicBool::new(false),
            group,
            registry,
            gates,
            started_ms: now_ms(),
            budget_bytes: super::settings::in_flight_bytes(config),
            allow_unsigned: config.plugins.allow_unsigned,
            rejections: AtomicU64::new(0),
            repairs: AtomicU64::new(0),
            status: Mutex::default(),
            control: OnceLock::new(),
            watch: OnceLock::new(),
            bridge: OnceLock::new(),
        }
    }

    /// Sets the spec watch.
    pub(super) fn set_watch(&self, watch: &Arc<dyn WatchHandle>) {
        let _ = self.watch.set(Arc::downgrade(watch));
    }

    /// Sets the command channel of the control thread.
    pub(super) fn set_control(&self, commands: Sender<ControlCommand>) {
        let _ = self.control.set(commands);
    }

    /// Records that the service is stopping.
    pub(super) fn record_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Records a snapshot and the result of its application.
    pub(super) fn record_snapshot(&self, snapshot: &Snapshot, applied: &Applied) {
        let mut refused: Vec<String> = Vec::new();
        // Rejected only because the handler is unhealthy, which its own problem reports.
        let mut unhealthy: BTreeSet<String> = BTreeSet::new();
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
                unhealthy.extend(why.clone().filter(|_| gate == Gate::Held));
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
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        // A rejection outlives many gate changes, and is logged once.
        for why in refused
            .iter()
            .filter(|&why| !status.refused.contains_key(why))
        {
            tracing::error!(revision = snapshot.revision, "{why}");
        }
        status.revision = applied.plan.revision;
        status.recorded = snapshot.revision;
        status.switches = snapshot.switches;
        status.rejected = rejected;
        status.declared = declared;
        let last = (!refused.is_empty()).then(|| refused.join("\n"));
        if last.is_some() && last != status.last_rejection {
            self.rejections.fetch_add(1, Ordering::Relaxed);
        }
        status.last_rejection = last;
        let now = now_ms();
        let before = std::mem::take(&mut status.refused);
        status.refused = refused
            .into_iter()
            .map(|why| {
                let since_ms = before.get(&why).map_or(now, |known| known.since_ms);
                let of_spec = !unhealthy.contains(&why);
                (why, RefusedSpec { since_ms, of_spec })
            })
            .collect();
        status.refused_update = None;
    }

    /// Records a plan that every pump has applied.
    pub(super) fn record_active_plan(&self, plan: &HandlerTable) {
        let gates = plan.handlers.iter();
        let gates = gates.map(|one| (Arc::clone(&one.name), one.spec.enabled));
        let gates = gates.collect();
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.active = gates;
        status.gates_revision = status.recorded;
    }

    /// Records an update that was rejected as a whole.
    pub(super) fn record_rejection(&self, why: &str) {
        self.rejections.fetch_add(1, Ordering::Relaxed);
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.last_rejection = Some(why.to_owned());
        status.refused_update = Some((why.to_owned(), now_ms()));
    }

    /// Records why specs cannot be read, or `None` once they can. Returns the length of an outage that has ended.
    pub(super) fn record_unreachable(&self, why: Option<String>) -> Option<Duration> {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let before = status.unreachable_since_ms;
        status.unreachable_since_ms = why.is_some().then(|| before.unwrap_or_else(now_ms));
        status.unreachable = why;
        let over = before.filter(|_| status.unreachable.is_none())?;
        Some(Duration::from_millis(now_ms().abs_diff(over)))
    }

    /// Records why the control plane is held back, or `None` once it no longer is.
    pub(super) fn record_held(&self, why: Option<&str>) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let since_ms = status.held.as_ref().map(|held| held.since_ms);
        status.held = why.map(|why| ServiceProblem {
            kind: ProblemKind::SpecsHeld,
            count: 1,
            what: "the control plane's content is not applied; the last specs stay active"
                .to_owned(),
            since_ms: since_ms.unwrap_or_else(now_ms),
            cause: why.to_owned(),
            remedy: HELD_REMEDY.to_owned(),
        });
    }

    /// Records the problems found by the topic watch.
    pub(super) fn record_problems(&self, problems: Vec<ServiceProblem>) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.topic_problems = problems;
    }

    /// Records why a subscription failed, or `None` once all pumps are subscribed.
    pub(super) fn record_subscription(&self, refused: Option<&str>) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let before = status.subscription.take();
        let Some(why) = refused else {
            return;
        };
        if before.is_none() {
            self.rejections.fetch_add(1, Ordering::Relaxed);
        }
        let (since_ms, count) = before.map_or((now_ms(), 0), |one| (one.since_ms, one.count));
        status.subscription = Some(ServiceProblem {
            kind: ProblemKind::Topic,
            what: "the topics of the routes are not subscribed to; the previous ones are read"
                .to_owned(),
            since_ms,
            count: count + 1,
            cause: why.to_owned(),
            remedy: "see the cause; it is retried whenever the cluster's topics are listed"
                .to_owned(),
        });
    }

    /// Records the problem of this process's member id, if any.
    pub(super) fn record_member(&self, problem: Option<ServiceProblem>) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.member = problem;
    }

    /// Counts keys whose change the watch had missed.
    pub(super) fn record_repairs(&self, keys: u64) {
        self.repairs.fetch_add(keys, Ordering::Relaxed);
    }
}

/// Reasons of rejected specs, by handler name.
fn by_name(rejected: &[(Vec<String>, String)]) -> BTreeMap<&str, &str> {
    let mut by_name = BTreeMap::new();
    for (names, why) in rejected {
        by_name.extend(names.iter().map(|name| (name.as_str(), why.as_str())));
    }
    by_name
}

/// Why a handler does not run its newest spec: the text is rejected, or its plugin does not accept it. A held gate is not such
/// a reason: the spec is active.
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

/// The effective gate state: desired by the spec, actual by the plan.
fn gate_of(spec: &HandlerSpec, plan: &HandlerTable) -> Gate {
    let active = plan.handler(&spec.name);
    match (spec.enabled, active) {
        (false, _) => Gate::Closed,
        (true, Some(handler)) if !handler.spec.enabled => Gate::Held,
        (true, _) => Gate::Open,
    }
}

/// Maximum wait of a restart request for the new generation.
const RESTART_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// Problems of unresponsive pumps.
fn unresponsive(pumps: &[u32]) -> impl Iterator<Item = ServiceProblem> {
    pumps.iter().map(|pump| ServiceProblem {
        kind: ProblemKind::Pump,
        what: format!("pump {pump} does not answer"),
        since_ms: now_ms(),
        count: 1,
        cause: "its thread was busy or not scheduled; the state of its partitions is not known"
            .to_owned(),
        remedy:
            "check the CPU time of the process; if it persists, take a stack trace and restart it"
                .to_owned(),
    })
}

impl ServiceStatus {
    /// Whether every pump responds immediately.
    pub(super) fn pumps_answer(&self) -> bool {
        self.group.reports(PROBE_TIMEOUT).1.is_empty()
    }

    /// Why no spec of this name can be changed: the control plane is held back, the handler is deleted and drains, or it does not
    /// exist.
    fn unknown(&self, name: String) -> GateError {
        let handlers = self.report(READY_TIMEOUT).handlers;
        let held = {
            let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
            status.held.as_ref().map(|held| held.sentence(now_ms()))
        };
        if let Some(reason) = held
            && handlers.iter().any(|one| one.name == name && !one.removed)
        {
            // The handler keeps running without a spec in the store.
            return GateError::NotWritten { name, reason };
        }
        // A handler whose spec was just deleted is listed until the watch has reported that.
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
        let (pumps, unresponsive_pumps) = self.group.reports(deadline);
        let stopping = self.stopping.load(Ordering::Relaxed);
        let (facts, declared) = {
            let unread = self.registry.catalogue().problems();
            let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
            let facts = ServiceInfo {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                group_id: self.group.id().to_owned(),
                started_ms: self.started_ms,
                revision: status.revision,
                rejections: self.rejections.load(Ordering::Relaxed),
                repairs: self.repairs.load(Ordering::Relaxed),
                unreachable_since_ms: status.unreachable_since_ms,
                held_since_ms: status.held.as_ref().map(|held| held.since_ms),
                metrics_level: status.switches.metrics,
                last_rejection: status
                    .last_rejection
                    .clone()
                    .or_else(|| status.unreachable.clone()),
                budget_bytes: self.budget_bytes,
                problems: unresponsive(&unresponsive_pumps)
                    // A pump that drains or leaves the group may not respond.
                    .filter(|_| !stopping)
                    .chain(status.problems())
                    .chain(unread)
                    .chain(self.bridge_problem())
                    .collect(),
                unresponsive_pumps,
                allow_unsigned: self.allow_unsigned,
                not_joined: self.group.not_joined(),
                // Filled in from the pumps' reports.
                kafka_unreachable_since_ms: None,
                stall_timeout_ms: self.stall_timeout_ms,
                stopping,
            };
            (facts, status.declared.clone())
        };
        ServiceReport::assemble(facts, pumps, self.registry.report(), declared, now_ms())
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
        let mut found = self.group.explain(&at, offset, deadline)?;
        // The pump may not know yet that the topic was deleted.
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        for problem in &status.topic_problems {
            if problem.is_missing_topic(topic) {
                let told = found.reason.into_iter().chain([problem.sentence(now_ms())]);
                found.reason = Some(told.collect::<Vec<_>>().join("\n"));
            }
        }
        Some(found)
    }

    fn set_gate(&self, handler: &str, open: bool) -> Result<(), GateError> {
        use sluicegate_sync::source::GateError as Refused;
        match self.gates.set_gate(handler, open) {
            Ok(written) if open => self.await_open(handler, &written),
            Ok(written) => self.await_closed(handler, &written),
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
            // The receiver is gone after the stop; the state below reports that.
            let _ = control.send(ControlCommand::Prepare);
        }
        let deadline = Instant::now() + RESTART_TIMEOUT;
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
                        "its new instances are still being built and checked after {} s; `sluicegate handlers show {handler}` shows the progress",
                        RESTART_TIMEOUT.as_secs()
                    );
                    return Err(not_serving(reason));
                }
                RestartState::UnderWay => std::thread::sleep(POLL_INTERVAL),
            }
        }
    }
}
