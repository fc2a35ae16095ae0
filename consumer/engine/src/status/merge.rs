//! Merges the reports of pumps, pools and config into one report of the service.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::problem::{ProblemKind, ServiceProblem, bounded, by_topic};
use crate::status::{
    DeclaredHandler, Gate, HandlerFlowReport, HandlerReport, HandlerState, LastError, PoolReport,
    PumpReport, ServiceInfo, ServiceReport, TopicReport, VersionReport,
};

/// Since when no pump has reached the cluster; `None` if any pump reaches a broker.
fn all_unreachable_since(pumps: &[PumpReport]) -> Option<i64> {
    let since = pumps.iter().map(|pump| pump.kafka_unreachable_since_ms);
    since.collect::<Option<Vec<i64>>>()?.into_iter().max()
}

impl ServiceReport {
    /// Merges the parts. `declared` are the handlers of the active snapshot; a handler known only from its counters
    /// (removed since) is listed as draining while it holds records, and omitted afterwards.
    pub fn assemble(
        facts: ServiceInfo,
        pumps: Vec<PumpReport>,
        pools: Vec<PoolReport>,
        declared: Vec<DeclaredHandler>,
        now_ms: i64,
    ) -> Self {
        let mut report = Self {
            facts,
            ..Self::default()
        };
        let mut topics: BTreeMap<String, TopicReport> = BTreeMap::new();
        let mut handlers = Handlers::declared(declared);
        report.facts.kafka_unreachable_since_ms = all_unreachable_since(&pumps);
        for pump in pumps {
            report.in_flight_bytes += pump.in_flight_bytes;
            report.in_flight_records += pump.in_flight_records;
            report.commits.ok += pump.commits.ok;
            report.commits.refused += pump.commits.refused;
            report.commits.failed += pump.commits.failed;
            report.partitions.extend(pump.partitions);
            report.facts.problems.extend(pump.problems);
            if let Some(client) = pump.client {
                report.clients.push((pump.pump, client));
            }
            for topic in pump.topics {
                let sum = topics.entry(topic.topic.clone()).or_default();
                sum.topic = topic.topic;
                sum.consumed += topic.consumed;
                sum.unrouted += topic.unrouted;
                sum.repeats_dropped += topic.repeats_dropped;
                sum.recreated += topic.recreated;
                sum.metadata_dropped += topic.metadata_dropped;
            }
            pump.handlers
                .into_iter()
                .for_each(|flow| handlers.add_flow(flow));
        }
        pools.into_iter().for_each(|pool| handlers.add_pool(pool));
        report.topics = topics.into_values().collect();
        report.handlers = handlers.finish(now_ms);
        report
            .partitions
            .sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        let mut problems = std::mem::take(&mut report.facts.problems);
        let of_handlers = report.handlers.iter().flat_map(|handler| &handler.problems);
        problems.extend(of_handlers.cloned());
        let of_partitions = report
            .partitions
            .iter()
            .filter_map(|partition| partition.entry(now_ms));
        problems.extend(by_topic(of_partitions));
        report.facts.problems = bounded(merged(problems));
        report
    }

    /// The handler of this name.
    pub fn handler(&self, name: &str) -> Option<&HandlerReport> {
        self.handlers.iter().find(|handler| handler.name == name)
    }
}

/// Merges problems that several pumps report; client problems are merged even if their causes are worded differently.
fn merged(problems: Vec<ServiceProblem>) -> Vec<ServiceProblem> {
    let mut by_name: BTreeMap<_, ServiceProblem> = BTreeMap::new();
    for problem in problems {
        let cause = match problem.kind.is_of_client() {
            true => String::new(),
            false => problem.cause.clone(),
        };
        match by_name.entry((problem.kind, problem.what.clone(), cause)) {
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.since_ms = known.since_ms.min(problem.since_ms);
                known.count += problem.count;
            }
            Entry::Vacant(free) => {
                free.insert(problem);
            }
        }
    }
    by_name.into_values().collect()
}

/// How long a switched-off handler may settle nothing before it is reported as hanging, in milliseconds.
const CLOSING_GRACE_MS: i64 = 5_000;

