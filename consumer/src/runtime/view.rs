//! The service as the admin side sees it: reports of pumps and pools put together with what the specs declare.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sluicegate_config::source::GateWriter;
use sluicegate_config::spec::{HandlerSpec, Route};
use sluicegate_config::{ServiceConfig, Snapshot, Switches};

use super::control::{Order, named};
use crate::admin::view::now_ms;
use crate::admin::{
    DeclaredHandler, Explanation, Gate, GateError, HandlerReport, HandlerState, PumpReport,
    ServiceFacts, ServiceProblem, ServiceReport, ServiceView,
};
use crate::handlers::{Applied, Plan, Registry, RestartRefusal, RestartState};
use crate::pump::PumpAddress;
use crate::source::TopicPartition;

/// What the pumps, the registry and the control side say, for whoever asks.
pub(super) struct View {
    pumps: Vec<PumpAddress>,
    registry: Arc<Registry>,
    gates: Arc<dyn GateWriter>,
    group_id: String,
    started_ms: i64,
    budget_bytes: u64,
    allow_unsigned: bool,
    rejections: AtomicU64,
    repairs: AtomicU64,
    standing: Mutex<Standing>,
    /// Where the control thread takes orders, once it runs.
    control: OnceLock<Sender<Order>>,
}

/// What the last update left.
#[derive(Default)]
struct Standing {
    revision: u64,
    declared: Vec<DeclaredHandler>,
    last_rejection: Option<String>,
    /// Each refusal that stands.
    refused: BTreeSet<String>,
    unreachable: Option<String>,
    /// Since when, in milliseconds since the epoch.
    unreachable_since_ms: Option<i64>,
    switches: Switches,
    problems: Vec<ServiceProblem>,
}

/// The route as the spec writes it.
fn route_of(route: &Route) -> serde_json::Value {
    let topics: Vec<String> = route.topics.iter().map(ToString::to_string).collect();
    serde_json::json!({ "topics": topics, "when": route.when.to_document() })
}

/// Longest wait for a pump when readiness is asked.
const READY_ANSWER: Duration = Duration::from_millis(500);

impl View {
    pub(super) fn new(
        config: &ServiceConfig,
        pumps: Vec<PumpAddress>,
        registry: Arc<Registry>,
        gates: Arc<dyn GateWriter>,
    ) -> Self {
        Self {
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
        }
    }

    /// Says where the control thread takes orders.
    pub(super) fn set_control(&self, orders: Sender<Order>) {
        let _ = self.control.set(orders);
    }

    pub(super) fn pumps(&self) -> &[PumpAddress] {
        &self.pumps
    }

    /// Takes note of a snapshot and of what became of it.
    pub(super) fn note_snapshot(&self, snapshot: &Snapshot, applied: &Applied) {
        let mut refused: Vec<String> = Vec::new();
        for rejection in &snapshot.rejections {
            refused.push(rejection.problems.to_string());
        }
        let declared = snapshot
            .handlers
            .values()
            .map(|spec| {
                let refusal = applied
                    .refusals
                    .iter()
                    .find(|refusal| refusal.handler == spec.name);
                let rejected = refusal.map(|refusal| refusal.reason.clone());
                refused.extend(refusal.map(named));
                DeclaredHandler {
                    name: spec.name.clone(),
                    plugin: spec.plugin.clone(),
                    gate: gate_of(spec, &applied.plan),
                    route: route_of(&spec.route),
                    rejected,
                }
            })
            .collect();
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        // What is refused stays so through many a gate's change, and is said once.
        for why in refused
            .iter()
            .filter(|&why| !standing.refused.contains(why))
        {
            tracing::error!(revision = snapshot.revision, "{why}");
        }
        standing.revision = applied.plan.revision;
        standing.switches = snapshot.switches;
        standing.declared = declared;
        let last = (!refused.is_empty()).then(|| refused.join("\n"));
        if last.is_some() && last != standing.last_rejection {
            self.rejections.fetch_add(1, Ordering::Relaxed);
        }
        standing.last_rejection = last;
        standing.refused = refused.into_iter().collect();
    }