impl HandlerReport {
    /// What prevents it from processing records, or from releasing them once it is switched off.
    fn own_problem(&self, now_ms: i64) -> Option<ServiceProblem> {
        let name = &self.name;
        let problem = |kind, what: String, remedy: String| {
            // Not the last error: its text may contain a record's value, and problems are logged.
            let cause = self.reason.clone();
            ServiceProblem {
                kind,
                what,
                since_ms: self.since_ms.unwrap_or(now_ms),
                count: 1,
                cause: cause.unwrap_or_else(|| "no reason given".to_owned()),
                remedy,
            }
        };
        if self.gate == Gate::Closed {
            let since_ms = self.held_since_ms?;
            let failed = self.state == HandlerState::Failed;
            if !failed && now_ms.saturating_sub(since_ms) < CLOSING_GRACE_MS {
                return None;
            }
            let off = match self.removed {
                true => "deleted",
                false => "switched off",
            };
            let what = format!(
                "handler `{name}` is {off} and still holds {} records",
                self.in_flight
            );
            let remedy = "records that it does not finish within processing.drain_timeout are skipped; emits and dead letters \
                          that the cluster has neither acknowledged nor refused are awaited";
            let kind = ProblemKind::HandlerClosing;
            return Some(ServiceProblem {
                since_ms,
                ..problem(kind, what, remedy.to_owned())
            });
        }
        match (self.state, self.gate) {
            (HandlerState::Failed, _) => {
                let what = format!("handler `{name}` has failed and accepts no more records");
                let remedy = format!(
                    "`sluicegate handlers restart {name}` once its dependencies are available, or deploy another version or config; if its threads hang, it \
                     also runs again by itself once they return"
                );
                Some(problem(ProblemKind::HandlerFailed, what, remedy))
            }
            (_, Gate::Held) => {
                let what =
                    format!("the gate of handler `{name}` is held closed: its records are skipped");
                let remedy = "it opens automatically once a health check passes";
                Some(problem(ProblemKind::HandlerHeld, what, remedy.to_owned()))
            }
            (HandlerState::Unhealthy, _) => {
                let what = format!("handler `{name}` is unhealthy");
                let remedy = "check its dependencies: an instance that is unhealthy still runs records, one that cannot be built is tried again by itself, at most every 30 s";
                Some(problem(
                    ProblemKind::HandlerUnhealthy,
                    what,
                    remedy.to_owned(),
                ))
            }
            // Refused specs are reported by the control side.
            _ => None,
        }
    }
}

struct Handlers {
    by_name: BTreeMap<String, (HandlerReport, bool)>,
}

impl Handlers {
    fn declared(declared: Vec<DeclaredHandler>) -> Self {
        let by_name = declared
            .into_iter()
            .map(|spec| {
                let report = HandlerReport {
                    name: spec.name.clone(),
                    plugin: spec.plugin,
                    gate: spec.gate,
                    route: spec.route,
                    state: match spec.rejected {
                        Some(_) => HandlerState::Rejected,
                        None => HandlerState::Starting,
                    },
                    reason: spec.rejected.clone(),
                    last_error: spec.rejected,
                    refused_spec: spec.refused_spec,
                    ..HandlerReport::default()
                };
                (spec.name, (report, true))
            })
            .collect();
        Self { by_name }
    }

    fn entry(&mut self, name: &str) -> &mut HandlerReport {
        let (report, _) = self.by_name.entry(name.to_owned()).or_insert_with(|| {
            let report = HandlerReport {
                name: name.to_owned(),
                state: HandlerState::Draining,
                gate: Gate::Closed,
                removed: true,
                ..HandlerReport::default()
            };
            (report, false)
        });
        report
    }

    fn add_flow(&mut self, flow: HandlerFlowReport) {
        let handler = self.entry(&flow.name);
        handler.in_flight += flow.in_flight;
        handler.parked += flow.parked;
        handler.refusals += flow.refusals;
        handler.refused += flow.refused;
        handler.unacknowledged += flow.unacknowledged;
        handler.problems.extend(flow.problems);
        handler.outcomes.add(&flow.outcomes);
        let held = handler.held_since_ms.into_iter().chain(flow.held_since_ms);
        handler.held_since_ms = held.min();
        record_error(handler, flow.last_error);
        version_of(handler, &flow.version)
            .outcomes
            .add(&flow.outcomes);
    }

    fn add_pool(&mut self, pool: PoolReport) {
        let handler = self.entry(&pool.handler);
        handler.panics += pool.panics;
        handler.restarts += pool.restarts;
        handler.quarantined += pool.quarantined;
        // Each of its versions has the count of the whole handler.
        handler.hung = handler.hung.max(pool.hung);
        handler.durations.add(&pool.durations);
        for (topic, count) in pool.emitted {
            *handler.emitted.entry(topic).or_default() += count;
        }
        version_of(handler, &pool.version).panics += pool.panics;
        record_error(handler, pool.last_error);
        if pool.generation < handler.generation {
            return;
        }
        handler.since_ms = pool.since_ms;
        handler.generation = pool.generation;
        handler.version = pool.version;
        handler.path = pool.path;
        handler.sha256 = pool.sha256;
        handler.workers = pool.workers;
        handler.busy = pool.busy;
        handler.metrics = pool.metrics;
        // A refused spec leaves the previous generation active, and its refusal stays visible as the last error.
        let refused = handler.state == HandlerState::Rejected;
        if !refused || pool.state != HandlerState::Draining {
            handler.state = pool.state;
            handler.reason = pool.reason;
        }
    }