    /// Takes note of an update that was refused as a whole.
    pub(super) fn note_rejection(&self, why: &str) {
        self.rejections.fetch_add(1, Ordering::Relaxed);
        self.standing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .last_rejection = Some(why.to_owned());
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

    /// Takes note of what the watch of topics has found wrong.
    pub(super) fn note_problems(&self, problems: Vec<ServiceProblem>) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.problems = problems;
    }

    /// Takes note of keys whose change the watch had missed.
    pub(super) fn note_repairs(&self, keys: u64) {
        self.repairs.fetch_add(keys, Ordering::Relaxed);
    }
}

/// What records meet at a handler: the spec says what is wanted, the plan what is so.
fn gate_of(spec: &HandlerSpec, plan: &Plan) -> Gate {
    let in_force = plan.handler(&spec.name);
    match (spec.enabled, in_force) {
        (false, _) => Gate::Shut,
        (true, Some(handler)) if !handler.spec.enabled => Gate::Held,
        (true, _) => Gate::Open,
    }
}

/// What a handler that is switched off or removed holds although it has failed or hangs, as a sentence.
fn holds(handler: &HandlerReport) -> Option<String> {
    let since_ms = handler.held_since_ms?;
    let failed = handler.state == HandlerState::Failed;
    if !failed && now_ms().saturating_sub(since_ms) < HELD_FOR.as_millis() as i64 {
        return None;
    }
    let HandlerReport {
        name, in_flight, ..
    } = handler;
    let off = match handler.removed {
        true => "deleted",
        false => "switched off",
    };
    Some(format!(
        "handler `{name}` is {off} and still holds {in_flight} records; what it does not finish within processing.drain_timeout is skipped"
    ))
}

/// How long nothing of a handler that is switched off may settle before it counts as one that hangs.
const HELD_FOR: Duration = Duration::from_secs(5);
/// How long whoever restarts a handler waits for its new generation.
const RESTARTS_WITHIN: Duration = Duration::from_secs(10);
/// How long whoever opens a gate waits for the handler to serve.
const OPENS_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(25);

impl View {
    /// Why a handler of this name cannot be told anything: it is deleted and finishes what it has, or there is none.
    fn unknown(&self, name: String) -> GateError {
        let handlers = self.report(READY_ANSWER).handlers;
        if let Some(removed) = handlers.iter().find(|one| one.removed && one.name == name) {
            let in_flight = removed.in_flight;
            return GateError::Removed { name, in_flight };
        }
        let declared = handlers.iter().filter(|handler| !handler.removed);
        let known: Vec<&str> = declared.map(|handler| handler.name.as_str()).collect();
        let known = known.join(", ");
        GateError::Unknown { name, known }
    }