    fn finish(self, now_ms: i64) -> Vec<HandlerReport> {
        self.by_name
            .into_values()
            .filter(|(report, declared)| *declared || report.in_flight > 0)
            .map(|(mut report, _)| {
                report.problems.extend(report.own_problem(now_ms));
                report
            })
            .collect()
    }
}

/// Keeps the newer error. A rejected spec's refusal stays: it has no time, and nothing newer concerns the spec.
fn record_error(handler: &mut HandlerReport, error: Option<LastError>) {
    let Some(error) = error else { return };
    let is_refusal = handler.last_error.is_some() && handler.last_error_ms.is_none();
    let is_newer = handler.last_error_ms <= Some(error.at_ms);
    if is_newer && !is_refusal {
        handler.last_error = Some(error.message);
        handler.last_error_ms = Some(error.at_ms);
    }
}

fn version_of<'a>(handler: &'a mut HandlerReport, version: &str) -> &'a mut VersionReport {
    let place = match handler.versions.iter().position(|v| v.version == version) {
        Some(place) => place,
        None => {
            handler.versions.push(VersionReport {
                version: version.to_owned(),
                ..VersionReport::default()
            });
            handler.versions.len() - 1
        }
    };
    &mut handler.versions[place]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{OutcomeCounts, PartitionReport};

    fn flow(name: &str, version: &str, ack: u64) -> HandlerFlowReport {
        HandlerFlowReport {
            name: name.into(),
            version: version.into(),
            in_flight: 1,
            outcomes: OutcomeCounts {
                ack,
                ..OutcomeCounts::default()
            },
            ..HandlerFlowReport::default()
        }
    }

    fn partition(topic: &str, partition: i32) -> PartitionReport {
        PartitionReport {
            topic: topic.into(),
            partition,
            ..PartitionReport::default()
        }
    }

    #[test]
    fn kafka_is_unreachable_only_if_no_pump_reaches_a_broker() {
        for (pumps, since) in [
            (&[][..], None),
            (&[None], None),
            (&[Some(7)], Some(7)),
            (&[Some(7), None], None),
            (&[Some(7), Some(9)], Some(9)),
        ] {
            let of = |since_ms: &Option<i64>| PumpReport {
                kafka_unreachable_since_ms: *since_ms,
                ..PumpReport::default()
            };
            let reports = pumps.iter().map(of).collect();
            let report =
                ServiceReport::assemble(ServiceInfo::default(), reports, Vec::new(), Vec::new(), 0);
            assert_eq!(report.facts.kafka_unreachable_since_ms, since, "{pumps:?}");
        }
    }

    #[test]
    fn counts_of_two_pumps_and_two_generations_add_up() {
        let pump = |number, topic: &str| PumpReport {
            pump: number,
            partitions: vec![partition(topic, 1), partition("a", 7)],
            handlers: vec![flow("relay", "1.0.0", 5), flow("relay", "1.1.0", 2)],
            topics: vec![TopicReport {
                topic: "a".into(),
                consumed: 7,
                ..TopicReport::default()
            }],
            in_flight_bytes: 100,
            ..PumpReport::default()
        };
        let pool = |generation, version: &str, panics| PoolReport {
            handler: "relay".into(),
            version: version.into(),
            generation,
            sha256: Some(format!("digest {generation}")),
            path: Some(format!("plugins/librelay-{generation}.so")),
            state: if generation == 2 {
                HandlerState::Active
            } else {
                HandlerState::Draining
            },
            workers: 4,
            panics,
            hung: 2,
            ..PoolReport::default()
        };
        let declared = DeclaredHandler {
            name: "relay".into(),
            gate: Gate::Closed,
            ..DeclaredHandler::default()
        };
        let report = ServiceReport::assemble(
            ServiceInfo::default(),
            vec![pump(0, "b"), pump(1, "c")],
            vec![pool(2, "1.1.0", 1), pool(1, "1.0.0", 3)],
            vec![declared],
            0,
        );
        assert_eq!(report.in_flight_bytes, 200);
        assert_eq!(report.topics[0].consumed, 14);
        let places: Vec<_> = report.partitions.iter().map(|p| p.topic.as_str()).collect();
        assert_eq!(places, ["a", "a", "b", "c"]);
        let relay = report.handler("relay").expect("it is declared");
        assert_eq!(relay.outcomes.ack, 14);
        assert_eq!((relay.generation, relay.version.as_str()), (2, "1.1.0"));
        assert_eq!(relay.sha256.as_deref(), Some("digest 2"));
        assert_eq!(relay.path.as_deref(), Some("plugins/librelay-2.so"));
        assert_eq!(
            (relay.state, relay.gate, relay.workers),
            (HandlerState::Active, Gate::Closed, 4)
        );
        assert_eq!((relay.panics, relay.hung), (4, 2));
        let old = relay
            .versions
            .iter()
            .find(|v| v.version == "1.0.0")
            .expect("it has counts");
        assert_eq!((old.outcomes.ack, old.panics), (10, 3));
    }

    #[test]
    fn a_handler_with_a_refused_spec_reports_the_state_of_its_previous_generation() {
        let declared = DeclaredHandler {
            name: "late".into(),
            rejected: Some("config refused".into()),
            ..DeclaredHandler::default()
        };
        let pool = PoolReport {
            handler: "late".into(),
            version: "1.0.0".into(),
            generation: 3,
            state: HandlerState::Active,
            last_error: Some(LastError {
                at_ms: 9,
                message: "an earlier panic".into(),
            }),
            ..PoolReport::default()
        };
        let facts = ServiceInfo::default();
        let report = ServiceReport::assemble(facts, Vec::new(), vec![pool], vec![declared], 0);
        let late = &report.handlers[0];
        assert_eq!((late.state, late.generation), (HandlerState::Active, 3));
        assert_eq!(late.last_error.as_deref(), Some("config refused"));
    }

    #[test]
    fn the_last_error_is_the_newest_of_records_and_pools_and_a_failure_keeps_its_reason() {
        let error = |at_ms, message: &str| {
            let message = message.to_owned();
            Some(LastError { at_ms, message })
        };
        let pump = |at_ms, message| PumpReport {
            handlers: vec![HandlerFlowReport {
                last_error: error(at_ms, message),
                ..flow("h", "1.0.0", 1)
            }],
            ..PumpReport::default()
        };
        let pool = |generation, at_ms, message, reason: Option<&str>| PoolReport {
            handler: "h".into(),
            generation,
            state: reason.map_or(HandlerState::Active, |_| HandlerState::Failed),
            reason: reason.map(str::to_owned),
            last_error: error(at_ms, message),
            ..PoolReport::default()
        };
        for (pumps, pools, last, cause) in [
            (
                vec![pump(20, "a record failed")],
                vec![pool(1, 10, "a panic", None)],
                ("a record failed", 20),
                None,
            ),
            (
                vec![pump(20, "a record failed"), pump(30, "a later record")],
                vec![
                    pool(2, 40, "a panic", None),
                    pool(1, 5, "an old panic", None),
                ],
                ("a panic", 40),
                None,
            ),
            (
                vec![pump(50, "refused")],
                vec![pool(1, 40, "a panic", Some("too many panics"))],
                ("refused", 50),
                Some("too many panics"),
            ),
        ] {
            let declared = DeclaredHandler {
                name: "h".into(),
                ..DeclaredHandler::default()
            };
            let facts = ServiceInfo::default();
            let report = ServiceReport::assemble(facts, pumps, pools, vec![declared], 60);
            let h = &report.handlers[0];
            let told = h.last_error.as_deref().zip(h.last_error_ms);
            assert_eq!(told, Some(last));
            assert_eq!(h.reason.as_deref(), cause);
            assert_eq!(h.problems.first().map(|one| &*one.cause), cause);
        }
    }

    #[test]
    fn a_refused_handler_is_listed_and_a_removed_one_only_while_it_holds_records() {
        let declared = DeclaredHandler {
            name: "bad".into(),
            rejected: Some("no plugin `bad`".into()),
            ..DeclaredHandler::default()
        };
        let mut done = flow("gone", "1.0.0", 3);
        done.in_flight = 0;
        let pump = PumpReport {
            handlers: vec![done, flow("going", "1.0.0", 3)],
            ..PumpReport::default()
        };
        let report = ServiceReport::assemble(
            ServiceInfo::default(),
            vec![pump],
            Vec::new(),
            vec![declared],
            0,
        );
        let states: Vec<_> = report
            .handlers
            .iter()
            .map(|h| (h.name.as_str(), h.state))
            .collect();
        assert_eq!(
            states,
            [
                ("bad", HandlerState::Rejected),
                ("going", HandlerState::Draining)
            ]
        );
        assert_eq!(
            report.handlers[0].last_error.as_deref(),
            Some("no plugin `bad`")
        );
    }
}