    /// Waits until an opened handler serves.
    ///
    /// # Errors
    /// Why it does not.
    fn await_open(&self, handler: &str) -> Result<(), GateError> {
        let deadline = Instant::now() + OPENS_WITHIN;
        loop {
            let late = Instant::now() >= deadline;
            match self.serves(handler) {
                Serves::Well => return Ok(()),
                Serves::Not(reason) => {
                    return Err(GateError::NotServing {
                        name: handler.to_owned(),
                        reason,
                    });
                }
                Serves::NotYet(Some(reason)) if late => {
                    return Err(GateError::NotServing {
                        name: handler.to_owned(),
                        reason,
                    });
                }
                // The gate is written; it opens when the store says so.
                Serves::NotYet(None) if late => return Ok(()),
                Serves::NotYet(_) => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    fn serves(&self, handler: &str) -> Serves {
        let gate = {
            let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
            let declared = standing.declared.iter().find(|one| one.name == handler);
            declared.map(|one| one.gate)
        };
        match gate {
            None | Some(Gate::Shut) => return Serves::NotYet(None),
            Some(Gate::Open | Gate::Held) => {}
        }
        let pools = self.registry.report();
        let serving = pools
            .into_iter()
            .find(|pool| pool.handler == handler && pool.state != HandlerState::Draining);
        match serving {
            Some(pool) if pool.state == HandlerState::Active => match gate {
                Some(Gate::Held) => Serves::NotYet(Some("its gate is about to open".to_owned())),
                _ => Serves::Well,
            },
            Some(pool) => {
                let why = pool.last_error.unwrap_or_default();
                Serves::NotYet(Some(format!("it is {}: {why}", pool.state)))
            }
            None => {
                let refusals = self.registry.refusals();
                let refusal = refusals.into_iter().find(|one| one.handler == handler);
                refusal.map_or(Serves::NotYet(None), |one| Serves::Not(one.reason))
            }
        }
    }
}

/// Whether an opened handler serves.
enum Serves {
    Well,
    /// It may yet; what keeps it, if that is known.
    NotYet(Option<String>),
    /// It is refused.
    Not(String),
}

impl ServiceView for View {
    fn report(&self, deadline: Duration) -> ServiceReport {
        let mut silent_pumps = Vec::new();
        let mut pumps: Vec<PumpReport> = Vec::new();
        for (number, pump) in self.pumps.iter().enumerate() {
            match pump.report(deadline) {
                Some(report) => pumps.push(report),
                None => silent_pumps.push(number as u32),
            }
        }
        let (facts, declared) = {
            let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
            let facts = ServiceFacts {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                group_id: self.group_id.clone(),
                started_ms: self.started_ms,
                revision: standing.revision,
                rejections: self.rejections.load(Ordering::Relaxed),
                repairs: self.repairs.load(Ordering::Relaxed),
                unreachable_since_ms: standing.unreachable_since_ms,
                metrics_level: standing.switches.metrics,
                last_rejection: standing
                    .last_rejection
                    .clone()
                    .or_else(|| standing.unreachable.clone()),
                budget_bytes: self.budget_bytes,
                silent_pumps,
                allow_unsigned: self.allow_unsigned,
                problems: standing.problems.clone(),
            };
            (facts, standing.declared.clone())
        };
        ServiceReport::assemble(facts, pumps, self.registry.report(), declared)
    }

    fn ready(&self) -> Result<(), String> {
        for (number, pump) in self.pumps.iter().enumerate() {
            match pump.is_assigned(READY_ANSWER) {
                Some(true) => {}
                Some(false) => return Err(format!("pump {number} waits for its partitions")),
                None => return Err(format!("pump {number} does not answer")),
            }
        }
        let report = self.report(READY_ANSWER);
        for handler in &report.handlers {
            if handler.gate == Gate::Shut {
                match holds(handler) {
                    Some(held) => return Err(held),
                    None => continue,
                }
            }
            if handler.state != HandlerState::Active {
                let why = handler
                    .last_error
                    .as_deref()
                    .unwrap_or("no reason given yet");
                return Err(format!(
                    "handler `{}` is {}: {why}",
                    handler.name, handler.state
                ));
            }
        }
        Ok(())
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
        self.pumps
            .iter()
            .find_map(|pump| pump.explain(at.clone(), offset, deadline))
    }

    fn set_gate(&self, handler: &str, open: bool) -> Result<(), GateError> {
        use sluicegate_config::source::GateError as Refused;
        match self.gates.set_gate(handler, open) {
            Ok(_) if open => self.await_open(handler),
            Ok(_) => Ok(()),
            Err(Refused::UnknownHandler { name, .. }) => Err(self.unknown(name)),
            Err(refused) => Err(GateError::NotWritten {
                name: handler.to_owned(),
                reason: refused.to_string(),
            }),
        }
    }

    fn restart(&self, handler: &str) -> Result<u64, GateError> {
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
            let _ = control.send(Order::Prepare);
        }
        let deadline = Instant::now() + RESTARTS_WITHIN;
        loop {
            match self.registry.restart_state(handler, before) {
                RestartState::Done(generation) => return Ok(generation),
                RestartState::Refused(reason) => return Err(not_serving(reason)),
                RestartState::UnderWay if Instant::now() >= deadline => {
                    let reason = format!(
                        "its new instances are still being built and checked after {} s; `sluicegate handlers show {handler}` tells how it goes on",
                        RESTARTS_WITHIN.as_secs()
                    );
                    return Err(not_serving(reason));
                }
                RestartState::UnderWay => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }
}
